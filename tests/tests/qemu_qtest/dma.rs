// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine reads and writes guest RAM.

use system_tests::{
    model_gpu::{self, engine},
    pattern, pci,
};

use crate::rig::{Finished, RAM, Rig, VRAM};

const TO_VRAM: u32 = engine::COMMAND_COPY | engine::COMMAND_DST_VRAM;
const FROM_VRAM: u32 = engine::COMMAND_COPY | engine::COMMAND_SRC_VRAM;

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn data_goes_from_ram_to_vram_to_ram() {
    /// Odd in size and place, so that nothing is right by alignment alone.
    const LENGTH: usize = 0x2_0003;
    let from = RAM + 5;
    let rest = 0x1_0007;
    let to = RAM + 0x10_0001;
    let data = pattern::bytes(1, LENGTH);
    let moved = || Finished {
        error: 0,
        completed: LENGTH as u64,
    };

    let mut rig = Rig::new();
    rig.qtest().write(from, &data);
    rig.qtest().memset(to - 1, LENGTH + 2, 0x55);
    assert_eq!(rig.run(TO_VRAM, from, rest, LENGTH as u64), moved());
    let vram = rig.qtest().read(u64::from(VRAM) + rest, LENGTH);
    assert!(vram == data, "VRAM differs from what was sent");

    rig.qtest().memset(from, LENGTH, 0);
    assert_eq!(rig.run(FROM_VRAM, rest, to, LENGTH as u64), moved());
    let back = rig.qtest().read(to - 1, LENGTH + 2);
    assert!(back[1..=LENGTH] == data, "RAM differs from what was sent");
    assert_eq!(
        (back[0], back[LENGTH + 1]),
        (0x55, 0x55),
        "bytes around the copy"
    );
    assert_eq!(rig.read32(engine::FENCE), 2, "commands finished");
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn data_goes_from_ram_to_ram_and_from_vram_to_vram() {
    let data = pattern::bytes(2, 4096);
    let mut rig = Rig::new();
    rig.qtest().write(RAM, &data);
    let copied = rig.run(engine::COMMAND_COPY, RAM, RAM + 0x8000, 4096);
    assert_eq!((copied.error, copied.completed), (0, 4096));
    assert!(rig.qtest().read(RAM + 0x8000, 4096) == data);

    rig.run(TO_VRAM, RAM, 0, 4096);
    let inside = engine::COMMAND_COPY | engine::COMMAND_SRC_VRAM | engine::COMMAND_DST_VRAM;
    let end = model_gpu::VRAM_SIZE - 4096;
    let copied = rig.run(inside, 0, end, 4096);
    assert_eq!((copied.error, copied.completed), (0, 4096));
    assert!(rig.qtest().read(u64::from(VRAM) + end, 4096) == data);
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn a_fill_repeats_its_pattern() {
    let mut rig = Rig::new();
    rig.write32(engine::FILL, 0x4433_2211);
    let filled = rig.run(engine::COMMAND_FILL, 0, RAM, 10);
    assert_eq!((filled.error, filled.completed), (0, 10));
    let seen = rig.qtest().read(RAM, 12);
    assert_eq!(
        seen,
        [
            0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0, 0
        ]
    );
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn what_cannot_be_done_is_reported_and_survived() {
    let mut rig = Rig::new();
    // Below 4 GiB, where there is neither RAM nor a BAR.
    let nowhere = 0xa000_0000;
    let fault = rig.run(TO_VRAM, nowhere, 0, 64);
    assert_eq!((fault.error, fault.completed), (engine::ERROR_DMA_FAULT, 0));
    assert_eq!(rig.read64(engine::FAULT_ADDRESS), nowhere);

    let outside = rig.run(TO_VRAM, RAM, model_gpu::VRAM_SIZE - 32, 64);
    assert_eq!(outside.error, engine::ERROR_VRAM_RANGE);
    // A range that wraps around the end of the address space is not a short one.
    let wrapping = rig.run(TO_VRAM, RAM, u64::MAX - 31, 64);
    assert_eq!(wrapping.error, engine::ERROR_VRAM_RANGE);
    let wrapping = rig.run(FROM_VRAM, 0, u64::MAX - 31, 64);
    assert_eq!(wrapping.error, engine::ERROR_DMA_FAULT);

    let good = rig.run(TO_VRAM, RAM, 0, 64);
    assert_eq!((good.error, good.completed), (0, 64));
}

#[test]
#[ignore = "lane qemu: needs QEMU"]
fn without_bus_mastering_nothing_moves() {
    let mut rig = Rig::new();
    let gpu = rig.gpu;
    rig.qtest().write(RAM, &[0x77; 64]);
    gpu.clear_command(rig.qtest(), pci::COMMAND_MASTER);
    let refused = rig.run(TO_VRAM, RAM, 0, 64);
    assert_eq!(
        (refused.error, refused.completed),
        (engine::ERROR_BUS_MASTER, 0)
    );
    assert_eq!(
        rig.qtest().readl(u64::from(VRAM)),
        0,
        "VRAM after a refused copy"
    );
    gpu.set_command(rig.qtest(), pci::COMMAND_MASTER);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 64).error, 0);
    assert_eq!(rig.qtest().readl(u64::from(VRAM)), 0x7777_7777);
}
