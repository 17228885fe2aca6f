// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why one request is refused, and the errno that says so.

use std::io;

use rustix::io::Errno;
use vfio_user_protocol::DecodeError;

use super::irqs::IrqError;
use crate::memory::{LoggingError, MapError};
use crate::{device, migration};

/// Why one request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is malformed.
    #[error("Malformed request")]
    Decode(#[from] DecodeError),
    /// The device, or the region, says no.
    #[error("Refused by the device")]
    Device(#[from] device::Error),
    /// The guest memory cannot be mapped or unmapped.
    #[error("Guest memory")]
    Map(#[from] MapError),
    /// What the device writes cannot be logged as asked.
    #[error("DMA logging")]
    Logging(#[from] LoggingError),
    /// The interrupt request makes no sense.
    #[error("Interrupt request")]
    Irq(#[source] IrqErrorSource),
    /// Migration does not go that way.
    #[error(transparent)]
    Migration(#[from] migration::Error),
    /// The command is not for now, or not for here.
    #[error("{0}")]
    Unexpected(&'static str),
    /// The operating system refused.
    #[error("{what}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The cause of [`Refusal::Irq`], opaque to other crates.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct IrqErrorSource(#[from] IrqError);

impl From<IrqError> for Refusal {
    fn from(error: IrqError) -> Self {
        Self::Irq(error.into())
    }
}

impl Refusal {
    /// The errno for the wire.
    pub(super) fn errno(&self) -> u32 {
        let errno = match self {
            Self::Decode(_) | Self::Irq(_) | Self::Unexpected(_) => Errno::INVAL,
            Self::Device(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Logging(error) => error.errno(),
            Self::Migration(error) => error.errno(),
            Self::Os { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        };
        errno.raw_os_error().unsigned_abs()
    }

    /// A value that is not allowed.
    pub(super) fn bad(field: &'static str, value: u64) -> Self {
        DecodeError::BadValue { field, value }.into()
    }
}
