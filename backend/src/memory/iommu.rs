// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What translates the DMA of a device made of hardware, as the address space asks it. No ioctls here:
//! those are in `device/kernel`.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::dirty::{DirtyTracker, Mark};
use super::mapping::MappingError;
use super::request::Access;

/// An IOMMU that is told of every map with a descriptor.
///
/// Called with the address space locked, in the order of the client's messages, and never for overlapping
/// ranges. Pinning memory takes time: a call may block for as long as the kernel needs.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// Lets the device reach the memory. On an error nothing is mapped.
    ///
    /// # Errors
    /// [`IommuError`].
    fn map(&self, map: &IommuMap<'_>) -> Result<(), IommuError>;

    /// Takes exactly one earlier map away; the device cannot reach it when this returns.
    ///
    /// # Errors
    /// [`IommuError`]; the map must then be taken to be still there.
    fn unmap(&self, iova: u64, size: u64) -> Result<(), IommuError>;

    /// Its own way to tell which pages the device wrote, if it has one.
    fn tracker(&self) -> Option<&dyn DirtyTracker> {
        None
    }

    /// As [`Self::unmap`], while its tracker tracks: marks what was written and not collected yet.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    fn unmap_tracked(&self, iova: u64, size: u64, mark: &mut Mark<'_>) -> Result<(), IommuError> {
        mark(iova..=iova.saturating_add(size.saturating_sub(1)));
        self.unmap(iova, size)
    }
}

/// One map for an [`Iommu`], checked: page aligned, inside its file, overlapping no other.
#[derive(Clone, Copy, Debug)]
pub struct IommuMap<'a> {
    /// The first address, as the device will use it.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What the device may do there.
    pub access: Access,
    /// The memory.
    pub file: BorrowedFd<'a>,
    /// Where the map begins in it, in bytes.
    pub offset: u64,
}

/// Why the IOMMU does not take a map. Each says the figure that was exceeded and what to raise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IommuError {
    /// Guest memory is pinned, which counts as locked memory of this process.
    #[error(
        "{} KiB of locked memory are needed and RLIMIT_MEMLOCK is {} KiB: raise it \
         (LimitMEMLOCK=infinity, ulimit -l) to at least the size of the guest's memory",
        .needed.div_ceil(1024), .limit / 1024
    )]
    Memlock {
        /// Bytes locked if this map were made.
        needed: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The kernel limits the maps of a container.
    #[error(
        "The IOMMU takes no more than {limit} maps: raise the dma_entry_limit of module \
         vfio_iommu_type1, or back the guest with fewer, larger pieces"
    )]
    TooMany {
        /// How many it takes.
        limit: u64,
    },
    /// The range cannot be translated: too wide an address, or reserved (the MSI window, for one).
    #[error("{iova:#x}..={last:#x} is outside what the IOMMU translates: {usable}")]
    OutsideIova {
        /// The first address.
        iova: u64,
        /// The last address.
        last: u64,
        /// The usable ranges, for people.
        usable: String,
    },
    /// The IOMMU maps larger pages only.
    #[error("{iova:#x} + {size:#x} is not in whole pages of the IOMMU, {page:#x} bytes each")]
    PageSize {
        /// The first address.
        iova: u64,
        /// The size asked for.
        size: u64,
        /// Bytes of its smallest page.
        page: u64,
    },
    /// The memory cannot be mapped for the kernel to pin it.
    #[error("Mapping the descriptor: {0}")]
    Mapping(String, Errno),
    /// The kernel refused.
    #[error("{what}: {errno}")]
    Kernel {
        /// The call.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

impl From<MappingError> for IommuError {
    fn from(error: MappingError) -> Self {
        Self::Mapping(error.to_string(), error.errno())
    }
}

impl IommuError {
    /// The errno for the wire.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Memlock { .. } => Errno::NOMEM,
            Self::TooMany { .. } => Errno::NOSPC,
            Self::OutsideIova { .. } | Self::PageSize { .. } => Errno::INVAL,
            Self::Mapping(_, errno) | Self::Kernel { errno, .. } => *errno,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::sync::{Arc, Mutex};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::memory::{AddressSpace, Backing, MapError, MapRequest, PAGE_SIZE as P};

    /// Remembers what is mapped; refuses what it is told to.
    #[derive(Debug, Default)]
    struct Table {
        maps: Mutex<Vec<(u64, u64, Access, u64)>>,
        refuse_map: Mutex<Option<IommuError>>,
        refuse_unmap: Mutex<Option<u64>>,
    }

    impl Iommu for Table {
        fn map(&self, map: &IommuMap<'_>) -> Result<(), IommuError> {
            if let Some(error) = self.refuse_map.lock().unwrap().take() {
                return Err(error);
            }
            assert!(map.file.as_raw_fd() >= 0);
            let row = (map.iova, map.size, map.access, map.offset);
            self.maps.lock().unwrap().push(row);
            Ok(())
        }

        fn unmap(&self, iova: u64, size: u64) -> Result<(), IommuError> {
            if *self.refuse_unmap.lock().unwrap() == Some(iova) {
                let errno = Errno::BUSY;
                return Err(IommuError::Kernel {
                    what: "UNMAP_DMA",
                    errno,
                });
            }
            let mut maps = self.maps.lock().unwrap();
            let at = maps.iter().position(|m| (m.0, m.1) == (iova, size));
            maps.remove(at.expect("only what was mapped is unmapped"));
            Ok(())
        }
    }

    fn memfd(pages: u64) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, pages * P).unwrap();
        file
    }

    fn request(iova: u64, pages: u64, backed: bool) -> MapRequest {
        let backing = backed.then(|| Backing {
            file: memfd(pages + 1),
            offset: P,
        });
        MapRequest {
            iova,
            size: pages * P,
            access: Access::READ,
            backing,
        }
    }

    fn space() -> (Arc<Table>, AddressSpace) {
        let table = Arc::new(Table::default());
        let space = AddressSpace::with_iommu(Arc::clone(&table) as _, 8);
        (table, space)
    }

    #[test]
    fn only_maps_with_a_descriptor_reach_the_hardware() {
        let (table, space) = space();
        space.map(request(0, 2, true)).unwrap();
        space.map(request(4 * P, 1, false)).unwrap();
        assert_eq!(space.len(), 2);
        assert_eq!(
            *table.maps.lock().unwrap(),
            [(0, 2 * P, Access::READ, P)],
            "access and file offset as asked"
        );
        // The same range again is refused before the hardware hears of it.
        assert!(space.map(request(0, 1, true)).is_err());
        space.unmap(4 * P, P).unwrap();
        space.unmap(0, 2 * P).unwrap();
        assert!(table.maps.lock().unwrap().is_empty() && space.is_empty());
    }

    #[test]
    fn what_the_hardware_refuses_is_not_tracked() {
        let (table, space) = space();
        let limit = IommuError::Memlock {
            needed: 1 << 30,
            limit: 8 << 20,
        };
        *table.refuse_map.lock().unwrap() = Some(limit);
        let error = space.map(request(0, 1, true)).unwrap_err();
        assert_eq!(error.errno(), Errno::NOMEM);
        let MapError::Iommu { source, .. } = error else {
            panic!("{error}");
        };
        let text = source.to_string();
        assert!(
            text.starts_with("1048576 KiB") && text.contains("8192 KiB"),
            "{text}"
        );
        assert!(space.is_empty());
        space.map(request(0, 1, true)).unwrap();
    }

    #[test]
    fn what_the_hardware_keeps_stays_tracked_and_the_rest_goes() {
        let (table, space) = space();
        for at in 0..3 {
            space.map(request(at * P, 1, true)).unwrap();
        }
        *table.refuse_unmap.lock().unwrap() = Some(P);
        assert_eq!(space.unmap(P, P).unwrap_err().errno(), Errno::BUSY);
        assert_eq!(space.clear().unwrap_err().errno(), Errno::BUSY);
        assert_eq!((space.len(), table.maps.lock().unwrap().len()), (1, 1));
        assert_eq!(
            space.map(request(P, 1, true)).unwrap_err().errno(),
            Errno::EXIST,
            "another file at an address that is still translated"
        );
        *table.refuse_unmap.lock().unwrap() = None;
        assert_eq!(space.unmap_all().unwrap(), 1);
        assert!(table.maps.lock().unwrap().is_empty());
    }
}
