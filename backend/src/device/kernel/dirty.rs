// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bitmaps of written pages from the kernel: asked for in pieces, and what is set in them marked. No ioctls.

use std::ops::RangeInclusive;

use rustix::io::Errno;

use crate::memory::{Mark, for_each_run};

/// Words of the bitmap asked for at a time: 4 GiB in pages of 4 KiB.
pub(super) const STEP: usize = 1 << 14;

/// What bitmaps of written pages an IOMMU gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    /// Bytes of a page, a power of two; 4096 or more.
    pub page: u64,
    /// Bytes of the largest.
    pub size: u64,
    /// Only of maps as a whole.
    pub whole_maps: bool,
}

/// The words that the bitmap of `length` bytes takes, a bit for the part of a page too.
pub(super) fn words_for(length: u64, page: u64) -> Result<usize, Errno> {
    let rounding = page.checked_sub(1).ok_or(Errno::INVAL)?;
    let rounded = length.checked_add(rounding).ok_or(Errno::OVERFLOW)?;
    let words = (rounded / page).div_ceil(64);
    usize::try_from(words).map_err(|_| Errno::OVERFLOW)
}

/// Calls `ask` for the bitmap of each piece of a range, `step` words at the most, and marks what is set. The
/// range is rounded outwards to pages of `page` bytes.
pub(super) fn collect(
    range: &RangeInclusive<u64>,
    page: u64,
    step: usize,
    mut ask: impl FnMut(u64, u64, &mut [u64]) -> Result<(), Errno>,
    mark: &mut Mark<'_>,
) -> Result<(), Errno> {
    if !page.is_power_of_two() || step == 0 {
        return Err(Errno::INVAL);
    }
    let last = range.end() | (page - 1);
    let mut first = range.start() & !(page - 1);
    let span = page.saturating_mul(64).saturating_mul(step as u64);
    let mut buffer = Vec::new();
    loop {
        let end = last.min(first.saturating_add(span - 1));
        let length = (end - first).checked_add(1).ok_or(Errno::OVERFLOW)?;
        buffer.clear();
        buffer.resize(words_for(length, page)?, 0);
        ask(first, length, &mut buffer)?;
        let pages = length / page;
        for_each_run(&buffer, |bits| {
            // Bits behind the range are nobody's.
            if *bits.start() < pages {
                let beyond = (bits.end() + 1).min(pages);
                mark(first + bits.start() * page..=first + (beyond * page - 1));
            }
        });
        match end.checked_add(1) {
            Some(next) if end < last => first = next,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Asked = Vec<(u64, u64, usize)>;

    fn run(
        range: RangeInclusive<u64>,
        page: u64,
        fill: impl Fn(u64, &mut [u64]),
    ) -> (Asked, Vec<RangeInclusive<u64>>) {
        let (mut asked, mut marked) = (Vec::new(), Vec::new());
        let ask = |iova, length, words: &mut [u64]| {
            assert!(
                words.iter().all(|word| *word == 0),
                "only ever set by the kernel"
            );
            asked.push((iova, length, words.len()));
            fill(iova, words);
            Ok(())
        };
        collect(&range, page, 2, ask, &mut |pages| marked.push(pages)).unwrap();
        (asked, marked)
    }

    #[test]
    fn in_pieces_and_in_whole_pages() {
        let (asked, marked) = run(0x1000..=0x10_0fff, 0x1000, |_, words| words[0] = 0b110);
        assert_eq!(asked, [(0x1000, 0x8_0000, 2), (0x8_1000, 0x8_0000, 2)]);
        assert_eq!(marked, [0x2000..=0x3fff, 0x8_2000..=0x8_3fff]);
        let (asked, marked) = run(0x1_1000..=0x1_1fff, 0x1_0000, |_, words| words[0] = 1);
        assert_eq!(asked, [(0x1_0000, 0x1_0000, 1)]);
        assert_eq!(marked, [0x1_0000..=0x1_ffff], "as coarse as it is tracked");
    }

    #[test]
    fn ends_of_the_space_and_bits_behind_the_range() {
        let top = u64::MAX - 0x1fff;
        let (asked, marked) = run(top..=u64::MAX, 0x1000, |_, words| words.fill(u64::MAX));
        assert_eq!(asked, [(top, 0x2000, 1)]);
        assert_eq!(marked, [top..=u64::MAX]);
        let (_, marked) = run(0..=0xfff, 0x1000, |_, words| words[0] = 0b10);
        assert_eq!(marked, []);
        let half = 1 << 63;
        let (asked, _) = run(half..=u64::MAX, half, |_, _| {});
        assert_eq!(asked, [(half, half, 1)]);
        let everything = collect(&(0..=u64::MAX), half, 2, |_, _, _| Ok(()), &mut |_| {});
        assert_eq!(everything, Err(Errno::OVERFLOW));
        for page in [0, 3] {
            let odd = collect(&(0..=5), page, 2, |_, _, _| Ok(()), &mut |_| {});
            assert_eq!(odd, Err(Errno::INVAL));
        }
    }

    #[test]
    fn a_bitmap_has_a_bit_for_a_part_of_a_page() {
        let words = |length, page| words_for(length, page);
        assert_eq!(words(0x4_0000, 0x1000), Ok(1));
        assert_eq!(words(0x4_0001, 0x1000), Ok(2));
        assert_eq!(words(1, 1 << 63), Ok(1));
        assert_eq!(words(u64::MAX, 2), Err(Errno::OVERFLOW));
        assert_eq!(words(1, 0), Err(Errno::INVAL));
    }

    #[test]
    fn an_error_ends_it() {
        let mut calls = 0;
        let ask = |_, _, _: &mut [u64]| {
            calls += 1;
            Err(Errno::IO)
        };
        let refused = collect(&(0..=0xff_ffff), 0x1000, 1, ask, &mut |_| {});
        assert_eq!((refused, calls), (Err(Errno::IO), 1));
    }
}
