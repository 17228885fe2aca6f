// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source of a migration.

use std::sync::Arc;

use vm_memory::{VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::link::Link;
use super::pending::{Estimate, Pending, PrecopyInfo};
use super::source::Source;
use crate::Error;
use crate::protocol::migration::MigrationState;

/// A device that is being saved. Dropping it before [`Self::finish`] cancels.
///
/// After a failure nothing but [`Self::cancel`] is of use: bytes of the stream may be lost.
#[derive(Debug)]
pub struct Saver {
    link: Arc<Link>,
    source: Source,
    phase: Phase,
    /// Where a cancelled transfer leads back to.
    before: MigrationState,
    estimate: Estimate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Without pre-copy there is nothing until the device stops.
    Waiting,
    PreCopy,
    StopCopy,
    /// The stream has been read to its end.
    Complete,
    /// Finished or cancelled.
    Over,
}

/// What the next piece of the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes, never 0.
    Data(usize),
    /// The device has nothing for now; a pass is over. Pre-copy goes on.
    Idle,
    /// The stream is complete.
    End,
}

/// A piece of the stream.
#[derive(Debug)]
pub enum Chunk<'a> {
    /// Bytes in memory that the server may share: to be copied or sent from there, not borrowed.
    Data(VolatileSlice<'a>),
    /// As [`Progress::Idle`].
    Idle,
    /// As [`Progress::End`].
    End,
}

impl Saver {
    pub(super) fn start(link: Arc<Link>, pre_copy: bool) -> Result<Self, Error> {
        link.take()?;
        let started = Source::new(&link).and_then(|source| Ok((source, link.state()?)));
        let (source, before) = started.inspect_err(|_| link.release())?;
        let mut saver = Self {
            link,
            source,
            phase: Phase::Waiting,
            before,
            estimate: Estimate::default(),
        };
        if pre_copy {
            saver.link.set_state(MigrationState::PreCopy)?;
            saver.phase = Phase::PreCopy;
            if saver.link.features.pending {
                saver.pending(false)?;
            }
            if saver.link.features.precopy_info && !saver.link.features.pending {
                saver.link.want_precopy_flags()?;
            }
        }
        Ok(saver)
    }

    /// Reads one chunk and passes it on to `sink`, straight from the memory it is in.
    ///
    /// # Errors
    /// [`Error::PassOn`] with what the sink says, else as [`Self::chunk`].
    pub fn iterate(&mut self, sink: &mut impl WriteVolatile) -> Result<Progress, Error> {
        match self.chunk()? {
            Chunk::Data(data) => {
                sink.write_all_volatile(&data).map_err(pass_on)?;
                Ok(Progress::Data(data.len()))
            }
            Chunk::Idle => Ok(Progress::Idle),
            Chunk::End => Ok(Progress::End),
        }
    }

    /// Reads one chunk, of at most 4 MiB. It is valid until the next call.
    ///
    /// # Errors
    /// [`Error::Peer`] with the device's errno, [`Error::Reply`] for data that was not asked for, and what a lost
    /// connection gives.
    pub fn chunk(&mut self) -> Result<Chunk<'_>, Error> {
        let stopped = match self.phase {
            Phase::PreCopy => false,
            Phase::StopCopy => true,
            Phase::Waiting => return Ok(Chunk::Idle),
            Phase::Complete | Phase::Over => return Ok(Chunk::End),
        };
        match self.source.next(&self.link, stopped)? {
            Progress::Data(length) => {
                self.estimate.read(length);
                Ok(Chunk::Data(self.source.data(length)?))
            }
            Progress::Idle => {
                self.estimate.nothing_for_now();
                Ok(Chunk::Idle)
            }
            Progress::End => {
                self.phase = Phase::Complete;
                Ok(Chunk::End)
            }
        }
    }

    /// What is still to be moved. `exact` asks the device, which begins another pass if it has one; else the last
    /// answer less what was read since. Chunks that were read ahead (4 MiB at the most, none when a pass is over)
    /// count as moved.
    ///
    /// # Errors
    /// [`Error::Peer`], and what a lost connection gives.
    pub fn pending(&mut self, exact: bool) -> Result<Pending, Error> {
        if matches!(self.phase, Phase::Complete | Phase::Over) {
            return Ok(Pending {
                initial_done: true,
                ..Pending::default()
            });
        }
        if self.link.features.pending {
            let pending = self.link.pending(exact)?;
            self.source.expect(pending.precopy());
            // Without pre-copy there is no initial data, and the server has no stream yet that could say so.
            let initial_done = pending.initial_done || self.phase == Phase::Waiting;
            return Ok(Pending {
                initial_done,
                ..pending
            });
        }
        // The size is of all that a stop-copy gives: once that runs, only counting down tells what is left.
        if self.estimate.is_empty() || (exact && self.phase != Phase::StopCopy) {
            let precopy = match self.phase {
                Phase::PreCopy if self.link.features.precopy_info => self.link.precopy_info()?,
                _ => None,
            };
            let precopy = precopy.unwrap_or_default();
            self.estimate.asked(self.link.stop_copy_size()?, precopy);
        }
        let pending = self.estimate.pending(self.phase == Phase::StopCopy);
        self.source.expect(pending.precopy());
        Ok(pending)
    }

    /// What pre-copy still has, flags included; `None` where the device cannot tell, or does not pre-copy now.
    ///
    /// # Errors
    /// As [`Self::pending`].
    pub fn precopy_info(&mut self) -> Result<Option<PrecopyInfo>, Error> {
        if self.phase != Phase::PreCopy || !self.link.features.precopy_info {
            return Ok(None);
        }
        self.link.precopy_info()
    }

    /// The device starts no more DMA to its peers (RUNNING_P2P, PRE_COPY_P2P). For VMs with several devices: all of
    /// them first, then [`Self::switch_over`] of each.
    ///
    /// # Errors
    /// [`Error::Peer`] (EINVAL without P2P states), and what a lost connection gives.
    pub fn quiesce_peers(&mut self) -> Result<(), Error> {
        match self.phase {
            Phase::Waiting => self.link.set_state(MigrationState::RunningP2p),
            Phase::PreCopy => self.link.set_state(MigrationState::PreCopyP2p),
            _ => Ok(()),
        }
    }

    /// Stops the device; what follows on the stream has an end. The VMM's vCPUs must have stopped before.
    ///
    /// # Errors
    /// [`Error::Peer`], and what a lost connection gives.
    pub fn switch_over(&mut self) -> Result<(), Error> {
        if !matches!(self.phase, Phase::Waiting | Phase::PreCopy) {
            return Err(Error::InvalidArgument("The device has switched over"));
        }
        self.link.set_state(MigrationState::StopCopy)?;
        self.source.state_changed();
        self.phase = Phase::StopCopy;
        Ok(())
    }

    /// Ends a transfer that was read to its end: the device is in STOP, and may be started again by
    /// [`super::Migration::set_state`] should the destination fail. To be called once the destination runs, so a
    /// failure never starts the source again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] before [`Progress::End`] (the transfer is then cancelled), [`Error::Peer`] (the
    /// device stands still, in STOP_COPY or ERROR), and what a lost connection gives.
    pub fn finish(mut self) -> Result<(), Error> {
        if self.phase != Phase::Complete {
            return Err(Error::InvalidArgument("The stream has not ended"));
        }
        self.phase = Phase::Over;
        self.link.set_state(MigrationState::Stop)
    }

    /// Gives up, at any point: the device goes on as it did before. After a channel that did not answer in time this
    /// waits for the driver, however long that takes.
    ///
    /// # Errors
    /// [`Error::Peer`] if it cannot (only a reset leads out of ERROR), and what a lost connection gives.
    pub fn cancel(mut self) -> Result<(), Error> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Over {
            return Ok(());
        }
        self.phase = Phase::Over;
        // Fails only with the channel; the main socket takes the state still.
        let _ = self.source.drain(&self.link);
        self.link.set_state(self.before)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.give_up();
        self.link.release();
    }
}

/// An error of the caller's side of the stream.
pub(super) fn pass_on(error: VolatileMemoryError) -> Error {
    Error::PassOn(match error {
        VolatileMemoryError::IOError(error) => error,
        other => std::io::Error::other(other),
    })
}
