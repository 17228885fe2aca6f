// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The regions of the function: those of every PCI device, with what is trapped cut out of their mappings, and
//! the device-specific ones behind them.

use std::ops::Range;
use std::os::fd::OwnedFd;

use super::Function;
use crate::device::{Area, Error, Region, cut, region};
use crate::quirks::{SpecificKind, SpecificRegion};

/// How the client may map a region, or parts of it.
#[derive(Debug)]
pub struct Mapped {
    /// What to map: a descriptor for the client to keep.
    pub fd: OwnedFd,
    /// Where the region begins in it, in bytes.
    pub offset: u64,
    /// The parts that may be mapped; `None` for the whole region.
    pub areas: Option<Vec<Area>>,
}

impl Function {
    /// How many region indexes there are.
    #[must_use]
    pub fn region_count(&self) -> u32 {
        let specific = u32::try_from(self.specific.len()).unwrap_or(0);
        region::COUNT.saturating_add(specific)
    }

    /// What is at a region index, the composed config space, the ROM and device-specific regions included.
    #[must_use]
    pub fn region(&self, index: u32) -> Region {
        if let Some(bytes) = self.fixed_bytes(index) {
            let size = bytes.len() as u64;
            return Region {
                size,
                readable: size > 0,
                writable: false,
            };
        }
        match index {
            region::CONFIG => Region {
                size: self.state().config.bytes().len() as u64,
                readable: true,
                writable: true,
            },
            region::COUNT.. => Region::default(),
            _ => self.device.region(index),
        }
    }

    /// What a device-specific region is.
    #[must_use]
    pub fn region_kind(&self, index: u32) -> Option<SpecificKind> {
        Some(self.specific(index)?.kind)
    }

    /// How a region may be mapped by the client, if at all.
    ///
    /// # Errors
    /// No descriptor could be had.
    pub fn mapping(&self, index: u32) -> Result<Option<Mapped>, Error> {
        if let Some(specific) = self.specific(index) {
            let fd = specific.share().map_err(|source| Error::Io {
                what: "Descriptor of a device-specific region",
                source,
            })?;
            return Ok(fd.map(|fd| Mapped {
                fd,
                offset: 0,
                areas: None,
            }));
        }
        let Some(mapping) = self.device.mapping(index)? else {
            return Ok(None);
        };
        let trapped: Vec<Range<u64>> = self.state().quirks.trapped(index).collect();
        let areas = if trapped.is_empty() {
            mapping.areas.map(std::borrow::Cow::into_owned)
        } else {
            let whole = [Area {
                offset: 0,
                size: self.device.region(index).size,
            }];
            let areas = mapping.areas.as_deref().unwrap_or(&whole);
            let areas = areas
                .iter()
                .map(|area| area.offset..area.offset + area.size);
            let areas = cut(areas, &trapped);
            if areas.is_empty() {
                return Ok(None);
            }
            Some(areas)
        };
        Ok(Some(Mapped {
            fd: mapping.fd,
            offset: mapping.offset,
            areas,
        }))
    }

    /// The bytes of a region that nothing can change.
    pub(super) fn fixed_bytes(&self, index: u32) -> Option<&[u8]> {
        if index == region::ROM {
            return Some(&self.rom);
        }
        self.specific(index).map(SpecificRegion::bytes)
    }

    pub(super) fn specific(&self, index: u32) -> Option<&SpecificRegion> {
        let index = usize::try_from(index.checked_sub(region::COUNT)?).ok()?;
        self.specific.get(index)
    }
}
