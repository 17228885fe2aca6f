// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds room for blocks in a window of configuration space. Knows lengths only, not what is in
//! them.

use std::ops::Range;

/// Why a block got no place; turned into the error that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// Not a multiple of 4, or outside the window.
    BadOffset(u16),
    /// Another fixed one has bytes of it.
    Overlap(u16),
    /// No gap of this many bytes.
    Full(usize),
}

/// Gives each `(fixed offset, length)` an offset inside `window`, dword aligned: the fixed ones
/// first, then each other one in the first gap that holds it. An error names the position that
/// failed.
pub(super) fn place(
    window: Range<u16>,
    wanted: &[(Option<u16>, usize)],
) -> Result<Vec<u16>, (usize, NoPlace)> {
    let mut taken: Vec<Range<u16>> = Vec::new();
    let mut offsets = vec![0; wanted.len()];
    let fits = |start: u16, len: usize| {
        let len = u16::try_from(len.next_multiple_of(4)).ok()?;
        start
            .checked_add(len)
            .filter(|end| *end <= window.end)
            .map(|end| start..end)
    };

    for (position, &(offset, len)) in wanted.iter().enumerate() {
        let Some(offset) = offset else { continue };
        let fail = |why| Err((position, why));
        if offset % 4 != 0 || !window.contains(&offset) {
            return fail(NoPlace::BadOffset(offset));
        }
        let Some(range) = fits(offset, len) else {
            return fail(NoPlace::Full(len));
        };
        if taken.iter().any(|other| overlaps(other, &range)) {
            return fail(NoPlace::Overlap(offset));
        }
        taken.push(range);
        offsets[position] = offset;
    }

    for (position, &(offset, len)) in wanted.iter().enumerate() {
        if offset.is_some() {
            continue;
        }
        let mut start = window.start;
        let range = loop {
            let Some(range) = fits(start, len) else {
                return Err((position, NoPlace::Full(len)));
            };
            // Every step moves past a taken range, so this ends.
            match taken.iter().find(|other| overlaps(other, &range)) {
                Some(other) => start = other.end,
                None => break range,
            }
        };
        offsets[position] = range.start;
        taken.push(range);
    }
    Ok(offsets)
}

/// Do two ranges share anything?
pub(super) fn overlaps<T: PartialOrd>(a: &Range<T>, b: &Range<T>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_blocks_go_first_and_gaps_are_filled() {
        let wanted = [(None, 6), (Some(0x48), 10), (None, 4), (None, 8)];
        assert_eq!(
            place(0x40..0x100, &wanted),
            Ok(vec![0x40, 0x48, 0x54, 0x58])
        );
    }

    #[test]
    fn the_position_that_fails_is_named() {
        for (wanted, expected) in [
            (
                [(Some(0x40), 4), (Some(0x41), 4)],
                (1, NoPlace::BadOffset(0x41)),
            ),
            (
                [(Some(0x100), 4), (None, 4)],
                (0, NoPlace::BadOffset(0x100)),
            ),
            (
                [(Some(0x40), 8), (Some(0x44), 4)],
                (1, NoPlace::Overlap(0x44)),
            ),
            ([(Some(0xf8), 12), (None, 4)], (0, NoPlace::Full(12))),
            ([(None, 0xbd), (None, 4)], (1, NoPlace::Full(4))),
            (
                [(None, usize::MAX - 8), (None, 4)],
                (0, NoPlace::Full(usize::MAX - 8)),
            ),
        ] {
            assert_eq!(place(0x40..0x100, &wanted), Err(expected));
        }
    }
}
