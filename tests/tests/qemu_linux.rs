// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest in QEMU uses the GPU from user space: one boot, and a test for each thing it does with it.

use std::sync::OnceLock;

use serde_json::json;
use system_tests::{
    backend::Backend,
    guest::{Guest, Report},
    lane,
};

/// In this order: binding a driver and resetting come last, since they leave the device changed.
const CHECKS: [&str; 7] = [
    "config",
    "registers",
    "vram",
    "dma",
    "dma-errors",
    "interrupt",
    "reset",
];

/// What the guest's checks found. The guest runs once, for whichever test asks first.
#[track_caller]
fn report() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| {
        let backend = Backend::start();
        let mut device = backend.qemu_device();
        device["addr"] = json!("4");
        let guest = Guest::new(lane::cloud_kernel())
            .append("hugepages=8")
            .device(device);
        let report = guest.boot(&CHECKS).finish();
        assert!(
            backend.is_running(),
            "the backend ended\n{}",
            backend.report()
        );
        report
    })
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn configuration_space_reads_through_sysfs() {
    report().assert_ok("config");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn registers_work_through_a_mapped_resource() {
    report().assert_ok("registers");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn vram_is_mapped_and_is_what_the_engine_fills() {
    report().assert_ok("vram");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn the_engine_copies_guest_memory_both_ways() {
    report().assert_ok("dma");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn dma_errors_are_reported_and_survived() {
    report().assert_ok("dma-errors");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn interrupts_are_counted_by_a_stock_driver() {
    report().assert_ok("interrupt");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn function_level_reset_clears_the_device() {
    report().assert_ok("reset");
}
