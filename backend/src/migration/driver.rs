// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What migration asks of a device: the interface of `linux/vfio.h` (migration v2), whoever is behind it.
//!
//! Nothing a driver answers is believed unchecked: sizes may be garbage, states wrong, reads short.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use vfio_user_protocol::feature::{MIGRATION_P2P, MIGRATION_PRE_COPY, MIGRATION_STOP_COPY};
use vfio_user_protocol::migration::MigrationState;
use vm_memory::VolatileSlice;

/// Which states a driver has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Support {
    /// RUNNING_P2P, and PRE_COPY_P2P where there is pre-copy.
    pub p2p: bool,
    /// PRE_COPY.
    pub pre_copy: bool,
}

impl Support {
    /// From the flags of `VFIO_DEVICE_FEATURE_MIGRATION`; `None` without STOP_COPY, which all need.
    #[must_use]
    pub fn from_flags(flags: u64) -> Option<Self> {
        (flags & MIGRATION_STOP_COPY != 0).then_some(Self {
            p2p: flags & MIGRATION_P2P != 0,
            pre_copy: flags & MIGRATION_PRE_COPY != 0,
        })
    }

    /// The flags of `VFIO_DEVICE_FEATURE_MIGRATION`.
    #[must_use]
    pub fn flags(self) -> u64 {
        let mut flags = MIGRATION_STOP_COPY;
        flags |= if self.p2p { MIGRATION_P2P } else { 0 };
        flags |= if self.pre_copy { MIGRATION_PRE_COPY } else { 0 };
        flags
    }
}

/// A device that migrates. One for each device; the migration session calls it from one thread at a time.
///
/// Every call may block for long (a device may save gigabytes in one change of state). A reset of the
/// device by another thread ends the call, and then the stream is dead (ENODEV).
pub trait MigrationDriver: Send + Sync + fmt::Debug {
    /// Which states there are. Does not change.
    fn support(&self) -> Support;

    /// What the data on the stream belongs to: the driver and the version of its data, such as `mlx5_vfio_pci`
    /// or `model 3`. Source and destination must agree. Empty if not known, which agrees with everything.
    fn data_version(&self) -> String;

    /// The state the device is in.
    ///
    /// # Errors
    /// What the driver says.
    fn state(&self) -> Result<MigrationState, Errno>;

    /// Takes one arc of the state machine; only arcs of [`super::states`] are asked for. Returns the data
    /// stream that entering PRE_COPY, STOP_COPY (from STOP) or RESUMING opens.
    ///
    /// # Errors
    /// What the driver says; [`Self::state`] then tells where the device is.
    fn set_state(&self, next: MigrationState) -> Result<Option<Box<dyn DataStream>>, Errno>;

    /// `VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`: about how many bytes a stop-copy would give, in any state.
    ///
    /// # Errors
    /// ENOTTY where the driver cannot say.
    fn stop_copy_size(&self) -> Result<u64, Errno>;
}

/// What one read of a data stream gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes; 0 is the end of the stream in STOP_COPY and nothing for now in PRE_COPY.
    pub length: usize,
    /// The device wants what it gave since the last end to be given back in one transaction (v1 only).
    pub ends_transaction: bool,
}

/// What `VFIO_MIG_GET_PRECOPY_INFO` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Bytes of initial data left.
    pub initial: u64,
    /// Bytes that changed.
    pub dirty: u64,
    /// New initial data is on the stream.
    pub reinit: bool,
}

/// Memory of a device that can be sent from where it lies. Others may change what is in it.
pub trait Lend: Send + Sync + fmt::Debug {
    /// A part, in bytes; `None` if it is not all inside.
    fn part(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>>;
}

/// A part of it, taken from a [`DataStream`]. It stays as long as this value.
#[derive(Clone, Debug)]
pub struct Lent {
    /// Of whose memory.
    pub memory: Arc<dyn Lend>,
    /// Bytes from its start.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

impl Lent {
    /// The bytes; `None` for a part that is not there.
    #[must_use]
    pub fn bytes(&self) -> Option<VolatileSlice<'_>> {
        self.memory.part(self.offset, self.length)
    }
}

/// The data stream of a device: readable while it is saved, writable while it is resumed. A sequence of bytes,
/// segmented freely.
pub trait DataStream: Send + fmt::Debug {
    /// Reads up to the length of `into`; may be short, and may block.
    ///
    /// # Errors
    /// ENOMSG for nothing for now (PRE_COPY), EINTR, EAGAIN, ENODEV once the transfer is over, or a failure.
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<Taken, Errno>;

    /// In STOP_COPY, instead of a read: the next bytes where they lie, `most` of them at the most. `None` if they must be
    /// read, as with all devices whose data comes out of a file descriptor.
    fn lend(&mut self, most: usize) -> Option<Lent> {
        let _ = most;
        None
    }

    /// Writes from the start of `from`; may be short, and may block. `ends_transaction` is that of the source's
    /// [`Taken`] and belongs to the last byte of `from`.
    ///
    /// # Errors
    /// EINTR, EAGAIN, ENODEV once the transfer is over, or a failure.
    fn write(&mut self, from: &VolatileSlice<'_>, ends_transaction: bool) -> Result<usize, Errno>;

    /// Waits until data can move, after EAGAIN.
    ///
    /// # Errors
    /// What the driver says; EAGAIN where there is no waiting.
    fn wait(&mut self) -> Result<(), Errno> {
        Err(Errno::AGAIN)
    }

    /// What is left of pre-copy. Drivers begin another pass only when asked.
    ///
    /// # Errors
    /// EINVAL outside PRE_COPY and PRE_COPY_P2P, ENOTTY where there is no pre-copy.
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno>;
}
