// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the model GPU's monitor says of itself: one EDID 1.4 base block, made at compile time.
//!
//! ```text
//!  0x00  header 00 ff ff ff ff ff ff 00        0x26  standard timings (8 of 2 bytes)
//!  0x08  manufacturer, product, serial, date   0x36  descriptor 1: preferred timing 1024x768
//!  0x12  version 1.4                           0x48  descriptor 2: range limits
//!  0x14  digital, 8 bits per colour, size      0x5a  descriptor 3: name
//!  0x19  chromaticity (sRGB)                   0x6c  descriptor 4: unused
//!  0x23  established timings                   0x7e  no extension blocks, checksum
//! ```
//!
//! Source: VESA Enhanced EDID Standard, release A, revision 2 (EDID 1.4).

/// Bytes of one block.
pub const BLOCK: usize = 128;

/// Pixels of the preferred mode, horizontally.
pub const PREFERRED_WIDTH: u16 = 1024;
/// Pixels of the preferred mode, vertically.
pub const PREFERRED_HEIGHT: u16 = 768;

const HEADER: [u8; 8] = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];

/// "VUG", five bits a letter, big endian.
const MANUFACTURER: [u8; 2] = letters(*b"VUG");

/// Red, green, blue and white point of sRGB.
const CHROMATICITY: [u8; 10] = [0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54];

/// 640x480, 800x600 and 1024x768 at 60 Hz.
const ESTABLISHED: [u8; 3] = [0x21, 0x08, 0x00];

/// Each at 60 Hz: horizontal pixels / 8 - 31, then the aspect ratio in bits 7:6.
const STANDARD: [[u8; 2]; 8] = [
    standard(1024, ASPECT_4_3),
    standard(1152, ASPECT_4_3),
    standard(1280, ASPECT_16_9),
    standard(1280, ASPECT_5_4),
    standard(1440, ASPECT_16_10),
    standard(1600, ASPECT_4_3),
    standard(1680, ASPECT_16_10),
    standard(1920, ASPECT_16_9),
];
const ASPECT_16_10: u8 = 0;
const ASPECT_4_3: u8 = 1;
const ASPECT_5_4: u8 = 2;
const ASPECT_16_9: u8 = 3;

/// 1024x768 at 60 Hz as VESA DMT 0x10 has it: pixel clock in 10 kHz, then active, blanking, front porch
/// and sync pulse of either axis; 320 x 240 mm.
const PREFERRED: [u8; 18] = timing(Timing {
    clock: 6500,
    horizontal: [1024, 320, 24, 136],
    vertical: [768, 38, 3, 6],
    millimetres: [320, 240],
});

/// 50-125 Hz, 30-160 kHz, up to 300 MHz, any timing in between.
const RANGE_LIMITS: [u8; 18] = [
    0, 0, 0, 0xfd, 0, 50, 125, 30, 160, 30, 1, 0x0a, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20,
];

/// Thirteen characters, so no terminator.
const NAME: [u8; 18] = *b"\0\0\0\xfc\0vfio-user-gpu";

const UNUSED: [u8; 18] = *b"\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The block.
pub const EDID: [u8; BLOCK] = block();

struct Timing {
    clock: u16,
    /// Active, blanking, front porch, sync pulse; pixels.
    horizontal: [u16; 4],
    /// The same in lines.
    vertical: [u16; 4],
    millimetres: [u16; 2],
}

const fn letters(text: [u8; 3]) -> [u8; 2] {
    let [a, b, c] = [text[0] - b'@', text[1] - b'@', text[2] - b'@'];
    [(a << 2) | (b >> 3), (b << 5) | c]
}

const fn standard(width: u16, aspect: u8) -> [u8; 2] {
    [low(width / 8 - 31), aspect << 6]
}

const fn low(value: u16) -> u8 {
    value.to_le_bytes()[0]
}

const fn high(value: u16) -> u8 {
    value.to_le_bytes()[1]
}

const fn timing(t: Timing) -> [u8; 18] {
    let [h, h_blank, h_front, h_sync] = t.horizontal;
    let [v, v_blank, v_front, v_sync] = t.vertical;
    let [width, height] = t.millimetres;
    [
        low(t.clock),
        high(t.clock),
        low(h),
        low(h_blank),
        (high(h) << 4) | high(h_blank),
        low(v),
        low(v_blank),
        (high(v) << 4) | high(v_blank),
        low(h_front),
        low(h_sync),
        (low(v_front) << 4) | (low(v_sync) & 0xf),
        (high(h_front) << 6) | (high(h_sync) << 4) | (low(v_front) >> 4 << 2) | (low(v_sync) >> 4),
        low(width),
        low(height),
        (high(width) << 4) | high(height),
        0,
        0,
        // Not interlaced, digital separate sync, both pulses negative.
        0x18,
    ]
}

const fn put<const N: usize>(mut block: [u8; BLOCK], at: usize, bytes: [u8; N]) -> [u8; BLOCK] {
    let mut i = 0;
    while i < N {
        block[at + i] = bytes[i];
        i += 1;
    }
    block
}

const fn block() -> [u8; BLOCK] {
    let mut block = put([0; BLOCK], 0x00, HEADER);
    block = put(block, 0x08, MANUFACTURER);
    // Product 1, no serial number, a model of the year 2026.
    block = put(block, 0x0a, [1, 0, 0, 0, 0, 0, 0xff, 36]);
    block = put(block, 0x12, [1, 4]);
    // Digital, 8 bits per colour, interface unnamed; 32 x 24 cm; gamma 2.2; RGB 4:4:4, sRGB is the
    // default, the preferred timing is native, any timing within the limits.
    block = put(block, 0x14, [0xa0, 32, 24, 120, 0x07]);
    block = put(block, 0x19, CHROMATICITY);
    block = put(block, 0x23, ESTABLISHED);
    let mut i = 0;
    while i < STANDARD.len() {
        block = put(block, 0x26 + 2 * i, STANDARD[i]);
        i += 1;
    }
    block = put(block, 0x36, PREFERRED);
    block = put(block, 0x48, RANGE_LIMITS);
    block = put(block, 0x5a, NAME);
    block = put(block, 0x6c, UNUSED);
    let mut sum = 0_u8;
    i = 0;
    while i < BLOCK - 1 {
        sum = sum.wrapping_add(block[i]);
        i += 1;
    }
    block[BLOCK - 1] = sum.wrapping_neg();
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_valid() {
        assert_eq!(EDID[..8], HEADER);
        assert_eq!(EDID.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(EDID[0x12..0x14], [1, 4]);
        assert_eq!(EDID[0x7e], 0, "no extension block follows");
    }

    #[test]
    fn the_preferred_timing_is_1024x768() {
        let d = &EDID[0x36..0x48];
        let width = u16::from(d[2]) | (u16::from(d[4] >> 4) << 8);
        let height = u16::from(d[5]) | (u16::from(d[7] >> 4) << 8);
        assert_eq!((width, height), (PREFERRED_WIDTH, PREFERRED_HEIGHT));
        let h_total = width + (u16::from(d[3]) | (u16::from(d[4] & 0xf) << 8));
        let v_total = height + (u16::from(d[6]) | (u16::from(d[7] & 0xf) << 8));
        let clock = u32::from(u16::from_le_bytes([d[0], d[1]])) * 10_000;
        assert_eq!(clock / (u32::from(h_total) * u32::from(v_total)), 60);
    }

    #[test]
    fn letters_and_standard_timings() {
        // The example of the standard's table: "ABC" is 0x0443.
        assert_eq!(letters(*b"ABC"), [0x04, 0x43]);
        assert_eq!(standard(1920, ASPECT_16_9), [0xd1, 0xc0]);
    }
}
