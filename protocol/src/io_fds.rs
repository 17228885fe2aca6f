// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_GET_REGION_IO_FDS (6): descriptors that take accesses to parts of a region.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::codec::{DecodeError, Reader, wire_u32};

const TYPE_IOEVENTFD: u32 = 0;
const TYPE_IOREGIONFD: u32 = 1;

/// The fixed part, request and reply. (The specification's formula `argsz - 32` contradicts its own
/// 16-byte layout; the layout is meant.)
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IoFds {
    /// In a request the largest reply payload accepted; in a reply what the whole one needs.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// The region index.
    pub index: u32,
    /// How many sub-regions there are; 0 in a request.
    pub count: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawSubRegion {
    offset: u64,
    size: u64,
    fd_index: u32,
    kind: u32,
    flags: u32,
    padding: u32,
    last: u64,
}

/// A part of a region that a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubRegion {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Which of the reply's descriptors.
    pub fd_index: u32,
    /// `KVM_IOEVENTFD_FLAG_*` or `KVM_IOREGION_*` flags.
    pub flags: u32,
    /// What the descriptor is.
    pub kind: IoFd,
}

/// The kinds of descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFd {
    /// An eventfd that counts writes.
    IoEventFd {
        /// The value a write must have, if the flags say so.
        datamatch: u64,
    },
    /// A socket that carries accesses.
    IoRegionFd {
        /// Told in each message.
        user_data: u64,
    },
}

impl IoFds {
    /// Writes a reply into `out`, no longer than the request's `argsz` allows. Whether the sub-regions (and
    /// so their descriptors) are in it.
    pub fn encode(index: u32, sub_regions: &[SubRegion], argsz: u32, out: &mut Vec<u8>) -> bool {
        let whole = size_of::<Self>() + sub_regions.len() * size_of::<RawSubRegion>();
        let fixed = Self {
            argsz: wire_u32(whole),
            flags: 0,
            index,
            count: wire_u32(sub_regions.len()),
        };
        out.extend_from_slice(fixed.as_bytes());
        let fits = argsz >= fixed.argsz;
        for sub_region in sub_regions.iter().take(if fits { usize::MAX } else { 0 }) {
            let (kind, last) = match sub_region.kind {
                IoFd::IoEventFd { datamatch } => (TYPE_IOEVENTFD, datamatch),
                IoFd::IoRegionFd { user_data } => (TYPE_IOREGIONFD, user_data),
            };
            let SubRegion {
                offset,
                size,
                fd_index,
                flags,
                ..
            } = *sub_region;
            let raw = RawSubRegion {
                offset,
                size,
                fd_index,
                kind,
                flags,
                padding: 0,
                last,
            };
            out.extend_from_slice(raw.as_bytes());
        }
        fits
    }

    /// Reads a reply. The stride is computed from `argsz`: the reference library's entries are longer than
    /// the specification's. Entries of unknown kinds are left out.
    ///
    /// # Errors
    /// [`DecodeError`] if the entries do not fit the reply.
    pub fn decode(body: &[u8]) -> Result<(Self, Vec<SubRegion>), DecodeError> {
        let mut reader = Reader::new(body);
        let fixed: Self = reader.take("io_fds")?;
        let entries = reader.rest();
        let mut sub_regions = Vec::new();
        let count = usize::try_from(fixed.count).unwrap_or(usize::MAX);
        if entries.is_empty() || count == 0 {
            return Ok((fixed, sub_regions));
        }
        let stride = entries.len() / count;
        if stride < size_of::<RawSubRegion>() {
            let (need, have) = (
                count.saturating_mul(size_of::<RawSubRegion>()),
                entries.len(),
            );
            return Err(DecodeError::TooShort {
                field: "io_fds.sub_regions",
                need,
                have,
            });
        }
        for entry in entries.chunks_exact(stride).take(count) {
            let raw: RawSubRegion = Reader::new(entry).take("sub_region")?;
            let kind = match raw.kind {
                TYPE_IOEVENTFD => IoFd::IoEventFd {
                    datamatch: raw.last,
                },
                TYPE_IOREGIONFD => IoFd::IoRegionFd {
                    user_data: raw.last,
                },
                _ => continue,
            };
            let RawSubRegion {
                offset,
                size,
                fd_index,
                flags,
                ..
            } = raw;
            sub_regions.push(SubRegion {
                offset,
                size,
                fd_index,
                flags,
                kind,
            });
        }
        Ok((fixed, sub_regions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_regions_round_trip_and_respect_argsz() {
        let kind = IoFd::IoEventFd { datamatch: 9 };
        let one = SubRegion {
            offset: 0x40,
            size: 4,
            fd_index: 0,
            flags: 1,
            kind,
        };
        let two = SubRegion {
            offset: 0x80,
            kind: IoFd::IoRegionFd { user_data: 3 },
            ..one
        };
        let mut bytes = Vec::new();
        assert!(IoFds::encode(4, &[one, two], 96, &mut bytes));
        assert_eq!(bytes.len(), 96);
        let (fixed, sub_regions) = IoFds::decode(&bytes).unwrap();
        assert_eq!((fixed.argsz, fixed.count), (96, 2));
        assert_eq!(sub_regions, [one, two]);

        bytes.clear();
        assert!(!IoFds::encode(4, &[one, two], 95, &mut bytes));
        let (fixed, sub_regions) = IoFds::decode(&bytes).unwrap();
        assert_eq!((fixed.argsz, fixed.count, sub_regions.len()), (96, 2, 0));
    }

    #[test]
    fn a_count_beyond_the_reply_is_refused() {
        let mut bytes = Vec::new();
        let kind = IoFd::IoEventFd { datamatch: 0 };
        let one = SubRegion {
            offset: 0,
            size: 4,
            fd_index: 0,
            flags: 0,
            kind,
        };
        IoFds::encode(4, &[one], 4096, &mut bytes);
        bytes[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(IoFds::decode(&bytes).is_err());
    }
}
