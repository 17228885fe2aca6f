// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A config space in front of a real device: each bit is either the device's own, read when the guest
//! reads it, or composed here.
//!
//! ```text
//! device, live   ─┐
//!                 ├─ per-bit mask ─► what the guest reads
//! composed bits  ─┘
//! a guest's write ─► device (without Initiate FLR) and the bits kept here, for `Changes`
//! ```
//!
//! vfio-pci virtualises BARs, power state and hidden capabilities itself; those stay live. Composed are the
//! MSI registers it rewrites (control, address, data) and MSI-X control: what the guest programs there is
//! acted upon here, not by the device. The bytes come from a device and are not trusted.

use super::{
    Bar, BarError, Capabilities, Changes, ConfigSpace, OutOfRange, Register, RegisterBlock,
    bar::{BAR_COUNT, offset as bar_offset},
    range,
    registers::*,
};

/// Why there can be no config space in front of these bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// Neither a conventional nor an extended config space.
    #[error("Config space of {0} bytes: must be {PCI_CFG_SPACE_SIZE} to {PCI_CFG_SPACE_EXP_SIZE}")]
    Size(usize),
    /// All ones: nobody answers.
    #[error("The device does not answer (vendor id 0xffff): it is powered down or gone")]
    NoDevice,
    /// A bridge, say.
    #[error("Header type {0:#04x}: only ordinary functions (type 0) can be served")]
    HeaderType(u8),
    /// A BAR cannot be what the device says.
    #[error("BAR {index} of the device")]
    Bar {
        /// Which one.
        index: u8,
        /// What is wrong with it.
        #[source]
        source: BarError,
    },
    /// A 64-bit BAR without room for its upper half.
    #[error("BAR {0} of the device has 64 bits and no upper half")]
    NoUpperHalf(u8),
}

/// Sizes in bytes that only the owner of the device knows; 0 for what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSizes {
    /// By BAR index.
    pub bars: [u64; BAR_COUNT as usize],
    /// The expansion ROM.
    pub rom: u64,
}

/// Builds the registers that are kept here beside the device's.
struct Overlay<'a> {
    bytes: &'a [u8],
    block: RegisterBlock,
    /// Set bits are the device's own.
    live: Vec<u8>,
}

impl ConfigSpace {
    /// A config space in front of a device whose config space reads `bytes` now.
    ///
    /// # Errors
    /// [`OverlayError`] for bytes that no ordinary function has.
    pub fn from_device(bytes: &[u8], sizes: &DeviceSizes) -> Result<Self, OverlayError> {
        let smallest = usize::from(PCI_CFG_SPACE_SIZE);
        if !(smallest..=PCI_CFG_SPACE_EXP_SIZE.into()).contains(&bytes.len()) {
            return Err(OverlayError::Size(bytes.len()));
        }
        let mut overlay = Overlay {
            bytes,
            block: RegisterBlock::new(bytes.len(), &[]),
            live: vec![0xff; bytes.len()],
        };
        overlay.block.put_bytes(0, bytes);
        if overlay.u16_at(PCI_VENDOR_ID) == 0xffff {
            return Err(OverlayError::NoDevice);
        }
        let kind = overlay.u8_at(PCI_HEADER_TYPE) & !PCI_HEADER_TYPE_MULTI_FUNCTION;
        if kind != 0 {
            return Err(OverlayError::HeaderType(kind));
        }
        let bars = overlay.header(sizes)?;
        overlay.capabilities();
        let rom = u32::try_from(sizes.rom).ok().filter(|size| *size > 0);
        let mut space = Self::new(overlay.block.into_rules(), bars, rom);
        space.live = Some(overlay.live);
        space.refresh(bytes);
        Ok(space)
    }

    /// Whether some bits are a device's own, so that a read must ask it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Puts the composed bits over what the device answered at `offset`.
    ///
    /// # Errors
    /// A range outside the space.
    pub fn compose_over(&self, offset: u64, data: &mut [u8]) -> Result<(), OutOfRange> {
        let range = range::checked(offset, data.len(), self.bytes().len())?;
        let live = self.live.as_deref().unwrap_or_default();
        for (index, byte) in range.zip(data) {
            let mask = live.get(index).copied().unwrap_or(0);
            let composed = self.bytes().get(index).copied().unwrap_or(0);
            *byte = *byte & mask | composed & !mask;
        }
        Ok(())
    }

    /// A write without the bits that would start a function level reset: that is for [`Changes::FLR`].
    #[must_use]
    pub fn without_flr(&self, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut forwarded = data.to_vec();
        if let Ok(range) = range::checked(offset, data.len(), self.bytes().len()) {
            for (byte, flr) in forwarded.iter_mut().zip(self.flr_bits(range)) {
                *byte &= !flr;
            }
        }
        forwarded
    }

    /// Takes the device's own bits over from `bytes`, after something changed them behind our back.
    pub fn refresh(&mut self, bytes: &[u8]) {
        let Some(live) = self.live.take() else {
            return;
        };
        for ((value, byte), mask) in self.values_mut().iter_mut().zip(bytes).zip(&live) {
            *value = *value & !mask | byte & mask;
        }
        self.live = Some(live);
    }
}

impl Overlay<'_> {
    fn u8_at(&self, offset: u16) -> u8 {
        self.bytes.get(usize::from(offset)).copied().unwrap_or(0)
    }

    fn u16_at(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8_at(offset), self.u8_at(offset + 1)])
    }

    fn u32_at(&self, offset: u16) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    /// Command, BARs and ROM: live, and followed.
    fn header(
        &mut self,
        sizes: &DeviceSizes,
    ) -> Result<[Option<Bar>; BAR_COUNT as usize], OverlayError> {
        const COMMAND: u16 = PCI_COMMAND_IO
            | PCI_COMMAND_MEMORY
            | PCI_COMMAND_MASTER
            | PCI_COMMAND_PARITY
            | PCI_COMMAND_SERR
            | PCI_COMMAND_INTX_DISABLE;
        self.block.put(
            Register::word(PCI_COMMAND, 0)
                .writable(COMMAND.into())
                .reports(Changes::COMMAND),
        );
        let mut bars = [None; BAR_COUNT as usize];
        let mut upper = None;
        for (index, &size) in (0..BAR_COUNT).zip(&sizes.bars) {
            if size == 0 || upper == Some(index) {
                continue;
            }
            let low = self.u32_at(bar_offset(index));
            let bar = if low & PCI_BASE_ADDRESS_SPACE_IO != 0 {
                Bar::io(size)
            } else if low & PCI_BASE_ADDRESS_MEM_TYPE_64 != 0 {
                Bar::memory64(size)
            } else {
                Bar::memory32(size)
            };
            let prefetchable = bar.is_memory() && low & PCI_BASE_ADDRESS_MEM_PREFETCH != 0;
            let bar = if prefetchable {
                bar.prefetchable()
            } else {
                bar
            };
            bar.check()
                .map_err(|source| OverlayError::Bar { index, source })?;
            if bar.slots() == 2 {
                let next = index + 1;
                let free = sizes.bars.get(usize::from(next)).is_some_and(|s| *s == 0);
                if !free {
                    return Err(OverlayError::NoUpperHalf(index));
                }
                upper = Some(next);
            }
            bar.registers(index).for_each(|r| self.block.put(r));
            if let Some(slot) = bars.get_mut(usize::from(index)) {
                *slot = Some(bar);
            }
        }
        if let Some(mask) = u32::try_from(sizes.rom)
            .ok()
            .filter(|s| s.is_power_of_two())
        {
            self.block.put(
                Register::dword(PCI_ROM_ADDRESS, 0)
                    .writable(!(mask - 1) | PCI_ROM_ADDRESS_ENABLE)
                    .reports(Changes::ROM),
            );
        }
        Ok(bars)
    }

    /// The first of each kind, if all of it is inside.
    fn capabilities(&mut self) {
        let mut seen = Vec::new();
        for (id, at) in Capabilities::new(self.bytes) {
            let len = match id {
                PCI_CAP_ID_PM => PCI_PM_SIZEOF,
                PCI_CAP_ID_MSI => PCI_MSI_MASK_64,
                PCI_CAP_ID_MSIX => PCI_CAP_MSIX_SIZEOF,
                PCI_CAP_ID_EXP => PCI_EXP_DEVCTL + 2,
                PCI_CAP_ID_AF => PCI_AF_SIZEOF,
                _ => continue,
            };
            if seen.contains(&id) || at + len > PCI_CFG_SPACE_SIZE {
                continue;
            }
            seen.push(id);
            match id {
                PCI_CAP_ID_PM => self.power_management(at),
                PCI_CAP_ID_MSI => self.msi(at),
                PCI_CAP_ID_MSIX => self.msix(at),
                PCI_CAP_ID_EXP => self.express(at),
                _ => self.advanced_features(at),
            }
        }
    }

    fn power_management(&mut self, at: u16) {
        let control = self.u16_at(at + PCI_PM_CTRL) & !PCI_PM_CTRL_STATE_MASK;
        self.block.put(
            Register::word(at + PCI_PM_CTRL, control)
                .writable(PCI_PM_CTRL_STATE_MASK.into())
                .reports(Changes::POWER_STATE),
        );
    }

    /// Control, address and data are composed; mask and pending bits are the device's, which holds a masked
    /// vector back itself.
    fn msi(&mut self, at: u16) {
        const CONTROL: u16 = PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE;
        let flags = self.u16_at(at + PCI_MSI_FLAGS);
        let wide = flags & PCI_MSI_FLAGS_64BIT != 0;
        let (data, mask) = if wide {
            (PCI_MSI_DATA_64, PCI_MSI_MASK_64)
        } else {
            (PCI_MSI_DATA_32, PCI_MSI_MASK_32)
        };
        let mut registers = vec![
            Register::word(PCI_MSI_FLAGS, flags & !CONTROL).writable(CONTROL.into()),
            Register::dword(PCI_MSI_ADDRESS_LO, 0).writable(!3),
            Register::word(data, 0).writable(0xffff),
        ];
        if wide {
            registers.push(Register::dword(PCI_MSI_ADDRESS_HI, 0).writable(!0));
        }
        for register in registers {
            self.compose(at, register.reports(Changes::MSI));
        }
        if flags & PCI_MSI_FLAGS_MASKBIT != 0 && at + mask + 8 <= PCI_CFG_SPACE_SIZE {
            let register = Register::dword(at + mask, 0).writable(!0);
            self.block.put(register.reports(Changes::MSI));
        }
    }

    fn msix(&mut self, at: u16) {
        const CONTROL: u16 = PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL;
        let flags = self.u16_at(at + PCI_MSIX_FLAGS) & !CONTROL;
        self.compose(
            at,
            Register::word(PCI_MSIX_FLAGS, flags)
                .writable(CONTROL.into())
                .reports(Changes::MSIX),
        );
    }

    fn express(&mut self, at: u16) {
        if self.u32_at(at + PCI_EXP_DEVCAP) & PCI_EXP_DEVCAP_FLR != 0 {
            let control = self.u16_at(at + PCI_EXP_DEVCTL) & !PCI_EXP_DEVCTL_BCR_FLR;
            self.block.put(
                Register::word(at + PCI_EXP_DEVCTL, control)
                    .initiates_flr(PCI_EXP_DEVCTL_BCR_FLR.into()),
            );
        }
    }

    fn advanced_features(&mut self, at: u16) {
        if self.u8_at(at + PCI_AF_CAP) & PCI_AF_CAP_FLR != 0 {
            let register = Register::byte(at + PCI_AF_CTRL, 0);
            self.block
                .put(register.initiates_flr(PCI_AF_CTRL_FLR.into()));
        }
    }

    /// Puts a register of the capability at `at` whose bits are ours.
    fn compose(&mut self, at: u16, register: Register) {
        let register = register.moved_by(at);
        for index in register.bytes() {
            if let Some(mask) = self.live.get_mut(index) {
                *mask = 0;
            }
        }
        self.block.put(register);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pci::BarOffset;
    use crate::pci::{Capability, ConfigSpaceBuilder, Express, Identity, Msi, MsiX, PowerState};

    const MSI_AT: u16 = 0x60;
    const MSIX_AT: u16 = 0x80;

    /// What a real device might read like, made by the builder and then moved about.
    fn device() -> (Vec<u8>, DeviceSizes) {
        let config = ConfigSpaceBuilder::new(Identity {
            vendor_id: 0x1af4,
            device_id: 0x1050,
            ..Identity::default()
        })
        .interrupt_pin(1)
        .bar(0, Bar::memory64(1 << 20).prefetchable())
        .bar(2, Bar::memory32(0x4000))
        .bar(4, Bar::io(0x20))
        .rom(0x1_0000)
        .capability_at(0x40, Capability::PowerManagement)
        .capability_at(
            MSI_AT,
            Capability::Msi(Msi {
                vectors: 4,
                address_64bit: true,
                per_vector_masking: true,
            }),
        )
        .capability_at(
            MSIX_AT,
            Capability::MsiX(MsiX {
                vectors: 4,
                table: BarOffset { bar: 2, offset: 0 },
                pba: BarOffset {
                    bar: 2,
                    offset: 0x2000,
                },
            }),
        )
        .capability_at(0xa0, Capability::Express(Express::default()))
        .build()
        .unwrap();
        let mut sizes = DeviceSizes::default();
        sizes.bars[0] = 1 << 20;
        sizes.bars[2] = 0x4000;
        sizes.bars[4] = 0x20;
        sizes.rom = 0x1_0000;
        (config.bytes().to_vec(), sizes)
    }

    fn overlay() -> (Vec<u8>, ConfigSpace) {
        let (bytes, sizes) = device();
        let space = ConfigSpace::from_device(&bytes, &sizes).unwrap();
        (bytes, space)
    }

    #[test]
    fn types_are_read_off_the_device() {
        let (_, space) = overlay();
        assert!(space.is_live());
        let bars: Vec<_> = space
            .bars()
            .map(|(index, state)| (index, state.bar))
            .collect();
        assert_eq!(
            bars,
            [
                (0, Bar::memory64(1 << 20).prefetchable()),
                (2, Bar::memory32(0x4000)),
                (4, Bar::io(0x20)),
            ]
        );
        assert_eq!(space.rom_size(), Some(0x1_0000));
        assert_eq!(space.msix().unwrap().table_size, 4);
    }

    #[test]
    fn composed_bits_lie_over_live_ones() {
        let (_, mut space) = overlay();
        let changes = space.write(u64::from(MSI_AT) + 2, &[0x21]).unwrap();
        assert_eq!(changes, Changes::MSI);
        assert!(space.msi().unwrap().enabled);
        // The device says something else everywhere: only the composed bits are ours.
        let mut read = [0xee; 256];
        space.compose_over(0, &mut read).unwrap();
        assert_eq!(read[..4], [0xee; 4], "identity is live");
        assert_eq!(
            read[usize::from(MSI_AT) + 2] & 0x71,
            0x21,
            "control is ours"
        );
        assert_eq!(read[usize::from(MSI_AT) + 0x10], 0xee, "mask bits are live");
        assert_eq!(read[usize::from(MSIX_AT) + 4], 0xee, "table offset is live");
        assert_eq!(read[usize::from(MSIX_AT) + 3] & 0xc0, 0, "control is ours");
        assert!(space.compose_over(4095, &mut [0; 2]).is_err());
    }

    #[test]
    fn what_a_guest_writes_is_followed() {
        let (_, mut space) = overlay();
        assert_eq!(space.write(4, &[0x07]).unwrap(), Changes::COMMAND);
        assert!(space.command().memory && space.command().io);
        assert!(space.write(0x44, &[3]).unwrap().power_state());
        assert_eq!(space.power_state(), PowerState::D3Hot);
        assert!(space.write(0x10, &[0, 0, 0x10, 0xfe]).unwrap().bars());
        assert!(space.write(0x30, &[1, 0, 0x20, 0xfe]).unwrap().rom());
        assert!(space.write(u64::from(MSIX_AT) + 3, &[0x80]).unwrap().msix());
        space.reset();
        assert_eq!(space.power_state(), PowerState::D0);
        assert!(!space.command().memory && !space.msix().unwrap().enabled);
    }

    #[test]
    fn initiate_flr_is_reported_and_not_forwarded() {
        let (_, mut space) = overlay();
        let control = 0xa0 + u64::from(PCI_EXP_DEVCTL);
        assert_eq!(space.without_flr(control, &[0x1f, 0x88]), [0x1f, 0x08]);
        assert_eq!(
            space.without_flr(control - 1, &[9, 0x1f, 0x88]),
            [9, 0x1f, 0x08]
        );
        assert!(space.write(control, &[0x1f, 0x88]).unwrap().flr());
    }

    #[test]
    fn refresh_takes_live_bits_only() {
        let (mut bytes, mut space) = overlay();
        space.write(u64::from(MSIX_AT) + 3, &[0x80]).unwrap();
        bytes[4] = 0x06;
        bytes[usize::from(MSIX_AT) + 3] = 0;
        space.refresh(&bytes);
        assert!(space.command().memory && space.command().bus_master);
        assert!(space.msix().unwrap().enabled);
    }

    #[test]
    fn what_is_no_function_is_refused() {
        let (bytes, sizes) = device();
        let error = |bytes: &[u8], sizes| ConfigSpace::from_device(bytes, &sizes).unwrap_err();
        assert_eq!(error(&bytes[..128], sizes), OverlayError::Size(128));
        assert_eq!(error(&[0xff; 256], sizes), OverlayError::NoDevice);
        let mut bridge = bytes.clone();
        bridge[0x0e] = 0x81;
        assert_eq!(error(&bridge, sizes), OverlayError::HeaderType(1));
        let mut odd = sizes;
        odd.bars[2] = 0x3000;
        assert!(matches!(
            error(&bytes, odd),
            OverlayError::Bar { index: 2, .. }
        ));
        let mut crowded = sizes;
        crowded.bars[1] = 0x1000;
        assert_eq!(error(&bytes, crowded), OverlayError::NoUpperHalf(0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 256..=4096),
            sizes in proptest::array::uniform6(prop_oneof![Just(0_u64), Just(0x1000), any::<u64>()]),
            rom in any::<u64>(),
            writes in proptest::collection::vec((0..256_u64, any::<[u8; 4]>()), 0..20),
        ) {
            let sizes = DeviceSizes { bars: sizes, rom };
            let mut bytes = bytes;
            bytes[0x0e] = 0;
            bytes[6] |= 0x10;
            if let Ok(mut space) = ConfigSpace::from_device(&bytes, &sizes) {
                for (offset, data) in writes {
                    let _ = space.without_flr(offset, &data);
                    let _ = space.write(offset, &data);
                }
                space.reset();
                let _ = (space.msi(), space.msix(), space.rom(), space.bars().count());
                let mut read = vec![0; bytes.len()];
                space.compose_over(0, &mut read).unwrap();
            }
        }
    }
}
