// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOVA space of one device: what the client mapped, kept by address.
//!
//! Shared between the session, which maps and unmaps, and the threads of the device, which access it. An
//! access holds the lock for one bounded piece, so that an unmap waits for at most that, and finds no
//! reference left once it has the lock.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FileType, fstat};

use super::dirty::Logging;
use super::dma::MessageDma;
use super::iommu::{Iommu, IommuMap};
use super::mapping::Mapping;
use super::request::{Access, Backing, MapError, MapRequest, check_aligned, checked_range};

/// How many maps a client may have unless told otherwise (the `max_dma_maps` capability).
pub const DEFAULT_MAX_MAPS: usize = 65_535;

/// Whether this process itself touches guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuAccess {
    /// Descriptors are mapped here: for a device made of software.
    Mapped,
    /// Maps are tracked and checked only: the IOMMU does the work, and guest memory never shows here.
    TrackedOnly,
    /// The same, but descriptors are kept, and a part is mapped for as long as an access to it takes: for the
    /// rare one beside a device of hardware.
    OnDemand,
}

/// A file, told apart from any other while something keeps it alive: the mapping here, or the IOMMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    offset: u64,
}

/// One map.
#[derive(Debug)]
pub(super) struct Map {
    /// The last address, so that a map may end at 2^64.
    pub(super) last: u64,
    pub(super) access: Access,
    file: Option<FileIdentity>,
    pub(super) memory: Option<Mapping>,
    /// With [`CpuAccess::OnDemand`]: the file, shared by its maps, and where the map begins in it.
    pub(super) kept: Option<(Arc<OwnedFd>, u64)>,
}

impl Map {
    /// Hardware was told of it, if there is any.
    pub(super) fn in_iommu(&self) -> bool {
        self.file.is_some()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    maps: BTreeMap<u64, Map>,
    pub(super) messages: Option<Arc<dyn MessageDma>>,
    /// What the device writes is being logged.
    pub(super) logging: Option<Box<Logging>>,
}

impl State {
    /// The map that contains `iova`, and where it begins.
    pub(super) fn containing(&self, iova: u64) -> Option<(u64, &Map)> {
        let (&start, map) = self.maps.range(..=iova).next_back()?;
        (iova <= map.last).then_some((start, map))
    }

    /// The descriptor of the same file that another map keeps, or else this one: guest memory is one file, or a
    /// few, however many maps there are.
    fn same_file(&self, identity: Option<FileIdentity>, file: OwnedFd) -> Arc<OwnedFd> {
        let same = |map: &Map| {
            let (ours, theirs) = identity.zip(map.file)?;
            let (kept, _) = map.kept.as_ref()?;
            let is_same = (ours.device, ours.inode) == (theirs.device, theirs.inode);
            is_same.then(|| Arc::clone(kept))
        };
        let known = self.maps.values().find_map(same);
        known.unwrap_or_else(|| Arc::new(file))
    }

    /// The maps that have an address of the range in them, and where they begin.
    pub(super) fn overlapping(
        &self,
        range: &RangeInclusive<u64>,
    ) -> impl Iterator<Item = (u64, &Map)> {
        let first = *range.start();
        let first = self.containing(first).map_or(first, |(start, _)| start);
        let maps = self.maps.range(first..=*range.end());
        maps.map(|(&start, map)| (start, map))
    }
}

/// The IOVA space of one device.
#[derive(Debug)]
pub struct AddressSpace {
    state: RwLock<State>,
    cpu_access: CpuAccess,
    /// Told of every map with a descriptor, so that tracking and hardware never disagree.
    iommu: Option<Arc<dyn Iommu>>,
    max_maps: usize,
    /// The IOMMU is letting go of everything: long for much memory, and sure to end.
    emptying: AtomicBool,
}

impl AddressSpace {
    /// An empty space that takes up to `max_maps` maps ([`DEFAULT_MAX_MAPS`]).
    #[must_use]
    pub fn new(cpu_access: CpuAccess, max_maps: usize) -> Self {
        Self {
            state: RwLock::default(),
            cpu_access,
            iommu: None,
            max_maps,
            emptying: AtomicBool::new(false),
        }
    }

    /// An empty space whose maps an IOMMU carries out; guest memory never shows in this process through it.
    #[must_use]
    pub fn with_iommu(iommu: Arc<dyn Iommu>, max_maps: usize) -> Self {
        Self {
            iommu: Some(iommu),
            ..Self::new(CpuAccess::TrackedOnly, max_maps)
        }
    }

    /// The same space, in which this process itself can access guest memory now and then.
    #[must_use]
    pub fn keeping_descriptors(self) -> Self {
        let cpu_access = match self.cpu_access {
            CpuAccess::TrackedOnly => CpuAccess::OnDemand,
            other => other,
        };
        Self { cpu_access, ..self }
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cpu_access(&self) -> CpuAccess {
        self.cpu_access
    }

    pub(super) fn iommu(&self) -> Option<&Arc<dyn Iommu>> {
        self.iommu.as_ref()
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many maps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().maps.len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Installs, or takes away, the way to memory whose maps came without a descriptor.
    pub fn set_message_dma(&self, messages: Option<Arc<dyn MessageDma>>) {
        self.state_mut().messages = messages;
    }

    /// Maps a range. Repeating a map exactly (range, access, file and offset) succeeds and changes nothing.
    ///
    /// # Errors
    /// As [`MapError`] says; nothing is changed then.
    pub fn map(&self, request: MapRequest) -> Result<(), MapError> {
        let MapRequest {
            iova,
            size,
            access,
            backing,
        } = request;
        let range = checked_range(iova, size)?;
        let file = backing.as_ref().map(|b| identify(b, size)).transpose()?;
        let mut state = self.state_mut();
        // Maps do not overlap, so the last that begins in or before the range tells.
        if let Some((&start, map)) = state.maps.range(..=range.end()).next_back()
            && map.last >= iova
        {
            let same =
                (start, map.last, map.access, map.file) == (iova, *range.end(), access, file);
            let other = start;
            return if same {
                Ok(())
            } else {
                Err(MapError::Overlap { iova, size, other })
            };
        }
        if state.maps.len() >= self.max_maps {
            return Err(MapError::TooMany {
                limit: self.max_maps,
            });
        }
        if let (Some(iommu), Some(backing)) = (&self.iommu, &backing) {
            // Tracked only once the hardware has it: a refused map leaves nothing anywhere.
            iommu
                .map(&IommuMap {
                    iova,
                    size,
                    access,
                    file: backing.file.as_fd(),
                    offset: backing.offset,
                })
                .map_err(|source| MapError::Iommu { iova, source })?;
        }
        let memory = backing
            .as_ref()
            .filter(|_| self.cpu_access == CpuAccess::Mapped)
            .map(|b| Mapping::new(b.file.as_fd(), b.offset, size, access))
            .transpose()
            .map_err(|source| MapError::Mapping {
                iova,
                access,
                source,
            })?;
        let kept = backing.filter(|_| self.cpu_access == CpuAccess::OnDemand);
        let map = Map {
            last: *range.end(),
            access,
            file,
            memory,
            kept: kept.map(|b| (state.same_file(file, b.file), b.offset)),
        };
        state.maps.insert(iova, map);
        Ok(())
    }

    /// Takes one map from the hardware and then from the tables. If the hardware keeps it, so do they.
    fn release(&self, state: &mut State, start: u64) -> Result<Option<Map>, MapError> {
        if let (Some(iommu), Some(map)) = (&self.iommu, state.maps.get(&start))
            && map.in_iommu()
        {
            // A size is a multiple of the page size, so this does not wrap to 0.
            let size = (map.last - start).wrapping_add(1);
            let writable = map.access.allows(Access::WRITE);
            let unmapped = match state.logging.as_ref().filter(|_| writable) {
                Some(logging) => logging.unmap(&**iommu, &(start..=map.last), size),
                None => iommu.unmap(start, size),
            };
            unmapped.map_err(|source| MapError::Iommu {
                iova: start,
                source,
            })?;
        }
        Ok(state.maps.remove(&start))
    }

    /// Releases all of `starts`, as far as the hardware lets go; the first refusal is reported.
    fn release_each(&self, state: &mut State, starts: &[u64]) -> (Vec<Map>, Result<(), MapError>) {
        let mut outcome = Ok(());
        let mut removed = Vec::with_capacity(starts.len());
        for &start in starts {
            match self.release(state, start) {
                Ok(map) => removed.extend(map),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (removed, outcome)
    }

    /// Releases exactly one earlier map. When this returns no reference to the memory is left.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] unless a map has exactly this range; [`MapError::Iommu`] if it stays.
    pub fn unmap(&self, iova: u64, size: u64) -> Result<(), MapError> {
        let not_mapped = MapError::NotMapped { iova, size };
        let Some(last) = size.checked_sub(1).and_then(|tail| iova.checked_add(tail)) else {
            return Err(not_mapped);
        };
        let mut state = self.state_mut();
        if state.maps.get(&iova).is_none_or(|map| map.last != last) {
            return Err(not_mapped);
        }
        let removed = self.release(&mut state, iova)?;
        // Nobody can find the memory any more: accesses elsewhere need not wait for the munmap.
        drop(state);
        removed.map(drop).ok_or(not_mapped)
    }

    /// Releases every map in the range, and says how many. A range that wraps is taken to end at 2^64; one
    /// that cuts through a map releases nothing: the device would still reach part of it.
    ///
    /// QEMU sends such a range when it removes the memory region of a virtual IOMMU.
    ///
    /// # Errors
    /// [`MapError::Iommu`] if some stay; the others are released.
    pub fn unmap_range(&self, iova: u64, size: u64) -> Result<usize, MapError> {
        let Some(tail) = size.checked_sub(1) else {
            return Ok(0);
        };
        let last = iova.saturating_add(tail);
        let mut state = self.state_mut();
        // Maps do not overlap: only one that holds an end of the range can be cut.
        let cut = [iova.checked_sub(1), Some(last)]
            .into_iter()
            .flatten()
            .filter_map(|edge| Some((edge, state.containing(edge)?.1)))
            .any(|(edge, map)| map.last > edge);
        if cut {
            return Ok(0);
        }
        let inside: Vec<u64> = state.maps.range(iova..=last).map(|map| *map.0).collect();
        let (removed, outcome) = self.release_each(&mut state, &inside);
        drop(state);
        outcome.map(|()| removed.len())
    }

    /// Releases every map (DMA_UNMAP with UNMAP_ALL), and says how many there were.
    ///
    /// # Errors
    /// [`MapError::Iommu`] if some stay; the others are released.
    pub fn unmap_all(&self) -> Result<usize, MapError> {
        let mut state = self.state_mut();
        if self.iommu.is_none() {
            let maps = std::mem::take(&mut state.maps);
            drop(state);
            return Ok(maps.len());
        }
        let all: Vec<u64> = state.maps.keys().copied().collect();
        self.emptying.store(true, Ordering::SeqCst);
        let (removed, outcome) = self.release_each(&mut state, &all);
        self.emptying.store(false, Ordering::SeqCst);
        drop(state);
        outcome.map(|()| removed.len())
    }

    /// Whether the IOMMU is letting go of every map just now, which takes its time.
    #[must_use]
    pub fn is_emptying(&self) -> bool {
        self.emptying.load(Ordering::SeqCst)
    }

    /// What a client's leaving leaves: no maps, no logging, and no way to ask the client for memory.
    ///
    /// # Errors
    /// [`MapError::Iommu`] if the hardware does not let go of a map. It stays in the tables too, so that the
    /// next client cannot believe the address free.
    pub fn clear(&self) -> Result<(), MapError> {
        self.set_message_dma(None);
        self.end_logging();
        self.unmap_all().map(drop)
    }
}

/// Checks the file against the range asked of it, and identifies it.
fn identify(backing: &Backing, size: u64) -> Result<FileIdentity, MapError> {
    let offset = backing.offset;
    check_aligned("File offset", offset)?;
    let end = offset
        .checked_add(size)
        .ok_or(MapError::Wraps { iova: offset, size })?;
    let status = fstat(&backing.file).map_err(MapError::Status)?;
    let length = u64::try_from(status.st_size).unwrap_or(0);
    // What is not a file has no length to go by; mmap decides there.
    if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile && length < end {
        return Err(MapError::FileTooShort {
            length,
            offset,
            size,
        });
    }
    Ok(FileIdentity {
        device: status.st_dev,
        inode: status.st_ino,
        offset,
    })
}
