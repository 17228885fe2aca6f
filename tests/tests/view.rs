// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The composed configuration space as any client reads it, without a VMM that would compose its own: each fixture, with
//! and without options, and what is left of broken lists.

use std::{fs, process::Command};

use system_tests::{
    backend::Backend,
    binaries,
    view::{self, Seen},
};
use vfio_user_client::{Client, Options};

const CONFIG: u32 = 7;
/// Capabilities that no guest is shown: ARI, SR-IOV, MR-IOV, resizable BARs of virtual functions.
const HIDDEN: [u16; 4] = [0x0e, 0x10, 0x11, 0x24];
/// ATS, PRI and PASID.
const TRANSLATION: [u16; 3] = [0x0f, 0x13, 0x1b];
/// Fixtures, and which of [`TRANSLATION`] each has.
const FIXTURES: [(&str, usize); 8] = [
    ("amd-vega-64", 3),
    ("intel-gen11-ice-lake", 3),
    ("intel-gen12-tiger-lake", 3),
    ("intel-gen8-broadwell", 0),
    ("intel-gen9-skylake", 3),
    ("nvidia-gtx-1080", 0),
    ("nvidia-tesla-p4", 0),
    ("nvidia-tesla-t4", 0),
];

/// A backend of its own for a client of its own.
struct Rig {
    client: Client,
    backend: Backend,
}

impl Rig {
    #[track_caller]
    fn new(config: &str, arguments: &[&str]) -> Self {
        let backend = Backend::start_with(&[&format!("config={config}")], arguments);
        let client = Client::connect(backend.socket(), Options::default());
        Self {
            client: client.expect("a client"),
            backend,
        }
    }

    #[track_caller]
    fn fixture(name: &str, arguments: &[&str]) -> Self {
        Self::new(&view::fixture(name).display().to_string(), arguments)
    }

    /// The whole configuration space, in one read.
    #[track_caller]
    fn seen(&self) -> Seen {
        let info = self.client.region_info(CONFIG).expect("region info");
        let mut config = vec![0; usize::try_from(info.size).expect("a small region")];
        let read = self.client.region_read(CONFIG, 0, &mut config);
        read.expect("REGION_READ");
        Seen {
            config,
            lspci: Vec::new(),
        }
    }
}

#[test]
fn fixtures_show_what_they_may() {
    for (fixture, translation) in FIXTURES {
        for (ats, expected) in [("off", 0), ("on", translation)] {
            let seen = Rig::fixture(fixture, &["--ats", ats]).seen();
            let extended = seen.extended_capabilities();
            let shown = |ids: &[u16]| extended.iter().filter(|(id, _)| ids.contains(id)).count();
            assert_eq!(shown(&HIDDEN), 0, "{fixture}");
            assert_eq!(shown(&TRANSLATION), expected, "{fixture}, --ats {ats}");
            assert!(!seen.capabilities().is_empty(), "{fixture}");
            assert_eq!(seen.clique(), None, "{fixture}");
            if seen.config.len() > 0x100 && extended.is_empty() {
                assert_eq!(seen.dword(0x100), 0, "{fixture}: no list reads zero");
            }
        }
    }
}

#[test]
fn resizable_bars_have_one_size() {
    let seen = Rig::fixture("amd-vega-64", &[]).seen();
    let rebar = seen
        .extended_capabilities()
        .into_iter()
        .find(|(id, _)| *id == 0x15);
    let (_, at) = rebar.expect("resizable BARs");
    // BAR 0 of 256 MiB and BAR 2 of 2 MiB; two BARs.
    let registers = [4, 8, 12, 16].map(|register| seen.dword(at + register));
    assert_eq!(registers, [1 << 12, 0x0840, 1 << 5, 0x0102]);
}

#[test]
fn a_clique_is_bit_exact_and_read_only() {
    for (fixture, number, at) in [
        ("nvidia-tesla-p4", "0", 0xc8),
        ("nvidia-tesla-t4", "9", 0xd4),
    ] {
        let rig = Rig::fixture(fixture, &["--nvidia-gpudirect-clique", number]);
        let written = rig.client.region_write(CONFIG, at, &[0xff; 8]);
        written.expect("REGION_WRITE");
        let seen = rig.seen();
        let number: u8 = number.parse().expect("a number");
        let place = usize::try_from(at).expect("small");
        let capability = [9, 0, 8, 0x50, 0x32, 0x50, number << 3, 0];
        assert_eq!(seen.config[place..place + 8], capability, "{fixture}");
        assert_eq!(
            seen.clique(),
            Some((number, u8::try_from(at).expect("small")))
        );
        rig.client.reset().expect("DEVICE_RESET");
        assert_eq!(
            rig.seen().config[place..place + 8],
            capability,
            "after a reset"
        );
    }
}

#[test]
fn a_person_is_told_the_clique() {
    let rig = Rig::fixture("nvidia-tesla-t4", &["--nvidia-gpudirect-clique", "8"]);
    // One client at a time.
    rig.client.disconnect();
    let socket = rig.backend.socket();
    let output = Command::new(binaries::ctl())
        .arg("info")
        .arg(socket)
        .output();
    let output = output.expect("vfio-user-ctl runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("NVIDIA GPUDirect P2P: Clique=8 Version=0"),
        "{text}"
    );
    assert!(text.contains("MSI-X: Enable- Count=6"), "{text}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "", "nothing to complain about");
}

#[test]
fn overrides_are_seen_and_kept() {
    let arguments = [
        "--pci-vendor-id",
        "0x10de",
        "--pci-device-id",
        "0x1eb9",
        "--pci-subsystem-vendor-id",
        "4318",
        "--pci-subsystem-id",
        "0x1234",
        "--pci-class",
        "0x030200",
    ];
    let rig = Rig::fixture("intel-gen8-broadwell", &arguments);
    rig.client
        .region_write(CONFIG, 0, &[0; 4])
        .expect("REGION_WRITE");
    rig.client.reset().expect("DEVICE_RESET");
    let seen = rig.seen();
    assert_eq!(seen.dword(0), 0x1eb9_10de);
    assert_eq!(seen.dword(8), 0x0302_0009, "the revision is the device's");
    assert_eq!(seen.dword(0x2c), 0x1234_10de);
}

#[test]
fn broken_lists_are_mended_for_the_guest() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("broken.txt");
    let dump = "00: de 10 b3 1b 00 00 10 00 a1 00 02 03 00 00 00 00\n\
                30: 00 00 00 00 42 00 00 00 00 00 00 00 00 01 00 00\n\
                40: 01 4b 03 00 00 00 00 00 09 44 08 00 00 00 00 00\n\
                100: 10 00 01 20 00 00 00 00 00 00 00 00 00 00 00 00\n\
                200: 0b 00 01 10 01 00 01 01 00 00 00 00 00 00 00 00\n";
    fs::write(&path, dump).expect("a written dump");
    let seen = Rig::new(&path.display().to_string(), &[]).seen();
    assert_eq!(seen.capabilities(), [(1, 0x40), (9, 0x48)]);
    assert_eq!(seen.extended_capabilities(), [(0x0b, 0x200)]);
    assert_eq!(seen.dword(0x100), 0x2000_0000, "a head that leads on");
}
