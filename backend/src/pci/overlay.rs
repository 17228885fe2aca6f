// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A config space in front of a real device: each bit is either the device's own, read when the guest
//! reads it, or composed here.
//!
//! ```text
//! device, live   ─┐
//!                 ├─ per-bit mask ─► what the guest reads
//! composed bits  ─┘
//! a guest's write ─► device (without Initiate FLR, and without what is ours alone) and the bits kept here,
//!                    for `Changes`
//! ```
//!
//! vfio-pci virtualises BARs and power state itself; those stay live. Composed are the headers of both
//! capability lists (`lists.rs`), the MSI registers it rewrites (control, address, data) and MSI-X control: what
//! the guest programs there is acted upon here, not by the device. The bytes come from a device and are not
//! trusted.

use std::borrow::Cow;

use super::{
    Bar, BarError, Changes, ConfigSpace, OutOfRange, Register, RegisterBlock,
    bar::{BAR_COUNT, offset as bar_offset},
    lists::{Entry, Lists},
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
        let lists = Lists::of(bytes);
        overlay.capabilities(&lists.standard);
        let rom = u32::try_from(sizes.rom).ok().filter(|size| *size > 0);
        let mut space = Self::new(overlay.block.into_rules(), bars, rom);
        space.live = Some(overlay.live);
        space.list_faults = lists.faults;
        space.link(&lists);
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

    /// The pieces of a write that are for the device, each with its offset: without bytes that are ours alone, and
    /// without the bits that would start a function level reset, which is for [`Changes::FLR`].
    pub fn for_device<'a>(
        &'a self,
        offset: u64,
        data: &'a [u8],
    ) -> impl Iterator<Item = (u64, Cow<'a, [u8]>)> + 'a {
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        let withheld = move |index: usize| self.is_withheld(first.saturating_add(index));
        let mut rest = 0;
        std::iter::from_fn(move || {
            while rest < data.len() && withheld(rest) {
                rest += 1;
            }
            let start = rest;
            while rest < data.len() && !withheld(rest) {
                rest += 1;
            }
            let piece = data.get(start..rest).filter(|piece| !piece.is_empty())?;
            let at = offset.saturating_add(start as u64);
            Some((at, self.without_flr(at, piece)))
        })
    }

    /// A write without the bits that would start a function level reset.
    fn without_flr<'a>(&self, offset: u64, data: &'a [u8]) -> Cow<'a, [u8]> {
        // A range that is not there has no such bits; the write itself is refused elsewhere.
        let Ok(range) = range::checked(offset, data.len(), self.bytes().len()) else {
            return Cow::Borrowed(data);
        };
        let mut bits = data.iter().zip(self.flr_bits(range.clone()));
        if bits.all(|(byte, flr)| byte & flr == 0) {
            return Cow::Borrowed(data);
        }
        let kept = data.iter().zip(self.flr_bits(range));
        Cow::Owned(kept.map(|(byte, flr)| byte & !flr).collect())
    }

    /// Bits that a guest writes and that are followed here, as `(offset, value at reset, mask)`.
    pub(crate) fn followed(&self) -> impl Iterator<Item = (usize, u8, u8)> + '_ {
        let rules = self.rules().iter().enumerate();
        rules.filter_map(|(at, rule)| (rule.write != 0).then_some((at, rule.reset, rule.write)))
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

    /// Those that are followed here.
    fn capabilities(&mut self, list: &[Entry]) {
        for entry in list {
            let at = entry.at;
            match u8::try_from(entry.id) {
                Ok(PCI_CAP_ID_PM) => self.power_management(at),
                Ok(PCI_CAP_ID_MSI) => self.msi(at),
                Ok(PCI_CAP_ID_MSIX) => self.msix(at),
                Ok(PCI_CAP_ID_EXP) => self.express(at),
                Ok(PCI_CAP_ID_AF) => self.advanced_features(at),
                _ => {}
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
mod tests;
