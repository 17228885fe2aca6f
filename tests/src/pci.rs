// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What firmware does with a PCI function, done through qtest: configuration access by ports and by ECAM, capability
//! lists, BAR sizing and placing. Register names and bits: PCI Local Bus 3.0, chapter 6; PCI Express Base, chapter 7.

use crate::qtest::Qtest;

/// Vendor ID, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Command, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits.
pub const STATUS: u16 = 0x06;
/// Revision ID and class code, 32 bits.
pub const CLASS_REVISION: u16 = 0x08;
/// Header type, 8 bits.
pub const HEADER_TYPE: u16 = 0x0e;
/// First base address register.
pub const BAR0: u16 = 0x10;
/// Bus numbers of a bridge: primary, secondary, subordinate.
pub const BRIDGE_BUSES: u16 = 0x18;
/// Memory window of a bridge: base and limit, 16 bits each.
pub const BRIDGE_MEMORY: u16 = 0x20;
/// Prefetchable memory window of a bridge: base and limit, 16 bits each.
pub const BRIDGE_PREFETCHABLE: u16 = 0x24;
/// Subsystem vendor ID and subsystem ID, 32 bits.
pub const SUBSYSTEM: u16 = 0x2c;
/// Head of the capability list.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line: software's, the function does nothing with it.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Command: answers memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may do DMA and send messages.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is not driven.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: the function asserts INTx (before the disable bit is applied).
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Capability: power management.
pub const CAP_PM: u8 = 0x01;
/// Capability: message-signalled interrupts.
pub const CAP_MSI: u8 = 0x05;
/// Capability: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// The q35 host bridge's PCIEXBAR, which places ECAM.
const PCIEXBAR: u16 = 0x60;

/// A function's place: bus, device, function.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Function {
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// What BAR sizing says about a base address register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bar {
    /// Size in bytes, 0 when the function has no such BAR.
    pub size: u64,
    /// An I/O BAR.
    pub io: bool,
    /// A 64-bit memory BAR, which takes the next register too.
    pub is_64_bit: bool,
    /// Prefetchable memory.
    pub prefetchable: bool,
}

impl Function {
    /// Function 0 of `device` on `bus`.
    #[must_use]
    pub const fn new(bus: u8, device: u8) -> Self {
        Self {
            bus,
            device,
            function: 0,
        }
    }

    /// Points the configuration ports at `register`; returns the data port.
    #[track_caller]
    fn select(self, qtest: &mut Qtest, register: u16) -> u16 {
        assert!(register < 0x100, "the ports reach the first 256 bytes only");
        let address = 1 << 31
            | u32::from(self.bus) << 16
            | u32::from(self.device) << 11
            | u32::from(self.function) << 8
            | u32::from(register & !3);
        qtest.outl(CONFIG_ADDRESS, address);
        CONFIG_DATA + (register & 3)
    }

    /// Reads 8 bits of configuration space.
    #[track_caller]
    pub fn read8(self, qtest: &mut Qtest, register: u16) -> u8 {
        let port = self.select(qtest, register);
        qtest.inb(port)
    }

    /// Reads 16 bits of configuration space.
    #[track_caller]
    pub fn read16(self, qtest: &mut Qtest, register: u16) -> u16 {
        let port = self.select(qtest, register);
        qtest.inw(port)
    }

    /// Reads 32 bits of configuration space.
    #[track_caller]
    pub fn read32(self, qtest: &mut Qtest, register: u16) -> u32 {
        let port = self.select(qtest, register);
        qtest.inl(port)
    }

    /// Writes 16 bits of configuration space.
    #[track_caller]
    pub fn write16(self, qtest: &mut Qtest, register: u16, value: u16) {
        let port = self.select(qtest, register);
        qtest.outw(port, value);
    }

    /// Writes 32 bits of configuration space.
    #[track_caller]
    pub fn write32(self, qtest: &mut Qtest, register: u16, value: u32) {
        let port = self.select(qtest, register);
        qtest.outl(port, value);
    }

    /// Where the function's configuration space lies in an ECAM at `base`.
    #[must_use]
    pub fn ecam(self, base: u64) -> u64 {
        base + (u64::from(self.bus) << 20)
            + (u64::from(self.device) << 15)
            + (u64::from(self.function) << 12)
    }

    /// All capabilities, as (id, offset), in list order.
    ///
    /// # Panics
    /// When the list has a loop or leaves its space.
    #[track_caller]
    pub fn capabilities(self, qtest: &mut Qtest) -> Vec<(u8, u16)> {
        let mut found = Vec::new();
        if self.read16(qtest, STATUS) & STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = u16::from(self.read8(qtest, CAPABILITIES));
        while at != 0 {
            assert!(
                at >= 0x40 && at & 3 == 0,
                "a capability at {at:#x}, after {found:x?}"
            );
            assert!(
                found.len() < 48,
                "the capability list has a loop: {found:x?}"
            );
            found.push((self.read8(qtest, at), at));
            at = u16::from(self.read8(qtest, at + 1));
        }
        found
    }

    /// The offset of the capability `id`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn capability(self, qtest: &mut Qtest, id: u8) -> u16 {
        let list = self.capabilities(qtest);
        match list.iter().find(|(found, _)| *found == id) {
            Some((_, at)) => *at,
            None => panic!("no capability {id:#x} in {list:x?}"),
        }
    }

    /// Sizes BAR `index` as firmware does, and puts its address back.
    #[track_caller]
    pub fn size_bar(self, qtest: &mut Qtest, index: u16) -> Bar {
        let (low, mask) = self.probe(qtest, index);
        let io = low & 1 != 0;
        let is_64_bit = !io && low & 0b110 == 0b100;
        let address_bits = mask & if io { !0b11 } else { !0b1111 };
        let mask = if is_64_bit {
            u64::from(self.probe(qtest, index + 1).1) << 32 | u64::from(address_bits)
        } else if address_bits == 0 {
            0
        } else {
            u64::from(address_bits) | !u64::from(u32::MAX)
        };
        Bar {
            // The lowest writable address bit is the size.
            size: mask & mask.wrapping_neg(),
            io,
            is_64_bit,
            prefetchable: !io && low & 0b1000 != 0,
        }
    }

    /// The value of a BAR, and what it reads as after a write of all ones.
    #[track_caller]
    fn probe(self, qtest: &mut Qtest, index: u16) -> (u32, u32) {
        let register = BAR0 + 4 * index;
        let before = self.read32(qtest, register);
        self.write32(qtest, register, u32::MAX);
        let mask = self.read32(qtest, register);
        self.write32(qtest, register, before);
        (before, mask)
    }

    /// Places the memory BAR `index` at an address below 4 GiB.
    #[track_caller]
    pub fn place_bar(self, qtest: &mut Qtest, index: u16, address: u32) {
        let register = BAR0 + 4 * index;
        let is_64_bit = self.read32(qtest, register) & 0b110 == 0b100;
        self.write32(qtest, register, address);
        if is_64_bit {
            self.write32(qtest, register + 4, 0);
        }
    }

    /// Sets bits of the command register, leaving the others.
    #[track_caller]
    pub fn set_command(self, qtest: &mut Qtest, bits: u16) {
        let command = self.read16(qtest, COMMAND);
        self.write16(qtest, COMMAND, command | bits);
    }

    /// Clears bits of the command register, leaving the others.
    #[track_caller]
    pub fn clear_command(self, qtest: &mut Qtest, bits: u16) {
        let command = self.read16(qtest, COMMAND);
        self.write16(qtest, COMMAND, command & !bits);
    }
}

/// Turns on the q35 machine's memory-mapped configuration space (ECAM, 256 MiB) at `base`.
#[track_caller]
pub fn enable_ecam(qtest: &mut Qtest, base: u32) {
    let host_bridge = Function::new(0, 0);
    host_bridge.write32(qtest, PCIEXBAR + 4, 0);
    host_bridge.write32(qtest, PCIEXBAR, base | 1);
}
