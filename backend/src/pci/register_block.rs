// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers as data: a reset value and one mask per kind of bit. Knows nothing of any particular
//! register.
//!
//! | PCIe attribute | here |
//! |---|---|
//! | RO, HwInit, RsvdP | in no mask: keeps its reset value |
//! | RW | `writable` |
//! | RW1C | `write_one_to_clear` |
//! | RWS, RW1CS, ROS | also `sticky`: survives a function level reset |
//! | Initiate FLR | `initiates_flr`: reads 0 |

use super::Changes;

/// One register of 1, 2 or 4 bytes, little endian, at an offset from the start of its block.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    offset: u16,
    width: usize,
    reset: u32,
    write: u32,
    clear: u32,
    sticky: u32,
    flr: u32,
    effect: Changes,
}

impl Register {
    const fn new(offset: u16, width: usize, reset: u32) -> Self {
        Self {
            offset,
            width,
            reset,
            write: 0,
            clear: 0,
            sticky: 0,
            flr: 0,
            effect: Changes::NONE,
        }
    }

    /// A read-only register of one byte.
    pub const fn byte(offset: u16, reset: u8) -> Self {
        Self::new(offset, 1, reset as u32)
    }

    /// A read-only register of two bytes.
    pub const fn word(offset: u16, reset: u16) -> Self {
        Self::new(offset, 2, reset as u32)
    }

    /// A read-only register of four bytes.
    pub const fn dword(offset: u16, reset: u32) -> Self {
        Self::new(offset, 4, reset)
    }

    /// The same register, `offset` bytes further on.
    pub(super) const fn moved_by(mut self, offset: u16) -> Self {
        self.offset += offset;
        self
    }

    /// The bytes that the register has in its block.
    pub(super) fn bytes(&self) -> std::ops::Range<usize> {
        let start = usize::from(self.offset);
        start..start + self.width
    }

    /// Bits that take what is written.
    pub const fn writable(mut self, mask: u32) -> Self {
        self.write |= mask;
        self
    }

    /// Bits that the device sets and that a written 1 clears.
    pub const fn write_one_to_clear(mut self, mask: u32) -> Self {
        self.clear |= mask;
        self
    }

    /// Bits that a function level reset leaves alone.
    pub const fn sticky(mut self, mask: u32) -> Self {
        self.sticky |= mask;
        self
    }

    /// Bits that read 0 and start a function level reset when written as 1.
    pub const fn initiates_flr(mut self, mask: u32) -> Self {
        self.flr |= mask;
        self
    }

    /// What to report when a write changes this register.
    pub const fn reports(mut self, effect: Changes) -> Self {
        self.effect = effect;
        self
    }
}

/// How one byte behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ByteRule {
    pub reset: u8,
    pub write: u8,
    pub clear: u8,
    pub sticky: u8,
    pub flr: u8,
    pub effect: Changes,
}

/// A run of bytes with the rules of each. What no register covers is read-only zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterBlock {
    rules: Vec<ByteRule>,
}

impl RegisterBlock {
    /// A block of `len` bytes, or as many as the registers need.
    pub fn new(len: usize, registers: &[Register]) -> Self {
        let mut block = Self {
            rules: vec![ByteRule::default(); len],
        };
        for register in registers {
            block.put(*register);
        }
        block
    }

    /// Bytes in the block.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Are there no bytes at all?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Puts one register in place of whatever was there, growing the block if need be.
    pub fn put(&mut self, register: Register) {
        let masks = [
            register.reset,
            register.write,
            register.clear,
            register.sticky,
            register.flr,
        ]
        .map(u32::to_le_bytes);
        let [reset, write, clear, sticky, flr] = masks;
        let bytes: Vec<_> = (0..register.width)
            .map(|i| ByteRule {
                reset: reset[i],
                // A bit is one kind or the other; clearing wins because it cannot forge a status.
                write: write[i] & !clear[i] & !flr[i],
                clear: clear[i],
                sticky: sticky[i],
                flr: flr[i],
                effect: register.effect,
            })
            .collect();
        self.put_rules(register.offset.into(), &bytes);
    }

    /// Puts read-only bytes at `offset`, growing the block if need be.
    pub fn put_bytes(&mut self, offset: u16, bytes: &[u8]) {
        let rules: Vec<_> = bytes
            .iter()
            .map(|&reset| ByteRule {
                reset,
                ..ByteRule::default()
            })
            .collect();
        self.put_rules(offset.into(), &rules);
    }

    /// Copies another block to `offset`, growing this one if need be.
    pub(super) fn put_block(&mut self, offset: u16, block: &Self) {
        self.put_rules(offset.into(), &block.rules);
    }

    fn put_rules(&mut self, start: usize, rules: &[ByteRule]) {
        let end = start + rules.len();
        if self.rules.len() < end {
            self.rules.resize(end, ByteRule::default());
        }
        self.rules[start..end].copy_from_slice(rules);
    }

    pub(super) fn rules(&self) -> &[ByteRule] {
        &self.rules
    }

    pub(super) fn into_rules(self) -> Vec<ByteRule> {
        self.rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_little_endian_and_grow_the_block() {
        let block = RegisterBlock::new(
            1,
            &[
                Register::dword(2, 0x1122_3344).writable(0xff00),
                Register::byte(0, 9),
            ],
        );
        assert_eq!(block.len(), 6);
        let reset: Vec<_> = block.rules.iter().map(|rule| rule.reset).collect();
        let write: Vec<_> = block.rules.iter().map(|rule| rule.write).collect();
        assert_eq!(reset, [9, 0, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(write, [0, 0, 0, 0xff, 0, 0]);
    }

    #[test]
    fn a_bit_has_one_kind() {
        let register = Register::byte(0, 0)
            .writable(0xff)
            .write_one_to_clear(1)
            .initiates_flr(2);
        let rules = RegisterBlock::new(0, &[register]).into_rules();
        assert_eq!(rules[0].write, 0xfc);
    }
}
