// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two ways to program an IOMMU: an I/O address space of iommufd, and a type1 container.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;

use iommufd_bindings::iommufd::{
    iommu_hwpt_alloc, iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map,
    iommu_ioas_map_file, iommu_ioas_unmap, iommu_iova_range,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ref};

use super::dirty::{self, Bitmaps};
use super::file::{io_nr, last_errno};
use super::iommu::{Translator, raw_file};
use super::limits::Limits;
use super::tracking;
use crate::memory::{Access, IommuMap, Mapping, PAGE_SIZE};

/// `IOMMU_IOAS_IOVA_RANGES` counts from the same base as the VFIO requests: 0x3b84.
const IOVA_RANGES: u32 = 0x84;
/// More ranges than any IOMMU reports; bounds what a wrong count makes us allocate.
const MAX_RANGES: u32 = 1024;
/// Bytes of `vfio_iommu_type1_info`, and the most that its capabilities may make of it.
const TYPE1_INFO: usize = 24;
const MAX_TYPE1_INFO: u32 = 1 << 16;

/// An I/O address space of iommufd. It ends with the last descriptor of its iommufd.
pub(super) struct Ioas {
    iommufd: IommuFd,
    id: u32,
    /// The page table that tracks what is written, where the hardware can.
    tracking: Option<u32>,
}

impl fmt::Debug for Ioas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ioas = f.debug_struct("Ioas");
        ioas.field("id", &self.id)
            .field("tracking", &self.tracking)
            .finish_non_exhaustive()
    }
}

impl Ioas {
    /// A new address space in an open iommufd.
    pub(super) fn new(iommufd: OwnedFd) -> Result<Self, Errno> {
        let iommufd = IommuFd::new_from_fd(File::from(iommufd));
        let mut alloc = iommu_ioas_alloc {
            size: size_of_u32::<iommu_ioas_alloc>(),
            ..iommu_ioas_alloc::default()
        };
        iommufd
            .alloc_iommu_ioas(&mut alloc)
            .map_err(|e| errno(&e))?;
        Ok(Self {
            iommufd,
            id: alloc.out_ioas_id,
            tracking: None,
        })
    }

    /// A page table for the device in this address space that tracks what is written; an error where the
    /// IOMMU cannot. The device is to be attached to it instead.
    pub(super) fn page_table(&self, device: u32) -> Result<u32, Errno> {
        let mut alloc = iommu_hwpt_alloc {
            size: size_of_u32::<iommu_hwpt_alloc>(),
            flags: iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
            dev_id: device,
            pt_id: self.id,
            ..iommu_hwpt_alloc::default()
        };
        let allocated = self.iommufd.alloc_iommu_hwpt(&mut alloc);
        allocated.map_err(|e| errno(&e))?;
        Ok(alloc.out_hwpt_id)
    }

    /// The device is attached to that page table.
    pub(super) fn set_tracking(&mut self, page_table: u32) {
        self.tracking = Some(page_table);
    }

    /// Gives back a page table that no device is attached to.
    pub(super) fn drop_page_table(&self, page_table: u32) {
        // One that stays does no harm.
        let _ = self.iommufd.destroy_iommu_object(page_table);
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    fn iova_ranges(&self) -> Result<(u64, Vec<iommu_iova_range>), Errno> {
        let mut ranges: Vec<iommu_iova_range> = Vec::new();
        loop {
            let room = u32::try_from(ranges.len()).map_err(|_| Errno::OVERFLOW)?;
            let mut query = iommu_ioas_iova_ranges {
                size: size_of_u32::<iommu_ioas_iova_ranges>(),
                ioas_id: self.id,
                num_iovas: room,
                allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
                ..iommu_ioas_iova_ranges::default()
            };
            // SAFETY: `query` is the structure of this request, and `allowed_iovas` points to room for
            // `num_iovas` ranges; both live through the call.
            let done = unsafe { ioctl_with_mut_ref(&self.iommufd, io_nr(IOVA_RANGES), &mut query) };
            let outcome = if done < 0 { Err(last_errno()) } else { Ok(()) };
            match outcome {
                Ok(()) => {
                    ranges.truncate(usize::try_from(query.num_iovas).unwrap_or(usize::MAX));
                    return Ok((query.out_iova_alignment, ranges));
                }
                Err(Errno::MSGSIZE) if room < query.num_iovas && query.num_iovas <= MAX_RANGES => {
                    let count = usize::try_from(query.num_iovas).map_err(|_| Errno::OVERFLOW)?;
                    ranges.resize(count, iommu_iova_range::default());
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn ioas_flags(access: Access) -> u32 {
    let mut flags = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
    if access.allows(Access::READ) {
        flags |= iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if access.allows(Access::WRITE) {
        flags |= iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    flags
}

impl Translator for Ioas {
    fn name(&self) -> &'static str {
        "IOMMU_IOAS_MAP"
    }

    fn limits(&self) -> Limits {
        match self.iova_ranges() {
            Ok((alignment, ranges)) => Limits {
                page: if alignment.is_power_of_two() {
                    alignment
                } else {
                    1
                },
                ranges: ranges.iter().map(|r| r.start..=r.last).collect(),
                maps: None,
                bitmaps: self.tracking.map(|_| Bitmaps {
                    page: alignment.max(PAGE_SIZE),
                    size: (dirty::STEP * 8) as u64,
                    whole_maps: false,
                }),
            },
            // Unknown limits are the kernel's to enforce.
            Err(_) => Limits::default(),
        }
    }

    fn map_file(&self, map: &IommuMap<'_>) -> Result<(), Errno> {
        let map = iommu_ioas_map_file {
            size: size_of_u32::<iommu_ioas_map_file>(),
            flags: ioas_flags(map.access),
            ioas_id: self.id,
            fd: raw_file(map),
            start: map.offset,
            length: map.size,
            iova: map.iova,
        };
        self.iommufd
            .map_iommu_ioas_file(&map)
            .map_err(|e| errno(&e))
    }

    fn map_memory(&self, map: &IommuMap<'_>, memory: &Mapping) -> Result<(), Errno> {
        let map = iommu_ioas_map {
            size: size_of_u32::<iommu_ioas_map>(),
            flags: ioas_flags(map.access),
            ioas_id: self.id,
            user_va: memory.host_address(),
            length: map.size,
            iova: map.iova,
            ..iommu_ioas_map::default()
        };
        self.iommufd.map_iommu_ioas(&map).map_err(|e| errno(&e))
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        let mut unmap = iommu_ioas_unmap {
            size: size_of_u32::<iommu_ioas_unmap>(),
            ioas_id: self.id,
            iova,
            length: size,
        };
        self.iommufd
            .unmap_iommu_ioas(&mut unmap)
            .map_err(|e| errno(&e))?;
        Ok(unmap.length)
    }

    fn track(&self, on: bool) -> Result<(), Errno> {
        let page_table = self.tracking.ok_or(Errno::NOTTY)?;
        tracking::hwpt_switch(&self.iommufd, page_table, on)
    }

    fn written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<(), Errno> {
        let page_table = self.tracking.ok_or(Errno::NOTTY)?;
        tracking::hwpt_bitmap(&self.iommufd, page_table, range, page, words)
    }

    fn unmap_written(&self, _: (u64, u64), _: u64, _: &mut [u64]) -> Result<u64, Errno> {
        Err(Errno::OPNOTSUPP)
    }
}

/// The errno inside an error of the library; EIO where it kept none.
fn errno(error: &IommufdError) -> Errno {
    use IommufdError as E;
    match error {
        E::IommuIoasAlloc(e)
        | E::IommuIoasMap(e)
        | E::IommuIoasMapFile(e)
        | E::IommuHwptAlloc(e)
        | E::IommuIoasUnmap(e) => Errno::from_raw_os_error(e.errno()),
        _ => Errno::IO,
    }
}

/// A type1 container with its IOMMU set.
#[derive(Debug)]
pub(super) struct Container(OwnedFd);

impl Container {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// VFIO_IOMMU_GET_INFO, as large as the kernel wants it.
    pub(super) fn info(&self) -> Result<Vec<u8>, Errno> {
        let mut info = vec![0; TYPE1_INFO];
        loop {
            let argsz = u32::try_from(info.len()).map_err(|_| Errno::OVERFLOW)?;
            let (first, _) = info.split_first_chunk_mut().ok_or(Errno::INVAL)?;
            *first = argsz.to_ne_bytes();
            // SAFETY: the buffer begins with argsz, its length, beyond which the kernel does not write.
            let done =
                unsafe { ioctl_with_mut_ptr(&self.0, io_nr(VFIO_BASE + 12), info.as_mut_ptr()) };
            if done < 0 {
                return Err(last_errno());
            }
            let needed = info
                .first_chunk()
                .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
            if needed <= argsz || needed > MAX_TYPE1_INFO {
                return Ok(info);
            }
            info = vec![0; usize::try_from(needed).map_err(|_| Errno::OVERFLOW)?];
        }
    }
}

impl Translator for Container {
    fn name(&self) -> &'static str {
        "VFIO_IOMMU_MAP_DMA"
    }

    fn limits(&self) -> Limits {
        self.info()
            .map_or(Limits::default(), |info| Limits::from_type1(&info))
    }

    fn map_file(&self, _: &IommuMap<'_>) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn map_memory(&self, map: &IommuMap<'_>, memory: &Mapping) -> Result<(), Errno> {
        let mut flags = 0;
        if map.access.allows(Access::READ) {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if map.access.allows(Access::WRITE) {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let map = vfio_iommu_type1_dma_map {
            argsz: size_of_u32::<vfio_iommu_type1_dma_map>(),
            flags,
            vaddr: memory.host_address(),
            iova: map.iova,
            size: map.size,
        };
        // SAFETY: `map` is the structure of this request; the memory it names is a mapping that is only ever
        // accessed as volatile and that the caller keeps until the range is unmapped.
        let done = unsafe { ioctl_with_ref(&self.0, io_nr(VFIO_BASE + 13), &map) };
        if done < 0 { Err(last_errno()) } else { Ok(()) }
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size_of_u32::<vfio_iommu_type1_dma_unmap>(),
            iova,
            size,
            ..vfio_iommu_type1_dma_unmap::default()
        };
        // SAFETY: `unmap` is the structure of this request without the bitmap that a flag would ask for.
        let done = unsafe { ioctl_with_mut_ref(&self.0, io_nr(VFIO_BASE + 14), &mut unmap) };
        if done < 0 {
            Err(last_errno())
        } else {
            Ok(unmap.size)
        }
    }

    fn track(&self, on: bool) -> Result<(), Errno> {
        tracking::type1_switch(&self.0, on)
    }

    fn written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<(), Errno> {
        tracking::type1_bitmap(&self.0, range, page, words)
    }

    fn unmap_written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<u64, Errno> {
        tracking::type1_unmap(&self.0, range, page, words)
    }
}

/// The size of a kernel structure as its `argsz`.
pub(super) fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_descriptor_of_another_kind_is_an_errno() {
        let other = || memfd_create("not an iommu", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(Ioas::new(other()).unwrap_err(), Errno::NOTTY);
        let container = Container::new(other());
        assert_eq!(container.info(), Err(Errno::NOTTY));
        assert_eq!(container.unmap(0, 4096), Err(Errno::NOTTY));
        assert_eq!(container.limits(), Limits::default());
    }

    #[test]
    fn access_is_honoured() {
        assert_eq!(ioas_flags(Access::READ), 5);
        assert_eq!(ioas_flags(Access::WRITE), 3);
        assert_eq!(ioas_flags(Access::READ_WRITE), 7);
    }
}
