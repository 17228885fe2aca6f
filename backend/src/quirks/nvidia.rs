// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! NVIDIA boards: config space shows in BAR0, and through ports in BAR5 and among the VGA registers.
//!
//! | where | what | which |
//! |---|---|---|
//! | BAR0 + 0x88000 | all of config space | all, 3D controllers too |
//! | BAR0 + 0x92000 | all of config space | those that show their ids there: Hopper and Blackwell |
//! | BAR0 + 0x1800 | its first 256 bytes | VGA with the legacy ranges, and those that show their ids there: chips before NV40 |
//! | BAR5 (I/O) | address @8, data @0xc, behind two switches: registers of BAR0, the two mirrors among them | VGA |
//! | VGA 0x3d0, 0x3d4 | the same, for real-mode code (`nvidia/vga.rs`) | VGA with the legacy ranges |
//!
//! A driver acknowledges an MSI by a write to the first two bytes of its capability through the mirror, which
//! stores nothing and means something to the hardware; newer ones write the same value to config 0x704 for
//! every interrupt. Where the host shows only 256 bytes of config space, the mirror has 4096 all the same. Sources:
//! envytools, hwdocs; NVIDIA's open kernel modules and nouveau, by which the mirror belongs to the chip and not to its
//! class; what QEMU traps.

mod vga;

use super::doorbells::{Doorbell, MAX_DOORBELLS, Repeats};
use super::mirror::Mirror;
use super::window::{ConfigWindow, Match};
use super::{Handled, Place, Quirk, Traits, VENDOR_NVIDIA, Window};
use crate::device::region;
use vga::VgaPorts;

const MIRROR: u64 = 0x8_8000;
const MIRROR_SIZE: u64 = 0x1000;
const NEW_MIRROR: u64 = 0x9_2000;
const OLD_MIRROR: u64 = 0x1800;
const OLD_MIRROR_SIZE: u64 = 256;
const OLD_MIRROR_32: u32 = 0x1800;
const MIRROR_32: u32 = 0x8_8000;
const BAR5: u32 = 5;
/// Bytes of the capability id and the pointer to the next one.
const MSI_ACKNOWLEDGE: u64 = 2;
/// Where drivers write after every interrupt. Nothing else may be a doorbell: those pass the composition by.
const REARM: u64 = 0x704;
const REARM_SIZE: u64 = 4;

/// Where a board of NVIDIA may show config space, beside the mirror that all are taken to have.
pub(super) fn candidates(traits: &Traits) -> Vec<u64> {
    if traits.own.vendor_id != VENDOR_NVIDIA || !traits.is_display(VENDOR_NVIDIA) {
        return Vec::new();
    }
    let inside = |at: &u64| traits.size(region::BAR0) >= at + 4;
    [OLD_MIRROR, NEW_MIRROR]
        .into_iter()
        .filter(inside)
        .collect()
}

/// What an NVIDIA board has.
pub(super) fn quirks(traits: &Traits) -> Vec<Box<dyn Quirk>> {
    if !traits.is_display(VENDOR_NVIDIA) {
        return Vec::new();
    }
    let mut quirks: Vec<Box<dyn Quirk>> = vec![Box::new(Bar0Mirror::new(traits))];
    if traits.ids_at.contains(&NEW_MIRROR) {
        quirks.push(Box::new(Mirror::new(
            "nvidia-bar0-92000",
            region::BAR0,
            (NEW_MIRROR, MIRROR_SIZE),
            traits.config_size,
        )));
    }
    let has_legacy_ranges = traits.is_vga(VENDOR_NVIDIA) && traits.size(region::VGA) > 0;
    if has_legacy_ranges || traits.ids_at.contains(&OLD_MIRROR) {
        quirks.push(Box::new(Mirror::new(
            "nvidia-bar0-1800",
            region::BAR0,
            (OLD_MIRROR, OLD_MIRROR_SIZE),
            traits.config_size,
        )));
    }
    if traits.is_vga(VENDOR_NVIDIA) && traits.is_io(5) && traits.size(BAR5) >= 0x10 {
        quirks.push(Box::new(ConfigWindow::new(
            "nvidia-bar5",
            BAR5,
            (8, 0xc),
            mirrors(traits.config_size).to_vec(),
        )));
    }
    if has_legacy_ranges {
        quirks.push(Box::new(VgaPorts::new(mirrors(traits.config_size))));
    }
    quirks
}

/// The mirrors as addresses of the chip's registers.
fn mirrors(config_size: u64) -> [Match; 2] {
    [(OLD_MIRROR_32, 0x100), (MIRROR_32, 0x1000)].map(|(base, size)| Match {
        base,
        size,
        config_size,
    })
}

/// The mirror of all of config space, with its doorbells.
#[derive(Debug)]
struct Bar0Mirror {
    mirror: Mirror,
    repeats: Repeats,
}

impl Bar0Mirror {
    fn new(traits: &Traits) -> Self {
        let mirror = Mirror::new(
            "nvidia-bar0-88000",
            region::BAR0,
            (MIRROR, MIRROR_SIZE),
            traits.config_size,
        );
        let acknowledge = traits.msi.map_or(0..0, |at| at..at + MSI_ACKNOWLEDGE);
        let mut mirror = mirror.acknowledged_by(acknowledge);
        if REARM >= traits.config_size {
            // Config space has no such register for the guest; its interrupts need it.
            mirror = mirror.acknowledged_by(REARM..REARM + REARM_SIZE);
        }
        Self {
            mirror,
            repeats: Repeats::default(),
        }
    }
}

impl Quirk for Bar0Mirror {
    fn name(&self) -> &'static str {
        self.mirror.name()
    }

    fn windows(&self) -> Vec<Window> {
        self.mirror.windows()
    }

    fn read(&mut self, place: Place, length: usize) -> Handled {
        self.mirror.read(place, length)
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        let end = place.offset.saturating_add(data.len() as u64);
        if place.offset >= MIRROR + REARM
            && end <= MIRROR + REARM + REARM_SIZE
            && let Some(doorbell) = Doorbell::of(place.region, place.offset, data)
        {
            self.repeats.count(doorbell);
        }
        self.mirror.write(place, data)
    }

    /// The one that drivers are known for, and what this guest repeated.
    fn doorbells(&self) -> Vec<Doorbell> {
        let known = Doorbell {
            region: region::BAR0,
            offset: MIRROR + REARM,
            size: 4,
            data: 0,
        };
        let repeated = self.repeats.found().iter().copied();
        let repeated = repeated.filter(|doorbell| *doorbell != known);
        std::iter::once(known)
            .chain(repeated)
            .take(MAX_DOORBELLS)
            .collect()
    }

    fn reset(&mut self) {
        self.repeats.clear();
    }
}
