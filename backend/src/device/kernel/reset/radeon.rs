// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resetting AMD's Bonaire and Hawaii, which do not answer a reset of their bus: through their own registers.
//!
//! The chip resets itself when a magic number is written to its config space, provided the firmware of its
//! management controller (SMC) runs; the controller is reset after it, and its clock stopped, so that a driver
//! finds it as after power-on. Only used where the kernel knows no reset. Sources: the registers of Sea Islands
//! chips in Linux' radeon driver (`cikd.h`, `ci_smc.c`); what QEMU does.
//!
//! ```text
//! memory decoding on ─► SMC runs? ─no─► EINVAL
//!                          │yes
//!                 scope: graphics alone ─► magic ─► answers again? ─no, for 1 s─► go on, ETIMEDOUT in the end
//!                                                       │yes
//!                                              SMC: reset, clock off ─► decoding off
//! ```

use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::device::kernel::vfio::{RegionDetail, Vfio};
use crate::pci::registers::{PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_DEVICE_ID, PCI_VENDOR_ID};

const AMD: u16 = 0x1002;
const BONAIRE_AND_HAWAII: [u16; 18] = [
    0x6649, 0x6650, 0x6651, 0x6658, 0x665c, 0x665d, 0x67a0, 0x67a1, 0x67a2, 0x67a8, 0x67a9, 0x67aa,
    0x67b0, 0x67b1, 0x67b8, 0x67b9, 0x67ba, 0x67be,
];

/// BAR5: an index register and its data register, for registers that are reached no other way.
const INDEX: u64 = 0x200;
const DATA: u64 = 0x204;
/// BAR5: size of the memory; all ones while the chip is in reset.
const MEMORY_SIZE: u64 = 0x5428;
/// Config space: the reset, and what starts it.
const RESET_AT: u64 = 0x7c;
const MAGIC: u32 = 0x39d5_e86b;

/// Behind the index register: resets the SMC by bit 0.
const SMC_RESET: u32 = 0x8000_0000;
/// Stops its clock by bit 0.
const SMC_CLOCK: u32 = 0x8000_0004;
/// Where it executes; firmware begins here.
const SMC_PC: u32 = 0x8000_0370;
const SMC_FIRMWARE: u32 = 0x2_0100;
/// What a reset takes: this fuse (set: the whole chip), toggled by the bit in the other.
const SCOPE_FUSE: u32 = 0xc00c_0000;
const SCOPE_FUSE_BIT: u32 = 1 << 6;
const SCOPE_TOGGLE: u32 = 0xc000_0010;
const SCOPE_TOGGLE_BIT: u32 = 1 << 1;

/// How often, and how long between, it is asked whether it is back.
const TRIES: u32 = 1000;
const BETWEEN: Duration = Duration::from_millis(1);

/// The registers of such a chip.
pub(super) trait Registers {
    /// Writes to config space.
    fn write_config(&mut self, at: u64, data: &[u8]) -> Result<(), Errno>;
    /// Reads from BAR5.
    fn read(&mut self, at: u64) -> Result<u32, Errno>;
    /// Writes to BAR5.
    fn write(&mut self, at: u64, value: u32) -> Result<(), Errno>;
    /// Lets the chip work.
    fn pause(&mut self, time: Duration);

    /// Reads behind the index register.
    fn read_indirect(&mut self, at: u32) -> Result<u32, Errno> {
        self.write(INDEX, at)?;
        self.read(DATA)
    }

    /// Sets bits behind the index register.
    fn set_indirect(&mut self, at: u32, bits: u32) -> Result<(), Errno> {
        let value = self.read_indirect(at)?;
        self.write(DATA, value | bits)
    }
}

/// Whether the device whose config space reads `config`, and its BAR5, are those of such a chip.
pub(super) fn is_one(config: &[u8], bar5: &RegionDetail) -> bool {
    let word = |at: u16| {
        let bytes = config.get(usize::from(at)..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    };
    word(PCI_VENDOR_ID) == AMD
        && BONAIRE_AND_HAWAII.contains(&word(PCI_DEVICE_ID))
        && bar5.size >= MEMORY_SIZE + 4
}

/// Resets the chip. Memory is not decoded afterwards.
pub(super) fn reset(chip: &mut impl Registers) -> Result<(), Errno> {
    let command = |on: u16| on.to_le_bytes();
    let at = u64::from(PCI_COMMAND);
    chip.write_config(at, &command(PCI_COMMAND_MEMORY))?;
    let done = reset_decoded(chip);
    done.and(chip.write_config(at, &command(0)))
}

fn reset_decoded(chip: &mut impl Registers) -> Result<(), Errno> {
    let is_stopped = chip.read_indirect(SMC_CLOCK)? & 1 != 0;
    if is_stopped || chip.read_indirect(SMC_PC)? < SMC_FIRMWARE {
        return Err(Errno::INVAL);
    }
    let whole = chip.read_indirect(SCOPE_FUSE)? & SCOPE_FUSE_BIT != 0;
    let toggle = chip.read_indirect(SCOPE_TOGGLE)?;
    // The scope is the graphics alone where the two differ.
    if whole == (toggle & SCOPE_TOGGLE_BIT != 0) {
        chip.write(DATA, toggle ^ SCOPE_TOGGLE_BIT)?;
        // It must be there before the reset.
        chip.read(DATA)?;
    }
    chip.write_config(RESET_AT, &MAGIC.to_le_bytes())?;
    let mut back = Err(Errno::TIMEDOUT);
    for _ in 0..TRIES {
        chip.pause(BETWEEN);
        if chip.read(MEMORY_SIZE)? != u32::MAX {
            back = Ok(());
            break;
        }
    }
    chip.set_indirect(SMC_RESET, 1)?;
    chip.set_indirect(SMC_CLOCK, 1)?;
    back
}

/// The registers by VFIO.
pub(super) struct ByVfio<'a, F> {
    pub vfio: &'a Vfio,
    /// Where BAR5 begins in the descriptor.
    pub bar5: u64,
    pub config: F,
}

impl<F: FnMut(u64, &[u8]) -> Result<(), Errno>> Registers for ByVfio<'_, F> {
    fn write_config(&mut self, at: u64, data: &[u8]) -> Result<(), Errno> {
        (self.config)(at, data)
    }

    fn read(&mut self, at: u64) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        self.vfio.read(self.bar5.saturating_add(at), &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&mut self, at: u64, value: u32) -> Result<(), Errno> {
        let at = self.bar5.saturating_add(at);
        self.vfio.write(at, &value.to_le_bytes())
    }

    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A chip as far as it matters here.
    #[derive(Debug)]
    struct Chip {
        command: u16,
        index: u32,
        indirect: HashMap<u32, u32>,
        /// Answers all ones so often after the magic.
        silent: u32,
        was_reset: bool,
        pauses: u32,
        /// Whether the scope was the graphics alone at the reset.
        graphics_alone: Option<bool>,
    }

    impl Chip {
        fn new(fuse: bool, toggle: bool) -> Self {
            let bit = |set: bool, bit| if set { bit } else { 0 };
            Self {
                command: 0,
                index: 0,
                indirect: HashMap::from([
                    (SMC_CLOCK, 0),
                    (SMC_PC, 0x2_0400),
                    (SMC_RESET, 0x10),
                    (SCOPE_FUSE, bit(fuse, SCOPE_FUSE_BIT) | 1),
                    (SCOPE_TOGGLE, bit(toggle, SCOPE_TOGGLE_BIT) | 0x100),
                ]),
                silent: 3,
                was_reset: false,
                pauses: 0,
                graphics_alone: None,
            }
        }
    }

    impl Registers for Chip {
        fn write_config(&mut self, at: u64, data: &[u8]) -> Result<(), Errno> {
            match (at, data) {
                (4, [low, 0]) => self.command = (*low).into(),
                (RESET_AT, [0x6b, 0xe8, 0xd5, 0x39]) => {
                    let fuse = self.indirect[&SCOPE_FUSE] & SCOPE_FUSE_BIT != 0;
                    let toggle = self.indirect[&SCOPE_TOGGLE] & SCOPE_TOGGLE_BIT != 0;
                    self.graphics_alone = Some(fuse != toggle);
                    self.was_reset = true;
                }
                other => panic!("{other:?}"),
            }
            Ok(())
        }

        fn read(&mut self, at: u64) -> Result<u32, Errno> {
            assert_eq!(self.command, 2, "not decoded");
            match at {
                DATA => Ok(self.indirect[&self.index]),
                MEMORY_SIZE if self.was_reset && self.silent > 0 => {
                    self.silent -= 1;
                    Ok(u32::MAX)
                }
                MEMORY_SIZE => Ok(0x1000),
                other => panic!("{other:#x}"),
            }
        }

        fn write(&mut self, at: u64, value: u32) -> Result<(), Errno> {
            assert_eq!(self.command, 2, "not decoded");
            match at {
                INDEX => self.index = value,
                DATA => drop(self.indirect.insert(self.index, value)),
                other => panic!("{other:#x}"),
            }
            Ok(())
        }

        fn pause(&mut self, _time: Duration) {
            self.pauses += 1;
        }
    }

    #[test]
    fn the_graphics_alone_are_reset_whatever_the_fuse_says() {
        for (fuse, toggle) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut chip = Chip::new(fuse, toggle);
            assert_eq!(reset(&mut chip), Ok(()));
            assert_eq!(chip.graphics_alone, Some(true), "{fuse} {toggle}");
            assert_eq!(chip.pauses, 4);
            assert_eq!(chip.indirect[&SMC_RESET], 0x11);
            assert_eq!(chip.indirect[&SMC_CLOCK], 1);
            assert_eq!(chip.indirect[&SCOPE_TOGGLE] & 0x100, 0x100);
            assert_eq!(chip.command, 0);
            // Its controller is stopped now: no second one.
            assert_eq!(reset(&mut chip), Err(Errno::INVAL));
        }
    }

    #[test]
    fn without_firmware_nothing_is_touched() {
        for (register, value) in [(SMC_CLOCK, 1), (SMC_PC, 0x2_00ff), (SMC_PC, 0)] {
            let mut chip = Chip::new(false, false);
            chip.indirect.insert(register, value);
            assert_eq!(reset(&mut chip), Err(Errno::INVAL));
            assert_eq!((chip.was_reset, chip.command), (false, 0));
        }
    }

    #[test]
    fn one_that_does_not_come_back_ends_the_wait() {
        let mut chip = Chip::new(false, false);
        chip.silent = u32::MAX;
        assert_eq!(reset(&mut chip), Err(Errno::TIMEDOUT));
        assert_eq!(chip.pauses, TRIES);
        assert_eq!(chip.command, 0);
    }

    #[test]
    fn which_chips() {
        let config = |vendor: u16, device: u16| {
            let mut config = vec![0; 64];
            config[..2].copy_from_slice(&vendor.to_le_bytes());
            config[2..4].copy_from_slice(&device.to_le_bytes());
            config
        };
        let bar5 = |size| RegionDetail {
            size,
            ..RegionDetail::default()
        };
        assert!(is_one(&config(AMD, 0x67b0), &bar5(0x4_0000)));
        assert!(!is_one(&config(AMD, 0x67b0), &bar5(0x5428)));
        assert!(!is_one(&config(AMD, 0x67df), &bar5(0x4_0000)), "Polaris");
        assert!(!is_one(&config(0x10de, 0x67b0), &bar5(0x4_0000)));
        assert!(!is_one(&[], &bar5(0x4_0000)));
    }
}
