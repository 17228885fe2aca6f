// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a display adapter with a Bochs display interface shows, worked out as the adapter itself would: from its dispi
//! registers and its VRAM. The registers are read while the guest runs, through QEMU's monitor.

use serde_json::{Value, json};

use crate::{model_gpu::dispi, pattern, qmp::Qmp};

/// The mode that is set, and where the memory lies.
#[derive(Debug)]
pub struct Screen {
    /// Guest-physical address of the VRAM (BAR0).
    pub vram_address: u64,
    /// Size of the VRAM in bytes.
    pub vram_size: u64,
    /// Pixels per line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    bits_per_pixel: u32,
    enabled: bool,
    /// Pixels from one line to the next.
    pitch: u32,
    /// First column and line shown.
    origin: (u32, u32),
}

impl Screen {
    /// Reads the mode of QEMU's device `id`.
    ///
    /// # Panics
    /// When there is no such device, or its BARs are not placed.
    #[must_use]
    #[track_caller]
    pub fn of(qmp: &mut Qmp, id: &str) -> Self {
        let devices = qmp.execute("query-pci", json!({}));
        let (vram_address, vram_size) = bar(&devices, id, 0);
        let (display, _) = bar(&devices, id, 2);
        let mut register = |index: u64| read16(qmp, display + dispi::BASE + 2 * index);
        Self {
            vram_address,
            vram_size,
            width: register(dispi::XRES),
            height: register(dispi::YRES),
            bits_per_pixel: register(dispi::BPP),
            enabled: register(dispi::ENABLE) & 1 != 0,
            pitch: register(dispi::VIRT_WIDTH),
            origin: (register(dispi::X_OFFSET), register(dispi::Y_OFFSET)),
        }
    }

    /// Asserts that the screen, with this content of the VRAM, shows [`pattern::pixel`] everywhere.
    ///
    /// # Panics
    /// When it does not, with the first wrong pixel.
    #[track_caller]
    pub fn assert_shows_the_pattern(&self, vram: &[u8]) {
        assert!(
            self.enabled && self.bits_per_pixel == 32,
            "the mode is {self:?}"
        );
        assert!(
            self.width >= 640 && self.height >= 480,
            "the mode is {self:?}"
        );
        for y in 0..self.height {
            for x in 0..self.width {
                let seen = self.pixel(vram, x, y);
                let wanted = pattern::pixel(x, y);
                assert_eq!(
                    seen.map(|pixel| pixel & 0x00ff_ffff),
                    Some(wanted),
                    "pixel ({x}, {y}) is {seen:x?}, {wanted:06x} wanted; the mode is {self:x?}"
                );
            }
        }
    }

    /// The pixel shown at a place, none where the VRAM ends first.
    fn pixel(&self, vram: &[u8], x: u32, y: u32) -> Option<u32> {
        let line = u64::from(y + self.origin.1) * u64::from(self.pitch);
        let at = usize::try_from((line + u64::from(x + self.origin.0)) * 4).ok()?;
        let bytes = vram.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

/// Address and size of a memory BAR, as QEMU tells them.
#[track_caller]
fn bar(buses: &Value, id: &str, index: u64) -> (u64, u64) {
    let buses = buses.as_array().into_iter().flatten();
    let mut devices = buses.flat_map(|bus| bus["devices"].as_array().into_iter().flatten());
    let region = devices
        .find(|device| device["qdev_id"] == id)
        .and_then(|device| {
            device["regions"]
                .as_array()?
                .iter()
                .find(|bar| bar["bar"] == index)
        });
    let number = |name| region.and_then(|region| region[name].as_u64());
    match (number("address"), number("size")) {
        (Some(address), Some(size)) => (address, size),
        _ => panic!("QEMU knows no BAR{index} of {id}: {region:?}"),
    }
}

/// Reads a 16-bit register with the monitor's `xp`, which answers `ADDRESS: 0xVALUE`.
#[track_caller]
fn read16(qmp: &mut Qmp, address: u64) -> u32 {
    let reply = qmp.human(&format!("xp /1hx {address:#x}"));
    let value = reply.trim().rsplit_once("0x").map(|(_, digits)| digits);
    match value.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
        Some(value) => value,
        None => panic!("the monitor gives no value at {address:#x}: {reply}"),
    }
}
