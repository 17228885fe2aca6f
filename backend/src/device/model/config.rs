// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the model GPU shows of itself in config space, and its ROM.
//!
//! The identity is that of QEMU's `bochs-display`, so that the `bochs` driver of a stock Linux guest binds.

use super::{DISPLAY_REGION, ENGINE_REGION, VRAM_REGION, bochs, registers};
use crate::pci::{
    Bar, BarOffset, Capability, ConfigSpaceBuilder, Express, Identity, Msi, MsiX, rom,
};

/// Who the device says it is.
pub const IDENTITY: Identity = Identity {
    vendor_id: 0x1234,
    device_id: 0x1111,
    // From revision 2 on the driver looks for the extended registers.
    revision: 2,
    // Display controller, other.
    class_code: 0x03_8000,
    subsystem_vendor_id: 0x1af4,
    subsystem_id: 0x1100,
};

/// INTA.
const INTERRUPT_PIN: u8 = 1;

/// The config space of a model GPU with this much VRAM, to build or to add to.
#[must_use]
pub fn config_space(vram_size: u64) -> ConfigSpaceBuilder {
    let rom_size = rom::bar_size(rom::build(&IDENTITY).len());
    let builder = ConfigSpaceBuilder::new(IDENTITY)
        .interrupt_pin(INTERRUPT_PIN)
        .bar(bar(VRAM_REGION), Bar::memory64(vram_size).prefetchable())
        .bar(bar(DISPLAY_REGION), Bar::memory32(bochs::BAR_SIZE))
        .bar(bar(ENGINE_REGION), Bar::memory32(registers::BAR_SIZE))
        .capability(Capability::PowerManagement)
        .capability(Capability::Msi(MSI))
        .capability(Capability::Express(Express::default()))
        .capability(Capability::MsiX(MSIX));
    match rom_size {
        Some(size) => builder.rom(size),
        None => builder,
    }
}

pub(super) const MSI: Msi = Msi {
    // Fits: there are 8.
    vectors: registers::VECTORS.to_le_bytes()[0],
    address_64bit: true,
    per_vector_masking: true,
};

pub(super) const MSIX: MsiX = MsiX {
    vectors: registers::VECTORS,
    table: BarOffset {
        bar: bar(ENGINE_REGION),
        offset: registers::MSIX_TABLE,
    },
    pba: BarOffset {
        bar: bar(ENGINE_REGION),
        offset: registers::MSIX_PBA,
    },
};

/// BAR n is region n.
const fn bar(region: u32) -> u8 {
    region.to_le_bytes()[0]
}

/// The contents of the ROM region: one image that does nothing, padded to the size of the BAR.
#[must_use]
pub fn rom(identity: &Identity) -> Vec<u8> {
    let mut image = rom::build(identity);
    let size = rom::bar_size(image.len()).and_then(|size| usize::try_from(size).ok());
    image.resize(size.unwrap_or(image.len()), 0);
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::registers::{PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM};

    #[test]
    fn the_config_space_is_the_contract() {
        let config = config_space(64 << 20).build().unwrap();
        assert_eq!(config.identity(), IDENTITY);
        assert_eq!(config.interrupt_pin(), 1);
        assert_eq!(config.bytes().len(), 4096);
        let ids: Vec<_> = config.capabilities().map(|(id, _)| id).collect();
        assert_eq!(
            ids,
            [
                PCI_CAP_ID_PM,
                PCI_CAP_ID_MSI,
                PCI_CAP_ID_EXP,
                PCI_CAP_ID_MSIX
            ]
        );
        let bars: Vec<_> = config
            .bars()
            .map(|(index, state)| (index, state.bar))
            .collect();
        assert_eq!(
            bars,
            [
                (0, Bar::memory64(64 << 20).prefetchable()),
                (2, Bar::memory32(0x1000)),
                (4, Bar::memory32(0x4000)),
            ]
        );
        let msix = config.msix().unwrap();
        assert_eq!(msix.table_size, 8);
        assert_eq!((msix.table.bar, msix.table.offset), (4, 0x2000));
        assert_eq!((msix.pba.bar, msix.pba.offset), (4, 0x3000));
        assert_eq!(config.rom_size(), Some(0x800));
    }

    #[test]
    fn every_vram_size_fits_a_bar() {
        for shift in 20..=34 {
            config_space(1 << shift).build().unwrap();
        }
    }

    #[test]
    fn the_rom_is_valid_and_fills_its_bar() {
        let bytes = rom(&IDENTITY);
        assert_eq!(bytes.len(), 0x800);
        let images = rom::validate(&bytes).unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].device_id, IDENTITY.device_id);
    }
}
