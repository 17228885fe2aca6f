// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities of the list that begins at 0x100 (PCI Express Base Specification 5.0, 7.6 and on).

use super::space::{ConfigSpace, Entry};
use super::standard::hex;
use super::{field, signs};

/// Resizable BARs of one device at the most; the count is a field of 3 bits.
const MAX_RESIZABLE: usize = 6;

/// Title and further lines of one capability.
pub fn decode(space: &ConfigSpace, entry: &Entry) -> (String, Vec<String>) {
    let at = entry.offset;
    match entry.id {
        0x0001 => error_reporting(space, at),
        0x0003 => serial_number(space, at),
        0x000b => vendor(space, at),
        0x000f => address_translation(space, at),
        0x0010 => virtual_functions(space, at),
        0x0015 => resizable_bars(space, at),
        0x001b => process_address_space(space, at),
        id => {
            let title = match name(id) {
                Some(name) => name.to_owned(),
                None => format!("Extended capability id {id:#06x}"),
            };
            (title, vec![hex(space, at, 16)])
        }
    }
}

/// Names of capabilities that are not decoded further.
fn name(id: u16) -> Option<&'static str> {
    Some(match id {
        0x0000 => "Null",
        0x0002 | 0x0009 => "Virtual Channel",
        0x0004 => "Power Budgeting",
        0x0005 => "Root Complex Link Declaration",
        0x0008 => "Multi-Function Virtual Channel",
        0x000d => "Access Control Services",
        0x000e => "Alternative Routing-ID Interpretation (ARI)",
        0x0011 => "Multi-Root I/O Virtualization (MR-IOV)",
        0x0012 => "Multicast",
        0x0013 => "Page Request Interface (PRI)",
        0x0016 => "Dynamic Power Allocation",
        0x0017 => "Transaction Processing Hints",
        0x0018 => "Latency Tolerance Reporting",
        0x0019 => "Secondary PCI Express",
        0x001d => "Downstream Port Containment",
        0x001e => "L1 PM Substates",
        0x001f => "Precision Time Measurement",
        0x0023 => "Designated Vendor-Specific",
        0x0024 => "VF Resizable BAR",
        0x0025 => "Data Link Feature",
        0x0026 => "Physical Layer 16.0 GT/s",
        0x0027 => "Lane Margining at the Receiver",
        0x002a => "Physical Layer 32.0 GT/s",
        0x002e => "Data Object Exchange",
        _ => return None,
    })
}

fn error_reporting(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let uncorrectable = [
        ("DLP", 4),
        ("SDES", 5),
        ("TLP", 12),
        ("FCP", 13),
        ("CmpltTO", 14),
        ("CmpltAbrt", 15),
        ("UnxCmplt", 16),
        ("RxOF", 17),
        ("MalfTLP", 18),
        ("ECRC", 19),
        ("UnsupReq", 20),
        ("ACSViol", 21),
    ];
    let correctable = [
        ("RxErr", 0),
        ("BadTLP", 6),
        ("BadDLLP", 7),
        ("Rollover", 8),
        ("Timeout", 12),
        ("AdvNonFatalErr", 13),
    ];
    let control = space.u32(at + 0x18);
    let ecrc = [
        ("ECRCGenCap", 5),
        ("ECRCGenEn", 6),
        ("ECRCChkCap", 7),
        ("ECRCChkEn", 8),
    ];
    let log: Vec<_> = (0..4)
        .map(|n| format!("{:08x}", space.u32(at + 0x1c + n * 4)))
        .collect();
    (
        "Advanced Error Reporting".to_owned(),
        vec![
            format!("UESta:  {}", signs(space.u32(at + 0x04), &uncorrectable)),
            format!("UEMsk:  {}", signs(space.u32(at + 0x08), &uncorrectable)),
            format!("UESvrt: {}", signs(space.u32(at + 0x0c), &uncorrectable)),
            format!("CESta:  {}", signs(space.u32(at + 0x10), &correctable)),
            format!("CEMsk:  {}", signs(space.u32(at + 0x14), &correctable)),
            format!(
                "AERCap: First Error Pointer: {:02x}, {}",
                field(control, 0, 5),
                signs(control, &ecrc)
            ),
            format!("HeaderLog: {}", log.join(" ")),
        ],
    )
}

fn serial_number(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let bytes: Vec<_> = (4..12)
        .rev()
        .map(|byte| format!("{:02x}", space.u8(at + byte)))
        .collect();
    (
        format!("Device Serial Number {}", bytes.join("-")),
        Vec::new(),
    )
}

fn vendor(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let header = space.u32(at + 4);
    let length = field(header, 20, 12);
    let title = format!(
        "Vendor Specific Information: ID={:04x} Rev={} Len={length:03x}",
        field(header, 0, 16),
        field(header, 16, 4),
    );
    (
        title,
        vec![hex(space, at, usize::try_from(length).unwrap_or(0).min(64))],
    )
}

fn address_translation(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let capability = space.word(at + 4);
    let control = space.word(at + 6);
    // A depth of 0 means 32.
    let depth = match field(capability, 0, 5) {
        0 => 32,
        depth => depth,
    };
    (
        "Address Translation Service (ATS)".to_owned(),
        vec![
            format!("ATSCap: Invalidate Queue Depth: {depth}"),
            format!(
                "ATSCtl: {}, Smallest Translation Unit: {:02x}",
                signs(control, &[("Enable", 15)]),
                field(control, 0, 5),
            ),
        ],
    )
}

fn process_address_space(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let capability = space.word(at + 4);
    (
        "Process Address Space ID (PASID)".to_owned(),
        vec![
            format!(
                "PASIDCap: {}, Max PASID Width: {:02x}",
                signs(capability, &[("Exec", 1), ("Priv", 2)]),
                field(capability, 8, 5),
            ),
            format!(
                "PASIDCtl: {}",
                signs(
                    space.word(at + 6),
                    &[("Enable", 0), ("Exec", 1), ("Priv", 2)]
                ),
            ),
        ],
    )
}

fn virtual_functions(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let control = [
        ("Enable", 0),
        ("Migration", 1),
        ("Interrupt", 2),
        ("MSE", 3),
        ("ARIHierarchy", 4),
    ];
    (
        "Single Root I/O Virtualization (SR-IOV)".to_owned(),
        vec![
            format!(
                "IOVCap: {}",
                signs(space.u32(at + 4), &[("Migration", 0), ("10BitTagReq", 2)])
            ),
            format!("IOVCtl: {}", signs(space.word(at + 8), &control)),
            format!(
                "Initial VFs: {}, Total VFs: {}, Number of VFs: {}, Function Dependency Link: {:02x}",
                space.u16(at + 0x0c),
                space.u16(at + 0x0e),
                space.u16(at + 0x10),
                space.u8(at + 0x12),
            ),
            format!(
                "VF offset: {}, stride: {}, Device ID: {:04x}",
                space.u16(at + 0x14),
                space.u16(at + 0x16),
                space.u16(at + 0x1a),
            ),
            format!(
                "Supported Page Size: {:08x}, System Page Size: {:08x}",
                space.u32(at + 0x1c),
                space.u32(at + 0x20),
            ),
        ],
    )
}

fn resizable_bars(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let count = usize::try_from(field(space.u32(at + 8), 5, 3)).unwrap_or(0);
    let bars = (0..count.min(MAX_RESIZABLE)).map(|n| {
        let capability = space.u32(at + 4 + n * 8);
        let control = space.u32(at + 8 + n * 8);
        // Bit n + 4 of the capability, and n in the control register, are 1 MiB << n.
        let supported: Vec<_> = (0..28)
            .filter(|n| capability & (1 << (n + 4)) != 0)
            .map(size)
            .collect();
        format!(
            "BAR {}: current size: {}, supported: {}",
            field(control, 0, 3),
            size(field(control, 8, 6)),
            supported.join(" "),
        )
    });
    ("Physical Resizable BAR".to_owned(), bars.collect())
}

fn size(code: u32) -> String {
    let units = ["MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    let unit = usize::try_from(code / 10)
        .ok()
        .and_then(|unit| units.get(unit));
    format!("{}{}", 1 << (code % 10), unit.unwrap_or(&"??"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(id: u16, words: &[u32]) -> Vec<String> {
        let mut all = vec![0; 4096];
        for (n, word) in words.iter().enumerate() {
            all[0x104 + n * 4..0x108 + n * 4].copy_from_slice(&word.to_le_bytes());
        }
        let entry = Entry {
            offset: 0x100,
            id,
            version: Some(1),
        };
        let (title, details) = decode(&ConfigSpace::new(all), &entry);
        [vec![title], details].concat()
    }

    #[test]
    fn lines_read_like_lspci() {
        assert_eq!(
            decoded(3, &[0x1234_5678, 0x9abc_def0]),
            ["Device Serial Number 9a-bc-de-f0-12-34-56-78"]
        );
        assert_eq!(
            decoded(0xf, &[0x8005_0020]),
            [
                "Address Translation Service (ATS)",
                "ATSCap: Invalidate Queue Depth: 32",
                "ATSCtl: Enable+, Smallest Translation Unit: 05",
            ]
        );
        assert_eq!(
            decoded(0x15, &[0x0001_f000, 0x0000_0c40, 0x10, 2]),
            [
                "Physical Resizable BAR",
                "BAR 0: current size: 4GB, supported: 256MB 512MB 1GB 2GB 4GB",
                "BAR 2: current size: 1MB, supported: 1MB",
            ]
        );
        assert_eq!(
            decoded(0x1b, &[0x0001_1406]),
            [
                "Process Address Space ID (PASID)",
                "PASIDCap: Exec+ Priv+, Max PASID Width: 14",
                "PASIDCtl: Enable+ Exec- Priv-",
            ]
        );
        let errors = decoded(1, &[1 << 20, 0, 0, 1 << 13, 0, 0xa0, 1, 2, 3, 4]);
        assert!(errors[1].ends_with("UnsupReq+ ACSViol-"), "{}", errors[1]);
        assert!(errors[4].ends_with("AdvNonFatalErr+"), "{}", errors[4]);
        assert_eq!(errors[7], "HeaderLog: 00000001 00000002 00000003 00000004");
        let functions = decoded(0x10, &[0, 9, 0x0010_0008, 4, 0x0001_0010, 0x10ed_0000]);
        assert!(functions[2].starts_with("IOVCtl: Enable+ Migration- Interrupt- MSE+"));
        assert!(functions[3].starts_with("Initial VFs: 8, Total VFs: 16, Number of VFs: 4"));
        assert_eq!(functions[4], "VF offset: 16, stride: 1, Device ID: 10ed");
        let vendor = decoded(0xb, &[0x00c2_0017, 0xaabb_ccdd]);
        assert_eq!(
            vendor[0],
            "Vendor Specific Information: ID=0017 Rev=2 Len=00c"
        );
        assert_eq!(vendor[1], "00 00 00 00 17 00 c2 00 dd cc bb aa");
    }

    #[test]
    fn what_is_not_decoded_has_its_name_or_id() {
        assert_eq!(decoded(0x18, &[])[0], "Latency Tolerance Reporting");
        assert_eq!(decoded(0x1234, &[])[0], "Extended capability id 0x1234");
        assert_eq!(size(63), "8YB");
    }
}
