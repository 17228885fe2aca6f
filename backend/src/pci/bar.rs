// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Base address registers: what each one is, and the bits that sizing reads back.

use super::{Changes, Register, registers::*};

/// BARs in a type 0 header.
pub(super) const BAR_COUNT: u8 = 6;

/// Address space and width of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB, one register.
    Memory32,
    /// Memory anywhere, this register and the next.
    Memory64,
    /// I/O ports.
    Io,
}

/// What a BAR register says the function has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Address space and width.
    pub kind: BarKind,
    /// Bytes; a power of two.
    pub size: u64,
    /// Reads have no side effects and writes may be merged. Memory only.
    pub prefetchable: bool,
}

/// A place inside a BAR, as MSI-X names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarOffset {
    /// The BAR, 0 to 5.
    pub bar: u8,
    /// Bytes from its start, a multiple of 8.
    pub offset: u32,
}

/// Why a [`Bar`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// A BAR decodes a power of two, because its low address bits are what it does not compare.
    #[error("Size {0:#x} is not a power of two")]
    NotPowerOfTwo(u64),
    /// Bits 3:0 of a memory BAR and 1:0 of an I/O BAR are no address bits.
    #[error("Size {size:#x} is below the smallest, {min:#x}")]
    TooSmall {
        /// Size asked for, in bytes.
        size: u64,
        /// Smallest size of this kind, in bytes.
        min: u64,
    },
    /// The register has too few address bits.
    #[error("Size {size:#x} is above the largest, {max:#x}")]
    TooLarge {
        /// Size asked for, in bytes.
        size: u64,
        /// Largest size of this kind, in bytes.
        max: u64,
    },
    /// The prefetchable bit is an address bit in an I/O BAR.
    #[error("An I/O BAR cannot be prefetchable")]
    PrefetchableIo,
}

impl Bar {
    const fn new(kind: BarKind, size: u64) -> Self {
        Self {
            kind,
            size,
            prefetchable: false,
        }
    }

    /// `size` bytes of memory below 4 GiB.
    pub const fn memory32(size: u64) -> Self {
        Self::new(BarKind::Memory32, size)
    }

    /// `size` bytes of memory anywhere.
    pub const fn memory64(size: u64) -> Self {
        Self::new(BarKind::Memory64, size)
    }

    /// `size` I/O ports.
    pub const fn io(size: u64) -> Self {
        Self::new(BarKind::Io, size)
    }

    /// The same BAR, prefetchable.
    pub const fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// Is it in memory space, of either width?
    pub const fn is_memory(self) -> bool {
        !matches!(self.kind, BarKind::Io)
    }

    /// Registers it takes: 2 for 64 bits.
    pub(super) const fn slots(self) -> u8 {
        if matches!(self.kind, BarKind::Memory64) {
            2
        } else {
            1
        }
    }

    /// Smallest and largest size: what the address bits of the register can express. I/O stops at
    /// the 64 KiB of ports there are.
    pub(super) fn check(self) -> Result<(), BarError> {
        let (min, max) = match self.kind {
            BarKind::Memory32 => (0x10, 1 << 31),
            BarKind::Memory64 => (0x10, 1 << 63),
            BarKind::Io => (4, 1 << 16),
        };
        let size = self.size;
        if !size.is_power_of_two() {
            Err(BarError::NotPowerOfTwo(size))
        } else if size < min {
            Err(BarError::TooSmall { size, min })
        } else if size > max {
            Err(BarError::TooLarge { size, max })
        } else if self.prefetchable && !self.is_memory() {
            Err(BarError::PrefetchableIo)
        } else {
            Ok(())
        }
    }

    /// The one or two registers of this BAR at `index`.
    pub(super) fn registers(self, index: u8) -> impl Iterator<Item = Register> {
        let (low, high) = halves(!(self.size.wrapping_sub(1)));
        let prefetch = if self.prefetchable {
            PCI_BASE_ADDRESS_MEM_PREFETCH
        } else {
            0
        };
        let kind = match self.kind {
            BarKind::Memory32 => prefetch,
            BarKind::Memory64 => prefetch | PCI_BASE_ADDRESS_MEM_TYPE_64,
            BarKind::Io => PCI_BASE_ADDRESS_SPACE_IO,
        };
        let offset = offset(index);
        [(offset, kind, low), (offset + 4, 0, high)]
            .into_iter()
            .take(self.slots().into())
            .map(|(at, kind, mask)| {
                Register::dword(at, kind)
                    .writable(mask)
                    .reports(Changes::BARS)
            })
    }

    /// The address bits of what the register (and its upper half) holds.
    pub(super) fn address(self, low: u32, high: u32) -> u64 {
        let high = if self.slots() == 2 { high } else { 0 };
        (u64::from(high) << 32 | u64::from(low)) & !(self.size.wrapping_sub(1))
    }
}

/// Offset of BAR `index` in the header.
pub(super) fn offset(index: u8) -> u16 {
    PCI_BASE_ADDRESS_0 + 4 * u16::from(index)
}

/// Low and high dword.
pub(super) fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked_for_each_kind() {
        for good in [
            Bar::memory32(0x10),
            Bar::memory32(1 << 31),
            Bar::memory64(1 << 63).prefetchable(),
            Bar::io(4),
            Bar::io(1 << 16),
        ] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        let too_large = |size, max| Err(BarError::TooLarge { size, max });
        let too_small = |size, min| Err(BarError::TooSmall { size, min });
        assert_eq!(Bar::memory32(0).check(), Err(BarError::NotPowerOfTwo(0)));
        assert_eq!(
            Bar::memory64(0x18).check(),
            Err(BarError::NotPowerOfTwo(0x18))
        );
        assert_eq!(Bar::memory64(8).check(), too_small(8, 0x10));
        assert_eq!(Bar::io(2).check(), too_small(2, 4));
        assert_eq!(Bar::memory32(1 << 32).check(), too_large(1 << 32, 1 << 31));
        assert_eq!(Bar::io(1 << 17).check(), too_large(1 << 17, 1 << 16));
        assert_eq!(
            Bar::io(4).prefetchable().check(),
            Err(BarError::PrefetchableIo)
        );
    }

    #[test]
    fn the_upper_half_counts_only_in_64_bits() {
        assert_eq!(
            Bar::memory64(0x1000).address(0xfebf_100c, 0x12),
            0x12_febf_1000
        );
        assert_eq!(
            Bar::memory32(0x1000).address(0xfebf_1008, 0x12),
            0xfebf_1000
        );
        assert_eq!(Bar::io(0x10).address(0xc011, 0x12), 0xc010);
    }
}
