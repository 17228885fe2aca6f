// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that tracks what it writes (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`).
//!
//! Devices have room for few ranges. One that refuses those asked for is given three that cover them, the
//! widest gaps between them left out.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{debug, info};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::vfio_device_feature_dma_logging_range as LoggedRange;

use super::dirty;
use super::vfio::Vfio;
use crate::memory::{DirtyTracker, Mark, PAGE_SIZE};

/// Ranges that a device is given if it does not take all of them.
const FEW: usize = 3;

/// The tracking of one device.
#[derive(Debug)]
pub(super) struct DeviceLogging {
    vfio: Vfio,
    /// Bytes of a page, as the device granted it.
    page: AtomicU64,
}

impl DeviceLogging {
    /// `None` where the driver has none, and where it has but the kernel cannot report it: one built without
    /// iommufd takes the start and answers every report with EOPNOTSUPP.
    pub(super) fn probe(vfio: &Vfio) -> Option<Self> {
        if !vfio.has_logging() {
            return None;
        }
        // Nothing is logged yet: a driver that could report says so by another errno, or finds nothing.
        let report = vfio.report_logging((0, PAGE_SIZE), PAGE_SIZE, &mut [0]);
        if report == Err(Errno::OPNOTSUPP) {
            info!("The device tracks what it writes, but this kernel cannot report it");
            return None;
        }
        Some(Self {
            vfio: vfio.clone(),
            page: AtomicU64::new(PAGE_SIZE),
        })
    }
}

impl DirtyTracker for DeviceLogging {
    fn start(&self, page_size: u64, ranges: &[RangeInclusive<u64>]) -> Result<(), Errno> {
        let page_size = page_size.max(PAGE_SIZE);
        let ranges = whole_pages(ranges, page_size);
        let start = |ranges: &[RangeInclusive<u64>]| {
            let mut logged = ranges.iter().map(logged).collect::<Result<Vec<_>, _>>()?;
            self.vfio.start_logging(page_size, &mut logged)
        };
        let granted = match start(&ranges) {
            // Its own limit of ranges, however it says so; a START that fails leaves nothing.
            Err(errno) if ranges.len() > FEW && errno != Errno::NOTTY => {
                debug!("{} ranges to log were refused ({errno})", ranges.len());
                start(&cover(&ranges, FEW))
            }
            other => other,
        }?;
        // The page is what reports come in; a driver that says nonsense is asked in the smallest.
        let usable = granted.is_power_of_two() && granted >= PAGE_SIZE;
        let page = if usable { granted } else { PAGE_SIZE };
        self.page.store(page, Ordering::Relaxed);
        Ok(())
    }

    fn stop(&self) -> Result<(), Errno> {
        self.vfio.stop_logging()
    }

    fn collect(
        &self,
        _: &RangeInclusive<u64>,
        wanted: &RangeInclusive<u64>,
        mark: &mut Mark<'_>,
    ) -> Result<(), Errno> {
        let page = self.page.load(Ordering::Relaxed);
        let ask =
            |iova, length, words: &mut [u64]| self.vfio.report_logging((iova, length), page, words);
        dirty::collect(wanted, page, dirty::STEP, ask, mark)
    }
}

/// A range as the kernel takes it, which ends below 2^64.
fn logged(range: &RangeInclusive<u64>) -> Result<LoggedRange, Errno> {
    let length = (range.end() - range.start()).checked_add(1);
    let end = range.end().checked_add(1);
    let length = end.and(length).ok_or(Errno::OVERFLOW)?;
    Ok(LoggedRange {
        iova: *range.start(),
        length,
    })
}

/// Sorted ranges, rounded outwards to pages; those that meet become one.
fn whole_pages(ranges: &[RangeInclusive<u64>], page: u64) -> Vec<RangeInclusive<u64>> {
    let mut whole: Vec<RangeInclusive<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (first, last) = (range.start() & !(page - 1), range.end() | (page - 1));
        match whole.last_mut() {
            Some(before) if before.end().saturating_add(1) >= first => {
                *before = *before.start()..=last.max(*before.end());
            }
            _ => whole.push(first..=last),
        }
    }
    whole
}

/// At most `count` ranges that cover sorted ones: joined over all gaps but the widest.
fn cover(ranges: &[RangeInclusive<u64>], count: usize) -> Vec<RangeInclusive<u64>> {
    let pairs = ranges.iter().zip(ranges.iter().skip(1));
    let mut gaps: Vec<(u64, usize)> = pairs
        .map(|(a, b)| b.start().saturating_sub(*a.end()))
        .zip(1..)
        .collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let mut starts: Vec<usize> = gaps
        .into_iter()
        .take(count.saturating_sub(1))
        .map(|(_, at)| at)
        .collect();
    starts.push(0);
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([ranges.len()]);
    let groups = starts.iter().zip(ends);
    groups
        .filter_map(|(&start, end)| {
            let group = ranges.get(start..end)?;
            Some(*group.first()?.start()..=*group.last()?.end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::kernel::fake::{Asked, Fake, Logging, Script};

    fn device(logging: Logging) -> (Arc<Fake>, DeviceLogging) {
        let fake = Arc::new(Fake::new(Script {
            logging: Some(logging),
            ..Script::default()
        }));
        let vfio = Vfio::new(Arc::clone(&fake) as _);
        (fake, DeviceLogging::probe(&vfio).unwrap())
    }

    fn start(page_size: u64, ranges: &[(u64, u64)]) -> Asked {
        Asked::LoggingStart(page_size, ranges.to_vec())
    }

    #[test]
    fn a_driver_without_it_is_told_by_the_probe() {
        let vfio = Vfio::new(Arc::new(Fake::new(Script::default())));
        assert!(DeviceLogging::probe(&vfio).is_none());
        let no_bitmaps = Logging {
            no_bitmaps: true,
            ..Logging::default()
        };
        let vfio = Vfio::new(Arc::new(Fake::new(Script {
            logging: Some(no_bitmaps),
            ..Script::default()
        })));
        assert!(DeviceLogging::probe(&vfio).is_none());
    }

    #[test]
    fn ranges_go_as_they_came_and_few_if_they_are_too_many() {
        let (fake, device) = device(Logging {
            max_ranges: 3,
            ..Logging::default()
        });
        let ranges = [0..=0xfff, 0x1000..=0x1fff, 0x10_0000..=0x10_0fff];
        device.start(4096, &ranges).unwrap();
        let joined = [(0, 0x2000), (0x10_0000, 0x1000)];
        assert_eq!(fake.take_asked(), [start(4096, &joined)]);
        device.stop().unwrap();
        assert_eq!(fake.take_asked(), [Asked::LoggingStop]);
        let mut many = ranges.to_vec();
        many.extend([0x10_2000..=0x10_2fff, 1 << 40..=(1 << 41) - 1]);
        device.start(4096, &many).unwrap();
        let few = [(0, 0x2000), (0x10_0000, 0x3000), (1 << 40, 1 << 40)];
        assert_eq!(fake.take_asked(), [start(4096, &few)]);
        device.stop().unwrap();
        // The kernel takes no range up to 2^64, and no wish below a page.
        let top = device.start(4096, &[u64::MAX - 0xfff..=u64::MAX]);
        assert_eq!(top, Err(Errno::OVERFLOW));
        fake.take_asked();
        device
            .start(512, &[0x200..=0x3ff, 0x1600..=0x17ff])
            .unwrap();
        assert_eq!(fake.take_asked(), [start(4096, &[(0, 0x2000)])]);
    }

    #[test]
    fn covers_keep_the_widest_gaps_open() {
        let ranges = [0..=1, 10..=11, 20..=21, 100..=101, 110..=111];
        assert_eq!(cover(&ranges, 1), [0..=111]);
        assert_eq!(cover(&ranges, 2), [0..=21, 100..=111]);
        assert_eq!(cover(&ranges, 9), ranges);
        assert_eq!(cover(&[], 3), []);
    }

    #[test]
    fn reports_come_in_the_page_that_was_granted() {
        let (fake, device) = device(Logging {
            max_ranges: 1,
            page_size: Some(0x1_0000),
            written: vec![0x1_2345, 0x5_0000],
            ..Logging::default()
        });
        device.start(4096, &[0..=0xff_ffff]).unwrap();
        let map = 0..=0xff_ffff;
        let mut marked = Vec::new();
        let mut collect = |wanted| device.collect(&map, &wanted, &mut |run| marked.push(run));
        collect(0x1_3000..=0x2_0fff).unwrap();
        collect(0..=0xfff).unwrap();
        assert_eq!(marked, [0x1_0000..=0x1_ffff]);
        fake.script().logging.as_mut().unwrap().page_size = Some(0);
        device.stop().unwrap();
        device.start(4096, &[0..=0xff_ffff]).unwrap();
        let mut marked = Vec::new();
        device
            .collect(&map, &map, &mut |run| marked.push(run))
            .unwrap();
        assert_eq!(marked, [0x5_0000..=0x5_0fff], "asked in the smallest page");
    }
}
