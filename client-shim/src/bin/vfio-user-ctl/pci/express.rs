// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI Express capability (PCI Express Base Specification 5.0, 7.5.3).

use super::space::ConfigSpace;
use super::{field, signs};

/// Title and further lines.
pub fn decode(space: &ConfigSpace, at: usize) -> (String, Vec<String>) {
    let flags = space.word(at + 2);
    let version = field(flags, 0, 4);
    let port = field(flags, 4, 4);
    let title = format!(
        "Express (v{version}) {}, IntMsgNum {}",
        port_type(port),
        field(flags, 9, 5)
    );
    let mut details = device(space, at);
    // Integrated endpoints and event collectors have no link.
    if !matches!(port, 9 | 10) {
        details.extend(link(space, at));
    }
    if version >= 2 {
        details.extend(second(space, at));
    }
    (title, details)
}

fn port_type(port: u32) -> &'static str {
    match port {
        0 => "Endpoint",
        1 => "Legacy Endpoint",
        4 => "Root Port",
        5 => "Upstream Port",
        6 => "Downstream Port",
        7 => "PCI-Express to PCI/PCI-X Bridge",
        8 => "PCI/PCI-X to PCI-Express Bridge",
        9 => "Root Complex Integrated Endpoint",
        10 => "Root Complex Event Collector",
        _ => "Unknown type",
    }
}

fn device(space: &ConfigSpace, at: usize) -> Vec<String> {
    let capabilities = space.u32(at + 4);
    let control = space.word(at + 8);
    let status = space.word(at + 10);
    let l0s = [
        "<64ns",
        "<128ns",
        "<256ns",
        "<512ns",
        "<1us",
        "<2us",
        "<4us",
        "unlimited",
    ];
    let l1 = [
        "<1us",
        "<2us",
        "<4us",
        "<8us",
        "<16us",
        "<32us",
        "<64us",
        "unlimited",
    ];
    vec![
        format!(
            "DevCap: MaxPayload {} bytes, PhantFunc {}, Latency L0s {}, L1 {}",
            payload(field(capabilities, 0, 3)),
            field(capabilities, 3, 2),
            pick(&l0s, field(capabilities, 6, 3)),
            pick(&l1, field(capabilities, 9, 3)),
        ),
        format!(
            "        {}",
            signs(capabilities, &[("ExtTag", 5), ("RBE", 15), ("FLReset", 28)])
        ),
        format!(
            "DevCtl: {}",
            signs(
                control,
                &[
                    ("CorrErr", 0),
                    ("NonFatalErr", 1),
                    ("FatalErr", 2),
                    ("UnsupReq", 3)
                ]
            ),
        ),
        format!(
            "        {}",
            signs(
                control,
                &[
                    ("RlxdOrd", 4),
                    ("ExtTag", 8),
                    ("PhantFunc", 9),
                    ("AuxPwr", 10),
                    ("NoSnoop", 11)
                ]
            ),
        ),
        format!(
            "        MaxPayload {} bytes, MaxReadReq {} bytes",
            payload(field(control, 5, 3)),
            payload(field(control, 12, 3)),
        ),
        format!(
            "DevSta: {}",
            signs(
                status,
                &[
                    ("CorrErr", 0),
                    ("NonFatalErr", 1),
                    ("FatalErr", 2),
                    ("UnsupReq", 3),
                    ("AuxPwr", 4),
                    ("TransPend", 5),
                ],
            ),
        ),
    ]
}

fn link(space: &ConfigSpace, at: usize) -> Vec<String> {
    let capabilities = space.u32(at + 0x0c);
    let control = space.word(at + 0x10);
    let status = space.word(at + 0x12);
    let aspm = ["not supported", "L0s", "L1", "L0s L1"];
    let enabled = ["Disabled", "L0s Enabled", "L1 Enabled", "L0s L1 Enabled"];
    vec![
        format!(
            "LnkCap: Port #{}, Speed {}, Width x{}, ASPM {}",
            field(capabilities, 24, 8),
            speed(field(capabilities, 0, 4)),
            field(capabilities, 4, 6),
            pick(&aspm, field(capabilities, 10, 2)),
        ),
        format!(
            "LnkCtl: ASPM {}; {}",
            pick(&enabled, field(control, 0, 2)),
            signs(control, &[("Disabled", 4), ("CommClk", 6)]),
        ),
        format!(
            "LnkSta: Speed {}, Width x{}",
            speed(field(status, 0, 4)),
            field(status, 4, 6),
        ),
    ]
}

fn second(space: &ConfigSpace, at: usize) -> Vec<String> {
    let capabilities = space.u32(at + 0x24);
    let control = space.word(at + 0x28);
    let atomics = [("32bit", 7), ("64bit", 8), ("128bitCAS", 9)];
    vec![
        format!(
            "DevCap2: Completion Timeout ranges {:#x}, {}",
            field(capabilities, 0, 4),
            signs(
                capabilities,
                &[("TimeoutDis", 4), ("LTR", 11), ("ExtFmt", 20)]
            ),
        ),
        format!("         AtomicOpsCap: {}", signs(capabilities, &atomics)),
        format!(
            "DevCtl2: Completion Timeout {:#x}, {}",
            field(control, 0, 4),
            signs(
                control,
                &[("TimeoutDis", 4), ("AtomicOpsReq", 6), ("LTR", 10)]
            ),
        ),
    ]
}

fn payload(code: u32) -> u32 {
    128 << code
}

fn speed(code: u32) -> &'static str {
    match code {
        1 => "2.5GT/s",
        2 => "5GT/s",
        3 => "8GT/s",
        4 => "16GT/s",
        5 => "32GT/s",
        6 => "64GT/s",
        _ => "unknown",
    }
}

fn pick<'a>(names: &[&'a str], code: u32) -> &'a str {
    usize::try_from(code)
        .ok()
        .and_then(|code| names.get(code))
        .copied()
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_like_lspci() {
        let mut bytes = vec![0; 256];
        let put = |bytes: &mut Vec<u8>, at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut bytes, 0x60, 0x0002_0010);
        put(&mut bytes, 0x64, 0x1000_8fe1);
        put(&mut bytes, 0x68, 0x0010_2810);
        put(&mut bytes, 0x6c, 0x0000_0d04);
        put(&mut bytes, 0x70, 0x1103_0000);
        put(&mut bytes, 0x84, 0x0000_0810);
        let (title, details) = decode(&ConfigSpace::new(bytes), 0x60);
        assert_eq!(title, "Express (v2) Endpoint, IntMsgNum 0");
        assert_eq!(
            details[0],
            "DevCap: MaxPayload 256 bytes, PhantFunc 0, Latency L0s unlimited, L1 unlimited"
        );
        assert_eq!(details[1], "        ExtTag+ RBE+ FLReset+");
        assert_eq!(
            details[4],
            "        MaxPayload 128 bytes, MaxReadReq 512 bytes"
        );
        assert!(details[5].starts_with("DevSta: CorrErr-") && details[5].contains("AuxPwr+"));
        assert_eq!(
            details[6],
            "LnkCap: Port #0, Speed 16GT/s, Width x16, ASPM L0s L1"
        );
        assert_eq!(details[8], "LnkSta: Speed 8GT/s, Width x16");
        assert!(details[9].contains("TimeoutDis+ LTR+"), "{}", details[9]);
    }

    #[test]
    fn an_integrated_endpoint_has_no_link() {
        let mut bytes = vec![0; 256];
        bytes[0x42] = 0x91;
        let (title, details) = decode(&ConfigSpace::new(bytes), 0x40);
        assert_eq!(
            title,
            "Express (v1) Root Complex Integrated Endpoint, IntMsgNum 0"
        );
        assert!(
            details
                .iter()
                .all(|line| !line.starts_with("Lnk") && !line.starts_with("DevCap2"))
        );
    }
}
