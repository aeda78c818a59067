//! Pages of the key/value cache: who holds which.

/// Positions in a page.
pub const PAGE: usize = 16;

/// Hands out pages. A request gets all that it can ever need when it is admitted, so none fails half-way.
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
        let count = tokens.div_ceil(PAGE);
        let rest = self.free.len().checked_sub(count)?;
        Some(Pages(self.free.split_off(rest)))
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
