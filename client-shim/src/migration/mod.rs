// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Saving and loading a device, as a VMM's migration thread does it. The data is the server's own stream: bytes
//! in, bytes out, segmented freely.
//!
//! | | |
//! |---|---|
//! | [`Migration`] | what the device can do, its state, its sizes |
//! | [`Saver`] | source: iterate, pending, switch over, finish, or cancel |
//! | [`Loader`] | destination: load, ready, finish, or cancel |
//! | [`Pending`] | what is still to be moved, and how long that takes |
//!
//! When to switch over is the VMM's own policy; `vfio-user-ctl` has one.
//!
//! Where the server grants `mig_channel` all of it goes over a socket of its own, so that no access of the guest
//! waits for a save; with `mig_shm` the data goes through shared memory, several chunks under way at a time. A
//! server that has only the specification gets MIG_DATA_READ and MIG_DATA_WRITE on the main socket.
//!
//! ```no_run
//! # use std::{os::unix::net::UnixStream, time::Duration};
//! # use vfio_user_client::{Client, Error};
//! # use vfio_user_client::migration::Progress;
//! # fn save(client: &Client, stream: &mut UnixStream, bytes_per_second: f64) -> Result<(), Error> {
//! let migration = client.migration()?.expect("a device that migrates");
//! let mut saver = migration.save(true)?;
//! let limit = Duration::from_millis(300);
//! loop {
//!     while let Progress::Data(_) = saver.iterate(stream)? {}
//!     let pending = saver.pending(true)?;
//!     let expected = pending.expected(bytes_per_second);
//!     if pending.initial_done && expected.is_some_and(|expected| expected <= limit) {
//!         break;
//!     }
//!     // Here it goes on for ever; a VMM calls `saver.cancel()` once that does not get any lower.
//! }
//! // The VMM stops its vCPUs here.
//! saver.switch_over()?;
//! while saver.iterate(stream)? != Progress::End {}
//! saver.finish()
//! # }
//! ```

mod link;
mod loader;
mod memory;
mod pending;
mod saver;
mod sink;
mod source;

use std::sync::Arc;

use crate::feature::is_unsupported;
use crate::protocol::feature;
use crate::protocol::migration::MigrationState;
use crate::{Client, Error};

pub(crate) use link::Link;
pub use loader::Loader;
pub use pending::{Pending, PrecopyInfo};
pub use saver::{Chunk, Progress, Saver};

/// The migration of one device. A clone stands for the same.
#[derive(Clone, Debug)]
pub struct Migration {
    link: Arc<Link>,
    support: Support,
}

/// Which states there are beside STOP, RUNNING, STOP_COPY and RESUMING.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// PRE_COPY.
    pub pre_copy: bool,
    /// RUNNING_P2P, and PRE_COPY_P2P where there is pre-copy.
    pub p2p: bool,
}

impl Client {
    /// The device's migration; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::Peer`] for other refusals, and what a lost connection gives.
    pub fn migration(&self) -> Result<Option<Migration>, Error> {
        let link = self.link()?;
        let flags: u64 = match link.feature_get(feature::MIGRATION) {
            Ok(flags) => flags,
            Err(error) if is_unsupported(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let support = Support {
            pre_copy: flags & feature::MIGRATION_PRE_COPY != 0,
            p2p: flags & feature::MIGRATION_P2P != 0,
        };
        let migrates = flags & feature::MIGRATION_STOP_COPY != 0;
        Ok(migrates.then_some(Migration { link, support }))
    }
}

impl Migration {
    /// Which states there are.
    #[must_use]
    pub fn support(&self) -> Support {
        self.support
    }

    /// The state of the device.
    ///
    /// # Errors
    /// [`Error::Peer`], [`Error::Reply`] for a number that is no state, and what a lost connection gives.
    pub fn state(&self) -> Result<MigrationState, Error> {
        self.link.state()
    }

    /// Changes the state; the server takes the shortest way. Beside a [`Saver`] or [`Loader`] only the VMM's own
    /// stopping and starting (STOP, RUNNING) belongs here.
    ///
    /// # Errors
    /// [`Error::Peer`] (EINVAL where no way leads; [`Self::state`] then tells where the device is), and what a lost
    /// connection gives.
    pub fn set_state(&self, state: MigrationState) -> Result<(), Error> {
        self.link.set_state(state)
    }

    /// About how many bytes a stop-copy would give; `None` where the device cannot tell.
    ///
    /// # Errors
    /// [`Error::Peer`] for other refusals, and what a lost connection gives.
    pub fn stop_copy_size(&self) -> Result<Option<u64>, Error> {
        self.link.stop_copy_size()
    }

    /// Begins to save: with `pre_copy` (and a device that has it) while the device runs, else nothing happens
    /// until [`Saver::switch_over`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] while another transfer is under way, [`Error::Peer`], [`Error::SharedMemory`],
    /// and what a lost connection gives.
    pub fn save(&self, pre_copy: bool) -> Result<Saver, Error> {
        Saver::start(Arc::clone(&self.link), pre_copy && self.support.pre_copy)
    }

    /// Begins to load: the device stops and takes a stream.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn load(&self) -> Result<Loader, Error> {
        Loader::start(Arc::clone(&self.link))
    }
}

#[cfg(test)]
mod tests;
