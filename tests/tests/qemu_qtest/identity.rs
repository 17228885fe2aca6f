// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who the device says it is, through both ways into configuration space, and the BARs it asks for.

use system_tests::{
    model_gpu,
    pci::{self, Bar},
};

use crate::rig::Rig;

const ECAM: u32 = 0xb000_0000;

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn identity_reads_through_the_ports() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    assert_eq!(gpu.read16(qtest, pci::VENDOR_ID), model_gpu::VENDOR);
    assert_eq!(gpu.read16(qtest, pci::VENDOR_ID + 2), model_gpu::DEVICE);
    let class = model_gpu::CLASS << 8 | u32::from(model_gpu::REVISION);
    assert_eq!(gpu.read32(qtest, pci::CLASS_REVISION), class);
    let subsystem = u32::from(model_gpu::SUBSYSTEM) << 16 | u32::from(model_gpu::SUBSYSTEM_VENDOR);
    assert_eq!(gpu.read32(qtest, pci::SUBSYSTEM), subsystem);
    assert_eq!(
        gpu.read8(qtest, pci::HEADER_TYPE) & 0x7f,
        0,
        "an ordinary header"
    );
    assert_eq!(gpu.read8(qtest, pci::INTERRUPT_PIN), 1, "INTA");
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn ecam_shows_the_same_configuration_space() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    pci::enable_ecam(qtest, ECAM);
    let base = gpu.ecam(u64::from(ECAM));
    for register in (0..0x100).step_by(4) {
        let by_ports = gpu.read32(qtest, register);
        let by_ecam = qtest.readl(base + u64::from(register));
        assert_eq!(by_ecam, by_ports, "register {register:#x}");
    }
    // A write by one way is seen by the other.
    let command = gpu.read16(qtest, pci::COMMAND);
    let address = base + u64::from(pci::COMMAND);
    qtest.writew(address, command ^ pci::COMMAND_INTX_DISABLE);
    assert_eq!(
        gpu.read16(qtest, pci::COMMAND),
        command ^ pci::COMMAND_INTX_DISABLE
    );
    // The extended space is there, and ends where it must: an empty list or a capability at 0x100.
    let extended = qtest.readl(base + 0x100);
    assert_ne!(extended, u32::MAX, "no extended configuration space");
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn the_capability_list_is_what_drivers_look_for() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    gpu.capability(qtest, pci::CAP_PM);
    gpu.capability(qtest, pci::CAP_MSI);

    let express = gpu.capability(qtest, pci::CAP_EXPRESS);
    let capabilities = gpu.read32(qtest, express + 4);
    assert_ne!(capabilities & 1 << 28, 0, "no FLR in {capabilities:#x}");

    let msix = gpu.capability(qtest, pci::CAP_MSIX);
    let control = gpu.read16(qtest, msix + 2);
    assert_eq!((control & 0x7ff) + 1, model_gpu::VECTORS);
    let place = |offset: u64| u32::try_from(offset).expect("inside a BAR") | 4;
    assert_eq!(
        gpu.read32(qtest, msix + 4),
        place(model_gpu::MSIX_TABLE),
        "table, BAR4"
    );
    assert_eq!(
        gpu.read32(qtest, msix + 8),
        place(model_gpu::MSIX_PBA),
        "pending bits, BAR4"
    );
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn bars_size_and_place() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    let qtest = rig.qtest();
    gpu.clear_command(qtest, pci::COMMAND_MEMORY);
    let memory = |size, vram| Bar {
        size,
        io: false,
        is_64_bit: vram,
        prefetchable: vram,
    };
    assert_eq!(gpu.size_bar(qtest, 0), memory(model_gpu::VRAM_SIZE, true));
    assert_eq!(
        gpu.size_bar(qtest, 2),
        memory(model_gpu::DISPLAY_SIZE, false)
    );
    assert_eq!(gpu.size_bar(qtest, 3), memory(0, false));
    assert_eq!(
        gpu.size_bar(qtest, 4),
        memory(model_gpu::ENGINE_SIZE, false)
    );
    assert_eq!(gpu.size_bar(qtest, 5), memory(0, false));

    // A BAR answers where it is placed, and only there.
    const ELSEWHERE: u32 = 0xd000_0000;
    gpu.place_bar(qtest, 4, ELSEWHERE);
    gpu.set_command(qtest, pci::COMMAND_MEMORY);
    let id = model_gpu::engine::ID_VALUE;
    assert_eq!(qtest.readl(u64::from(ELSEWHERE)), id);
    assert_ne!(
        qtest.readl(u64::from(crate::rig::ENGINE)),
        id,
        "the place it has left"
    );
    gpu.clear_command(qtest, pci::COMMAND_MEMORY);
    assert_ne!(
        qtest.readl(u64::from(ELSEWHERE)),
        id,
        "memory access is off"
    );
}
