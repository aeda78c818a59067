//! Pages of the key/value cache: who holds which, and which of them hold a prefix that others can use.
//!
//! A full page is known by what it holds: its tokens and the page before it, back to a root that stands for the adapter's
//! version. So whole prefixes are compared, not hashes of them, and nothing computed with one version of an adapter is ever
//! found by another. A page that nobody holds keeps its contents until its place is needed, the longest unused first.
//! Sequences share full pages only; the rest of a prefix, fewer tokens than a page, is computed again, so a shared page is
//! never written to.

use std::collections::{HashMap, VecDeque};

/// Positions in a page.
pub const PAGE: usize = 16;

/// A full page's contents: the prefix before it, and its tokens.
type Key = (Prefix, [u32; PAGE]);

/// Names a prefix that ends with a full page; the empty one of an adapter's version is its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(u64);

impl Prefix {
    /// The empty prefix under the adapter with this number, `None` for the base model.
    pub fn root(adapter: Option<u64>) -> Self {
        // Pages are numbered with even numbers.
        Self(adapter.map_or(1, |version| 2 * version + 3))
    }
}

/// Hands out pages as sequences grow. When none is left the engine parks a request and computes it again later, so no request
/// fails because another one grew.
pub struct PagePool {
    pages: Vec<Page>,
    /// Pages that nobody holds, in the order in which they are to be used, each with its `turn`. An entry whose page has been
    /// taken in the meantime is stale.
    unused: VecDeque<(u32, u64)>,
    used: usize,
    known: HashMap<Key, (u32, Prefix)>,
    counter: u64,
    remembers: bool,
}

#[derive(Clone, Default)]
struct Page {
    holders: u32,
    turn: u64,
    key: Option<Key>,
}

/// The pages of one sequence, in order of position.
#[derive(Debug)]
pub struct Pages {
    list: Vec<u32>,
    /// The prefix that ends with the last known page.
    prefix: Prefix,
    /// Pages, from the first one on, that are known to the pool.
    known: usize,
}

impl PagePool {
    /// A pool of `total` free pages. Without `remembers` no prefix is ever found.
    pub fn new(total: usize, remembers: bool) -> Self {
        let unused = (0..total as u32).map(|page| (page, 0)).collect();
        let pages = vec![Page::default(); total];
        Self { pages, unused, used: 0, known: HashMap::new(), counter: 0, remembers }
    }

    /// All pages, free or not.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Whether prefixes can be found again.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Pages that a sequence holds.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The known pages that `tokens` begin with, and the prefix that they make. At least one token is left to compute.
    pub fn look_up(&self, root: Prefix, tokens: &[u32]) -> (Vec<u32>, Prefix) {
        let mut found = (Vec::new(), root);
        let most = tokens.len().saturating_sub(1) / PAGE;
        for page in tokens.as_chunks::<PAGE>().0.iter().take(most) {
            let Some((page, prefix)) = self.known.get(&(found.1, *page)) else { break };
            found.0.push(*page);
            found.1 = *prefix;
        }
        found
    }

    /// Room for `positions`, beginning with pages that [`PagePool::look_up`] found; `None`, and nothing changed, where too few
    /// pages are free.
    pub fn take(&mut self, found: &[u32], prefix: Prefix, positions: usize) -> Option<Pages> {
        let revived = found.iter().filter(|page| self.pages[**page as usize].holders == 0).count();
        let missing = positions.div_ceil(PAGE).saturating_sub(found.len());
        if self.total() - self.used < revived + missing {
            return None;
        }
        for &page in found {
            self.hold(page);
        }
        let mut pages = Pages { list: found.to_vec(), prefix, known: found.len() };
        self.grow(&mut pages, positions).then_some(pages)
    }

    /// Makes room for `positions` in all; false, and nothing changed, where too few pages are free.
    pub fn grow(&mut self, pages: &mut Pages, positions: usize) -> bool {
        let missing = positions.div_ceil(PAGE).saturating_sub(pages.list.len());
        if missing > self.total() - self.used {
            return false;
        }
        for _ in 0..missing {
            let Some(page) = self.oldest() else { return false };
            if let Some(key) = self.pages[page as usize].key.take() {
                self.known.remove(&key);
            }
            self.hold(page);
            pages.list.push(page);
        }
        true
    }

    /// Makes the pages that `tokens`, all of them computed, fill known to later sequences.
    pub fn remember(&mut self, pages: &mut Pages, tokens: &[u32]) {
        if !self.remembers {
            return;
        }
        for (page, tokens) in pages.list.iter().zip(tokens.as_chunks::<PAGE>().0).skip(pages.known) {
            let key = (pages.prefix, *tokens);
            self.counter += 2;
            let fresh = (*page, Prefix(self.counter));
            let entry = self.known.entry(key).or_insert(fresh);
            if *entry == fresh {
                self.pages[*page as usize].key = Some(key);
            }
            pages.prefix = entry.1;
            pages.known += 1;
        }
    }

    /// Takes pages back. The last ones are used again first: a prefix is worth more than what follows it.
    pub fn give_back(&mut self, pages: Pages) {
        for page in pages.list.into_iter().rev() {
            let entry = &mut self.pages[page as usize];
            entry.holders -= 1;
            if entry.holders > 0 {
                continue;
            }
            self.used -= 1;
            entry.turn += 1;
            let entry = (page, entry.turn);
            if self.pages[page as usize].key.is_some() {
                self.unused.push_back(entry);
            } else {
                self.unused.push_front(entry);
            }
        }
        // Stale entries would pile up where pages are found again and again.
        if self.unused.len() > 2 * self.pages.len() + PAGE {
            let pages = &self.pages;
            self.unused.retain(|(page, turn)| is_unused(&pages[*page as usize], *turn));
        }
    }

    fn hold(&mut self, page: u32) {
        let page = &mut self.pages[page as usize];
        self.used += usize::from(page.holders == 0);
        page.holders += 1;
    }

    fn oldest(&mut self) -> Option<u32> {
        loop {
            let (page, turn) = self.unused.pop_front()?;
            if is_unused(&self.pages[page as usize], turn) {
                return Some(page);
            }
        }
    }
}

fn is_unused(page: &Page, turn: u64) -> bool {
    page.holders == 0 && page.turn == turn
}

impl Pages {
    /// No pages yet.
    pub fn none() -> Self {
        Self { list: Vec::new(), prefix: Prefix::root(None), known: 0 }
    }

    /// Cache row of a position.
    pub fn row(&self, position: usize) -> u32 {
        self.list.get(position / PAGE).map_or(0, |page| page * PAGE as u32) + (position % PAGE) as u32
    }

    /// The page numbers.
    pub fn as_slice(&self) -> &[u32] {
        &self.list
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BASE: fn() -> Prefix = || Prefix::root(None);

    fn tokens(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    /// A sequence that computes all of `tokens`.
    fn computed(pool: &mut PagePool, root: Prefix, tokens: &[u32]) -> Pages {
        let (found, prefix) = pool.look_up(root, tokens);
        let mut pages = pool.take(&found, prefix, tokens.len()).unwrap();
        pool.remember(&mut pages, tokens);
        pages
    }

    #[test]
    fn a_prefix_is_found_while_it_is_held_and_after() {
        let mut pool = PagePool::new(8, true);
        let first = computed(&mut pool, BASE(), &tokens(40));
        assert_eq!(pool.look_up(BASE(), &tokens(40)).0, first.as_slice()[..2]);
        // One token has to be computed for its logits.
        assert_eq!(pool.look_up(BASE(), &tokens(32)).0.len(), 1);
        let second = computed(&mut pool, BASE(), &tokens(40));
        assert_eq!((pool.used(), second.as_slice()[..2] == first.as_slice()[..2]), (4, true));
        pool.give_back(first);
        pool.give_back(second);
        assert_eq!((pool.used(), pool.look_up(BASE(), &tokens(40)).0.len()), (0, 2));
    }

    #[test]
    fn other_text_and_other_adapters_find_nothing() {
        let mut pool = PagePool::new(8, true);
        let pages = computed(&mut pool, BASE(), &tokens(40));
        let mut other = tokens(40);
        other[0] = 7;
        assert!(pool.look_up(BASE(), &other).0.is_empty());
        for version in 0..3 {
            assert!(pool.look_up(Prefix::root(Some(version)), &tokens(40)).0.is_empty());
        }
        pool.give_back(pages);
    }

    #[test]
    fn contents_go_when_the_place_is_needed_the_end_first() {
        let mut pool = PagePool::new(4, true);
        let pages = computed(&mut pool, BASE(), &tokens(64));
        pool.give_back(pages);
        let other: Vec<u32> = (100..132).collect();
        let pages = computed(&mut pool, BASE(), &other);
        assert_eq!(pool.look_up(BASE(), &tokens(64)).0.len(), 2);
        assert!(pool.take(&[], BASE(), 49).is_none(), "48 positions are free");
        pool.give_back(pages);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_pool_that_does_not_remember_finds_nothing() {
        let mut pool = PagePool::new(4, false);
        let pages = computed(&mut pool, BASE(), &tokens(64));
        assert!(pool.look_up(BASE(), &tokens(64)).0.is_empty());
        pool.give_back(pages);
    }
}
