// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt registers of QEMU's `igb`, a network function with MSI-X: each message on request. Intel 82576
//! datasheet, section 8.8.

use std::error::Error;

use super::edu::Registers;

/// General Purpose Interrupt Enable, with its bit for messages by table.
const GPIE: u64 = 0x1514;
const GPIE_MSIX: u32 = 1 << 4;
/// Extended Interrupt Cause Set, Mask Set, Auto Clear; Extended Interrupt Cause. One bit for each vector.
const EICS: u64 = 0x1520;
const EIMS: u64 = 0x1524;
const EIAC: u64 = 0x152c;
const EICR: u64 = 0x1580;

/// Lets the first four vectors send messages.
pub fn set_up(igb: &impl Registers) -> Result<(), Box<dyn Error>> {
    igb.write32(GPIE, GPIE_MSIX)?;
    igb.write32(EIAC, 0xf)?;
    igb.write32(EIMS, 0xf)
}

/// Has it send one message.
pub fn raise(igb: &impl Registers, vector: usize) -> Result<(), Box<dyn Error>> {
    igb.write32(EICR, 1 << vector)?;
    igb.write32(EICS, 1 << vector)
}
