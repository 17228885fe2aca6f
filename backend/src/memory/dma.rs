// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Access to guest memory through the maps of an [`AddressSpace`].
//!
//! A range is visited piece by piece, each at most [`MAX_PIECE`] bytes and inside one map, each under its
//! own hold of the lock. What was done before a fault stays done.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::address_space::{AddressSpace, Map, State};
use super::mapping::Mapping;
use super::request::{Access, PAGE_SIZE};

/// The most bytes visited under one hold of the lock: bounds how long an unmap waits.
pub const MAX_PIECE: usize = 1 << 20;
/// Bytes carried by one request to the client for memory without a descriptor.
const BOUNCE: usize = 64 << 10;

/// Memory that can only be had by asking the client (DMA_READ and DMA_WRITE on the twin socket).
///
/// Called by the device's threads without any lock held; may block for as long as the client takes.
pub trait MessageDma: Send + Sync + fmt::Debug {
    /// Fills `data` from guest memory at `iova`.
    ///
    /// # Errors
    /// What the client answered, or that it did not.
    fn read(&self, iova: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` to guest memory at `iova`.
    ///
    /// # Errors
    /// What the client answered, or that it did not.
    fn write(&self, iova: u64, data: &[u8]) -> io::Result<()>;
}

/// An access of the device that could not be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA fault at {iova:#x}: {reason}")]
pub struct DmaFault {
    /// The first address that could not be accessed.
    pub iova: u64,
    /// Why not.
    pub reason: FaultReason,
    /// Bytes of the access that were done before.
    pub done: u64,
}

/// Why an access of the device failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    /// No map contains the address.
    #[error("not mapped")]
    Unmapped,
    /// The map is not for reading.
    #[error("not readable")]
    NotReadable,
    /// The map is not for writing.
    #[error("not writable")]
    NotWritable,
    /// The file behind the map no longer reaches this far; what was read there is zero, what was written is gone.
    #[error("memory lost, its file was truncated")]
    Lost,
    /// The map came without a descriptor, and the client did not offer to be asked.
    #[error("no descriptor")]
    NoDescriptor,
    /// The client was asked and failed.
    #[error("the client answered {0}")]
    Client(Errno),
    /// The range ends past 2^64; nothing was accessed.
    #[error("range wraps")]
    Wraps,
}

/// A piece of guest memory that may be accessed as asked.
struct Piece<'a> {
    map: &'a Map,
    /// Bytes from the start of the map.
    offset: u64,
    /// Bytes from here to the end of the map, at most [`MAX_PIECE`].
    length: usize,
}

impl State {
    fn piece(&self, iova: u64, limit: u64, access: Access) -> Result<Piece<'_>, DmaFault> {
        let fault = |reason| fault(iova, reason);
        let (start, map) = self
            .containing(iova)
            .ok_or_else(|| fault(FaultReason::Unmapped))?;
        for (wanted, reason) in [
            (Access::READ, FaultReason::NotReadable),
            (Access::WRITE, FaultReason::NotWritable),
        ] {
            if access.allows(wanted) && !map.access.allows(wanted) {
                return Err(fault(reason));
            }
        }
        let room = (map.last - iova).saturating_add(1).min(limit);
        Ok(Piece {
            map,
            offset: iova - start,
            length: usize::try_from(room).map_or(MAX_PIECE, |room| room.min(MAX_PIECE)),
        })
    }

    /// Notes that the device wrote there, if that is being logged; called once it is done.
    fn wrote(&self, iova: u64, length: usize) {
        if let Some(logging) = &self.logging
            && let Some(tail) = (length as u64).checked_sub(1)
        {
            logging.mark(iova..=iova.saturating_add(tail));
        }
    }

    /// The client's own hand, for memory without a descriptor.
    fn messages(&self, iova: u64) -> Result<Arc<dyn MessageDma>, DmaFault> {
        let fault = fault(iova, FaultReason::NoDescriptor);
        self.messages.clone().ok_or(fault)
    }
}

impl Piece<'_> {
    /// Calls `visit` with the memory, if this process has it mapped; checks afterwards that it was there.
    /// Says whether it was mapped.
    fn visit(
        &self,
        iova: u64,
        length: usize,
        visit: impl FnOnce(VolatileSlice<'_>),
    ) -> Result<bool, DmaFault> {
        let lost = |beyond: usize| DmaFault {
            done: beyond as u64,
            ..fault(iova.saturating_add(beyond as u64), FaultReason::Lost)
        };
        let for_now;
        let (memory, offset) = match (&self.map.memory, &self.map.kept) {
            (Some(memory), _) => (memory, self.offset),
            (None, Some((file, start))) => {
                let lead = self.offset % PAGE_SIZE;
                let mapped = (lead + length as u64).next_multiple_of(PAGE_SIZE);
                let from = start.saturating_add(self.offset - lead);
                let mapping = Mapping::new(file.as_fd(), from, mapped, self.map.access);
                for_now = mapping.map_err(|_| lost(0))?;
                (&for_now, lead)
            }
            (None, None) => return Ok(false),
        };
        let slice = usize::try_from(offset)
            .ok()
            .and_then(|offset| Some((offset, memory.slice(offset, length)?)));
        let Some((offset, slice)) = slice else {
            return Err(lost(0));
        };
        visit(slice);
        match memory.lost_within(offset, length) {
            Some(at) => Err(lost(at - offset)),
            None => Ok(true),
        }
    }
}

impl AddressSpace {
    /// Calls `visit` with [iova, iova + len), in order and in pieces, for `access`.
    ///
    /// Memory without a descriptor comes as a buffer that is filled before (for reading) and sent after (for
    /// writing); with [`Access::WRITE`] the visitor must write every byte of a piece. The visitor must not
    /// use this address space: the lock is held.
    ///
    /// # Errors
    /// The first address that cannot be accessed as asked; everything before it was visited.
    pub fn for_each(
        &self,
        iova: u64,
        len: u64,
        access: Access,
        mut visit: impl FnMut(VolatileSlice<'_>),
    ) -> Result<(), DmaFault> {
        check_wrap(iova, len)?;
        let mut bounce = Vec::new();
        let mut done = 0;
        while done < len {
            // The range does not wrap, so this does not either.
            let at = iova.wrapping_add(done);
            let piece = self.visit_piece(at, len - done, access, &mut bounce, &mut visit);
            done += piece.map_err(|fault| fault.after(done))? as u64;
        }
        Ok(())
    }

    /// One piece of at most `limit` bytes; how many bytes it had.
    fn visit_piece(
        &self,
        iova: u64,
        limit: u64,
        access: Access,
        bounce: &mut Vec<u8>,
        visit: &mut impl FnMut(VolatileSlice<'_>),
    ) -> Result<usize, DmaFault> {
        let state = self.state();
        let piece = state.piece(iova, limit, access)?;
        let length = piece.length;
        let visited = piece.visit(iova, length, &mut *visit);
        if visited != Ok(false) {
            // Part of it may have been written before it failed.
            if access.allows(Access::WRITE) {
                state.wrote(iova, length);
            }
            return visited.map(|_| length);
        }
        let messages = state.messages(iova)?;
        drop(state);
        let failed = |error| client_fault(iova, &error);
        bounce.resize(length.min(BOUNCE), 0);
        if access.allows(Access::READ) {
            messages.read(iova, bounce).map_err(failed)?;
        }
        visit(VolatileSlice::from(bounce.as_mut_slice()));
        if access.allows(Access::WRITE) {
            let written = messages.write(iova, bounce);
            self.state().wrote(iova, bounce.len());
            written.map_err(failed)?;
        }
        Ok(bounce.len())
    }

    /// Fills `data` from guest memory.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let len = data.len() as u64;
        let mut rest = data;
        self.for_each(iova, len, Access::READ, |slice| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(slice.len());
            slice.copy_to(head);
            rest = tail;
        })
    }

    /// Writes `data` to guest memory.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut rest = data;
        self.for_each(iova, data.len() as u64, Access::WRITE, |slice| {
            let (head, tail) = rest.split_at(slice.len());
            slice.copy_from(head);
            rest = tail;
        })
    }

    /// Writes all of `data` to guest memory, or nothing of it: where some cannot be written is found out before.
    /// The client is not asked for memory without a descriptor. (A file that loses pages meanwhile can still
    /// fault.)
    ///
    /// # Errors
    /// The first address that cannot be written.
    pub fn write_whole(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let len = data.len() as u64;
        check_wrap(iova, len)?;
        let state = self.state();
        let mut checked = 0;
        while checked < len {
            let at = iova.wrapping_add(checked);
            let piece = state.piece(at, len - checked, Access::WRITE)?;
            if piece.map.memory.is_none() && piece.map.kept.is_none() {
                return Err(fault(at, FaultReason::NoDescriptor));
            }
            checked += piece.length as u64;
        }
        drop(state);
        self.write(iova, data)
    }

    /// Copies guest memory to guest memory, in pieces from the lowest address up. Ranges that overlap are
    /// not copied as by memmove.
    ///
    /// # Errors
    /// As [`Self::for_each`]; the fault may be on either side, and everything before it was copied.
    pub fn copy(&self, src: u64, dst: u64, len: u64) -> Result<(), DmaFault> {
        check_wrap(src, len)?;
        check_wrap(dst, len)?;
        let mut bounce = Vec::new();
        let mut done = 0;
        while done < len {
            let (from, to) = (src.wrapping_add(done), dst.wrapping_add(done));
            let piece = self.copy_piece(from, to, len - done, &mut bounce);
            done += piece.map_err(|fault| fault.after(done))? as u64;
        }
        Ok(())
    }

    /// Copies at most `limit` bytes that lie in one map on either side; how many there were.
    fn copy_piece(
        &self,
        src: u64,
        dst: u64,
        limit: u64,
        bounce: &mut Vec<u8>,
    ) -> Result<usize, DmaFault> {
        let state = self.state();
        let source = state.piece(src, limit, Access::READ)?;
        let target = state.piece(dst, limit, Access::WRITE)?;
        let length = source.length.min(target.length);
        if source.map.memory.is_some() && target.map.memory.is_some() {
            let mut written = Ok(true);
            let read = source.visit(src, length, |source| {
                written = target.visit(dst, length, |target| {
                    source.copy_to_volatile_slice(target);
                });
            });
            state.wrote(dst, length);
            return read.and(written).map(|_| length);
        }
        drop(state);
        bounce.resize(length.min(BOUNCE), 0);
        // What was only read is not done yet.
        self.read(src, bounce)
            .map_err(|fault| DmaFault { done: 0, ..fault })?;
        self.write(dst, bounce)?;
        Ok(bounce.len())
    }
}

/// A fault before anything was done.
fn fault(iova: u64, reason: FaultReason) -> DmaFault {
    DmaFault {
        iova,
        reason,
        done: 0,
    }
}

impl DmaFault {
    /// The same fault of an access that had done `before` bytes already.
    fn after(self, before: u64) -> Self {
        Self {
            done: before.saturating_add(self.done),
            ..self
        }
    }
}

fn check_wrap(iova: u64, len: u64) -> Result<(), DmaFault> {
    match iova.checked_add(len.saturating_sub(1)) {
        Some(_) => Ok(()),
        None => Err(fault(iova, FaultReason::Wraps)),
    }
}

fn client_fault(iova: u64, error: &io::Error) -> DmaFault {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    fault(iova, FaultReason::Client(errno))
}
