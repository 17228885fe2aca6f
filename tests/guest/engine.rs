// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A minimal driver of the model GPU's engine (BAR4).

use std::{error::Error, time::Instant};

use system_tests::{PATIENCE, model_gpu::engine as reg};

use crate::{mapping::Mapping, pci_device::PciDevice};

/// The engine's registers, mapped.
pub struct Engine {
    /// BAR4.
    pub registers: Mapping,
}

/// How a command ended.
#[derive(Debug, Eq, PartialEq)]
pub struct Finished {
    /// The error code, 0 when it went well.
    pub error: u32,
    /// Bytes moved.
    pub completed: u64,
}

impl Engine {
    /// Maps the registers of an enabled GPU.
    pub fn of(gpu: &PciDevice) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            registers: gpu.bar(4)?,
        })
    }

    /// Runs a command to its end, without an interrupt.
    pub fn run(
        &self,
        command: u32,
        src: u64,
        dst: u64,
        len: u64,
    ) -> Result<Finished, Box<dyn Error>> {
        let registers = &self.registers;
        registers.write64(reg::SRC, src);
        registers.write64(reg::DST, dst);
        registers.write64(reg::LEN, len);
        registers.write32(reg::COMMAND, command);
        registers.write32(reg::DOORBELL, 1);
        let start = Instant::now();
        loop {
            let status = registers.read32(reg::STATUS);
            if status & reg::STATUS_BUSY == 0
                && status & (reg::STATUS_DONE | reg::STATUS_ERROR) != 0
            {
                return Ok(Finished {
                    error: if status & reg::STATUS_ERROR == 0 {
                        0
                    } else {
                        reg::error_code(status)
                    },
                    completed: registers.read64(reg::COMPLETED),
                });
            }
            if start.elapsed() > PATIENCE / 2 {
                return Err(format!("command {command:#x} never ends, status {status:#x}").into());
            }
        }
    }
}
