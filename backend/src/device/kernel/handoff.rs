// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How BARs reach the VMM: which parts may be mapped, and through which descriptor.
//!
//! The MSI-X table and its pending bits are always left out, page by page, even where the kernel would allow
//! mapping them (`MSIX_MAPPABLE`): they are composed, and a guest that wrote the device's own table would
//! program nothing.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;

use clap::ValueEnum;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user_protocol::device::RegionCapability;

use super::vfio::{RegionDetail, Vfio};
use crate::device::{Area, cut};

/// How mappable BARs reach the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BarHandoff {
    /// As dma-bufs where the kernel can map those, else trapped.
    #[default]
    Auto,
    /// As dma-bufs, or not at all: refuses to start where the kernel cannot map them.
    Dmabuf,
    /// Through the VFIO device descriptor: fast everywhere, and gives the VMM every ioctl of the device.
    DeviceFd,
    /// Every access is a message.
    None,
}

impl fmt::Display for BarHandoff {
    /// The option's value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Dmabuf => "dmabuf",
            Self::DeviceFd => "device-fd",
            Self::None => "none",
        })
    }
}

/// One BAR that the client may map.
#[derive(Debug)]
pub(super) struct Handed {
    /// What to map; `None` for the device descriptor.
    pub fd: Option<OwnedFd>,
    /// Where the BAR begins in it.
    pub offset: u64,
    /// The parts that may be mapped; `None` for all of it.
    pub areas: Option<Vec<Area>>,
}

/// Decides for one BAR. `trapped` are byte ranges that must not be mapped.
pub(super) fn hand_over(
    vfio: &Vfio,
    policy: BarHandoff,
    index: u32,
    detail: &RegionDetail,
    trapped: &[Range<u64>],
) -> Option<Handed> {
    const FLAGS: u32 =
        VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
    if detail.flags & FLAGS != FLAGS || policy == BarHandoff::None {
        return None;
    }
    let areas = mappable_areas(detail, trapped);
    let first = *areas.first()?;
    if policy == BarHandoff::DeviceFd {
        let whole = first.offset == 0 && first.size == detail.size;
        return Some(Handed {
            fd: None,
            offset: detail.offset,
            areas: (!whole).then_some(areas),
        });
    }
    // A dma-buf has one range, and its start must be that of the BAR for the offsets to agree: so the part
    // before the first trapped page, and nothing that is not to be mapped is in it.
    if first.offset != 0 {
        return None;
    }
    let fd = vfio.mappable_dma_buf(index, first.size)?;
    Some(Handed {
        fd: Some(fd),
        offset: 0,
        areas: (first.size != detail.size).then(|| vec![first]),
    })
}

/// The mappable parts of a region, in order: what the kernel allows, in whole pages, without the pages of
/// `trapped`. Areas that the kernel got wrong are left out.
pub(super) fn mappable_areas(detail: &RegionDetail, trapped: &[Range<u64>]) -> Vec<Area> {
    let sparse = detail.capabilities.iter().find_map(|cap| match cap {
        RegionCapability::SparseMmap(areas) => Some(areas),
        _ => None,
    });
    let parts: Vec<Range<u64>> = match sparse {
        Some(areas) => areas
            .iter()
            .filter_map(|area| Some(area.offset..area.offset.checked_add(area.size)?))
            .filter(|part| part.start < part.end && part.end <= detail.size)
            .collect(),
        None => std::iter::once(0..detail.size).collect(),
    };
    cut(parts, trapped)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one trapped range")]
mod tests {
    use std::sync::Arc;

    use vfio_user_protocol::device::SparseArea;

    use super::*;
    use crate::device::kernel::fake::{Fake, Script};

    fn detail(size: u64, sparse: Option<&[(u64, u64)]>) -> RegionDetail {
        let capabilities = sparse.map(|areas| {
            let areas = areas
                .iter()
                .map(|&(offset, size)| SparseArea { offset, size });
            RegionCapability::SparseMmap(areas.collect())
        });
        RegionDetail {
            flags: 7,
            size,
            offset: 2 << 40,
            capabilities: capabilities.into_iter().collect(),
        }
    }

    fn areas(detail: &RegionDetail, trapped: &[Range<u64>]) -> Vec<(u64, u64)> {
        let areas = mappable_areas(detail, trapped);
        areas.into_iter().map(|a| (a.offset, a.size)).collect()
    }

    #[test]
    fn trapped_pages_are_cut_out() {
        let whole = detail(0x8000, None);
        assert_eq!(areas(&whole, &[]), [(0, 0x8000)]);
        assert_eq!(
            areas(&whole, &[0x2010..0x2020, 0x3ff8..0x4008]),
            [(0, 0x2000), (0x5000, 0x3000)]
        );
        assert_eq!(areas(&whole, &[0..0x10]), [(0x1000, 0x7000)]);
        assert_eq!(areas(&whole, &[0x7ff0..0x8000]), [(0, 0x7000)]);
        assert_eq!(areas(&whole, &[0..0x8000]), []);
        assert_eq!(areas(&detail(0x100, None), &[]), [], "less than a page");
    }

    #[test]
    fn sparse_areas_of_the_kernel_are_checked() {
        let sparse = [
            (0x4000, 0x2000),
            (0, 0x1000),
            (0x7000, 0x2000),
            (0x1800, 0x800),
        ];
        let with_wrap = [&sparse[..], &[(u64::MAX - 0xfff, 0x2000), (0x3000, 0)]].concat();
        let region = detail(0x8000, Some(&with_wrap));
        assert_eq!(areas(&region, &[]), [(0, 0x1000), (0x4000, 0x2000)]);
        assert_eq!(
            areas(&region, &[0x4800..0x4810]),
            [(0, 0x1000), (0x5000, 0x1000)]
        );
    }

    #[test]
    fn policies() {
        let fake = Arc::new(Fake::new(Script::default()));
        let vfio = Vfio::new(Arc::clone(&fake) as _);
        let region = detail(0x8000, None);
        let table = [0x4000..0x4100];
        let hand = |policy, trapped: &[_]| hand_over(&vfio, policy, 2, &region, trapped);
        assert!(hand(BarHandoff::None, &[]).is_none());
        assert!(
            hand(BarHandoff::Auto, &[]).is_none(),
            "no dma-buf to be had"
        );
        let whole = hand(BarHandoff::DeviceFd, &[]).unwrap();
        assert!(whole.fd.is_none() && whole.areas.is_none());
        assert_eq!(whole.offset, 2 << 40);
        let split = hand(BarHandoff::DeviceFd, &table).unwrap();
        assert_eq!(split.areas.unwrap().len(), 2);

        fake.script().dma_buf = true;
        let slice = hand(BarHandoff::Auto, &table).unwrap();
        let size = rustix::fs::fstat(slice.fd.unwrap()).unwrap().st_size;
        assert_eq!(size, 0x4000, "no page of the table is in it");
        assert_eq!(slice.areas.unwrap().len(), 1);
        assert!(hand(BarHandoff::Dmabuf, &[0..0x10]).is_none());
        let trapped = RegionDetail {
            flags: 3,
            ..region.clone()
        };
        assert!(hand_over(&vfio, BarHandoff::DeviceFd, 2, &trapped, &[]).is_none());
    }
}
