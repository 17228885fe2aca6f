// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory in the IOMMU.
//!
//! With iommufd the descriptor itself is mapped (`IOMMU_IOAS_MAP_FILE`): guest memory never shows in this
//! process. Where the kernel or the kind of file does not allow that, and with a type1 container, it is
//! mapped here first and stays so until the IOMMU has let go of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::info;
use rustix::io::Errno;

use super::dirty::{self, Bitmaps, words_for};
use super::limits::{Limits, memlock};
use crate::memory::{DirtyTracker, Iommu, IommuError, IommuMap, Mapping, Mark};

/// The calls that program an IOMMU.
pub(super) trait Translator: Send + Sync + fmt::Debug {
    /// The call's name, for errors.
    fn name(&self) -> &'static str;

    /// What it can take now.
    fn limits(&self) -> Limits;

    /// Maps straight from the descriptor; EOPNOTSUPP where there is no such call.
    fn map_file(&self, map: &IommuMap<'_>) -> Result<(), Errno>;

    /// Maps what `memory` has in this process. The caller keeps it until the range is unmapped.
    fn map_memory(&self, map: &IommuMap<'_>, memory: &Mapping) -> Result<(), Errno>;

    /// Unmaps a range, and says how many bytes were mapped there.
    fn unmap(&self, iova: u64, size: u64) -> Result<u64, Errno>;

    /// Begins or ends tracking what devices write, where [`Limits::bitmaps`] says that it can.
    fn track(&self, on: bool) -> Result<(), Errno>;

    /// Sets the bits of the pages that were written since this was last asked, from the first address on.
    fn written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<(), Errno>;

    /// As [`Self::unmap`], with the bits of what was written; EOPNOTSUPP where that must be asked before.
    fn unmap_written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<u64, Errno>;
}

#[derive(Debug, Default)]
struct State {
    /// Sizes by address, with the memory that must stay mapped here.
    maps: BTreeMap<u64, (u64, Option<Mapping>)>,
    /// Bytes of all of them.
    locked: u64,
    /// The kernel has no call that maps a descriptor.
    no_map_file: bool,
}

/// The IOMMU of one device.
#[derive(Debug)]
pub struct HostIommu {
    translator: Box<dyn Translator>,
    limits: Limits,
    /// Maps pin memory: always, but for a mediated device.
    pins: bool,
    state: Mutex<State>,
}

impl HostIommu {
    pub(super) fn new(translator: Box<dyn Translator>, pins: bool) -> Self {
        Self {
            limits: translator.limits(),
            translator,
            pins,
            state: Mutex::default(),
        }
    }

    /// Maps, straight from the descriptor if possible; what must stay mapped in this process.
    fn program(
        &self,
        state: &mut State,
        map: &IommuMap<'_>,
    ) -> Result<Option<Mapping>, IommuError> {
        if !state.no_map_file {
            match self.translator.map_file(map) {
                Ok(()) => return Ok(None),
                Err(Errno::NOTTY | Errno::OPNOTSUPP) => {
                    info!("Guest memory is mapped into this process: no IOMMU_IOAS_MAP_FILE here");
                    state.no_map_file = true;
                }
                // A file of a kind that cannot be pinned by descriptor.
                Err(Errno::INVAL | Errno::BADF) => {}
                Err(errno) => return Err(self.explain(state, map, errno)),
            }
        }
        let memory = Mapping::new(map.file, map.offset, map.size, map.access)?;
        memory.populate();
        match self.translator.map_memory(map, &memory) {
            Ok(()) => Ok(Some(memory)),
            Err(errno) => Err(self.explain(state, map, errno)),
        }
    }

    /// Says what the kernel meant, as far as it can be told.
    fn explain(&self, state: &State, map: &IommuMap<'_>, errno: Errno) -> IommuError {
        let needed = state.locked.saturating_add(map.size);
        let limit = memlock().filter(|limit| errno == Errno::NOMEM && needed > *limit);
        if let Some(limit) = limit {
            return IommuError::Memlock { needed, limit };
        }
        if errno == Errno::NOSPC {
            let limit = state.maps.len() as u64;
            return IommuError::TooMany { limit };
        }
        let what = self.translator.name();
        IommuError::Kernel { what, errno }
    }
}

impl HostIommu {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Believes that a map is gone once the kernel says that all of it is.
    fn forget(state: &mut State, iova: u64, size: u64, done: u64) -> Result<(), IommuError> {
        if done != size {
            // Part of it, or another's: nothing may be believed to be free.
            return Err(not_unmapped(Errno::IO));
        }
        // The memory goes only now that no device can reach it.
        if let Some((size, _memory)) = state.maps.remove(&iova) {
            state.locked = state.locked.saturating_sub(size);
        }
        Ok(())
    }

    /// Unmaps and tells what was written in one call; `None` where there is no such call, or not for this map.
    fn unmap_at_once(&self, range: (u64, u64), mark: &mut Mark<'_>) -> Option<u64> {
        let Bitmaps { page, size, .. } = self.limits.bitmaps?;
        let words = words_for(range.1, page).ok()?;
        if words as u64 > size / 8 {
            return None;
        }
        let last = range.0.checked_add(range.1.checked_sub(1)?)?;
        let mut done = 0;
        let ask = |iova, length, words: &mut [u64]| {
            done = self.translator.unmap_written((iova, length), page, words)?;
            Ok(())
        };
        dirty::collect(&(range.0..=last), page, words, ask, mark).ok()?;
        Some(done)
    }
}

fn not_unmapped(errno: Errno) -> IommuError {
    let what = "Unmapping";
    IommuError::Kernel { what, errno }
}

impl DirtyTracker for HostIommu {
    /// Every map is tracked, in pages of the IOMMU.
    fn start(&self, _: u64, _: &[RangeInclusive<u64>]) -> Result<(), Errno> {
        self.translator.track(true)
    }

    fn stop(&self) -> Result<(), Errno> {
        self.translator.track(false)
    }

    fn collect(
        &self,
        map: &RangeInclusive<u64>,
        wanted: &RangeInclusive<u64>,
        mark: &mut Mark<'_>,
    ) -> Result<(), Errno> {
        let bitmaps = self.limits.bitmaps.ok_or(Errno::NOTTY)?;
        let Bitmaps { page, size, .. } = bitmaps;
        let largest = usize::try_from(size / 8).unwrap_or(usize::MAX);
        let (range, step) = if bitmaps.whole_maps {
            let length = (map.end() - map.start()).saturating_add(1);
            (map, words_for(length, page)?)
        } else {
            (wanted, largest.min(dirty::STEP))
        };
        if step > largest {
            return Err(Errno::TOOBIG);
        }
        let ask =
            |iova, length, words: &mut [u64]| self.translator.written((iova, length), page, words);
        dirty::collect(range, page, step, ask, mark)
    }
}

impl Iommu for HostIommu {
    fn map(&self, map: &IommuMap<'_>) -> Result<(), IommuError> {
        let state = &mut *self.state();
        let memlock = if self.pins { memlock() } else { None };
        let used = (state.maps.len() as u64, state.locked);
        self.limits.check(map, used, memlock)?;
        let memory = self.program(state, map)?;
        state.maps.insert(map.iova, (map.size, memory));
        state.locked = state.locked.saturating_add(map.size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), IommuError> {
        let mut state = self.state();
        let done = self.translator.unmap(iova, size).map_err(not_unmapped)?;
        Self::forget(&mut state, iova, size, done)
    }

    fn tracker(&self) -> Option<&dyn DirtyTracker> {
        self.limits.bitmaps.is_some().then_some(self)
    }

    fn unmap_tracked(&self, iova: u64, size: u64, mark: &mut Mark<'_>) -> Result<(), IommuError> {
        if let Some(done) = self.unmap_at_once((iova, size), mark) {
            return Self::forget(&mut self.state(), iova, size, done);
        }
        // What is written between the two calls is not told: the client gave the memory up before that.
        let map = iova..=iova.saturating_add(size.saturating_sub(1));
        if self.collect(&map, &map, mark).is_err() {
            mark(map);
        }
        self.unmap(iova, size)
    }
}

/// The number of a descriptor that lives as long as the map's call.
pub(super) fn raw_file(map: &IommuMap<'_>) -> i32 {
    map.file.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::memory::Access;

    /// Remembers the calls, and fails as told.
    #[derive(Debug, Default)]
    struct Calls {
        log: Mutex<Vec<&'static str>>,
        file: Mutex<Option<Errno>>,
        memory: Mutex<Option<Errno>>,
        unmapped: Mutex<Option<u64>>,
        /// What bitmaps there are, how they fail, and the page of a map that is always dirty.
        bitmaps: Option<Bitmaps>,
        at_once: bool,
        written: Mutex<Option<Errno>>,
    }

    impl Calls {
        fn bitmap(&self, what: &'static str, words: &mut [u64]) -> Result<(), Errno> {
            self.log.lock().unwrap().push(what);
            self.written.lock().unwrap().map_or(Ok(()), Err)?;
            words[0] = 0b100;
            Ok(())
        }
    }

    impl Translator for Arc<Calls> {
        fn name(&self) -> &'static str {
            "MAP"
        }

        fn limits(&self) -> Limits {
            Limits {
                bitmaps: self.bitmaps,
                ..Limits::default()
            }
        }

        fn map_file(&self, _: &IommuMap<'_>) -> Result<(), Errno> {
            self.log.lock().unwrap().push("file");
            self.file.lock().unwrap().map_or(Ok(()), Err)
        }

        fn map_memory(&self, map: &IommuMap<'_>, memory: &Mapping) -> Result<(), Errno> {
            assert_eq!(memory.size() as u64, map.size);
            assert_ne!(memory.host_address(), 0);
            self.log.lock().unwrap().push("memory");
            self.memory.lock().unwrap().map_or(Ok(()), Err)
        }

        fn unmap(&self, _: u64, size: u64) -> Result<u64, Errno> {
            self.log.lock().unwrap().push("unmap");
            Ok(self.unmapped.lock().unwrap().unwrap_or(size))
        }

        fn track(&self, on: bool) -> Result<(), Errno> {
            self.log.lock().unwrap().push(if on { "on" } else { "off" });
            Ok(())
        }

        fn written(&self, range: (u64, u64), page: u64, words: &mut [u64]) -> Result<(), Errno> {
            assert_eq!((range.0 | range.1) % page, 0);
            self.bitmap(if range.1 == 0x8000 { "map" } else { "part" }, words)
        }

        fn unmap_written(
            &self,
            range: (u64, u64),
            _: u64,
            words: &mut [u64],
        ) -> Result<u64, Errno> {
            if !self.at_once {
                return Err(Errno::OPNOTSUPP);
            }
            self.bitmap("unmap and bitmap", words)?;
            Ok(self.unmapped.lock().unwrap().unwrap_or(range.1))
        }
    }

    fn iommu() -> (Arc<Calls>, HostIommu) {
        with(Calls::default())
    }

    fn with(calls: Calls) -> (Arc<Calls>, HostIommu) {
        let calls = Arc::new(calls);
        let iommu = HostIommu::new(Box::new(Arc::clone(&calls)), false);
        (calls, iommu)
    }

    fn map(iommu: &HostIommu, iova: u64) -> Result<(), IommuError> {
        let file: OwnedFd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 0x1000).unwrap();
        iommu.map(&IommuMap {
            iova,
            size: 0x1000,
            access: Access::READ_WRITE,
            file: file.as_fd(),
            offset: 0,
        })
    }

    fn kept(iommu: &HostIommu) -> Vec<bool> {
        let state = iommu.state.lock().unwrap();
        state.maps.values().map(|(_, m)| m.is_some()).collect()
    }

    #[test]
    fn the_descriptor_itself_is_mapped_where_the_kernel_can() {
        let (calls, iommu) = iommu();
        map(&iommu, 0).unwrap();
        assert_eq!(kept(&iommu), [false], "guest memory is not in this process");
        iommu.unmap(0, 0x1000).unwrap();
        assert_eq!(*calls.log.lock().unwrap(), ["file", "unmap"]);
        assert_eq!(iommu.state.lock().unwrap().locked, 0);
    }

    #[test]
    fn the_way_through_memory_is_remembered_for_a_kernel_but_not_for_a_file() {
        let (calls, iommu) = iommu();
        *calls.file.lock().unwrap() = Some(Errno::INVAL);
        map(&iommu, 0).unwrap();
        map(&iommu, 0x1000).unwrap();
        *calls.file.lock().unwrap() = Some(Errno::NOTTY);
        map(&iommu, 0x2000).unwrap();
        map(&iommu, 0x3000).unwrap();
        assert_eq!(kept(&iommu), [true; 4]);
        let log = calls.log.lock().unwrap();
        let expected = [
            "file", "memory", "file", "memory", "file", "memory", "memory",
        ];
        assert_eq!(*log, expected);
    }

    #[test]
    fn what_the_kernel_refuses_leaves_nothing() {
        let (calls, iommu) = iommu();
        *calls.file.lock().unwrap() = Some(Errno::FAULT);
        let error = map(&iommu, 0).unwrap_err();
        assert_eq!(error.errno(), Errno::FAULT);
        *calls.file.lock().unwrap() = Some(Errno::OPNOTSUPP);
        *calls.memory.lock().unwrap() = Some(Errno::NOSPC);
        assert!(matches!(map(&iommu, 0), Err(IommuError::TooMany { .. })));
        assert!(kept(&iommu).is_empty());
        assert_eq!(iommu.state.lock().unwrap().locked, 0);
    }

    #[test]
    fn memory_stays_mapped_until_the_hardware_lets_go() {
        let (calls, iommu) = iommu();
        *calls.file.lock().unwrap() = Some(Errno::NOTTY);
        map(&iommu, 0).unwrap();
        *calls.unmapped.lock().unwrap() = Some(0);
        assert_eq!(iommu.unmap(0, 0x1000).unwrap_err().errno(), Errno::IO);
        assert_eq!(kept(&iommu), [true], "the kernel unmapped nothing");
        *calls.unmapped.lock().unwrap() = None;
        iommu.unmap(0, 0x1000).unwrap();
        assert!(kept(&iommu).is_empty());
    }

    const MAP: RangeInclusive<u64> = 0..=0x7fff;

    fn tracking(whole_maps: bool, size: u64) -> (Arc<Calls>, HostIommu) {
        let bitmaps = Bitmaps {
            page: 0x1000,
            size,
            whole_maps,
        };
        with(Calls {
            bitmaps: Some(bitmaps),
            at_once: whole_maps,
            ..Calls::default()
        })
    }

    /// What is marked, and what was asked of the kernel.
    fn marked(
        calls: &Calls,
        act: impl FnOnce(&mut Mark<'_>),
    ) -> (Vec<RangeInclusive<u64>>, Vec<&'static str>) {
        calls.log.lock().unwrap().clear();
        let mut marked = Vec::new();
        act(&mut |pages| marked.push(pages));
        (marked, std::mem::take(&mut *calls.log.lock().unwrap()))
    }

    #[test]
    fn an_iommu_without_bitmaps_does_not_track() {
        assert!(iommu().1.tracker().is_none());
    }

    #[test]
    fn a_page_table_is_asked_for_parts_and_before_it_is_unmapped() {
        let (calls, iommu) = tracking(false, 1 << 20);
        let tracker = iommu.tracker().unwrap();
        tracker.start(0x1000, &[MAP]).unwrap();
        let part = 0x1000..=0x3fff;
        let found = marked(&calls, |mark| tracker.collect(&MAP, &part, mark).unwrap());
        assert_eq!(found, (vec![0x3000..=0x3fff], vec!["part"]));
        map(&iommu, 0).unwrap();
        let found = marked(&calls, |mark| iommu.unmap_tracked(0, 0x1000, mark).unwrap());
        assert_eq!(found, (vec![], vec!["part", "unmap"]));
        assert!(kept(&iommu).is_empty());
        *calls.written.lock().unwrap() = Some(Errno::INVAL);
        map(&iommu, 0).unwrap();
        let found = marked(&calls, |mark| iommu.unmap_tracked(0, 0x1000, mark).unwrap());
        assert_eq!(found, (vec![0..=0xfff], vec!["part", "unmap"]));
        tracker.stop().unwrap();
    }

    #[test]
    fn a_container_is_asked_for_whole_maps_and_as_it_unmaps() {
        let (calls, iommu) = tracking(true, 1 << 20);
        let tracker = iommu.tracker().unwrap();
        let part = 0x1000..=0x1fff;
        let found = marked(&calls, |mark| tracker.collect(&MAP, &part, mark).unwrap());
        assert_eq!(found, (vec![0x2000..=0x2fff], vec!["map"]));
        let found = marked(&calls, |mark| iommu.unmap_tracked(0, 0x8000, mark).unwrap());
        assert_eq!(found, (vec![0x2000..=0x2fff], vec!["unmap and bitmap"]));
        *calls.unmapped.lock().unwrap() = Some(0);
        let (_, log) = marked(&calls, |mark| {
            let error = iommu.unmap_tracked(0, 0x8000, mark).unwrap_err();
            assert_eq!(error.errno(), Errno::IO);
        });
        assert_eq!(log, ["unmap and bitmap"], "never twice");
        // One that gives no bitmap of that size is taken at its worst, and unmapped all the same.
        *calls.unmapped.lock().unwrap() = None;
        let (calls, iommu) = tracking(true, 0);
        let found = marked(&calls, |mark| iommu.unmap_tracked(0, 0x8000, mark).unwrap());
        assert_eq!(found, (vec![MAP], vec!["unmap"]));
        let refused = iommu.collect(&MAP, &MAP, &mut |_| {});
        assert_eq!(refused, Err(Errno::TOOBIG));
    }
}
