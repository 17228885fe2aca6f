// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that a client shares for migration data.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::refusal::Refusal;
use crate::memory::{Access, Mapping, PAGE_SIZE};

/// The most that a client may share, in bytes: more is of no use, and takes address space.
const MAX_SIZE: u64 = 256 << 20;

/// A client's memfd, mapped. The client may change what is in it, and truncate it, at any moment.
#[derive(Debug)]
pub(super) struct SharedMemory(Mapping);

impl SharedMemory {
    /// Maps the first `size` bytes of what the client passed.
    pub(super) fn new(fd: &OwnedFd, size: u64) -> Result<Self, Refusal> {
        let bad = Refusal::bad("mig_shm.size", size);
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) || size > MAX_SIZE {
            return Err(bad);
        }
        let status = fstat(fd).map_err(os("Status of the shared memory"))?;
        let length = u64::try_from(status.st_size).unwrap_or(0);
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || length < size {
            return Err(bad);
        }
        let mapping = Mapping::new(fd.as_fd(), 0, size, Access::READ_WRITE);
        let mapping = mapping.map_err(|error| os("Mapping the shared memory")(error.errno()))?;
        Ok(Self(mapping))
    }

    /// Lets `act` use a part, and ask whether the memory was truncated meanwhile.
    pub(super) fn with<R>(
        &self,
        offset: u64,
        size: u64,
        act: impl FnOnce(VolatileSlice<'_>, &dyn Fn() -> bool) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let from = usize::try_from(offset).ok();
        let count = usize::try_from(size).ok();
        let part = from.zip(count);
        let slice = part.and_then(|(from, count)| self.0.slice(from, count));
        let slice = slice.ok_or_else(|| Refusal::bad("mig_shm.offset", offset))?;
        let (from, count) = part.unwrap_or_default();
        let lost = || self.0.lost_within(from, count).is_some();
        let done = act(slice, &lost)?;
        if lost() {
            return Err(os("The shared memory was truncated")(Errno::FAULT));
        }
        Ok(done)
    }
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> Refusal {
    move |errno| Refusal::Os {
        what,
        source: errno.into(),
    }
}
