// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands of migration, on the main socket and on the channel alike.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vfio_user_protocol::extension::migration::{
    EXPLAIN, MIG_CHANNEL, MIG_P2P, MIG_SHM, MigShm, PENDING, PENDING_EXACT, PENDING_INITIAL_DONE,
    PENDING_UNKNOWN, PRECOPY_INFO, PRECOPY_REINIT, Pending, PrecopyInfo, Query, SHM_END_OF_PRECOPY,
    SHM_END_OF_STREAM, ShmTransfer,
};
use vfio_user_protocol::migration::MigData;
use vfio_user_protocol::version::Capabilities;
use vfio_user_protocol::{DecodeError, Request};
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::commands::size_of_u32;
use super::refusal::Refusal;
use super::replies::Reply;
use super::shared::SharedMemory;
use crate::function::Function;
use crate::migration::buffer::{Piece, Room};
use crate::migration::{More, ShowP2p};

/// The longest text of EXPLAIN, in bytes.
const MAX_REASON: usize = 4096;

/// What the client was granted of migration's extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) p2p: ShowP2p,
    pub(super) channel: bool,
    precopy_info: bool,
    pending: bool,
    shm: bool,
    explain: bool,
}

impl Granted {
    pub(super) fn new(answer: &Capabilities) -> Self {
        Self {
            p2p: ShowP2p(answer.has_feature(MIG_P2P)),
            channel: answer.has_feature(MIG_CHANNEL),
            precopy_info: answer.has_feature(PRECOPY_INFO),
            pending: answer.has_feature(PENDING),
            shm: answer.has_feature(MIG_SHM),
            explain: answer.has_feature(EXPLAIN),
        }
    }
}

/// What one socket's migration commands work on.
#[derive(Debug)]
pub(super) struct MigrationCommands {
    pub(super) function: Arc<Function>,
    pub(super) granted: Granted,
    /// Bytes of data the client takes in one message.
    pub(super) max_data: usize,
    shared: Option<SharedMemory>,
}

impl MigrationCommands {
    pub(super) fn new(function: Arc<Function>, granted: Granted, max_data: usize) -> Self {
        Self {
            function,
            granted,
            max_data,
            shared: None,
        }
    }

    /// The same for another socket of the client.
    pub(super) fn alike(&self) -> Self {
        Self::new(Arc::clone(&self.function), self.granted, self.max_data)
    }

    /// How many descriptors a request takes.
    pub(super) fn descriptors(request: &Request<'_>) -> usize {
        usize::from(matches!(request, Request::MigShm(_)))
    }

    /// Carries out one request; what is not about migration is not for here.
    pub(super) fn command(
        &mut self,
        request: Request<'_>,
        mut fds: Vec<OwnedFd>,
        last_refusal: &str,
        reply: &mut Reply,
    ) -> Result<(), Refusal> {
        let expected = Self::descriptors(&request);
        if fds.len() != expected {
            let found = fds.len();
            return Err(DecodeError::Descriptors { expected, found }.into());
        }
        match request {
            Request::DeviceFeature(asked, data) => self.feature(&asked, data, reply),
            Request::MigDataRead(asked) => self.data_read(&asked, reply),
            Request::MigDataWrite(_, data) => {
                let function = &*self.function;
                let piece = Piece::Private(data);
                Ok(function.migration().write(piece, function, &|| false)?)
            }
            Request::MigPrecopyInfo(_) if self.granted.precopy_info => self.precopy_info(reply),
            Request::MigPending(asked) if self.granted.pending => self.pending(&asked, reply),
            Request::MigShm(asked) if self.granted.shm => self.share(&asked, fds.pop()),
            Request::MigShmRead(asked) if self.granted.shm => self.shm_read(&asked, reply),
            Request::MigShmWrite(asked) if self.granted.shm => self.shm_write(&asked, reply),
            Request::Explain(asked) if self.granted.explain => {
                explain(&asked, last_refusal, reply);
                Ok(())
            }
            Request::MigPrecopyInfo(_)
            | Request::MigPending(_)
            | Request::MigShm(_)
            | Request::MigShmRead(_)
            | Request::MigShmWrite(_)
            | Request::Explain(_) => Err(Refusal::Unexpected("Not negotiated")),
            _ => Err(Refusal::Unexpected("Only migration is served here")),
        }
    }

    fn data_read(&self, asked: &MigData, reply: &mut Reply) -> Result<(), Refusal> {
        let size = usize::try_from(asked.size).unwrap_or(usize::MAX);
        if size > self.max_data {
            return Err(Refusal::bad("mig_data_read.size", asked.size.into()));
        }
        let function = &*self.function;
        let mut room = reply.room(size);
        let (length, _) = function.migration().read(&mut room, function)?;
        reply.shorten_data(length);
        let size = u32::try_from(length).unwrap_or(u32::MAX);
        let argsz = u32::try_from(size_of::<MigData>() + length).unwrap_or(u32::MAX);
        let fixed = MigData { argsz, size };
        reply.payload.extend_from_slice(fixed.as_bytes());
        Ok(())
    }

    fn precopy_info(&self, reply: &mut Reply) -> Result<(), Refusal> {
        let info = self.function.migration().precopy_info()?;
        let info = PrecopyInfo {
            argsz: size_of_u32::<PrecopyInfo>(),
            flags: if info.reinit { PRECOPY_REINIT } else { 0 },
            initial_bytes: info.initial,
            dirty_bytes: info.dirty,
        };
        reply.payload.extend_from_slice(info.as_bytes());
        Ok(())
    }

    fn pending(&self, asked: &Query, reply: &mut Reply) -> Result<(), Refusal> {
        let exact = asked.flags & PENDING_EXACT != 0;
        let report = self.function.migration().pending(exact)?;
        let pending = report.pending;
        let mut flags = 0;
        for (is_set, flag) in [
            (report.exact, PENDING_EXACT),
            (report.initial_done, PENDING_INITIAL_DONE),
            (pending.unknown, PENDING_UNKNOWN),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let answer = Pending {
            argsz: size_of_u32::<Pending>(),
            flags,
            initial_bytes: pending.initial,
            dirty_bytes: pending.dirty,
            stop_copy_bytes: pending.stop_copy,
            total_bytes: pending.total(),
            age_us: microseconds(pending.age),
        };
        reply.payload.extend_from_slice(answer.as_bytes());
        Ok(())
    }

    fn share(&mut self, asked: &MigShm, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        // The old one goes first, so that a client cannot make us hold two.
        self.shared = None;
        let fd = fd.ok_or(Refusal::Unexpected("No descriptor"))?;
        self.shared = Some(SharedMemory::new(&fd, asked.size)?);
        Ok(())
    }

    fn shm_read(&self, asked: &ShmTransfer, reply: &mut Reply) -> Result<(), Refusal> {
        let function = &*self.function;
        let (length, more) = self.in_shared(asked, |slice, _| {
            let mut room = Room::Shared(slice);
            Ok(function.migration().read(&mut room, function)?)
        })?;
        let done = ShmTransfer {
            argsz: size_of_u32::<ShmTransfer>(),
            flags: match more {
                More::Yes => 0,
                More::Later => SHM_END_OF_PRECOPY,
                More::No => SHM_END_OF_STREAM,
            },
            offset: asked.offset,
            size: length as u64,
        };
        reply.payload.extend_from_slice(done.as_bytes());
        Ok(())
    }

    fn shm_write(&self, asked: &ShmTransfer, reply: &mut Reply) -> Result<(), Refusal> {
        let function = &*self.function;
        self.in_shared(asked, |slice, lost| {
            let piece = Piece::Shared(slice);
            Ok(function.migration().write(piece, function, lost)?)
        })?;
        reply.payload.extend_from_slice(asked.as_bytes());
        Ok(())
    }

    fn in_shared<R>(
        &self,
        asked: &ShmTransfer,
        act: impl FnOnce(VolatileSlice<'_>, &dyn Fn() -> bool) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let shared = self.shared.as_ref();
        let shared = shared.ok_or(Refusal::Unexpected("No memory is shared"))?;
        shared.with(asked.offset, asked.size, act)
    }
}

/// Why the last request on the socket was refused; nothing if none was.
fn explain(asked: &Query, reason: &str, reply: &mut Reply) {
    let room = usize::try_from(asked.argsz).unwrap_or(usize::MAX);
    let room = room.saturating_sub(size_of::<Query>()).min(MAX_REASON);
    let cut = (0..=room.min(reason.len()))
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    let text = &reason[..cut.unwrap_or(0)];
    let argsz = u32::try_from(size_of::<Query>() + text.len()).unwrap_or(u32::MAX);
    let fixed = Query { argsz, flags: 0 };
    reply.payload.extend_from_slice(fixed.as_bytes());
    reply.payload.extend_from_slice(text.as_bytes());
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
