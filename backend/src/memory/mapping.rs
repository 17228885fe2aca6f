// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One shared mapping of a file in this process, guarded against truncation.
//!
//! Holds no descriptor: thirty thousand maps must not need thirty thousand of them. This is why the
//! mapping is made here and only wrapped by vm-memory, which would keep the file.

use std::os::fd::BorrowedFd;
use std::ptr;

use log::debug;
use rustix::fs::{FsWord, fstatfs};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, madvise, mmap, munmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::request::{Access, PAGE_SIZE};
use super::sigbus::{Guard, GuardError};

/// `f_type` of files of huge pages, memfds among them (linux/magic.h).
const HUGETLBFS_MAGIC: FsWord = 0x9584_58f6;

/// Why a file cannot be mapped.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum MappingError {
    /// The kernel refused the mapping.
    #[error("mmap: {0}")]
    Mmap(Errno),
    /// The mapping cannot be guarded against truncation.
    #[error(transparent)]
    Guard(#[from] GuardError),
}

impl MappingError {
    /// The errno for the wire.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Mmap(errno) => *errno,
            Self::Guard(error) => error.errno(),
        }
    }
}

/// A range of a file, mapped shared.
#[derive(Debug)]
pub struct Mapping {
    /// The range, rounded out to the pages of the file.
    region: MmapRegion,
    /// Bytes of `region` before the range.
    lead: usize,
    size: usize,
    /// Only `None` while dropped.
    guard: Option<Guard>,
}

impl Mapping {
    /// Maps `size` bytes at `offset`, both whole pages, for as much access as is asked.
    ///
    /// # Errors
    /// The errno of mmap, or too many mappings in this process.
    pub fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        access: Access,
    ) -> Result<Self, MappingError> {
        let refused = MappingError::Mmap;
        let huge = huge_page_size(file).map_err(refused)?;
        let lead = offset & (huge - 1);
        let whole = lead
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(huge));
        let convert = |bytes: u64| usize::try_from(bytes).map_err(|_| refused(Errno::NOMEM));
        let (lead, wanted) = (convert(lead)?, convert(size)?);
        let size = convert(whole.ok_or(refused(Errno::NOMEM))?)?;
        let offset = offset & !(huge - 1);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a free range, so that nothing in use is replaced.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                size,
                access.protection(),
                flags,
                file,
                offset,
            )
        }
        .map_err(refused)?;
        // SAFETY: the range was mapped just now and stays until this value is dropped.
        let builder = unsafe { MmapRegionBuilder::new(size).with_raw_mmap_pointer(start.cast()) };
        let Ok(region) = builder.build() else {
            // SAFETY: the range was mapped above and nobody else knows of it.
            let _ = unsafe { munmap(start, size) };
            return Err(refused(Errno::INVAL));
        };
        let mut mapping = Self {
            region,
            lead,
            size: wanted,
            guard: None,
        };
        // SAFETY: the range belongs to `mapping`, which hands out volatile slices only and drops the guard
        // before it unmaps; size is whole pages.
        mapping.guard = Some(unsafe { Guard::new(start.cast(), size) }?);
        Ok(mapping)
    }

    /// Enters the pages that the file has into this process' tables, many at a time: whoever pins them next
    /// would otherwise take a fault for each. Only a matter of speed.
    pub fn populate(&self) {
        // SAFETY: the range is mapped as long as this value lives, and its contents are not changed.
        let done = unsafe {
            madvise(
                self.region.as_ptr().cast(),
                self.region.size(),
                Advice::LinuxPopulateRead,
            )
        };
        if let Err(errno) = done {
            debug!("Pages not entered ahead: {errno}");
        }
    }

    /// Bytes mapped.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where the mapping begins in this process, for the kernel to pin it. The pages stay until this value
    /// is dropped; whatever they hold may change at any time.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr().addr() as u64
    }

    /// Part of the memory; `None` if it is not all inside. The caller sees to it that the access is allowed:
    /// it is the protection of the pages.
    #[must_use]
    pub fn slice(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        let inside = offset.checked_add(length)? <= self.size;
        let slice = || self.region.get_slice(self.lead + offset, length).ok();
        inside.then(slice)?
    }

    /// Where the file was found truncated, in bytes from the start of the mapping, if that lies in or before
    /// the part that was accessed. To be asked after each access.
    #[must_use]
    pub fn lost_within(&self, offset: usize, length: usize) -> Option<usize> {
        let lost = self.guard.as_ref()?.lost_from()?;
        let lost = lost.saturating_sub(self.lead);
        (lost < offset.saturating_add(length)).then(|| lost.max(offset))
    }
}

/// The page size that mappings of a file come in: that of a file of huge pages is mapped and unmapped in
/// those only.
fn huge_page_size(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    let status = fstatfs(file)?;
    let size = u64::try_from(status.f_bsize).ok();
    let huge = size.filter(|size| status.f_type == HUGETLBFS_MAGIC && size.is_power_of_two());
    Ok(huge.unwrap_or(PAGE_SIZE))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the range was mapped in `new`, and every slice of it borrows this value.
        let unmapped = unsafe { munmap(self.region.as_ptr().cast(), self.region.size()) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
    use rustix::process::{Signal, getpid, kill_process};
    use vm_memory::{FileOffset, VolatileMemory};

    use super::*;

    const PAGE: usize = 4096;

    fn memfd(size: u64) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        file
    }

    fn map(file: &OwnedFd, pages: usize) -> Mapping {
        let size = u64::try_from(pages * PAGE).unwrap();
        Mapping::new(file.as_fd(), 0, size, Access::READ_WRITE).unwrap()
    }

    fn first_byte(mapping: &Mapping, page: usize) -> u8 {
        let mut byte = [0];
        mapping.slice(page * PAGE, 1).unwrap().copy_to(&mut byte);
        byte[0]
    }

    #[test]
    fn a_truncated_file_reads_as_zero_and_is_noticed() {
        let file = memfd(4 * 4096);
        let mapping = map(&file, 4);
        mapping
            .slice(0, 4 * PAGE)
            .unwrap()
            .copy_from(&[7_u8; 4 * PAGE]);
        assert_eq!(mapping.lost_within(0, 4 * PAGE), None);
        ftruncate(&file, 2 * 4096).unwrap();
        assert_eq!(first_byte(&mapping, 3), 0);
        assert_eq!(mapping.lost_within(0, 4 * PAGE), Some(3 * PAGE));
        assert_eq!(mapping.lost_within(3 * PAGE + 5, 2), Some(3 * PAGE + 5));
        assert_eq!(mapping.lost_within(0, 3 * PAGE), None, "ends before it");
        // A lower page that is gone too is found when it is touched.
        assert_eq!(first_byte(&mapping, 2), 0);
        assert_eq!(mapping.lost_within(0, 3 * PAGE), Some(2 * PAGE));
        assert_eq!(first_byte(&mapping, 1), 7, "still the file");
        assert_eq!(mapping.lost_within(0, 2 * PAGE), None);
    }

    #[test]
    fn only_the_range_that_faults_is_mended() {
        let (gone, kept) = (memfd(4096), memfd(4096));
        let mappings = [map(&kept, 1), map(&gone, 1), map(&kept, 1)];
        mappings[0].slice(0, 1).unwrap().copy_from(&[9_u8]);
        ftruncate(&gone, 0).unwrap();
        assert_eq!(first_byte(&mappings[1], 0), 0);
        assert_eq!(
            mappings.each_ref().map(|m| m.lost_within(0, PAGE)),
            [None, Some(0), None]
        );
        assert_eq!(first_byte(&mappings[2], 0), 9);
    }

    #[test]
    fn a_reused_slot_starts_unharmed() {
        for _ in 0..3 {
            let file = memfd(4096);
            let mapping = map(&file, 1);
            assert_eq!(mapping.lost_within(0, PAGE), None);
            ftruncate(&file, 0).unwrap();
            first_byte(&mapping, 0);
            assert_eq!(mapping.lost_within(0, PAGE), Some(0));
        }
    }

    #[test]
    fn truncation_while_other_threads_copy_and_map() {
        const PAGES: usize = 256;
        let stop = AtomicBool::new(false);
        let file = memfd(256 * 4096);
        let mapping = map(&file, PAGES);
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let other = memfd(4096);
                let mut rounds = 0_usize;
                while !stop.load(Ordering::Relaxed) || rounds == 0 {
                    let mapping = map(&other, 1);
                    assert_eq!(mapping.lost_within(0, PAGE), None);
                    rounds += 1;
                }
            });
            let copiers = [0, 1].map(|_| {
                scope.spawn(|| {
                    let mut buffer = vec![0_u8; PAGES * PAGE];
                    // Ends because the main thread truncates, whenever it gets to it.
                    while mapping.lost_within(0, PAGES * PAGE).is_none() {
                        mapping.slice(0, PAGES * PAGE).unwrap().copy_to(&mut buffer);
                        // Else a release build copies nothing.
                        std::hint::black_box(&buffer);
                    }
                })
            });
            ftruncate(&file, 0).unwrap();
            for copier in copiers {
                copier.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            churn.join().unwrap();
        });
    }

    #[test]
    fn a_write_past_the_end_is_noticed() {
        let file = memfd(0);
        let mapping = map(&file, 1);
        mapping.slice(0, 1).unwrap().copy_from(&[1_u8]);
        assert_eq!(mapping.lost_within(0, 1), Some(0));
    }

    /// How many bytes of this process are mapped from the file.
    fn mapped_bytes(file: &OwnedFd) -> usize {
        let inode = fstat(file).unwrap().st_ino.to_string();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .filter(|line| line.split_whitespace().nth(4) == Some(&inode))
            .map(|line| {
                let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).unwrap());
                end - start
            })
            .sum()
    }

    #[test]
    fn any_part_of_a_file_of_huge_pages_is_mapped_and_let_go() {
        const HUGE: u64 = 2 << 20;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = memfd_create("huge", flags).unwrap();
        ftruncate(&file, 2 * HUGE).unwrap();
        // As QEMU maps the memory around 0xc0000; then across two pages.
        for (offset, size) in [(0, 0xc_0000), (0xc_0000, 0x4_0000), (HUGE - 4096, 8192)] {
            let mapping = Mapping::new(file.as_fd(), offset, size, Access::READ_WRITE).unwrap();
            let length = usize::try_from(size).unwrap();
            assert_eq!(mapping.size(), length);
            assert!(mapping.slice(0, length).is_some());
            assert!(mapping.slice(1, length).is_none());
            // This machine may have no huge pages, so they may be found missing.
            let mut byte = [0];
            mapping.slice(length - 1, 1).unwrap().copy_to(&mut byte);
            assert_eq!(byte, [0]);
            let lost = mapping.lost_within(length - 1, 1);
            assert!([None, Some(length - 1)].contains(&lost), "{lost:?}");
            drop(mapping);
            assert_eq!(mapped_bytes(&file), 0, "{offset:#x} {size:#x}");
        }
    }

    const CHILD: &str = "VFIO_USER_GPU_TEST_SIGBUS";

    /// Run by the tests below in a process of its own, which dies of it.
    #[test]
    fn sigbus_child() {
        let Some(how) = std::env::var_os(CHILD) else {
            return;
        };
        let file = memfd(4096);
        if how == "full" {
            let whole = || Mapping::new(file.as_fd(), 0, 4096, Access::READ_WRITE);
            let all: Vec<_> = std::iter::from_fn(|| whole().ok()).collect();
            ftruncate(&file, 0).unwrap();
            for mapping in all.iter().step_by(1000) {
                assert_eq!(first_byte(mapping, 0), 0);
            }
            // Threads and large buffers can be had, too.
            thread::spawn(|| vec![1_u8; 64 << 20]).join().unwrap();
            return;
        }
        let guarded = map(&file, 1);
        let unguarded: MmapRegion =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap().into(), 0), PAGE)
                .unwrap();
        ftruncate(&file, 0).unwrap();
        // The handler is at work: this one is survived.
        first_byte(&guarded, 0);
        if how == "fault" {
            let mut byte = [0_u8];
            unguarded.get_slice(0, 1).unwrap().copy_to(&mut byte);
        } else {
            kill_process(getpid(), Signal::BUS).unwrap();
        }
    }

    /// How a process of its own ended.
    fn ended(how: &str) -> ExitStatus {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::mapping::tests::sigbus_child"])
            .env(CHILD, how)
            .output()
            .unwrap();
        child.status
    }

    #[test]
    fn as_many_mappings_as_can_be_had_are_all_mended() {
        assert!(ended("full").success());
    }

    #[test]
    fn a_fault_elsewhere_still_ends_the_process() {
        assert_eq!(ended("fault").signal(), Some(Signal::BUS.as_raw()));
    }

    #[test]
    fn a_sigbus_that_was_sent_still_ends_the_process() {
        assert_eq!(ended("kill").signal(), Some(Signal::BUS.as_raw()));
    }
}
