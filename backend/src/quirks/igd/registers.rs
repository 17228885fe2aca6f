// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of config space in which Intel graphics find host memory, kept apart from the hardware's.
//!
//! | register | where | the guest's |
//! |---|---|---|
//! | ASLS | 0xFC, 4 bytes | 0, writable: its firmware says where its OpRegion is |
//! | BDSM | 0x5C, 4 bytes, or 0xC0, 8 bytes; of a generation that is not known both | 0, writable: where its stolen memory begins |
//! | GMCH (GGC) | 0x50, 2 bytes | the device's, with another size if asked for; read-only |
//!
//! BDSM and GMCH show in BAR0, too: at 0x1080C0 and 0x108040. So do two addresses of the host that config space does not
//! have, and that a guest has no use for: they read 0. A function level reset leaves all of them, as firmware sets them
//! once.

use std::ops::Range;

use super::generation::{Bdsm, Generation, GmsError, NEW_BDSM, OLD_BDSM};
use crate::device::region;
use crate::pci::{ConfigSpace, Register};
use crate::quirks::{Handled, Place, Quirk, Window};

/// Where firmware says the OpRegion is.
pub(super) const ASLS: u16 = 0xfc;
const GMCH: u16 = 0x50;
const GMCH_SIZE: u16 = 2;
const BAR0_BDSM: u64 = 0x10_80c0;
const BAR0_GMCH: u64 = 0x10_8040;
/// GSMBASE and STOLEN_RESERVED: where the graphics translation table is, and the part of stolen memory that the
/// hardware has for itself.
const BAR0_HIDDEN: [u64; 2] = [0x10_8100, 0x10_82c0];
const BAR0_WIDTH: u64 = 8;

/// Puts the guest's registers over the device's, ASLS aside.
pub(super) fn virtualize(
    generation: Generation,
    gms: Option<u8>,
    config: &mut ConfigSpace,
) -> Result<Bar0, GmsError> {
    let gmch = gmch_of(config);
    let gmch = match gms {
        Some(gms) => generation.with_gms(gmch, gms)?,
        None => gmch,
    };
    config.virtualize(Register::word(GMCH, gmch).sticky(!0));
    let bdsm = generation.bdsm();
    virtualize_bdsm(bdsm, config);
    Ok(Bar0::new(Some(GMCH), bdsm, Some(bdsm.at)))
}

/// The same for a generation that is not known: in each of the places, unless a capability says that it is another.
pub(super) fn virtualize_unknown(config: &mut ConfigSpace) -> Bar0 {
    let is_free =
        |config: &ConfigSpace, at, size| !config.has_capability_in(at..at.saturating_add(size));
    let gmch = is_free(config, GMCH, GMCH_SIZE).then_some(GMCH);
    if let Some(at) = gmch {
        let kept = gmch_of(config);
        config.virtualize(Register::word(at, kept).sticky(!0));
    }
    let [_, new] = [OLD_BDSM, NEW_BDSM].map(|bdsm| {
        let free = is_free(config, bdsm.at, bdsm.size);
        if free {
            virtualize_bdsm(bdsm, config);
        }
        free.then_some(bdsm.at)
    });
    Bar0::new(gmch, NEW_BDSM, new)
}

fn gmch_of(config: &ConfigSpace) -> u16 {
    let bytes = config.bytes().get(usize::from(GMCH)..);
    let gmch = bytes.and_then(|bytes| bytes.first_chunk().copied());
    u16::from_le_bytes(gmch.unwrap_or_default())
}

fn virtualize_bdsm(bdsm: Bdsm, config: &mut ConfigSpace) {
    for at in (bdsm.at..bdsm.at + bdsm.size).step_by(4) {
        config.virtualize(Register::dword(at, 0).writable(!0).sticky(!0));
    }
}

/// ASLS, which every generation has.
pub(super) fn virtualize_asls(config: &mut ConfigSpace) {
    config.virtualize(Register::dword(ASLS, 0).writable(!0).sticky(!0));
}

/// A part of BAR0.
#[derive(Debug)]
struct Part {
    range: Range<u64>,
    /// What it shows: this register of config space, or 0.
    register: Option<u16>,
}

/// The places in BAR0 that show these registers.
#[derive(Debug)]
pub(super) struct Bar0 {
    parts: Vec<Part>,
}

impl Bar0 {
    /// `gmch` and `shown` are where config space has the two registers, if it has them.
    fn new(gmch: Option<u16>, bdsm: Bdsm, shown: Option<u16>) -> Self {
        let part = |at: u64, size: u64, register| Part {
            range: at..at + size,
            register,
        };
        let mut parts = vec![
            part(BAR0_GMCH, GMCH_SIZE.into(), gmch),
            part(BAR0_BDSM, bdsm.size.into(), shown),
        ];
        parts.extend(BAR0_HIDDEN.map(|at| part(at, BAR0_WIDTH, None)));
        Self { parts }
    }

    fn answer(&self, place: Place) -> Handled {
        let part = self.parts.iter().find(|p| p.range.contains(&place.offset));
        match part.and_then(|part| Some((part.register?, part.range.start))) {
            Some((register, start)) => Handled::Config(u64::from(register) + place.offset - start),
            None => Handled::Fixed(0),
        }
    }
}

impl Quirk for Bar0 {
    fn name(&self) -> &'static str {
        "igd-bar0"
    }

    fn windows(&self) -> Vec<Window> {
        let window = |part: &Part| Window {
            region: region::BAR0,
            range: part.range.clone(),
        };
        self.parts.iter().map(window).collect()
    }

    fn read(&mut self, place: Place, _length: usize) -> Handled {
        self.answer(place)
    }

    fn write(&mut self, place: Place, _data: &[u8]) -> Handled {
        self.answer(place)
    }
}
