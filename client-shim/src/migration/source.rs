// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stream of a device that is saved, chunk by chunk: by messages, or through shared memory with reads sent
//! ahead, so that the server fills the next slots while the caller passes one on.
//!
//! In pre-copy no more is read ahead than the pass is said to have: a read behind its end would begin another, and
//! make the device look for changes again.

use std::sync::Arc;

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::link::Link;
use super::memory::{CHUNK, SLOT, SLOTS, SharedMemory, to_u64};
use super::saver::Progress;
use crate::Error;
use crate::client::expect_length;
use crate::info::size_u32;
use crate::protocol::codec::Reader;
use crate::protocol::extension::migration::{SHM_END_OF_PRECOPY, SHM_END_OF_STREAM, ShmTransfer};
use crate::protocol::migration::MigData;
use crate::protocol::{Command, DecodeError};

/// Where chunks come from.
#[derive(Debug)]
pub(super) enum Source {
    Messages(Messages),
    Shared(Shared),
}

#[derive(Debug)]
pub(super) struct Messages {
    /// Over the channel.
    apart: bool,
    buffer: Vec<u8>,
    /// The last chunk was short: there is no more.
    short: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Over the channel.
    apart: bool,
    memory: Arc<SharedMemory>,
    /// The slot of the oldest read under way, counted without end.
    first: usize,
    /// Reads under way.
    ahead: usize,
    /// How many of them were sent before the last change of state.
    before: usize,
    /// Reads that may be under way at a time.
    depth: usize,
    /// Bytes of one read.
    piece: usize,
    /// Bytes that pre-copy is expected to give before there is nothing for now.
    expected: u64,
    /// The server said that there is no more; what is under way is only collected.
    draining: bool,
}

impl Source {
    pub(super) fn new(link: &Link) -> Result<Self, Error> {
        let apart = link.is_apart();
        Ok(match link.memory()? {
            Some(memory) => Self::Shared(Shared {
                apart,
                memory,
                first: 0,
                ahead: 0,
                before: 0,
                expected: 0,
                // On the main socket an access of the guest would wait for a long read, and for one ahead.
                depth: if apart { SLOTS - 1 } else { 1 },
                piece: if apart { SLOT } else { CHUNK },
                draining: false,
            }),
            None => Self::Messages(Messages {
                apart,
                buffer: vec![0; link.transfer_size.min(CHUNK)],
                short: false,
            }),
        })
    }

    /// Reads on. `stopped`: the device is in STOP_COPY, where the stream has an end.
    pub(super) fn next(&mut self, link: &Link, stopped: bool) -> Result<Progress, Error> {
        match self {
            Self::Messages(messages) => messages.next(link, stopped),
            Self::Shared(shared) => shared.next(link, stopped),
        }
    }

    /// The bytes of the last [`Progress::Data`].
    pub(super) fn data(&mut self, length: usize) -> Result<VolatileSlice<'_>, Error> {
        match self {
            Self::Messages(messages) => {
                let data = messages.buffer.get_mut(..length);
                data.map(VolatileSlice::from)
                    .ok_or(Error::OutOfRange { offset: 0, length })
            }
            Self::Shared(shared) => shared.memory.slot(shared.first + SLOTS - 1, 0, length),
        }
    }

    /// What pre-copy is expected to give before there is nothing for now, in bytes. A wish, nothing more.
    pub(super) fn expect(&mut self, bytes: u64) {
        if let Self::Shared(shared) = self {
            shared.expected = bytes;
        }
    }

    /// The device has changed its state: what ended before goes on.
    pub(super) fn state_changed(&mut self) {
        match self {
            Self::Messages(messages) => messages.short = false,
            Self::Shared(shared) => {
                shared.draining = false;
                shared.before = shared.ahead;
            }
        }
    }

    /// Collects what is under way and forgets it.
    pub(super) fn drain(&mut self, link: &Link) -> Result<(), Error> {
        match self {
            Self::Messages(_) => Ok(()),
            Self::Shared(shared) => shared.drain(link),
        }
    }
}

impl Messages {
    fn next(&mut self, link: &Link, stopped: bool) -> Result<Progress, Error> {
        let nothing = if stopped {
            Progress::End
        } else {
            Progress::Idle
        };
        if std::mem::take(&mut self.short) {
            return Ok(nothing);
        }
        let size = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        let request = MigData {
            argsz: size_u32::<MigData>().saturating_add(size),
            size,
        };
        let parts = [request.as_bytes()];
        // Copied out, so that the socket is free for the guest's accesses while the chunk is passed on.
        let length = link
            .data(self.apart)
            .call(Command::MigDataRead, &parts, &[], |body, _| {
                let mut reader = Reader::new(body);
                let reply: MigData = reader.take("mig_data")?;
                let data = reader.rest();
                let announced = usize::try_from(reply.size).unwrap_or(usize::MAX);
                expect_length("mig_data.data", data.len(), announced)?;
                match self.buffer.get_mut(..data.len()) {
                    Some(room) => room.copy_from_slice(data),
                    None => return Err(bad("mig_data.size", reply.size)),
                }
                Ok(data.len())
            })?;
        if length == 0 {
            return Ok(nothing);
        }
        self.short = length < self.buffer.len();
        Ok(Progress::Data(length))
    }
}

impl Shared {
    fn next(&mut self, link: &Link, stopped: bool) -> Result<Progress, Error> {
        loop {
            if self.draining && stopped {
                // Reads behind the end of the stream: whatever the server says to them.
                self.drain(link)?;
                return Ok(Progress::End);
            }
            if !self.draining {
                self.top_up(link, stopped)?;
            } else if self.ahead == 0 {
                self.draining = false;
                return Ok(Progress::Idle);
            }
            let was_running = self.before > 0 || !stopped;
            let (length, flags) = self.collect(link)?;
            let end = if was_running {
                SHM_END_OF_PRECOPY
            } else {
                SHM_END_OF_STREAM
            };
            // Also refused: neither data nor a reason for having none, which would be asked for ever.
            if flags & !end != 0 || (length == 0 && flags == 0) {
                return Err(refuse("mig_shm_read.flags", flags));
            }
            // What was nothing for now before the device stopped is no end after.
            self.draining |= flags != 0 && was_running != stopped;
            if length > 0 {
                self.expected = self.expected.saturating_sub(to_u64(length));
                return Ok(Progress::Data(length));
            }
        }
    }

    /// Sends as many reads ahead as may be; one in any case.
    fn top_up(&mut self, link: &Link, stopped: bool) -> Result<(), Error> {
        while self.ahead < self.depth {
            let asked = to_u64(self.ahead * self.piece);
            if self.ahead > 0 && !stopped && asked >= self.expected {
                break;
            }
            let request = ShmTransfer {
                argsz: size_u32::<ShmTransfer>(),
                flags: 0,
                offset: self.memory.offset(self.first + self.ahead),
                size: to_u64(self.piece),
            };
            link.data(self.apart)
                .send_ahead(Command::MigShmRead, &[request.as_bytes()])?;
            self.ahead += 1;
        }
        Ok(())
    }

    /// The reply to the oldest read: bytes and flags.
    fn collect(&mut self, link: &Link) -> Result<(usize, u32), Error> {
        let offset = self.memory.offset(self.first);
        self.first += 1;
        self.ahead -= 1;
        self.before = self.before.saturating_sub(1);
        let most = self.piece;
        link.data(self.apart).next_reply(|body| {
            let reply: ShmTransfer = Reader::new(body).take("mig_shm_read")?;
            if reply.offset != offset {
                return Err(bad("mig_shm_read.offset", reply.offset));
            }
            match usize::try_from(reply.size) {
                Ok(length) if length <= most => Ok((length, reply.flags)),
                _ => Err(bad("mig_shm_read.size", reply.size)),
            }
        })
    }

    fn drain(&mut self, link: &Link) -> Result<(), Error> {
        while self.ahead > 0 {
            match self.collect(link) {
                Ok(_) | Err(Error::Peer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn refuse(field: &'static str, value: impl Into<u64>) -> Error {
    Error::Reply {
        command: Command::MigShmRead,
        source: bad(field, value),
    }
}

fn bad(field: &'static str, value: impl Into<u64>) -> DecodeError {
    DecodeError::BadValue {
        field,
        value: value.into(),
    }
}
