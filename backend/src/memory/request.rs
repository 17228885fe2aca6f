// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client asks of the address space, and why it is refused.

use std::fmt;
use std::ops::{BitOr, RangeInclusive};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mm::ProtFlags;

use super::iommu::IommuError;
use super::mapping::MappingError;

/// The granule of IOVAs, sizes and file offsets, in bytes (the `pgsizes` capability).
pub const PAGE_SIZE: u64 = 4096;

/// What a device may do with mapped memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The device may read (DMA_MAP flag bit 0).
    pub const READ: Self = Self(1);
    /// The device may write (DMA_MAP flag bit 1).
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const READ_WRITE: Self = Self(3);

    /// Whether everything in `wanted` is allowed.
    #[must_use]
    pub const fn allows(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// The page protection that allows this much.
    pub(super) fn protection(self) -> ProtFlags {
        let mut protection = ProtFlags::empty();
        protection.set(ProtFlags::READ, self.allows(Self::READ));
        protection.set(ProtFlags::WRITE, self.allows(Self::WRITE));
        protection
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "none",
            1 => "read",
            2 => "write",
            _ => "read-write",
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The file behind a map.
#[derive(Debug)]
pub struct Backing {
    /// A memfd, a hugetlbfs file, or anything else that can be mapped shared.
    pub file: OwnedFd,
    /// Where the map begins in it, in bytes; page aligned.
    pub offset: u64,
}

/// One DMA_MAP.
#[derive(Debug)]
pub struct MapRequest {
    /// The first address, as the device will use it; page aligned.
    pub iova: u64,
    /// Bytes; page aligned, not 0. The range may end at 2^64 but not wrap.
    pub size: u64,
    /// What the device may do there.
    pub access: Access,
    /// The memory; `None` when the client passed no descriptor.
    pub backing: Option<Backing>,
}

/// Why DMA_MAP or DMA_UNMAP is refused.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The size is 0.
    #[error("Map at {iova:#x} is empty")]
    Empty {
        /// The address asked for.
        iova: u64,
    },
    /// The range, or the range in the file, ends past what 64 bits can address.
    #[error("Map at {iova:#x} of {size:#x} bytes wraps")]
    Wraps {
        /// The address asked for.
        iova: u64,
        /// The size asked for.
        size: u64,
    },
    /// A value is not a multiple of [`PAGE_SIZE`].
    #[error("{what} {value:#x} is not a multiple of {PAGE_SIZE}")]
    Unaligned {
        /// Which value.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// Part of the range is mapped already, and not by an identical request.
    #[error("Map at {iova:#x} of {size:#x} bytes overlaps the map at {other:#x}")]
    Overlap {
        /// The address asked for.
        iova: u64,
        /// The size asked for.
        size: u64,
        /// Where a map in the way begins.
        other: u64,
    },
    /// The client has as many maps as it may have.
    #[error("More than {limit} maps")]
    TooMany {
        /// The `max_dma_maps` in force.
        limit: usize,
    },
    /// The file ends before the range does; its tail could not be accessed.
    #[error("File of {length:#x} bytes is shorter than offset {offset:#x} + size {size:#x}")]
    FileTooShort {
        /// Bytes in the file.
        length: u64,
        /// The offset asked for.
        offset: u64,
        /// The size asked for.
        size: u64,
    },
    /// The file cannot be asked about.
    #[error("File status of the descriptor")]
    Status(#[source] Errno),
    /// The file cannot be mapped as asked.
    #[error("Memory at {iova:#x} cannot be mapped for {access}")]
    Mapping {
        /// The address asked for.
        iova: u64,
        /// The access asked for.
        access: Access,
        /// Why not.
        #[source]
        source: MappingError,
    },
    /// The IOMMU does not take the map, or does not let go of it.
    #[error("IOMMU, at {iova:#x}")]
    Iommu {
        /// The address asked for.
        iova: u64,
        /// Why not.
        #[source]
        source: IommuError,
    },
    /// No map has exactly this range.
    #[error("No map at {iova:#x} of {size:#x} bytes")]
    NotMapped {
        /// The address asked for.
        iova: u64,
        /// The size asked for.
        size: u64,
    },
}

impl MapError {
    /// The errno for the wire (vfio-user specification, DMA_MAP and DMA_UNMAP).
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Empty { .. }
            | Self::Wraps { .. }
            | Self::Unaligned { .. }
            | Self::FileTooShort { .. } => Errno::INVAL,
            Self::Overlap { .. } => Errno::EXIST,
            Self::TooMany { .. } => Errno::NOSPC,
            Self::NotMapped { .. } => Errno::NOENT,
            Self::Status(errno) => *errno,
            Self::Mapping { source, .. } => source.errno(),
            Self::Iommu { source, .. } => source.errno(),
        }
    }
}

/// The addresses of a range, checked.
pub(super) fn checked_range(iova: u64, size: u64) -> Result<RangeInclusive<u64>, MapError> {
    let tail = size.checked_sub(1).ok_or(MapError::Empty { iova })?;
    for (what, value) in [("Address", iova), ("Size", size)] {
        check_aligned(what, value)?;
    }
    let last = iova
        .checked_add(tail)
        .ok_or(MapError::Wraps { iova, size })?;
    Ok(iova..=last)
}

/// Refuses a value that is no multiple of the page size.
pub(super) fn check_aligned(what: &'static str, value: u64) -> Result<(), MapError> {
    if value.is_multiple_of(PAGE_SIZE) {
        Ok(())
    } else {
        Err(MapError::Unaligned { what, value })
    }
}
