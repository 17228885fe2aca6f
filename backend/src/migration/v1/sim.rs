// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver with a v1 region, simulated as its interface is published, for the tests.
//!
//! Mapped and trapped bytes are kept apart, and what is not of a section is filled with [`FILL`]: bytes that
//! go the wrong way are wrong.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::layout::REGISTERS;
use super::{RegionAccess, V1Migration};
use crate::device::Area;
use crate::migration::MigrationDriver;

/// What is nobody's.
pub(crate) const FILL: u8 = 0xee;
/// Reserved bits that every state comes with.
pub(crate) const RESERVED: u32 = 0xabcd_ef08;

/// The driver's side.
#[derive(Debug)]
pub(crate) struct Driver {
    pub device_state: u32,
    pub size: u64,
    areas: Vec<Area>,
    /// The whole region, of which only the areas are used.
    mapped: Arc<MmapRegion>,
    /// The same, of which the rest is used.
    trapped: Vec<u8>,
    /// What is given in pre-copy, and in stop-copy.
    pub outgoing: [VecDeque<Vec<u8>>; 2],
    /// Where each section goes in its turn; the first again after the last.
    pub places: VecDeque<u64>,
    /// The section that is on offer, and whether its size was asked for.
    section: Option<(u64, u64, bool)>,
    /// Transactions taken in.
    pub incoming: Vec<Vec<u8>>,
    /// Bytes that trapped reads and writes of data are limited to.
    pub step: usize,
    /// Registers accessed: offset, and true for a write.
    pub accesses: Vec<(u64, bool)>,
    /// What the next accesses of a register give instead.
    pub instead: VecDeque<(u64, Result<u64, Errno>)>,
    /// Takes only the ways that are published, and back to RUNNING.
    pub strict: bool,
    /// Sections are given up when the state changes.
    pub forgetful: bool,
    /// An access that a driver need not stand.
    pub offended: Option<(u64, usize)>,
}

/// The region of a [`Driver`].
#[derive(Clone, Debug)]
pub(crate) struct Sim {
    driver: Arc<Mutex<Driver>>,
    mapped: Arc<MmapRegion>,
    areas: Vec<Area>,
    size: u64,
}

impl Sim {
    pub(crate) fn new(size: usize, areas: &[(u64, u64)]) -> Self {
        Self::with_memory(size, areas, MmapRegion::new(size).unwrap())
    }

    /// With what is mapped in a file, at an offset.
    pub(crate) fn in_file(size: usize, areas: &[(u64, u64)], offset: u64) -> Self {
        let file = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, offset + size as u64).unwrap();
        let file = FileOffset::new(file.into(), offset);
        Self::with_memory(size, areas, MmapRegion::from_file(file, size).unwrap())
    }

    fn with_memory(size: usize, areas: &[(u64, u64)], mapped: MmapRegion) -> Self {
        let areas: Vec<_> = areas
            .iter()
            .map(|&(offset, size)| Area { offset, size })
            .collect();
        let mapped = Arc::new(mapped);
        mapped
            .as_volatile_slice()
            .write_slice(&vec![FILL; size], 0)
            .unwrap();
        let driver = Driver {
            device_state: RESERVED | 1,
            size: size as u64,
            areas: areas.clone(),
            mapped: Arc::clone(&mapped),
            trapped: vec![FILL; size],
            outgoing: Default::default(),
            places: [REGISTERS].into(),
            section: None,
            incoming: Vec::new(),
            step: usize::MAX,
            accesses: Vec::new(),
            instead: VecDeque::new(),
            strict: false,
            forgetful: false,
            offended: None,
        };
        Self {
            driver: Arc::new(Mutex::new(driver)),
            mapped,
            areas,
            size: size as u64,
        }
    }

    pub(crate) fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap()
    }

    /// The file of [`Self::in_file`].
    pub(crate) fn file(&self) -> Option<OwnedFd> {
        let file = self.mapped.file_offset()?.file();
        Some(file.try_clone().unwrap().into())
    }

    pub(crate) fn migration(&self) -> Box<dyn MigrationDriver> {
        Box::new(V1Migration::new(Box::new(self.clone()), "sim".into()).unwrap())
    }
}

impl Driver {
    fn is_mapped(&self, at: usize) -> bool {
        let at = at as u64;
        let covers = |a: &Area| at >= a.offset && at - a.offset < a.size;
        at >= REGISTERS && self.areas.iter().any(covers)
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        for (byte, at) in data.iter().zip(usize::try_from(offset).unwrap()..) {
            if self.is_mapped(at) {
                self.mapped
                    .as_volatile_slice()
                    .write_obj(*byte, at)
                    .unwrap();
            } else {
                self.trapped[at] = *byte;
            }
        }
    }

    fn get(&self, offset: u64, size: u64) -> Vec<u8> {
        let at = usize::try_from(offset).unwrap();
        let bytes = at..at + usize::try_from(size).unwrap();
        let byte = |at| match self.is_mapped(at) {
            true => self.mapped.as_volatile_slice().read_obj(at).unwrap(),
            false => self.trapped[at],
        };
        bytes.map(byte).collect()
    }

    /// What is on offer in this state.
    fn queue(&mut self) -> Option<&mut VecDeque<Vec<u8>>> {
        let last = usize::from(self.device_state & 7 == 2);
        (self.device_state & 2 != 0).then_some(&mut self.outgoing[last])
    }

    fn pending(&mut self) -> u64 {
        if self.section.take_if(|(.., asked)| *asked).is_some() {
            self.queue().unwrap().pop_front();
        }
        let sizes = |queue: &VecDeque<Vec<u8>>| queue.iter().map(|t| t.len() as u64).sum();
        self.queue().map_or(0, |queue| sizes(queue))
    }

    fn offset(&mut self) -> u64 {
        let saving = self.device_state & 2 != 0;
        if let Some((offset, ..)) = self.section
            && saving
        {
            return offset;
        }
        let offset = self.places.pop_front().unwrap();
        self.places.push_back(offset);
        if saving {
            let data = self.queue().unwrap().front().cloned().unwrap_or_default();
            self.put(offset, &data);
            self.section = Some((offset, data.len() as u64, false));
        } else {
            // Taken in from there; no reading of the section twice.
            self.section = Some((offset, 0, false));
        }
        offset
    }

    /// What VFIO_DEVICE_RESET does.
    pub(crate) fn reset(&mut self) {
        self.device_state = RESERVED | 1;
        self.section = None;
    }

    fn set_state(&mut self, word: u32) -> Result<(), Errno> {
        if word & !7 != RESERVED & !7 || matches!(word & 7, 5..) {
            return Err(Errno::INVAL);
        }
        let ways = [(1, 0), (1, 2), (2, 0), (1, 3), (3, 2), (1, 4), (4, 1)];
        let way = (self.device_state & 7, word & 7);
        if self.strict && !ways.contains(&way) && !matches!(way, (0 | 2 | 3, 1)) {
            return Err(Errno::INVAL);
        }
        if self.forgetful || word & 2 == 0 {
            self.section = None;
        }
        // What pre-copy did not give, stop-copy does.
        if (self.device_state & 7, word & 7) == (3, 2) {
            let mut rest = std::mem::take(&mut self.outgoing[0]);
            rest.append(&mut self.outgoing[1]);
            self.outgoing[1] = rest;
        }
        self.device_state = word;
        Ok(())
    }

    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if offset < REGISTERS {
            self.accesses.push((offset, false));
            let value = match self.instead.front() {
                Some((register, _)) if *register == offset => self.instead.pop_front().unwrap().1?,
                _ => match (offset, data.len()) {
                    (0, 4) => self.device_state.into(),
                    (8, 8) => self.pending(),
                    (16, 8) => self.offset(),
                    (24, 8) => {
                        let section = self.section.as_mut();
                        section.map_or(0, |(_, size, asked)| {
                            *asked = true;
                            *size
                        })
                    }
                    _ => return Err(self.offend(offset, data.len())),
                },
            };
            data.copy_from_slice(&value.to_ne_bytes()[..data.len()]);
            return Ok(data.len());
        }
        let at = self.data(offset, data.len())?;
        let count = data.len().min(self.step);
        data[..count].copy_from_slice(&self.trapped[at..at + count]);
        Ok(count)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if offset < REGISTERS {
            self.accesses.push((offset, true));
            if matches!(self.instead.front(), Some((register, _)) if *register == offset) {
                self.instead.pop_front().unwrap().1?;
            }
            match (offset, data.len()) {
                (0, 4) => self.set_state(u32::from_ne_bytes(data.try_into().unwrap()))?,
                (24, 8) if self.device_state & 7 == 4 => {
                    let size = u64::from_ne_bytes(data.try_into().unwrap());
                    let (offset, ..) = self.section.take().ok_or(Errno::INVAL)?;
                    let data = self.get(offset, size);
                    self.incoming.push(data);
                }
                _ => return Err(self.offend(offset, data.len())),
            }
            return Ok(data.len());
        }
        let at = self.data(offset, data.len())?;
        let count = data.len().min(self.step);
        self.trapped[at..at + count].copy_from_slice(&data[..count]);
        Ok(count)
    }

    fn data(&mut self, offset: u64, length: usize) -> Result<usize, Errno> {
        let end = offset.checked_add(length as u64);
        if length == 0 || end.is_none_or(|end| end > self.size) {
            return Err(self.offend(offset, length));
        }
        Ok(usize::try_from(offset).unwrap())
    }

    fn offend(&mut self, offset: u64, length: usize) -> Errno {
        self.offended = Some((offset, length));
        Errno::INVAL
    }
}

impl RegionAccess for Sim {
    fn size(&self) -> u64 {
        self.size
    }

    fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn memory(&self, area: usize) -> Option<VolatileSlice<'_>> {
        let Area { offset, size } = *self.areas.get(area)?;
        let end = offset.saturating_add(size).min(self.size);
        let offset = usize::try_from(offset).ok()?;
        let length = usize::try_from(end).ok()?.checked_sub(offset)?;
        self.mapped.get_slice(offset, length).ok()
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.driver().read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.driver().write(offset, data)
    }
}
