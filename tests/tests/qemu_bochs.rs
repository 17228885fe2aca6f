// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's stock kernel drives the GPU as a display with its own `bochs` driver.

use std::fs;

use serde_json::json;
use system_tests::{backend::Backend, guest::Guest, lane, screen::Screen};

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn the_stock_driver_draws_into_the_file_behind_the_vram() {
    let backend = Backend::start_with_vram_file();
    let mut device = backend.qemu_device();
    device["addr"] = json!("4");
    let mut guest = Guest::new(lane::stock_kernel())
        .device(device)
        .boot(&["draw"]);
    guest.wait_until_ready("draw");

    // While the guest is up: a reset, and so its end, clears the VRAM.
    let screen = Screen::of(&mut guest.qemu.qmp, "gpu");
    let vram = fs::read(backend.vram_file()).expect("the file behind the VRAM");
    assert_eq!(
        u64::try_from(vram.len()).ok(),
        Some(screen.vram_size),
        "size of the file"
    );
    screen.assert_shows_the_pattern(&vram);

    guest.go_on();
    guest.finish().assert_ok("draw");
}

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn nothing_of_the_picture_is_left_for_the_next_client() {
    let backend = Backend::start_with_vram_file();
    let mut device = backend.qemu_device();
    device["addr"] = json!("4");
    let guest = Guest::new(lane::stock_kernel())
        .device(device)
        .boot(&["draw"]);
    guest.wait_until_ready("draw");
    let drawn = fs::read(backend.vram_file()).expect("the file behind the VRAM");
    assert!(drawn.iter().any(|byte| *byte != 0), "nothing was drawn");
    drop(guest);
    backend.wait_until_left(1);
    // A client that does nothing: what is clean, the backend has cleaned.
    let _next_client = backend.attach();
    let left = fs::read(backend.vram_file()).expect("the file behind the VRAM");
    let dirty = left.iter().position(|byte| *byte != 0);
    assert_eq!(dirty, None, "the first byte left by the first client");
}
