// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an IOMMU can take, checked before it is asked, so that a refusal names the figure and what to raise.

use std::ops::RangeInclusive;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};
use zerocopy::FromBytes;

use super::dirty::Bitmaps;
use crate::memory::{IommuError, IommuMap, PAGE_SIZE};

/// Ranges that a message names before it only counts them.
const NAMED_RANGES: usize = 4;
/// Bytes of a container's bitmap at the most, which is that of a whole map: 2 TiB in pages of 4 KiB.
const MAX_BITMAP: u64 = 64 << 20;
/// Bytes of `vfio_iommu_type1_info` up to and with `cap_offset`.
const TYPE1_INFO: usize = 20;

/// The limits of one IOMMU, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of the smallest page.
    pub page: u64,
    /// What can be translated; empty if unknown.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Maps at the most.
    pub maps: Option<u64>,
    /// The bitmaps of written pages that it gives, if it tracks.
    pub bitmaps: Option<Bitmaps>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            page: PAGE_SIZE,
            ranges: Vec::new(),
            maps: None,
            bitmaps: None,
        }
    }
}

/// Memory that this process may lock, in bytes; `None` for any amount. Asked each time, since an operator
/// may raise it while the process runs.
pub(super) fn memlock() -> Option<u64> {
    let exempt =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if exempt {
        return None;
    }
    getrlimit(Resource::Memlock).current
}

impl Limits {
    /// Checks one more map beside `count` that lock `locked` bytes, where `memlock` may be locked.
    pub(super) fn check(
        &self,
        map: &IommuMap<'_>,
        (count, locked): (u64, u64),
        memlock: Option<u64>,
    ) -> Result<(), IommuError> {
        let (iova, size, page) = (map.iova, map.size, self.page);
        if !iova.is_multiple_of(page) || !size.is_multiple_of(page) {
            return Err(IommuError::PageSize { iova, size, page });
        }
        let last = iova.saturating_add(size.saturating_sub(1));
        let inside = |range: &RangeInclusive<u64>| range.contains(&iova) && range.contains(&last);
        if !self.ranges.is_empty() && !self.ranges.iter().any(inside) {
            let usable = self.usable();
            return Err(IommuError::OutsideIova { iova, last, usable });
        }
        if let Some(limit) = self.maps.filter(|limit| count >= *limit) {
            return Err(IommuError::TooMany { limit });
        }
        let needed = locked.saturating_add(size);
        if let Some(limit) = memlock.filter(|limit| needed > *limit) {
            return Err(IommuError::Memlock { needed, limit });
        }
        Ok(())
    }

    fn usable(&self) -> String {
        let named = self.ranges.iter().take(NAMED_RANGES);
        let named: Vec<_> = named
            .map(|range| format!("{:#x}..={:#x}", range.start(), range.end()))
            .collect();
        let more = self.ranges.len().saturating_sub(NAMED_RANGES);
        let tail = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        named.join(", ") + &tail
    }

    /// Reads VFIO_IOMMU_GET_INFO. The chain is followed forwards only; what is cut short is passed over.
    pub(super) fn from_type1(info: &[u8]) -> Self {
        let mut limits = Self::default();
        let word = |at: usize| {
            let bytes = info.get(at..).unwrap_or_default();
            u32::read_from_prefix(bytes).map_or(0, |(word, _)| word)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at.saturating_add(4))) << 32;
        let flags = word(4);
        if flags & VFIO_IOMMU_INFO_PGSIZES != 0 && long(8) != 0 {
            limits.page = 1 << long(8).trailing_zeros();
        }
        let mut next = if flags & VFIO_IOMMU_INFO_CAPS != 0 {
            word(TYPE1_INFO - 4)
        } else {
            0
        };
        let mut low = TYPE1_INFO;
        while let Some(at) = usize::try_from(next).ok().filter(|at| *at >= low) {
            if at >= info.len() {
                break;
            }
            match word(at) & 0xffff {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let count = usize::try_from(word(at + 8)).unwrap_or(usize::MAX);
                    let rows = info.get(at + 16..).unwrap_or_default();
                    let rows = rows.as_chunks::<16>().0.iter().take(count);
                    limits.ranges = rows
                        .map(|row| {
                            let bounds: [u64; 2] = zerocopy::transmute!(*row);
                            bounds[0]..=bounds[1]
                        })
                        .collect();
                }
                VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                    // The kernel gives bitmaps in the smallest of these pages only.
                    let pages = long(at + 16);
                    limits.bitmaps = (pages & !(PAGE_SIZE - 1) != 0).then(|| Bitmaps {
                        page: (1 << pages.trailing_zeros()).max(PAGE_SIZE),
                        size: long(at + 24).min(MAX_BITMAP),
                        whole_maps: true,
                    });
                }
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => limits.maps = Some(word(at + 8).into()),
                _ => {}
            }
            // The next one begins behind the header of this.
            low = at + 8;
            next = word(at + 4);
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::memory::Access;

    fn limits() -> Limits {
        Limits {
            page: 4096,
            ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1],
            maps: Some(2),
            bitmaps: None,
        }
    }

    fn check(limits: &Limits, iova: u64, size: u64, used: (u64, u64)) -> Result<(), IommuError> {
        let file = File::open("/dev/null").unwrap();
        let map = IommuMap {
            iova,
            size,
            access: Access::READ,
            file: file.as_fd(),
            offset: 0,
        };
        limits.check(&map, used, Some(0x10_0000))
    }

    #[test]
    fn each_limit_is_named_with_its_figure() {
        let limits = limits();
        check(&limits, 0, 0x10_0000, (1, 0)).unwrap();
        let text = |iova, size, used| check(&limits, iova, size, used).unwrap_err().to_string();
        let memlock = text(0, 0x2000, (1, 0xf_f000));
        assert!(
            memlock.starts_with("1028 KiB of locked memory"),
            "{memlock}"
        );
        assert!(memlock.contains("RLIMIT_MEMLOCK is 1024 KiB"), "{memlock}");
        let many = text(0, 0x1000, (2, 0));
        assert!(
            many.contains("more than 2 maps") && many.contains("dma_entry_limit"),
            "{many}"
        );
        let window = text(0xfedf_f000, 0x2000, (0, 0));
        assert!(window.contains("0xfef00000..=0x7fffffffff"), "{window}");
        assert!(check(&limits, u64::MAX - 0xfff, 0x1000, (0, 0)).is_err());
        let large = Limits {
            page: 0x1_0000,
            ..Limits::default()
        };
        let page = check(&large, 0x1_0000, 0x1000, (0, 0)).unwrap_err();
        assert!(page.to_string().contains("0x10000 bytes each"), "{page}");
    }

    fn info(caps: &[u32]) -> Vec<u8> {
        let mut info = [0, 3, 0x4020_1000, 0, 24, 0].as_bytes().to_vec();
        info.extend_from_slice(caps.as_bytes());
        info
    }

    #[test]
    fn type1_information_is_read() {
        let caps = [
            3 | 1 << 16,
            36,
            65535, // dma_avail
            1 | 1 << 16,
            0,
            2,
            0, // iova ranges
            0,
            0,
            0xfedf_ffff,
            0,
            0xfef0_0000,
            0,
            0xffff_ffff,
            0x7f,
        ];
        let read = Limits::from_type1(&info(&caps));
        assert_eq!(
            read,
            Limits {
                page: 4096,
                ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff],
                maps: Some(65535),
                bitmaps: None,
            }
        );
        assert_eq!(Limits::from_type1(&[0; 24]), Limits::default());
        assert_eq!(Limits::from_type1(&[]), Limits::default());
    }

    #[test]
    fn bitmaps_come_in_the_smallest_page() {
        let bitmaps = |pages: u32, size: [u32; 2]| {
            let caps = [2 | 1 << 16, 0, 0, 0, pages, 0, size[0], size[1]];
            Limits::from_type1(&info(&caps)).bitmaps
        };
        let expected = Bitmaps {
            page: 0x1000,
            size: 1 << 16,
            whole_maps: true,
        };
        assert_eq!(bitmaps(0x4020_1000, [1 << 16, 0]), Some(expected));
        let bounded = bitmaps(0x20_0000, [0, 1]).unwrap();
        assert_eq!((bounded.page, bounded.size), (0x20_0000, MAX_BITMAP));
        assert_eq!(bitmaps(0, [1, 0]), None);
    }

    #[test]
    fn chains_that_loop_or_leave_end() {
        for caps in [
            [3, 24, 7, 0],
            [3, 4, 7, 0],
            [3, u32::MAX, 7, 0],
            [1, 0, u32::MAX, 0],
        ] {
            let read = Limits::from_type1(&info(&caps));
            assert!(read.maps == Some(7) || read.ranges.is_empty());
        }
    }

    #[test]
    fn the_limit_of_this_process_can_be_asked() {
        // Either is fine: what counts is that asking works without privilege.
        let _ = memlock();
    }
}
