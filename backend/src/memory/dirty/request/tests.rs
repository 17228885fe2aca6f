// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is refused, and reports against a list of dirty addresses.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn start(page_size: u64, ranges: &[(u64, u64)]) -> Result<LoggingStart, LoggingError> {
    LoggingStart::new(page_size, ranges.iter().copied())
}

#[test]
fn a_start_is_checked_as_the_kernel_does() {
    use LoggingError as E;
    const TOP: u64 = u64::MAX - 0xfff;
    let checked = start(4096, &[(0x8000, 0x1000), (0, 0x8000), (TOP, 0x1000)]).unwrap();
    assert_eq!(
        checked.ranges,
        [0..=0x7fff, 0x8000..=0x8fff, TOP..=u64::MAX]
    );
    // A wish only: any power of two.
    for page_size in [1, 512, 4096, 1 << 21, 1 << 63] {
        start(page_size, &[(0, 1 << 63)]).unwrap();
    }
    for page_size in [0, 3, 4097, u64::MAX] {
        assert_eq!(start(page_size, &[(0, 4096)]), Err(E::PageSize(page_size)));
    }
    let errno = |page_size, ranges: &[_]| start(page_size, ranges).unwrap_err().errno();
    assert_eq!(errno(4096, &[]), Errno::INVAL);
    let rows = |count: u64| (0..count).map(|n| (n << 12, 4096)).collect::<Vec<_>>();
    assert!(start(4096, &rows(256)).is_ok());
    assert_eq!(errno(4096, &rows(257)), Errno::TOOBIG);
    for unaligned in [(1, 4096), (0, 4097), (0x1000, 0x2000)] {
        assert_eq!(errno(0x2000, &[unaligned]), Errno::INVAL);
    }
    assert_eq!(errno(4096, &[(0, 0)]), Errno::INVAL);
    assert_eq!(errno(4096, &[(TOP, 0x2000)]), Errno::OVERFLOW);
    assert_eq!(errno(4096, &[(8192, u64::MAX - 4095)]), Errno::OVERFLOW);
    let overlaps = start(4096, &[(0x2000, 0x1000), (0x1000, 0x2000)]);
    assert_eq!(overlaps, Err(E::Overlap(0x1000, 0x2000)));
}

#[test]
fn a_report_is_bounded_by_its_bitmap() {
    use LoggingError as E;
    let errno = |iova, length, size| LoggingReport::new(iova, length, size).unwrap_err().errno();
    for page_size in [0, 1, 3, 2048, 4095, 4097, u64::MAX] {
        let error = LoggingReport::new(0, 1 << 30, page_size).unwrap_err();
        assert_eq!(error, E::PageSize(page_size));
    }
    assert_eq!(errno(0, 0, 4096), Errno::INVAL);
    assert_eq!(errno(8192, u64::MAX - 4095, 4096), Errno::OVERFLOW);
    assert_eq!(errno(u64::MAX - 4095, 8192, 4096), Errno::OVERFLOW);
    assert_eq!(
        errno(4096, 8192, 8192),
        Errno::INVAL,
        "iova in larger pages"
    );
    assert_eq!(errno(0, 5000, 4096), Errno::INVAL);
    let size = |iova, length, size| {
        LoggingReport::new(iova, length, size)
            .unwrap()
            .bitmap_size()
    };
    assert_eq!(size(0, 32 << 30, 4096), 1 << 20);
    assert_eq!(errno(0, (32 << 30) + 4096, 4096), Errno::TOOBIG);
    assert_eq!(errno(0, u64::MAX - 4095, 4096), Errno::TOOBIG);
    assert_eq!(size(0, u64::MAX - 4095, 1 << 63), 8);
    assert_eq!(size(1 << 63, 1 << 63, 1 << 63), 8);
    assert_eq!(size(u64::MAX - 4095, 4096, 4096), 8);
    assert_eq!(size(0, 64 * 4096, 4096), 8);
    assert_eq!(size(0, 65 * 4096, 4096), 16);
    assert_eq!(size(0, 64 * 8192 + 4096, 8192), 16, "part of the last page");
}

/// Reports where the log's pages and the report's differ in size, of which the reference library loses pages
/// or never returns.
#[test]
fn four_pages_of_a_large_map_at_larger_page_sizes() {
    let dirty = [3, 100, 600, 10_000_u64];
    for (shift, expected) in [(12, dirty), (13, [1, 50, 300, 5000]), (16, [0, 6, 37, 625])] {
        let mut log = DirtyPages::default();
        for page in dirty {
            log.mark(page << 12..=(page << 12) + 4095);
        }
        let report = LoggingReport::new(0, 64 << 20, 1 << shift).unwrap();
        let words = report.take(&mut log);
        let mut found = Vec::new();
        bits::for_each_run(&words, |run| found.extend(run));
        assert_eq!(found, expected, "{shift}");
        assert!(
            report.take(&mut log).iter().all(|word| *word == 0),
            "cleared"
        );
    }
}

/// Pages near both ends of the space.
fn page() -> impl Strategy<Value = u64> {
    const LAST: u64 = u64::MAX >> 12;
    prop_oneof![0..3000_u64, LAST - 3000..=LAST]
}

proptest! {
    /// What is logged in pages of any size is reported in pages of any other, once, and nothing else.
    #[test]
    fn every_combination_of_page_sizes(
        logged in prop::collection::vec((page(), 12..17_u32), 0..40),
        reports in prop::collection::vec((page(), 1..200_u64, 12..22_u32), 1..8),
    ) {
        let mut log = DirtyPages::default();
        let mut model = BTreeSet::new();
        for (page, shift) in logged {
            let first = page >> (shift - 12) << shift;
            let last = first | ((1 << shift) - 1);
            log.mark(first..=last);
            model.extend(first >> 12..=last >> 12);
        }
        for (page, pages, shift) in reports {
            let iova = page >> (shift - 12) << shift;
            // Up to 2^64, which some reach.
            let length = pages.min(((u64::MAX - iova) >> 12) + 1) << 12;
            let report = LoggingReport::new(iova, length, 1 << shift).unwrap();
            let words = report.take(&mut log);
            prop_assert_eq!(words.len() as u64 * 8, report.bitmap_size());
            for (word, base) in words.iter().zip((0_u64..).step_by(64)) {
                for bit in 0..64_u64 {
                    let offset = u128::from(base + bit) << shift;
                    let covered = model.iter().any(|page| {
                        let at = u128::from(*page) << 12;
                        let start = u128::from(iova) + offset;
                        let end = (start + (1 << shift)).min(u128::from(iova) + u128::from(length));
                        (start..end).contains(&at)
                    });
                    prop_assert_eq!(word >> bit & 1 != 0, covered, "{:#x} bit {}", iova, base + bit);
                }
            }
            let last = iova + (length - 1);
            model.retain(|page| !(iova >> 12..=last >> 12).contains(page));
        }
        let mut left = Vec::new();
        log.take(0..=u64::MAX >> 12, |run| left.extend(run));
        left.sort_unstable();
        prop_assert_eq!(left, model.into_iter().collect::<Vec<_>>());
    }
}
