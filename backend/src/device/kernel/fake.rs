// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scripted kernel for the tests: answers requests from tables, remembers them, fails when told to.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::vfio_device_feature_dma_logging_range as LoggedRange;
use vfio_user_protocol::device::{RegionCapability, RegionInfo};
use zerocopy::{FromBytes, IntoBytes};

use super::file::{DataFile, Request, VfioFile};
use crate::device::region;
use crate::migration::v1::sim::Sim;
use migration::FakeData;
pub(crate) use migration::{Data, DataScript, Migrating};

mod migration;

/// What was asked, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SET_IRQS: index, flags, start, count, and for eventfds which are there.
    SetIrqs(u32, u32, u32, u32, Vec<bool>),
    /// DEVICE_RESET.
    Reset,
    /// PCI_HOT_RESET with so many group descriptors.
    HotReset(u32),
    /// IOEVENTFD: offset, size, data, and whether an eventfd is there.
    IoEventFd(u64, u32, u64, bool),
    /// pwrite: region, offset, bytes.
    Write(u32, u64, Vec<u8>),
    /// DMA_LOGGING_START that was taken: page size, and ranges of address and bytes.
    LoggingStart(u64, Vec<(u64, u64)>),
    /// DMA_LOGGING_STOP.
    LoggingStop,
    /// Told by something beside the device (the IOMMU, say).
    Note(&'static str),
}

/// A driver that tracks what its device writes.
#[derive(Debug, Default)]
pub(crate) struct Logging {
    /// How many ranges it takes.
    pub max_ranges: usize,
    /// The page size it grants; that wished for without.
    pub page_size: Option<u64>,
    /// Addresses written, each told once.
    pub written: Vec<u64>,
    /// The kernel has no way to report them.
    pub no_bitmaps: bool,
}

/// The tables.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// DEVICE_GET_INFO flags.
    pub flags: u32,
    /// Regions by index: flags, bytes, capabilities.
    pub regions: HashMap<u32, (u32, Vec<u8>, Vec<RegionCapability>)>,
    /// Interrupt indexes: flags and count.
    pub irqs: HashMap<u32, (u32, u32)>,
    /// Errno of the next requests of a kind, each used once.
    pub fail: Vec<(Request, Errno)>,
    /// So many of those are let through first.
    pub pass: usize,
    /// GET_PCI_HOT_RESET_INFO: flags and rows; ENODEV without.
    pub hot_reset: Option<(u32, Vec<[u8; 8]>)>,
    /// Device-specific regions there are.
    pub specific: u32,
    /// Migration v2.
    pub migration: Option<Migrating>,
    /// A region, by its index, that a v1 driver has.
    pub v1: Option<(u32, Sim)>,
    /// What is exported as a dma-buf.
    pub dma_buf: bool,
    /// The device tracks what it writes.
    pub logging: Option<Logging>,
    /// What was asked so far.
    pub asked: Vec<Asked>,
    /// argsz of each GET_REGION_INFO.
    pub argsz: Vec<usize>,
}

/// A device descriptor that answers from a [`Script`].
#[derive(Debug)]
pub(crate) struct Fake {
    script: Mutex<Script>,
    fd: OwnedFd,
}

pub(crate) const PCI: u32 = 2;
pub(crate) const RESET: u32 = 1;

impl Fake {
    pub(crate) fn new(script: Script) -> Self {
        let file = script.v1.as_ref().and_then(|(_, sim)| sim.file());
        let fd = file.unwrap_or_else(|| memfd_create("vfio", MemfdFlags::CLOEXEC).unwrap());
        Self {
            script: Mutex::new(script),
            fd,
        }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.script().asked)
    }

    /// Region n begins at n << 40, as with vfio-pci.
    fn place(offset: u64) -> (u32, usize) {
        let index = u32::try_from(offset >> 40).unwrap();
        (index, usize::try_from(offset & ((1 << 40) - 1)).unwrap())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::read_from_bytes(&bytes[at * 4..at * 4 + 4]).unwrap()
}

fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at * 4..at * 4 + 4].copy_from_slice(&value.to_ne_bytes());
}

impl Script {
    fn region_info(&mut self, argument: &mut [u8]) -> Result<u32, Errno> {
        let (asked, _) = RegionInfo::read_from_prefix(argument).unwrap();
        self.argsz.push(argument.len());
        let (flags, bytes, caps) = self.regions.get(&asked.index).ok_or(Errno::INVAL)?;
        let info = RegionInfo {
            flags: *flags,
            size: bytes.len() as u64,
            offset: u64::from(asked.index) << 40,
            ..asked
        };
        let mut reply = Vec::new();
        let argsz = u32::try_from(argument.len()).unwrap();
        info.encode(caps, argsz, &mut reply);
        argument[..reply.len()].copy_from_slice(&reply);
        Ok(0)
    }

    /// DMA_LOGGING_START probed, or DMA_LOGGING_STOP.
    fn log_dma(&mut self, argument: &[u8]) -> Result<u32, Errno> {
        const PROBE_START: u32 = 1 << 18 | 1 << 17 | 6;
        const STOP: u32 = 1 << 17 | 7;
        match word(argument, 1) {
            PROBE_START => Ok(0),
            STOP => {
                self.asked.push(Asked::LoggingStop);
                Ok(0)
            }
            _ => Err(Errno::NOTTY),
        }
    }

    fn hot_reset_info(&mut self, argument: &mut [u8]) -> Result<u32, Errno> {
        let (flags, rows) = self.hot_reset.as_ref().ok_or(Errno::NODEV)?;
        set_word(argument, 1, *flags);
        set_word(argument, 2, u32::try_from(rows.len()).unwrap());
        let rows = rows.as_flattened();
        let room = argument.get_mut(12..12 + rows.len()).ok_or(Errno::NOSPC)?;
        room.copy_from_slice(rows);
        Ok(0)
    }
}

impl VfioFile for Fake {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<u32, Errno> {
        let mut script = self.script();
        if request != Request::Reset {
            let argsz = u32::try_from(argument.len()).unwrap();
            set_word(argument, 0, argsz);
        }
        if let Some(at) = script.fail.iter().position(|(what, _)| *what == request) {
            match script.pass.checked_sub(1) {
                Some(pass) => script.pass = pass,
                None => return Err(script.fail.remove(at).1),
            }
        }
        match request {
            Request::GetInfo => {
                let info = [16, script.flags, region::COUNT + script.specific, 5];
                argument.copy_from_slice(info.as_bytes());
            }
            Request::GetRegionInfo => return script.region_info(argument),
            Request::GetIrqInfo => {
                let index = word(argument, 2);
                let (flags, count) = *script.irqs.get(&index).ok_or(Errno::INVAL)?;
                set_word(argument, 1, flags);
                set_word(argument, 3, count);
            }
            Request::SetIrqs => {
                let [flags, index, start, count] = [1, 2, 3, 4].map(|at| word(argument, at));
                let there = argument[20..].chunks_exact(4).map(|fd| fd != [0xff; 4]);
                let fds = if flags & 4 != 0 {
                    there.collect()
                } else {
                    Vec::new()
                };
                script
                    .asked
                    .push(Asked::SetIrqs(index, flags, start, count, fds));
            }
            Request::Reset => {
                script.asked.push(Asked::Reset);
                if let Some(migration) = &mut script.migration {
                    migration.state = 2;
                }
                if let Some((_, sim)) = &script.v1 {
                    sim.driver().reset();
                }
            }
            Request::GetHotResetInfo => return script.hot_reset_info(argument),
            Request::HotReset => {
                let groups = word(argument, 2);
                assert_eq!(argument.len(), 12 + 4 * groups as usize);
                script.asked.push(Asked::HotReset(groups));
            }
            Request::IoEventFd => {
                let [flags, low, high, data, data_high, fd] =
                    [1, 2, 3, 4, 5, 6].map(|at| word(argument, at));
                assert_eq!(argument.len(), 32);
                let long = |low, high| u64::from(high) << 32 | u64::from(low);
                script.asked.push(Asked::IoEventFd(
                    long(low, high),
                    flags,
                    long(data, data_high),
                    fd != u32::MAX,
                ));
            }
            Request::Feature if script.logging.is_some() => return script.log_dma(argument),
            Request::Feature => {
                let migration = script.migration.as_mut().ok_or(Errno::NOTTY)?;
                return migration.feature(argument);
            }
        }
        Ok(0)
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let (index, at) = Self::place(offset);
        let script = self.script();
        if let Some((_, sim)) = script.v1.as_ref().filter(|(v1, _)| *v1 == index) {
            return sim.driver().read(at as u64, data);
        }
        let (_, bytes, _) = script.regions.get(&index).ok_or(Errno::INVAL)?;
        // Short on purpose: callers must go on.
        let count = data.len().min(7).min(bytes.len().saturating_sub(at));
        data[..count].copy_from_slice(&bytes[at..at + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let (index, at) = Self::place(offset);
        let mut script = self.script();
        if let Some((_, sim)) = script.v1.as_ref().filter(|(v1, _)| *v1 == index) {
            return sim.driver().write(at as u64, data);
        }
        let (_, bytes, _) = script.regions.get_mut(&index).ok_or(Errno::INVAL)?;
        let count = data.len().min(bytes.len().saturating_sub(at));
        bytes[at..at + count].copy_from_slice(&data[..count]);
        script
            .asked
            .push(Asked::Write(index, at as u64, data[..count].to_vec()));
        Ok(count)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn export_dma_buf(&self, argument: &mut [u8]) -> Result<OwnedFd, Errno> {
        if !self.script().dma_buf {
            return Err(Errno::NOTTY);
        }
        let length = u64::read_from_bytes(&argument[32..40]).unwrap();
        let file = memfd_create("dma-buf", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, length)?;
        Ok(file)
    }

    fn set_migration_state(&self, argument: &mut [u8]) -> Result<Option<Box<dyn DataFile>>, Errno> {
        let mut script = self.script();
        let migration = script.migration.as_mut().ok_or(Errno::NOTTY)?;
        let data = migration.set_state(argument)?;
        Ok(data.map(|data| -> Box<dyn DataFile> { Box::new(FakeData(data)) }))
    }

    fn start_logging(&self, page_size: u64, ranges: &mut [LoggedRange]) -> Result<u64, Errno> {
        let script = &mut *self.script();
        let logging = script.logging.as_ref().ok_or(Errno::NOTTY)?;
        if ranges.len() > logging.max_ranges {
            return Err(Errno::NOSPC);
        }
        let rows = ranges.iter().map(|range| (range.iova, range.length));
        let start = Asked::LoggingStart(page_size, rows.collect());
        script.asked.push(start);
        Ok(logging.page_size.unwrap_or(page_size))
    }

    fn report_logging(
        &self,
        (iova, length): (u64, u64),
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        let script = &mut *self.script();
        let logging = script.logging.as_mut().ok_or(Errno::NOTTY)?;
        if logging.no_bitmaps {
            return Err(Errno::OPNOTSUPP);
        }
        logging.written.retain(|at| {
            let offset = at.wrapping_sub(iova);
            if offset < length {
                let page = usize::try_from(offset / page_size).unwrap();
                bitmap[page / 64] |= 1 << (page % 64);
            }
            offset >= length
        });
        Ok(())
    }

    fn is_mappable(&self, _file: BorrowedFd<'_>) -> bool {
        true
    }
}
