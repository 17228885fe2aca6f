// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_GET_INFO (4) and DEVICE_GET_REGION_INFO (5) with its capability chain.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::codec::{DecodeError, Reader, wire_u32};

/// Device flags: DEVICE_RESET works.
pub const DEVICE_RESET: u32 = 1 << 0;
/// Device flags: it is a PCI device.
pub const DEVICE_PCI: u32 = 1 << 1;

/// Region flags: readable.
pub const REGION_READ: u32 = 1 << 0;
/// Region flags: writable.
pub const REGION_WRITE: u32 = 1 << 1;
/// Region flags: can be mapped; one descriptor comes with the reply.
pub const REGION_MMAP: u32 = 1 << 2;
/// Region flags: capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;

const CAP_SPARSE_MMAP: u16 = 1;
const CAP_TYPE: u16 = 2;
const CAP_MSIX_MAPPABLE: u16 = 3;

/// Request and reply of DEVICE_GET_INFO.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`DEVICE_RESET`], [`DEVICE_PCI`]; 0 in a request.
    pub flags: u32,
    /// How many region indexes there are.
    pub num_regions: u32,
    /// How many interrupt indexes there are.
    pub num_irqs: u32,
}

/// The fixed part of DEVICE_GET_REGION_INFO, request and reply.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionInfo {
    /// In a request the largest reply payload accepted; in a reply what the whole one needs.
    pub argsz: u32,
    /// [`REGION_READ`] and the others; 0 in a request.
    pub flags: u32,
    /// The region index asked for.
    pub index: u32,
    /// Where capabilities begin, from the start of this structure; 0 for none.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Where the region begins in the descriptor that comes with the reply.
    pub offset: u64,
}

/// The header of each capability.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapHeader {
    id: u16,
    version: u16,
    /// Of the next one, from the start of the region info; 0 ends the chain.
    next: u32,
}

/// A part of a region that can be mapped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SparseArea {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// One capability of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionCapability {
    /// Only these parts can be mapped.
    SparseMmap(Vec<SparseArea>),
    /// A device-specific region.
    Type {
        /// A `VFIO_REGION_TYPE_*`, or 0x80000000 with a PCI vendor id.
        region_type: u32,
        /// What it is within the type.
        subtype: u32,
    },
    /// The MSI-X table inside may be mapped too.
    MsixMappable,
    /// One that this crate does not know; its id.
    Unknown(u16),
}

impl RegionCapability {
    fn append(&self, next: u32, out: &mut Vec<u8>) {
        let mut header = |id| {
            out.extend_from_slice(
                CapHeader {
                    id,
                    version: 1,
                    next,
                }
                .as_bytes(),
            );
        };
        match self {
            Self::SparseMmap(areas) => {
                header(CAP_SPARSE_MMAP);
                out.extend_from_slice([wire_u32(areas.len()), 0].as_bytes());
                out.extend_from_slice(areas.as_bytes());
            }
            Self::Type {
                region_type,
                subtype,
            } => {
                header(CAP_TYPE);
                out.extend_from_slice([*region_type, *subtype].as_bytes());
            }
            Self::MsixMappable => header(CAP_MSIX_MAPPABLE),
            Self::Unknown(id) => header(*id),
        }
    }

    fn size(&self) -> usize {
        size_of::<CapHeader>()
            + match self {
                Self::SparseMmap(areas) => 8 + size_of_val(areas.as_slice()),
                Self::Type { .. } => 8,
                Self::MsixMappable | Self::Unknown(_) => 0,
            }
    }
}

impl RegionInfo {
    /// Writes a reply into `out`, no longer than the request's `argsz` allows: where the capabilities do
    /// not fit, the fixed part alone with the needed size in `argsz`.
    pub fn encode(mut self, capabilities: &[RegionCapability], argsz: u32, out: &mut Vec<u8>) {
        let fixed = size_of::<Self>();
        let whole = capabilities.iter().fold(fixed, |sum, cap| sum + cap.size());
        self.argsz = wire_u32(whole);
        let fits = argsz >= self.argsz;
        if fits && !capabilities.is_empty() {
            self.flags |= REGION_CAPS;
            self.cap_offset = wire_u32(fixed);
        }
        out.extend_from_slice(self.as_bytes());
        if fits {
            let mut offset = fixed;
            for (at, capability) in capabilities.iter().enumerate() {
                offset += capability.size();
                let last = at + 1 == capabilities.len();
                capability.append(if last { 0 } else { wire_u32(offset) }, out);
            }
        }
    }

    /// Reads a reply. A chain is followed forwards only, so it cannot loop.
    ///
    /// # Errors
    /// [`DecodeError`] for a chain that leaves the reply or goes backwards.
    pub fn decode(body: &[u8]) -> Result<(Self, Vec<RegionCapability>), DecodeError> {
        let info: Self = Reader::new(body).take("region_info")?;
        let mut capabilities = Vec::new();
        let mut offset = if info.flags & REGION_CAPS == 0 {
            0
        } else {
            info.cap_offset
        };
        let mut low = size_of::<Self>();
        while offset != 0 {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            let bad = DecodeError::BadValue {
                field: "region_info.cap_offset",
                value: offset.into(),
            };
            if at < low {
                return Err(bad);
            }
            let mut reader = Reader::new(body.get(at..).ok_or(bad)?);
            let header: CapHeader = reader.take("capability")?;
            capabilities.push(match header.id {
                CAP_SPARSE_MMAP => {
                    let [count, _]: [u32; 2] = reader.take("sparse_mmap")?;
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    let bytes = count.saturating_mul(size_of::<SparseArea>());
                    let mut areas = Reader::new(reader.take_bytes("sparse_mmap.areas", bytes)?);
                    let areas = (0..count).map(|_| areas.take("sparse_mmap.area"));
                    RegionCapability::SparseMmap(areas.collect::<Result<_, DecodeError>>()?)
                }
                CAP_TYPE => {
                    let [region_type, subtype]: [u32; 2] = reader.take("region_type")?;
                    RegionCapability::Type {
                        region_type,
                        subtype,
                    }
                }
                CAP_MSIX_MAPPABLE => RegionCapability::MsixMappable,
                other => RegionCapability::Unknown(other),
            });
            low = at + size_of::<CapHeader>();
            offset = header.next;
        }
        Ok((info, capabilities))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse() -> Vec<RegionCapability> {
        vec![
            RegionCapability::SparseMmap(vec![
                SparseArea {
                    offset: 0,
                    size: 0x1000,
                },
                SparseArea {
                    offset: 0x4000,
                    size: 0x2000,
                },
            ]),
            RegionCapability::Type {
                region_type: 0x8000_8086,
                subtype: 1,
            },
            RegionCapability::MsixMappable,
        ]
    }

    fn info() -> RegionInfo {
        RegionInfo {
            flags: 7,
            index: 2,
            size: 0x8000,
            offset: 0x1000,
            ..RegionInfo::default()
        }
    }

    #[test]
    fn capabilities_round_trip() {
        let mut bytes = Vec::new();
        info().encode(&sparse(), 4096, &mut bytes);
        let (decoded, capabilities) = RegionInfo::decode(&bytes).unwrap();
        assert_eq!(decoded.argsz as usize, bytes.len());
        assert_eq!((decoded.flags, decoded.cap_offset), (15, 32));
        assert_eq!(capabilities, sparse());
    }

    #[test]
    fn a_small_argsz_gets_the_fixed_part_and_the_size_needed() {
        let mut bytes = Vec::new();
        info().encode(&sparse(), 32, &mut bytes);
        let (decoded, capabilities) = RegionInfo::decode(&bytes).unwrap();
        assert_eq!(bytes.len(), 32);
        assert_eq!(
            (decoded.argsz, decoded.flags, decoded.cap_offset),
            (32 + 48 + 16 + 8, 7, 0)
        );
        assert_eq!(capabilities, []);
    }

    #[test]
    fn chains_that_loop_or_leave_are_refused() {
        let mut bytes = Vec::new();
        info().encode(&sparse(), 4096, &mut bytes);
        for next in [1_u32, 32, 40, 0xffff_ffff] {
            let mut bad = bytes.clone();
            bad[32 + 4..32 + 8].copy_from_slice(&next.to_ne_bytes());
            let decoded = RegionInfo::decode(&bad);
            // 40 lies inside the first capability: forwards, so read as it stands, never a loop.
            assert!(next == 40 || decoded.is_err(), "{next}: {decoded:?}");
        }
        let mut huge = bytes;
        huge[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(RegionInfo::decode(&huge).is_err(), "more areas than bytes");
    }
}
