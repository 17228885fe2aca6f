// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities of the list that begins at 0x34.

use super::space::{ConfigSpace, Entry, ids};
use super::{express, field, signs};

/// Title and further lines of one capability.
pub fn decode(space: &ConfigSpace, entry: &Entry) -> (String, Vec<String>) {
    let at = entry.offset;
    match entry.id {
        ids::POWER_MANAGEMENT => power_management(space, at),
        ids::MSI => msi(space, at),
        ids::VENDOR => vendor(space, at),
        ids::EXPRESS => express::decode(space, at),
        ids::MSIX => msix(space, at),
        id => {
            let title = match name(id) {
                Some(name) => name.to_owned(),
                None => format!("Capability id {id:#04x}"),
            };
            (title, vec![hex(space, at, 16)])
        }
    }
}

/// Names of capabilities that are not decoded further.
fn name(id: u16) -> Option<&'static str> {
    Some(match id {
        0x00 => "Null",
        0x02 => "AGP",
        0x03 => "Vital Product Data",
        0x04 => "Slot ID",
        0x06 => "CompactPCI hot-swap",
        0x07 => "PCI-X",
        0x08 => "HyperTransport",
        0x0a => "Debug port",
        0x0c => "Hot-plug capable",
        0x0d => "Subsystem",
        0x0f => "Secure device",
        0x12 => "SATA HBA",
        0x13 => "PCI Advanced Features",
        0x14 => "Enhanced Allocation",
        0x15 => "Flattening Portal Bridge",
        _ => return None,
    })
}

/// The first bytes of a capability as they are, no further than its space goes.
pub fn hex(space: &ConfigSpace, at: usize, count: usize) -> String {
    let limit = if at < 0x100 {
        0x100
    } else {
        space.bytes().len()
    };
    let bytes = space
        .bytes()
        .get(at..limit.min(space.bytes().len()))
        .unwrap_or_default();
    let bytes: Vec<_> = bytes
        .iter()
        .take(count)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(" ")
}

/// PCI Power Management Interface Specification 1.2, chapter 3.
fn power_management(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let capabilities = space.word(at + 2);
    let control = space.word(at + 4);
    let milliamperes = match field(capabilities, 6, 3) {
        0 => 0,
        1 => 55,
        2 => 100,
        3 => 160,
        4 => 220,
        5 => 270,
        6 => 320,
        _ => 375,
    };
    let support = signs(
        capabilities,
        &[("PMEClk", 3), ("DSI", 5), ("D1", 9), ("D2", 10)],
    );
    let states = [
        ("D0", 11),
        ("D1", 12),
        ("D2", 13),
        ("D3hot", 14),
        ("D3cold", 15),
    ];
    let pme = signs(capabilities, &states).replace(' ', ",");
    (
        format!("Power Management version {}", field(capabilities, 0, 3)),
        vec![
            format!("Flags: {support} AuxCurrent={milliamperes}mA PME({pme})"),
            format!(
                "Status: D{} {} DSel={} DScale={} {}",
                field(control, 0, 2),
                signs(control, &[("NoSoftRst", 3), ("PME-Enable", 8)]),
                field(control, 9, 4),
                field(control, 13, 2),
                signs(control, &[("PME", 15)]),
            ),
        ],
    )
}

/// PCI Local Bus Specification 3.0, 6.8.1.
fn msi(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let control = space.word(at + 2);
    let title = format!(
        "MSI: {} Count={}/{} {}",
        signs(control, &[("Enable", 0)]),
        1 << field(control, 4, 3),
        1 << field(control, 1, 3),
        signs(control, &[("Maskable", 8), ("64bit", 7)]),
    );
    let low = space.u32(at + 4);
    let (address, data) = if control & 0x80 == 0 {
        (format!("{low:08x}"), at + 8)
    } else {
        (format!("{:08x}{low:08x}", space.u32(at + 8)), at + 12)
    };
    let mut details = vec![format!("Address: {address}  Data: {:04x}", space.u16(data))];
    if control & 0x100 != 0 {
        let (mask, pending) = (space.u32(data + 4), space.u32(data + 8));
        details.push(format!("Masking: {mask:08x}  Pending: {pending:08x}"));
    }
    (title, details)
}

/// PCI Local Bus Specification 3.0, 6.8.2.
fn msix(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let control = space.word(at + 2);
    let place = |at| {
        let register = space.u32(at);
        format!("BAR={} offset={:08x}", register & 7, register & !7)
    };
    (
        format!(
            "MSI-X: {} Count={} {}",
            signs(control, &[("Enable", 15)]),
            field(control, 0, 11) + 1,
            signs(control, &[("Masked", 14)]),
        ),
        vec![
            format!("Vector table: {}", place(at + 4)),
            format!("PBA: {}", place(at + 8)),
        ],
    )
}

/// NVIDIA's vendor id.
const VENDOR_NVIDIA: u16 = 0x10de;

fn vendor(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let length = space.u8(at + 2);
    let title = format!("Vendor Specific Information: Len={length:02x}");
    let signature = [3, 4, 5].map(|byte| space.u8(at + byte));
    if space.u16(0) == VENDOR_NVIDIA && length == 8 && signature == *b"P2P" {
        let register = space.u8(at + 6);
        let (clique, version) = (register >> 3 & 0xf, register & 7);
        let clique = format!("NVIDIA GPUDirect P2P: Clique={clique} Version={version}");
        return (title, vec![clique]);
    }
    (title, vec![hex(space, at, usize::from(length).min(64))])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(id: u16, bytes: &[u8]) -> Vec<String> {
        let mut all = vec![0; 256];
        all[0x40..0x40 + bytes.len()].copy_from_slice(bytes);
        let entry = Entry {
            offset: 0x40,
            id,
            version: None,
        };
        let (title, details) = decode(&ConfigSpace::new(all), &entry);
        [vec![title], details].concat()
    }

    #[test]
    fn lines_read_like_lspci() {
        assert_eq!(
            decoded(1, &[1, 0, 0x03, 0xc8, 0x08, 0x01, 0, 0]),
            [
                "Power Management version 3",
                "Flags: PMEClk- DSI- D1- D2- AuxCurrent=0mA PME(D0+,D1-,D2-,D3hot+,D3cold+)",
                "Status: D0 NoSoftRst+ PME-Enable+ DSel=0 DScale=0 PME-",
            ]
        );
        let msi = [
            5, 0, 0x87, 1, 4, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(
            decoded(5, &msi),
            [
                "MSI: Enable+ Count=1/8 Maskable+ 64bit+",
                "Address: 00000000fee00004  Data: 0041",
                "Masking: 00000002  Pending: 00000001",
            ]
        );
        assert_eq!(
            decoded(5, &[5, 0, 0, 0, 4, 0, 0xe0, 0xfe, 0x41, 0]),
            [
                "MSI: Enable- Count=1/1 Maskable- 64bit-",
                "Address: fee00004  Data: 0041"
            ]
        );
        assert_eq!(
            decoded(0x11, &[0x11, 0, 7, 0x80, 4, 0x20, 0, 0, 4, 0x30, 0, 0]),
            [
                "MSI-X: Enable+ Count=8 Masked-",
                "Vector table: BAR=4 offset=00002000",
                "PBA: BAR=4 offset=00003000",
            ]
        );
    }

    #[test]
    fn a_clique_is_told() {
        let mut bytes = vec![0; 256];
        bytes[..2].copy_from_slice(&[0xde, 0x10]);
        bytes[0xc8..0xd0].copy_from_slice(&[9, 0, 8, 0x50, 0x32, 0x50, 0x40, 0]);
        let entry = Entry {
            offset: 0xc8,
            id: 9,
            version: None,
        };
        let (title, details) = decode(&ConfigSpace::new(bytes), &entry);
        assert_eq!(title, "Vendor Specific Information: Len=08");
        assert_eq!(details, ["NVIDIA GPUDirect P2P: Clique=8 Version=0"]);
    }

    #[test]
    fn what_is_not_decoded_is_shown_in_hex() {
        assert_eq!(
            decoded(9, &[9, 0, 6, 0x50, 0x32, 0x50]),
            ["Vendor Specific Information: Len=06", "09 00 06 50 32 50"]
        );
        let unknown = decoded(0x7f, &[0x7f, 0, 1]);
        assert_eq!(unknown[0], "Capability id 0x7f");
        assert!(unknown[1].starts_with("7f 00 01 00"), "{unknown:?}");
        let space = ConfigSpace::new(vec![0xab; 256]);
        assert_eq!(hex(&space, 0xfc, 16), "ab ab ab ab");
        assert_eq!(hex(&space, 0x1000, 16), "");
    }
}
