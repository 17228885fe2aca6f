// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device-specific regions of the kernel: found by the type that their capability tells, and read whole.

use std::io;

use log::debug;
use vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_READ;
use vfio_user_protocol::device::RegionCapability;

use super::vfio::{RegionDetail, Vfio};
use super::{Error, io_error, region};

/// Device-specific regions that are looked at; the number comes from the kernel.
const MOST: u32 = 64;

/// One region behind those that every PCI device has.
#[derive(Debug)]
pub(super) struct Specific {
    index: u32,
    /// Type and subtype.
    kind: (u32, u32),
    detail: RegionDetail,
}

/// Looks at what there is behind the usual regions, of which there are `count` in all.
pub(super) fn find(vfio: &Vfio, count: u32) -> Vec<Specific> {
    let indexes = region::COUNT..count.min(region::COUNT + MOST);
    let look = |index| {
        let detail = match vfio.region(index) {
            Ok(detail) => detail,
            Err(errno) => {
                debug!("Region {index}: {errno}");
                return None;
            }
        };
        let kind = detail.capabilities.iter().find_map(|cap| match cap {
            RegionCapability::Type {
                region_type,
                subtype,
            } => Some((*region_type, *subtype)),
            _ => None,
        })?;
        Some(Specific {
            index,
            kind,
            detail,
        })
    };
    indexes.filter_map(look).collect()
}

/// All of the first region of a type.
pub(super) fn read(
    vfio: &Vfio,
    known: &[Specific],
    kind: (u32, u32),
    largest: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let Some(found) = known.iter().find(|region| region.kind == kind) else {
        return Ok(None);
    };
    let Specific { index, detail, .. } = found;
    if detail.flags & VFIO_REGION_INFO_FLAG_READ == 0 {
        let (region, what) = (*index, "read");
        return Err(Error::Denied { region, what });
    }
    let size = usize::try_from(detail.size).ok();
    let Some(size) = size.filter(|_| detail.size <= largest) else {
        let said = format!("it has {} bytes, more than {largest}", detail.size);
        return Err(Error::Io {
            what: "A device-specific region",
            source: io::Error::new(io::ErrorKind::FileTooLarge, said),
        });
    };
    let mut bytes = vec![0; size];
    vfio.read(detail.offset, &mut bytes)
        .map_err(io_error("Reading a device-specific region"))?;
    Ok(Some(bytes))
}
