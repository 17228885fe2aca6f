// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory in the IOMMU.
//!
//! With iommufd the descriptor itself is mapped (`IOMMU_IOAS_MAP_FILE`): guest memory never shows in this
//! process. Where the kernel or the kind of file does not allow that, and with a type1 container, it is
//! mapped here first and stays so until the IOMMU has let go of it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use log::info;
use rustix::io::Errno;

use super::limits::{Limits, memlock};
use crate::memory::{Iommu, IommuError, IommuMap, Mapping};

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

impl Iommu for HostIommu {
    fn map(&self, map: &IommuMap<'_>) -> Result<(), IommuError> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let memlock = if self.pins { memlock() } else { None };
        let used = (state.maps.len() as u64, state.locked);
        self.limits.check(map, used, memlock)?;
        let memory = self.program(state, map)?;
        state.maps.insert(map.iova, (map.size, memory));
        state.locked = state.locked.saturating_add(map.size);
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), IommuError> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let what = "Unmapping";
        let refused = |errno| IommuError::Kernel { what, errno };
        let done = self.translator.unmap(iova, size).map_err(refused)?;
        if done != size {
            // Part of it, or another's: nothing may be believed to be free.
            return Err(refused(Errno::IO));
        }
        // The memory goes only now that no device can reach it.
        if let Some((size, _memory)) = state.maps.remove(&iova) {
            state.locked = state.locked.saturating_sub(size);
        }
        Ok(())
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
    }

    impl Translator for Arc<Calls> {
        fn name(&self) -> &'static str {
            "MAP"
        }

        fn limits(&self) -> Limits {
            Limits::default()
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
    }

    fn iommu() -> (Arc<Calls>, HostIommu) {
        let calls = Arc::new(Calls::default());
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
}
