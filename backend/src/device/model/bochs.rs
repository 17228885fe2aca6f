// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR2: the Bochs display interface, as the `bochs` driver of Linux and firmware expect of QEMU's
//! `bochs-display`.
//!
//! ```text
//!  0x000 ┌────────────────────────────────────────────┐
//!        │ EDID, zero after its 128 bytes (read only) │
//!  0x400 ├────────────────────────────────────────────┤
//!        │ VGA ports 0x3c0-0x3df: there is no VGA;    │
//!        │ read as all ones, writes are ignored       │
//!  0x420 ├────────────────────────────────────────────┤
//!        │ nothing: reads as 0                        │
//!  0x500 ├────────────────────────────────────────────┤
//!        │ dispi registers, 16 bits each: index * 2   │
//!  0x516 ├────────────────────────────────────────────┤
//!        │ nothing                                    │
//!  0x600 ├────────────────────────────────────────────┤
//!        │ u32 bytes of this block (8)                │
//!  0x604 │ u32 byte order: 0x1e1e1e1e or 0xbebebebe   │
//!  0x608 ├────────────────────────────────────────────┤
//!        │ nothing                                    │
//!  0x1000└────────────────────────────────────────────┘
//! ```
//!
//! The registers hold what the guest wrote and move no pixel: the picture is what lies in VRAM, and
//! [`Display::picture`] says how to read it. As with `bochs-display`, enabling a mode clears nothing.

use super::edid::EDID;

/// Bytes of BAR2.
pub const BAR_SIZE: u64 = 0x1000;
/// Where the VGA ports begin.
pub const VGA_PORTS: usize = 0x400;
const VGA_PORTS_END: usize = 0x420;
/// Where the dispi registers begin; register n is at `DISPI + 2 * n`.
pub const DISPI: usize = 0x500;
/// Where the extended registers begin.
pub const EXTENDED: usize = 0x600;
/// Bytes of the extended registers, which their first one tells.
const EXTENDED_SIZE: u32 = 8;
/// The extended register that chooses the byte order of pixels.
pub const BYTE_ORDER: usize = EXTENDED + 4;

/// Value of [`BYTE_ORDER`] for little endian.
pub const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;
/// Value of [`BYTE_ORDER`] for big endian.
pub const BIG_ENDIAN: u32 = 0xbebe_bebe;

/// Numbers of the dispi registers.
pub mod index {
    /// Interface version.
    pub const ID: usize = 0;
    /// Width in pixels.
    pub const XRES: usize = 1;
    /// Height in lines.
    pub const YRES: usize = 2;
    /// Bits per pixel.
    pub const BPP: usize = 3;
    /// Mode bits; see [`super::enable`].
    pub const ENABLE: usize = 4;
    /// Bank of the legacy window, which is not there.
    pub const BANK: usize = 5;
    /// Pixels per line in VRAM; less than XRES means XRES.
    pub const VIRT_WIDTH: usize = 6;
    /// Lines in VRAM.
    pub const VIRT_HEIGHT: usize = 7;
    /// First pixel shown.
    pub const X_OFFSET: usize = 8;
    /// First line shown.
    pub const Y_OFFSET: usize = 9;
    /// Bytes of VRAM / 65536, at most 0xffff (read only).
    pub const VIDEO_MEMORY_64K: usize = 10;
    /// How many there are.
    pub const COUNT: usize = 11;
}

/// Bits of the ENABLE register.
pub mod enable {
    /// The mode is shown.
    pub const ENABLED: u16 = 0x01;
    /// XRES, YRES and BPP read as the most that is supported.
    pub const GETCAPS: u16 = 0x02;
    /// Palette of 8 bits per colour.
    pub const DAC_8BIT: u16 = 0x20;
    /// Linear framebuffer: always so.
    pub const LFB: u16 = 0x40;
    /// Do not clear on enabling: never done.
    pub const NOCLEARMEM: u16 = 0x80;
    /// All of them; other bits read as 0.
    pub const ALL: u16 = ENABLED | GETCAPS | DAC_8BIT | LFB | NOCLEARMEM;
}

/// The interface version told by the ID register.
pub const VERSION: u16 = 0xb0c5;

/// What XRES, YRES and BPP read as under GETCAPS.
const LIMITS: [u16; 3] = [16_000, 12_000, 32];

/// Registers of the display; plain values, as the guest left them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Display {
    dispi: [u16; index::COUNT],
    byte_order: u32,
}

/// Where the picture lies in VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The first pixel, in bytes from the start of VRAM.
    pub offset: u64,
    /// Bytes from one line to the next.
    pub stride: u64,
    /// Pixels of 4 bytes in a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
    /// Pixels are big endian.
    pub big_endian: bool,
}

impl Display {
    /// The power-on state of a display with this much VRAM.
    #[must_use]
    pub fn new(vram_size: u64) -> Self {
        let mut dispi = [0; index::COUNT];
        dispi[index::ID] = VERSION;
        dispi[index::VIDEO_MEMORY_64K] = u16::try_from(vram_size >> 16).unwrap_or(u16::MAX);
        Self {
            dispi,
            byte_order: LITTLE_ENDIAN,
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        let memory = self.dispi[index::VIDEO_MEMORY_64K];
        *self = Self::new(u64::from(memory) << 16);
    }

    /// What the registers hold, by number, and the byte order.
    #[must_use]
    pub fn save(&self) -> ([u16; index::COUNT], u32) {
        (self.dispi, self.byte_order)
    }

    /// Takes over what another display of as much VRAM [held](Self::save); `None` if no display can hold it.
    #[must_use]
    pub fn restore(&self, dispi: [u16; index::COUNT], byte_order: u32) -> Option<Self> {
        let constant = |n: usize| dispi[n] == self.dispi[n];
        let good = constant(index::ID)
            && constant(index::VIDEO_MEMORY_64K)
            && dispi[index::ENABLE] & !enable::ALL == 0
            && [LITTLE_ENDIAN, BIG_ENDIAN].contains(&byte_order);
        good.then_some(Self { dispi, byte_order })
    }

    /// Reads any range; what lies outside the BAR reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).map_or(0, |at| self.byte(at));
        }
    }

    fn byte(&self, at: usize) -> u8 {
        const DISPI_END: usize = DISPI + 2 * index::COUNT;
        const EXTENDED_END: usize = EXTENDED + EXTENDED_SIZE as usize;
        match at {
            0..VGA_PORTS => EDID.get(at).copied().unwrap_or(0),
            VGA_PORTS..VGA_PORTS_END => 0xff,
            DISPI..DISPI_END => self.dispi((at - DISPI) / 2).to_le_bytes()[at % 2],
            EXTENDED..BYTE_ORDER => EXTENDED_SIZE.to_le_bytes()[at - EXTENDED],
            BYTE_ORDER..EXTENDED_END => self.byte_order.to_le_bytes()[at - BYTE_ORDER],
            _ => 0,
        }
    }

    fn dispi(&self, n: usize) -> u16 {
        let limits = self.dispi[index::ENABLE] & enable::GETCAPS != 0;
        match n {
            index::XRES | index::YRES | index::BPP if limits => LIMITS[n - index::XRES],
            _ => self.dispi.get(n).copied().unwrap_or(0),
        }
    }

    /// Writes any range. A register takes a write that covers all of it; the rest is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        // A dispi register begins at even offsets.
        let skip = offset % 2;
        for (pair, bytes) in data.get(skip..).unwrap_or(&[]).chunks_exact(2).enumerate() {
            let at = offset.saturating_add(skip).saturating_add(2 * pair);
            if let (Some(distance), &[low, high]) = (at.checked_sub(DISPI), bytes) {
                self.write_dispi(distance / 2, u16::from_le_bytes([low, high]));
            }
        }
        let order = BYTE_ORDER
            .checked_sub(offset)
            .and_then(|from| data.get(from..)?.first_chunk());
        if let Some(bytes) = order {
            let value = u32::from_le_bytes(*bytes);
            if [LITTLE_ENDIAN, BIG_ENDIAN].contains(&value) {
                self.byte_order = value;
            }
        }
    }

    fn write_dispi(&mut self, n: usize, value: u16) {
        match n {
            index::ID | index::VIDEO_MEMORY_64K => {}
            index::ENABLE => self.dispi[n] = value & enable::ALL,
            _ => {
                if let Some(register) = self.dispi.get_mut(n) {
                    *register = value;
                }
            }
        }
    }

    /// The picture shown, if a mode of 32 bits per pixel is enabled and lies inside VRAM of this size.
    #[must_use]
    pub fn picture(&self, vram_size: u64) -> Option<Picture> {
        let register = |n: usize| u64::from(self.dispi[n]);
        let (width, height) = (self.dispi[index::XRES], self.dispi[index::YRES]);
        let enabled = self.dispi[index::ENABLE] & enable::ENABLED != 0;
        if !enabled || self.dispi[index::BPP] != 32 || width == 0 || height == 0 {
            return None;
        }
        // Products of three 16-bit values and 4 fit into 64 bits.
        let stride = register(index::VIRT_WIDTH).max(u64::from(width)) * 4;
        let offset = register(index::Y_OFFSET) * stride + register(index::X_OFFSET) * 4;
        let end = offset + stride * (u64::from(height) - 1) + u64::from(width) * 4;
        (end <= vram_size).then_some(Picture {
            offset,
            stride,
            width,
            height,
            big_endian: self.byte_order == BIG_ENDIAN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VRAM: u64 = 64 << 20;

    fn read16(display: &Display, n: usize) -> u16 {
        let mut data = [0; 2];
        display.read((DISPI + 2 * n) as u64, &mut data);
        u16::from_le_bytes(data)
    }

    fn write16(display: &mut Display, n: usize, value: u16) {
        display.write((DISPI + 2 * n) as u64, &value.to_le_bytes());
    }

    fn read32(display: &Display, at: usize) -> u32 {
        let mut data = [0; 4];
        display.read(at as u64, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn what_the_linux_driver_checks() {
        let display = Display::new(VRAM);
        assert_eq!(read16(&display, index::ID) & 0xfff0, 0xb0c0);
        let memory = u64::from(read16(&display, index::VIDEO_MEMORY_64K)) * 64 * 1024;
        assert_eq!(memory, VRAM);
        let extended = read32(&display, EXTENDED);
        assert!(extended >= 4 && (EXTENDED as u64) + u64::from(extended) <= BAR_SIZE);
        assert_eq!(read32(&display, BYTE_ORDER), LITTLE_ENDIAN);
        let mut edid = [0; 0x400];
        display.read(0, &mut edid);
        assert_eq!(edid[..128], EDID);
        assert_eq!(edid[128..], [0; 0x400 - 128]);
    }

    #[test]
    fn a_mode_is_set_and_shown() {
        let mut display = Display::new(VRAM);
        assert_eq!(display.picture(VRAM), None);
        for (n, value) in [
            (index::BPP, 32),
            (index::XRES, 1024),
            (index::YRES, 768),
            (index::VIRT_WIDTH, 1100),
            (index::X_OFFSET, 4),
            (index::Y_OFFSET, 2),
            (index::ENABLE, enable::ENABLED | enable::LFB),
        ] {
            write16(&mut display, n, value);
            assert_eq!(read16(&display, n), value);
        }
        let picture = display.picture(VRAM).unwrap();
        assert_eq!((picture.width, picture.height), (1024, 768));
        assert_eq!((picture.stride, picture.offset), (4400, 8816));
        let end = 8816 + 4400 * 767 + 4096;
        assert!(display.picture(end).is_some());
        assert!(display.picture(end - 1).is_none());
        display.reset();
        assert_eq!(display, Display::new(VRAM));
    }

    #[test]
    fn identity_and_size_cannot_be_written() {
        let mut display = Display::new(16 << 30);
        assert_eq!(read16(&display, index::VIDEO_MEMORY_64K), 0xffff);
        display.write(0, &[0xff; 0x1000]);
        assert_eq!(read16(&display, index::ID), VERSION);
        assert_eq!(read16(&display, index::VIDEO_MEMORY_64K), 0xffff);
        assert_eq!(read16(&display, index::ENABLE), enable::ALL);
        assert_eq!(read32(&display, EXTENDED), 8);
        assert_eq!(read32(&display, BYTE_ORDER), LITTLE_ENDIAN, "no order");
        assert_eq!(display.picture(u64::MAX), None, "65535 bits per pixel");
    }

    #[test]
    fn the_byte_order_can_be_chosen() {
        let mut display = Display::new(VRAM);
        display.write(BYTE_ORDER as u64, &BIG_ENDIAN.to_le_bytes());
        assert_eq!(read32(&display, BYTE_ORDER), BIG_ENDIAN);
    }

    #[test]
    fn getcaps_tells_the_limits() {
        let mut display = Display::new(VRAM);
        write16(&mut display, index::XRES, 640);
        write16(&mut display, index::ENABLE, enable::GETCAPS);
        let caps = [index::XRES, index::YRES, index::BPP].map(|n| read16(&display, n));
        assert_eq!(caps, LIMITS);
        write16(&mut display, index::ENABLE, 0);
        assert_eq!(read16(&display, index::XRES), 640);
    }

    #[test]
    fn wide_odd_and_outside_accesses_do_no_harm() {
        let mut display = Display::new(VRAM);
        let two = (DISPI + 2 * index::XRES) as u64;
        display.write(two, &[0x80, 0x02, 0xe0, 0x01]);
        assert_eq!(read16(&display, index::XRES), 640);
        assert_eq!(read16(&display, index::YRES), 480);
        display.write(two, &[0xff]);
        display.write(two + 1, &[0xff, 0xff]);
        assert_eq!(read16(&display, index::XRES), 640, "not a whole register");
        // From the second byte of XRES: all of YRES is covered.
        display.write(two + 1, &[0xff, 0x58, 0x02]);
        assert_eq!(read16(&display, index::XRES), 640);
        assert_eq!(read16(&display, index::YRES), 600);
        let mut data = [1; 8];
        for offset in [BAR_SIZE, u64::MAX, u64::MAX - 3] {
            display.write(offset, &data);
        }
        display.read(BAR_SIZE - 4, &mut data);
        assert_eq!(data, [0; 8]);
        let mut vga = [0; 4];
        display.read((VGA_PORTS_END - 2) as u64, &mut vga);
        assert_eq!(vga, [0xff, 0xff, 0, 0]);
    }
}
