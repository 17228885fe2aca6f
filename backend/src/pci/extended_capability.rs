// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended capabilities as data, like the standard ones in `capability`, with a 4-byte header.

use super::{CapabilityError, Register, RegisterBlock, registers::*};

/// Bytes of the header: id, version, next.
const HEADER: u16 = 4;

/// One entry of the extended capability list. Needs [`Capability::Express`].
///
/// [`Capability::Express`]: super::Capability::Express
#[derive(Clone, Debug)]
pub enum ExtendedCapability {
    /// Device serial number, an EUI-64.
    SerialNumber(u64),
    /// Advanced error reporting of an endpoint.
    AdvancedErrorReporting,
    /// Vendor specific.
    Vendor(Vsec),
    /// Any other, in registers whose offsets count from its start; the builder writes the first 4
    /// bytes.
    Raw {
        /// Capability id, not 0 or 0xffff.
        id: u16,
        /// Version, 1 to 15.
        version: u8,
        /// Its registers, header included.
        registers: RegisterBlock,
    },
}

/// A vendor specific extended capability; its bytes are read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsec {
    /// What the vendor calls it.
    pub id: u16,
    /// Revision, 0 to 15.
    pub revision: u8,
    /// The bytes after the two headers.
    pub body: Vec<u8>,
}

impl ExtendedCapability {
    /// The capability id.
    pub fn id(&self) -> u16 {
        match self {
            Self::SerialNumber(_) => PCI_EXT_CAP_ID_DSN,
            Self::AdvancedErrorReporting => PCI_EXT_CAP_ID_ERR,
            Self::Vendor(_) => PCI_EXT_CAP_ID_VNDR,
            Self::Raw { id, .. } => *id,
        }
    }

    /// The version in the header.
    pub fn version(&self) -> u8 {
        match self {
            Self::SerialNumber(_) | Self::Vendor(_) => 1,
            Self::AdvancedErrorReporting => 2,
            Self::Raw { version, .. } => *version,
        }
    }

    /// May there be only one of its kind?
    pub(super) fn is_unique(&self) -> bool {
        matches!(self.id(), PCI_EXT_CAP_ID_DSN | PCI_EXT_CAP_ID_ERR)
    }

    /// The header, pointing at `next` (0 ends the list; at most 0xffc).
    pub(super) fn header(&self, next: u16) -> [u8; 4] {
        let [id_low, id_high] = self.id().to_le_bytes();
        let [low, high] = (next << 4 | u16::from(self.version() & 0xf)).to_le_bytes();
        [id_low, id_high, low, high]
    }

    /// Its registers, with a header and no next.
    pub(super) fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        let mut block = match self {
            Self::SerialNumber(serial) => {
                let mut block = RegisterBlock::default();
                block.put_bytes(HEADER, &serial.to_le_bytes());
                block
            }
            Self::AdvancedErrorReporting => advanced_error_reporting(),
            Self::Vendor(vsec) => vsec.registers()?,
            Self::Raw {
                id,
                version,
                registers,
            } => raw(*id, *version, registers)?,
        };
        block.put_bytes(0, &self.header(0));
        Ok(block)
    }
}

/// All of it survives a function level reset, so that software can still read what led to it.
fn advanced_error_reporting() -> RegisterBlock {
    // Data link protocol, poisoned, flow control, completion timeout and abort, unexpected
    // completion, overflow, malformed, unsupported request, internal error.
    const UNCORRECTABLE: u32 = 0x0057_f010;
    // Internal errors stay unreported until software asks.
    const UNCORRECTABLE_MASK: u32 = 0x0040_0000;
    // The defaults of PCIe 6.0, 7.8.4.4; surprise down (bit 5) is fatal even where it cannot
    // happen.
    const SEVERITY: u32 = 0x0046_2030;
    // Receiver, bad TLP, bad DLLP, replay rollover and timeout, advisory, internal.
    const CORRECTABLE: u32 = 0x0000_71c1;
    const CORRECTABLE_MASK: u32 = 0x0000_6000;

    let mut block = RegisterBlock::new(
        PCI_ERR_SIZEOF_ENDPOINT.into(),
        &[
            Register::dword(PCI_ERR_UNCOR_STATUS, 0)
                .write_one_to_clear(UNCORRECTABLE)
                .sticky(!0),
            Register::dword(PCI_ERR_UNCOR_MASK, UNCORRECTABLE_MASK)
                .writable(UNCORRECTABLE)
                .sticky(!0),
            Register::dword(PCI_ERR_UNCOR_SEVER, SEVERITY)
                .writable(UNCORRECTABLE)
                .sticky(!0),
            Register::dword(PCI_ERR_COR_STATUS, 0)
                .write_one_to_clear(CORRECTABLE)
                .sticky(!0),
            Register::dword(PCI_ERR_COR_MASK, CORRECTABLE_MASK)
                .writable(CORRECTABLE)
                .sticky(!0),
            Register::dword(PCI_ERR_CAP, 0).sticky(0x1f),
        ],
    );
    for dword in 0..4 {
        block.put(Register::dword(PCI_ERR_HEADER_LOG + 4 * dword, 0).sticky(!0));
    }
    block
}

impl Vsec {
    fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        const HEADERS: u16 = HEADER + 4;
        const MAX: usize = (PCI_CFG_SPACE_EXP_SIZE - PCI_EXT_CAP_START - HEADERS) as usize;
        field("VSEC revision", self.revision, 15)?;
        let len = u32::try_from(self.body.len())
            .ok()
            .filter(|_| self.body.len() <= MAX)
            .ok_or(CapabilityError::TooLong {
                len: self.body.len(),
                max: MAX,
            })?;
        let header =
            (len + u32::from(HEADERS)) << 20 | u32::from(self.revision) << 16 | u32::from(self.id);
        let mut block = RegisterBlock::new(0, &[Register::dword(HEADER, header)]);
        block.put_bytes(HEADERS, &self.body);
        Ok(block)
    }
}

fn raw(id: u16, version: u8, registers: &RegisterBlock) -> Result<RegisterBlock, CapabilityError> {
    field("Capability version", version, 15)?;
    if matches!(id, 0 | 0xffff) {
        return Err(CapabilityError::NullId(id));
    }
    let (len, min) = (registers.len(), usize::from(HEADER));
    if len < min {
        return Err(CapabilityError::TooShort { len, min });
    }
    Ok(registers.clone())
}

fn field(field: &'static str, value: u8, max: u8) -> Result<(), CapabilityError> {
    if value > max {
        return Err(CapabilityError::Field {
            field,
            value: value.into(),
            max: max.into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(capability: &ExtendedCapability) -> Vec<u8> {
        let rules = capability.registers().unwrap().into_rules();
        rules.iter().map(|rule| rule.reset).collect()
    }

    #[test]
    fn layouts_are_bit_exact() {
        let serial = ExtendedCapability::SerialNumber(0x1122_3344_5566_7788);
        assert_eq!(
            reset(&serial),
            [3, 0, 1, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
        );
        let vsec = Vsec {
            id: 0xabcd,
            revision: 2,
            body: vec![1, 2, 3],
        };
        assert_eq!(
            reset(&ExtendedCapability::Vendor(vsec)),
            [0x0b, 0, 1, 0, 0xcd, 0xab, 0xb2, 0x00, 1, 2, 3]
        );
        let aer = reset(&ExtendedCapability::AdvancedErrorReporting);
        assert_eq!((aer.len(), &aer[..4]), (0x2c, &[1, 0, 2, 0][..]));
        let dword = |at: usize| u32::from_le_bytes(aer[at..at + 4].try_into().unwrap());
        let defaults = [0, 0x0040_0000, 0x0046_2030, 0, 0x0000_6000, 0];
        assert_eq!([4, 8, 0xc, 0x10, 0x14, 0x18].map(dword), defaults);
        assert_eq!(
            ExtendedCapability::AdvancedErrorReporting.header(0xffc),
            [1, 0, 0xc2, 0xff]
        );
    }

    #[test]
    fn fields_that_do_not_fit_are_refused() {
        let registers = RegisterBlock::new(8, &[]);
        let raw = |id, version, registers: &RegisterBlock| {
            let registers = registers.clone();
            ExtendedCapability::Raw {
                id,
                version,
                registers,
            }
            .registers()
            .unwrap_err()
        };
        assert_eq!(raw(0, 1, &registers), CapabilityError::NullId(0));
        assert_eq!(raw(0xffff, 1, &registers), CapabilityError::NullId(0xffff));
        assert!(matches!(
            raw(0xf, 16, &registers),
            CapabilityError::Field { value: 16, .. }
        ));
        let short = RegisterBlock::new(3, &[]);
        assert_eq!(
            raw(0xf, 1, &short),
            CapabilityError::TooShort { len: 3, min: 4 }
        );
        let vsec = Vsec {
            id: 0,
            revision: 0,
            body: vec![0; 3833],
        };
        assert_eq!(
            ExtendedCapability::Vendor(vsec).registers().unwrap_err(),
            CapabilityError::TooLong {
                len: 3833,
                max: 3832
            }
        );
    }
}
