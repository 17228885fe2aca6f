// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model GPU in the place of Intel graphics: `igd=FILE` gives it that identity, the OpRegion in the file, and
//! addresses in config space that no guest must ever see.
//!
//! Nothing else of such a part is there: BAR0 is video memory, and no driver of Intel's would get far. It is for
//! firmware, and for whoever works on what is in front of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{DISPLAY_REGION, ENGINE_REGION, VRAM_REGION, bochs, config, registers};
use crate::device::{Error, region};
use crate::pci::registers::PCI_CFG_SPACE_SIZE;
use crate::pci::{
    Bar, BuildError, Capability, ConfigSpace, ConfigSpaceBuilder, Express, Identity, rom,
};
use crate::quirks::igd::OpRegion;

/// A desktop part of generation 9.
pub(super) const IDENTITY: Identity = Identity {
    vendor_id: 0x8086,
    device_id: 0x3e92,
    revision: 0,
    // VGA: what firmware looks for.
    class_code: 0x03_0000,
    subsystem_vendor_id: 0x1af4,
    subsystem_id: 0x1100,
};

/// Registers as the firmware of a host leaves them: GMCH, BDSM, ASLS.
const HOST: [(u64, &[u8]); 3] = [
    (0x50, &[0xc1, 0x01]),
    (0x5c, &0x7b80_0001_u32.to_le_bytes()),
    (0xfc, &0x7a5e_0018_u32.to_le_bytes()),
];

const REGION_TYPE: u32 = 0x8000_8086;
const HOST_BRIDGE: (u16, u32) = (0x3ec2, 0x06_0000);
const LPC_BRIDGE: (u16, u32) = (0xa306, 0x06_0100);

/// What the host of such a part shows beside it.
#[derive(Debug)]
pub(super) struct Igd {
    opregion: Vec<u8>,
}

impl Igd {
    /// Takes the OpRegion from a file, as it is.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut opregion = Vec::new();
        // One byte more is enough to be refused for.
        let mut file = File::open(path)?.take(OpRegion::LARGEST + 1);
        file.read_to_end(&mut opregion)?;
        Ok(Self { opregion })
    }

    /// One of its regions.
    pub(super) fn specific(
        &self,
        (region_type, subtype): (u32, u32),
        largest: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let bytes = match (region_type, subtype) {
            (REGION_TYPE, 1) => self.opregion.clone(),
            (REGION_TYPE, 2) => bridge(HOST_BRIDGE),
            (REGION_TYPE, 3) => bridge(LPC_BRIDGE),
            _ => return Ok(None),
        };
        if bytes.len() as u64 > largest {
            return Err(Error::OutOfRange {
                region: region::COUNT + subtype,
                offset: 0,
                length: bytes.len(),
            });
        }
        Ok(Some(bytes))
    }
}

/// A bridge's config space: its ids.
fn bridge((device_id, class_code): (u16, u32)) -> Vec<u8> {
    let identity = Identity {
        device_id,
        class_code,
        ..IDENTITY
    };
    let built = ConfigSpaceBuilder::new(identity).build();
    let mut bytes = built.map_or_else(|_| Vec::new(), |config| config.bytes().to_vec());
    bytes.truncate(PCI_CFG_SPACE_SIZE.into());
    bytes
}

/// The config space of the model with Intel's identity, its capabilities where Intel's are.
pub(super) fn config_space(vram_size: u64) -> Result<ConfigSpace, BuildError> {
    let mut builder = ConfigSpaceBuilder::new(IDENTITY)
        .interrupt_pin(1)
        .bar(0, Bar::memory64(vram_size).prefetchable())
        .bar(2, Bar::memory32(bochs::BAR_SIZE))
        .bar(4, Bar::memory32(registers::BAR_SIZE))
        .capability_at(0x70, Capability::Express(Express::default()))
        .capability_at(0xac, Capability::Msi(config::MSI))
        .capability_at(0xd0, Capability::PowerManagement)
        .capability_at(0xd8, Capability::MsiX(config::MSIX));
    if let Some(size) = rom::bar_size(rom::build(&IDENTITY).len()) {
        builder = builder.rom(size);
    }
    let mut config = builder.build()?;
    for (at, bytes) in HOST {
        // All of them are inside.
        let _ = config.set_by_device(at, bytes);
    }
    Ok(config)
}

const _: () = assert!(VRAM_REGION == 0 && DISPLAY_REGION == 2 && ENGINE_REGION == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_what_the_host_has_there() {
        let config = config_space(64 << 20).unwrap();
        assert_eq!(config.identity(), IDENTITY);
        for (at, bytes) in HOST {
            let at = usize::try_from(at).unwrap();
            assert_eq!(config.bytes()[at..at + bytes.len()], *bytes);
        }
        assert_eq!(config.capabilities().count(), 4);
        assert_eq!(bridge(LPC_BRIDGE)[..4], [0x86, 0x80, 0x06, 0xa3]);
    }
}
