// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel graphics in the processor (IGD). It lives in memory of the host: firmware reserves some for it (stolen
//! memory), puts a table into other (the OpRegion: what is connected to it and how), and writes both addresses
//! into config space. None of these may reach a guest, and no guest's into the hardware.
//!
//! | file | job |
//! |---|---|
//! | `generation.rs` | which registers a part has, by its device id |
//! | `registers.rs` | ASLS, BDSM and GMCH as registers that exist here alone, and their mirrors in BAR0 |
//! | `opregion.rs` | the OpRegion of the device: checked, and freed of host addresses |
//! | `placement.rs` | the copy of it that guest firmware asks for |
//!
//! Sources: Intel's ACPI IGD OpRegion specification; the kernel's `vfio_pci_igd.c` and i915; QEMU's
//! docs/igd-assign.txt.

mod generation;
mod opregion;
mod placement;
mod registers;

use std::io;
use std::sync::Arc;

use super::{Quirk, SpecificKind, SpecificRegion, Traits, VENDOR_INTEL};
use crate::device;
use crate::pci::ConfigSpace;
pub use generation::{Generation, GmsError};
pub use opregion::{OpRegion, OpRegionError};
use placement::Placement;

/// `VFIO_REGION_TYPE_PCI_VENDOR_TYPE` with Intel's id.
const REGION_TYPE: u32 = 0x8000_8086;
/// The OpRegion, with the video BIOS table behind it.
const OPREGION: SpecificKind = SpecificKind {
    region_type: REGION_TYPE,
    subtype: 1,
    name: "OpRegion",
};
/// The host bridge and the ISA bridge, whose ids a driver looks at: config space of either.
const BRIDGES: [SpecificKind; 2] = [
    SpecificKind {
        region_type: REGION_TYPE,
        subtype: 2,
        name: "host bridge",
    },
    SpecificKind {
        region_type: REGION_TYPE,
        subtype: 3,
        name: "LPC bridge",
    },
];
/// No bridge's config space is larger, in bytes.
const BRIDGE_SIZE: u64 = 4096;

/// Ids, revision and class, header type, subsystem.
const BRIDGE_IDENTITY: [std::ops::Range<usize>; 4] = [0..4, 8..12, 0x0e..0x0f, 0x2c..0x30];

/// What becomes of the OpRegion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpRegionUse {
    /// It is not read.
    Off,
    /// The client gets it, as a region.
    #[default]
    Serve,
    /// And guest firmware a copy, where it asks for one.
    Copy,
}

/// The operator's choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IgdView {
    /// What becomes of the OpRegion.
    pub opregion: OpRegionUse,
    /// What the guest is told of the size of stolen memory, in the coding of the part's GMCH register.
    pub gms: Option<u8>,
}

/// Why Intel graphics cannot be shown as asked.
#[derive(Debug, thiserror::Error)]
pub enum IgdError {
    /// The device is no such part.
    #[error("--igd-gms: the device is no Intel graphics of a known generation")]
    NotIgd,
    /// The size cannot be said.
    #[error(transparent)]
    Gms(#[from] GmsError),
    /// The OpRegion is not what it should be.
    #[error("OpRegion of the device (--igd-opregion off serves without)")]
    OpRegion(#[from] OpRegionError),
    /// A region cannot be read.
    #[error("{0} of the device not read")]
    Read(&'static str, #[source] device::Error),
    /// No memory for the copy of the OpRegion.
    #[error("Memory for the OpRegion")]
    Memory(#[source] io::Error),
    /// There is nothing to copy.
    #[error("--igd-opregion copy: the device has no OpRegion")]
    NoOpRegion,
}

/// What a function in front of Intel graphics has more.
#[derive(Debug, Default)]
pub struct Igd {
    /// Its quirks.
    pub quirks: Vec<Box<dyn Quirk>>,
    /// What the client gets to read.
    pub regions: Vec<SpecificRegion>,
}

/// Makes the registers of `config` its own, and fetches what the device's host shows of it. Nothing, for any other
/// device.
///
/// # Errors
/// [`IgdError`]; the function is not to be served then.
pub fn compose(
    view: &IgdView,
    traits: &Traits,
    device: &dyn device::Device,
    config: &mut ConfigSpace,
) -> Result<Igd, IgdError> {
    let mut igd = Igd::default();
    match find(traits) {
        Some(generation) => {
            let bar0 = registers::virtualize(generation, view.gms, config)?;
            igd.quirks.push(Box::new(bar0));
        }
        None if view.gms.is_some() => return Err(IgdError::NotIgd),
        // Boards of their own have their own memory, and their driver finds it by these registers.
        None if traits.is_display(VENDOR_INTEL) && !config.is_express_endpoint() => {
            igd.quirks
                .push(Box::new(registers::virtualize_unknown(config)));
        }
        None => {}
    }
    if traits.is_display(VENDOR_INTEL) {
        // Parts of every generation have this one.
        registers::virtualize_asls(config);
    } else if view.opregion == OpRegionUse::Copy {
        return Err(IgdError::NoOpRegion);
    } else {
        return Ok(igd);
    }
    if view.opregion == OpRegionUse::Off {
        return Ok(igd);
    }
    let fetch = |kind: SpecificKind, largest| {
        let read = device.specific(kind.region_type, kind.subtype, largest);
        read.map_err(|error| IgdError::Read(kind.name, error))
    };
    match fetch(OPREGION, OpRegion::LARGEST)? {
        Some(bytes) => {
            let opregion = OpRegion::new(bytes)?;
            if view.opregion == OpRegionUse::Copy {
                let bytes = Arc::from(opregion.bytes());
                igd.quirks.push(Box::new(Placement::new(bytes)));
            }
            let bytes = opregion.into_bytes();
            let region = SpecificRegion::mappable(OPREGION, bytes).map_err(IgdError::Memory)?;
            igd.regions.push(region);
        }
        None if view.opregion == OpRegionUse::Copy => return Err(IgdError::NoOpRegion),
        None => {}
    }
    for kind in BRIDGES {
        if let Some(mut bytes) = fetch(kind, BRIDGE_SIZE)? {
            keep_identity(&mut bytes);
            igd.regions.push(SpecificRegion::trapped(kind, bytes));
        }
    }
    Ok(igd)
}

/// Leaves of a bridge's config space who it is, which drivers look at. The rest is the host's own: where its memory
/// ends, and where its registers are.
fn keep_identity(bytes: &mut [u8]) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        if !BRIDGE_IDENTITY.iter().any(|kept| kept.contains(&at)) {
            *byte = 0;
        }
    }
}

/// By what the device itself is; an identity that the operator made up counts where that says nothing.
fn find(traits: &Traits) -> Option<Generation> {
    let of = |ids: &crate::pci::Identity| {
        let is_display = ids.class_code >> 16 == super::CLASS_DISPLAY;
        if ids.vendor_id != VENDOR_INTEL || !is_display {
            return None;
        }
        Generation::of(ids.device_id)
    };
    of(&traits.own).or_else(|| of(&traits.shown))
}
