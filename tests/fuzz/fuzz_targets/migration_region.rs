// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A v1 migration region whose driver says anything: no access is outside the region, across a register, or without end.
//!
//! The first bytes are the region's size and its mapped areas; then comes a row of steps of the user, each with what
//! the driver answers meanwhile.
#![no_main]

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use rustix::io::Errno;
use vfio_user_gpu::device::Area;
use vfio_user_gpu::migration::v1::{RegionAccess, V1Migration};
use vfio_user_gpu::migration::{DataStream, MigrationDriver};
use vfio_user_protocol::migration::MigrationState;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Bytes of the registers.
const REGISTERS: u64 = 32;
/// Trapped accesses that one call of the user may take: empty rounds are bounded, and so are pieces.
const MOST: usize = 200_000;

#[derive(Arbitrary, Debug)]
struct Input {
    size: u16,
    areas: Vec<(u16, u16)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Step {
    action: Action,
    answers: Vec<Answer>,
}

#[derive(Arbitrary, Debug)]
enum Action {
    State(u8),
    Read(u16),
    Write(u16, bool),
    PrecopyInfo,
    StopCopySize,
    /// The device is reset.
    Reset,
    /// The driver's state as it may never be.
    DriverState(u32),
}

/// What an access gives: figures near what is sensible, or anything.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Answer {
    Near(u16),
    Any(u64),
    Short(u8),
    Error(u8),
    /// The register as it is.
    Honest,
}

#[derive(Debug)]
struct Hostile {
    size: u64,
    areas: Vec<Area>,
    memory: MmapRegion,
    driver: Mutex<Driver>,
}

#[derive(Debug)]
struct Driver {
    state: u32,
    answers: VecDeque<Answer>,
    accesses: usize,
}

impl Hostile {
    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().expect("nobody panicked")
    }

    /// Checks an access; whether it is to a register.
    fn check(&self, offset: u64, length: usize) -> bool {
        let end = offset.checked_add(length as u64).expect("inside");
        if offset < REGISTERS {
            let width = if offset < 8 { 4 } else { 8 };
            assert!(length == width && offset.is_multiple_of(width as u64));
            assert_ne!(offset, 4, "reserved");
            return true;
        }
        assert!(length > 0 && end <= self.size);
        false
    }
}

impl Driver {
    /// The answer to an access of so many bytes: a value, and how many bytes of it were served.
    fn answer(&mut self, honest: u64, length: usize) -> Result<(u64, usize), Errno> {
        self.accesses += 1;
        assert!(self.accesses < MOST, "without end");
        match self.answers.pop_front() {
            None | Some(Answer::Honest) => Ok((honest, length)),
            Some(Answer::Near(value)) => Ok((value.into(), length)),
            Some(Answer::Any(value)) => Ok((value, length)),
            Some(Answer::Short(count)) => Ok((honest, usize::from(count).min(length))),
            Some(Answer::Error(number)) => Err(Errno::from_raw_os_error(i32::from(number.max(1)))),
        }
    }
}

/// The same region seen twice: by the stream, and by the driver.
#[derive(Clone, Debug)]
struct Shared(std::sync::Arc<Hostile>);

impl RegionAccess for Shared {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn areas(&self) -> &[Area] {
        &self.0.areas
    }

    fn memory(&self, area: usize) -> Option<VolatileSlice<'_>> {
        // Exactly what the area has in the region: a step outside is an error of the slice, and EIO.
        let Area { offset, size } = *self.0.areas.get(area)?;
        let end = offset.saturating_add(size).min(self.0.size);
        let length = usize::try_from(end.checked_sub(offset)?).ok()?;
        self.0
            .memory
            .get_slice(usize::try_from(offset).ok()?, length)
            .ok()
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let is_register = self.0.check(offset, data.len());
        let mut driver = self.0.driver();
        let honest = match offset {
            0 => driver.state.into(),
            8 => 100,
            16 => 40,
            _ => 10,
        };
        let (value, count) = driver.answer(honest, data.len())?;
        if is_register {
            data.copy_from_slice(&value.to_ne_bytes()[..data.len()]);
        } else {
            data[..count].fill(0xdd);
        }
        Ok(count)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let is_register = self.0.check(offset, data.len());
        let mut driver = self.0.driver();
        let (_, count) = driver.answer(0, data.len())?;
        if let (true, &[a, b, c, d]) = (is_register, data) {
            let new = u32::from_ne_bytes([a, b, c, d]);
            assert!(!matches!(new & 7, 5..), "no state: {new:#x}");
            driver.state = new;
        } else if is_register {
            assert_eq!(offset, 24, "read-only");
            let size = u64::from_ne_bytes(data.try_into().expect("checked"));
            assert!(size > 0 && size <= self.0.size - REGISTERS);
        }
        Ok(count)
    }
}

fuzz_target!(|input: Input| {
    let size = u64::from(input.size);
    let areas = input.areas.iter().take(6).map(|&(offset, size)| Area {
        offset: offset.into(),
        size: if size == u16::MAX {
            u64::MAX
        } else {
            size.into()
        },
    });
    let region = Shared(std::sync::Arc::new(Hostile {
        size,
        areas: areas.collect(),
        memory: MmapRegion::new(1 << 16).expect("memory"),
        driver: Mutex::new(Driver {
            state: 0xffff_ff01,
            answers: VecDeque::new(),
            accesses: 0,
        }),
    }));
    let Ok(migration) = V1Migration::new(Box::new(region.clone()), String::new()) else {
        assert!(size <= REGISTERS);
        return;
    };
    let mut streams: VecDeque<Box<dyn DataStream>> = VecDeque::new();
    let mut data = vec![0xaa; 1 << 16];
    for step in input.steps.into_iter().take(64) {
        {
            let mut driver = region.0.driver();
            driver.answers = step.answers.into_iter().take(64).collect();
            driver.accesses = 0;
        }
        match step.action {
            Action::State(number) => {
                let Ok(state) = MigrationState::try_from(u32::from(number % 8)) else {
                    continue;
                };
                if let Ok(Some(stream)) = migration.set_state(state) {
                    streams.push_front(stream);
                    streams.truncate(2);
                }
            }
            // The newest stream, and the one before, which is over.
            Action::Read(size) => {
                for stream in &mut streams {
                    let into = VolatileSlice::from(&mut data[..size.into()]);
                    if let Ok(taken) = stream.read(&into) {
                        assert!(taken.length <= into.len());
                    }
                }
            }
            Action::Write(size, ends) => {
                for stream in &mut streams {
                    let from = VolatileSlice::from(&mut data[..size.into()]);
                    if let Ok(written) = stream.write(&from, ends) {
                        assert!(written <= from.len());
                    }
                }
            }
            Action::PrecopyInfo => {
                for stream in &mut streams {
                    let _ = stream.precopy_info();
                }
            }
            Action::StopCopySize => drop(migration.stop_copy_size()),
            Action::Reset => region.0.driver().state = 0xffff_ff01,
            Action::DriverState(state) => region.0.driver().state = state,
        }
    }
});
