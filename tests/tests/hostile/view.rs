// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest cannot be shown: one line that says why, before there is a socket.

use std::{fs, path::Path};

use system_tests::view;

use crate::arguments::assert_refused;

/// A display device of NVIDIA with a list at 0x40; `lines` may replace that.
fn dump(folder: &Path, name: &str, lines: &str) -> String {
    let header = "00: de 10 b3 1b 00 00 10 00 a1 00 02 03 00 00 00 00\n\
                  30: 00 00 00 00 40 00 00 00 00 00 00 00 00 01 00 00\n";
    let path = folder.join(name);
    fs::write(&path, format!("{header}{lines}")).expect("a written dump");
    format!("--model=config={}", path.display())
}

/// `model` with these arguments is refused, and the line has `word`.
#[track_caller]
fn refuse(model: &str, arguments: &[&str], word: &str) {
    let all = [&[model, "--socket-path", "s"], arguments].concat();
    let line = assert_refused(&all);
    assert!(line.contains(word), "{line:?} for {all:?}");
}

#[test]
fn numbers_out_of_range() {
    for (option, value, word) in [
        ("--nvidia-gpudirect-clique", "16", "0 to 15"),
        ("--nvidia-gpudirect-clique", "abc", "0 to 15"),
        ("--nvidia-gpudirect-clique", "-1", "-1"),
        ("--nvidia-gpudirect-clique", "", "0 to 15"),
        ("--pci-vendor-id", "0xffff", "0x0 to 0xfffe"),
        ("--pci-vendor-id", "10de", "hexadecimal"),
        ("--pci-device-id", "0x10000", "0x0 to 0xffff"),
        ("--pci-subsystem-vendor-id", "65536", "0x0 to 0xffff"),
        ("--pci-subsystem-id", "x", "0x0 to 0xffff"),
        ("--pci-class", "0x1000000", "0x0 to 0xffffff"),
        ("--ats", "maybe", "maybe"),
    ] {
        refuse("--model", &[option, value], word);
    }
}

#[test]
fn a_clique_of_what_is_no_nvidia_gpu() {
    let clique = ["--nvidia-gpudirect-clique", "3"];
    refuse("--model", &clique, "the vendor is 0x1234");
    let fixture = |name| format!("--model=config={}", view::fixture(name).display());
    refuse(&fixture("amd-vega-64"), &clique, "the vendor is 0x1002");
    refuse(
        &fixture("intel-gen9-skylake"),
        &clique,
        "the vendor is 0x8086",
    );
    let audio = [&clique[..], &["--pci-class", "0x040300"]].concat();
    refuse(&fixture("nvidia-tesla-t4"), &audio, "the class is 0x040300");
    let disguised = [&clique[..], &["--pci-vendor-id", "0x1002"]].concat();
    refuse(
        &fixture("nvidia-tesla-t4"),
        &disguised,
        "the vendor is 0x1002",
    );
}

#[test]
fn a_clique_without_room_or_behind_a_broken_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let clique = ["--nvidia-gpudirect-clique", "0"];
    for (name, lines, word) in [
        // A vendor capability that reaches over 0xc8; then two that begin at 0xc8 and 0xd4.
        (
            "reaching",
            "40: 09 00 b0 00 00 00 00 00 00 00 00 00 00 00 00 00\n",
            "no room",
        ),
        (
            "taken",
            "40: 01 c8 03 00 00 00 00 00 00 00 00 00 00 00 00 00\n\
             c0: 00 00 00 00 00 00 00 00 09 d4 08 00 00 00 00 00\n\
             d0: 00 00 00 00 09 00 08 00 00 00 00 00 00 00 00 00\n",
            "no room",
        ),
        (
            "looping",
            "40: 01 48 03 00 00 00 00 00 09 40 08 00 00 00 00 00\n",
            "leads back to 0x40",
        ),
        (
            "misaligned",
            "40: 01 4a 03 00 00 00 00 00 09 00 08 00 00 00 00 00\n",
            "not aligned (0x4a)",
        ),
        (
            "outside",
            "40: 01 20 03 00 00 00 00 00 00 00 00 00 00 00 00 00\n",
            "leads to 0x20",
        ),
    ] {
        let model = dump(folder.path(), name, lines);
        refuse(&model, &clique, word);
    }
}

#[test]
fn files_that_are_no_config_space() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("a written file");
        format!("--model=config={}", path.display())
    };
    refuse("--model=config=no/such/file", &[], "No such file");
    refuse("--model=config=/", &[], "directory");
    refuse(
        "--model=config=/dev/zero",
        &[],
        "not the config space of one device",
    );
    refuse("--model=config=", &[], "needs a value");
    refuse(&file("empty", b""), &[], "00: ");
    refuse(&file("short", &[0; 64]), &[], "256 or 4096");
    refuse(&file("gone", &[0xff; 256]), &[], "does not answer");
    refuse(&file("words", b"00: not sixteen bytes\n"), &[], "Line 1");
    refuse(&dump(folder.path(), "twice", "00: 00\n"), &[], "Line 3");
    refuse(
        &dump(folder.path(), "size", "# Region 0: [size=3M]\n"),
        &[],
        "Line 3",
    );
    let bridge = "10: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\n";
    let mut bytes = [0; 256];
    (bytes[0], bytes[0x0e]) = (1, 1);
    refuse(&file("bridge", &bytes), &[], "Header type 0x01");
    let vram = dump(folder.path(), "vram", bridge) + ",vram=1M";
    refuse(&vram, &[], "does not go with config=FILE");
}
