//! Sorts more entries than fit in memory: sorted runs in a temporary file, then merged. An entry is
//! an array of bytes that is compared as such; [`super::entry`] writes them so that this is the order
//! that a pass needs.
//!
//! The file has no name: the kernel removes it however this process ends.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};

/// Runs that are merged at once, at most: each needs a buffer.
const FAN_IN: usize = 128;

/// Where sorters put what does not fit in memory.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    /// Where the temporary files are.
    pub(crate) directory: PathBuf,
    /// Bytes of entries that one sorter holds in memory; while a run is being written, twice as many.
    pub(crate) memory: usize,
}

impl Scratch {
    fn file(&self) -> Result<File> {
        tempfile::tempfile_in(&self.directory).with_context(|| self.to_string())
    }
}

impl std::fmt::Display for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "temporary files in {} (--temporary-directory names another one)", self.directory.display())
    }
}

/// Takes entries in any order.
#[derive(Debug)]
pub(super) struct Sorter<const N: usize> {
    scratch: Scratch,
    buffer: Vec<[u8; N]>,
    /// Sorted runs, as ranges of bytes.
    file: Option<Arc<File>>,
    runs: Vec<Range<u64>>,
    /// The run that is being sorted and written. Gives its buffer back.
    writing: Option<JoinHandle<io::Result<Vec<[u8; N]>>>>,
}

impl<const N: usize> Sorter<N> {
    pub(super) fn new(scratch: &Scratch) -> Sorter<N> {
        Sorter { scratch: scratch.clone(), buffer: Vec::new(), file: None, runs: Vec::new(), writing: None }
    }

    /// May wait for a run to be written.
    pub(super) fn push(&mut self, entry: [u8; N]) -> Result<()> {
        if self.buffer.len() >= (self.scratch.memory / N).max(1) {
            self.spill()?;
        }
        self.buffer.push(entry);
        Ok(())
    }

    /// Makes a run of what is in memory, on a thread of its own.
    fn spill(&mut self) -> Result<()> {
        let empty = self.written()?;
        let mut full = std::mem::replace(&mut self.buffer, empty);
        let file = self.file()?;
        let start = self.runs.last().map_or(0, |run| run.end);
        self.runs.push(start..start + (full.len() * N) as u64);
        self.writing = Some(thread::spawn(move || {
            full.sort_unstable();
            file.write_all_at(full.as_flattened(), start)?;
            full.clear();
            Ok(full)
        }));
        Ok(())
    }

    /// Waits for the run that is being written.
    fn written(&mut self) -> Result<Vec<[u8; N]>> {
        let Some(writing) = self.writing.take() else { return Ok(Vec::new()) };
        let buffer = writing.join().map_err(|_| anyhow!("the thread that sorts panicked"))?;
        buffer.with_context(|| format!("writing {}", self.scratch))
    }

    fn file(&mut self) -> Result<Arc<File>> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::new(self.scratch.file()?),
        };
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// The runs, few enough to be merged by a reader of up to `most`.
    fn into_runs(mut self, most: usize) -> Result<Vec<Run<N>>> {
        if self.runs.is_empty() {
            self.buffer.sort_unstable();
            return Ok(vec![Run { source: None, buffer: self.buffer, at: 0 }]);
        }
        if !self.buffer.is_empty() {
            self.spill()?;
        }
        drop(self.written()?);
        self.buffer = Vec::new();
        while self.runs.len() > most {
            self.merge_some()?;
        }
        let file = self.file()?;
        let run = |rest| Run { source: Some((Arc::clone(&file), rest)), buffer: Vec::new(), at: 0 };
        Ok(self.runs.into_iter().map(run).collect())
    }

    /// Makes one run of the first ones.
    fn merge_some(&mut self) -> Result<()> {
        let (file, end) = (self.file()?, self.runs.last().map_or(0, |run| run.end));
        let some = self.runs.drain(..FAN_IN.min(self.runs.len())).collect::<Vec<_>>();
        let run = |rest| Run { source: Some((Arc::clone(&file), rest)), buffer: Vec::new(), at: 0 };
        let mut merged = Sorted::of(some.into_iter().map(run).collect(), self.scratch.clone())?;
        let (mut at, capacity) = (end, (self.scratch.memory / N).max(1));
        loop {
            self.buffer.clear();
            while self.buffer.len() < capacity
                && let Some(entry) = merged.next()?
            {
                self.buffer.push(entry);
            }
            if self.buffer.is_empty() {
                break;
            }
            let written = file.write_all_at(self.buffer.as_flattened(), at);
            written.with_context(|| format!("writing {}", self.scratch))?;
            at += (self.buffer.len() * N) as u64;
        }
        self.runs.push(end..at);
        Ok(())
    }
}

/// The entries of one or more sorters, in order.
#[derive(Debug)]
pub(super) struct Sorted<const N: usize> {
    scratch: Scratch,
    runs: Vec<Run<N>>,
    /// The next entry of every run that has one.
    heads: BinaryHeap<Head<N>>,
    /// Entries of a run that are read at a time.
    block: usize,
}

impl<const N: usize> Sorted<N> {
    /// Sorts what was pushed.
    pub(super) fn new(sorters: Vec<Sorter<N>>, scratch: &Scratch) -> Result<Sorted<N>> {
        let most = (FAN_IN / sorters.len().max(1)).max(1);
        let mut runs = Vec::new();
        for sorter in sorters {
            runs.extend(sorter.into_runs(most)?);
        }
        Sorted::of(runs, scratch.clone())
    }

    fn of(runs: Vec<Run<N>>, scratch: Scratch) -> Result<Sorted<N>> {
        let block = (scratch.memory / N / runs.len().max(1)).max(1);
        let mut sorted = Sorted { scratch, runs, heads: BinaryHeap::new(), block };
        for run in 0..sorted.runs.len() {
            if let Some(entry) = sorted.next_of(run)? {
                sorted.heads.push(Head { entry, run });
            }
        }
        Ok(sorted)
    }

    pub(super) fn next(&mut self) -> Result<Option<[u8; N]>> {
        let Some(Head { entry, run }) = self.heads.peek().copied() else { return Ok(None) };
        let next = self.next_of(run)?;
        if let Some(mut head) = self.heads.peek_mut() {
            match next {
                Some(entry) => head.entry = entry,
                None => drop(PeekMut::pop(head)),
            }
        }
        Ok(Some(entry))
    }

    fn next_of(&mut self, run: usize) -> Result<Option<[u8; N]>> {
        let next = self.runs[run].next(self.block);
        next.with_context(|| format!("reading {}", self.scratch))
    }
}

/// A sorted run that is being read.
#[derive(Debug)]
struct Run<const N: usize> {
    /// What is still in the file; none for a run that was never written.
    source: Option<(Arc<File>, Range<u64>)>,
    buffer: Vec<[u8; N]>,
    at: usize,
}

impl<const N: usize> Run<N> {
    fn next(&mut self, block: usize) -> io::Result<Option<[u8; N]>> {
        if self.at == self.buffer.len() {
            let Some((file, rest)) = &mut self.source else { return Ok(None) };
            let left = (rest.end - rest.start) as usize / N;
            self.buffer.resize(left.min(block), [0; N]);
            file.read_exact_at(self.buffer.as_flattened_mut(), rest.start)?;
            rest.start += (self.buffer.len() * N) as u64;
            self.at = 0;
        }
        let next = self.buffer.get(self.at).copied();
        self.at += usize::from(next.is_some());
        Ok(next)
    }
}

/// Ordered so that a heap gives the least entry first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head<const N: usize> {
    entry: [u8; N],
    run: usize,
}

impl<const N: usize> Ord for Head<N> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.entry.cmp(&self.entry).then(other.run.cmp(&self.run))
    }
}

impl<const N: usize> PartialOrd for Head<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in an order that looks random, each once.
    fn numbers(count: u32) -> impl Iterator<Item = u32> {
        (0..count).map(move |number| (number * 7_919) % count)
    }

    fn sort(count: u32, sorters: usize, memory: usize) -> Result<Vec<u32>> {
        let scratch = Scratch { directory: std::env::temp_dir(), memory };
        let mut all: Vec<Sorter<4>> = (0..sorters).map(|_| Sorter::new(&scratch)).collect();
        for (at, number) in numbers(count).enumerate() {
            all[at % sorters].push(number.to_be_bytes())?;
        }
        let mut sorted = Sorted::new(all, &scratch)?;
        let mut out = Vec::new();
        while let Some(entry) = sorted.next()? {
            out.push(u32::from_be_bytes(entry));
        }
        Ok(out)
    }

    #[test]
    fn entries_come_in_order_whatever_fits_in_memory() {
        for (count, sorters, memory) in [
            (0, 1, 100),
            (1, 2, 100),
            (1000, 1, 100_000),
            (1000, 1, 400),
            (1000, 3, 100),
            // a run for every entry or every two: merged many times over
            (5000, 1, 1),
            (5000, 2, 8),
        ] {
            let sorted = sort(count, sorters, memory).expect("sorted");
            assert!(sorted.into_iter().eq(0..count), "{count} {sorters} {memory}");
        }
    }

    #[test]
    fn an_error_names_the_directory() {
        let scratch = Scratch { directory: "/no/such/directory".into(), memory: 4 };
        let mut sorter = Sorter::new(&scratch);
        sorter.push(1_u32.to_be_bytes()).expect("in memory");
        let error = sorter.push(2_u32.to_be_bytes()).expect_err("no file can be made");
        let expected = "temporary files in /no/such/directory (--temporary-directory names another one): ";
        assert!(format!("{error:#}").starts_with(expected), "{error:#}");
    }
}
