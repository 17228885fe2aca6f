// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One command of the engine: read from the registers, checked, and carried out chunk by chunk.
//!
//! Does not know threads or interrupts; `engine.rs` does.

use vm_memory::VolatileSlice;

use super::registers::{ErrorCode, Registers, VECTORS, command as bits};
use super::vram::{Vram, VramFault};
use crate::memory::{Access, AddressSpace, DmaFault, MAX_PIECE};

/// The most bytes moved before the engine looks whether it should stop.
pub(super) const CHUNK: u64 = MAX_PIECE as u64;

/// Bytes of a repeated pattern that are written at once.
const TILE: usize = 4096;

/// Where one side of a command is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At an offset in VRAM.
    Vram(u64),
    /// At a guest IOVA.
    Guest(u64),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Copy from here.
    Copy(Place),
    /// Repeat this pattern.
    Fill(u32),
}

/// A command that may run: its ranges do not wrap, and those in VRAM are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// What.
    pub operation: Operation,
    /// Where to.
    pub dst: Place,
    /// How many bytes.
    pub len: u64,
    /// The vector that gets an event on completion.
    pub event: Option<u32>,
}

/// Why a command ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For STATUS.
    pub code: ErrorCode,
    /// For FAULT_ADDRESS.
    pub address: u64,
    /// Bytes of the chunk that were moved.
    pub done: u64,
}

impl Failure {
    /// A failure that has no address.
    #[must_use]
    pub fn new(code: ErrorCode) -> Self {
        Self {
            code,
            address: 0,
            done: 0,
        }
    }
}

impl From<DmaFault> for Failure {
    fn from(fault: DmaFault) -> Self {
        Self {
            code: ErrorCode::DmaFault,
            address: fault.iova,
            done: fault.done,
        }
    }
}

impl From<VramFault> for Failure {
    fn from(fault: VramFault) -> Self {
        let (VramFault::Outside { offset, .. } | VramFault::Lost { offset }) = fault;
        Self {
            address: offset,
            ..Self::new(ErrorCode::OutsideVram)
        }
    }
}

impl Place {
    fn new(address: u64, vram: bool) -> Self {
        if vram {
            Self::Vram(address)
        } else {
            Self::Guest(address)
        }
    }

    fn check(self, len: u64, vram_size: u64) -> Result<(), Failure> {
        match self {
            Self::Vram(offset) => match offset.checked_add(len) {
                Some(end) if end <= vram_size => Ok(()),
                _ => Err(Failure::new(ErrorCode::OutsideVram)),
            },
            Self::Guest(iova) => match iova.checked_add(len.saturating_sub(1)) {
                Some(_) => Ok(()),
                None => Err(Failure {
                    address: iova,
                    ..Failure::new(ErrorCode::DmaFault)
                }),
            },
        }
    }

    /// The place some bytes further on; the range was checked, so this does not wrap.
    fn after(self, done: u64) -> Self {
        match self {
            Self::Vram(offset) => Self::Vram(offset.wrapping_add(done)),
            Self::Guest(iova) => Self::Guest(iova.wrapping_add(done)),
        }
    }
}

impl Command {
    /// Reads the command out of the registers: the vector of its event, if there is one, and the command
    /// or why it cannot run.
    pub fn decode(registers: &Registers, vram_size: u64) -> (Option<u32>, Result<Self, Failure>) {
        let command = registers.command;
        let bad = Failure::new(ErrorCode::BadCommand);
        let vector = (command >> bits::VECTOR_SHIFT) & bits::VECTOR;
        let event = (command & bits::EVENT != 0).then_some(vector);
        if event.is_some_and(|vector| vector >= u32::from(VECTORS)) {
            return (None, Err(bad));
        }
        let src = Place::new(registers.src, command & bits::SRC_VRAM != 0);
        let dst = Place::new(registers.dst, command & bits::DST_VRAM != 0);
        let len = registers.len;
        let source_checked = src.check(len, vram_size);
        let operation = match command & bits::OPERATION {
            bits::COPY => source_checked.map(|()| Operation::Copy(src)),
            bits::FILL => Ok(Operation::Fill(registers.fill)),
            _ => Err(bad),
        };
        let command = operation.and_then(|operation| {
            dst.check(len, vram_size)?;
            Ok(Self {
                operation,
                dst,
                len,
                event,
            })
        });
        (event, command)
    }

    /// Puts the command into registers, from which [`Self::decode`] reads it.
    pub fn encode(&self, registers: &mut Registers) {
        let event = |vector: u32| bits::EVENT | (vector << bits::VECTOR_SHIFT);
        let mut command = self.event.map_or(0, event);
        let (src, fill) = match self.operation {
            Operation::Copy(src) => {
                command |= bits::COPY;
                (src, 0)
            }
            Operation::Fill(pattern) => {
                command |= bits::FILL;
                (Place::Guest(0), pattern)
            }
        };
        let mut address = |place, vram| match place {
            Place::Vram(offset) => {
                command |= vram;
                offset
            }
            Place::Guest(iova) => iova,
        };
        registers.src = address(src, bits::SRC_VRAM);
        registers.dst = address(self.dst, bits::DST_VRAM);
        registers.len = self.len;
        registers.fill = fill;
        registers.command = command;
    }

    /// Whether guest memory is accessed.
    #[must_use]
    pub fn needs_bus_master(&self) -> bool {
        matches!(self.dst, Place::Guest(_))
            || matches!(self.operation, Operation::Copy(Place::Guest(_)))
    }

    /// Does the next chunk after `done` bytes; how many bytes it had. 0 when all is done.
    ///
    /// # Errors
    /// What could not be accessed, and how much of the chunk was done.
    pub fn run_chunk(&self, done: u64, vram: &Vram, memory: &AddressSpace) -> Result<u64, Failure> {
        let n = self.len.saturating_sub(done).min(CHUNK);
        let dst = self.dst.after(done);
        match (self.operation, dst) {
            (Operation::Copy(src), dst) => copy(src.after(done), dst, n, vram, memory)?,
            // A chunk is a multiple of the pattern, so that each begins with its first byte.
            (Operation::Fill(pattern), Place::Vram(offset)) => {
                vram.with(offset, n, |slice| fill(slice, pattern, 0))?;
            }
            (Operation::Fill(pattern), Place::Guest(iova)) => {
                let mut phase = 0;
                memory.for_each(iova, n, Access::WRITE, |slice| {
                    fill(slice, pattern, phase);
                    phase = (phase + slice.len()) % 4;
                })?;
            }
        }
        Ok(n)
    }
}

fn copy(src: Place, dst: Place, n: u64, vram: &Vram, memory: &AddressSpace) -> Result<(), Failure> {
    match (src, dst) {
        (Place::Vram(src), Place::Vram(dst)) => Ok(vram.copy(src, dst, n)?),
        (Place::Guest(src), Place::Guest(dst)) => Ok(memory.copy(src, dst, n)?),
        (Place::Guest(iova), Place::Vram(offset)) => beside(
            memory,
            iova,
            vram,
            offset,
            n,
            Access::READ,
            |guest, vram| {
                guest.copy_to_volatile_slice(vram);
            },
        ),
        (Place::Vram(offset), Place::Guest(iova)) => beside(
            memory,
            iova,
            vram,
            offset,
            n,
            Access::WRITE,
            |guest, vram| {
                vram.copy_to_volatile_slice(guest);
            },
        ),
    }
}

/// Visits guest memory and VRAM side by side.
fn beside(
    memory: &AddressSpace,
    iova: u64,
    vram: &Vram,
    offset: u64,
    n: u64,
    access: Access,
    act: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>),
) -> Result<(), Failure> {
    let mut done = 0;
    let mut failed = Ok(());
    let visited = memory.for_each(iova, n, access, |guest| {
        if failed.is_ok() {
            let length = guest.len() as u64;
            let at = offset.saturating_add(done);
            failed = vram
                .with(at, length, |vram| act(guest, vram))
                .map_err(|fault| Failure {
                    done,
                    ..fault.into()
                });
            done += length;
        }
    });
    failed?;
    Ok(visited?)
}

/// Repeats `pattern` over `slice`, beginning with its byte number `phase` (below 4).
fn fill(slice: VolatileSlice<'_>, pattern: u32, phase: usize) {
    let bytes = pattern.to_le_bytes();
    let tile: [u8; TILE] = std::array::from_fn(|i| bytes[(phase + i) % 4]);
    let mut at = 0;
    while let Ok(rest) = slice.offset(at)
        && !rest.is_empty()
    {
        rest.copy_from(&tile);
        at += rest.len().min(TILE);
    }
}

#[cfg(test)]
mod tests {
    use super::super::registers::offset;
    use super::*;
    use crate::memory::{CpuAccess, DEFAULT_MAX_MAPS};

    const VRAM: u64 = 1 << 20;

    fn decode(command: u32, src: u64, dst: u64, len: u64) -> Result<Command, ErrorCode> {
        let mut registers = Registers::new(VRAM);
        registers.write(offset::COMMAND, &command.to_le_bytes());
        for (at, value) in [(offset::SRC, src), (offset::DST, dst), (offset::LEN, len)] {
            registers.write(at, &value.to_le_bytes());
        }
        Command::decode(&registers, VRAM)
            .1
            .map_err(|failure| failure.code)
    }

    #[test]
    fn ranges_are_checked_before_anything_moves() {
        let in_vram = bits::COPY | bits::SRC_VRAM | bits::DST_VRAM;
        for (src, dst, len, good) in [
            (0, 0, VRAM, true),
            (VRAM, VRAM, 0, true),
            (0, 1, VRAM, false),
            (1, 0, VRAM, false),
            (VRAM + 1, 0, 0, false),
            (u64::MAX, 0, 2, false),
            (0, u64::MAX, u64::MAX, false),
        ] {
            let expected = if good {
                Ok(())
            } else {
                Err(ErrorCode::OutsideVram)
            };
            assert_eq!(
                decode(in_vram, src, dst, len).map(|_| ()),
                expected,
                "{src:#x} {dst:#x} {len:#x}"
            );
        }
        let wraps = decode(bits::COPY, u64::MAX, 0, 2);
        assert_eq!(wraps, Err(ErrorCode::DmaFault));
        assert!(decode(bits::COPY, u64::MAX - 1, 0, 2).is_ok(), "ends there");
        let source_unused = decode(bits::FILL | bits::DST_VRAM | bits::SRC_VRAM, u64::MAX, 0, 4);
        assert!(source_unused.is_ok());
        assert_eq!(decode(0, 0, 0, 0), Err(ErrorCode::BadCommand));
        assert_eq!(decode(3, 0, 0, 0), Err(ErrorCode::BadCommand));
    }

    #[test]
    fn a_command_survives_registers() {
        for command in [
            bits::COPY,
            bits::COPY | bits::SRC_VRAM | bits::EVENT | (7 << bits::VECTOR_SHIFT),
            bits::COPY | bits::DST_VRAM | bits::EVENT,
            bits::FILL | bits::DST_VRAM | bits::SRC_VRAM,
            bits::FILL | bits::EVENT | (1 << bits::VECTOR_SHIFT),
        ] {
            let mut registers = Registers::new(VRAM);
            registers.write(offset::COMMAND, &command.to_le_bytes());
            registers.write(offset::FILL, &0x1234_5678_u32.to_le_bytes());
            for (at, value) in [(offset::SRC, 5_u64), (offset::DST, 6), (offset::LEN, 7)] {
                registers.write(at, &value.to_le_bytes());
            }
            let wanted = Command::decode(&registers, VRAM);
            let mut other = Registers::new(VRAM);
            wanted.1.unwrap().encode(&mut other);
            assert_eq!(Command::decode(&other, VRAM), wanted);
        }
    }

    #[test]
    fn bus_mastering_is_for_guest_memory() {
        let needs = |flags| {
            decode(bits::COPY | flags, 0, 0, 0)
                .unwrap()
                .needs_bus_master()
        };
        assert!(needs(0) && needs(bits::SRC_VRAM) && needs(bits::DST_VRAM));
        assert!(!needs(bits::SRC_VRAM | bits::DST_VRAM));
        let fill = decode(bits::FILL | bits::DST_VRAM, 0, 0, 0).unwrap();
        assert!(!fill.needs_bus_master(), "SRC does not matter");
    }

    #[test]
    fn a_pattern_is_continued_in_the_next_piece() {
        let mut bytes = [0; 2 * TILE + 3];
        fill(VolatileSlice::from(&mut bytes[..5]), 0x0403_0201, 0);
        fill(VolatileSlice::from(&mut bytes[5..]), 0x0403_0201, 1);
        let expected = |i: usize| u8::try_from(i % 4 + 1).unwrap();
        assert!(bytes.iter().enumerate().all(|(i, b)| *b == expected(i)));
    }

    #[test]
    fn an_overlap_is_copied_upwards() {
        let vram = Vram::anonymous(VRAM).unwrap();
        let memory = AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS);
        vram.write(8, b"abcdefgh").unwrap();
        let command = decode(bits::COPY | bits::SRC_VRAM | bits::DST_VRAM, 8, 4, 8).unwrap();
        assert_eq!(command.run_chunk(0, &vram, &memory), Ok(8));
        assert_eq!(command.run_chunk(8, &vram, &memory), Ok(0));
        let mut back = [0; 8];
        vram.read(4, &mut back).unwrap();
        assert_eq!(&back, b"abcdefgh");
    }
}
