// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets, hot-plug, and a backend that dies.

use serde_json::json;
use system_tests::{
    backend::Backend,
    model_gpu::{self, engine},
    pci::{self, Function},
    qemu::QemuCommand,
};

use crate::rig::{ENGINE, RAM, Rig, VRAM};

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_system_reset_leaves_the_device_fresh_and_usable() {
    let mut rig = Rig::new();
    rig.write32(engine::SCRATCH, 0x5555_aaaa);
    rig.qtest().writel(u64::from(VRAM), 0x1eaf);
    let fill = engine::COMMAND_FILL | engine::COMMAND_DST_VRAM;
    assert_eq!(rig.run(fill, 0, 0x1000, 64).error, 0);
    assert_eq!(rig.read32(engine::FENCE), 1);

    rig.qemu.qmp.execute("system_reset", json!({}));
    rig.qemu.qmp.wait_for_event("RESET");
    let gpu = rig.gpu;
    let command = gpu.read16(rig.qtest(), pci::COMMAND);
    assert_eq!(
        command & (pci::COMMAND_MEMORY | pci::COMMAND_MASTER),
        0,
        "as after power-on"
    );

    rig.set_up();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
    assert_eq!(rig.read32(engine::SCRATCH), 0);
    assert_eq!(rig.read32(engine::FENCE), 0);
    assert_eq!(
        rig.qtest().readl(u64::from(VRAM)),
        0,
        "VRAM after the reset"
    );
    rig.qtest().writel(RAM, 0x600d_da7a);
    let to_vram = engine::COMMAND_COPY | engine::COMMAND_DST_VRAM;
    assert_eq!(rig.run(to_vram, RAM, 0, 4).error, 0);
    assert_eq!(rig.qtest().readl(u64::from(VRAM)), 0x600d_da7a);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_function_level_reset_through_configuration_space() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    rig.write32(engine::SCRATCH, 0x5555_aaaa);
    let express = gpu.capability(rig.qtest(), pci::CAP_EXPRESS);
    let control = gpu.read16(rig.qtest(), express + 8);
    gpu.write16(rig.qtest(), express + 8, control | 1 << 15);
    // The device is reset; the addresses that QEMU keeps for the guest are put back by whoever asked for it.
    rig.set_up();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
    assert_eq!(rig.read32(engine::SCRATCH), 0);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn hot_plug_behind_a_root_port() {
    let backend = Backend::start();
    let port = json!({"driver": "pcie-root-port", "id": "root", "bus": "pcie.0", "addr": "5"});
    let mut qemu = QemuCommand::new(128).qtest().device(&port).start();
    let bridge = Function::new(0, 5);
    let gpu = Function::new(1, 0);
    // Bus 1 behind the bridge, with a window for registers and one for VRAM (1 MiB units, address bits 31:20).
    let window = |start: u32, size: u32| (start + size - 1) & 0xfff0_0000 | start >> 16;
    let qtest = qemu.qtest();
    bridge.write32(qtest, pci::BRIDGE_BUSES, 0x0001_0100);
    bridge.write32(
        qtest,
        pci::BRIDGE_MEMORY,
        window(ENGINE & 0xfff0_0000, 1 << 20),
    );
    bridge.write32(qtest, pci::BRIDGE_PREFETCHABLE, window(VRAM, 64 << 20));
    bridge.set_command(qtest, pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    assert_eq!(gpu.read32(qtest, pci::VENDOR_ID), u32::MAX, "an empty slot");

    let mut device = backend.qemu_device();
    device["bus"] = json!("root");
    qemu.qmp.execute("device_add", device);
    let qtest = qemu.qtest();
    assert_eq!(gpu.read16(qtest, pci::VENDOR_ID), model_gpu::VENDOR);
    assert_eq!(gpu.read16(qtest, pci::VENDOR_ID + 2), model_gpu::DEVICE);
    let express = gpu.capability(qtest, pci::CAP_EXPRESS);
    let kind = gpu.read16(qtest, express + 2) >> 4 & 0xf;
    assert_eq!(kind, 0, "behind a port it is a PCI Express endpoint");

    gpu.place_bar(qtest, 0, VRAM);
    gpu.place_bar(qtest, 4, ENGINE);
    gpu.set_command(qtest, pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    assert_eq!(qtest.readl(u64::from(ENGINE)), engine::ID_VALUE);
    qtest.writel(u64::from(VRAM), 0x1357_9bdf);
    let mut rig = Rig { qemu, backend, gpu };
    let from_vram = engine::COMMAND_COPY | engine::COMMAND_SRC_VRAM;
    assert_eq!(rig.run(from_vram, 0, RAM, 4).error, 0);
    assert_eq!(
        rig.qtest().readl(RAM),
        0x1357_9bdf,
        "DMA by a hot-plugged device"
    );
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn qemu_survives_a_backend_that_is_killed() {
    let mut rig = Rig::new();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
    rig.backend.kill();
    assert_eq!(
        rig.read32(engine::ID),
        u32::MAX,
        "a device that is gone reads all ones"
    );
    rig.write32(engine::SCRATCH, 1);
    assert_eq!(rig.read32(engine::SCRATCH), u32::MAX);
    rig.qtest().writel(RAM, 7);
    assert_eq!(rig.qtest().readl(RAM), 7, "the machine goes on");
    assert!(rig.qemu.qmp.is_in_state("running"));
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_backend_that_is_asked_to_end_leaves_no_socket() {
    let mut rig = Rig::new();
    let status = rig.backend.terminate();
    assert!(
        status.success(),
        "ended with {status}\n{}",
        rig.backend.report()
    );
    assert!(
        !rig.backend.socket().exists(),
        "the socket's path is left behind"
    );
    assert!(rig.qemu.qmp.is_in_state("running"));
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_second_client_is_refused_and_the_first_not_disturbed() {
    /// EBUSY.
    const BUSY: u32 = 16;
    let mut rig = Rig::new();
    rig.write32(engine::SCRATCH, 0x5555_aaaa);
    assert_eq!(rig.backend.try_attach().err(), Some(BUSY));
    assert_eq!(rig.read32(engine::SCRATCH), 0x5555_aaaa);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn the_next_qemu_finds_a_fresh_device() {
    let mut rig = Rig::new();
    rig.write32(engine::SCRATCH, 0x005e_c2e7);
    rig.qtest().writel(u64::from(VRAM), 0x005e_c2e7);
    let Rig { qemu, backend, .. } = rig;
    // QEMU is killed in the middle of its work, as by a crash.
    drop(qemu);
    backend.wait_until_left(1);
    let mut device = backend.qemu_device();
    device["addr"] = json!("4");
    let qemu = QemuCommand::new(128).qtest().device(&device).start();
    let mut rig = Rig {
        qemu,
        backend,
        gpu: Function::new(0, 4),
    };
    rig.set_up();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
    assert_eq!(rig.read32(engine::SCRATCH), 0);
    assert_eq!(rig.qtest().readl(u64::from(VRAM)), 0);
}
