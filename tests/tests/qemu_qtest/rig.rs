// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A q35 machine with the GPU in slot 4, as firmware would leave it: BARs placed, memory and bus mastering on.

use serde_json::json;
use system_tests::{
    backend::Backend,
    model_gpu::engine,
    pci::{self, Function},
    qemu::{Qemu, QemuCommand},
    qtest::Qtest,
};

/// Where the VRAM (BAR0) is placed. RAM ends at 128 MiB, and firmware never ran to put anything here.
pub const VRAM: u32 = 0xe000_0000;
/// Where the display interface (BAR2) is placed.
pub const DISPLAY: u32 = 0xe800_0000;
/// Where the engine (BAR4) is placed.
pub const ENGINE: u32 = 0xe801_0000;
/// Guest RAM that tests use as they like.
pub const RAM: u64 = 0x0100_0000;

/// The machine. Fields drop in this order: QEMU lets go before the backend is killed.
pub struct Rig {
    pub qemu: Qemu,
    pub backend: Backend,
    pub gpu: Function,
}

/// How a command of the engine ended.
#[derive(Debug, Eq, PartialEq)]
pub struct Finished {
    /// The error code, 0 when it went well.
    pub error: u32,
    /// Bytes moved.
    pub completed: u64,
}

impl Rig {
    #[track_caller]
    pub fn new() -> Self {
        let backend = Backend::start();
        let mut device = backend.qemu_device();
        device["bus"] = json!("pcie.0");
        device["addr"] = json!("4");
        let qemu = QemuCommand::new(128).qtest().device(&device).start();
        let mut rig = Self {
            qemu,
            backend,
            gpu: Function::new(0, 4),
        };
        rig.set_up();
        rig
    }

    /// Does the firmware's part.
    #[track_caller]
    pub fn set_up(&mut self) {
        let gpu = self.gpu;
        let qtest = self.qtest();
        for (bar, address) in [(0, VRAM), (2, DISPLAY), (4, ENGINE)] {
            gpu.place_bar(qtest, bar, address);
        }
        gpu.set_command(qtest, pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    }

    #[track_caller]
    pub fn qtest(&mut self) -> &mut Qtest {
        self.qemu.qtest()
    }

    /// Reads a 32-bit register of the engine.
    #[track_caller]
    pub fn read32(&mut self, register: u64) -> u32 {
        self.qtest().readl(u64::from(ENGINE) + register)
    }

    /// Writes a 32-bit register of the engine.
    #[track_caller]
    pub fn write32(&mut self, register: u64, value: u32) {
        self.qtest().writel(u64::from(ENGINE) + register, value);
    }

    /// Reads a 64-bit register of the engine.
    #[track_caller]
    pub fn read64(&mut self, register: u64) -> u64 {
        self.qtest().readq(u64::from(ENGINE) + register)
    }

    /// Writes a 64-bit register of the engine.
    #[track_caller]
    pub fn write64(&mut self, register: u64, value: u64) {
        self.qtest().writeq(u64::from(ENGINE) + register, value);
    }

    /// Starts a command of the engine.
    #[track_caller]
    pub fn start(&mut self, command: u32, src: u64, dst: u64, len: u64) {
        self.write64(engine::SRC, src);
        self.write64(engine::DST, dst);
        self.write64(engine::LEN, len);
        self.write32(engine::COMMAND, command);
        self.write32(engine::DOORBELL, 1);
    }

    /// Runs a command of the engine to its end.
    #[track_caller]
    pub fn run(&mut self, command: u32, src: u64, dst: u64, len: u64) -> Finished {
        self.start(command, src, dst, len);
        let status = u64::from(ENGINE) + engine::STATUS;
        let status = self.qtest().wait_for("the end of a command", |qtest| {
            let status = qtest.readl(status);
            let ended = status & (engine::STATUS_DONE | engine::STATUS_ERROR) != 0;
            (ended && status & engine::STATUS_BUSY == 0).then_some(status)
        });
        let failed = status & engine::STATUS_ERROR != 0;
        Finished {
            error: if failed {
                engine::error_code(status)
            } else {
                0
            },
            completed: self.read64(engine::COMPLETED),
        }
    }
}
