// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set of dirty pages of 4 KiB, kept sparse: its size follows what is dirty, not what could be.
//!
//! ```text
//! page    0         512       1024      1536      2048      ...                 2^52
//!         |- chunk 0 -|- chunk 1 -|- chunk 2 -|- chunk 3 -|- ...
//! chunks:   0110...0                              0001...1      512 bits each, some of them set
//! runs:               [===== every page of it =====]            whole chunks, neighbours joined
//! ```
//!
//! A chunk is in one of the two, or clean. Pure.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::bits::{for_each_run, mask};

/// Bytes of a page, as a power of two.
pub(super) const PAGE_SHIFT: u32 = 12;
/// Pages of a chunk, as a power of two: 2 MiB of memory.
const CHUNK_SHIFT: u32 = 9;
const CHUNK_PAGES: u64 = 1 << CHUNK_SHIFT;
const WORDS: usize = 8;
/// The last chunk of a space of 2^64 bytes.
const LAST_CHUNK: u64 = u64::MAX >> (PAGE_SHIFT + CHUNK_SHIFT);
/// Chunks and runs at the most, about 100 MB of them. A set that needs more holds every page instead.
const MAX_ENTRIES: usize = 1 << 20;

/// Pages by their number, that is, address / 4096.
#[derive(Debug, Default)]
pub(super) struct DirtyPages {
    /// The bits of chunks that are dirty in part.
    chunks: BTreeMap<u64, [u64; WORDS]>,
    /// The last chunk of each run, by its first.
    runs: BTreeMap<u64, u64>,
}

impl DirtyPages {
    /// Adds the pages of a range of addresses, rounded outwards.
    pub(super) fn mark(&mut self, addresses: RangeInclusive<u64>) {
        let pages = addresses.start() >> PAGE_SHIFT..=addresses.end() >> PAGE_SHIFT;
        self.mark_pages(*pages.start(), *pages.end());
        if self.chunks.len() + self.runs.len() > MAX_ENTRIES {
            // Too scattered to be kept apart: too much is right, too little would lose memory.
            self.chunks.clear();
            self.runs = BTreeMap::from([(0, LAST_CHUNK)]);
        }
    }

    fn mark_pages(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (mut whole, last_chunk) = (first >> CHUNK_SHIFT, last >> CHUNK_SHIFT);
        let (low, high) = (first % CHUNK_PAGES, last % CHUNK_PAGES);
        if whole == last_chunk {
            return self.mark_bits(whole, low, high);
        }
        if low != 0 {
            self.mark_bits(whole, low, CHUNK_PAGES - 1);
            whole += 1;
        }
        if high == CHUNK_PAGES - 1 {
            self.mark_run(whole, last_chunk);
        } else {
            self.mark_bits(last_chunk, 0, high);
            // The last chunk is behind the first, so it is not chunk 0.
            self.mark_run(whole, last_chunk - 1);
        }
    }

    fn mark_bits(&mut self, chunk: u64, low: u64, high: u64) {
        if self.run_of(chunk).is_some() {
            return;
        }
        let bits = self.chunks.entry(chunk).or_default();
        for (word, mask) in bits.iter_mut().zip(masks(low, high)) {
            *word |= mask;
        }
        if bits.iter().all(|word| *word == u64::MAX) {
            self.mark_run(chunk, chunk);
        }
    }

    /// Adds whole chunks; they absorb what is there and the runs they touch.
    fn mark_run(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        while let Some((&chunk, _)) = self.chunks.range(first..=last).next() {
            self.chunks.remove(&chunk);
        }
        let (mut start, mut end) = (first, last);
        // Runs that overlap, and the neighbours on either side.
        while let Some((&other, &other_end)) = self.runs.range(..=end.saturating_add(1)).next_back()
            && other_end.saturating_add(1) >= start
        {
            self.runs.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        self.runs.insert(start, end);
    }

    /// The run that holds a chunk.
    fn run_of(&self, chunk: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.runs.range(..=chunk).next_back()?;
        (end >= chunk).then_some((start, end))
    }

    /// Takes the dirty pages of a range of page numbers out, and calls `visit` for each stretch of them.
    pub(super) fn take(
        &mut self,
        pages: RangeInclusive<u64>,
        mut visit: impl FnMut(RangeInclusive<u64>),
    ) {
        let (first, last) = pages.into_inner();
        let chunks = first >> CHUNK_SHIFT..=last >> CHUNK_SHIFT;
        while let Some((start, end)) = self.run_in(&chunks) {
            self.runs.remove(&start);
            let (low, high) = (start << CHUNK_SHIFT, last_page(end));
            visit(low.max(first)..=high.min(last));
            // What of the run is outside comes back.
            if low < first {
                self.mark_pages(low, first - 1);
            }
            if high > last {
                self.mark_pages(last + 1, high);
            }
        }
        let mut next = *chunks.start();
        while next <= *chunks.end()
            && let Some((&chunk, bits)) = self.chunks.range_mut(next..=*chunks.end()).next()
        {
            let base = chunk << CHUNK_SHIFT;
            let low = first.saturating_sub(base);
            let high = (last - base).min(CHUNK_PAGES - 1);
            let mut taken = [0; WORDS];
            for ((word, mask), out) in bits.iter_mut().zip(masks(low, high)).zip(&mut taken) {
                *out = *word & mask;
                *word &= !mask;
            }
            if bits.iter().all(|word| *word == 0) {
                self.chunks.remove(&chunk);
            }
            for_each_run(&taken, |bits| {
                visit(base + bits.start()..=base + bits.end())
            });
            next = chunk + 1;
        }
    }

    /// A run that has a chunk of the range in it.
    fn run_in(&self, chunks: &RangeInclusive<u64>) -> Option<(u64, u64)> {
        let (&start, &end) = self.runs.range(..=chunks.end()).next_back()?;
        (end >= *chunks.start()).then_some((start, end))
    }

    /// How many entries hold the set.
    #[cfg(test)]
    fn entries(&self) -> usize {
        self.chunks.len() + self.runs.len()
    }
}

/// The last page of a chunk.
fn last_page(chunk: u64) -> u64 {
    chunk << CHUNK_SHIFT | (CHUNK_PAGES - 1)
}

/// The bits from `low` to `high` of a chunk, word by word.
fn masks(low: u64, high: u64) -> impl Iterator<Item = u64> {
    (0..).step_by(64).map(move |base| mask(base, &(low..=high)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LAST_PAGE: u64 = u64::MAX >> PAGE_SHIFT;

    fn taken(pages: &mut DirtyPages, range: RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let mut runs = Vec::new();
        pages.take(range, |run| runs.push(run));
        runs.sort_by_key(|run| *run.start());
        runs
    }

    #[test]
    fn whole_space_and_its_ends_take_next_to_nothing() {
        let mut pages = DirtyPages::default();
        pages.mark(0..=u64::MAX);
        assert_eq!(pages.entries(), 1);
        assert_eq!(taken(&mut pages, 5..=5), [5..=5]);
        assert_eq!(pages.entries(), 2, "chunk 0 without page 5, and the rest");
        assert_eq!(
            taken(&mut pages, 0..=LAST_PAGE),
            [0..=4, 6..=511, 512..=LAST_PAGE]
        );
        assert_eq!(pages.entries(), 0);
        pages.mark(u64::MAX..=u64::MAX);
        pages.mark(0..=0);
        let ends = [0..=0, LAST_PAGE..=LAST_PAGE];
        assert_eq!(taken(&mut pages, 0..=LAST_PAGE), ends);
    }

    #[test]
    fn pages_that_fill_up_are_joined() {
        let mut pages = DirtyPages::default();
        for page in (0..4096_u64).rev() {
            pages.mark(page << PAGE_SHIFT..=page << PAGE_SHIFT);
        }
        assert_eq!(pages.entries(), 1);
        assert_eq!(taken(&mut pages, 1..=4000), [1..=4000]);
        assert_eq!(taken(&mut pages, 0..=5000), [0..=0, 4001..=4095]);
    }

    #[test]
    fn what_is_too_scattered_is_all_dirty() {
        let mut pages = DirtyPages::default();
        for chunk in 0..MAX_ENTRIES as u64 {
            let at = chunk << (CHUNK_SHIFT + PAGE_SHIFT);
            pages.mark(at..=at);
        }
        assert_eq!(pages.entries(), MAX_ENTRIES);
        pages.mark(u64::MAX..=u64::MAX);
        assert_eq!(taken(&mut pages, 7..=8), [7..=8]);
        assert!(pages.entries() <= 2);
    }

    fn page() -> impl Strategy<Value = u64> {
        prop_oneof![0..3000_u64, LAST_PAGE - 3000..=LAST_PAGE]
    }

    fn stretch() -> impl Strategy<Value = (u64, u64)> {
        let length = prop_oneof![0..4_u64, 500..530_u64, 0..2000_u64];
        (page(), length).prop_map(|(first, length)| (first, (first + length).min(LAST_PAGE)))
    }

    proptest! {
        #[test]
        fn as_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), stretch()), 1..24)) {
            let mut pages = DirtyPages::default();
            let mut model = BTreeSet::new();
            for (mark, (first, last)) in steps {
                if mark {
                    pages.mark(first << PAGE_SHIFT..=(last << PAGE_SHIFT) + 5);
                    model.extend(first..=last);
                } else {
                    let found: Vec<_> = taken(&mut pages, first..=last).into_iter().flatten().collect();
                    let expected: Vec<_> = model.range(first..=last).copied().collect();
                    prop_assert_eq!(found, expected);
                    model.retain(|page| !(first..=last).contains(page));
                }
            }
            let rest: Vec<_> = taken(&mut pages, 0..=LAST_PAGE).into_iter().flatten().collect();
            prop_assert_eq!(rest, model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(pages.entries(), 0);
        }
    }
}
