// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! AMD VGA boards: config space shows through ports in BAR4, and in BAR2.
//!
//! | where | what | which |
//! |---|---|---|
//! | BAR4 (I/O) | address @0, data @4; config space is at 0x4000 - 0x4fff of what they reach | all |
//! | BAR2 + 0x4000 | the first 256 bytes of config space | BAR2 has 64 bits and holds the registers |
//! | VGA 0x3c3 | the upper byte of BAR4's address | BAR4 has 256 ports or more, and the legacy VGA ranges are there |
//!
//! Boards from Bonaire (2013) on have their registers in BAR5, and doorbells in BAR2: nothing is trapped there,
//! for a doorbell that ends in config space would be lost. The BARs show config space whether the host gives the guest
//! the VGA ranges or not. Source: what QEMU traps.

use super::mirror::Mirror;
use super::window::{ConfigWindow, Match};
use super::{Handled, Place, Quirk, Traits, VENDOR_AMD, Window};
use crate::device::region;
use crate::pci::registers::PCI_BASE_ADDRESS_0;

const MIRROR: u64 = 0x4000;
const MIRROR_SIZE: u64 = 256;
const BAR2: u32 = 2;
const BAR4: u32 = 4;
const BAR5: u32 = 5;
/// VGA port that tells where BAR4 is.
const BAR4_PORT: u64 = 0x3c3;

/// What an AMD board has.
pub(super) fn quirks(traits: &Traits) -> Vec<Box<dyn Quirk>> {
    if !traits.is_vga(VENDOR_AMD) {
        return Vec::new();
    }
    let mut quirks: Vec<Box<dyn Quirk>> = Vec::new();
    if traits.is_io(4) && traits.size(BAR4) >= 8 {
        let config = Match {
            base: 0x4000,
            size: 0x1000,
            config_size: traits.config_size,
        };
        quirks.push(Box::new(ConfigWindow::new(
            "amd-bar4",
            BAR4,
            (0, 4),
            vec![config],
        )));
        if traits.size(BAR4) >= 256 && traits.size(region::VGA) > 0 {
            quirks.push(Box::new(Bar4Port));
        }
    }
    if traits.is_wide(2) && traits.size(BAR5) == 0 {
        quirks.push(Box::new(Mirror::new(
            "amd-bar2-4000",
            BAR2,
            (MIRROR, MIRROR_SIZE),
            traits.config_size,
        )));
    }
    quirks
}

/// The port through which firmware finds the I/O BAR.
#[derive(Debug)]
struct Bar4Port;

impl Quirk for Bar4Port {
    fn name(&self) -> &'static str {
        "amd-vga-3c3"
    }

    fn windows(&self) -> Vec<Window> {
        vec![Window {
            region: region::VGA,
            range: BAR4_PORT..BAR4_PORT + 1,
        }]
    }

    fn read(&mut self, _place: Place, _length: usize) -> Handled {
        Handled::Config(u64::from(PCI_BASE_ADDRESS_0) + 4 * u64::from(BAR4) + 1)
    }
}
