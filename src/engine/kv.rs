//! Pages of the key/value cache: who holds which.

/// Positions in a page.
pub const PAGE: usize = 16;

/// Hands out pages as sequences grow. When none is left the engine parks its youngest request and computes it again
/// later, so no request fails because another one grew.
pub struct PagePool {
    free: Vec<u32>,
    total: usize,
}

/// The pages of one sequence, in order of position.
#[derive(Debug, Default)]
pub struct Pages(Vec<u32>);

impl PagePool {
    /// A pool of `total` free pages.
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }

    /// All pages, free or not.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages for `tokens` positions, or `None` until others are given back.
    pub fn take(&mut self, tokens: usize) -> Option<Pages> {
        let mut pages = Pages::default();
        self.grow(&mut pages, tokens).then_some(pages)
    }

    /// Makes room for `tokens` positions in all; false, and nothing changed, where too few pages are free.
    pub fn grow(&mut self, pages: &mut Pages, tokens: usize) -> bool {
        let missing = tokens.div_ceil(PAGE).saturating_sub(pages.0.len());
        let Some(rest) = self.free.len().checked_sub(missing) else { return false };
        pages.0.extend(self.free.drain(rest..));
        true
    }

    /// Takes pages back.
    pub fn give_back(&mut self, pages: Pages) {
        self.free.extend(pages.0);
    }
}

impl Pages {
    /// Cache row of a position.
    pub fn row(&self, position: usize) -> u32 {
        self.0.get(position / PAGE).map_or(0, |page| page * PAGE as u32) + (position % PAGE) as u32
    }

    /// The page numbers.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}
