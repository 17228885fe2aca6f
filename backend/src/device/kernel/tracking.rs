// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls by which an IOMMU tells what was written: of a type1 container, and of a hardware page table of
//! iommufd. Each takes a bitmap by address; its length is checked here against what the kernel will write.

use std::os::fd::AsRawFd;

use iommufd_bindings::iommufd::{
    iommu_hwpt_get_dirty_bitmap, iommu_hwpt_set_dirty_tracking,
    iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_START, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::dirty::words_for;
use super::file::{io_nr, last_errno};
use super::translators::size_of_u32;

/// `VFIO_IOMMU_DIRTY_PAGES`: 0x3b75.
const DIRTY_PAGES: u32 = VFIO_BASE + 17;
/// `VFIO_IOMMU_UNMAP_DMA`: 0x3b72.
const UNMAP_DMA: u32 = VFIO_BASE + 14;
/// `IOMMU_HWPT_SET_DIRTY_TRACKING`: 0x3b8b.
const SET_DIRTY_TRACKING: u32 = 0x8b;
/// `IOMMU_HWPT_GET_DIRTY_BITMAP`: 0x3b8c.
const GET_DIRTY_BITMAP: u32 = 0x8c;

/// `vfio_iommu_type1_dirty_bitmap` with `vfio_iommu_type1_dirty_bitmap_get`, and `vfio_iommu_type1_dma_unmap`
/// with `vfio_bitmap`: the same fields in the same order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Type1Bitmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
    pgsize: u64,
    /// Bytes of the bitmap.
    bytes: u64,
    data: u64,
}

/// The two words that START and STOP are.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Type1Switch {
    argsz: u32,
    flags: u32,
}

fn done(returned: i32) -> Result<(), Errno> {
    if returned < 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// Refuses a bitmap that the kernel would write past.
fn check(words: &[u64], length: u64, page: u64) -> Result<(), Errno> {
    if !page.is_power_of_two() || words.len() < words_for(length, page)? {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Starts or stops tracking of a container.
pub(super) fn type1_switch(container: &impl AsRawFd, on: bool) -> Result<(), Errno> {
    let mut switch = Type1Switch {
        argsz: size_of_u32::<Type1Switch>(),
        flags: if on {
            VFIO_IOMMU_DIRTY_PAGES_FLAG_START
        } else {
            VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP
        },
    };
    // SAFETY: `switch` is the structure of this request with these flags, and lives through the call.
    done(unsafe { ioctl_with_mut_ref(container, io_nr(DIRTY_PAGES), &mut switch) })
}

impl Type1Bitmap {
    fn new(flags: u32, (iova, size): (u64, u64), pgsize: u64, words: &mut [u64]) -> Self {
        Self {
            argsz: size_of_u32::<Self>(),
            flags,
            iova,
            size,
            pgsize,
            bytes: size_of_val(words) as u64,
            data: words.as_mut_ptr().expose_provenance() as u64,
        }
    }
}

/// The pages of whole maps that were written since this was last asked.
pub(super) fn type1_bitmap(
    container: &impl AsRawFd,
    range: (u64, u64),
    page: u64,
    words: &mut [u64],
) -> Result<(), Errno> {
    check(words, range.1, page)?;
    let flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
    let mut get = Type1Bitmap::new(flags, range, page, words);
    // SAFETY: `get` is the structure of this request with this flag; the bitmap it names is `words`, as long
    // as it says, and both live through the call.
    done(unsafe { ioctl_with_mut_ref(container, io_nr(DIRTY_PAGES), &mut get) })
}

/// Unmaps a range and tells which of its pages were written; how many bytes were mapped there.
pub(super) fn type1_unmap(
    container: &impl AsRawFd,
    range: (u64, u64),
    page: u64,
    words: &mut [u64],
) -> Result<u64, Errno> {
    check(words, range.1, page)?;
    let flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    let mut unmap = Type1Bitmap::new(flags, range, page, words);
    // SAFETY: `unmap` is the structure of this request with this flag; the bitmap it names is `words`, as
    // long as it says, and both live through the call.
    done(unsafe { ioctl_with_mut_ref(container, io_nr(UNMAP_DMA), &mut unmap) })?;
    Ok(unmap.size)
}

/// Starts or stops tracking of a hardware page table.
pub(super) fn hwpt_switch(iommufd: &impl AsRawFd, hwpt_id: u32, on: bool) -> Result<(), Errno> {
    let mut switch = iommu_hwpt_set_dirty_tracking {
        size: size_of_u32::<iommu_hwpt_set_dirty_tracking>(),
        flags: if on {
            iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE
        } else {
            0
        },
        hwpt_id,
        ..iommu_hwpt_set_dirty_tracking::default()
    };
    // SAFETY: `switch` is the structure of this request and lives through the call.
    done(unsafe { ioctl_with_mut_ref(iommufd, io_nr(SET_DIRTY_TRACKING), &mut switch) })
}

/// The pages of a mapped range that were written since this was last asked.
pub(super) fn hwpt_bitmap(
    iommufd: &impl AsRawFd,
    hwpt_id: u32,
    (iova, length): (u64, u64),
    page_size: u64,
    words: &mut [u64],
) -> Result<(), Errno> {
    check(words, length, page_size)?;
    let mut get = iommu_hwpt_get_dirty_bitmap {
        size: size_of_u32::<iommu_hwpt_get_dirty_bitmap>(),
        hwpt_id,
        iova,
        length,
        page_size,
        data: words.as_mut_ptr().expose_provenance() as u64,
        ..iommu_hwpt_get_dirty_bitmap::default()
    };
    // SAFETY: `get` is the structure of this request; the bitmap it names is `words`, which has a bit for
    // each page of the range, and both live through the call.
    done(unsafe { ioctl_with_mut_ref(iommufd, io_nr(GET_DIRTY_BITMAP), &mut get) })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vfio_bindings::bindings::vfio::{
        vfio_iommu_type1_dirty_bitmap, vfio_iommu_type1_dirty_bitmap_get,
        vfio_iommu_type1_dma_unmap,
    };

    use super::*;

    #[test]
    fn numbers_and_layouts_are_those_of_the_header() {
        assert_eq!(io_nr(DIRTY_PAGES), 0x3b75);
        assert_eq!(io_nr(UNMAP_DMA), 0x3b72);
        assert_eq!(io_nr(SET_DIRTY_TRACKING), 0x3b8b);
        assert_eq!(io_nr(GET_DIRTY_BITMAP), 0x3b8c);
        let get = offset_of!(vfio_iommu_type1_dirty_bitmap, data);
        let bitmap = get + offset_of!(vfio_iommu_type1_dirty_bitmap_get, bitmap);
        assert_eq!(offset_of!(Type1Bitmap, iova), get);
        assert_eq!(offset_of!(Type1Bitmap, pgsize), bitmap);
        assert_eq!(
            offset_of!(Type1Bitmap, iova),
            offset_of!(vfio_iommu_type1_dma_unmap, iova)
        );
        assert_eq!(
            offset_of!(Type1Bitmap, size),
            offset_of!(vfio_iommu_type1_dma_unmap, size)
        );
        assert_eq!(
            offset_of!(Type1Bitmap, pgsize),
            offset_of!(vfio_iommu_type1_dma_unmap, data)
        );
        assert_eq!(
            size_of::<Type1Bitmap>(),
            get + size_of::<vfio_iommu_type1_dirty_bitmap_get>()
        );
    }

    #[test]
    fn a_bitmap_that_is_too_short_never_reaches_the_kernel() {
        let other = memfd_create("not an iommu", MemfdFlags::CLOEXEC).unwrap();
        let range = (0, 65 * 4096);
        for (words, errno) in [(1, Errno::INVAL), (2, Errno::NOTTY)] {
            let words = &mut vec![0; words][..];
            assert_eq!(type1_bitmap(&other, range, 4096, words), Err(errno));
            assert_eq!(type1_unmap(&other, range, 4096, words), Err(errno));
            assert_eq!(hwpt_bitmap(&other, 1, range, 4096, words), Err(errno));
            assert_eq!(
                hwpt_bitmap(&other, 1, range, 4095, words),
                Err(Errno::INVAL)
            );
        }
        assert_eq!(type1_switch(&other, true), Err(Errno::NOTTY));
        assert_eq!(hwpt_switch(&other, 1, true), Err(Errno::NOTTY));
    }
}
