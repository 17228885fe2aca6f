// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stream of a device that is loaded: collected into chunks, which go by message or stay in shared memory, with
//! writes sent ahead.

use std::sync::Arc;

use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::link::Link;
use super::memory::{CHUNK, SLOT, SLOTS, SharedMemory, to_u64};
use crate::Error;
use crate::info::size_u32;
use crate::protocol::Command;
use crate::protocol::extension::migration::ShmTransfer;
use crate::protocol::migration::MigData;

/// A chunk that fills, and how it goes.
#[derive(Debug)]
pub(super) struct Sink {
    way: Way,
    /// Bytes in the chunk.
    filled: usize,
    /// Bytes that it can have.
    size: usize,
}

#[derive(Debug)]
enum Way {
    Messages {
        /// Over the channel.
        apart: bool,
        buffer: Vec<u8>,
    },
    Shared(Shared),
}

#[derive(Debug)]
struct Shared {
    /// Over the channel.
    apart: bool,
    memory: Arc<SharedMemory>,
    /// The slot that fills, counted without end.
    slot: usize,
    /// Writes under way: the slots before it.
    ahead: usize,
    /// Writes that may be under way at a time.
    depth: usize,
}

impl Sink {
    pub(super) fn new(link: &Link) -> Result<Self, Error> {
        let apart = link.is_apart();
        let (way, size) = match link.memory()? {
            Some(memory) => {
                let way = Way::Shared(Shared {
                    apart,
                    memory,
                    slot: 0,
                    ahead: 0,
                    // As for a source.
                    depth: if apart { SLOTS - 1 } else { 0 },
                });
                (way, if apart { SLOT } else { CHUNK })
            }
            None => {
                let size = link.transfer_size.min(CHUNK);
                let buffer = vec![0; size];
                (Way::Messages { apart, buffer }, size)
            }
        };
        Ok(Self {
            way,
            filled: 0,
            size,
        })
    }

    /// Where the next bytes go; never empty.
    pub(super) fn room(&mut self, link: &Link) -> Result<VolatileSlice<'_>, Error> {
        if self.filled == self.size {
            self.send(link)?;
        }
        let (start, length) = (self.filled, self.size - self.filled);
        let out_of_range = Error::OutOfRange {
            offset: to_u64(start),
            length,
        };
        match &mut self.way {
            Way::Messages { buffer, .. } => buffer
                .get_mut(start..)
                .map(VolatileSlice::from)
                .ok_or(out_of_range),
            Way::Shared(shared) => shared.memory.slot(shared.slot, start, length),
        }
    }

    /// So many bytes were put at the start of [`Self::room`]. A full chunk goes at once.
    pub(super) fn fill(&mut self, link: &Link, bytes: usize) -> Result<(), Error> {
        self.filled = self.filled.saturating_add(bytes).min(self.size);
        if self.filled == self.size {
            self.send(link)?;
        }
        Ok(())
    }

    /// The server has all of it when this returns.
    pub(super) fn flush(&mut self, link: &Link) -> Result<(), Error> {
        self.send(link)?;
        if let Way::Shared(shared) = &mut self.way {
            shared.wait(link, 0)?;
        }
        Ok(())
    }

    fn send(&mut self, link: &Link) -> Result<(), Error> {
        let length = std::mem::take(&mut self.filled);
        if length == 0 {
            return Ok(());
        }
        match &mut self.way {
            Way::Messages { apart, buffer } => {
                let size = u32::try_from(length).unwrap_or(u32::MAX);
                let request = MigData {
                    argsz: size_u32::<MigData>().saturating_add(size),
                    size,
                };
                let data = buffer.get(..length).unwrap_or_default();
                let parts = [request.as_bytes(), data];
                // Servers differ in whether they repeat the request.
                link.data(*apart)
                    .call(Command::MigDataWrite, &parts, &[], |_, _| Ok(()))
            }
            Way::Shared(shared) => shared.send(link, length),
        }
    }

    /// Collects what is under way and forgets it, and what was not sent.
    pub(super) fn discard(&mut self, link: &Link) -> Result<(), Error> {
        self.filled = 0;
        if let Way::Shared(shared) = &mut self.way {
            while shared.ahead > 0 {
                match shared.wait(link, shared.ahead - 1) {
                    Ok(()) | Err(Error::Peer { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    fn send(&mut self, link: &Link, length: usize) -> Result<(), Error> {
        let request = ShmTransfer {
            argsz: size_u32::<ShmTransfer>(),
            flags: 0,
            offset: self.memory.offset(self.slot),
            size: to_u64(length),
        };
        link.data(self.apart)
            .send_ahead(Command::MigShmWrite, &[request.as_bytes()])?;
        self.slot += 1;
        self.ahead += 1;
        self.wait(link, self.depth)
    }

    /// Waits until no more writes than `most` are under way.
    fn wait(&mut self, link: &Link, most: usize) -> Result<(), Error> {
        while self.ahead > most {
            self.ahead -= 1;
            link.data(self.apart).next_reply(|_| Ok(()))?;
        }
        Ok(())
    }
}
