// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration region: what is needed of whoever has it, and its registers and data as functions.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::error::V1Error;
use super::layout::Layout;
use crate::device::Area;

/// The registers (linux/vfio.h, `struct vfio_device_migration_info`).
const DEVICE_STATE: u64 = 0;
const PENDING_BYTES: u64 = 8;
const DATA_OFFSET: u64 = 16;
const DATA_SIZE: u64 = 24;

/// A migration region as a process reaches it. May be used from several threads.
///
/// Trapped accesses may block: a driver fills its buffer when it is asked where that is.
pub trait RegionAccess: Send + Sync + fmt::Debug {
    /// Bytes of the region.
    fn size(&self) -> u64;

    /// Which parts are mapped, in any order.
    fn areas(&self) -> &[Area];

    /// The memory of one of [`Self::areas`].
    fn memory(&self, area: usize) -> Option<VolatileSlice<'_>>;

    /// Whether a range of such memory was really the device's when it was accessed just now.
    fn is_intact(&self, area: usize, offset: usize, length: usize) -> bool {
        let _ = (area, offset, length);
        true
    }

    /// pread(2) of a trapped part; may be short.
    ///
    /// # Errors
    /// Its errno.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno>;

    /// pwrite(2) to a trapped part; may be short.
    ///
    /// # Errors
    /// Its errno.
    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno>;
}

/// A region with its layout.
#[derive(Debug)]
pub(super) struct Region {
    access: Box<dyn RegionAccess>,
    layout: Layout,
}

impl Region {
    pub(super) fn new(access: Box<dyn RegionAccess>) -> Self {
        let layout = Layout::new(access.size(), access.areas());
        Self { access, layout }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn device_state(&self) -> Result<u32, V1Error> {
        self.register(DEVICE_STATE).map(u32::from_ne_bytes)
    }

    /// Changes the state; returns when the driver has.
    pub(super) fn set_device_state(&self, word: u32) -> Result<(), V1Error> {
        self.set_register(DEVICE_STATE, word.to_ne_bytes())
    }

    /// What is left to be taken. Also says that the section before was taken.
    pub(super) fn pending_bytes(&self) -> Result<u64, V1Error> {
        self.register(PENDING_BYTES).map(u64::from_ne_bytes)
    }

    /// Where the section is, or is to be. May block until there is data.
    pub(super) fn data_offset(&self) -> Result<u64, V1Error> {
        self.register(DATA_OFFSET).map(u64::from_ne_bytes)
    }

    /// Bytes of the section.
    pub(super) fn data_size(&self) -> Result<u64, V1Error> {
        self.register(DATA_SIZE).map(u64::from_ne_bytes)
    }

    /// Has the driver take in that many bytes.
    pub(super) fn set_data_size(&self, size: u64) -> Result<(), V1Error> {
        self.set_register(DATA_SIZE, size.to_ne_bytes())
    }

    /// One read of a register's own width: no other access of it is defined.
    fn register<const WIDTH: usize>(&self, register: u64) -> Result<[u8; WIDTH], V1Error> {
        // What was read or written of the section comes before what the register means for it.
        fence(Ordering::SeqCst);
        let mut value = [0; WIDTH];
        let done = retried(|| self.access.read(register, &mut value))?;
        fence(Ordering::SeqCst);
        if done == WIDTH {
            Ok(value)
        } else {
            Err(V1Error::ShortRegister { register })
        }
    }

    fn set_register<const WIDTH: usize>(
        &self,
        register: u64,
        value: [u8; WIDTH],
    ) -> Result<(), V1Error> {
        fence(Ordering::SeqCst);
        let done = retried(|| self.access.write(register, &value))?;
        fence(Ordering::SeqCst);
        if done == WIDTH {
            Ok(())
        } else {
            Err(V1Error::ShortRegister { register })
        }
    }

    /// Copies data at `offset` to the start of `into`, as much of it as is reached in one way. `bounce` is for
    /// what is trapped. Returns how much; not 0 for ranges of data.
    pub(super) fn copy_out(
        &self,
        offset: u64,
        into: &VolatileSlice<'_>,
        bounce: &mut [u8],
    ) -> Result<usize, V1Error> {
        let ends = V1Error::Ends { offset };
        let piece = self.layout.piece(offset, into.len() as u64).ok_or(ends)?;
        let length = usize::try_from(piece.length).map_err(|_| ends)?;
        if let Some((area, at)) = piece.mapped {
            let into = into.subslice(0, length).map_err(|_| V1Error::Lost)?;
            self.mapped(area, at, length, |memory| {
                memory.copy_to_volatile_slice(into);
            })?;
            return Ok(length);
        }
        let room = length.min(bounce.len());
        let bounce = bounce.get_mut(..room).ok_or(ends)?;
        let done = retried(|| self.access.read(offset, bounce))?;
        match bounce.get(..done) {
            None | Some([]) => Err(ends),
            Some(data) => {
                into.copy_from(data);
                Ok(done)
            }
        }
    }

    /// Copies the start of `from` to the data at `offset`, likewise.
    pub(super) fn copy_in(
        &self,
        offset: u64,
        from: &VolatileSlice<'_>,
        bounce: &mut [u8],
    ) -> Result<usize, V1Error> {
        let ends = V1Error::Ends { offset };
        let piece = self.layout.piece(offset, from.len() as u64).ok_or(ends)?;
        let length = usize::try_from(piece.length).map_err(|_| ends)?;
        if let Some((area, at)) = piece.mapped {
            let from = from.subslice(0, length).map_err(|_| V1Error::Lost)?;
            self.mapped(area, at, length, |memory| {
                from.copy_to_volatile_slice(memory);
            })?;
            return Ok(length);
        }
        let room = length.min(bounce.len());
        let bounce = bounce.get_mut(..room).ok_or(ends)?;
        from.copy_to(bounce);
        let done = retried(|| self.access.write(offset, bounce))?;
        if done == 0 || done > room {
            return Err(ends);
        }
        Ok(done)
    }

    /// Visits a range of mapped memory, and checks afterwards that it was there.
    fn mapped(
        &self,
        area: usize,
        offset: u64,
        length: usize,
        visit: impl FnOnce(VolatileSlice<'_>),
    ) -> Result<(), V1Error> {
        let memory = self.access.memory(area).ok_or(V1Error::Lost)?;
        let offset = usize::try_from(offset).map_err(|_| V1Error::Lost)?;
        visit(memory.subslice(offset, length).map_err(|_| V1Error::Lost)?);
        if self.access.is_intact(area, offset, length) {
            Ok(())
        } else {
            Err(V1Error::Lost)
        }
    }
}

/// Calls again when a signal came.
fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, V1Error> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(V1Error::Refused),
        }
    }
}
