// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The harness against QEMU's own devices: when one of these fails, it is not the backend that is broken.

use serde_json::json;
use system_tests::{
    guest::Guest,
    lane,
    pci::{self, Bar, Function},
    qemu::QemuCommand,
    screen::Screen,
};

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn configuration_space_of_a_device_of_qemu() {
    let mut qemu = QemuCommand::new(128)
        .qtest()
        .device(&json!({"driver": "bochs-display", "addr": "4"}))
        .start();
    let qtest = qemu.qtest();
    let display = Function::new(0, 4);
    assert_eq!(display.read32(qtest, pci::VENDOR_ID), 0x1111_1234);
    let bar = display.size_bar(qtest, 0);
    assert_eq!(
        (bar.size, bar.io, bar.prefetchable),
        (16 << 20, false, true)
    );
    assert_eq!(
        display.size_bar(qtest, 4),
        Bar {
            size: 0,
            io: false,
            is_64_bit: false,
            prefetchable: false
        }
    );
    display.place_bar(qtest, 0, 0xe000_0000);
    display.set_command(qtest, pci::COMMAND_MEMORY);
    qtest.writel(0xe000_0040, 0x1234_5678);
    assert_eq!(qtest.readl(0xe000_0040), 0x1234_5678);
    qtest.write(0xe000_0041, &[0xaa, 0xbb]);
    assert_eq!(qtest.read(0xe000_0040, 4), [0x78, 0xaa, 0xbb, 0x12]);
    pci::enable_ecam(qtest, 0xb000_0000);
    assert_eq!(qtest.readl(display.ecam(0xb000_0000)), 0x1111_1234);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn interrupts_of_a_device_of_qemu() {
    /// Registers of QEMU's `edu` device (docs/specs/edu.rst).
    const RAISE: u64 = 0xe000_0060;
    const ACKNOWLEDGE: u64 = 0xe000_0064;
    let mut qemu = QemuCommand::new(128)
        .qtest()
        .device(&json!({"driver": "edu", "addr": "4"}))
        .start();
    let qtest = qemu.qtest();
    qtest.intercept_irqs("ioapic");
    let edu = Function::new(0, 4);
    edu.place_bar(qtest, 0, 0xe000_0000);
    edu.set_command(qtest, pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    assert_eq!(qtest.irqs_high(), [0; 0]);
    qtest.writel(RAISE, 1);
    assert_eq!(qtest.irqs_high().len(), 1);
    qtest.writel(ACKNOWLEDGE, 1);
    assert_eq!(qtest.irqs_high(), [0; 0]);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn an_argument_that_qemu_refuses_is_reported() {
    let started =
        std::panic::catch_unwind(|| QemuCommand::new(128).qtest().arg("-nonsense").start());
    let message = started.expect_err("QEMU has no such option");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("-nonsense: invalid option"), "{message}");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn a_guest_reports_failed_and_unknown_checks() {
    let report = Guest::new(lane::cloud_kernel())
        .boot(&["config", "nonsense"])
        .finish();
    let why = report.failure("config").unwrap_or("nothing");
    assert!(why.starts_with("no GPU among"), "{why}");
    assert_eq!(report.failure("nonsense"), Some("there is no such check"));
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn the_stock_driver_draws_on_a_display_of_qemu() {
    let mut guest = Guest::new(lane::stock_kernel())
        .device(json!({"driver": "bochs-display", "id": "gpu", "addr": "4"}))
        .boot(&["draw"]);
    guest.wait_until_ready("draw");
    let screen = Screen::of(&mut guest.qemu.qmp, "gpu");
    let vram = guest
        .qemu
        .physical_memory(screen.vram_address, screen.vram_size);
    screen.assert_shows_the_pattern(&vram);
    // And it would not be found where it is not.
    let shifted = std::panic::catch_unwind(|| screen.assert_shows_the_pattern(&vram[4..]));
    assert!(shifted.is_err());
    guest.go_on();
    guest.finish().assert_ok("draw");
}
