// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What migrates beside VRAM, to and from the payloads of [`super::format`]. The source is not trusted: what
//! no device can be in is refused.

use super::super::bochs;
use super::super::command::{CHUNK, Command};
use super::super::engine::{Job, Snapshot};
use super::super::registers::{ErrorCode, Registers, VECTOR_BITS, VECTORS, status};
use super::format;
use crate::interrupts::LinesState;

/// Puts the engine into its payload.
pub fn engine(snapshot: &Snapshot, vram_size: u64) -> format::Engine {
    let registers = &snapshot.registers;
    let mut job = Registers::new(vram_size);
    if let Some(running) = &snapshot.job {
        running.command.encode(&mut job);
    }
    format::Engine {
        src: registers.src.into(),
        dst: registers.dst.into(),
        len: registers.len.into(),
        completed: registers.completed.into(),
        fault_address: registers.fault_address.into(),
        scratch: registers.scratch.into(),
        fill: registers.fill.into(),
        command: registers.command.into(),
        status: registers.status.into(),
        fence: registers.fence.into(),
        int_status: registers.int_status.into(),
        int_enable: registers.int_enable.into(),
        busy: u32::from(snapshot.job.is_some()).into(),
        job_src: job.src.into(),
        job_dst: job.dst.into(),
        job_len: job.len.into(),
        job_done: snapshot.job.map_or(0, |job| job.done).into(),
        job_fill: job.fill.into(),
        job_command: job.command.into(),
    }
}

/// Takes the engine out of its payload; `None` for one that cannot be.
pub fn read_engine(payload: &format::Engine, vram_size: u64) -> Option<Snapshot> {
    let mut registers = Registers::new(vram_size);
    registers.src = payload.src.get();
    registers.dst = payload.dst.get();
    registers.len = payload.len.get();
    registers.completed = payload.completed.get();
    registers.fault_address = payload.fault_address.get();
    registers.scratch = payload.scratch.get();
    registers.fill = payload.fill.get();
    registers.command = payload.command.get();
    registers.status = payload.status.get();
    registers.fence = payload.fence.get();
    registers.int_status = payload.int_status.get();
    registers.int_enable = payload.int_enable.get();
    let vectors = registers.int_status | registers.int_enable;
    if vectors & !VECTOR_BITS != 0 || !status_can_be(registers.status) {
        return None;
    }
    let busy = registers.status & status::BUSY != 0;
    let job = match payload.busy.get() {
        0 if !busy => {
            let rest = [payload.job_src, payload.job_dst, payload.job_len];
            let rest = rest.into_iter().chain([payload.job_done]);
            let words = [payload.job_fill, payload.job_command];
            let nothing =
                rest.map(|v| v.get()).all(|v| v == 0) && words.iter().all(|v| v.get() == 0);
            nothing.then_some(None)?
        }
        1 if busy => Some(read_job(payload, vram_size)?),
        _ => return None,
    };
    let moved = job.is_none_or(|job| job.done == registers.completed);
    moved.then_some(Snapshot { registers, job })
}

fn read_job(payload: &format::Engine, vram_size: u64) -> Option<Job> {
    let mut registers = Registers::new(vram_size);
    registers.src = payload.job_src.get();
    registers.dst = payload.job_dst.get();
    registers.len = payload.job_len.get();
    registers.fill = payload.job_fill.get();
    registers.command = payload.job_command.get();
    let command = Command::decode(&registers, vram_size).1.ok()?;
    let done = payload.job_done.get();
    let under_way = done.is_multiple_of(CHUNK) && (done == 0 || done < command.len);
    under_way.then_some(Job { command, done })
}

/// Whether STATUS can read so.
fn status_can_be(value: u32) -> bool {
    let flags = value & (status::BUSY | status::DONE | status::ERROR);
    let code = value >> status::CODE_SHIFT;
    let both = status::BUSY | status::DONE;
    let known = flags | (code << status::CODE_SHIFT) == value;
    let failed = flags & status::ERROR != 0;
    let last = ErrorCode::DoorbellWhileBusy as u32;
    let code_fits = if failed {
        (1..=last).contains(&code)
    } else {
        code == 0
    };
    // An error without either is that of a doorbell, which needs a command that runs.
    known && code_fits && flags & both != both && (!failed || flags & both != 0)
}

/// Puts the display into its payload.
pub fn display(display: &bochs::Display) -> format::Display {
    let (dispi, byte_order) = display.save();
    format::Display {
        dispi: dispi.map(Into::into),
        byte_order: byte_order.into(),
        ..format::Display::default()
    }
}

/// Takes a display out of its payload; `None` for one that cannot be.
pub fn read_display(payload: &format::Display, vram_size: u64) -> Option<bochs::Display> {
    let dispi = payload.dispi.map(|register| register.get());
    let here = bochs::Display::new(vram_size);
    let display = here.restore(dispi, payload.byte_order.get());
    display.filter(|_| payload.reserved.get() == 0)
}

/// Puts the interrupt lines into their payload.
pub fn lines(state: LinesState) -> format::Lines {
    format::Lines {
        level: u32::from(state.level).into(),
        msi: state.msi.into(),
        msix: state.msix.into(),
        ..format::Lines::default()
    }
}

/// Takes the interrupt lines out of their payload; `None` for such as cannot be.
pub fn read_lines(payload: &format::Lines, engine: &Snapshot) -> Option<LinesState> {
    let level = match payload.level.get() {
        0 => false,
        1 => true,
        _ => return None,
    };
    let (msi, msix) = (payload.msi.get(), payload.msix.get());
    let vectors = (msi | msix) >> VECTORS == 0;
    let good = vectors && payload.reserved.get() == 0 && level == engine.registers.level();
    good.then_some(LinesState { level, msi, msix })
}

#[cfg(test)]
mod tests {
    use super::super::super::registers::{command, offset};
    use super::*;

    const VRAM: u64 = 4 << 20;

    fn busy(done: u64) -> Snapshot {
        let mut registers = Registers::new(VRAM);
        for (at, value) in [
            (offset::SRC, 3_u64),
            (offset::DST, 5),
            (offset::LEN, 3 << 20),
        ] {
            registers.write(at, &value.to_le_bytes());
        }
        let word = command::COPY | command::EVENT | (3 << command::VECTOR_SHIFT);
        registers.write(offset::COMMAND, &word.to_le_bytes());
        let command = registers.doorbell(true).unwrap();
        registers.progress(done);
        registers.write(offset::SCRATCH, &7_u32.to_le_bytes());
        // The registers may be written while the command runs.
        registers.write(offset::COMMAND, &99_u32.to_le_bytes());
        Snapshot {
            registers,
            job: Some(Job { command, done }),
        }
    }

    #[test]
    fn an_engine_arrives_as_it_left() {
        let mut failed = Registers::new(VRAM);
        assert_eq!(failed.doorbell(true), Err(0));
        let idle = |registers| Snapshot {
            registers,
            job: None,
        };
        for snapshot in [
            idle(Registers::new(VRAM)),
            idle(failed),
            busy(0),
            busy(2 << 20),
        ] {
            let payload = engine(&snapshot, VRAM);
            assert_eq!(read_engine(&payload, VRAM), Some(snapshot));
        }
    }

    #[test]
    fn engines_that_cannot_be_are_refused() {
        let good = engine(&busy(1 << 20), VRAM);
        type Change = fn(&mut format::Engine);
        let changes: [Change; 14] = [
            |e| e.busy = 0.into(),
            |e| e.busy = 2.into(),
            |e| e.status = 0.into(),
            |e| e.status = 3.into(),
            |e| e.status = (status::BUSY | status::ERROR).into(),
            |e| e.status = (status::BUSY | status::ERROR | 0x600).into(),
            |e| e.status = (status::BUSY | 0x100).into(),
            |e| e.status = 0x8000_0001.into(),
            |e| e.int_enable = 0x100.into(),
            |e| e.int_status = 0x100.into(),
            |e| e.job_done = 4.into(),
            |e| e.job_done = (3 << 20).into(),
            |e| e.job_command = 3.into(),
            |e| e.completed = 1.into(),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut payload = good;
            change(&mut payload);
            assert_eq!(read_engine(&payload, VRAM), None, "{n}");
        }
        let mut outside = good;
        outside.job_command = (command::FILL | command::DST_VRAM).into();
        outside.job_dst = VRAM.into();
        assert_eq!(read_engine(&outside, VRAM), None);
        let idle = Snapshot {
            registers: Registers::new(VRAM),
            job: None,
        };
        let mut payload = engine(&idle, VRAM);
        payload.job_len = 1.into();
        assert_eq!(read_engine(&payload, VRAM), None);
    }

    #[test]
    fn display_and_lines() {
        let mut shown = bochs::Display::new(VRAM);
        shown.write(0x500, &[0xff; 0x108]);
        let payload = display(&shown);
        assert_eq!(read_display(&payload, VRAM), Some(shown));
        assert_eq!(read_display(&payload, 2 * VRAM), None, "another size");
        let mut bad = payload;
        bad.byte_order = 5.into();
        assert_eq!(read_display(&bad, VRAM), None);
        let mut bad = payload;
        bad.reserved = 5.into();
        assert_eq!(read_display(&bad, VRAM), None);

        let engine = busy(0);
        let waits = LinesState {
            level: false,
            msi: 0x80,
            msix: 1,
        };
        assert_eq!(read_lines(&lines(waits), &engine), Some(waits));
        for bad in [
            LinesState {
                level: true,
                ..waits
            },
            LinesState {
                msi: 0x100,
                ..waits
            },
            LinesState {
                msix: 1 << 63,
                ..waits
            },
        ] {
            assert_eq!(read_lines(&lines(bad), &engine), None);
        }
    }
}
