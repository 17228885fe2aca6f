// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way to the registers of BAR0 through VGA ports, which real-mode code takes: CRTC register 0x38, by index and data
//! at 0x3d4 and 0x3d5, says what the four bytes at 0x3d0 are.
//!
//! | CRTC 0x38 | 0x3d0 |
//! |---|---|
//! | even | nothing of this |
//! | 3 | the address in BAR0 |
//! | 5, 7 | the register there, to read or to write |
//!
//! Where the address falls on a mirror of config space, the access is for the composed one. Until the guest has said what
//! 0x3d0 is, nothing gets through there: what the hardware makes of it is not known.

use crate::device::region;
use crate::quirks::window::{Latch, Match, UNCERTAIN};
use crate::quirks::{Handled, Place, Quirk, Window};

const DATA_PORT: u64 = 0x3d0;
const INDEX_PORT: u64 = 0x3d4;
const END: u64 = 0x3d6;
const CRTC_ACCESS: u8 = 0x38;
const ON: u8 = 1;
const IS_ADDRESS: u8 = 3;

/// What the guest made of the ports.
#[derive(Debug)]
pub(super) struct VgaPorts {
    mirrors: [Match; 2],
    /// Which register of the CRTC is at 0x3d5.
    index: Option<u8>,
    /// CRTC register 0x38.
    access: Option<u8>,
    address: Latch,
}

impl VgaPorts {
    pub(super) fn new(mirrors: [Match; 2]) -> Self {
        Self {
            mirrors,
            index: None,
            access: None,
            address: Latch::default(),
        }
    }

    /// What an access means.
    fn answer(&self, place: Place, length: usize) -> Handled {
        let into = place.offset.saturating_sub(DATA_PORT);
        match self.access {
            _ if place.offset >= INDEX_PORT => Handled::Device,
            None => UNCERTAIN,
            Some(IS_ADDRESS) => Handled::Device,
            Some(access) if access & ON == 0 => Handled::Device,
            Some(_) => self.address.through(&self.mirrors, into, length),
        }
    }

    /// A write to the ports of the CRTC.
    fn follow(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            match (port, self.index) {
                (INDEX_PORT, _) => self.index = Some(*byte),
                (_, Some(CRTC_ACCESS)) => self.access = Some(*byte),
                (_, Some(_)) => {}
                (_, None) => self.access = None,
            }
        }
    }
}

impl Quirk for VgaPorts {
    fn name(&self) -> &'static str {
        "nvidia-vga-3d0"
    }

    fn windows(&self) -> Vec<Window> {
        [DATA_PORT..INDEX_PORT, INDEX_PORT..END]
            .map(|range| Window {
                region: region::VGA,
                range,
            })
            .to_vec()
    }

    fn read(&mut self, place: Place, length: usize) -> Handled {
        self.answer(place, length)
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        if place.offset >= INDEX_PORT {
            self.follow(place.offset, data);
        } else if self.access == Some(IS_ADDRESS) {
            self.address.write(place.offset - DATA_PORT, data);
        }
        self.answer(place, data.len())
    }

    fn reset(&mut self) {
        *self = Self::new(self.mirrors);
    }

    /// The address, behind a step in which earlier versions begin anew.
    fn save(&self) -> Vec<u8> {
        [&[0][..], &self.address.value().to_le_bytes()].concat()
    }

    fn can_restore(&self, saved: &[u8]) -> bool {
        matches!(saved, [0..=4, _, _, _, _])
    }

    /// What the ports are to this hardware is for the guest to say again.
    fn restore(&mut self, saved: &[u8]) {
        self.reset();
        if let Some(address) = saved.last_chunk() {
            self.address = Latch::restored(u32::from_le_bytes(*address));
        }
    }
}
