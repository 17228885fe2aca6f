// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the kernel's VFIO. The only place with VFIO ioctls.
//!
//! | file | job |
//! |---|---|
//! | `open.rs`, `open_error.rs` | from a PCI address, a sysfs path or descriptors to an open device; what to say when not |
//! | `bind.rs` | the requests that bind a device to its IOMMU |
//! | `sysfs.rs` | what sysfs says of a device: driver, group, character devices |
//! | `file.rs` | the seam: one trait for a device descriptor, and the real one |
//! | `vfio.rs` | the requests of a device as functions |
//! | `irqs.rs` | the client's eventfds in the kernel, aggregated per index |
//! | `iommu.rs` | guest memory in the IOMMU |
//! | `translators.rs`, `limits.rs` | its calls (iommufd, or a type1 container), and what it can take |
//! | `dirty.rs`, `tracking.rs` | which pages were written, as the IOMMU tells |
//! | `logging.rs` | the same, as the device itself tells |
//! | `handoff.rs` | which parts of BARs the client may map |
//! | `reset.rs` | the ladder of resets |
//! | `specific.rs` | device-specific regions, found by their type |
//! | `migration.rs`, `migration_region.rs` | migration v2, and the region of v1 |
//!
//! Here: the device itself, as [`Device`]. Guest memory does not pass through it; the address space programs
//! the IOMMU.

mod bind;
mod dirty;
#[cfg(test)]
pub(crate) mod fake;
mod file;
mod handoff;
mod iommu;
mod irqs;
mod limits;
mod logging;
mod migration;
mod migration_region;
mod open;
mod open_error;
mod reset;
mod specific;
mod sysfs;
mod tracking;
mod translators;
mod vfio;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use log::{info, warn};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE};

use super::{Device, Error, Mapping, Region, ResetCause, region};
use crate::interrupts::{Delivery, IrqConfig, IrqInfo, IrqRequest};
use crate::memory::DirtyTracker;
use crate::migration::MigrationDriver;
use crate::pci::registers::{
    PCI_BASE_ADDRESS_0, PCI_CFG_SPACE_SIZE, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_ROM_ADDRESS,
    PCI_STD_HEADER_SIZEOF,
};
use crate::pci::{ConfigSpace, DeviceSizes, OverlayError};
use crate::quirks::Doorbell;
pub use file::{DataFile, KernelFile, Request, VfioFile};
pub use handoff::BarHandoff;
use handoff::{Handed, hand_over};
pub use iommu::HostIommu;
use irqs::Irqs;
use logging::DeviceLogging;
use migration::Migration;
pub use open::{Companion, Opened, VfToken, adopt, open};
pub use open_error::OpenError;
pub use reset::Group;
use reset::Ladder;
use specific::Specific;
pub use sysfs::{Member, Roots};
use vfio::{RegionDetail, Vfio};

/// Why an open VFIO device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused a request about the device.
    #[error("{what} of the device: {errno}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// It is not a PCI device.
    #[error(
        "The descriptor is a VFIO device, but not a PCI one (platform, AP and CCW are not served)"
    )]
    NotPci,
    /// Its config space is none.
    #[error("Config space of the device")]
    Config(#[from] OverlayError),
    /// `--bar-handoff dmabuf` cannot be had.
    #[error(
        "This kernel cannot map a BAR exported as a dma-buf: pass --bar-handoff device-fd (fast, gives the \
         VMM every ioctl of the device) or none (every access is a message)"
    )]
    NoDmaBuf,
}

impl KernelError {
    fn request(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Request { what, errno }
    }
}

/// An open device, bound to its IOMMU, and what must stay open with it.
#[derive(Debug)]
pub struct OpenDevice {
    /// Its descriptor.
    pub file: Arc<dyn VfioFile>,
    /// Its group, where this process holds it.
    pub group: Option<Group>,
    /// For people, such as `0000:01:00.0`.
    pub name: String,
    /// Whose migration data it has: its driver, or the type of a mediated device; empty if not known.
    pub driver: String,
    /// How it was come by, for people: names and values.
    pub origin: Vec<(&'static str, String)>,
}

/// A device of the kernel's VFIO.
#[derive(Debug)]
pub struct KernelDevice {
    vfio: Vfio,
    group: Option<Group>,
    name: String,
    origin: Vec<(&'static str, String)>,
    handoff: BarHandoff,
    regions: Vec<RegionDetail>,
    config: ConfigSpace,
    irqs: Irqs,
    /// By BAR; changes once, when quirks are known.
    handed: RwLock<Vec<Option<Handed>>>,
    specific: Vec<Specific>,
    ladder: Ladder,
    migration: Migration,
    logging: Option<Arc<DeviceLogging>>,
}

impl KernelDevice {
    /// Finds out what the device is, and takes it to rest: nothing decoded, no bus mastering, no interrupts
    /// but the kernel's request for the device.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn new(open: OpenDevice, handoff: BarHandoff) -> Result<Self, KernelError> {
        let OpenDevice {
            file,
            group,
            name,
            driver,
            origin,
        } = open;
        let vfio = Vfio::new(file);
        let info = vfio.info().map_err(KernelError::request("Information"))?;
        if !info.pci {
            return Err(KernelError::NotPci);
        }
        let mut regions = Vec::new();
        for index in 0..region::COUNT {
            regions.push(match vfio.region(index) {
                // The kernel has more indexes than any one device.
                Err(Errno::INVAL) => RegionDetail::default(),
                other => other.map_err(KernelError::request("A region"))?,
            });
        }
        let bytes = read_config(&vfio, &regions)?;
        let config = ConfigSpace::from_device(&bytes, &sizes(&regions))?;
        let migration = Migration::find(&vfio, info.regions, &driver);
        let function = info.reset || migration.driver.is_some();
        let bar5 = regions.get(region::BAR5 as usize);
        let bar5 = bar5.cloned().unwrap_or_default();
        let ladder = Ladder::new(&vfio, function, &bytes, &bar5, group.as_ref());
        let handed = hand_bars_over(&vfio, handoff, &regions, &config)?;
        let specific = specific::find(&vfio, info.regions);
        let irqs = Irqs::new(vfio.clone()).map_err(KernelError::request("Interrupts"))?;
        let logging = DeviceLogging::probe(&vfio).map(Arc::new);
        let mut device = Self {
            vfio,
            group,
            name,
            origin,
            handoff,
            regions,
            config,
            irqs,
            handed: RwLock::new(handed),
            specific,
            ladder,
            migration,
            logging,
        };
        device.announce(handoff);
        // The first client finds what every other finds, and not where the host had the BARs.
        device
            .reset_header()
            .map_err(KernelError::request("Registers"))?;
        let bytes = read_config(&device.vfio, &device.regions)?;
        device.config.refresh(&bytes);
        Ok(device)
    }

    /// What an operator should know once.
    fn announce(&self, handoff: BarHandoff) {
        let mapped = self.mapped_bars();
        match handoff {
            BarHandoff::Auto if mapped == 0 => info!(
                "BARs are trapped: this kernel cannot map a dma-buf of a BAR. --bar-handoff device-fd is \
                 fast, and gives the VMM every ioctl of the device"
            ),
            BarHandoff::DeviceFd => {
                info!("{mapped} BARs are mapped through the device descriptor, which the VMM gets");
            }
            BarHandoff::None => info!("BARs are trapped, as asked"),
            BarHandoff::Auto | BarHandoff::Dmabuf => info!("{mapped} BARs are mapped as dma-bufs"),
        }
        if self.ladder.is_empty() {
            warn!(
                "Nothing can reset this device: what one client leaves in it, the next one finds"
            );
        }
    }

    fn handed(&self) -> RwLockReadGuard<'_, Vec<Option<Handed>>> {
        self.handed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapped_bars(&self) -> usize {
        self.handed().iter().flatten().count()
    }

    fn detail(&self, index: u32) -> Option<&RegionDetail> {
        self.regions.get(index as usize)
    }

    /// Where a checked range of a region is in the descriptor.
    fn place(&self, index: u32, offset: u64, length: usize, flag: u32) -> Result<u64, Error> {
        let out_of_range = Error::OutOfRange {
            region: index,
            offset,
            length,
        };
        let Some(detail) = self.detail(index) else {
            return Err(out_of_range);
        };
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > detail.size) {
            return Err(out_of_range);
        }
        if detail.flags & flag == 0 {
            let what = if flag == VFIO_REGION_INFO_FLAG_READ {
                "read"
            } else {
                "written"
            };
            return Err(Error::Denied {
                region: index,
                what,
            });
        }
        Ok(detail.offset.saturating_add(offset))
    }

    /// How many bytes of a range of config space the device itself has.
    fn config_there(&self, offset: u64, length: usize) -> usize {
        let size = self.detail(region::CONFIG).map_or(0, |detail| detail.size);
        usize::try_from(size.saturating_sub(offset)).map_or(length, |there| there.min(length))
    }

    fn config_write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let place = self
            .place(
                region::CONFIG,
                offset,
                data.len(),
                VFIO_REGION_INFO_FLAG_WRITE,
            )
            .map_err(|error| error.errno())?;
        self.vfio.write(place, data)
    }

    /// What a reset leaves in the header, which the kernel saves and puts back around its own.
    fn reset_header(&self) -> Result<(), Errno> {
        self.config_write(PCI_COMMAND.into(), &[0, 0])?;
        for (index, _) in self.config.bars() {
            let at = PCI_BASE_ADDRESS_0 + 4 * u16::from(index);
            self.config_write(at.into(), &[0; 4])?;
            if self.config.bar(index).is_some_and(|state| state.is_wide()) {
                self.config_write(u64::from(at) + 4, &[0; 4])?;
            }
        }
        if self.config.rom_size().is_some() {
            self.config_write(PCI_ROM_ADDRESS.into(), &[0; 4])?;
        }
        Ok(())
    }
}

/// The whole config space, as it reads now.
fn read_config(vfio: &Vfio, regions: &[RegionDetail]) -> Result<Vec<u8>, KernelError> {
    let detail = regions.get(region::CONFIG as usize);
    let size = detail.map_or(0, |detail| detail.size);
    let size = usize::try_from(size).ok().filter(|size| *size <= 4096);
    let Some((detail, size)) = detail.zip(size) else {
        return Err(OverlayError::Size(usize::MAX).into());
    };
    let mut bytes = vec![0; size];
    vfio.read(detail.offset, &mut bytes)
        .map_err(KernelError::request("Config space"))?;
    if size >= PCI_STD_HEADER_SIZEOF.into() {
        // A mediated device may have less than every PCI function; nothing is behind its end.
        bytes.resize(size.max(PCI_CFG_SPACE_SIZE.into()), 0);
    }
    Ok(bytes)
}

fn sizes(regions: &[RegionDetail]) -> DeviceSizes {
    let mut sizes = DeviceSizes::default();
    for (size, detail) in sizes.bars.iter_mut().zip(regions) {
        *size = detail.size;
    }
    let rom = regions.get(region::ROM as usize);
    sizes.rom = rom.map_or(0, |detail| detail.size);
    sizes
}

fn hand_bars_over(
    vfio: &Vfio,
    policy: BarHandoff,
    regions: &[RegionDetail],
    config: &ConfigSpace,
) -> Result<Vec<Option<Handed>>, KernelError> {
    let bars = (region::BAR0..=region::BAR5).zip(regions);
    let handed: Vec<_> = bars
        .map(|(index, detail)| hand_over(vfio, policy, index, detail, &msix_windows(config, index)))
        .collect();
    if policy == BarHandoff::Dmabuf && handed.iter().all(Option::is_none) {
        return Err(KernelError::NoDmaBuf);
    }
    Ok(handed)
}

/// Where the MSI-X table and the pending bits are in a BAR.
fn msix_windows(config: &ConfigSpace, index: u32) -> Vec<Range<u64>> {
    let Some(msix) = config.msix() else {
        return Vec::new();
    };
    let vectors = u64::from(msix.table_size);
    let windows = [
        (msix.table, vectors * 16),
        (msix.pba, vectors.div_ceil(64) * 8),
    ];
    let here = windows
        .into_iter()
        .filter(|(place, _)| u32::from(place.bar) == index);
    here.map(|(place, size)| u64::from(place.offset)..u64::from(place.offset) + size)
        .collect()
}

impl Device for KernelDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn description(&self) -> Vec<(&'static str, String)> {
        let mapped = self.mapped_bars();
        let handed_over = match (mapped, self.handoff) {
            (0, policy) => format!("{policy}: BARs are trapped"),
            (count, policy) => format!("{policy}: {count} BARs are mapped"),
        };
        let mut description = vec![("name", self.name()), ("BAR handoff", handed_over)];
        description.push(("migration", self.migration.description.clone()));
        description.extend(self.origin.iter().cloned());
        description
    }

    fn config_space(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let there = self.config_there(offset, data.len());
        let (there, behind) = data.split_at_mut(there);
        behind.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.read(region::CONFIG, offset, there)
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        match data.get(..self.config_there(offset, data.len())) {
            None | Some([]) => Ok(()),
            Some(there) => self.write(region::CONFIG, offset, there),
        }
    }

    fn stop_dma(&self) -> Result<(), Error> {
        let at = u64::from(PCI_COMMAND);
        let mut command = [0; 2];
        self.read(region::CONFIG, at, &mut command)?;
        let command = u16::from_le_bytes(command);
        if command & PCI_COMMAND_MASTER == 0 {
            return Ok(());
        }
        let stopped = command & !PCI_COMMAND_MASTER;
        self.write(region::CONFIG, at, &stopped.to_le_bytes())
    }

    fn migration(&self) -> Option<&dyn MigrationDriver> {
        self.migration.driver.as_deref()
    }

    fn dirty_tracker(&self) -> Option<Arc<dyn DirtyTracker>> {
        let logging = self.logging.as_ref()?;
        Some(Arc::clone(logging) as _)
    }

    fn release_request(&self) -> Option<BorrowedFd<'_>> {
        Some(self.irqs.request())
    }

    fn resettable(&self) -> bool {
        !self.ladder.is_empty()
    }

    fn region(&self, index: u32) -> Region {
        self.detail(index)
            .map_or(Region::default(), |detail| Region {
                size: detail.size,
                readable: detail.flags & VFIO_REGION_INFO_FLAG_READ != 0,
                writable: detail.flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            })
    }

    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        let handed = self.handed();
        let Some(handed) = handed.get(index as usize).and_then(Option::as_ref) else {
            return Ok(None);
        };
        let fd = handed.fd.as_ref().map_or(self.vfio.fd(), AsFd::as_fd);
        let fd = fd.try_clone_to_owned().map_err(|source| Error::Io {
            what: "Descriptor of a BAR",
            source,
        })?;
        Ok(Some(Mapping {
            fd,
            offset: handed.offset,
            areas: handed.areas.clone().map(Cow::Owned),
        }))
    }

    /// A dma-buf is made anew, so that nothing of the trapped pages is in it.
    fn trap(&self, region: u32, parts: &[Range<u64>]) {
        let mut handed = self.handed.write().unwrap_or_else(PoisonError::into_inner);
        let slot = handed.get_mut(region as usize);
        let (Some(slot), Some(detail)) = (slot, self.detail(region)) else {
            return;
        };
        if slot.take().is_some() {
            let mut trapped = msix_windows(&self.config, region);
            trapped.extend_from_slice(parts);
            *slot = hand_over(&self.vfio, self.handoff, region, detail, &trapped);
        }
    }

    fn specific(
        &self,
        region_type: u32,
        subtype: u32,
        largest: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        specific::read(&self.vfio, &self.specific, (region_type, subtype), largest)
    }

    fn set_doorbell(
        &self,
        doorbell: &Doorbell,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let Doorbell {
            region,
            offset,
            size,
            data,
        } = *doorbell;
        let place = self.place(region, offset, size.into(), VFIO_REGION_INFO_FLAG_WRITE)?;
        self.vfio
            .set_ioeventfd(place, (size, data), eventfd)
            .map_err(io_error("VFIO_DEVICE_IOEVENTFD"))
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let place = self.place(region, offset, data.len(), VFIO_REGION_INFO_FLAG_READ)?;
        let what = "Reading from the device";
        self.vfio.read(place, data).map_err(io_error(what))
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        let place = self.place(region, offset, data.len(), VFIO_REGION_INFO_FLAG_WRITE)?;
        let what = "Writing to the device";
        self.vfio.write(place, data).map_err(io_error(what))
    }

    fn irq(&self, index: u32) -> IrqInfo {
        self.irqs.info(index)
    }

    fn set_irqs(&self, request: IrqRequest) -> Result<(), Error> {
        self.irqs
            .apply(request)
            .map_err(io_error("VFIO_DEVICE_SET_IRQS"))
    }

    fn set_delivery(&self, delivery: Delivery) {
        self.irqs.set_delivery(delivery);
    }

    fn set_irq_config(&self, config: IrqConfig) {
        self.irqs.set_config(config);
    }

    fn set_vector_mask(&self, index: u32, vector: u32, masked: bool) {
        self.irqs.set_vector_mask(index, vector, masked);
    }

    fn vector_pending(&self, index: u32, vector: u32) -> bool {
        self.irqs.pending(index, vector)
    }

    /// The device's own status register tells.
    fn interrupt_status(&self) -> bool {
        false
    }

    /// Without a rung of the ladder a client is told so, and at its leaving the registers that matter are
    /// cleared all the same.
    fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        let done = if self.ladder.is_empty() && cause == ResetCause::Disconnect {
            Ok(())
        } else {
            let config = |at, data: &[u8]| self.config_write(at, data);
            let check = || self.migration.check_running();
            let group = self.group.as_ref();
            self.ladder.reset(&self.vfio, group, config, check)
        };
        let cleared = self.reset_header();
        done.map_err(io_error("Resetting the device"))
            .and(cleared.map_err(io_error("Registers after a reset")))
    }

    fn release_irqs(&self) {
        self.irqs.release();
    }
}

fn io_error(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io {
        what,
        source: io::Error::from(errno),
    }
}
