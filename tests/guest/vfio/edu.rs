// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's `edu` device, as its documentation (docs/specs/edu.rst) has it: an identification, a register that inverts,
//! interrupts on request, and a DMA engine with a buffer of one page.

use std::{error::Error, thread};

/// Vendor ID.
pub const VENDOR: u16 = 0x1234;
/// What the identification register holds: major and minor version and "edu".
pub const ID_VALUE: u32 = 0x0100_00ed;
/// The longest DMA, in bytes.
pub const BUFFER: usize = 4096;

/// RO: [`ID_VALUE`].
pub const ID: u64 = 0x00;
/// RW: reads as the inverse of what was written.
pub const INVERT: u64 = 0x04;
/// RO: the reasons for the interrupt that is asserted.
pub const INTERRUPT_STATUS: u64 = 0x24;
/// WO: adds reasons, and so interrupts.
pub const INTERRUPT_RAISE: u64 = 0x60;
/// WO: takes reasons away.
pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
/// Where the engine sees its buffer.
const DMA_BUFFER: u64 = 0x4_0000;

const COMMAND_RUN: u64 = 1;
const COMMAND_TO_RAM: u64 = 2;

/// The device's BAR0, however it is reached.
pub trait Registers {
    /// Reads 32 bits.
    fn read32(&self, offset: u64) -> Result<u32, Box<dyn Error>>;
    /// Writes 32 bits.
    fn write32(&self, offset: u64, value: u32) -> Result<(), Box<dyn Error>>;
    /// Writes 64 bits.
    fn write64(&self, offset: u64, value: u64) -> Result<(), Box<dyn Error>>;
    /// Reads 64 bits.
    fn read64(&self, offset: u64) -> Result<u64, Box<dyn Error>>;
}

/// Which way a DMA goes.
#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    /// From RAM into the device's buffer.
    FromRam,
    /// From the device's buffer into RAM.
    ToRam,
}

/// Starts a DMA of the whole buffer to or from `iova`.
pub fn start_dma(
    edu: &impl Registers,
    direction: Direction,
    iova: u64,
) -> Result<(), Box<dyn Error>> {
    let (source, destination) = match direction {
        Direction::FromRam => (iova, DMA_BUFFER),
        Direction::ToRam => (DMA_BUFFER, iova),
    };
    edu.write64(DMA_SOURCE, source)?;
    edu.write64(DMA_DESTINATION, destination)?;
    edu.write64(DMA_COUNT, u64::try_from(BUFFER)?)?;
    let mut command = COMMAND_RUN;
    if direction == Direction::ToRam {
        command |= COMMAND_TO_RAM;
    }
    edu.write64(DMA_COMMAND, command)
}

/// Waits for the end of a DMA, whoever started it; the run bit is all the device tells. Until then the engine ignores its
/// registers.
pub fn wait_idle(edu: &impl Registers) -> Result<(), Box<dyn Error>> {
    while edu.read64(DMA_COMMAND)? & COMMAND_RUN != 0 {
        thread::yield_now();
    }
    Ok(())
}

/// Runs a DMA to its end.
pub fn dma(edu: &impl Registers, direction: Direction, iova: u64) -> Result<(), Box<dyn Error>> {
    start_dma(edu, direction, iova)?;
    wait_idle(edu)
}

/// The identification and the inverting register.
pub fn check_alive(edu: &impl Registers) -> Result<(), Box<dyn Error>> {
    let id = edu.read32(ID)?;
    if id != ID_VALUE {
        return Err(format!("edu's id: {id:#x}").into());
    }
    for value in [0x1234_5678, 0, u32::MAX] {
        edu.write32(INVERT, value)?;
        let seen = edu.read32(INVERT)?;
        if seen != !value {
            return Err(format!("edu inverts {value:#x} to {seen:#x}").into());
        }
    }
    Ok(())
}
