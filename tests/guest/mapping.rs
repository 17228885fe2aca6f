// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped memory: a BAR through its sysfs file, or a huge page of guest RAM with its physical address. Accesses are
//! volatile, of exactly the width asked for, and checked against the mapping's size.

use std::{
    error::Error,
    fs::File,
    os::unix::fs::FileExt,
    ptr::{self, NonNull},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Size of a huge page on x86, in bytes.
pub const HUGE_PAGE: usize = 2 << 20;

/// A shared mapping, unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

/// Declares a pair of access functions of one width.
macro_rules! access {
    ($($read:ident, $write:ident: $value:ty;)*) => {$(
        pub fn $read(&self, offset: u64) -> $value {
            let place = self.place::<$value>(offset);
            // SAFETY: `place` gave an aligned address inside the mapping, which lives as long as `self`; the memory may
            // change under us, hence volatile.
            unsafe { ptr::read_volatile(place) }
        }

        pub fn $write(&self, offset: u64, value: $value) {
            let place = self.place::<$value>(offset);
            // SAFETY: as for the read; nothing in this program holds a reference into the mapping.
            unsafe { ptr::write_volatile(place, value) }
        }
    )*};
}

impl Mapping {
    /// Maps `length` bytes of a file from its start.
    pub fn of_file(file: &File, length: usize) -> Result<Self, Box<dyn Error>> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        Self::new(
            start.map_err(|error| format!("mmap of {length:#x} bytes: {error}"))?,
            length,
        )
    }

    /// Maps a huge page, present and zeroed.
    pub fn huge_page() -> Result<Self, Box<dyn Error>> {
        // SAFETY: as above.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                HUGE_PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::HUGETLB | MapFlags::POPULATE,
            )
        };
        let start = start.map_err(|error| format!("no huge page ({error}); hugepages= given?"))?;
        Self::new(start, HUGE_PAGE)
    }

    fn new(start: *mut core::ffi::c_void, length: usize) -> Result<Self, Box<dyn Error>> {
        let start = NonNull::new(start.cast()).ok_or("mapped at address 0")?;
        Ok(Self { start, length })
    }

    /// The physical address of the mapping's start, by `/proc/self/pagemap`. For one huge page, which is contiguous and
    /// does not move.
    pub fn physical_address(&self) -> Result<u64, Box<dyn Error>> {
        const PAGE: u64 = 4096;
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let virtual_page = u64::try_from(self.start.as_ptr().addr())? / PAGE;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, virtual_page * 8)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            return Err(format!("the page map hides the huge page: {entry:#x}").into());
        }
        Ok((entry & FRAME) * PAGE)
    }

    access! {
        read8, write8: u8;
        read32, write32: u32;
        read64, write64: u64;
    }

    /// The address of a naturally aligned `T` at `offset`.
    fn place<T>(&self, offset: u64) -> *mut T {
        let offset = usize::try_from(offset).expect("x86_64");
        assert!(
            offset.is_multiple_of(size_of::<T>())
                && offset
                    .checked_add(size_of::<T>())
                    .is_some_and(|end| end <= self.length),
            "a check accesses {} bytes at {offset:#x} of {:#x}",
            size_of::<T>(),
            self.length
        );
        self.start.as_ptr().wrapping_add(offset).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
