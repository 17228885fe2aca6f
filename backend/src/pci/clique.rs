// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NVIDIA GPUDirect P2P clique: a vendor capability by which a hypervisor tells NVIDIA's guest driver which GPUs may
//! do DMA to one another. All GPUs with the same number may.
//!
//! ```text
//!  byte  0      1      2      3     4     5     6                          7
//!      ┌──────┬──────┬──────┬─────┬─────┬─────┬──────────────────────────┬──────┐
//!      │ 0x09 │ next │ 0x08 │ 'P' │ '2' │ 'P' │ 6:3 clique, 2:0 version 0│ 0x00 │
//!      └──────┴──────┴──────┴─────┴─────┴─────┴──────────────────────────┴──────┘
//! ```
//!
//! The driver looks at 0xc8, and since Turing, which has its MSI-X there, at 0xd4. Sources: NVIDIA's specification as
//! posted to qemu-devel in August 2017, and its second revision of June 2023.

use std::str::FromStr;

use super::{ConfigSpace, Identity, RegisterBlock, layout::overlaps, lists::Lists, registers::*};

/// NVIDIA's vendor id.
pub const VENDOR_NVIDIA: u16 = 0x10de;
/// Base class of display controllers.
const CLASS_DISPLAY: u32 = 0x03;
/// Bytes of the capability.
const LEN: u16 = 8;
/// Where it is looked for first.
const FIRST: u16 = 0xc8;
/// Where it is looked for when something else begins at the first place.
const SECOND: u16 = 0xd4;

/// The number of a clique, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clique(u8);

/// Not a clique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a number from 0 to 15")]
pub struct NotAClique;

/// Why a function cannot be in a clique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliqueError {
    /// The guest would see another vendor.
    #[error("the vendor is {0:#06x}, and only NVIDIA's (0x10de) drivers know cliques")]
    NotNvidia(u16),
    /// The guest would see no GPU.
    #[error("the class is {0:#08x}, and only display controllers (0x03....) are in cliques")]
    NotDisplay(u32),
    /// What is where cannot be told.
    #[error("the device's capability list is broken: {0}")]
    BrokenList(super::ListFault),
    /// Something else is there.
    #[error("the config space has no room: {len} free bytes are needed at {FIRST:#x}, or at {SECOND:#x} where a \
             capability begins at {FIRST:#x}", len = LEN)]
    NoRoom,
}

impl Clique {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Where it goes in `config`, as the guest sees that.
    pub(super) fn place(config: &ConfigSpace) -> Result<u16, CliqueError> {
        let Identity {
            vendor_id,
            class_code,
            ..
        } = config.identity();
        if vendor_id != VENDOR_NVIDIA {
            return Err(CliqueError::NotNvidia(vendor_id));
        }
        if class_code >> 16 != CLASS_DISPLAY {
            return Err(CliqueError::NotDisplay(class_code));
        }
        let [standard, _] = config.list_faults();
        if let Some(fault) = standard {
            return Err(CliqueError::BrokenList(fault));
        }
        let list = Lists::of(config.bytes()).standard;
        let begins = |place| list.iter().any(|entry| entry.at == place);
        let place = if begins(FIRST) { SECOND } else { FIRST };
        let free = |entry: &super::lists::Entry| {
            !overlaps(&(entry.at..entry.end()), &(place..place + LEN))
        };
        if list.iter().all(free) {
            Ok(place)
        } else {
            Err(CliqueError::NoRoom)
        }
    }

    /// The capability; its next pointer is the list's.
    pub(super) fn registers(self) -> RegisterBlock {
        const VERSION: u8 = 0;
        let [length, _] = LEN.to_le_bytes();
        let mut block = RegisterBlock::new(LEN.into(), &[]);
        let [p, two, last] = *b"P2P";
        let number = self.0 << 3 | VERSION;
        block.put_bytes(0, &[PCI_CAP_ID_VNDR, 0, length, p, two, last, number, 0]);
        block
    }
}

impl FromStr for Clique {
    type Err = NotAClique;

    fn from_str(text: &str) -> Result<Self, NotAClique> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| plain && *number <= 15);
        number.map(Self).ok_or(NotAClique)
    }
}

#[cfg(test)]
mod tests;
