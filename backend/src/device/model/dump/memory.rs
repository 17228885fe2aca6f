// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is behind the BARs of a dumped device that are trapped: plain memory, of which only what is touched takes room,
//! and of that not more than [`MAX_PAGES`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use log::warn;

const PAGE: usize = 4096;
/// Pages that a guest can make one device hold: 64 MiB.
const MAX_PAGES: usize = 16384;

/// Memory of any size in each BAR that reads zero until it is written. Ranges are checked by the caller.
#[derive(Debug, Default)]
pub(super) struct SparseMemory {
    /// By BAR and number.
    pages: BTreeMap<(u32, u64), Box<[u8; PAGE]>>,
    /// The log has it that writes are lost.
    said: bool,
}

impl SparseMemory {
    pub(super) fn read(&self, bar: u32, offset: u64, data: &mut [u8]) {
        for (page, start, piece) in pieces(offset, data.len()) {
            let Some(out) = data.get_mut(piece.clone()) else {
                return;
            };
            let stored = self.pages.get(&(bar, page));
            match stored.and_then(|bytes| bytes.get(start..start + piece.len())) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    /// What would need a page too many is lost.
    pub(super) fn write(&mut self, bar: u32, offset: u64, data: &[u8]) {
        for (page, start, piece) in pieces(offset, data.len()) {
            let is_full = self.pages.len() >= MAX_PAGES;
            let bytes = match self.pages.entry((bar, page)) {
                Entry::Occupied(page) => page.into_mut(),
                Entry::Vacant(page) if !is_full => page.insert(Box::new([0; PAGE])),
                Entry::Vacant(_) => {
                    if !std::mem::replace(&mut self.said, true) {
                        warn!(
                            "The BARs of a dump hold {MAX_PAGES} pages: writes to others are lost"
                        );
                    }
                    continue;
                }
            };
            let place = bytes.get_mut(start..start + piece.len());
            if let Some((place, data)) = place.zip(data.get(piece)) {
                place.copy_from_slice(data);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }
}

/// The pages of a range: number, first byte in the page, and the part of the caller's bytes.
fn pieces(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let page_size = PAGE as u64;
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let at = offset.saturating_add(done as u64);
        let start = usize::try_from(at % page_size).unwrap_or(0);
        let piece = done..length.min(done + PAGE - start);
        done = piece.end;
        Some((at / page_size, start, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_across_pages() {
        let mut memory = SparseMemory::default();
        let data: Vec<_> = (0..=255_u8).cycle().take(3 * PAGE).collect();
        let at = (1 << 40) - 5;
        memory.write(0, at, &data);
        let mut read = vec![1; 3 * PAGE + 2];
        memory.read(0, at - 1, &mut read);
        assert_eq!((read[0], read[read.len() - 1]), (0, 0));
        assert_eq!(read[1..=3 * PAGE], data);
        assert_eq!(memory.pages.len(), 4);
        memory.read(1, at, &mut read);
        assert!(read.iter().all(|byte| *byte == 0), "another BAR");
        memory.clear();
        memory.read(0, at, &mut read);
        assert!(read.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut memory = SparseMemory::default();
        let at = |page: usize| (page * PAGE) as u64;
        for page in 0..MAX_PAGES {
            let bar = u32::from(page % 2 == 0);
            memory.write(bar, at(page), &[1]);
        }
        // Across the end of the last page that there is.
        let last = at(MAX_PAGES) - 1;
        memory.write(0, last, &[2, 2]);
        let mut read = [9; 2];
        memory.read(0, last, &mut read);
        assert_eq!(read, [2, 0]);
        assert_eq!(memory.pages.len(), MAX_PAGES);
        memory.clear();
        memory.write(0, last, &[2, 2]);
        memory.read(0, last, &mut read);
        assert_eq!(read, [2, 2]);
    }
}
