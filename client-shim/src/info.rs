// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device is: its regions and interrupts, and the descriptors that stand for parts of a region.

use std::os::fd::OwnedFd;

use zerocopy::IntoBytes;

use crate::client::MAX_ARGSZ;
use crate::protocol::codec::Reader;
use crate::protocol::device::{self, DeviceInfo, RegionCapability, SparseArea};
use crate::protocol::io_fds::{IoFds, SubRegion};
use crate::protocol::irq::IrqInfo;
use crate::protocol::{Command, DecodeError};
use crate::{Client, Error};

/// How often a server may say that its reply needs more room.
const MAX_ATTEMPTS: usize = 3;
/// The `fd_index` of a sub-region without a descriptor.
const NO_FD: u32 = u32::MAX;

/// One region of the device.
#[derive(Debug)]
pub struct RegionInfo {
    /// Bytes; 0 where the device has no such region.
    pub size: u64,
    /// Can be read.
    pub readable: bool,
    /// Can be written.
    pub writable: bool,
    /// What else the server says of it.
    pub capabilities: Vec<RegionCapability>,
    /// What to map, and where the region begins in it, in bytes. `None` where the region is only reached
    /// through messages, also if the server promised a descriptor and sent none.
    pub mapping: Option<(OwnedFd, u64)>,
}

impl RegionInfo {
    /// The parts that can be mapped, as the server says: its sparse areas or else the whole region.
    #[must_use]
    pub fn mappable_areas(&self) -> Vec<SparseArea> {
        if self.mapping.is_none() {
            return Vec::new();
        }
        let sparse = self
            .capabilities
            .iter()
            .find_map(|capability| match capability {
                RegionCapability::SparseMmap(areas) => Some(areas.clone()),
                _ => None,
            });
        sparse.unwrap_or_else(|| {
            vec![SparseArea {
                offset: 0,
                size: self.size,
            }]
        })
    }
}

/// Descriptors that take a region's accesses in the kernel.
#[derive(Debug)]
pub struct RegionIoFds {
    /// The parts, each within the region; `fd_index` is one of `fds`, or `u32::MAX` for none.
    pub sub_regions: Vec<SubRegion>,
    /// Possibly shared by several parts.
    pub fds: Vec<OwnedFd>,
}

impl Client {
    /// Flags, number of regions and of interrupt indexes. The numbers are the server's word: bound them
    /// before looping.
    ///
    /// # Errors
    /// [`Error::Peer`] and what a lost connection gives.
    pub fn device_info(&self) -> Result<DeviceInfo, Error> {
        let request = DeviceInfo {
            argsz: size_u32::<DeviceInfo>(),
            ..DeviceInfo::default()
        };
        self.call(
            Command::DeviceGetInfo,
            &[request.as_bytes()],
            &[],
            |body, _| Reader::new(body).take("device_info"),
        )
    }

    /// One region.
    ///
    /// # Errors
    /// [`Error::Peer`] (EINVAL for an index that is not there) and what a lost connection gives.
    pub fn region_info(&self, index: u32) -> Result<RegionInfo, Error> {
        let fixed = size_u32::<device::RegionInfo>();
        let mut fd = None;
        let (info, capabilities) = self.grow(Command::DeviceGetRegionInfo, fixed, |argsz| {
            let request = device::RegionInfo {
                argsz,
                index,
                ..device::RegionInfo::default()
            };
            let command = Command::DeviceGetRegionInfo;
            let (needed, decoded, came) =
                self.call(command, &[request.as_bytes()], &[], |body, fds| {
                    let info: device::RegionInfo = Reader::new(body).take("region_info")?;
                    let whole = info.argsz <= argsz;
                    let decoded = whole
                        .then(|| device::RegionInfo::decode(body))
                        .transpose()?;
                    Ok((info.argsz, decoded, fds.into_iter().next()))
                })?;
            // Some servers send it with the short reply, some with the whole one, some with both.
            fd = came.or(fd.take());
            Ok((needed, decoded))
        })?;
        let mapping = fd.filter(|_| info.flags & device::REGION_MMAP != 0);
        Ok(RegionInfo {
            size: info.size,
            readable: info.flags & device::REGION_READ != 0,
            writable: info.flags & device::REGION_WRITE != 0,
            capabilities,
            mapping: mapping.map(|fd| (fd, info.offset)),
        })
    }

    /// The interrupts at one index.
    ///
    /// # Errors
    /// [`Error::Peer`] (EINVAL for an index that is not there) and what a lost connection gives.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, Error> {
        let request = IrqInfo {
            argsz: size_u32::<IrqInfo>(),
            index,
            ..IrqInfo::default()
        };
        self.call(
            Command::DeviceGetIrqInfo,
            &[request.as_bytes()],
            &[],
            |body, _| Reader::new(body).take("irq_info"),
        )
    }

    /// The ioeventfds and ioregionfds of one region.
    ///
    /// # Errors
    /// [`Error::Peer`], [`Error::Reply`] for parts outside the region or without their descriptor, and what
    /// a lost connection gives.
    pub fn region_io_fds(&self, index: u32) -> Result<RegionIoFds, Error> {
        let command = Command::DeviceGetRegionIoFds;
        let region_size = self.region_info(index)?.size;
        let (sub_regions, fds) = self.grow(command, size_u32::<IoFds>(), |argsz| {
            let request = IoFds {
                argsz,
                index,
                ..IoFds::default()
            };
            self.call(command, &[request.as_bytes()], &[], |body, fds| {
                let fixed: IoFds = Reader::new(body).take("io_fds")?;
                let whole = fixed.argsz <= argsz;
                let decoded = whole.then(|| IoFds::decode(body)).transpose()?;
                Ok((
                    fixed.argsz,
                    decoded.map(|(_, sub_regions)| (sub_regions, fds)),
                ))
            })
        })?;
        for part in &sub_regions {
            check_sub_region(part, region_size, fds.len())
                .map_err(|source| self.broken(Error::Reply { command, source }))?;
        }
        Ok(RegionIoFds { sub_regions, fds })
    }

    /// Asks with room for `argsz` bytes and again with what the server says it needs. `ask` returns that
    /// need and, if it was met, the reply.
    pub(crate) fn grow<T>(
        &self,
        command: Command,
        mut argsz: u32,
        mut ask: impl FnMut(u32) -> Result<(u32, Option<T>), Error>,
    ) -> Result<T, Error> {
        for _ in 0..MAX_ATTEMPTS {
            match ask(argsz)? {
                (_, Some(reply)) => return Ok(reply),
                (needed, None) => argsz = needed,
            }
            if argsz > MAX_ARGSZ {
                break;
            }
        }
        let size = argsz;
        Err(self.broken(Error::TooLong { command, size }))
    }

    /// Ends the connection over a reply whose fault shows only after the exchange.
    fn broken(&self, error: Error) -> Error {
        self.disconnect();
        error
    }
}

fn check_sub_region(part: &SubRegion, region_size: u64, fds: usize) -> Result<(), DecodeError> {
    let end = part.offset.checked_add(part.size);
    if end.is_none_or(|end| end > region_size) {
        return Err(DecodeError::BadValue {
            field: "sub_region.offset",
            value: part.offset,
        });
    }
    if part.fd_index != NO_FD && usize::try_from(part.fd_index).is_ok_and(|at| at >= fds) {
        return Err(DecodeError::BadValue {
            field: "sub_region.fd_index",
            value: part.fd_index.into(),
        });
    }
    Ok(())
}

/// The size of a wire structure, as `argsz` gives it.
pub(crate) fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::protocol::io_fds::IoFd;
    use crate::testing::{Message, Peer, capabilities, client, word};

    fn region(capabilities: &[RegionCapability], request: &Message) -> Vec<u8> {
        let info = device::RegionInfo {
            flags: device::REGION_READ | device::REGION_MMAP,
            index: 2,
            size: 0x8000,
            offset: 0x1000,
            ..device::RegionInfo::default()
        };
        let mut body = Vec::new();
        info.encode(capabilities, word(&request.body, 0), &mut body);
        body
    }

    fn sparse() -> Vec<RegionCapability> {
        vec![RegionCapability::SparseMmap(vec![SparseArea {
            offset: 0x1000,
            size: 0x2000,
        }])]
    }

    #[test]
    fn the_descriptor_may_come_with_the_short_reply_or_the_whole_or_both() {
        for with in [(true, false), (false, true), (true, true), (false, false)] {
            let (client, server) = client(capabilities(), move |peer| {
                let file = File::open("/dev/null").unwrap();
                for send in [with.0, with.1] {
                    let request = peer.expect(Command::DeviceGetRegionInfo);
                    let fds: &[_] = if send { &[file.as_fd()] } else { &[] };
                    peer.reply(&request, &region(&sparse(), &request), fds);
                }
            });
            let info = client.region_info(2).unwrap();
            assert_eq!(
                (info.size, info.readable, info.writable),
                (0x8000, true, false)
            );
            assert_eq!(info.capabilities, sparse());
            let offset = info.mapping.as_ref().map(|(_, offset)| *offset);
            assert_eq!(
                offset,
                (with != (false, false)).then_some(0x1000),
                "{with:?}"
            );
            assert_eq!(info.mappable_areas().len(), usize::from(offset.is_some()));
            server.join().unwrap();
        }
    }

    #[test]
    fn one_question_is_enough_without_capabilities() {
        let (client, server) = client(capabilities(), |peer| {
            let request = peer.expect(Command::DeviceGetRegionInfo);
            peer.reply(&request, &region(&[], &request), &[]);
            assert!(peer.next().is_none());
        });
        assert!(client.region_info(2).unwrap().capabilities.is_empty());
        drop(client);
        server.join().unwrap();
    }

    /// A server whose region info always needs `more` than it was asked with.
    fn insatiable(more: u32) -> (Error, Error, usize) {
        let (client, server) = client(capabilities(), move |peer: &mut Peer| {
            let mut asked = 0;
            while let Some(request) = peer.next() {
                let mut body = region(&[], &request);
                let argsz = word(&request.body, 0).wrapping_add(more);
                body[..4].copy_from_slice(&argsz.to_ne_bytes());
                peer.reply(&request, &body, &[]);
                asked += 1;
            }
            asked
        });
        let errors = (
            client.region_info(0).unwrap_err(),
            client.reset().unwrap_err(),
        );
        (errors.0, errors.1, server.join().unwrap())
    }

    #[test]
    fn a_reply_that_never_fits_ends_the_connection() {
        for (more, questions) in [(8, 3), (u32::MAX - 32, 1), (1 << 20, 1)] {
            let (first, second, asked) = insatiable(more);
            assert!(matches!(first, Error::TooLong { .. }), "{first:?}");
            assert!(matches!(second, Error::Disconnected), "{second:?}");
            assert_eq!(asked, questions);
        }
    }

    #[test]
    fn short_infos_are_refused() {
        let (client, server) = client(capabilities(), |peer| {
            let request = peer.expect(Command::DeviceGetInfo);
            assert_eq!((word(&request.body, 0), request.body.len()), (16, 16));
            peer.reply(&request, &request.body[..15], &[]);
        });
        assert!(matches!(client.device_info(), Err(Error::Reply { .. })));
        server.join().unwrap();
    }

    fn io_fds(part: SubRegion, fds: usize) -> Result<RegionIoFds, Error> {
        let (client, server) = client(capabilities(), move |peer| {
            let request = peer.expect(Command::DeviceGetRegionInfo);
            peer.reply(&request, &region(&[], &request), &[]);
            let file = File::open("/dev/null").unwrap();
            while let Some(request) = peer.next() {
                let mut body = Vec::new();
                let whole = IoFds::encode(2, &[part, part], word(&request.body, 0), &mut body);
                let fds = vec![file.as_fd(); if whole { fds } else { 0 }];
                peer.reply(&request, &body, &fds);
            }
        });
        let result = client.region_io_fds(2);
        drop(client);
        server.join().unwrap();
        result
    }

    #[test]
    fn io_fds_are_within_the_region_and_have_their_descriptors() {
        let part = SubRegion {
            offset: 0x7ffc,
            size: 4,
            fd_index: 0,
            flags: 0,
            kind: IoFd::IoEventFd { datamatch: 0 },
        };
        let found = io_fds(part, 1).unwrap();
        assert_eq!((found.sub_regions, found.fds.len()), (vec![part, part], 1));
        let without = SubRegion {
            fd_index: NO_FD,
            ..part
        };
        assert_eq!(io_fds(without, 0).unwrap().sub_regions.len(), 2);
        let bad = [
            SubRegion { size: 5, ..part },
            SubRegion {
                offset: u64::MAX,
                ..part
            },
            SubRegion {
                fd_index: 1,
                ..part
            },
        ];
        for part in bad {
            assert!(
                matches!(io_fds(part, 1), Err(Error::Reply { .. })),
                "{part:?}"
            );
        }
    }
}
