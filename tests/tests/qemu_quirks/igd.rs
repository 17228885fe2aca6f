// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel graphics in QEMU: SeaBIOS places the OpRegion, and the backend fills the place.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use system_tests::backend::Backend;
use system_tests::opregion;
use system_tests::pci::{self, Function};
use system_tests::qemu::{Qemu, QemuCommand};
use tempfile::TempDir;

const ASLS: u16 = 0xfc;
const BDSM: u16 = 0x5c;
const BAR0: u32 = 0xe000_0000;

struct Rig {
    backend: Backend,
    folder: TempDir,
    gpu: Function,
}

impl Rig {
    fn new(how: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("opregion");
        fs::write(&path, opregion::of_host()).expect("a file");
        let model = format!("igd={}", path.display());
        Self {
            backend: Backend::start_with(&[&model], &["--igd-opregion", how]),
            folder,
            // Where such a part is on every board.
            gpu: Function::new(0, 2),
        }
    }

    fn start(&self, command: QemuCommand) -> Qemu {
        let mut device = self.backend.qemu_device();
        device["bus"] = json!("pcie.0");
        device["addr"] = json!("2");
        command.device(&device).start()
    }

    /// A file of as many bytes as the OpRegion has, with nothing in it.
    fn empty(&self) -> PathBuf {
        let path = self.folder.path().join("empty");
        fs::write(&path, [0; opregion::SIZE]).expect("a file");
        path
    }
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn seabios_places_the_copy() {
    let rig = Rig::new("copy");
    // SeaBIOS reserves memory and writes ASLS where this file is; what it has in it is not what counts.
    let file = format!("name=etc/igd-opregion,file={}", rig.empty().display());
    let command = QemuCommand::new(256)
        .arg("-accel")
        .arg("tcg")
        .arg("-fw_cfg")
        .arg(file)
        .arg("-chardev")
        .arg("stdio,id=seabios")
        .arg("-device")
        .arg("isa-debugcon,iobase=0x402,chardev=seabios");
    let mut qemu = rig.start(command);
    let line = qemu.process.wait_for_line("where the OpRegion is", |line| {
        line.contains("Intel IGD OpRegion enabled at 0x")
    });
    let (_, rest) = line.split_once("enabled at 0x").expect("the address");
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    let address = u64::from_str_radix(&digits, 16).expect("a number");
    assert!(
        address.is_multiple_of(4096) && address < 256 << 20,
        "{line}"
    );
    let copy = qemu.physical_memory(address, opregion::SIZE as u64);
    assert!(
        copy == opregion::of_guest(),
        "not the OpRegion: {:x?}",
        &copy[..32]
    );
    let said = format!(
        "OpRegion of {} bytes copied to {address:#x}",
        opregion::SIZE
    );
    rig.backend.wait_for_log(&said, 1);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn what_firmware_writes_is_checked() {
    let rig = Rig::new("copy");
    let gpu = rig.gpu;
    let mut qemu = rig.start(QemuCommand::new(128).qtest());
    let qtest = qemu.qtest();
    assert_eq!(gpu.read32(qtest, ASLS), 0, "the host's address shows");
    let end = 128 << 20;
    for bad in [0x10_0004, end - 0x1000, end, 0xffff_f000] {
        qtest.memset(u64::from(end) - 0x1000, 0x1000, 0x11);
        gpu.write32(qtest, ASLS, bad);
        assert_eq!(gpu.read32(qtest, ASLS), bad);
        let last = qtest.read(u64::from(end) - 0x1000, 0x1000);
        assert!(
            last.iter().all(|byte| *byte == 0x11),
            "half a copy at {bad:#x}"
        );
    }
    gpu.write32(qtest, ASLS, 0x20_0000);
    assert!(qtest.read(0x20_0000, opregion::SIZE) == opregion::of_guest());
    rig.backend.wait_for_log("OpRegion not copied to", 4);
    rig.backend.wait_for_log("not a multiple of 4 KiB", 1);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_mapped_bar_shows_the_guests_registers() {
    let rig = Rig::new("serve");
    let gpu = rig.gpu;
    let mut qemu = rig.start(QemuCommand::new(128).qtest());
    let qtest = qemu.qtest();
    gpu.place_bar(qtest, 0, BAR0);
    gpu.set_command(qtest, pci::COMMAND_MEMORY);
    let bar = u64::from(BAR0);
    gpu.write32(qtest, BDSM, 0x7c00_0000);
    assert_eq!(qtest.readl(bar + 0x10_80c0), 0x7c00_0000);
    assert_eq!(qtest.readw(bar + 0x10_8040), 0x01c1);
    qtest.writel(bar + 0x10_80c0, 0x7d00_0000);
    assert_eq!(gpu.read32(qtest, BDSM), 0x7d00_0000);
    // The pages around are memory, which QEMU has mapped.
    for at in [0x10_7ffc, 0x10_9000] {
        qtest.writel(bar + at, 0x5a5a_0000);
        assert_eq!(qtest.readl(bar + at), 0x5a5a_0000);
    }
    assert_eq!(qtest.readl(bar + 0x10_8044), 0, "memory too, by messages");
}
