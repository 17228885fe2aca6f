// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a migration command is refused or fails.

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState;

use super::guest::Difference;
use super::record::StreamError;
use super::states::IllegalChange;

/// Why a migration command is refused or fails.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The device does not migrate.
    #[error("The device does not migrate")]
    NotSupported,
    /// Not a number of a state.
    #[error("{0} is no migration state")]
    NoState(u32),
    /// The state machine has no such change.
    #[error("Change of state refused")]
    Illegal(#[from] IllegalChange),
    /// Data is read and written in other states.
    #[error("{what} in {state}")]
    WrongState {
        /// What was asked for.
        what: &'static str,
        /// The state the device is in.
        state: MigrationState,
    },
    /// The driver refused or failed.
    #[error("{what}: {errno}")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The driver refused a change of state.
    #[error("The driver did not change to {to}, the device is in {now}: {errno}")]
    NotChanged {
        /// Where to.
        to: MigrationState,
        /// Where it is.
        now: MigrationState,
        /// The driver's errno.
        errno: Errno,
    },
    /// The device was reset while its state was being changed.
    #[error("The device was reset meanwhile")]
    Reset,
    /// The driver opened a stream while one was open, or none where one belongs.
    #[error("The driver's data stream is out of step with its state")]
    OutOfStep,
    /// The stream is not right.
    #[error("The stream is refused")]
    Stream(#[from] StreamError),
    /// Shared memory was truncated while a piece of the stream was read from it.
    #[error("A piece of the stream was lost: the shared memory was truncated")]
    Lost,
    /// The stream comes from another device.
    #[error("The stream is of another device: {}", list(.0))]
    Incompatible(Vec<Difference>),
    /// What the guest set up does not fit.
    #[error("The guest's state does not fit this device: {0}")]
    Guest(String),
    /// The stream was refused before; the device is reset when RESUMING is left.
    #[error("This load has failed: {0}")]
    Failed(String),
    /// The device was reset after a load that failed, and that did not work either.
    #[error("The device could not be reset after a failed load: {0}")]
    NotReset(String),
}

/// The first few of them: names and values are the source's, and as long as it likes.
fn list(differences: &[Difference]) -> String {
    const SHOWN: usize = 16;
    const CHARACTERS: usize = 200;
    let shown = differences.iter().take(SHOWN);
    let mut parts: Vec<String> = shown
        .map(|difference| difference.to_string().chars().take(CHARACTERS).collect())
        .collect();
    if let Some(more) = differences
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        parts.push(format!("and {more} more"));
    }
    parts.join("; ")
}

impl Error {
    /// The errno for the wire.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            // What the reference library answers and QEMU takes for "not supported", as the kernel's ENOTTY.
            Self::NotSupported | Self::NoState(_) | Self::Illegal(_) | Self::WrongState { .. } => {
                Errno::INVAL
            }
            Self::Driver { errno, .. } | Self::NotChanged { errno, .. } => *errno,
            Self::Reset => Errno::NODEV,
            Self::Lost => Errno::FAULT,
            Self::OutOfStep => Errno::BADFD,
            Self::Stream(_) | Self::Incompatible(_) | Self::Guest(_) | Self::Failed(_) => {
                Errno::PROTO
            }
            Self::NotReset(_) => Errno::IO,
        }
    }
}
