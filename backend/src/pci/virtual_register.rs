// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers that exist here alone: the guest reads and writes them, and a real device behind never hears of it.
//!
//! For registers in which hardware holds what is the host's own: addresses in host memory, the place of its
//! ROM. Everything else of the space stays as it was.

use std::ops::Range;

use super::{ConfigSpace, Register, RegisterBlock, registers::*};

impl ConfigSpace {
    /// Puts a register in place of what was there, of which the device behind sees neither reads nor writes.
    /// One that is not inside the space is left out.
    pub fn virtualize(&mut self, register: Register) {
        let Range { start, end } = register.bytes();
        if end > self.bytes().len() {
            return;
        }
        let block = RegisterBlock::new(end, &[register]).into_rules();
        for (rule, new) in self.rules_mut().iter_mut().zip(&block).skip(start) {
            *rule = *new;
        }
        for (value, new) in self.values_mut().iter_mut().zip(&block).skip(start) {
            *value = new.reset;
        }
        if let Some(live) = self.live.as_mut().and_then(|live| live.get_mut(start..end)) {
            live.fill(0);
        }
        self.withheld.push(start..end);
    }

    /// Gives the function an expansion ROM of this size, or none, whatever the device behind has.
    pub fn set_rom(&mut self, size: Option<u32>) {
        let mask = size
            .filter(|size| size.is_power_of_two() && *size >= ROM_MIN)
            .map_or(0, |size| !(size - 1) | PCI_ROM_ADDRESS_ENABLE);
        let register = Register::dword(PCI_ROM_ADDRESS, 0).writable(mask);
        self.virtualize(register.reports(super::Changes::ROM));
        self.rom_size = size.filter(|_| mask != 0);
    }
}

/// The smallest expansion ROM BAR (PCI 3.0, 6.2.5.2: bits 10:1 are reserved).
const ROM_MIN: u32 = 0x800;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Changes, DeviceSizes};

    const SECRET: [u8; 4] = [0x18, 0x00, 0x5e, 0x7a];

    fn device() -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..4].copy_from_slice(&[0x86, 0x80, 0x92, 0x3e]);
        bytes[0xfc..].copy_from_slice(&SECRET);
        bytes
    }

    fn space() -> ConfigSpace {
        let mut space =
            ConfigSpace::from_device(&device(), &DeviceSizes::default()).expect("a function");
        space.virtualize(Register::dword(0xfc, 0).writable(!0).sticky(!0));
        space
    }

    fn read(space: &ConfigSpace, offset: u64) -> [u8; 4] {
        let at = usize::try_from(offset).unwrap();
        let mut data = *device()[at..].first_chunk().unwrap();
        space.compose_over(offset, &mut data).unwrap();
        data
    }

    #[test]
    fn what_the_device_has_there_never_shows() {
        let mut space = space();
        assert_eq!(read(&space, 0xfc), [0; 4]);
        assert_eq!(space.bytes()[0xfc..], [0; 4]);
        space.write(0xfc, &[1, 2, 3, 4]).unwrap();
        space.refresh(&device());
        assert_eq!(read(&space, 0xfc), [1, 2, 3, 4]);
        space.reset();
        assert_eq!(read(&space, 0xfc), [1, 2, 3, 4], "sticky");
        space.power_on();
        assert_eq!(read(&space, 0xfc), [0; 4]);
    }

    #[test]
    fn writes_are_divided_around_it() {
        let mut space = space();
        space.virtualize(Register::word(0x50, 0x1c1));
        let pieces = |offset, data: &[u8]| -> Vec<_> {
            let pieces = space.for_device(offset, data);
            pieces.map(|(at, data)| (at, data.into_owned())).collect()
        };
        assert_eq!(pieces(0xfc, &[1, 2, 3, 4]), []);
        assert_eq!(pieces(0x04, &[1, 2]), [(4, vec![1, 2])]);
        assert_eq!(pieces(0x50, &[1, 2, 3, 4]), [(0x52, vec![3, 4])]);
        assert_eq!(pieces(0x4e, &[1, 2, 3, 4]), [(0x4e, vec![1, 2])]);
        assert_eq!(
            pieces(0x4e, &[1, 2, 3, 4, 5]),
            [(0x4e, vec![1, 2]), (0x52, vec![5])]
        );
        assert_eq!(pieces(u64::MAX, &[1]), [(u64::MAX, vec![1])]);
        assert!(space.written_by_software().iter().all(|run| run.end <= 8));
    }

    #[test]
    fn a_register_outside_is_left_out() {
        let mut space = space();
        space.virtualize(Register::dword(0xfe, 7));
        assert_eq!(space.bytes().len(), 256);
        assert_eq!(read(&space, 0xfc), [0; 4]);
    }

    #[test]
    fn a_rom_of_ones_own() {
        let mut space = space();
        space.set_rom(Some(0x1_0000));
        let changes = space.write(0x30, &[0xff; 4]).unwrap();
        assert_eq!(changes, Changes::ROM);
        assert_eq!(read(&space, 0x30), 0xffff_0001_u32.to_le_bytes());
        assert_eq!(space.rom_size(), Some(0x1_0000));
        for none in [None, Some(0), Some(0x400), Some(0x1800)] {
            space.set_rom(none);
            space.write(0x30, &[0xff; 4]).unwrap();
            assert_eq!((read(&space, 0x30), space.rom_size()), ([0; 4], None));
        }
    }
}
