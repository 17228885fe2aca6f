// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of a VFIO device as functions: what the bytes of each argument mean. Nothing is kept here.
//!
//! Everything is keyed by index, and every size, offset and chain from the kernel is checked. Sizes grow by
//! the argsz protocol: the structure alone first, then as much as the kernel asks for; drivers exist that
//! refuse a larger argument right away.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET, VFIO_DEVICE_FLAGS_PCI,
    VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_DATA_BOOL,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_DEVID_NOT_OWNED,
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
    vfio_device_feature_dma_logging_range as LoggedRange,
};
use vfio_user_protocol::device::{RegionCapability, RegionInfo};
use vfio_user_protocol::irq::IrqInfo as IrqInfoBytes;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::file::{DataFile, Request, VfioFile};
use crate::interrupts::IrqInfo;

/// No argument of the kernel is larger: bounds what a wrong size makes us allocate.
const MAX_ARGUMENT: usize = 1 << 16;
/// Bytes of `vfio_device_info` without capabilities.
const DEVICE_INFO: usize = 16;
/// Bytes of the fixed part of `vfio_pci_hot_reset_info` and `vfio_pci_hot_reset`.
const HOT_RESET: usize = 12;
/// Bytes of one `vfio_pci_dependent_device`.
const DEPENDENT: usize = 8;

/// What DEVICE_GET_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceInfo {
    /// VFIO_DEVICE_RESET may work.
    pub reset: bool,
    /// It is a PCI device.
    pub pci: bool,
    /// Region indexes there are.
    pub regions: u32,
    /// Interrupt indexes there are.
    pub irqs: u32,
}

/// What DEVICE_GET_REGION_INFO says of one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RegionDetail {
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
    /// Where it begins in the device descriptor.
    pub offset: u64,
    /// Sparse areas, type, and whether the MSI-X table may be mapped.
    pub capabilities: Vec<RegionCapability>,
}

/// What goes to the kernel for each vector of a SET_IRQS.
#[derive(Clone, Copy, Debug)]
pub(super) enum IrqData<'a> {
    /// The action is for all.
    None,
    /// For those with true.
    Bools(&'a [bool]),
    /// An eventfd each; `None` takes it away (-1).
    Eventfds(&'a [Option<BorrowedFd<'a>>]),
}

/// A function that a hot reset would reset too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dependent {
    /// Its group, or with iommufd its device id.
    pub id: u32,
    /// PCI segment.
    pub segment: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device and function.
    pub devfn: u8,
}

/// What GET_PCI_HOT_RESET_INFO says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HotReset {
    /// The ids are device ids of our iommufd; else they are groups.
    pub by_device: bool,
    /// The kernel says that all are ours (iommufd only).
    pub owned: bool,
    /// Everything that would be reset, the device itself too.
    pub dependents: Vec<Dependent>,
}

/// A VFIO device.
#[derive(Clone, Debug)]
pub(super) struct Vfio {
    file: Arc<dyn VfioFile>,
}

impl Vfio {
    pub(super) fn new(file: Arc<dyn VfioFile>) -> Self {
        Self { file }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }

    pub(super) fn info(&self) -> Result<DeviceInfo, Errno> {
        let mut info = [0; DEVICE_INFO];
        self.file.ioctl(Request::GetInfo, &mut info)?;
        let [_, flags, regions, irqs] = words(&info);
        Ok(DeviceInfo {
            reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            pci: flags & VFIO_DEVICE_FLAGS_PCI != 0,
            regions,
            irqs,
        })
    }

    /// One region; EINVAL where the device has no such index.
    pub(super) fn region(&self, index: u32) -> Result<RegionDetail, Errno> {
        let request = RegionInfo {
            index,
            ..RegionInfo::default()
        };
        let mut argument = request.as_bytes().to_vec();
        self.file.ioctl(Request::GetRegionInfo, &mut argument)?;
        let needed = needed(&argument)?;
        if needed > argument.len() {
            // Nothing of the first answer is kept: a driver may look at what it is given.
            argument = request.as_bytes().to_vec();
            argument.resize(needed, 0);
            self.file.ioctl(Request::GetRegionInfo, &mut argument)?;
        }
        let (info, capabilities) = RegionInfo::decode(&argument).map_err(|_| Errno::PROTO)?;
        // The end of the region must be a file offset that pread can take.
        let end = info.offset.checked_add(info.size);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno::OVERFLOW);
        }
        Ok(RegionDetail {
            flags: info.flags,
            size: info.size,
            offset: info.offset,
            capabilities,
        })
    }

    /// One interrupt index; EINVAL where the device has no such index.
    pub(super) fn irq(&self, index: u32) -> Result<IrqInfo, Errno> {
        let mut info = IrqInfoBytes::new_zeroed();
        info.index = index;
        self.file.ioctl(Request::GetIrqInfo, info.as_mut_bytes())?;
        let has = |flag| info.flags & flag != 0;
        Ok(IrqInfo {
            // An index without eventfds is of no use to anybody.
            count: if has(VFIO_IRQ_INFO_EVENTFD) {
                info.count
            } else {
                0
            },
            maskable: has(VFIO_IRQ_INFO_MASKABLE),
            automasked: has(VFIO_IRQ_INFO_AUTOMASKED),
            noresize: has(VFIO_IRQ_INFO_NORESIZE),
        })
    }

    /// SET_IRQS for `count` vectors from `start`, with one `VFIO_IRQ_SET_ACTION_*`. ENOSPC if the machine
    /// has fewer vectors left.
    pub(super) fn set_irqs(
        &self,
        index: u32,
        action: u32,
        (start, count): (u32, u32),
        data: IrqData<'_>,
    ) -> Result<(), Errno> {
        let kind = match data {
            IrqData::None => VFIO_IRQ_SET_DATA_NONE,
            IrqData::Bools(_) => VFIO_IRQ_SET_DATA_BOOL,
            IrqData::Eventfds(_) => VFIO_IRQ_SET_DATA_EVENTFD,
        };
        let mut argument = [0, action | kind, index, start, count].as_bytes().to_vec();
        match data {
            IrqData::None => {}
            IrqData::Bools(flags) => argument.extend(flags.iter().map(|&flag| u8::from(flag))),
            IrqData::Eventfds(fds) => {
                let numbers = fds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()));
                argument.extend(numbers.flat_map(i32::to_ne_bytes));
            }
        }
        match self.file.ioctl(Request::SetIrqs, &mut argument)? {
            0 => Ok(()),
            // As many vectors could be had.
            _ => Err(Errno::NOSPC),
        }
    }

    pub(super) fn reset(&self) -> Result<(), Errno> {
        self.file.ioctl(Request::Reset, &mut []).map(drop)
    }

    pub(super) fn hot_reset_info(&self) -> Result<HotReset, Errno> {
        let mut argument = vec![0; HOT_RESET];
        match self.file.ioctl(Request::GetHotResetInfo, &mut argument) {
            Ok(_) | Err(Errno::NOSPC) => {}
            Err(errno) => return Err(errno),
        }
        let [_, _, count] = words(argument.first_chunk::<HOT_RESET>().ok_or(Errno::PROTO)?);
        let count = usize::try_from(count).map_err(|_| Errno::PROTO)?;
        let bytes = count.checked_mul(DEPENDENT).filter(|b| *b <= MAX_ARGUMENT);
        let mut argument = vec![0; HOT_RESET + bytes.ok_or(Errno::PROTO)?];
        self.file.ioctl(Request::GetHotResetInfo, &mut argument)?;
        let [_, flags, now] = words(argument.first_chunk::<HOT_RESET>().ok_or(Errno::PROTO)?);
        if usize::try_from(now) != Ok(count) {
            // A function came or went between the two calls.
            return Err(Errno::AGAIN);
        }
        let rows = argument.get(HOT_RESET..).unwrap_or_default();
        let dependents = rows.chunks_exact(DEPENDENT).filter_map(|row| {
            let [a, b, c, d, e, f, bus, devfn] = *row.first_chunk()?;
            Some(Dependent {
                id: u32::from_ne_bytes([a, b, c, d]),
                segment: u16::from_ne_bytes([e, f]),
                bus,
                devfn,
            })
        });
        Ok(HotReset {
            by_device: flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0,
            owned: flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED != 0,
            dependents: dependents.collect(),
        })
    }

    /// Resets everything that [`Self::hot_reset_info`] names. Ownership is proved by the groups' descriptors;
    /// with iommufd by none.
    pub(super) fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let count = u32::try_from(groups.len()).map_err(|_| Errno::INVAL)?;
        let mut argument = [0, 0, count].as_bytes().to_vec();
        argument.extend(groups.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()));
        self.file.ioctl(Request::HotReset, &mut argument).map(drop)
    }

    /// The first `length` bytes of a BAR as a dma-buf that can be mapped; `None` where the kernel does not
    /// have that.
    pub(super) fn mappable_dma_buf(&self, region: u32, length: u64) -> Option<OwnedFd> {
        const READ_WRITE: u32 = libc::O_RDWR.unsigned_abs() | libc::O_CLOEXEC.unsigned_abs();
        let feature = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
        let mut argument = [0, feature, region, READ_WRITE, 0, 1].as_bytes().to_vec();
        argument.extend_from_slice([0, length].as_bytes());
        let exported = self.file.export_dma_buf(&mut argument).ok()?;
        self.file.is_mappable(exported.as_fd()).then_some(exported)
    }

    /// IOEVENTFD: `data` of `size` bytes is written at an offset of the descriptor whenever the eventfd is
    /// signalled; without one, no longer.
    pub(super) fn set_ioeventfd(
        &self,
        offset: u64,
        (size, data): (u8, u64),
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Errno> {
        let fd = eventfd.map_or(-1, |fd| fd.as_raw_fd());
        // The size is its own flag.
        let mut argument = [0, u32::from(size)].as_bytes().to_vec();
        argument.extend_from_slice([offset, data].as_bytes());
        argument.extend_from_slice([fd, 0].as_bytes());
        self.file.ioctl(Request::IoEventFd, &mut argument).map(drop)
    }

    /// The flags of FEATURE_MIGRATION; ENOTTY where the driver does not migrate.
    pub(super) fn migration_flags(&self) -> Result<u64, Errno> {
        self.get_u64(VFIO_DEVICE_FEATURE_MIGRATION)
    }

    /// The migration state, by its number.
    pub(super) fn migration_state(&self) -> Result<u32, Errno> {
        let feature = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
        let mut argument: [u8; 16] = zerocopy::transmute!([0, feature, 0, u32::MAX]);
        self.file.ioctl(Request::Feature, &mut argument)?;
        let [.., state, _] = words::<_, 4>(&argument);
        Ok(state)
    }

    /// Changes the migration state. After an error only [`Self::migration_state`] tells what it is.
    pub(super) fn set_migration_state(
        &self,
        state: u32,
    ) -> Result<Option<Box<dyn DataFile>>, Errno> {
        let feature = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
        let mut argument: [u8; 16] = zerocopy::transmute!([0, feature, state, u32::MAX]);
        self.file.set_migration_state(&mut argument)
    }

    /// What a stop-copy would give, in bytes, as the driver says.
    pub(super) fn migration_data_size(&self) -> Result<u64, Errno> {
        self.get_u64(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE)
    }

    /// Asks for flags in pre-copy information. Only of devices with PRE_COPY.
    pub(super) fn enable_precopy_flags(&self) -> Result<(), Errno> {
        let feature = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2;
        let mut argument: [u8; 8] = zerocopy::transmute!([0, feature]);
        self.file.ioctl(Request::Feature, &mut argument).map(drop)
    }

    /// GET of a feature whose data is one u64.
    fn get_u64(&self, feature: u32) -> Result<u64, Errno> {
        let request = [0, VFIO_DEVICE_FEATURE_GET | feature, 0, 0];
        let mut argument: [u8; 16] = zerocopy::transmute!(request);
        self.file.ioctl(Request::Feature, &mut argument)?;
        let [_, value]: [u64; 2] = zerocopy::transmute!(argument);
        Ok(value)
    }

    /// pread(2) where [`Self::read`] would go on.
    pub(super) fn read_once(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.file.read_at(offset, data)
    }

    /// pwrite(2) where [`Self::write`] would go on.
    pub(super) fn write_once(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.file.write_at(offset, data)
    }

    /// Whether the driver tracks what the device writes.
    pub(super) fn has_logging(&self) -> bool {
        const START: u32 = VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
        let flags = VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_SET | START;
        let mut argument = [0, flags];
        let probed = self.file.ioctl(Request::Feature, argument.as_mut_bytes());
        probed.is_ok()
    }

    /// Begins tracking writes, and says in which page size.
    pub(super) fn start_logging(
        &self,
        page_size: u64,
        ranges: &mut [LoggedRange],
    ) -> Result<u64, Errno> {
        self.file.start_logging(page_size, ranges)
    }

    pub(super) fn stop_logging(&self) -> Result<(), Errno> {
        let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
        let mut argument = [0, flags];
        self.file
            .ioctl(Request::Feature, argument.as_mut_bytes())
            .map(drop)
    }

    /// Sets the bits of the pages that were written since this was last asked.
    pub(super) fn report_logging(
        &self,
        range: (u64, u64),
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        self.file.report_logging(range, page_size, bitmap)
    }

    /// Reads all of `data`; a range that ends early is EIO.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(offset.saturating_add(done as u64), rest) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Writes all of `data`; a range that ends early is EIO.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write_at(offset.saturating_add(done as u64), rest) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl HotReset {
    /// Whether everything that would be reset is ours: `group` is the one group this process holds.
    pub(super) fn is_ours(&self, group: Option<u32>) -> bool {
        if self.by_device {
            let foreign = VFIO_PCI_DEVID_NOT_OWNED.cast_unsigned();
            return self.owned && self.dependents.iter().all(|d| d.id != foreign);
        }
        let ours = |d: &Dependent| Some(d.id) == group;
        !self.dependents.is_empty() && self.dependents.iter().all(ours)
    }
}

/// What the kernel left in `argsz`.
fn needed(argument: &[u8]) -> Result<usize, Errno> {
    let (argsz, _) = u32::read_from_prefix(argument).map_err(|_| Errno::PROTO)?;
    let argsz = usize::try_from(argsz).map_err(|_| Errno::PROTO)?;
    if argsz > MAX_ARGUMENT {
        return Err(Errno::PROTO);
    }
    Ok(argsz)
}

/// The bytes as words of the machine.
fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    words
}
