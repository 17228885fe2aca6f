// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Regions mapped into this process: pointers for a VMM's memory slots, checked access for itself.
//!
//! The memory belongs to the server, which may change it at any time; it is therefore only touched through
//! volatile accesses, never borrowed as `&[u8]`. A file that is too short is refused when it is mapped, but a
//! server that shrinks its file later makes an access raise SIGBUS, as with any shared file that is not
//! sealed (`F_SEAL_SHRINK`).
// Mapping memory is the one thing this crate does that the compiler cannot check.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::{AtomicAccess, Bytes, VolatileSlice};

use crate::protocol::device::SparseArea;
use crate::{Error, RegionInfo};

/// The mapped areas of one region; unmapped when dropped.
#[derive(Debug)]
pub struct RegionMapping {
    areas: Vec<MappedArea>,
}

/// A part of a region, mapped as one.
#[derive(Debug)]
pub struct MappedArea {
    offset: u64,
    pointer: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: the pointer is to a shared mapping that this value alone unmaps; it is not tied to a thread, and
// all access through it is volatile or atomic.
unsafe impl Send for MappedArea {}
// SAFETY: as above; `&MappedArea` gives no access that the server's own concurrent access does not already
// force to be volatile or atomic.
unsafe impl Sync for MappedArea {}

impl RegionInfo {
    /// Maps all areas that can be mapped; none where the region has none or cannot be read.
    ///
    /// # Errors
    /// [`Error::Map`] with EINVAL for areas outside the region or a file too short, or mmap(2)'s errno.
    pub fn map(&self) -> Result<RegionMapping, Error> {
        let mut areas = Vec::new();
        if let Some((fd, base)) = self.mapping.as_ref().filter(|_| self.readable) {
            for area in self.mappable_areas() {
                areas.push(self.map_area(fd.as_fd(), *base, area)?);
            }
        }
        Ok(RegionMapping { areas })
    }

    fn map_area(
        &self,
        fd: BorrowedFd<'_>,
        base: u64,
        area: SparseArea,
    ) -> Result<MappedArea, Error> {
        let invalid = || Error::Map(Errno::INVAL.into());
        let end = area.offset.checked_add(area.size).ok_or_else(invalid)?;
        let length = usize::try_from(area.size).map_err(|_| invalid())?;
        if end > self.size || length == 0 || isize::try_from(length).is_err() {
            return Err(invalid());
        }
        let file_end = base.checked_add(end).ok_or_else(invalid)?;
        let stat = fstat(fd).map_err(|errno| Error::Map(errno.into()))?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file && u64::try_from(stat.st_size).is_ok_and(|size| size < file_end) {
            return Err(invalid());
        }
        let mapped = MappedArea::new(fd, base + area.offset, length, self.writable);
        let mut mapped = mapped.map_err(Error::Map)?;
        mapped.offset = area.offset;
        Ok(mapped)
    }
}

impl MappedArea {
    /// Maps part of a file, shared.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        at: u64,
        length: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping at an address of the kernel's choosing takes no memory from anything else.
        let pointer = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                fd,
                at,
            )
        }?;
        Ok(Self {
            offset: 0,
            pointer: NonNull::new(pointer.cast()).ok_or(Errno::INVAL)?,
            length,
            writable,
        })
    }

    /// Where the area begins, in bytes from the start of the region.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where it is in this process, page-aligned, for as long as this value lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Bytes; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Mapped for writing too.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The memory, for volatile access.
    #[must_use]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: pointer and length are those of a mapping that lives as long as `self`, which the slice
        // borrows; other access to it is volatile too.
        unsafe { VolatileSlice::new(self.pointer.as_ptr(), self.length) }
    }
}

impl Drop for MappedArea {
    fn drop(&mut self) {
        // SAFETY: pointer and length are those of the mapping made for this value, and nothing borrows it.
        // It fails only for ranges that are none.
        let _ = unsafe { munmap(self.pointer.as_ptr().cast(), self.length) };
    }
}

impl RegionMapping {
    /// The areas, in the server's order.
    #[must_use]
    pub fn areas(&self) -> &[MappedArea] {
        &self.areas
    }

    /// Reads one `u8`, `u16`, `u32` or `u64` in one access at `offset` of the region.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that is not mapped or not aligned to its size.
    pub fn read<T: AtomicAccess>(&self, offset: u64) -> Result<T, Error> {
        let length = size_of::<T>();
        let value = self
            .range(offset, length, false)?
            .load(0, Ordering::Relaxed);
        value.map_err(|_| Error::OutOfRange { offset, length })
    }

    /// Writes one `u8`, `u16`, `u32` or `u64` in one access at `offset` of the region.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that is not mapped for writing or not aligned to its size.
    pub fn write<T: AtomicAccess>(&self, offset: u64, value: T) -> Result<(), Error> {
        let length = size_of::<T>();
        let range = self.range(offset, length, true)?;
        let stored = range.store(value, 0, Ordering::Relaxed);
        stored.map_err(|_| Error::OutOfRange { offset, length })
    }

    /// Fills `data` from `offset` of the region, in accesses of any width.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that is not mapped as one.
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.range(offset, data.len(), false)?.copy_to(data);
        Ok(())
    }

    /// Writes `data` at `offset` of the region, in accesses of any width.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that is not mapped as one for writing.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.range(offset, data.len(), true)?.copy_from(data);
        Ok(())
    }

    /// All of a range, from the area that holds it.
    fn range(&self, offset: u64, length: usize, write: bool) -> Result<VolatileSlice<'_>, Error> {
        let areas = self.areas.iter().filter(|area| area.writable || !write);
        let mut ranges = areas.filter_map(|area| {
            let at = usize::try_from(offset.checked_sub(area.offset)?).ok()?;
            area.as_volatile_slice().subslice(at, length).ok()
        });
        ranges.next().ok_or(Error::OutOfRange { offset, length })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::protocol::device::RegionCapability;

    /// A region of 0x4000 bytes at 0x1000 of a file of 0x5000.
    fn region(areas: &[(u64, u64)], writable: bool) -> (RegionInfo, File) {
        let memory = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 0x5000).unwrap();
        let file = File::from(memory.try_clone().unwrap());
        let areas = areas
            .iter()
            .map(|&(offset, size)| SparseArea { offset, size });
        let info = RegionInfo {
            size: 0x4000,
            readable: true,
            writable,
            capabilities: vec![RegionCapability::SparseMmap(areas.collect())],
            mapping: Some((memory, 0x1000)),
        };
        (info, file)
    }

    fn out_of_range<T: std::fmt::Debug>(result: Result<T, Error>) {
        assert!(
            matches!(result, Err(Error::OutOfRange { .. })),
            "{result:?}"
        );
    }

    #[test]
    fn areas_are_reached_by_region_offset() {
        let (info, file) = region(&[(0, 0x1000), (0x2000, 0x2000)], true);
        let mapping = info.map().unwrap();
        drop(info);
        assert_eq!(mapping.areas().len(), 2);
        assert_eq!(
            (mapping.areas()[1].offset(), mapping.areas()[1].len()),
            (0x2000, 0x2000)
        );
        mapping.write(0x2008, 0x1122_3344_5566_7788_u64).unwrap();
        mapping.write_bytes(0xffe, b"ab").unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0x3008).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 0x1122_3344_5566_7788);
        file.read_exact_at(&mut bytes[..2], 0x1ffe).unwrap();
        assert_eq!(&bytes[..2], b"ab");
        file.write_all_at(&[0xfe, 0xca], 0x4ffe).unwrap();
        assert_eq!(
            mapping.read::<u16>(0x3ffe).unwrap(),
            u16::from_ne_bytes([0xfe, 0xca])
        );
        mapping.read_bytes(0x3ffc, &mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], [0, 0, 0xfe, 0xca]);
    }

    #[test]
    fn what_is_not_mapped_as_one_is_out_of_range() {
        let (info, _file) = region(&[(0, 0x1000), (0x1000, 0x1000)], true);
        let mapping = info.map().unwrap();
        out_of_range(mapping.read::<u32>(0xffe));
        out_of_range(mapping.read_bytes(0xfff, &mut [0; 2]));
        out_of_range(mapping.read::<u8>(0x2000));
        out_of_range(mapping.read::<u64>(u64::MAX - 3));
        out_of_range(mapping.write(2, 0_u32));
        mapping.write_bytes(0xffc, &[1; 4]).unwrap();
    }

    #[test]
    fn a_read_only_region_takes_no_writes() {
        let (info, _file) = region(&[(0, 0x1000)], false);
        let mapping = info.map().unwrap();
        assert!(!mapping.areas()[0].is_writable());
        assert_eq!(mapping.read::<u32>(0).unwrap(), 0);
        out_of_range(mapping.write(0, 1_u8));
        out_of_range(mapping.write_bytes(0, &[1]));
    }

    #[test]
    fn areas_a_server_made_up_are_refused() {
        for area in [
            (0, 0x4001),
            (0x3000, 0x2000),
            (u64::MAX, 2),
            (0x1000, u64::MAX),
            (0, 0),
            (0x10, 0x1000),
        ] {
            let (info, _file) = region(&[area], true);
            let error = info.map().unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL.raw_os_error(), "{area:x?}");
        }
        let (mut info, _file) = region(&[(0, 0x4000)], true);
        info.mapping.as_mut().unwrap().1 = 0x2000;
        assert!(info.map().is_err(), "the file ends before the region");
    }

    #[test]
    fn a_region_without_sparse_areas_is_mapped_whole_or_not_at_all() {
        let (mut info, _file) = region(&[], true);
        assert!(
            info.map().unwrap().areas().is_empty(),
            "sparse, but nothing in it"
        );
        info.capabilities.clear();
        assert_eq!(info.map().unwrap().areas()[0].len(), 0x4000);
        info.mapping = None;
        assert!(info.map().unwrap().areas().is_empty());
    }
}
