// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One function per command: what it means for the function behind the session.
//!
//! A command leaves its reply in [`Session::reply`]; an empty one is a bare header.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vfio_user_protocol::device::{
    DEVICE_PCI, DEVICE_RESET, DeviceInfo, REGION_MMAP, REGION_READ, REGION_WRITE, RegionCapability,
    RegionInfo, SparseArea,
};
use vfio_user_protocol::dma::{
    DmaMap, DmaUnmap, MAP_FILE_IO, MAP_MMAP, MAP_READ, MAP_WRITE, UNMAP_ALL,
};
use vfio_user_protocol::io_fds::{IoFd, IoFds, SubRegion};
use vfio_user_protocol::irq::{
    INFO_AUTOMASKED, INFO_EVENTFD, INFO_MASKABLE, INFO_NORESIZE, IrqInfo, SetIrqs,
};
use vfio_user_protocol::region::RegionAccess;
use vfio_user_protocol::request::MultiWrites;
use vfio_user_protocol::version::{
    Capabilities, DEFAULT_MAX_DATA_XFER_SIZE, MAJOR, MINOR, Version,
};
use vfio_user_protocol::{DecodeError, Request, extension};
use zerocopy::IntoBytes;

use super::channel::Channel;
use super::irqs;
use super::migration::{Granted, MigrationCommands};
use super::refusal::Refusal;
use super::session::{MAX_DATA, MAX_FDS, Negotiated, Session, capabilities};
use super::twin::Twin;
use crate::device::{ResetCause, region};
use crate::interrupts::{self, INDEXES};
use crate::memory::{Access, Backing, MapError, MapRequest};

type Done = Result<(), Refusal>;

/// `KVM_IOEVENTFD_FLAG_DATAMATCH`: only this value counts (linux/kvm.h).
const IOEVENTFD_DATAMATCH: u32 = 1 << 0;

impl Session {
    /// Carries out one request.
    pub(super) fn command(&mut self, request: Request<'_>, mut fds: Vec<OwnedFd>) -> Done {
        if self.negotiated.is_none() && !matches!(request, Request::Version(..)) {
            return Err(Refusal::Unexpected("The first command must be VERSION"));
        }
        let takes = match &request {
            Request::DmaMap(_) | Request::MigChannel(_) => 1,
            Request::DeviceSetIrqs(..) => fds.len(),
            other => MigrationCommands::descriptors(other),
        };
        if fds.len() > takes {
            return Err(DecodeError::Descriptors {
                expected: takes,
                found: fds.len(),
            }
            .into());
        }
        match request {
            Request::Version(version, offer) => self.version(version, &offer),
            Request::DmaMap(map) => self.dma_map(&map, fds.pop()),
            Request::DmaUnmap(unmap) => self.dma_unmap(&unmap),
            Request::DeviceGetInfo(_) => self.device_info(),
            Request::DeviceGetRegionInfo(info) => self.region_info(&info),
            Request::DeviceGetRegionIoFds(asked) => self.region_io_fds(&asked),
            Request::DeviceGetIrqInfo(info) => self.irq_info(&info),
            Request::DeviceSetIrqs(set, data) => self.set_irqs(&set, data, fds),
            Request::RegionRead(access) => self.region_read(&access),
            Request::RegionWrite(access, data) => self.region_write(&access, data),
            Request::RegionWriteMulti(count, writes) => self.region_write_multi(count, writes),
            Request::DeviceReset => Ok(self.function.reset(ResetCause::Client)?),
            Request::MigChannel(_) => self.open_channel(fds.pop()),
            Request::DmaRead(_) | Request::DmaWrite(..) => Err(Refusal::Unexpected(
                "DMA_READ and DMA_WRITE are for the server to send",
            )),
            migration => {
                let commands = self.migration.as_mut();
                let commands = commands.ok_or(Refusal::Unexpected("No version agreed upon"))?;
                let last_refusal = &self.replies.last_refusal;
                commands.command(migration, fds, last_refusal, &mut self.reply)
            }
        }
    }

    fn version(&mut self, version: Version, offer: &Capabilities) -> Done {
        if self.negotiated.is_some() {
            return Err(Refusal::Unexpected("The version is agreed upon already"));
        }
        if version.major != MAJOR {
            return Err(Refusal::bad("version.major", version.major.into()));
        }
        let mut answer = capabilities().answer(offer)?;
        self.describe(&mut answer);
        // Minor 0 is below whatever was proposed.
        let agreed = Version {
            major: MAJOR,
            minor: MINOR,
        };
        self.reply.payload = answer.encode(agreed);
        let theirs = offer
            .max_data_xfer_size
            .unwrap_or(DEFAULT_MAX_DATA_XFER_SIZE);
        let max_data = usize::try_from(theirs).unwrap_or(usize::MAX).min(MAX_DATA);
        if answer.twin_socket.is_some_and(|twin| twin.supported) {
            self.open_twin(max_data)?;
        }
        let granted = Granted::new(&answer);
        let function = Arc::clone(&self.function);
        self.migration = Some(MigrationCommands::new(function, granted, max_data));
        self.negotiated = Some(Negotiated {
            max_data,
            max_fds: usize::try_from(offer.max_msg_fds.unwrap_or(1)).unwrap_or(usize::MAX),
            irq_routes: answer.has_feature(extension::IRQ_ROUTES),
        });
        self.greet(agreed, &answer);
        Ok(())
    }

    /// Adds what people may want to know of the device, where it was asked for.
    fn describe(&self, answer: &mut Capabilities) {
        let wanted = answer.has_feature(extension::DESCRIBE);
        if let Some(extension) = answer.extension.as_mut().filter(|_| wanted) {
            let device = self.function.device();
            let mut description = device.description();
            if let Some(driver) = device.migration() {
                description.push(("migration data", driver.data_version()));
            }
            description.push(("on disconnect", self.on_disconnect().to_owned()));
            let written = self.function.logging_source();
            description.push(("written pages", written.to_owned()));
            let text = |(key, value): (&str, String)| (key.to_owned(), value);
            extension.device = description.into_iter().map(text).collect();
        }
    }

    fn open_twin(&mut self, max_data: usize) -> Done {
        let os = |source: io::Error| Refusal::Os {
            what: "Twin socket",
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(os)?;
        let twin = Arc::new(Twin::new(ours, max_data).map_err(os)?);
        self.function
            .memory()
            .set_message_dma(Some(Arc::clone(&twin) as _));
        // VERSION succeeds once per session, so the cell is empty.
        let _ = self.twin.set(twin);
        self.reply.fds.push(theirs.into());
        Ok(())
    }

    /// From now on migration has its own socket; the main one takes its commands still.
    fn open_channel(&mut self, fd: Option<OwnedFd>) -> Done {
        let commands = self.migration.as_ref().filter(|m| m.granted.channel);
        let commands = commands.ok_or(Refusal::Unexpected("Not negotiated"))?;
        if self.channel.is_some() {
            return Err(Refusal::Unexpected("The migration channel is open already"));
        }
        let fd = fd.ok_or(DecodeError::Descriptors {
            expected: 1,
            found: 0,
        })?;
        let channel = Channel::start(fd, commands.alike(), self.socket())?;
        // One channel per session, so the cell is empty.
        let _ = self.channel_closer.set(channel.closer());
        self.channel = Some(channel);
        Ok(())
    }

    fn dma_map(&mut self, map: &DmaMap, fd: Option<OwnedFd>) -> Done {
        // pread and pwrite instead of a mapping is not served; a promise about a descriptor needs one.
        if map.flags & MAP_FILE_IO != 0 || (map.flags & MAP_MMAP != 0 && fd.is_none()) {
            return Err(Refusal::bad("dma_map.flags", map.flags.into()));
        }
        let mut access = Access::NONE;
        for (flag, allowed) in [(MAP_READ, Access::READ), (MAP_WRITE, Access::WRITE)] {
            if map.flags & flag != 0 {
                access = access | allowed;
            }
        }
        if access == Access::NONE {
            return Err(Refusal::bad("dma_map.flags", map.flags.into()));
        }
        let backing = fd.map(|file| Backing {
            file,
            offset: map.offset,
        });
        let request = MapRequest {
            iova: map.address,
            size: map.size,
            access,
            backing,
        };
        Ok(self.function.memory().map(request)?)
    }

    fn dma_unmap(&mut self, unmap: &DmaUnmap) -> Done {
        let memory = self.function.memory();
        if unmap.flags & UNMAP_ALL != 0 {
            if (unmap.address, unmap.size) != (0, 0) {
                return Err(Refusal::bad(
                    "dma_unmap.address",
                    unmap.address | unmap.size,
                ));
            }
            memory.unmap_all()?;
        } else if let Err(error) = memory.unmap(unmap.address, unmap.size) {
            // The specification wants an exact match; QEMU removes a virtual IOMMU's region in one piece.
            let inexact = matches!(error, MapError::NotMapped { .. });
            if !inexact || memory.unmap_range(unmap.address, unmap.size)? == 0 {
                return Err(error.into());
            }
        }
        self.reply.payload.extend_from_slice(unmap.as_bytes());
        Ok(())
    }

    fn device_info(&mut self) -> Done {
        let reset = if self.function.device().resettable() {
            DEVICE_RESET
        } else {
            0
        };
        let info = DeviceInfo {
            argsz: size_of_u32::<DeviceInfo>(),
            flags: DEVICE_PCI | reset,
            num_regions: self.function.region_count(),
            num_irqs: INDEXES,
        };
        self.reply.payload.extend_from_slice(info.as_bytes());
        Ok(())
    }

    fn region_info(&mut self, asked: &RegionInfo) -> Done {
        let index = asked.index;
        self.check_region_index(index)?;
        let mut found = self.function.region(index);
        if index == region::ROM {
            // QEMU reads all of it in one message.
            let max = self.negotiated.as_ref().map_or(0, |n| n.max_data);
            found.size = found.size.min(max as u64);
        }
        let mut info = RegionInfo {
            index,
            size: found.size,
            ..RegionInfo::default()
        };
        info.flags |= if found.readable { REGION_READ } else { 0 };
        info.flags |= if found.writable { REGION_WRITE } else { 0 };
        let mut capabilities = Vec::new();
        if let Some(kind) = self.function.region_kind(index) {
            capabilities.push(RegionCapability::Type {
                region_type: kind.region_type,
                subtype: kind.subtype,
            });
        }
        if self.max_fds() > 0
            && let Some(mapping) = self.function.mapping(index)?
        {
            // In every reply, with and without capabilities: clients differ in which they look at.
            self.reply.fds.push(mapping.fd);
            info.flags |= REGION_MMAP;
            info.offset = mapping.offset;
            if let Some(areas) = mapping.areas {
                let areas = areas.iter().map(|a| SparseArea {
                    offset: a.offset,
                    size: a.size,
                });
                capabilities.push(RegionCapability::SparseMmap(areas.collect()));
            }
        }
        info.encode(&capabilities, asked.argsz, &mut self.reply.payload);
        Ok(())
    }

    /// Descriptors that a reply may have.
    fn max_fds(&self) -> usize {
        self.negotiated
            .as_ref()
            .map_or(0, |negotiated| negotiated.max_fds)
            .min(MAX_FDS as usize)
    }

    fn check_region_index(&self, index: u32) -> Done {
        if index >= self.function.region_count() {
            return Err(Refusal::bad("region index", index.into()));
        }
        Ok(())
    }

    fn region_io_fds(&mut self, asked: &IoFds) -> Done {
        self.check_region_index(asked.index)?;
        if self.function.region(asked.index).size == 0 {
            return Err(Refusal::bad("io_fds.index", asked.index.into()));
        }
        let doorbells = self.function.doorbells(asked.index, self.max_fds())?;
        let sub_regions: Vec<_> = (0..)
            .zip(&doorbells)
            .map(|(fd_index, (doorbell, _))| SubRegion {
                offset: doorbell.offset,
                size: doorbell.size.into(),
                fd_index,
                flags: IOEVENTFD_DATAMATCH,
                kind: IoFd::IoEventFd {
                    datamatch: doorbell.data,
                },
            })
            .collect();
        let payload = &mut self.reply.payload;
        if IoFds::encode(asked.index, &sub_regions, asked.argsz, payload) {
            self.reply
                .fds
                .extend(doorbells.into_iter().map(|(_, event)| event));
        }
        Ok(())
    }

    fn irq_info(&mut self, asked: &IrqInfo) -> Done {
        if asked.index >= INDEXES {
            return Err(Refusal::bad("irq_info.index", asked.index.into()));
        }
        let interrupts::IrqInfo {
            count,
            maskable,
            automasked,
            noresize,
        } = self.function.device().irq(asked.index);
        let mut flags = 0;
        for (is_set, flag) in [
            (count > 0, INFO_EVENTFD),
            (maskable, INFO_MASKABLE),
            (automasked, INFO_AUTOMASKED),
            (noresize, INFO_NORESIZE),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let info = IrqInfo {
            argsz: size_of_u32::<IrqInfo>(),
            flags,
            index: asked.index,
            count,
        };
        self.reply.payload.extend_from_slice(info.as_bytes());
        Ok(())
    }

    fn set_irqs(&mut self, set: &SetIrqs, data: &[u8], fds: Vec<OwnedFd>) -> Done {
        let device = self.function.device();
        let request = irqs::translate(set, data, fds, device.irq(set.index))?;
        Ok(device.set_irqs(request)?)
    }

    fn region_read(&mut self, access: &RegionAccess) -> Done {
        let max = self
            .negotiated
            .as_ref()
            .map_or(0, |negotiated| negotiated.max_data);
        let count = usize::try_from(access.count).unwrap_or(usize::MAX);
        if count > max {
            return Err(Refusal::bad("region_read.count", access.count.into()));
        }
        self.check_region_index(access.region)?;
        self.function
            .read(access.region, access.offset, self.reply.data(count))?;
        self.reply.payload.extend_from_slice(access.as_bytes());
        Ok(())
    }

    fn region_write(&mut self, access: &RegionAccess, data: &[u8]) -> Done {
        self.check_region_index(access.region)?;
        self.function.write(access.region, access.offset, data)?;
        self.reply.payload.extend_from_slice(access.as_bytes());
        Ok(())
    }

    fn region_write_multi(&mut self, count: u64, writes: MultiWrites<'_>) -> Done {
        for write in writes {
            let bytes = write
                .bytes()
                .ok_or_else(|| Refusal::bad("multi_write.count", write.count.into()))?;
            self.check_region_index(write.region)?;
            self.function.write(write.region, write.offset, bytes)?;
        }
        self.reply.payload.extend_from_slice(count.as_bytes());
        Ok(())
    }
}

/// The size of a wire structure as its `argsz`.
pub(super) fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}
