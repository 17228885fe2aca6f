// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model GPU's engine as a driver works it, through whichever client reaches its registers.

use vfio_user_client::Client;

use crate::{
    model_gpu::engine::{
        COMMAND, COMPLETED, DOORBELL, DST, FAULT_ADDRESS, LEN, SRC, STATUS, STATUS_BUSY,
    },
    raw_client::RawClient,
};

/// The region of the engine's registers.
pub const REGION: u32 = 4;

/// Access to the engine's registers, 32 bits at a time.
pub trait Registers {
    /// Reads the register at `offset`.
    fn get(&mut self, offset: u64) -> u32;

    /// Writes the register at `offset`.
    fn set(&mut self, offset: u64, value: u32);

    /// Reads a register of 64 bits, by halves.
    fn get64(&mut self, offset: u64) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    /// Writes a register of 64 bits, by halves.
    #[expect(clippy::cast_possible_truncation, reason = "the register's two halves")]
    fn set64(&mut self, offset: u64, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }
}

impl Registers for RawClient {
    #[track_caller]
    fn get(&mut self, offset: u64) -> u32 {
        self.read32(REGION, offset)
    }

    #[track_caller]
    fn set(&mut self, offset: u64, value: u32) {
        self.write32(REGION, offset, value);
    }
}

/// The engine through the client library.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a>(pub &'a Client);

impl Registers for Engine<'_> {
    #[track_caller]
    fn get(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        let read = self.0.region_read(REGION, offset, &mut bytes);
        read.expect("REGION_READ");
        u32::from_le_bytes(bytes)
    }

    #[track_caller]
    fn set(&mut self, offset: u64, value: u32) {
        let written = self.0.region_write(REGION, offset, &value.to_le_bytes());
        written.expect("REGION_WRITE");
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// STATUS.
    pub status: u32,
    /// COMPLETED, bytes.
    pub completed: u64,
    /// FAULT_ADDRESS.
    pub fault_address: u64,
}

/// Starts `command` on `len` bytes from `src` to `dst`.
#[track_caller]
pub fn start(registers: &mut impl Registers, command: u32, src: u64, dst: u64, len: u64) {
    registers.set64(SRC, src);
    registers.set64(DST, dst);
    registers.set64(LEN, len);
    registers.set(COMMAND, command);
    registers.set(DOORBELL, 1);
}

/// Looks until the command is over.
#[track_caller]
pub fn finish(registers: &mut impl Registers) -> Outcome {
    loop {
        let status = registers.get(STATUS);
        if status & STATUS_BUSY == 0 {
            return Outcome {
                status,
                completed: registers.get64(COMPLETED),
                fault_address: registers.get64(FAULT_ADDRESS),
            };
        }
        std::thread::yield_now();
    }
}

/// Starts a command and looks until it is over.
#[track_caller]
pub fn run(registers: &mut impl Registers, command: u32, src: u64, dst: u64, len: u64) -> Outcome {
    start(registers, command, src, dst, len);
    finish(registers)
}
