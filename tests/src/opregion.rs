// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An OpRegion of Intel graphics, made up: recognisable wherever it turns up.

/// Its size in bytes: the mailboxes, and a video BIOS table behind them.
pub const SIZE: usize = 0x2000 + 0x1800;
/// Version 2.1: the table is found from the start of the OpRegion.
const VERSION: [u8; 2] = [0x01, 0x02];
const MAILBOXES: u8 = 0x1f;
/// A buffer in memory of the host, which nobody may be told of.
pub const FDSS: std::ops::Range<usize> = 0x3aa..0x3b6;
const RVDA: usize = 0x3ba;
const RVDS: usize = 0x3c2;

/// The OpRegion as a host has it.
#[must_use]
pub fn of_host() -> Vec<u8> {
    let words = (0_u32..).take(SIZE / 4);
    let mut bytes: Vec<u8> = words
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9) | 1).to_le_bytes())
        .collect();
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"IntelGraphicsMem");
    put(0x10, &8_u32.to_le_bytes());
    put(0x16, &VERSION);
    put(0x58, &[MAILBOXES, 0, 0, 0]);
    put(RVDA, &0x2000_u64.to_le_bytes());
    put(RVDS, &0x1800_u32.to_le_bytes());
    put(0x2000, b"$VBT SYSTEMTESTS    ");
    bytes
}

/// The OpRegion as a guest may see it.
#[must_use]
pub fn of_guest() -> Vec<u8> {
    let mut bytes = of_host();
    bytes[FDSS].fill(0);
    bytes
}
