//! From rows to micro-batches: order, packing, and the flat arrays that the training program reads.
//!
//! A micro-batch is its rows one after another, without padding; attention is bounded by each row, and positions
//! start at 0 in each.

use super::data::Row;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Label of a token that the loss does not count.
pub const NOT_COUNTED: u32 = u32::MAX;

/// The training program's inputs for some rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Tokens of all rows.
    pub ids: Vec<u32>,
    /// Position of each in its row.
    pub positions: Vec<u32>,
    /// Row of each, from 0.
    pub seqs: Vec<u32>,
    /// First token of each row, and one past the last.
    pub bounds: Vec<u32>,
    /// The next token where it counts, else [`NOT_COUNTED`].
    pub labels: Vec<u32>,
}

impl MicroBatch {
    /// Lays rows out one after another.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut me = Self { bounds: vec![0], ..Self::default() };
        for (seq, row) in rows.into_iter().enumerate() {
            me.ids.extend(&row.ids);
            me.positions.extend(0..row.ids.len() as u32);
            me.seqs.extend(std::iter::repeat_n(seq as u32, row.ids.len()));
            me.bounds.push(me.ids.len() as u32);
            let next = row.ids.iter().zip(&row.counted).skip(1);
            me.labels.extend(next.map(|(id, counted)| if *counted { *id } else { NOT_COUNTED }));
            me.labels.extend((!row.ids.is_empty()).then_some(NOT_COUNTED));
        }
        me
    }

    /// How many tokens the loss counts.
    pub fn counted(&self) -> usize {
        self.labels.iter().filter(|l| **l != NOT_COUNTED).count()
    }
}

/// Which rows train together and when. An item is what `batch_size` counts: a row, or a bin of rows when packing.
#[derive(Clone, Debug)]
pub struct Order {
    items: Vec<Vec<usize>>,
    seed: Option<u64>,
    /// The latest epoch's permutation: steps ask for neighbours.
    cached: Option<(usize, Vec<usize>)>,
}

impl Order {
    /// Each row is an item; with `seed` in a new order every epoch, else in file order.
    pub fn rows(rows: &[Row], seed: Option<u64>) -> Self {
        Self { items: (0..rows.len()).map(|i| vec![i]).collect(), seed, cached: None }
    }

    /// Each two rows are an item; with `seed` in a new order every epoch.
    pub fn pairs(rows: &[Row], seed: Option<u64>) -> Self {
        Self { items: (0..rows.len() / 2).map(|i| vec![2 * i, 2 * i + 1]).collect(), seed, cached: None }
    }

    /// Bins of at most `size` tokens are the items.
    pub fn bins(rows: &[Row], size: usize, seed: Option<u64>) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|r| r.ids.len()).collect();
        Self { items: pack(&lengths, size), seed, cached: None }
    }

    /// Items of an epoch.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True where there is no data.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Rows of the item at `position`, counted over all epochs.
    pub fn item(&mut self, position: usize) -> &[usize] {
        let (epoch, at) = (position / self.items.len(), position % self.items.len());
        let Some(seed) = self.seed else { return &self.items[at] };
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            let mut order: Vec<usize> = (0..self.items.len()).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch as u64);
            order.shuffle(&mut rng);
            self.cached = Some((epoch, order));
        }
        let index = self.cached.as_ref().map_or(at, |(_, order)| order[at]);
        &self.items[index]
    }

    /// Most tokens and most rows that `batch` items can have together.
    pub fn largest(&self, rows: &[Row], batch: usize) -> (usize, usize) {
        let top = |size: &dyn Fn(&Vec<usize>) -> usize| {
            let mut sizes: Vec<usize> = self.items.iter().map(size).collect();
            sizes.sort_unstable_by_key(|s| std::cmp::Reverse(*s));
            // A batch larger than the data wraps around and meets rows again.
            (0..batch).map(|i| sizes.get(i % sizes.len().max(1)).copied().unwrap_or(0)).sum()
        };
        let tokens = |item: &Vec<usize>| item.iter().map(|r| rows[*r].ids.len()).sum();
        (top(&tokens), top(&Vec::len))
    }
}

/// Best-fit decreasing (what TRL calls `bfd`): longest rows first, each into the bin with the least room that
/// still holds it. Bins are ordered by their first row, rows in a bin by their place in the file.
fn pack(lengths: &[usize], size: usize) -> Vec<Vec<usize>> {
    use std::collections::BTreeSet;
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for row in longest_first {
        let found = room.range((lengths[row], 0)..).next().copied();
        let (left, bin) = found.unwrap_or_else(|| {
            bins.push(Vec::new());
            (size.max(lengths[row]), bins.len() - 1)
        });
        room.remove(&(left, bin));
        room.insert((left - lengths[row], bin));
        bins[bin].push(row);
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins.sort_unstable_by_key(|bin| bin.first().copied());
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], counted: &[bool]) -> Row {
        Row { ids: ids.to_vec(), counted: counted.to_vec(), line: 1 }
    }

    #[test]
    fn rows_lie_side_by_side() {
        let rows = [row(&[5, 6, 7], &[false, false, true]), row(&[8, 9], &[false, true])];
        let batch = MicroBatch::new(&rows);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.seqs, [0, 0, 0, 1, 1]);
        assert_eq!(batch.bounds, [0, 3, 5]);
        assert_eq!(batch.labels, [NOT_COUNTED, 7, NOT_COUNTED, 9, NOT_COUNTED]);
        assert_eq!(batch.counted(), 2);
    }

    #[test]
    fn packing_fills_the_tightest_bin() {
        // 7 | 6 3 | 5 … : 3 fits beside 7 (leaving 0) better than beside 6; 2 goes beside 6.
        assert_eq!(pack(&[5, 7, 2, 6, 3], 10), [vec![0], vec![1, 4], vec![2, 3]]);
        assert_eq!(pack(&[4, 4, 4], 8), [vec![0, 1], vec![2]]);
        assert!(pack(&[], 8).is_empty());
    }

    #[test]
    fn file_order_wraps_around_and_shuffling_visits_all() {
        let rows = vec![row(&[1, 2], &[false, true]); 5];
        let mut order = Order::rows(&rows, None);
        let seen: Vec<usize> = (3..8).map(|p| order.item(p)[0]).collect();
        assert_eq!(seen, [3, 4, 0, 1, 2]);
        let epoch = |order: &mut Order, n: usize| (n * 5..n * 5 + 5).map(|p| order.item(p)[0]).collect::<Vec<_>>();
        let mut shuffled = Order::rows(&rows, Some(1));
        let (first, second) = (epoch(&mut shuffled, 0), epoch(&mut shuffled, 1));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4]);
        assert_ne!(first, second);
        assert_eq!(epoch(&mut shuffled, 0), first);
    }
}
