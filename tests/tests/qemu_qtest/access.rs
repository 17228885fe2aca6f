// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses to trapped registers, and to VRAM that QEMU has mapped.

use system_tests::model_gpu::{self, dispi, engine};

use crate::rig::{DISPLAY, ENGINE, Rig, VRAM};

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn trapped_registers_keep_their_widths() {
    let mut rig = Rig::new();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
    assert_eq!(rig.read32(engine::VERSION), engine::VERSION_VALUE);
    assert_eq!(
        rig.read32(engine::CAPS) >> 16,
        u32::from(model_gpu::VECTORS)
    );
    assert_eq!(rig.read64(engine::VRAM_SIZE), model_gpu::VRAM_SIZE);

    rig.write32(engine::SCRATCH, 0xdead_beef);
    assert_eq!(rig.read32(engine::SCRATCH), 0xdead_beef);
    rig.write32(engine::ID, 0);
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE, "read-only");

    // 64 bits at once, and as two halves.
    rig.write64(engine::SRC, 0x1122_3344_5566_7788);
    assert_eq!(rig.read32(engine::SRC), 0x5566_7788);
    assert_eq!(rig.read32(engine::SRC + 4), 0x1122_3344);
    rig.write32(engine::SRC, 0);
    assert_eq!(rig.read64(engine::SRC), 0x1122_3344_0000_0000);

    // Bytes and halves of a 32-bit register are not registers.
    let scratch = u64::from(ENGINE) + engine::SCRATCH;
    assert_eq!(rig.qtest().readw(scratch), 0);
    rig.qtest().writeb(scratch, 0);
    assert_eq!(rig.read32(engine::SCRATCH), 0xdead_beef);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn the_display_interface_answers() {
    let mut rig = Rig::new();
    let register = |index: u64| u64::from(DISPLAY) + dispi::BASE + 2 * index;
    let qtest = rig.qtest();
    let id = qtest.readw(register(dispi::ID));
    assert!(
        (0xb0c0..=0xb0c5).contains(&id),
        "{id:#x} is no version of the interface"
    );
    for (index, value) in [(dispi::XRES, 800), (dispi::YRES, 600), (dispi::BPP, 32)] {
        qtest.writew(register(index), value);
        assert_eq!(qtest.readw(register(index)), value, "register {index}");
    }
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn vram_is_memory_from_end_to_end() {
    let mut rig = Rig::new();
    let vram = u64::from(VRAM);
    let last = vram + model_gpu::VRAM_SIZE - 8;
    let qtest = rig.qtest();
    for address in [vram, vram + 0x1000, last] {
        assert_eq!(qtest.readq(address), 0, "fresh VRAM at {address:#x}");
        qtest.writeq(address, !address);
    }
    for address in [vram, vram + 0x1000, last] {
        assert_eq!(qtest.readq(address), !address, "VRAM at {address:#x}");
    }
    qtest.writeb(vram + 3, 0xab);
    assert_eq!(qtest.readb(vram + 3), 0xab);
    assert_eq!(
        qtest.readl(vram + 4),
        u32::MAX,
        "beside a byte that was written"
    );
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn vram_is_mapped_and_needs_no_backend() {
    let mut rig = Rig::new();
    let vram = u64::from(VRAM);
    rig.qtest().writel(vram + 0x40, 0x1234_5678);
    // A backend that is stopped answers nothing: what still works is mapped.
    rig.backend.suspend();
    assert_eq!(rig.qtest().readl(vram + 0x40), 0x1234_5678);
    rig.qtest().writel(vram + 0x44, 0x9abc_def0);
    assert_eq!(rig.qtest().readl(vram + 0x44), 0x9abc_def0);
    rig.backend.resume();
    assert_eq!(rig.read32(engine::ID), engine::ID_VALUE);
}
