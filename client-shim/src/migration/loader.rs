// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The destination of a migration.

use std::sync::Arc;

use vm_memory::{ReadVolatile, VolatileSlice};

use super::link::Link;
use super::saver::pass_on;
use super::sink::Sink;
use crate::Error;
use crate::protocol::migration::MigrationState;

/// A device that is being loaded. Dropping it before [`Self::finish`] resets the device.
///
/// The stream may be cut anywhere; it is collected here and goes on in larger chunks, so an error of the server
/// may come with a later call.
#[derive(Debug)]
pub struct Loader {
    link: Arc<Link>,
    sink: Sink,
    over: bool,
}

impl Loader {
    pub(super) fn start(link: Arc<Link>) -> Result<Self, Error> {
        link.take()?;
        match Self::resume(&link) {
            Ok(sink) => Ok(Self {
                link,
                sink,
                over: false,
            }),
            Err(error) => {
                link.release();
                Err(error)
            }
        }
    }

    fn resume(link: &Link) -> Result<Sink, Error> {
        let before = link.state()?;
        let sink = Sink::new(link)?;
        link.set_state(MigrationState::Resuming).inspect_err(|_| {
            // The way there leads through STOP.
            let _ = link.set_state(before);
        })?;
        Ok(sink)
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`Error::Peer`] where the server refuses the stream (EPROTO; its reason with `explain`), and what a lost
    /// connection gives.
    pub fn load(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            self.load_from(&mut data)?;
        }
        Ok(())
    }

    /// Takes the next bytes of the stream from shared memory, such as a [`super::Chunk`] of a saver.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_volatile(&mut self, data: &VolatileSlice<'_>) -> Result<(), Error> {
        let mut done = 0;
        while done < data.len() {
            let room = self.sink.room(&self.link)?;
            let length = room.len().min(data.len() - done);
            let part = data.subslice(done, length);
            let part = part.map_err(pass_on)?;
            part.copy_to_volatile_slice(room);
            self.sink.fill(&self.link, length)?;
            done += length;
        }
        Ok(())
    }

    /// Reads the next bytes of the stream from a socket, pipe or file to where they go, in one read; 0 at its end.
    ///
    /// # Errors
    /// [`Error::PassOn`] with what `stream` says, else as [`Self::load`].
    pub fn load_from(&mut self, stream: &mut impl ReadVolatile) -> Result<usize, Error> {
        let mut room = self.sink.room(&self.link)?;
        let length = loop {
            match stream.read_volatile(&mut room).map_err(pass_on) {
                Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
                other => break other?,
            }
        };
        self.sink.fill(&self.link, length)?;
        Ok(length)
    }

    /// The server has all that was taken when this returns.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.sink.flush(&self.link)
    }

    /// Whether the initial data that the source sent is loaded, so that it may switch over. A server without
    /// `pending` cannot tell, and is taken to be ready.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn ready(&mut self) -> Result<bool, Error> {
        self.flush()?;
        if !self.link.features.pending {
            return Ok(true);
        }
        Ok(self.link.pending(false)?.initial_done)
    }

    /// Ends a transfer whose stream is complete: the device is as it was at the source, and runs if `run`, else is
    /// in STOP.
    ///
    /// # Errors
    /// [`Error::Peer`] where the stream is not complete or not right (the device has then been reset), and what a
    /// lost connection gives.
    pub fn finish(mut self, run: bool) -> Result<(), Error> {
        self.flush()?;
        self.link.set_state(if run {
            MigrationState::Running
        } else {
            MigrationState::Stop
        })?;
        self.over = true;
        Ok(())
    }

    /// Gives up, at any point: the device is reset.
    ///
    /// # Errors
    /// [`Error::Peer`], and what a lost connection gives.
    pub fn cancel(mut self) -> Result<(), Error> {
        self.give_up()
    }

    fn give_up(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        // What is under way ends with the reset, not before it if the device is slow.
        let reset = self.link.reset();
        // Fails only with the channel, which the reset did not need.
        let _ = self.sink.discard(&self.link);
        reset
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.give_up();
        self.link.release();
    }
}
