// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is behind the BARs of a dumped device that are trapped: plain memory, of which only what is touched takes room.

use std::collections::BTreeMap;

const PAGE: usize = 4096;

/// Memory of any size that reads zero until it is written. Ranges are checked by the caller.
#[derive(Debug, Default)]
pub(super) struct SparseMemory {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl SparseMemory {
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (page, start, piece) in pieces(offset, data.len()) {
            let Some(out) = data.get_mut(piece.clone()) else {
                return;
            };
            let stored = self.pages.get(&page);
            match stored.and_then(|bytes| bytes.get(start..start + piece.len())) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, start, piece) in pieces(offset, data.len()) {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Box::new([0; PAGE]));
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
        memory.write(at, &data);
        let mut read = vec![1; 3 * PAGE + 2];
        memory.read(at - 1, &mut read);
        assert_eq!((read[0], read[read.len() - 1]), (0, 0));
        assert_eq!(read[1..=3 * PAGE], data);
        assert_eq!(memory.pages.len(), 4);
        memory.clear();
        memory.read(at, &mut read);
        assert!(read.iter().all(|byte| *byte == 0));
    }
}
