//! Tokenised rows. In memory up to a limit, beyond it in an unnamed file, so that a set may be larger than memory: what
//! stays in memory is 12 bytes a row.

use super::data::Row;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Tokens (of 4 bytes) that are kept in memory.
const TOKENS_IN_MEMORY: usize = 64 << 20;

/// Marks a token that the loss counts; ids are smaller.
const COUNTED: u32 = 1 << 31;

/// The rows of a data set, in the order of its files.
pub struct Rows {
    /// Tokens, with [`COUNTED`]; the last ones where there is a file.
    words: Vec<u32>,
    spilled: Option<Mutex<File>>,
    /// Words before `words`, in the file.
    written: u64,
    /// Where each row ends.
    ends: Vec<u64>,
    lines: Vec<u32>,
    /// Rows of each data file.
    files: Vec<Range<usize>>,
    hash: u64,
    limit: usize,
    folder: Option<PathBuf>,
}

impl Rows {
    /// No rows. Those beyond memory go to a file in `folder`; `None`: where the system keeps temporary files.
    #[must_use]
    pub fn new(folder: Option<&Path>) -> Self {
        Self {
            words: Vec::new(),
            spilled: None,
            written: 0,
            ends: Vec::new(),
            lines: Vec::new(),
            files: Vec::new(),
            hash: 0xCBF2_9CE4_8422_2325,
            limit: TOKENS_IN_MEMORY,
            folder: folder.map(Path::to_owned),
        }
    }

    /// Adds a row to the current file.
    ///
    /// # Errors
    /// [`Error::Io`] for the file of what is beyond memory.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        let mut eat = |word: u64| self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01B3);
        eat(row.ids.len() as u64);
        row.ids.iter().zip(&row.counted).for_each(|(id, counted)| eat(u64::from(*id) << 1 | u64::from(*counted)));
        let words = row.ids.iter().zip(&row.counted).map(|(id, counted)| id | if *counted { COUNTED } else { 0 });
        self.words.extend(words);
        self.ends.push(self.written + self.words.len() as u64);
        self.lines.push(u32::try_from(row.line).unwrap_or(u32::MAX));
        if let Some(last) = self.files.last_mut() {
            last.end = self.ends.len();
        }
        if self.words.len() > self.limit { self.spill() } else { Ok(()) }
    }

    /// What follows belongs to another file.
    pub fn next_file(&mut self) {
        self.files.push(self.ends.len()..self.ends.len());
    }

    fn spill(&mut self) -> Result<()> {
        let place = self.folder.clone().unwrap_or_else(std::env::temp_dir);
        let failed = |e| Error::io(&place, e);
        if self.spilled.is_none() {
            std::fs::create_dir_all(&place).map_err(failed)?;
            self.spilled = Some(Mutex::new(tempfile::tempfile_in(&place).map_err(failed)?));
        }
        if let Some(Ok(file)) = self.spilled.as_mut().map(Mutex::get_mut) {
            file.seek(SeekFrom::Start(self.written * 4)).map_err(failed)?;
            file.write_all(bytemuck::cast_slice(&self.words)).map_err(failed)?;
        }
        self.written += self.words.len() as u64;
        self.words.clear();
        Ok(())
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens of row `i`; 0 beyond the last.
    #[must_use]
    pub fn tokens(&self, i: usize) -> usize {
        let place = self.place(i);
        (place.end - place.start) as usize
    }

    /// Which rows each data file gave.
    #[must_use]
    pub fn files(&self) -> &[Range<usize>] {
        &self.files
    }

    /// FNV-1a over ids and masks.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn place(&self, i: usize) -> Range<u64> {
        let end = self.ends.get(i).copied().unwrap_or_default();
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or_default();
        start.min(end)..end
    }

    /// Row `i`.
    ///
    /// # Errors
    /// [`Error::Io`] for the file of what is beyond memory; [`Error::Internal`] beyond the last row.
    pub fn get(&self, i: usize) -> Result<Row> {
        let Some(line) = self.lines.get(i) else { return Err(Error::internal(format!("row {i} of {}", self.len()))) };
        let place = self.place(i);
        let mut words = vec![0; (place.end - place.start) as usize];
        match &self.spilled {
            Some(file) if place.start < self.written => {
                let folder = || self.folder.clone().unwrap_or_else(std::env::temp_dir);
                let mut file = file.lock().map_err(|_| Error::internal("the rows' file is gone"))?;
                file.seek(SeekFrom::Start(place.start * 4)).map_err(|e| Error::io(folder(), e))?;
                file.read_exact(bytemuck::cast_slice_mut(&mut words)).map_err(|e| Error::io(folder(), e))?;
            }
            _ => {
                let start = (place.start - self.written) as usize;
                let length = words.len();
                words.copy_from_slice(&self.words[start..start + length]);
            }
        }
        Ok(Row {
            ids: words.iter().map(|w| w & !COUNTED).collect(),
            counted: words.iter().map(|w| w & COUNTED != 0).collect(),
            line: *line as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_beyond_memory_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let row = |i: usize| Row {
            ids: (0..i as u32 % 7 + 2).map(|t| t * 1000 + i as u32).collect(),
            counted: (0..i % 7 + 2).map(|t| (t + i).is_multiple_of(3)).collect(),
            line: i + 1,
        };
        let fill = |limit: usize| {
            let mut rows = Rows { limit, ..Rows::new(Some(folder.path())) };
            for i in 0..50 {
                if i % 25 == 0 {
                    rows.next_file();
                }
                rows.push(&row(i)).unwrap();
            }
            rows
        };
        let (disk, memory) = (fill(20), fill(1 << 20));
        assert!(disk.spilled.is_some() && memory.spilled.is_none());
        assert_eq!(disk.hash(), memory.hash());
        assert_eq!(disk.files(), [0..25, 25..50]);
        for i in (0..50).rev() {
            assert_eq!(disk.get(i).unwrap(), row(i));
            assert_eq!(memory.get(i).unwrap(), row(i));
            assert_eq!(disk.tokens(i), row(i).ids.len());
        }
        assert!(disk.get(50).is_err());
    }
}
