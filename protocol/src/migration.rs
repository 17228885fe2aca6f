// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MIG_DATA_READ (17), MIG_DATA_WRITE (18), and the states between which they mean something.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The fixed part of MIG_DATA_READ (request and reply) and MIG_DATA_WRITE (request). Data follows the
/// reply of a read and the request of a write. A read that returns less than was asked for has no more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MigData {
    /// Bytes of this structure and the data.
    pub argsz: u32,
    /// Bytes of data.
    pub size: u32,
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// The states of migration (`enum vfio_device_mig_state`, linux/vfio.h).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum MigrationState {
            $($(#[$doc])* $name = $number,)*
        }

        impl MigrationState {
            /// All of them, in the order of their numbers.
            pub const ALL: [Self; 8] = [$(Self::$name),*];
        }

        impl TryFrom<u32> for MigrationState {
            type Error = u32;

            fn try_from(number: u32) -> Result<Self, u32> {
                match number {
                    $($number => Ok(Self::$name),)*
                    other => Err(other),
                }
            }
        }
    };
}

states! {
    /// The device failed; only a reset leads out.
    Error = 0,
    /// Nothing runs: no DMA, no interrupts, no change of internal state.
    Stop = 1,
    /// Normal work.
    Running = 2,
    /// Stopped, and the data stream gives the state.
    StopCopy = 3,
    /// Stopped, and the data stream takes a state.
    Resuming = 4,
    /// Running, but starts no DMA to its peers.
    RunningP2p = 5,
    /// Running, and the data stream gives what can be had of the state already.
    PreCopy = 6,
    /// Both.
    PreCopyP2p = 7,
}

impl From<MigrationState> for u32 {
    fn from(state: MigrationState) -> Self {
        state as Self
    }
}

impl std::fmt::Display for MigrationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Error => "ERROR",
            Self::Stop => "STOP",
            Self::Running => "RUNNING",
            Self::StopCopy => "STOP_COPY",
            Self::Resuming => "RESUMING",
            Self::RunningP2p => "RUNNING_P2P",
            Self::PreCopy => "PRE_COPY",
            Self::PreCopyP2p => "PRE_COPY_P2P",
        })
    }
}
