// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration region of a v1 driver: finding it, mapping what may be mapped.
//!
//! Nothing has to be mapped: what cannot be is accessed by system calls.

use log::{debug, warn};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};
use vfio_user_protocol::device::RegionCapability;
use vm_memory::VolatileSlice;

use super::handoff::mappable_areas;
use super::vfio::{RegionDetail, Vfio};
use crate::device::{Area, region};
use crate::memory::{Access, Mapping};
use crate::migration::v1::{RegionAccess, V1Migration};

/// How many device-specific regions are looked at.
const MAX_SPECIFIC: u32 = 64;
/// How many parts are mapped at the most.
const MAX_AREAS: usize = 64;

/// A migration region.
#[derive(Debug)]
struct MigrationRegion {
    vfio: Vfio,
    /// Where it begins in the device descriptor.
    offset: u64,
    size: u64,
    areas: Vec<Area>,
    /// The memory of each area.
    mappings: Vec<Mapping>,
}

/// The device's migration region, if it has one. `indexes` is how many regions there are.
pub(super) fn find(vfio: &Vfio, indexes: u32, driver: &str) -> Option<V1Migration> {
    let last = indexes.min(region::COUNT + MAX_SPECIFIC);
    let detail = (region::COUNT..last).find_map(|index| {
        let detail = vfio
            .region(index)
            .inspect_err(|errno| debug!("Region {index}: {errno}"));
        detail.ok().filter(is_migration)
    })?;
    let data_version = match driver {
        "" => String::new(),
        driver => format!("{driver} v1"),
    };
    let region = MigrationRegion::new(vfio, &detail);
    V1Migration::new(Box::new(region), data_version)
        .inspect_err(|errno| warn!("Migration region: {errno}; the device will not migrate by it"))
        .ok()
}

fn is_migration(detail: &RegionDetail) -> bool {
    const TYPE: RegionCapability = RegionCapability::Type {
        region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    };
    const FLAGS: u32 = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    detail.flags & FLAGS == FLAGS && detail.capabilities.contains(&TYPE)
}

impl MigrationRegion {
    fn new(vfio: &Vfio, detail: &RegionDetail) -> Self {
        let mut region = Self {
            vfio: vfio.clone(),
            offset: detail.offset,
            size: detail.size,
            areas: Vec::new(),
            mappings: Vec::new(),
        };
        if detail.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return region;
        }
        for area in mappable_areas(detail, &[]).into_iter().take(MAX_AREAS) {
            let at = detail.offset.saturating_add(area.offset);
            match Mapping::new(vfio.fd(), at, area.size, Access::READ_WRITE) {
                Ok(mapping) => {
                    region.areas.push(area);
                    region.mappings.push(mapping);
                }
                Err(error) => debug!("Migration region at {:#x}: {error}", area.offset),
            }
        }
        region
    }
}

impl RegionAccess for MigrationRegion {
    fn size(&self) -> u64 {
        self.size
    }

    fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn memory(&self, area: usize) -> Option<VolatileSlice<'_>> {
        let mapping = self.mappings.get(area)?;
        mapping.slice(0, mapping.size())
    }

    /// The driver may take its memory away, as vfio-pci does with that of a device without power.
    fn is_intact(&self, area: usize, offset: usize, length: usize) -> bool {
        let mapping = self.mappings.get(area);
        mapping.is_some_and(|mapping| mapping.lost_within(offset, length).is_none())
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        self.vfio
            .read_once(self.offset.saturating_add(offset), data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.vfio
            .write_once(self.offset.saturating_add(offset), data)
    }
}
