// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong with a v1 region, in words; only an errno goes further.

use rustix::io::Errno;

/// Why data cannot be taken out of a v1 region, or put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum V1Error {
    /// The kernel or the driver refused an access.
    #[error("{0}")]
    Refused(Errno),
    /// A register was accessed in part.
    #[error("The driver served register {register:#x} in part")]
    ShortRegister {
        /// Its offset.
        register: u64,
    },
    /// The driver's section is not in the data part of the region.
    #[error(
        "The driver names a section of {size} bytes at {offset:#x}, which is not in the data of a region of {region} bytes"
    )]
    Section {
        /// `data_offset`.
        offset: u64,
        /// `data_size`; 0 while resuming.
        size: u64,
        /// Bytes of the region.
        region: u64,
    },
    /// Part of a section was taken when the state changed, and now there is another.
    #[error("The driver gave up a section that was not yet read to its end")]
    SectionGone,
    /// The driver has data by one register and none by another.
    #[error("The driver says that {pending} bytes are pending and gives none")]
    NoProgress {
        /// `pending_bytes`.
        pending: u64,
    },
    /// The data section ends early.
    #[error("The region ends at {offset:#x}")]
    Ends {
        /// Where an access gave nothing.
        offset: u64,
    },
    /// A mapped part of the region is no longer there.
    #[error("The mapped memory of the region is gone")]
    Lost,
    /// The source's transaction does not fit.
    #[error(
        "A transaction of {needed} bytes or more does not fit into the {room} bytes that this device has for it: the source's data section is larger"
    )]
    TooLarge {
        /// Bytes so far.
        needed: u64,
        /// Bytes from `data_offset` to the end of the region.
        room: u64,
    },
    /// The stream ended, or was stopped, within a transaction.
    #[error("The last transaction is not complete")]
    Incomplete,
    /// An earlier failure; nothing more is asked of the driver.
    #[error("The transfer has failed before")]
    Failed,
    /// The transfer was ended by a change of state or a reset.
    #[error("The transfer is over")]
    Over,
}

impl V1Error {
    /// What the caller gets.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Refused(errno) => errno,
            Self::TooLarge { .. } => Errno::NOSPC,
            Self::Incomplete => Errno::INVAL,
            Self::Over => Errno::NODEV,
            Self::ShortRegister { .. }
            | Self::Section { .. }
            | Self::SectionGone
            | Self::NoProgress { .. }
            | Self::Ends { .. }
            | Self::Lost
            | Self::Failed => Errno::IO,
        }
    }

    /// Nothing was done, and the same may be asked again.
    pub(super) fn is_temporary(self) -> bool {
        self == Self::Refused(Errno::AGAIN)
    }
}
