// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that migration data goes through, in slots of one chunk each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::VolatileSlice;

use crate::Error;
use crate::mapping::MappedArea;

/// Bytes of the longest chunk that goes on the socket that the guest's accesses take, too.
pub(super) const CHUNK: usize = 1 << 20;
/// Bytes of a slot, and of the longest chunk beside that socket: what a message costs is shared by as many.
pub(super) const SLOT: usize = 4 << 20;
/// One is with the caller, the others are with the server.
pub(super) const SLOTS: usize = 3;

/// Memory that the server has too. It cannot be shortened under either side.
#[derive(Debug)]
pub(super) struct SharedMemory {
    fd: OwnedFd,
    area: MappedArea,
}

impl SharedMemory {
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("migration", flags)?;
        ftruncate(&fd, size())?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let area = MappedArea::new(fd.as_fd(), 0, SLOT * SLOTS, true)?;
        Ok(Self { fd, area })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of it.
    pub(super) fn size(&self) -> u64 {
        size()
    }

    /// Where a slot begins, in bytes.
    pub(super) fn offset(&self, slot: usize) -> u64 {
        to_u64(slot % SLOTS * SLOT)
    }

    /// So many bytes of a slot, from `start`.
    pub(super) fn slot(
        &self,
        slot: usize,
        start: usize,
        length: usize,
    ) -> Result<VolatileSlice<'_>, Error> {
        let out_of_range = || Error::OutOfRange {
            offset: to_u64(start),
            length,
        };
        if start.checked_add(length).is_none_or(|end| end > SLOT) {
            return Err(out_of_range());
        }
        let memory = self.area.as_volatile_slice();
        memory
            .subslice(slot % SLOTS * SLOT + start, length)
            .map_err(|_| out_of_range())
    }
}

fn size() -> u64 {
    to_u64(SLOT * SLOTS)
}

/// A size of this address space.
pub(super) fn to_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
