// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the registers say at this moment, as types: the reading side of [`ConfigSpace`].

use super::{
    Bar, BarOffset, Capabilities, ConfigSpace, ExtendedCapabilities,
    bar::{BAR_COUNT, offset},
    registers::*,
};

/// Who the function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor; 0xffff is no device.
    pub vendor_id: u16,
    /// Device.
    pub device_id: u16,
    /// Revision of the device.
    pub revision: u8,
    /// Base class, subclass and programming interface from high to low, 24 bits: 0x03_0000 is VGA.
    pub class_code: u32,
    /// Vendor of the board.
    pub subsystem_vendor_id: u16,
    /// Board.
    pub subsystem_id: u16,
}

/// The Command register, as far as someone must act on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// I/O BARs are decoded.
    pub io: bool,
    /// Memory BARs are decoded.
    pub memory: bool,
    /// DMA and message interrupts are allowed.
    pub bus_master: bool,
    /// INTx must stay deasserted.
    pub intx_disable: bool,
}

/// The power states that the function has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PowerState {
    /// Working.
    #[default]
    D0,
    /// D1, D2 or D3hot: only configuration space answers.
    Asleep,
}

/// The MSI capability as programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiState {
    /// MSI is enabled.
    pub enabled: bool,
    /// Vectors granted, never more than the function has: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// The address has 64 bits.
    pub address_64bit: bool,
    /// Where the message is written.
    pub address: u64,
    /// Data of vector 0.
    pub data: u16,
    /// Masked vectors, one bit each; 0 without per-vector masking.
    pub mask: u32,
    /// Pending vectors, one bit each; 0 without per-vector masking.
    pub pending: u32,
}

impl MsiState {
    /// Address and data of one vector; `None` if it was not granted. The function puts the vector
    /// number into the low bits of the data (PCI 3.0, 6.8.1.6).
    pub fn message(&self, vector: u8) -> Option<(u64, u32)> {
        let low = u32::from(self.vectors).checked_sub(1)?;
        (vector < self.vectors).then_some((
            self.address,
            u32::from(self.data) & !low | u32::from(vector),
        ))
    }
}

/// The MSI-X capability as programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixState {
    /// MSI-X is enabled.
    pub enabled: bool,
    /// All vectors are masked, whatever their own mask bit says.
    pub function_mask: bool,
    /// Vectors in the table, 1 to 2048.
    pub table_size: u16,
    /// Where the table is.
    pub table: BarOffset,
    /// Where the pending bits are.
    pub pba: BarOffset,
}

/// A BAR and where the guest put it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarState {
    /// What it is.
    pub bar: Bar,
    /// Its address now, decoded only while [`Command`] says so. All ones of the mask during sizing.
    pub address: u64,
}

impl BarState {
    /// The next register is its upper half.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.bar.slots() == 2
    }
}

/// The expansion ROM register as programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RomState {
    /// Bytes decoded; a power of two.
    pub size: u32,
    /// Its address now.
    pub address: u32,
    /// Decoded, if memory decoding is on too.
    pub enabled: bool,
}

impl ConfigSpace {
    /// The ids and class as the guest reads them.
    pub fn identity(&self) -> Identity {
        Identity {
            vendor_id: self.u16_at(PCI_VENDOR_ID),
            device_id: self.u16_at(PCI_DEVICE_ID),
            revision: self.u8_at(PCI_REVISION_ID),
            class_code: self.u32_at(PCI_REVISION_ID) >> 8,
            subsystem_vendor_id: self.u16_at(PCI_SUBSYSTEM_VENDOR_ID),
            subsystem_id: self.u16_at(PCI_SUBSYSTEM_ID),
        }
    }

    /// The Command register.
    pub fn command(&self) -> Command {
        let command = self.u16_at(PCI_COMMAND);
        Command {
            io: command & PCI_COMMAND_IO != 0,
            memory: command & PCI_COMMAND_MEMORY != 0,
            bus_master: command & PCI_COMMAND_MASTER != 0,
            intx_disable: command & PCI_COMMAND_INTX_DISABLE != 0,
        }
    }

    /// The INTx pin: 0 none, 1 INTA to 4 INTD.
    pub fn interrupt_pin(&self) -> u8 {
        self.u8_at(PCI_INTERRUPT_PIN)
    }

    /// The power state; always D0 without the capability.
    pub fn power_state(&self) -> PowerState {
        let state = self.places.pm.map_or(0, |pm| self.u16_at(pm + PCI_PM_CTRL));
        match state & PCI_PM_CTRL_STATE_MASK {
            0 => PowerState::D0,
            _ => PowerState::Asleep,
        }
    }

    /// The MSI capability; `None` without one.
    pub fn msi(&self) -> Option<MsiState> {
        let at = self.places.msi?;
        let flags = self.u16_at(at + PCI_MSI_FLAGS);
        let address_64bit = flags & PCI_MSI_FLAGS_64BIT != 0;
        let (high, data, mask) = if address_64bit {
            (
                self.u32_at(at + PCI_MSI_ADDRESS_HI),
                PCI_MSI_DATA_64,
                PCI_MSI_MASK_64,
            )
        } else {
            (0, PCI_MSI_DATA_32, PCI_MSI_MASK_32)
        };
        let maskable = flags & PCI_MSI_FLAGS_MASKBIT != 0;
        let if_maskable = |offset| if maskable { self.u32_at(offset) } else { 0 };
        // Software may grant more than there are; both fields have reserved values above 5.
        let capable = (flags & PCI_MSI_FLAGS_QMASK) >> 1;
        let granted = (flags & PCI_MSI_FLAGS_QSIZE) >> 4;
        Some(MsiState {
            enabled: flags & PCI_MSI_FLAGS_ENABLE != 0,
            vectors: 1 << granted.min(capable).min(5),
            address_64bit,
            address: u64::from(high) << 32 | u64::from(self.u32_at(at + PCI_MSI_ADDRESS_LO)),
            data: self.u16_at(at + data),
            mask: if_maskable(at + mask),
            pending: if_maskable(at + mask + 4),
        })
    }

    /// How many MSI vectors the function asks for: 0 without MSI, else 1, 2, 4, 8, 16 or 32.
    pub fn msi_capable(&self) -> u8 {
        let flags = self.places.msi.map(|at| self.u16_at(at + PCI_MSI_FLAGS));
        flags.map_or(0, |flags| 1 << ((flags & PCI_MSI_FLAGS_QMASK) >> 1).min(5))
    }

    /// The MSI-X capability; `None` without one.
    pub fn msix(&self) -> Option<MsixState> {
        let at = self.places.msix?;
        let flags = self.u16_at(at + PCI_MSIX_FLAGS);
        let bar_offset = |register| {
            let value = self.u32_at(at + register);
            let [low, ..] = (value & PCI_MSIX_BIR).to_le_bytes();
            BarOffset {
                bar: low,
                offset: value & !PCI_MSIX_BIR,
            }
        };
        Some(MsixState {
            enabled: flags & PCI_MSIX_FLAGS_ENABLE != 0,
            function_mask: flags & PCI_MSIX_FLAGS_MASKALL != 0,
            table_size: (flags & PCI_MSIX_FLAGS_QSIZE) + 1,
            table: bar_offset(PCI_MSIX_TABLE),
            pba: bar_offset(PCI_MSIX_PBA),
        })
    }

    /// BAR `index`; `None` if there is none, or if it is the upper half of the one before.
    pub fn bar(&self, index: u8) -> Option<BarState> {
        let bar = self.bars.get(usize::from(index)).copied().flatten()?;
        let at = offset(index);
        let address = bar.address(self.u32_at(at), self.u32_at(at + 4));
        Some(BarState { bar, address })
    }

    /// All BARs with their indices.
    pub fn bars(&self) -> impl Iterator<Item = (u8, BarState)> + '_ {
        (0..BAR_COUNT).filter_map(|index| Some((index, self.bar(index)?)))
    }

    /// Bytes of expansion ROM that are decoded; `None` without one.
    pub fn rom_size(&self) -> Option<u32> {
        self.rom_size
    }

    /// The expansion ROM register; `None` without one.
    pub fn rom(&self) -> Option<RomState> {
        let size = self.rom_size?;
        let value = self.u32_at(PCI_ROM_ADDRESS);
        Some(RomState {
            size,
            address: value & !(size - 1),
            enabled: value & PCI_ROM_ADDRESS_ENABLE != 0,
        })
    }

    /// Whether the function is a device behind a PCI Express link, and not a part of the processor or the chipset.
    pub fn is_express_endpoint(&self) -> bool {
        let express = self.capabilities().find(|(id, _)| *id == PCI_CAP_ID_EXP);
        express.is_some_and(|(_, at)| {
            let kind = (self.u16_at(at + PCI_EXP_FLAGS) & PCI_EXP_FLAGS_TYPE) >> 4;
            kind != PCI_EXP_TYPE_RC_END
        })
    }

    /// The standard capabilities as `(id, offset)`, in list order.
    pub fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::new(self.bytes())
    }

    /// The extended capabilities as `(id, offset)`, in list order.
    pub fn extended_capabilities(&self) -> ExtendedCapabilities<'_> {
        ExtendedCapabilities::new(self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Capability, ConfigSpaceBuilder, Msi};

    fn with_msi(msi: Msi) -> ConfigSpace {
        ConfigSpaceBuilder::new(Identity::default())
            .capability(Capability::Msi(msi))
            .build()
            .unwrap()
    }

    #[test]
    fn msi_grants_are_clamped_to_what_the_function_has() {
        let mut config = with_msi(Msi {
            vectors: 4,
            address_64bit: true,
            per_vector_masking: true,
        });
        for (granted, vectors) in [(0_u8, 1), (1, 2), (2, 4), (3, 4), (5, 4), (7, 4)] {
            config.write(0x42, &[granted << 4 | 1]).unwrap();
            assert_eq!(config.msi().unwrap().vectors, vectors);
            assert!(config.msi().unwrap().enabled);
        }
    }

    #[test]
    fn msi_layouts() {
        for (address_64bit, high, data) in [(false, 0, 0x48), (true, 1, 0x4c)] {
            let mut config = with_msi(Msi {
                vectors: 2,
                address_64bit,
                per_vector_masking: true,
            });
            config.write(0x44, &0xfee0_1003_u32.to_le_bytes()).unwrap();
            if address_64bit {
                config.write(0x48, &[1]).unwrap();
            }
            config.write(data, &[0x21, 0x40]).unwrap();
            config.write(data + 4, &[0xff; 8]).unwrap();
            config.set_msi_pending(u32::MAX);
            config.write(0x42, &[0x11]).unwrap();
            let msi = config.msi().unwrap();
            assert_eq!(msi.address, high << 32 | 0xfee0_1000);
            assert_eq!((msi.mask, msi.pending), (3, 3));
            assert_eq!(msi.message(0), Some((msi.address, 0x4020)));
            assert_eq!(msi.message(1), Some((msi.address, 0x4021)));
            assert_eq!(msi.message(2), None);
        }
    }

    #[test]
    fn msi_without_masking_has_no_mask() {
        let mut config = with_msi(Msi {
            vectors: 1,
            address_64bit: false,
            per_vector_masking: false,
        });
        config.set_msi_pending(1);
        config.write(0x40, &[0xff; 32]).unwrap();
        let msi = config.msi().unwrap();
        assert_eq!((msi.mask, msi.pending, msi.vectors), (0, 0, 1));
    }
}
