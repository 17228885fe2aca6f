// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the session asks of a device, whoever it is: the kernel's VFIO or the software GPU.
//!
//! A device does not know the protocol, and not the config space the guest sees: that is composed in
//! front of it ([`crate::pci`]). It is told of the changes that concern it.

mod areas;
pub mod kernel;
pub mod model;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::interrupts::{Delivery, IrqConfig, IrqInfo, IrqRequest};
use crate::memory::DirtyTracker;
use crate::migration::MigrationDriver;
use crate::pci::ConfigSpace;
use crate::quirks::Doorbell;
pub use areas::{Area, cut, pages};

/// Region indexes of a PCI device (linux/vfio.h, `VFIO_PCI_*_REGION_INDEX`).
pub mod region {
    /// The first BAR; BAR n is region n.
    pub const BAR0: u32 = 0;
    /// The last BAR.
    pub const BAR5: u32 = 5;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// The config space.
    pub const CONFIG: u32 = 7;
    /// Legacy VGA ranges.
    pub const VGA: u32 = 8;
    /// How many regions every PCI device has; device-specific ones follow.
    pub const COUNT: u32 = 9;
}

/// Why a device could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The range is not inside the region, or the region is not there.
    #[error("Access outside region {region}: offset {offset:#x}, {length} bytes")]
    OutOfRange {
        /// The region index.
        region: u32,
        /// Bytes from its start.
        offset: u64,
        /// How many bytes.
        length: usize,
    },
    /// The region does not take this kind of access.
    #[error("Region {region} cannot be {what}")]
    Denied {
        /// The region index.
        region: u32,
        /// "read" or "written".
        what: &'static str,
    },
    /// The device is being saved or loaded; its regions are closed.
    #[error("Region {region} is closed while the device is saved or loaded")]
    Migrating {
        /// The region index.
        region: u32,
    },
    /// The operating system refused.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The errno for the wire.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::OutOfRange { .. } => Errno::INVAL,
            Self::Denied { .. } => Errno::PERM,
            Self::Migrating { .. } => Errno::BUSY,
            Self::Io { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        }
    }
}

/// One region, as DEVICE_GET_REGION_INFO describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes; 0 where the device has no such region.
    pub size: u64,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
}

impl Region {
    /// Checks an access of `length` bytes at `offset`; `index` is for the error. A region that is not there takes
    /// none, not even an empty one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check(&self, index: u32, offset: u64, length: usize) -> Result<(), Error> {
        match offset.checked_add(length as u64) {
            Some(end) if self.size > 0 && end <= self.size => Ok(()),
            _ => Err(Error::OutOfRange {
                region: index,
                offset,
                length,
            }),
        }
    }
}

/// How the client may map a region, or parts of it.
#[derive(Debug)]
pub struct Mapping<'a> {
    /// What to map: a descriptor for the client to keep.
    pub fd: OwnedFd,
    /// Where the region begins in it, in bytes.
    pub offset: u64,
    /// The parts that may be mapped; `None` for the whole region.
    pub areas: Option<Cow<'a, [Area]>>,
}

/// Who asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// DEVICE_RESET.
    Client,
    /// The guest, by Initiate Function Level Reset.
    FunctionLevel,
    /// The client is gone.
    Disconnect,
}

/// A PCI device that one session drives.
///
/// All methods take `&self` and may be called from several threads; the session calls them in the order
/// of the client's messages. A method returns when its effect is complete. Only [`Self::reset`] may block
/// for long.
pub trait Device: Send + Sync + fmt::Debug {
    /// A short name for people, such as `model GPU, 64 MiB`.
    fn name(&self) -> String;

    /// What people may want to know of it: names and values.
    fn description(&self) -> Vec<(&'static str, String)> {
        vec![("name", self.name())]
    }

    /// The power-on config space of the device, which the composition starts from.
    fn config_space(&self) -> ConfigSpace;

    /// Reads config space as the device itself has it now; asked only where [`Self::config_space`] is live.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or what the device says.
    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let (region, length) = (region::CONFIG, data.len());
        Err(Error::OutOfRange {
            region,
            offset,
            length,
        })
    }

    /// Takes a guest's write to config space, without Initiate FLR; only where the space is live.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or what the device says.
    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let (region, length) = (region::CONFIG, data.len());
        Err(Error::OutOfRange {
            region,
            offset,
            length,
        })
    }

    /// Keeps the device from starting another DMA: the first step when a client is gone.
    ///
    /// # Errors
    /// What the device says; the session goes on cleaning up.
    fn stop_dma(&self) -> Result<(), Error> {
        Ok(())
    }

    /// How the device migrates, if it does.
    fn migration(&self) -> Option<&dyn MigrationDriver> {
        None
    }

    /// The device's own tracking of what it writes to guest memory, where it has that.
    fn dirty_tracker(&self) -> Option<Arc<dyn DirtyTracker>> {
        None
    }

    /// Becomes readable when whoever lent the device wants it back: the process must then let go of it.
    fn release_request(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether [`Self::reset`] works.
    fn resettable(&self) -> bool;

    /// What is at a region index; size 0 for nothing. The config region is not asked for here.
    fn region(&self, index: u32) -> Region;

    /// How a region may be mapped by the client, if at all.
    ///
    /// # Errors
    /// No descriptor could be had.
    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        let _ = index;
        Ok(None)
    }

    /// These parts of a region are served in front of the device: from now on no descriptor that a client gets
    /// may reach their pages. Told once, before the first client.
    fn trap(&self, region: u32, parts: &[Range<u64>]) {
        let _ = (region, parts);
    }

    /// Reads a device-specific region of this type, whole; `None` where the device has none.
    ///
    /// # Errors
    /// It is larger than `largest` bytes, or what the device says.
    fn specific(
        &self,
        region_type: u32,
        subtype: u32,
        largest: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let _ = (region_type, subtype, largest);
        Ok(None)
    }

    /// From now on the device is given this write whenever the eventfd is signalled; without one, no longer.
    ///
    /// # Errors
    /// [`Error::Denied`] where the device cannot do that, or what it says.
    fn set_doorbell(
        &self,
        doorbell: &Doorbell,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let _ = eventfd;
        Err(Error::Denied {
            region: doorbell.region,
            what: "written by an eventfd",
        })
    }

    /// Reads from a region other than config space.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or what the device says.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error>;

    /// Writes to a region other than config space.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or what the device says.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error>;

    /// What is at an interrupt index.
    fn irq(&self, index: u32) -> IrqInfo;

    /// Carries out a request that was checked against [`Self::irq`].
    ///
    /// # Errors
    /// What the operating system says of arming.
    fn set_irqs(&self, request: IrqRequest) -> Result<(), Error>;

    /// Chooses how the active interrupt mode is told; at attach.
    fn set_delivery(&self, delivery: Delivery);

    /// The guest's interrupt configuration changed (COMMAND, MSI, MSI-X control).
    fn set_irq_config(&self, config: IrqConfig);

    /// The guest masked or unmasked an MSI or MSI-X vector; only with [`Delivery::Composed`].
    fn set_vector_mask(&self, index: u32, vector: u32, masked: bool);

    /// Whether an event waits for the vector to be unmasked (the pending bits).
    fn vector_pending(&self, index: u32, vector: u32) -> bool;

    /// The PCI_STATUS interrupt bit.
    fn interrupt_status(&self) -> bool;

    /// Stops all activity and returns to the power-on state; the client's eventfds stay.
    ///
    /// # Errors
    /// What the device says; it may then be unusable.
    fn reset(&self, cause: ResetCause) -> Result<(), Error>;

    /// Forgets the client's eventfds. Called once it is gone, before [`Self::reset`].
    fn release_irqs(&self);
}
