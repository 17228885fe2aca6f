// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every fixture in QEMU, and each quirk tried on each: a table of which has which.

use std::fs;

use serde_json::json;
use system_tests::backend::Backend;
use system_tests::opregion;
use system_tests::pci::{self, Function};
use system_tests::qemu::QemuCommand;
use system_tests::qtest::Qtest;
use system_tests::view;

use crate::table;

const BAR0: u32 = 0xe000_0000;
const IO: u16 = 0xc000;
const COMMAND_IO: u16 = 1 << 0;
const INTERRUPT_LINE: u16 = 0x3c;
const ASLS: u16 = 0xfc;
const GMCH: u16 = 0x50;

/// What one fixture must have, and where.
struct Wanted {
    fixture: &'static str,
    /// Mirrors of config space in BAR0.
    mirrors: &'static [u64],
    /// The window in BAR5.
    window: bool,
    /// Intel graphics: BDSM, and GMCH as told with `--igd-gms 1`.
    igd: Option<(u16, u16)>,
}

const fn plain(fixture: &'static str) -> Wanted {
    Wanted {
        fixture,
        mirrors: &[],
        window: false,
        igd: None,
    }
}

const fn intel(fixture: &'static str, bdsm: u16, gmch: u16) -> Wanted {
    Wanted {
        igd: Some((bdsm, gmch)),
        ..plain(fixture)
    }
}

const WANTED: &[Wanted] = &[
    Wanted {
        mirrors: &[0x8_8000],
        ..plain("nvidia-tesla-p4")
    },
    Wanted {
        mirrors: &[0x8_8000],
        ..plain("nvidia-tesla-t4")
    },
    Wanted {
        mirrors: &[0x8_8000],
        window: true,
        ..plain("nvidia-gtx-1080")
    },
    plain("amd-vega-64"),
    intel("intel-gen8-broadwell", 0x5c, 0x0111),
    intel("intel-gen9-skylake", 0x5c, 0x01c1),
    intel("intel-gen11-ice-lake", 0xc0, 0x01c1),
    intel("intel-gen12-tiger-lake", 0xc0, 0x01c1),
];

/// Whether BAR0 shows config space from `at` on: reads, and a write that goes through.
fn mirrors(gpu: Function, qtest: &mut Qtest, at: u64) -> bool {
    let ids = gpu.read32(qtest, pci::VENDOR_ID);
    let bar = u64::from(BAR0) + at;
    if qtest.readl(bar) != ids {
        return false;
    }
    for value in [0x5a, 0xa5] {
        qtest.writeb(bar + u64::from(INTERRUPT_LINE), value);
        if gpu.read8(qtest, INTERRUPT_LINE) != value {
            return false;
        }
    }
    true
}

/// Whether the ports of BAR5 reach config space, once they have an address.
fn has_window(gpu: Function, qtest: &mut Qtest) -> bool {
    let ids = gpu.read32(qtest, pci::VENDOR_ID);
    gpu.write32(qtest, 0x24, IO.into());
    let nobody = qtest.inl(IO + 0xc) == u32::MAX;
    qtest.outl(IO + 8, 0x8_8000);
    nobody && qtest.inl(IO + 0xc) == ids
}

fn is_igd(gpu: Function, qtest: &mut Qtest, bdsm: u16, gmch: u16) -> bool {
    let bar = u64::from(BAR0);
    let hidden = gpu.read32(qtest, ASLS) == 0 && gpu.read32(qtest, bdsm) == 0;
    gpu.write32(qtest, bdsm, 0xbc00_0000);
    let shown = qtest.readl(bar + 0x10_80c0) == 0xbc00_0000;
    let size = gpu.read16(qtest, GMCH) == gmch && qtest.readw(bar + 0x10_8040) == gmch;
    gpu.write16(qtest, GMCH, 0xffff);
    hidden && shown && size && gpu.read16(qtest, GMCH) == gmch
}

fn is_placed(gpu: Function, qtest: &mut Qtest) -> bool {
    gpu.write32(qtest, ASLS, 0x20_0000);
    qtest.read(0x20_0000, opregion::SIZE) == opregion::of_guest()
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn each_fixture_has_the_quirks_of_its_board() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("opregion");
    fs::write(&file, opregion::of_host()).expect("a file");
    let titles = [
        "fixture",
        "BAR0+0x88000",
        "BAR0+0x1800",
        "BAR5",
        "ASLS, BDSM, GMCH",
        "OpRegion",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for wanted in WANTED {
        let config = format!("config={}", view::fixture(wanted.fixture).display());
        let igd = format!("igd={}", file.display());
        let backend = match wanted.igd {
            Some(_) => Backend::start_with(
                &[&config, &igd],
                &["--igd-opregion", "copy", "--igd-gms", "1"],
            ),
            None => Backend::start_with(&[&config], &[]),
        };
        let mut device = backend.qemu_device();
        device["bus"] = json!("pcie.0");
        device["addr"] = json!("2");
        let mut qemu = QemuCommand::new(128).qtest().device(&device).start();
        let (gpu, qtest) = (Function::new(0, 2), qemu.qtest());
        gpu.place_bar(qtest, 0, BAR0);
        gpu.set_command(qtest, pci::COMMAND_MEMORY | COMMAND_IO);
        let mut row = vec![wanted.fixture.to_owned()];
        let mut check = |has: bool, should: bool| {
            assert_eq!(
                has,
                should,
                "{}: {}\n{}",
                wanted.fixture,
                titles[row.len()],
                backend.report()
            );
            row.push(if should { "ok" } else { "-" }.to_owned());
        };
        for at in [0x8_8000, 0x1800] {
            check(mirrors(gpu, qtest, at), wanted.mirrors.contains(&at));
        }
        check(wanted.window && has_window(gpu, qtest), wanted.window);
        match wanted.igd {
            Some((bdsm, gmch)) => {
                check(is_igd(gpu, qtest, bdsm, gmch), true);
                check(is_placed(gpu, qtest), true);
            }
            None => {
                check(false, false);
                check(false, false);
            }
        }
        rows.push(row);
    }
    table::print(
        "Quirks of each fixture, tried by qtest through QEMU:",
        &rows,
    );
}
