// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that stands for a virtual machine's RAM: a memfd, mapped here and given to the device.

use std::{
    error::Error,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use system_tests::pattern;

/// A mapped memfd.
pub struct SharedMemory {
    fd: OwnedFd,
    start: NonNull<u32>,
    length: usize,
}

impl SharedMemory {
    /// `length` zeroed bytes, whole pages.
    pub fn new(length: usize) -> Result<Self, Box<dyn Error>> {
        let fd = memfd_create(c"ram", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, u64::try_from(length)?)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or("mapped at address 0")?;
        Ok(Self { fd, start, length })
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        u64::try_from(self.start.as_ptr().addr()).expect("x86_64")
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Writes the pattern of `seed` into `length` bytes from `offset`.
    pub fn fill(&self, offset: usize, length: usize, seed: u32) {
        for index in 0..length / 4 {
            let word = pattern::word(seed, u32::try_from(index).expect("small memory"));
            // SAFETY: `place` checked the address; the device may read meanwhile, hence volatile.
            unsafe { ptr::write_volatile(self.place(offset / 4 + index), word) };
        }
    }

    /// Compares `length` bytes from `offset` with the pattern of `seed`.
    pub fn check(&self, offset: usize, length: usize, seed: u32) -> Result<(), Box<dyn Error>> {
        for index in 0..length / 4 {
            let (seen, wanted) = (
                self.word(offset + 4 * index),
                pattern::word(seed, u32::try_from(index)?),
            );
            if seen != wanted {
                let at = offset + 4 * index;
                return Err(
                    format!("memory at {at:#x}: {seen:#x} seen, {wanted:#x} wanted").into(),
                );
            }
        }
        Ok(())
    }

    /// The word at `offset` bytes.
    pub fn word(&self, offset: usize) -> u32 {
        // SAFETY: `place` checked the address; the device may write meanwhile, hence volatile.
        unsafe { ptr::read_volatile(self.place(offset / 4)) }
    }

    fn place(&self, word: usize) -> *mut u32 {
        assert!(
            word < self.length / 4,
            "a check reaches past its memory: word {word}"
        );
        self.start.as_ptr().wrapping_add(word)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
