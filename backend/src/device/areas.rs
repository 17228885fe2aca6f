// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parts of regions in whole pages: what of a region may be mapped when some of it must not be.

use std::ops::Range;

use crate::memory::PAGE_SIZE;

/// A part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Bytes from the start of the region; page aligned.
    pub offset: u64,
    /// Bytes; a multiple of the page size.
    pub size: u64,
}

/// The pages that a range has a part in.
#[must_use]
pub fn pages(range: &Range<u64>) -> Range<u64> {
    let start = range.start - range.start % PAGE_SIZE;
    let end = range.end.checked_next_multiple_of(PAGE_SIZE);
    start..end.unwrap_or(u64::MAX)
}

/// `parts`, in order, without the pages of `trapped`. What is not whole pages is left out.
#[must_use]
pub fn cut(parts: impl IntoIterator<Item = Range<u64>>, trapped: &[Range<u64>]) -> Vec<Area> {
    let mut parts: Vec<Range<u64>> = parts.into_iter().collect();
    parts.retain(|part| part.start.is_multiple_of(PAGE_SIZE) && part.end.is_multiple_of(PAGE_SIZE));
    for hole in trapped.iter().filter(|hole| !hole.is_empty()).map(pages) {
        parts = parts
            .into_iter()
            .flat_map(|part| {
                let before = part.start..part.end.min(hole.start.max(part.start));
                let after = part.start.max(hole.end.min(part.end))..part.end;
                [before, after]
            })
            .collect();
    }
    parts.retain(|part| part.start < part.end);
    parts.sort_by_key(|part| part.start);
    let areas = parts.into_iter().map(|part| Area {
        offset: part.start,
        size: part.end - part.start,
    });
    areas.collect()
}
