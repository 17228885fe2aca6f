// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any request, read from a message body and checked for shape.
//!
//! Shape is what the layouts alone decide: lengths that agree, `argsz` not below the structure, flags that
//! exist. Whether an index or a range is there is for the device behind to say.

use zerocopy::IntoBytes;

use crate::codec::{DecodeError, Reader, check_argsz, check_length};
use crate::device::{DeviceInfo, RegionInfo};
use crate::dma::{self, DmaAccess, DmaMap, DmaUnmap};
use crate::extension::migration::{
    MigShm, PENDING_EXACT, Pending, PrecopyInfo, Query, ShmTransfer,
};
use crate::feature::Feature;
use crate::header::Command;
use crate::io_fds::IoFds;
use crate::irq::{self, IrqInfo, SetIrqs};
use crate::migration::MigData;
use crate::region::{MultiWrite, RegionAccess};
use crate::version::{self, Capabilities, Version};

/// Bodies shorter than a structure name it by this.
type Checked<T> = Result<T, DecodeError>;

/// A request in the shape its command has. Data stays in the receive buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<'a> {
    /// VERSION.
    Version(Version, Capabilities),
    /// DMA_MAP.
    DmaMap(DmaMap),
    /// DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    DeviceGetInfo(DeviceInfo),
    /// DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo(RegionInfo),
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds(IoFds),
    /// DEVICE_GET_IRQ_INFO.
    DeviceGetIrqInfo(IrqInfo),
    /// DEVICE_SET_IRQS, with the bytes of `SET_DATA_BOOL`.
    DeviceSetIrqs(SetIrqs, &'a [u8]),
    /// REGION_READ.
    RegionRead(RegionAccess),
    /// REGION_WRITE with its data.
    RegionWrite(RegionAccess, &'a [u8]),
    /// REGION_WRITE_MULTI with its writes, as they are on the wire.
    RegionWriteMulti(u64, MultiWrites<'a>),
    /// DMA_READ (server to client).
    DmaRead(DmaAccess),
    /// DMA_WRITE with its data (server to client).
    DmaWrite(DmaAccess, &'a [u8]),
    /// DEVICE_RESET.
    DeviceReset,
    /// DEVICE_FEATURE with its data.
    DeviceFeature(Feature, &'a [u8]),
    /// MIG_DATA_READ.
    MigDataRead(MigData),
    /// MIG_DATA_WRITE with its data.
    MigDataWrite(MigData, &'a [u8]),
    /// MIG_CHANNEL.
    MigChannel(Query),
    /// MIG_PRECOPY_INFO.
    MigPrecopyInfo(Query),
    /// MIG_PENDING.
    MigPending(Query),
    /// MIG_SHM.
    MigShm(MigShm),
    /// MIG_SHM_READ.
    MigShmRead(ShmTransfer),
    /// MIG_SHM_WRITE.
    MigShmWrite(ShmTransfer),
    /// EXPLAIN, and the largest reply payload accepted.
    Explain(Query),
}

/// The writes of a REGION_WRITE_MULTI, read one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiWrites<'a>(&'a [u8]);

impl Iterator for MultiWrites<'_> {
    type Item = MultiWrite;

    fn next(&mut self) -> Option<MultiWrite> {
        let mut reader = Reader::new(self.0);
        let write = reader.take("multi_write").ok()?;
        self.0 = reader.rest();
        Some(write)
    }
}

impl<'a> Request<'a> {
    /// Reads the body of a message with this command number.
    ///
    /// # Errors
    /// [`DecodeError`] naming what is wrong; the message can be answered with EINVAL.
    pub fn decode(command: u16, body: &'a [u8]) -> Checked<Self> {
        let command = Command::try_from(command).map_err(DecodeError::UnknownCommand)?;
        let mut reader = Reader::new(body);
        Ok(match command {
            Command::Version => {
                let (version, capabilities) = version::decode(body)?;
                Self::Version(version, capabilities)
            }
            Command::DmaMap => {
                let map: DmaMap = reader.take("dma_map")?;
                check_argsz::<DmaMap>("dma_map.argsz", map.argsz)?;
                let known = dma::MAP_READ | dma::MAP_WRITE | dma::MAP_MMAP | dma::MAP_FILE_IO;
                check_bits("dma_map.flags", map.flags, known)?;
                Self::DmaMap(map)
            }
            Command::DmaUnmap => {
                let unmap: DmaUnmap = reader.take("dma_unmap")?;
                check_argsz::<DmaUnmap>("dma_unmap.argsz", unmap.argsz)?;
                check_bits("dma_unmap.flags", unmap.flags, dma::UNMAP_ALL)?;
                Self::DmaUnmap(unmap)
            }
            Command::DeviceGetInfo => {
                let info: DeviceInfo = reader.take("device_info")?;
                check_argsz::<DeviceInfo>("device_info.argsz", info.argsz)?;
                Self::DeviceGetInfo(info)
            }
            Command::DeviceGetRegionInfo => {
                let info: RegionInfo = reader.take("region_info")?;
                check_argsz::<RegionInfo>("region_info.argsz", info.argsz)?;
                Self::DeviceGetRegionInfo(info)
            }
            Command::DeviceGetRegionIoFds => {
                let fds: IoFds = reader.take("io_fds")?;
                check_argsz::<IoFds>("io_fds.argsz", fds.argsz)?;
                check_bits("io_fds.flags", fds.flags, 0)?;
                check_bits("io_fds.count", fds.count, 0)?;
                Self::DeviceGetRegionIoFds(fds)
            }
            Command::DeviceGetIrqInfo => {
                let info: IrqInfo = reader.take("irq_info")?;
                check_argsz::<IrqInfo>("irq_info.argsz", info.argsz)?;
                Self::DeviceGetIrqInfo(info)
            }
            Command::DeviceSetIrqs => {
                let set: SetIrqs = reader.take("set_irqs")?;
                check_argsz::<SetIrqs>("set_irqs.argsz", set.argsz)?;
                let known = irq::SET_DATA_MASK | irq::SET_ACTION_MASK_ALL;
                check_bits("set_irqs.flags", set.flags, known)?;
                if set.flags & irq::SET_DATA_BOOL != 0 {
                    check_length("set_irqs.count", set.count.into(), reader.rest().len())?;
                }
                Self::DeviceSetIrqs(set, reader.rest())
            }
            Command::RegionRead => Self::RegionRead(reader.take("region_read")?),
            Command::RegionWrite => {
                let access: RegionAccess = reader.take("region_write")?;
                check_length(
                    "region_write.count",
                    access.count.into(),
                    reader.rest().len(),
                )?;
                Self::RegionWrite(access, reader.rest())
            }
            Command::RegionWriteMulti => {
                let count: u64 = reader.take("write_multi.wr_cnt")?;
                let size = count.saturating_mul(size_of::<MultiWrite>() as u64);
                check_length("write_multi.wr_cnt", size, reader.rest().len())?;
                Self::RegionWriteMulti(count, MultiWrites(reader.rest()))
            }
            Command::DmaRead => Self::DmaRead(reader.take("dma_read")?),
            Command::DmaWrite => {
                let access: DmaAccess = reader.take("dma_write")?;
                check_length("dma_write.count", access.count, reader.rest().len())?;
                Self::DmaWrite(access, reader.rest())
            }
            Command::DeviceReset => Self::DeviceReset,
            Command::DeviceFeature => {
                let feature: Feature = reader.take("device_feature")?;
                check_argsz::<Feature>("device_feature.argsz", feature.argsz)?;
                Self::DeviceFeature(feature, reader.rest())
            }
            Command::MigDataRead => {
                let data: MigData = reader.take("mig_data_read")?;
                check_mig_argsz(&data)?;
                Self::MigDataRead(data)
            }
            Command::MigDataWrite => {
                let data: MigData = reader.take("mig_data_write")?;
                check_mig_argsz(&data)?;
                check_length("mig_data_write.size", data.size.into(), reader.rest().len())?;
                Self::MigDataWrite(data, reader.rest())
            }
            Command::MigChannel => {
                Self::MigChannel(take_query::<Query>(&mut reader, "mig_channel", 0)?)
            }
            Command::MigPrecopyInfo => {
                let query = take_query::<PrecopyInfo>(&mut reader, "mig_precopy_info", 0)?;
                Self::MigPrecopyInfo(query)
            }
            Command::MigPending => {
                let query = take_query::<Pending>(&mut reader, "mig_pending", PENDING_EXACT)?;
                Self::MigPending(query)
            }
            Command::MigShm => {
                let shm: MigShm = reader.take("mig_shm")?;
                check_argsz::<MigShm>("mig_shm.argsz", shm.argsz)?;
                check_bits("mig_shm.flags", shm.flags, 0)?;
                Self::MigShm(shm)
            }
            Command::MigShmRead => Self::MigShmRead(take_transfer(&mut reader, "mig_shm_read")?),
            Command::MigShmWrite => Self::MigShmWrite(take_transfer(&mut reader, "mig_shm_write")?),
            Command::Explain => Self::Explain(take_query::<Query>(&mut reader, "explain", 0)?),
            Command::IrqRoutes => return Err(DecodeError::UnknownCommand(command.into())),
        })
    }

    /// The command of this request.
    #[must_use]
    pub fn command(&self) -> Command {
        match self {
            Self::Version(..) => Command::Version,
            Self::DmaMap(_) => Command::DmaMap,
            Self::DmaUnmap(_) => Command::DmaUnmap,
            Self::DeviceGetInfo(_) => Command::DeviceGetInfo,
            Self::DeviceGetRegionInfo(_) => Command::DeviceGetRegionInfo,
            Self::DeviceGetRegionIoFds(_) => Command::DeviceGetRegionIoFds,
            Self::DeviceGetIrqInfo(_) => Command::DeviceGetIrqInfo,
            Self::DeviceSetIrqs(..) => Command::DeviceSetIrqs,
            Self::RegionRead(_) => Command::RegionRead,
            Self::RegionWrite(..) => Command::RegionWrite,
            Self::RegionWriteMulti(..) => Command::RegionWriteMulti,
            Self::DmaRead(_) => Command::DmaRead,
            Self::DmaWrite(..) => Command::DmaWrite,
            Self::DeviceReset => Command::DeviceReset,
            Self::DeviceFeature(..) => Command::DeviceFeature,
            Self::MigDataRead(_) => Command::MigDataRead,
            Self::MigDataWrite(..) => Command::MigDataWrite,
            Self::MigChannel(_) => Command::MigChannel,
            Self::MigPrecopyInfo(_) => Command::MigPrecopyInfo,
            Self::MigPending(_) => Command::MigPending,
            Self::MigShm(_) => Command::MigShm,
            Self::MigShmRead(_) => Command::MigShmRead,
            Self::MigShmWrite(_) => Command::MigShmWrite,
            Self::Explain(_) => Command::Explain,
        }
    }

    /// The message body, as [`Self::decode`] reads it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (fixed, data): (&[u8], &[u8]) = match self {
            Self::Version(version, capabilities) => return capabilities.encode(*version),
            Self::DmaMap(map) => (map.as_bytes(), &[]),
            Self::DmaUnmap(unmap) => (unmap.as_bytes(), &[]),
            Self::DeviceGetInfo(info) => (info.as_bytes(), &[]),
            Self::DeviceGetRegionInfo(info) => (info.as_bytes(), &[]),
            Self::DeviceGetRegionIoFds(fds) => (fds.as_bytes(), &[]),
            Self::DeviceGetIrqInfo(info) => (info.as_bytes(), &[]),
            Self::DeviceSetIrqs(set, flags) => (set.as_bytes(), flags),
            Self::RegionRead(access) => (access.as_bytes(), &[]),
            Self::RegionWrite(access, data) => (access.as_bytes(), data),
            Self::RegionWriteMulti(count, writes) => (count.as_bytes(), writes.0),
            Self::DmaRead(access) => (access.as_bytes(), &[]),
            Self::DmaWrite(access, data) => (access.as_bytes(), data),
            Self::DeviceReset => (&[], &[]),
            Self::DeviceFeature(feature, data) => (feature.as_bytes(), data),
            Self::MigDataRead(data) => (data.as_bytes(), &[]),
            Self::MigDataWrite(fixed, data) => (fixed.as_bytes(), data),
            Self::MigChannel(query)
            | Self::MigPrecopyInfo(query)
            | Self::MigPending(query)
            | Self::Explain(query) => (query.as_bytes(), &[]),
            Self::MigShm(shm) => (shm.as_bytes(), &[]),
            Self::MigShmRead(transfer) | Self::MigShmWrite(transfer) => (transfer.as_bytes(), &[]),
        };
        [fixed, data].concat()
    }
}

fn check_bits(field: &'static str, value: u32, known: u32) -> Checked<()> {
    if value & !known != 0 {
        return Err(DecodeError::BadValue {
            field,
            value: value.into(),
        });
    }
    Ok(())
}

/// A query whose reply `T` fits, with no flags but the known ones.
fn take_query<T>(reader: &mut Reader<'_>, field: &'static str, known: u32) -> Checked<Query> {
    let query: Query = reader.take(field)?;
    check_argsz::<T>(field, query.argsz)?;
    check_bits(field, query.flags, known)?;
    Ok(query)
}

fn take_transfer(reader: &mut Reader<'_>, field: &'static str) -> Checked<ShmTransfer> {
    let transfer: ShmTransfer = reader.take(field)?;
    check_argsz::<ShmTransfer>(field, transfer.argsz)?;
    check_bits(field, transfer.flags, 0)?;
    Ok(transfer)
}

fn check_mig_argsz(data: &MigData) -> Checked<()> {
    let need = size_of::<MigData>() as u64 + u64::from(data.size);
    if u64::from(data.argsz) < need {
        return Err(DecodeError::BadValue {
            field: "mig_data.argsz",
            value: data.argsz.into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes from little-endian words, as the specification's tables list them.
    fn words(words: &[(u64, usize)]) -> Vec<u8> {
        words
            .iter()
            .flat_map(|&(value, size)| value.to_le_bytes()[..size].to_vec())
            .collect()
    }

    /// Layouts written out field by field from the specification's tables.
    #[cfg(target_endian = "little")]
    #[test]
    fn golden_layouts() {
        let table = [
            (
                words(&[
                    (32, 4),
                    (3, 4),
                    (0x1000, 8),
                    (0xe000_0000, 8),
                    (0x20_0000, 8),
                ]),
                Request::DmaMap(DmaMap {
                    argsz: 32,
                    flags: 3,
                    offset: 0x1000,
                    address: 0xe000_0000,
                    size: 0x20_0000,
                }),
            ),
            (
                words(&[(24, 4), (2, 4), (0, 8), (0, 8)]),
                Request::DmaUnmap(DmaUnmap {
                    argsz: 24,
                    flags: 2,
                    address: 0,
                    size: 0,
                }),
            ),
            (
                words(&[(32, 4), (0, 4), (2, 4), (0, 4), (0, 8), (0, 8)]),
                Request::DeviceGetRegionInfo(RegionInfo {
                    argsz: 32,
                    index: 2,
                    ..RegionInfo::default()
                }),
            ),
            (
                words(&[(16, 4), (0, 4), (4, 4), (0, 4)]),
                Request::DeviceGetIrqInfo(IrqInfo {
                    argsz: 16,
                    index: 4,
                    ..IrqInfo::default()
                }),
            ),
            (
                words(&[(22, 4), (0x22, 4), (2, 4), (5, 4), (2, 4), (1, 1), (0, 1)]),
                Request::DeviceSetIrqs(
                    SetIrqs {
                        argsz: 22,
                        flags: 0x22,
                        index: 2,
                        start: 5,
                        count: 2,
                    },
                    &[1, 0],
                ),
            ),
            (
                words(&[(0x10, 8), (4, 4), (4, 4), (0xdead_beef, 4)]),
                Request::RegionWrite(
                    RegionAccess {
                        offset: 0x10,
                        region: 4,
                        count: 4,
                    },
                    &[0xef, 0xbe, 0xad, 0xde],
                ),
            ),
            (
                words(&[(0x3000, 8), (16, 8)]),
                Request::DmaRead(DmaAccess {
                    address: 0x3000,
                    count: 16,
                }),
            ),
            (
                words(&[(16, 4), (0x1_0002, 4), (1, 4), (0, 4)]),
                Request::DeviceFeature(
                    Feature {
                        argsz: 16,
                        flags: 0x1_0002,
                    },
                    &[1, 0, 0, 0, 0, 0, 0, 0],
                ),
            ),
            (
                words(&[(0x10_0008, 4), (0x10_0000, 4)]),
                Request::MigDataRead(MigData {
                    argsz: 0x10_0008,
                    size: 0x10_0000,
                }),
            ),
            (
                words(&[(48, 4), (1, 4)]),
                Request::MigPending(Query {
                    argsz: 48,
                    flags: PENDING_EXACT,
                }),
            ),
            (
                words(&[(24, 4), (0, 4), (0x10_0000, 8), (0x8_0000, 8)]),
                Request::MigShmRead(ShmTransfer {
                    argsz: 24,
                    flags: 0,
                    offset: 0x10_0000,
                    size: 0x8_0000,
                }),
            ),
        ];
        for (bytes, request) in table {
            let decoded = Request::decode(request.command().into(), &bytes);
            assert_eq!(decoded.as_ref(), Ok(&request));
            assert_eq!(request.encode(), bytes);
        }
        let multi = words(&[
            (2, 8),
            (8, 8),
            (4, 4),
            (2, 4),
            (0xabcd, 8),
            (16, 8),
            (4, 4),
            (9, 4),
            (1, 8),
        ]);
        match Request::decode(15, &multi) {
            Ok(Request::RegionWriteMulti(2, writes)) => {
                let writes: Vec<_> = writes.collect();
                assert_eq!((writes[0].offset, writes[0].region), (8, 4));
                assert_eq!(writes[0].bytes(), Some(&[0xcd, 0xab][..]));
                assert_eq!(writes[1].bytes(), None, "nine bytes do not fit");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wrong_shapes_are_named() {
        let short = |field, need, have| Err(DecodeError::TooShort { field, need, have });
        assert_eq!(Request::decode(2, &[0; 8]), short("dma_map", 32, 8));
        assert_eq!(
            Request::decode(4, &[0; 16]),
            short("device_info.argsz", 16, 0)
        );
        assert_eq!(
            Request::decode(14, &[]),
            Err(DecodeError::UnknownCommand(14))
        );
        assert_eq!(
            Request::decode(0x8000, &[]),
            Err(DecodeError::UnknownCommand(0x8000))
        );
        let query = [47_u32, 0];
        assert_eq!(
            Request::decode(0x8003, query.as_bytes()),
            short("mig_pending", 48, 47),
            "no room for the reply"
        );
        let flags = DmaMap {
            argsz: 32,
            flags: 0x10,
            ..DmaMap::default()
        };
        let bad = DecodeError::BadValue {
            field: "dma_map.flags",
            value: 0x10,
        };
        assert_eq!(Request::decode(2, flags.as_bytes()), Err(bad));
        let write = RegionAccess {
            count: 5,
            ..RegionAccess::default()
        };
        let mismatch = DecodeError::LengthMismatch {
            field: "region_write.count",
            announced: 5,
            found: 0,
        };
        assert_eq!(Request::decode(10, write.as_bytes()), Err(mismatch));
        assert!(Request::decode(15, &u64::MAX.to_ne_bytes()).is_err());
        let read = MigData {
            argsz: 8,
            size: u32::MAX,
        };
        assert!(Request::decode(17, read.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic_and_what_decodes_encodes(
            command in 0_u16..24, body in prop::collection::vec(any::<u8>(), 0..96)
        ) {
            if let Ok(request) = Request::decode(command, &body) {
                let encoded = request.encode();
                prop_assert_eq!(Request::decode(command, &encoded), Ok(request));
            }
        }

        #[test]
        fn arbitrary_replies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RegionInfo::decode(&body);
            let _ = IoFds::decode(&body);
            let _ = version::decode(&body);
            let _ = crate::extension::IrqRoutes::decode(&body);
        }

        #[test]
        fn arbitrary_json_never_panics(text in "\\PC{0,64}") {
            let _ = Capabilities::decode(&[text.as_bytes(), b"\0"].concat());
        }
    }
}
