//! From rows to micro-batches: order, packing, and the flat arrays that the training program reads.
//!
//! A micro-batch is its rows one after another, without padding; attention is bounded by each row, and positions
//! start at 0 in each.

use super::data::Row;
use super::rows::Rows;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

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
    items: usize,
    /// Rows of each item; `None`: item i is row i.
    bins: Option<Vec<Vec<u32>>>,
    files: Vec<FileOrder>,
    seed: Option<u64>,
    /// The latest epoch's permutation: steps ask for neighbours.
    cached: Option<(usize, Vec<usize>)>,
}

/// The items of a data file and how many of them an epoch takes.
#[derive(Clone, Debug)]
struct FileOrder {
    items: Range<usize>,
    an_epoch: usize,
}

impl Order {
    /// Each row is an item; with `seed` in a new order every epoch, else in file order. `weights` are those of the rows'
    /// files; 1 where there are fewer.
    pub fn rows(rows: &Rows, weights: &[f64], seed: Option<u64>) -> Self {
        let mut me = Self { items: 0, bins: None, files: Vec::new(), seed, cached: None };
        rows.files().iter().enumerate().for_each(|(i, file)| me.add_file(file.len(), weights.get(i)));
        me
    }

    /// Each two rows are an item; with `seed` in a new order every epoch.
    pub fn pairs(rows: &Rows, weights: &[f64], seed: Option<u64>) -> Self {
        let mut me = Self { items: 0, bins: None, files: Vec::new(), seed, cached: None };
        rows.files().iter().enumerate().for_each(|(i, file)| me.add_file(file.len() / 2, weights.get(i)));
        let pairs = (0..me.items as u32).map(|i| vec![2 * i, 2 * i + 1]).collect();
        Self { bins: Some(pairs), ..me }
    }

    /// Bins of at most `size` tokens are the items. Rows of one bin come from one file.
    pub fn bins(rows: &Rows, weights: &[f64], size: usize, seed: Option<u64>) -> Self {
        let bins = |file: &Range<usize>| {
            let lengths: Vec<usize> = file.clone().map(|i| rows.tokens(i)).collect();
            let bins = pack(&lengths, size).into_iter();
            bins.map(|bin| bin.into_iter().map(|i| (file.start + i) as u32).collect()).collect()
        };
        let mut me = Self { items: 0, bins: None, files: Vec::new(), seed, cached: None };
        let mut all = Vec::new();
        for (i, file) in rows.files().iter().enumerate() {
            let bins: Vec<Vec<u32>> = bins(file);
            me.add_file(bins.len(), weights.get(i));
            all.extend(bins);
        }
        Self { bins: Some(all), ..me }
    }

    fn add_file(&mut self, count: usize, weight: Option<&f64>) {
        let items = self.items..self.items + count;
        self.items = items.end;
        if count > 0 {
            let an_epoch = ((weight.unwrap_or(&1.0) * count as f64).round() as usize).max(1);
            self.files.push(FileOrder { items, an_epoch });
        }
    }

    /// Items of an epoch.
    pub fn len(&self) -> usize {
        self.files.iter().map(|file| file.an_epoch).sum()
    }

    /// Items of which there is only one copy: rows, or bins of them.
    pub fn distinct(&self) -> usize {
        self.items
    }

    /// True where there is no data.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Rows of the item at `position`, counted over all epochs.
    pub fn item(&mut self, position: usize) -> Vec<u32> {
        let epoch_len = self.len().max(1);
        let (epoch, at) = (position / epoch_len, position % epoch_len);
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            let mut order: Vec<usize> = self.files.iter().flat_map(|file| file.of_epoch(epoch, self.seed)).collect();
            if let Some(seed) = self.seed {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(epoch as u64);
                order.shuffle(&mut rng);
            }
            self.cached = Some((epoch, order));
        }
        let index = self.cached.as_ref().and_then(|(_, order)| order.get(at)).copied();
        index.map(|index| self.rows_of(index)).unwrap_or_default()
    }

    fn rows_of(&self, item: usize) -> Vec<u32> {
        match &self.bins {
            Some(bins) => bins.get(item).cloned().unwrap_or_default(),
            None => vec![item as u32],
        }
    }

    /// Most tokens and most rows that `batch` items can have together.
    pub fn largest(&self, rows: &Rows, batch: usize) -> (usize, usize) {
        let top = |size: &dyn Fn(&[u32]) -> usize| {
            let mut sizes: Vec<usize> = (0..self.items).map(|item| size(&self.rows_of(item))).collect();
            sizes.sort_unstable_by_key(|s| std::cmp::Reverse(*s));
            // A batch larger than the data wraps around and meets rows again; a file of weight 2 comes twice in an epoch.
            let copies = self.files.iter().map(|f| f.an_epoch.div_ceil(f.items.len())).max().unwrap_or(1);
            (0..batch).map(|i| sizes.get(i / copies % sizes.len().max(1)).copied().unwrap_or(0)).sum()
        };
        let tokens = |item: &[u32]| item.iter().map(|r| rows.tokens(*r as usize)).sum();
        (top(&tokens), top(&<[u32]>::len))
    }
}

impl FileOrder {
    /// The file's items in an epoch: those that follow the ones of the epoch before, in the file's order or, where an epoch
    /// takes only some, in one that the seed shuffles once.
    fn of_epoch(&self, epoch: usize, seed: Option<u64>) -> Vec<usize> {
        let count = self.items.len();
        let mut order: Vec<usize> = self.items.clone().collect();
        if let Some(seed) = seed.filter(|_| !self.an_epoch.is_multiple_of(count)) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(u64::MAX - self.items.start as u64);
            order.shuffle(&mut rng);
        }
        let first = epoch.wrapping_mul(self.an_epoch);
        (0..self.an_epoch).map(|i| order[first.wrapping_add(i) % count]).collect()
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

    fn files(sizes: &[usize]) -> Rows {
        let mut rows = Rows::new(None);
        for size in sizes {
            rows.next_file();
            (0..*size).for_each(|_| rows.push(&row(&[1, 2], &[false, true])).unwrap());
        }
        rows
    }

    fn items(order: &mut Order, positions: Range<usize>) -> Vec<u32> {
        positions.map(|p| order.item(p)[0]).collect()
    }

    #[test]
    fn file_order_wraps_around_and_shuffling_visits_all() {
        let rows = files(&[5]);
        let mut order = Order::rows(&rows, &[], None);
        assert_eq!(items(&mut order, 3..8), [3, 4, 0, 1, 2]);
        let mut shuffled = Order::rows(&rows, &[], Some(1));
        let (first, second) = (items(&mut shuffled, 0..5), items(&mut shuffled, 5..10));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4]);
        assert_ne!(first, second);
        assert_eq!(items(&mut shuffled, 0..5), first);
    }

    #[test]
    fn weights_repeat_and_alternate() {
        let rows = files(&[4, 2]);
        let mut order = Order::rows(&rows, &[0.5, 2.0], None);
        assert_eq!((order.len(), order.distinct()), (6, 6));
        assert_eq!(items(&mut order, 0..12), [0, 1, 4, 5, 4, 5, 2, 3, 4, 5, 4, 5]);
        // Two epochs of half of the rows are all of them.
        let mut shuffled = Order::rows(&rows, &[0.5, 2.0], Some(7));
        let mut seen: Vec<u32> = items(&mut shuffled, 0..12).into_iter().filter(|r| *r < 4).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
        assert_eq!(order.largest(&rows, 4).0, 8);
        let bins = Order::bins(&rows, &[], 8, None);
        assert_eq!(bins.distinct(), 2);
    }
}
