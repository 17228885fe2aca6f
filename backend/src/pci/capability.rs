// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard capabilities as data. Each becomes a block of registers; where it lies is the
//! builder's.
//!
//! To add one: a variant, its id, and a table of registers. Nothing else changes.

use super::{BarOffset, Changes, Express, Register, RegisterBlock, registers::*};

/// One entry of the standard capability list.
#[derive(Clone, Debug)]
pub enum Capability {
    /// Power management, version 3: D0 and D3hot, no soft reset.
    PowerManagement,
    /// Message signalled interrupts.
    Msi(Msi),
    /// MSI-X.
    MsiX(MsiX),
    /// PCI Express endpoint, version 2. Gives the function 4096 bytes of configuration space.
    Express(Express),
    /// Vendor specific: the bytes after the length byte, read-only.
    Vendor(Vec<u8>),
    /// Any other, in registers whose offsets count from its start; the builder writes the first 2
    /// bytes.
    Raw {
        /// Capability id.
        id: u8,
        /// Its registers, header included.
        registers: RegisterBlock,
    },
}

/// The MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Vectors the function wants: a power of two, 1 to 32.
    pub vectors: u8,
    /// 64-bit address; PCI Express endpoints must have it.
    pub address_64bit: bool,
    /// Mask and pending registers.
    pub per_vector_masking: bool,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Vectors in the table: 1 to 2048.
    pub vectors: u16,
    /// Where the table is: 16 bytes for each vector.
    pub table: BarOffset,
    /// Where the pending bits are: 8 bytes for each 64 vectors.
    pub pba: BarOffset,
}

impl MsiX {
    /// Bytes of the vector table.
    pub fn table_len(&self) -> u64 {
        u64::from(self.vectors) * 16
    }

    /// Bytes of the pending bit array.
    pub fn pba_len(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// Why a capability cannot be what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// The MSI vector count is encoded as a power of two.
    #[error("{0} MSI vectors: must be 1, 2, 4, 8, 16 or 32")]
    MsiVectors(u8),
    /// The MSI-X table size has 11 bits.
    #[error("{0} MSI-X vectors: must be 1 to 2048")]
    MsixVectors(u16),
    /// The low three bits of the offset hold the BAR.
    #[error("MSI-X offset {0:#x} is not a multiple of 8")]
    MsixAlignment(u32),
    /// There are six BARs.
    #[error("MSI-X BAR {0}: must be 0 to 5")]
    MsixBar(u8),
    /// Payload sizes are encoded as powers of two.
    #[error("Max payload of {0} bytes: must be 128, 256, 512, 1024, 2048 or 4096")]
    MaxPayload(u16),
    /// Only some link widths exist.
    #[error("Link width x{0}: must be 1, 2, 4, 8, 12, 16 or 32")]
    LinkWidth(u8),
    /// The length does not fit its field.
    #[error("{len} bytes: at most {max} fit")]
    TooLong {
        /// Bytes there are.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// Not even the header fits in the raw registers.
    #[error("{len} bytes of registers: the header alone has {min}")]
    TooShort {
        /// Bytes there are.
        len: usize,
        /// Bytes of the header.
        min: usize,
    },
    /// A capability with typed state must be given in its typed form.
    #[error("Id {0:#x} must be given in its typed form")]
    Typed(u8),
    /// A field is wider than its register.
    #[error("{field} {value:#x}: at most {max:#x}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Value given.
        value: u32,
        /// Largest value.
        max: u32,
    },
    /// The id means that there is no capability.
    #[error("Id {0:#x} means that there is no capability")]
    NullId(u16),
}

impl Capability {
    /// The capability id.
    pub fn id(&self) -> u8 {
        match self {
            Self::PowerManagement => PCI_CAP_ID_PM,
            Self::Msi(_) => PCI_CAP_ID_MSI,
            Self::MsiX(_) => PCI_CAP_ID_MSIX,
            Self::Express(_) => PCI_CAP_ID_EXP,
            Self::Vendor(_) => PCI_CAP_ID_VNDR,
            Self::Raw { id, .. } => *id,
        }
    }

    /// May there be only one of its kind?
    pub(super) fn is_unique(&self) -> bool {
        matches!(
            self.id(),
            PCI_CAP_ID_PM | PCI_CAP_ID_MSI | PCI_CAP_ID_MSIX | PCI_CAP_ID_EXP
        )
    }

    /// Its registers, with id and no next.
    pub(super) fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        let mut block = match self {
            Self::PowerManagement => power_management(),
            Self::Msi(msi) => msi.registers()?,
            Self::MsiX(msix) => msix.registers()?,
            Self::Express(express) => express.registers()?,
            Self::Vendor(bytes) => vendor(bytes)?,
            Self::Raw { id, registers } => raw(*id, registers)?,
        };
        block.put_bytes(0, &[self.id(), 0]);
        Ok(block)
    }
}

fn power_management() -> RegisterBlock {
    const VERSION_3: u16 = 3;
    RegisterBlock::new(
        PCI_PM_SIZEOF.into(),
        &[
            Register::word(PCI_PM_PMC, VERSION_3),
            Register::word(PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET)
                .writable(PCI_PM_CTRL_STATE_MASK.into())
                .reports(Changes::POWER_STATE),
        ],
    )
}

impl Msi {
    fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        if !self.vectors.is_power_of_two() || self.vectors > 32 {
            return Err(CapabilityError::MsiVectors(self.vectors));
        }
        let [log2, ..] = self.vectors.ilog2().to_le_bytes();
        let mut flags = u16::from(log2) << 1;
        let (mut data, mut mask) = (PCI_MSI_DATA_32, PCI_MSI_MASK_32);
        let address = |offset, bits| {
            Register::dword(offset, 0)
                .writable(bits)
                .reports(Changes::MSI)
        };
        let mut registers = vec![address(PCI_MSI_ADDRESS_LO, !3)];
        if self.address_64bit {
            flags |= PCI_MSI_FLAGS_64BIT;
            (data, mask) = (PCI_MSI_DATA_64, PCI_MSI_MASK_64);
            registers.push(address(PCI_MSI_ADDRESS_HI, !0));
        }
        registers.push(
            Register::word(data, 0)
                .writable(0xffff)
                .reports(Changes::MSI),
        );
        if self.per_vector_masking {
            flags |= PCI_MSI_FLAGS_MASKBIT;
            let existing = u32::MAX >> (32 - u32::from(self.vectors));
            registers.push(
                Register::dword(mask, 0)
                    .writable(existing)
                    .reports(Changes::MSI),
            );
            registers.push(Register::dword(mask + 4, 0));
        }
        registers.push(
            Register::word(PCI_MSI_FLAGS, flags)
                .writable((PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE).into())
                .reports(Changes::MSI),
        );
        Ok(RegisterBlock::new(0, &registers))
    }
}

impl MsiX {
    fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        if !(1..=2048).contains(&self.vectors) {
            return Err(CapabilityError::MsixVectors(self.vectors));
        }
        for BarOffset { bar, offset } in [self.table, self.pba] {
            if bar > 5 {
                return Err(CapabilityError::MsixBar(bar));
            }
            if offset & PCI_MSIX_BIR != 0 {
                return Err(CapabilityError::MsixAlignment(offset));
            }
        }
        let place = |at: BarOffset| at.offset | u32::from(at.bar);
        Ok(RegisterBlock::new(
            PCI_CAP_MSIX_SIZEOF.into(),
            &[
                Register::word(PCI_MSIX_FLAGS, self.vectors - 1)
                    .writable((PCI_MSIX_FLAGS_MASKALL | PCI_MSIX_FLAGS_ENABLE).into())
                    .reports(Changes::MSIX),
                Register::dword(PCI_MSIX_TABLE, place(self.table)),
                Register::dword(PCI_MSIX_PBA, place(self.pba)),
            ],
        ))
    }
}

fn vendor(bytes: &[u8]) -> Result<RegisterBlock, CapabilityError> {
    const HEADER: usize = 3;
    const MAX: usize = (PCI_CFG_SPACE_SIZE - PCI_STD_HEADER_SIZEOF) as usize - HEADER;
    let len = u8::try_from(HEADER + bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MAX)
        .ok_or(CapabilityError::TooLong {
            len: bytes.len(),
            max: MAX,
        })?;
    let mut block = RegisterBlock::new(HEADER, &[Register::byte(2, len)]);
    block.put_bytes(3, bytes);
    Ok(block)
}

fn raw(id: u8, registers: &RegisterBlock) -> Result<RegisterBlock, CapabilityError> {
    match id {
        PCI_CAP_ID_PM | PCI_CAP_ID_MSI | PCI_CAP_ID_MSIX => Err(CapabilityError::Typed(id)),
        0xff => Err(CapabilityError::NullId(id.into())),
        _ if registers.len() < 2 => Err(CapabilityError::TooShort {
            len: registers.len(),
            min: 2,
        }),
        _ => Ok(registers.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(capability: &Capability) -> Vec<u8> {
        let rules = capability.registers().unwrap().into_rules();
        rules.iter().map(|rule| rule.reset).collect()
    }

    fn error(capability: &Capability) -> CapabilityError {
        capability.registers().unwrap_err()
    }

    #[test]
    fn lengths_by_layout() {
        for (address_64bit, per_vector_masking, len) in [
            (false, false, 10),
            (true, false, 14),
            (false, true, 20),
            (true, true, 24),
        ] {
            let msi = Msi {
                vectors: 32,
                address_64bit,
                per_vector_masking,
            };
            assert_eq!(reset(&Capability::Msi(msi)).len(), len);
        }
        assert_eq!(
            reset(&Capability::PowerManagement),
            [1, 0, 3, 0, 8, 0, 0, 0]
        );
        assert_eq!(reset(&Capability::Express(Express::default())).len(), 60);
    }

    #[test]
    fn a_vendor_capability_is_bit_exact() {
        let capability = Capability::Vendor(vec![0x50, 0x32, 0x50, 0x40, 0]);
        assert_eq!(reset(&capability), [0x09, 0, 8, 0x50, 0x32, 0x50, 0x40, 0]);
        let too_long = Capability::Vendor(vec![0; 190]);
        assert_eq!(
            error(&too_long),
            CapabilityError::TooLong { len: 190, max: 189 }
        );
    }

    #[test]
    fn msix_encodes_its_places() {
        let at = |bar, offset| BarOffset { bar, offset };
        let msix = MsiX {
            vectors: 2048,
            table: at(2, 0x1000),
            pba: at(4, 0x9008),
        };
        assert_eq!(
            reset(&Capability::MsiX(msix)),
            [0x11, 0, 0xff, 0x07, 0x02, 0x10, 0, 0, 0x0c, 0x90, 0, 0]
        );
        let wrong = [
            (MsiX { vectors: 0, ..msix }, CapabilityError::MsixVectors(0)),
            (
                MsiX {
                    vectors: 2049,
                    ..msix
                },
                CapabilityError::MsixVectors(2049),
            ),
            (
                MsiX {
                    table: at(6, 0),
                    ..msix
                },
                CapabilityError::MsixBar(6),
            ),
            (
                MsiX {
                    pba: at(0, 4),
                    ..msix
                },
                CapabilityError::MsixAlignment(4),
            ),
        ];
        for (msix, expected) in wrong {
            assert_eq!(error(&Capability::MsiX(msix)), expected);
        }
    }

    #[test]
    fn wrong_counts_and_raw_forms_are_refused() {
        for vectors in [0, 3, 33, 64] {
            let msi = Msi {
                vectors,
                address_64bit: true,
                per_vector_masking: false,
            };
            assert_eq!(
                error(&Capability::Msi(msi)),
                CapabilityError::MsiVectors(vectors)
            );
        }
        let raw = |id, len| Capability::Raw {
            id,
            registers: RegisterBlock::new(len, &[]),
        };
        assert_eq!(
            error(&raw(PCI_CAP_ID_MSI, 24)),
            CapabilityError::Typed(PCI_CAP_ID_MSI)
        );
        assert_eq!(
            error(&raw(0x13, 1)),
            CapabilityError::TooShort { len: 1, min: 2 }
        );
        assert_eq!(error(&raw(0xff, 6)), CapabilityError::NullId(0xff));
        assert_eq!(reset(&raw(0x13, 6)), [0x13, 0, 0, 0, 0, 0]);
    }
}
