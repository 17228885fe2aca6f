// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of config space in which Intel graphics find host memory, kept apart from the hardware's.
//!
//! | register | where | the guest's |
//! |---|---|---|
//! | ASLS | 0xFC, 4 bytes | 0, writable: its firmware says where its OpRegion is |
//! | BDSM | 0x5C, 4 bytes, or 0xC0, 8 bytes | 0, writable: where its stolen memory begins |
//! | GMCH (GGC) | 0x50, 2 bytes | the device's, with another size if asked for; read-only |
//!
//! BDSM and GMCH show in BAR0, too: at 0x1080C0 and 0x108040. A function level reset leaves all of them, as
//! firmware sets them once.

use super::generation::{Generation, GmsError};
use crate::device::region;
use crate::pci::{ConfigSpace, Register};
use crate::quirks::{Handled, Place, Quirk, Window};

/// Where firmware says the OpRegion is.
pub(super) const ASLS: u16 = 0xfc;
const GMCH: u16 = 0x50;
const GMCH_SIZE: u16 = 2;
const BAR0_BDSM: u64 = 0x10_80c0;
const BAR0_GMCH: u64 = 0x10_8040;

/// Puts the guest's registers over the device's, ASLS aside.
pub(super) fn virtualize(
    generation: Generation,
    gms: Option<u8>,
    config: &mut ConfigSpace,
) -> Result<(), GmsError> {
    let bytes = config.bytes().get(usize::from(GMCH)..);
    let gmch = bytes.and_then(|bytes| bytes.first_chunk().copied());
    let gmch = u16::from_le_bytes(gmch.unwrap_or_default());
    let gmch = match gms {
        Some(gms) => generation.with_gms(gmch, gms)?,
        None => gmch,
    };
    config.virtualize(Register::word(GMCH, gmch).sticky(!0));
    let bdsm = generation.bdsm();
    for at in (bdsm.at..bdsm.at + bdsm.size).step_by(4) {
        config.virtualize(Register::dword(at, 0).writable(!0).sticky(!0));
    }
    Ok(())
}

/// ASLS, which every generation has.
pub(super) fn virtualize_asls(config: &mut ConfigSpace) {
    config.virtualize(Register::dword(ASLS, 0).writable(!0).sticky(!0));
}

/// The places in BAR0 that show these registers.
#[derive(Debug)]
pub(super) struct Bar0 {
    bdsm: u16,
    windows: [Window; 2],
}

impl Bar0 {
    pub(super) fn new(generation: Generation) -> Self {
        let bdsm = generation.bdsm();
        let window = |at: u64, size: u16| Window {
            region: region::BAR0,
            range: at..at + u64::from(size),
        };
        Self {
            bdsm: bdsm.at,
            windows: [window(BAR0_GMCH, GMCH_SIZE), window(BAR0_BDSM, bdsm.size)],
        }
    }

    fn config(&self, place: Place) -> Handled {
        let (register, start) = match place.offset.checked_sub(BAR0_BDSM) {
            Some(into) => (self.bdsm, into),
            None => (GMCH, place.offset.saturating_sub(BAR0_GMCH)),
        };
        Handled::Config(u64::from(register).saturating_add(start))
    }
}

impl Quirk for Bar0 {
    fn name(&self) -> &'static str {
        "igd-bar0"
    }

    fn windows(&self) -> Vec<Window> {
        self.windows.to_vec()
    }

    fn read(&mut self, place: Place, _length: usize) -> Handled {
        self.config(place)
    }

    fn write(&mut self, place: Place, _data: &[u8]) -> Handled {
        self.config(place)
    }
}
