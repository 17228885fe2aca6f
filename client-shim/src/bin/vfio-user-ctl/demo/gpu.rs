// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model GPU as its driver in a guest sees it: config space, engine registers, MSI-X.
//!
//! The register map is documented where the backend defines it; these are the few that the demo needs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, retry_on_intr};
use vfio_user_client::protocol::region::MultiWrite;
use vfio_user_client::{Client, Error};

use crate::pci::{ConfigSpace, ids, region};
use crate::report::Failure;

/// The engine's BAR.
const ENGINE: u32 = 4;

/// Value of ID: "VGPU" in memory order.
const ID_VALUE: u32 = u32::from_le_bytes(*b"VGPU");
const ID: u64 = 0x000;
const SCRATCH: u64 = 0x00c;
const VRAM_SIZE: u64 = 0x010;
const SRC: u64 = 0x020;
const DST: u64 = 0x028;
const LEN: u64 = 0x030;
const FILL: u64 = 0x038;
const COMMAND: u64 = 0x03c;
const DOORBELL: u64 = 0x040;
const STATUS: u64 = 0x044;
const COMPLETED: u64 = 0x048;
const FENCE: u64 = 0x058;
const INT_STATUS: u64 = 0x060;
const INT_ENABLE: u64 = 0x064;

/// What a guest set up there and reads again: SCRATCH, FILL, FENCE, INT_ENABLE.
const KEPT: [u64; 4] = [SCRATCH, FILL, FENCE, INT_ENABLE];

const COMMAND_COPY: u32 = 1;
const COMMAND_FILL: u32 = 2;
const COMMAND_EVENT: u32 = 1 << 8;
const SRC_IS_VRAM: u32 = 1 << 4;
const DST_IS_VRAM: u32 = 1 << 5;
const VECTOR_SHIFT: u32 = 16;
/// STATUS of a command that succeeded: DONE alone.
const DONE: u32 = 1 << 1;

/// PCI COMMAND: memory space, bus master, no INTx.
const PCI_COMMAND: u16 = 0x0406;
const MSIX_INDEX: u32 = 2;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_TABLE_SIZE: u16 = 0x7ff;
const DEVICE_CONTROL_FLR: u16 = 1 << 15;
/// Where messages would go on x86; the backend signals eventfds instead.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// Longest wait for an interrupt.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where one end of a copy is.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Bytes from the start of VRAM.
    Vram(u64),
    /// An address as the device sees guest memory.
    Guest(u64),
}

/// What the engine is to do.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Copy {
        from: Place,
        to: Place,
    },
    /// VRAM from this offset, with this pattern.
    Fill {
        to: u64,
        pattern: u32,
    },
}

/// The driver.
#[derive(Debug)]
pub struct Gpu<'a> {
    client: &'a Client,
    express: usize,
    msix: usize,
    /// One per vector, once the device is set up.
    events: Vec<OwnedFd>,
    /// Bytes of VRAM.
    pub vram_size: u64,
}

impl<'a> Gpu<'a> {
    /// Finds the device behind a client and enables it.
    pub fn probe(client: &'a Client) -> Result<Self, Failure> {
        let mut gpu = Self::find(client)?;
        gpu.enable()?;
        let id = gpu.read32(ID)?;
        if id != ID_VALUE {
            return Err(
                format!("The device is no model GPU: its ID register is {id:#010x}").into(),
            );
        }
        gpu.vram_size = gpu.read64(VRAM_SIZE)?;
        Ok(gpu)
    }

    /// Finds the device behind a client and changes nothing: what a guest set up comes from elsewhere.
    pub fn find(client: &'a Client) -> Result<Self, Failure> {
        let mut bytes = vec![0; 256];
        client.region_read(region::CONFIG, 0, &mut bytes)?;
        let space = ConfigSpace::new(bytes);
        let express = space
            .find(ids::EXPRESS)
            .ok_or("The device has no Express capability")?;
        let msix = space
            .find(ids::MSIX)
            .ok_or("The device has no MSI-X capability")?;
        Ok(Self {
            client,
            express,
            msix,
            events: Vec::new(),
            vram_size: 0,
        })
    }

    /// Vectors of the device.
    pub fn vectors(&self) -> Result<u32, Error> {
        let control = self.config_read16(self.msix + 2)?;
        Ok(u32::from(control & MSIX_TABLE_SIZE) + 1)
    }

    /// Lets the device answer and do DMA; needed again after each reset.
    pub fn enable(&self) -> Result<(), Error> {
        self.config_write(0x04, PCI_COMMAND)
    }

    /// Gives each vector an eventfd, as a VMM does.
    pub fn arm(&mut self) -> Result<(), Failure> {
        self.events.clear();
        for _ in 0..self.vectors()? {
            self.events
                .push(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        }
        let events: Vec<_> = self
            .events
            .iter()
            .map(|event| Some(event.as_fd()))
            .collect();
        self.client.arm(MSIX_INDEX, 0, &events)?;
        Ok(())
    }

    /// Sets up and enables each vector, as a guest does.
    pub fn set_up(&mut self) -> Result<(), Failure> {
        self.arm()?;
        let vectors = self.vectors()?;
        let table = self.config_read32(self.msix + 4)?;
        let (bar, base) = (table & 7, u64::from(table & !7));
        for vector in 0..vectors {
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&MESSAGE_ADDRESS.to_le_bytes());
            entry[8..12].copy_from_slice(&(0x40 + vector).to_le_bytes());
            // Dword by dword, as drivers do; the last one unmasks.
            for (dword, at) in entry
                .chunks(4)
                .zip((base + u64::from(vector) * 16..).step_by(4))
            {
                self.client.region_write(bar, at, dword)?;
            }
        }
        let control = self.config_read16(self.msix + 2)?;
        self.config_write(self.msix + 2, control | MSIX_ENABLE)?;
        self.write32(
            INT_ENABLE,
            u32::try_from((1_u64 << vectors) - 1).unwrap_or(u32::MAX),
        )?;
        Ok(())
    }

    /// Has the engine work; `vector` is to interrupt at the end.
    pub fn run(&self, work: Work, length: u64, vector: u32) -> Result<(), Failure> {
        self.start(work, length, vector)?;
        self.wait(vector)?;
        self.finish(work, length, vector)
    }

    /// Starts the engine, in one message.
    pub fn start(&self, work: Work, length: u64, vector: u32) -> Result<(), Failure> {
        let (mut command, mut source, mut pattern) = (COMMAND_EVENT, 0, 0);
        let place = |place, is_vram| match place {
            Place::Vram(offset) => (offset, is_vram),
            Place::Guest(iova) => (iova, 0),
        };
        let to = match work {
            Work::Copy { from, to } => {
                let (offset, vram) = place(from, SRC_IS_VRAM);
                source = offset;
                command |= COMMAND_COPY | vram;
                to
            }
            Work::Fill { to, pattern: word } => {
                pattern = word;
                command |= COMMAND_FILL;
                Place::Vram(to)
            }
        };
        let (destination, vram) = place(to, DST_IS_VRAM);
        command |= vram | vector << VECTOR_SHIFT;
        let writes = [
            MultiWrite::new(ENGINE, SRC, &source.to_le_bytes()),
            MultiWrite::new(ENGINE, DST, &destination.to_le_bytes()),
            MultiWrite::new(ENGINE, LEN, &length.to_le_bytes()),
            MultiWrite::new(ENGINE, FILL, &pattern.to_le_bytes()),
            MultiWrite::new(ENGINE, COMMAND, &command.to_le_bytes()),
            MultiWrite::new(ENGINE, DOORBELL, &1_u32.to_le_bytes()),
        ];
        let writes: Vec<_> = writes.into_iter().flatten().collect();
        self.client.region_write_multi(&writes)?;
        Ok(())
    }

    /// Checks and acknowledges what an interrupt said to be done.
    pub fn finish(&self, work: Work, length: u64, vector: u32) -> Result<(), Failure> {
        let (status, completed) = (self.read32(STATUS)?, self.read64(COMPLETED)?);
        if status != DONE || completed != length {
            return Err(format!(
                "{length} bytes of {work:x?} ended with status {status:#x} after {completed} bytes"
            )
            .into());
        }
        let pending = self.read32(INT_STATUS)?;
        if pending != 1 << vector {
            return Err(format!("Vector {vector} interrupted, but pending is {pending:#x}").into());
        }
        self.write32(INT_STATUS, pending)?;
        Ok(())
    }

    /// Sleeps until a vector interrupts, just once.
    fn wait(&self, vector: u32) -> Result<(), Failure> {
        wait_for_one(&[self], vector).map(drop)
    }

    fn event(&self, vector: u32) -> Result<&OwnedFd, Failure> {
        let event = usize::try_from(vector)
            .ok()
            .and_then(|vector| self.events.get(vector));
        Ok(event.ok_or_else(|| format!("There is no vector {vector}"))?)
    }

    /// The registers that a guest set up, or counts on.
    pub fn kept(&self) -> Result<[u32; 4], Error> {
        let mut values = [0; 4];
        for (value, register) in values.iter_mut().zip(KEPT) {
            *value = self.read32(register)?;
        }
        Ok(values)
    }

    /// Config space as the guest sees it.
    pub fn config_space(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; 4096];
        self.client.region_read(region::CONFIG, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Commands finished since the last reset.
    pub fn fence(&self) -> Result<u32, Error> {
        self.read32(FENCE)
    }

    pub fn scratch(&self) -> Result<u32, Error> {
        self.read32(SCRATCH)
    }

    pub fn set_scratch(&self, value: u32) -> Result<(), Error> {
        self.write32(SCRATCH, value)
    }

    /// Function level reset, as a guest asks for it.
    pub fn function_level_reset(&self) -> Result<(), Error> {
        let control = self.config_read16(self.express + 8)?;
        self.config_write(self.express + 8, control | DEVICE_CONTROL_FLR)
    }

    fn read32(&self, register: u64) -> Result<u32, Error> {
        let mut value = [0; 4];
        self.client.region_read(ENGINE, register, &mut value)?;
        Ok(u32::from_le_bytes(value))
    }

    fn read64(&self, register: u64) -> Result<u64, Error> {
        let mut value = [0; 8];
        self.client.region_read(ENGINE, register, &mut value)?;
        Ok(u64::from_le_bytes(value))
    }

    fn write32(&self, register: u64, value: u32) -> Result<(), Error> {
        self.client
            .region_write(ENGINE, register, &value.to_le_bytes())
    }

    fn config_read16(&self, at: usize) -> Result<u16, Error> {
        let mut value = [0; 2];
        self.client
            .region_read(region::CONFIG, offset(at), &mut value)?;
        Ok(u16::from_le_bytes(value))
    }

    fn config_read32(&self, at: usize) -> Result<u32, Error> {
        let mut value = [0; 4];
        self.client
            .region_read(region::CONFIG, offset(at), &mut value)?;
        Ok(u32::from_le_bytes(value))
    }

    fn config_write(&self, at: usize, value: u16) -> Result<(), Error> {
        self.client
            .region_write(region::CONFIG, offset(at), &value.to_le_bytes())
    }
}

/// Sleeps until a vector of one of several devices interrupts, just once; which of them.
pub fn wait_for_one(gpus: &[&Gpu<'_>], vector: u32) -> Result<usize, Failure> {
    let events = gpus.iter().map(|gpu| gpu.event(vector));
    let events = events.collect::<Result<Vec<_>, _>>()?;
    let mut fds: Vec<_> = events
        .iter()
        .map(|event| PollFd::new(*event, PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(PATIENCE)?;
    if retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 0 {
        return Err(format!("Vector {vector} did not interrupt in {PATIENCE:?}").into());
    }
    let (mut total, mut which) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let mut count = [0; 8];
        // Nothing to be read is no interrupt.
        if read(event, &mut count).is_ok() {
            total += u64::from_ne_bytes(count);
            which = at;
        }
    }
    match total {
        1 => Ok(which),
        count => Err(format!("Vector {vector} interrupted {count} times instead of once").into()),
    }
}

/// Offsets here are below 4096.
fn offset(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}
