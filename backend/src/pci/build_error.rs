// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a configuration space cannot be built. Each variant is one thing that no function can be.

use super::{BarError, CapabilityError};

/// Why there can be no such configuration space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Reading 0xffff is how software finds that there is no function.
    #[error("Vendor id 0xffff means that there is no device")]
    VendorId,
    /// The class code has 24 bits.
    #[error("Class code {0:#x} has more than 24 bits")]
    ClassCode(u32),
    /// The pin is 0 (none) or 1 to 4 (INTA to INTD).
    #[error("Interrupt pin {0}: must be 0 to 4")]
    InterruptPin(u8),
    /// There are six BARs.
    #[error("BAR {0}: must be 0 to 5")]
    BarIndex(u8),
    /// The BAR cannot be what it says.
    #[error("BAR {index} cannot be built")]
    Bar {
        /// Which one.
        index: u8,
        /// What is wrong with it.
        #[source]
        source: BarError,
    },
    /// BAR 5 has no next register for its upper half.
    #[error("BAR 5 cannot have 64 bits")]
    NoUpperHalf,
    /// The register was given twice, or is the upper half of a 64-bit BAR.
    #[error("BAR {0} is taken twice")]
    BarTaken(u8),
    /// The ROM register has address bits 31:11, and PCI limits the ROM to 16 MiB.
    #[error("ROM size {0:#x}: must be a power of two, 0x800 to 0x1000000")]
    RomSize(u32),
    /// A standard capability cannot be what it says.
    #[error("Capability {id:#04x} cannot be built")]
    Capability {
        /// Its id.
        id: u8,
        /// What is wrong with it.
        #[source]
        source: CapabilityError,
    },
    /// An extended capability cannot be what it says.
    #[error("Extended capability {id:#06x} cannot be built")]
    ExtendedCapability {
        /// Its id.
        id: u16,
        /// What is wrong with it.
        #[source]
        source: CapabilityError,
    },
    /// Software looks for the first of these and ignores the others.
    #[error("Capability {0:#04x} was given twice")]
    Duplicate(u8),
    /// Software looks for the first of these and ignores the others.
    #[error("Extended capability {0:#06x} was given twice")]
    DuplicateExtended(u16),
    /// A fixed offset is not a multiple of 4, or outside 0x40..0x100.
    #[error("Capability {id:#04x} cannot be at {offset:#x}")]
    BadOffset {
        /// Its id.
        id: u8,
        /// The offset asked for.
        offset: u16,
    },
    /// Two capabilities at fixed offsets want the same bytes.
    #[error("Capability {id:#04x} at {offset:#x} overlaps another")]
    Overlap {
        /// Its id.
        id: u8,
        /// The offset asked for.
        offset: u16,
    },
    /// No gap is large enough.
    #[error("No space left for capability {id:#04x} of {len} bytes")]
    NoSpace {
        /// Its id.
        id: u8,
        /// Its bytes.
        len: usize,
    },
    /// No gap is large enough.
    #[error("No space left for extended capability {id:#06x} of {len} bytes")]
    NoExtendedSpace {
        /// Its id.
        id: u16,
        /// Its bytes.
        len: usize,
    },
    /// Only PCI Express functions have extended configuration space.
    #[error("Extended capability {0:#06x} needs the PCI Express capability")]
    NotExpress(u16),
    /// The BAR that MSI-X names does not exist or is in I/O space.
    #[error("MSI-X {what} is in BAR {bar}, which is no memory BAR")]
    MsixBar {
        /// "table" or "PBA".
        what: &'static str,
        /// The BAR it names.
        bar: u8,
    },
    /// The table or the pending bits reach past the end of their BAR.
    #[error("MSI-X {what} ends at {end:#x}, past the {size:#x} bytes of BAR {bar}")]
    MsixOutside {
        /// "table" or "PBA".
        what: &'static str,
        /// The BAR it names.
        bar: u8,
        /// First byte after it.
        end: u64,
        /// Bytes in the BAR.
        size: u64,
    },
    /// Table and pending bits share bytes.
    #[error("MSI-X table and PBA overlap in BAR {0}")]
    MsixOverlap(u8),
}
