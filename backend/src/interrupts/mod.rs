// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts: what a client may ask of them, and their delivery for a device without hardware.
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | the vocabulary: indexes, requests |
//! | `lines.rs` | [`Lines`]: level, mask, pending and eventfds of a software device |
//! | `resample.rs` | the thread that waits for a client's INTx unmask eventfd |
//! | `signal.rs` | one more on a client's eventfd, without waiting for the client |

mod lines;
mod resample;
mod signal;

use std::os::fd::OwnedFd;

pub use lines::{Delivery, IrqConfig, Lines, LinesState, NoSuchLine};
pub(crate) use signal::{prepare, signal};

/// The interrupt index of INTx (`VFIO_PCI_INTX_IRQ_INDEX` of linux/vfio.h).
pub const INTX: u32 = 0;
/// The interrupt index of MSI (`VFIO_PCI_MSI_IRQ_INDEX`).
pub const MSI: u32 = 1;
/// The interrupt index of MSI-X (`VFIO_PCI_MSIX_IRQ_INDEX`).
pub const MSIX: u32 = 2;
/// The interrupt index of uncorrectable errors (`VFIO_PCI_ERR_IRQ_INDEX`).
pub const ERR: u32 = 3;
/// The interrupt index of the request to release the device (`VFIO_PCI_REQ_IRQ_INDEX`).
pub const REQ: u32 = 4;
/// How many interrupt indexes a PCI device has (`VFIO_PCI_NUM_IRQS`).
pub const INDEXES: u32 = 5;

/// What a device offers at one interrupt index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many interrupts; 0 where the index is not offered.
    pub count: u32,
    /// Vectors can be masked and unmasked (`VFIO_IRQ_INFO_MASKABLE`).
    pub maskable: bool,
    /// Firing masks it until the client unmasks it (`VFIO_IRQ_INFO_AUTOMASKED`).
    pub automasked: bool,
    /// The set of vectors can only be replaced as a whole (`VFIO_IRQ_INFO_NORESIZE`).
    pub noresize: bool,
}

/// Vectors that one request means: all of a range, or those with a true byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// `count` vectors from `start`.
    Range {
        /// The first.
        start: u32,
        /// How many.
        count: u32,
    },
    /// One flag for each vector from `start` (`VFIO_IRQ_SET_DATA_BOOL`).
    Flags {
        /// The first.
        start: u32,
        /// Whether each vector is meant.
        flags: Vec<bool>,
    },
}

impl Vectors {
    /// The numbers of the vectors that are meant, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (start, count, flags) = match self {
            Self::Range { start, count } => (*start, *count, None),
            Self::Flags { start, flags } => (
                *start,
                u32::try_from(flags.len()).unwrap_or(u32::MAX),
                Some(flags),
            ),
        };
        (0..count)
            .filter(move |i| match flags {
                None => true,
                Some(flags) => flags.get(*i as usize).copied().unwrap_or(false),
            })
            .map(move |i| start.saturating_add(i))
    }
}

/// One DEVICE_SET_IRQS, checked against the device's [`IrqInfo`]: every vector is in range.
#[derive(Debug)]
pub enum IrqRequest {
    /// Give vectors from `start` their eventfds; `None` takes a vector's away.
    SetEventfds {
        /// The interrupt index.
        index: u32,
        /// The first vector.
        start: u32,
        /// One for each vector.
        eventfds: Vec<Option<OwnedFd>>,
    },
    /// Take away every eventfd of the index.
    Disable {
        /// The interrupt index.
        index: u32,
    },
    /// Fire as if the device had (loopback).
    Trigger {
        /// The interrupt index.
        index: u32,
        /// Which.
        vectors: Vectors,
    },
    /// Hold the vectors back.
    Mask {
        /// The interrupt index.
        index: u32,
        /// Which.
        vectors: Vectors,
    },
    /// Let the vectors through again, with what was held back.
    Unmask {
        /// The interrupt index.
        index: u32,
        /// Which.
        vectors: Vectors,
    },
    /// Unmask INTx whenever this eventfd fires (KVM's resample eventfd); `None` ends that.
    UnmaskEventfd {
        /// The client's eventfd.
        eventfd: Option<OwnedFd>,
    },
}

#[cfg(test)]
mod tests {
    use super::Vectors;

    #[test]
    fn vectors_name_what_is_meant() {
        let range = Vectors::Range { start: 4, count: 2 };
        assert_eq!(range.iter().collect::<Vec<_>>(), [4, 5]);
        let flags = Vectors::Flags {
            start: 4,
            flags: vec![false, true, true],
        };
        assert_eq!(flags.iter().collect::<Vec<_>>(), [5, 6]);
    }
}
