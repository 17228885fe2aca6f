// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many bytes a capability takes, by its id and what it says of itself. Sources: PCI Local Bus 3.0 chapter 6 and
//! appendix H, PCI Express Base 6.0 chapter 7.
//!
//! Each answer has two parts: the bytes without which it is none of its kind, and those that it commonly has.

use super::registers::*;

/// One length where there is no choice.
const fn exactly(len: u16) -> (u16, u16) {
    (len, len)
}

/// Bytes of a standard capability.
pub(super) fn standard(bytes: &[u8], id: u8, at: u16) -> (u16, u16) {
    match id {
        PCI_CAP_ID_PM => exactly(PCI_PM_SIZEOF),
        PCI_CAP_ID_MSI => {
            let flags = u16_at(bytes, at + PCI_MSI_FLAGS);
            let wide = flags & PCI_MSI_FLAGS_64BIT != 0;
            let masks = flags & PCI_MSI_FLAGS_MASKBIT != 0;
            exactly(match (wide, masks) {
                (false, false) => PCI_MSI_DATA_32 + 2,
                (true, false) => PCI_MSI_DATA_64 + 2,
                (false, true) => PCI_MSI_MASK_32 + 8,
                (true, true) => PCI_MSI_MASK_64 + 8,
            })
        }
        PCI_CAP_ID_MSIX => exactly(PCI_CAP_MSIX_SIZEOF),
        PCI_CAP_ID_AF => exactly(PCI_AF_SIZEOF),
        // It says so itself; one that cannot be has its header only.
        PCI_CAP_ID_VNDR => (4, u8_at(bytes, at + 2).into()),
        // Version 1 of an endpoint ends after the link registers.
        PCI_CAP_ID_EXP if u16_at(bytes, at + PCI_EXP_FLAGS) & 0xf < 2 => exactly(0x14),
        PCI_CAP_ID_EXP => (0x14, PCI_EXP_SIZEOF_V2),
        PCI_CAP_ID_AGP => (4, 12),
        PCI_CAP_ID_VPD | PCI_CAP_ID_SSVID => (4, 8),
        _ => (4, 4),
    }
}

/// May there be only one of its kind?
pub(super) const fn is_unique(id: u8) -> bool {
    matches!(
        id,
        PCI_CAP_ID_PM | PCI_CAP_ID_MSI | PCI_CAP_ID_MSIX | PCI_CAP_ID_EXP | PCI_CAP_ID_AF
    )
}

/// Bytes of an extended capability. Never below 8: QEMU refuses to live with less, and none has less.
pub(super) fn extended(bytes: &[u8], id: u16, at: u16) -> (u16, u16) {
    const LEAST: u16 = 8;
    let common = match id {
        PCI_EXT_CAP_ID_ERR => 0x48,
        PCI_EXT_CAP_ID_DSN => 12,
        PCI_EXT_CAP_ID_SRIOV => PCI_EXT_CAP_SRIOV_SIZEOF,
        PCI_EXT_CAP_ID_PRI => 16,
        PCI_EXT_CAP_ID_REBAR | PCI_EXT_CAP_ID_VF_REBAR => {
            let control = u32_at(bytes, at + PCI_REBAR_CTRL);
            let [low, ..] = control.to_le_bytes();
            4 + 8 * (u16::from(low) >> PCI_REBAR_CTRL_NBAR_SHIFT)
        }
        PCI_EXT_CAP_ID_VNDR | PCI_EXT_CAP_ID_DVSEC => u16_at(bytes, at + 6) >> 4,
        _ => LEAST,
    };
    (LEAST, common.max(LEAST))
}

/// A byte of `bytes`; zero outside.
pub(super) fn u8_at(bytes: &[u8], at: u16) -> u8 {
    bytes.get(usize::from(at)).copied().unwrap_or(0)
}

/// Two bytes of `bytes`; zero outside.
pub(super) fn u16_at(bytes: &[u8], at: u16) -> u16 {
    u16::from_le_bytes([u8_at(bytes, at), u8_at(bytes, at.saturating_add(1))])
}

/// Four bytes of `bytes`; zero outside.
pub(super) fn u32_at(bytes: &[u8], at: u16) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at.saturating_add(2))) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_off_the_capability() {
        let mut bytes = [0; 0x140];
        let mut msi = |flags: u16| {
            bytes[0x42..0x44].copy_from_slice(&flags.to_le_bytes());
            standard(&bytes, PCI_CAP_ID_MSI, 0x40).1
        };
        assert_eq!([0, 0x80, 0x100, 0x180].map(&mut msi), [10, 14, 20, 24]);
        bytes[0x42] = 0x14;
        assert_eq!(standard(&bytes, PCI_CAP_ID_VNDR, 0x40), (4, 0x14));
        bytes[0x42] = 1;
        assert_eq!(standard(&bytes, PCI_CAP_ID_EXP, 0x40).1, 0x14);
        bytes[0x42] = 2;
        assert_eq!(standard(&bytes, PCI_CAP_ID_EXP, 0x40).1, 0x3c);
        bytes[0x108] = 2 << 5;
        assert_eq!(extended(&bytes, PCI_EXT_CAP_ID_REBAR, 0x100), (8, 20));
        bytes[0x106..0x108].copy_from_slice(&0x0241_u16.to_le_bytes());
        assert_eq!(extended(&bytes, PCI_EXT_CAP_ID_VNDR, 0x100), (8, 0x24));
        assert_eq!(extended(&bytes, PCI_EXT_CAP_ID_VNDR, 0x13c), (8, 8));
    }
}
