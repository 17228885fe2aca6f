// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Composes a configuration space: lays out the header and both capability lists, and refuses what
//! no function can be. All checks are made in [`ConfigSpaceBuilder::build`], so that one place
//! reports them.

use super::{
    Bar, BarOffset, BuildError, Capability, Changes, ConfigSpace, ExtendedCapability, Identity,
    MsiX, Register, RegisterBlock,
    bar::BAR_COUNT,
    layout::{NoPlace, overlaps, place},
    registers::*,
};

/// What to put into a configuration space. The lists come out in the order given.
#[derive(Clone, Debug)]
pub struct ConfigSpaceBuilder {
    identity: Identity,
    interrupt_pin: u8,
    bars: Vec<(u8, Bar)>,
    rom_size: Option<u32>,
    capabilities: Vec<(Option<u16>, Capability)>,
    extended: Vec<ExtendedCapability>,
}

impl ConfigSpaceBuilder {
    /// A function with nothing but a header.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            interrupt_pin: 0,
            bars: Vec::new(),
            rom_size: None,
            capabilities: Vec::new(),
            extended: Vec::new(),
        }
    }

    /// INTx: 0 none, 1 INTA to 4 INTD.
    pub fn interrupt_pin(mut self, pin: u8) -> Self {
        self.interrupt_pin = pin;
        self
    }

    /// Puts a BAR at `index`, 0 to 5. A 64-bit BAR takes the next index too.
    pub fn bar(mut self, index: u8, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// An expansion ROM of `size` bytes: a power of two, 2 KiB to 16 MiB.
    pub fn rom(mut self, size: u32) -> Self {
        self.rom_size = Some(size);
        self
    }

    /// Adds a standard capability where there is room.
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push((None, capability));
        self
    }

    /// Adds a standard capability at `offset`: a multiple of 4, 0x40 to 0xfc. Its place in the list
    /// is still that of the order given.
    pub fn capability_at(mut self, offset: u16, capability: Capability) -> Self {
        self.capabilities.push((Some(offset), capability));
        self
    }

    /// Adds an extended capability where there is room, the first one at 0x100.
    pub fn extended_capability(mut self, capability: ExtendedCapability) -> Self {
        self.extended.push(capability);
        self
    }

    /// Lays everything out.
    pub fn build(&self) -> Result<ConfigSpace, BuildError> {
        let is_express = self
            .capabilities
            .iter()
            .any(|(_, cap)| cap.id() == PCI_CAP_ID_EXP);
        let size = if is_express {
            PCI_CFG_SPACE_EXP_SIZE
        } else {
            PCI_CFG_SPACE_SIZE
        };
        let mut space = RegisterBlock::new(size.into(), &self.header()?);
        let bars = self.put_bars(&mut space)?;
        let rom_size = self.put_rom(&mut space)?;
        self.put_capabilities(&mut space)?;
        if let (false, Some(first)) = (is_express, self.extended.first()) {
            return Err(BuildError::NotExpress(first.id()));
        }
        self.put_extended(&mut space)?;
        for (_, capability) in &self.capabilities {
            if let Capability::MsiX(msix) = capability {
                check_msix(msix, &bars)?;
            }
        }
        Ok(ConfigSpace::new(space.into_rules(), bars, rom_size))
    }

    fn header(&self) -> Result<Vec<Register>, BuildError> {
        let Identity {
            vendor_id,
            class_code,
            ..
        } = self.identity;
        if vendor_id == 0xffff {
            return Err(BuildError::VendorId);
        }
        if class_code > 0xff_ffff {
            return Err(BuildError::ClassCode(class_code));
        }
        if self.interrupt_pin > 4 {
            return Err(BuildError::InterruptPin(self.interrupt_pin));
        }
        const COMMAND: u16 = PCI_COMMAND_IO
            | PCI_COMMAND_MEMORY
            | PCI_COMMAND_MASTER
            | PCI_COMMAND_PARITY
            | PCI_COMMAND_SERR
            | PCI_COMMAND_INTX_DISABLE;
        const STATUS_ERRORS: u16 = PCI_STATUS_PARITY
            | PCI_STATUS_SIG_TARGET_ABORT
            | PCI_STATUS_REC_TARGET_ABORT
            | PCI_STATUS_REC_MASTER_ABORT
            | PCI_STATUS_SIG_SYSTEM_ERROR
            | PCI_STATUS_DETECTED_PARITY;
        let has_list = if self.capabilities.is_empty() {
            0
        } else {
            PCI_STATUS_CAP_LIST
        };
        let revision = u32::from(self.identity.revision);
        Ok(vec![
            Register::word(PCI_VENDOR_ID, vendor_id),
            Register::word(PCI_DEVICE_ID, self.identity.device_id),
            Register::word(PCI_COMMAND, 0)
                .writable(COMMAND.into())
                .reports(Changes::COMMAND),
            Register::word(PCI_STATUS, has_list).write_one_to_clear(STATUS_ERRORS.into()),
            Register::dword(PCI_REVISION_ID, class_code << 8 | revision),
            Register::byte(PCI_CACHE_LINE_SIZE, 0).writable(0xff),
            Register::word(PCI_SUBSYSTEM_VENDOR_ID, self.identity.subsystem_vendor_id),
            Register::word(PCI_SUBSYSTEM_ID, self.identity.subsystem_id),
            Register::byte(PCI_INTERRUPT_LINE, 0).writable(0xff),
            Register::byte(PCI_INTERRUPT_PIN, self.interrupt_pin),
        ])
    }

    fn put_bars(
        &self,
        space: &mut RegisterBlock,
    ) -> Result<[Option<Bar>; BAR_COUNT as usize], BuildError> {
        let mut bars = [None; BAR_COUNT as usize];
        let mut taken = [false; BAR_COUNT as usize];
        for &(index, bar) in &self.bars {
            if index >= BAR_COUNT {
                return Err(BuildError::BarIndex(index));
            }
            bar.check()
                .map_err(|source| BuildError::Bar { index, source })?;
            for slot in index..index + bar.slots() {
                match taken.get_mut(usize::from(slot)) {
                    None => return Err(BuildError::NoUpperHalf),
                    Some(true) => return Err(BuildError::BarTaken(slot)),
                    Some(free) => *free = true,
                }
            }
            bars[usize::from(index)] = Some(bar);
            bar.registers(index)
                .for_each(|register| space.put(register));
        }
        Ok(bars)
    }

    fn put_rom(&self, space: &mut RegisterBlock) -> Result<Option<u32>, BuildError> {
        let Some(size) = self.rom_size else {
            return Ok(None);
        };
        if !size.is_power_of_two() || !(0x800..=0x100_0000).contains(&size) {
            return Err(BuildError::RomSize(size));
        }
        space.put(
            Register::dword(PCI_ROM_ADDRESS, 0)
                .writable(!(size - 1) | PCI_ROM_ADDRESS_ENABLE)
                .reports(Changes::ROM),
        );
        Ok(Some(size))
    }

    fn put_capabilities(&self, space: &mut RegisterBlock) -> Result<(), BuildError> {
        let mut blocks = Vec::new();
        for (position, (offset, capability)) in self.capabilities.iter().enumerate() {
            let id = capability.id();
            let mut earlier = self.capabilities.iter().take(position);
            if capability.is_unique() && earlier.any(|(_, other)| other.id() == id) {
                return Err(BuildError::Duplicate(id));
            }
            let block = capability
                .registers()
                .map_err(|source| BuildError::Capability { id, source })?;
            blocks.push((id, *offset, block));
        }
        let window = PCI_STD_HEADER_SIZEOF..PCI_CFG_SPACE_SIZE;
        let wanted: Vec<_> = blocks
            .iter()
            .map(|(_, at, block)| (*at, block.len()))
            .collect();
        let offsets = place(window, &wanted).map_err(|(position, why)| {
            let id = blocks[position].0;
            match why {
                NoPlace::BadOffset(offset) => BuildError::BadOffset { id, offset },
                NoPlace::Overlap(offset) => BuildError::Overlap { id, offset },
                NoPlace::Full(len) => BuildError::NoSpace { id, len },
            }
        })?;

        let mut link = PCI_CAPABILITY_LIST;
        for (&offset, (.., block)) in offsets.iter().zip(&blocks) {
            space.put_block(offset, block);
            // Below 0x100, because the window ends there.
            let [low, _] = offset.to_le_bytes();
            space.put_bytes(link, &[low]);
            link = offset + 1;
        }
        Ok(())
    }

    fn put_extended(&self, space: &mut RegisterBlock) -> Result<(), BuildError> {
        let mut blocks = Vec::new();
        for (position, capability) in self.extended.iter().enumerate() {
            let id = capability.id();
            let mut earlier = self.extended.iter().take(position);
            if capability.is_unique() && earlier.any(|other| other.id() == id) {
                return Err(BuildError::DuplicateExtended(id));
            }
            blocks.push(
                capability
                    .registers()
                    .map_err(|source| BuildError::ExtendedCapability { id, source })?,
            );
        }
        let window = PCI_EXT_CAP_START..PCI_CFG_SPACE_EXP_SIZE;
        let wanted: Vec<_> = blocks.iter().map(|block| (None, block.len())).collect();
        let offsets = place(window, &wanted).map_err(|(position, _)| {
            let (id, len) = (self.extended[position].id(), blocks[position].len());
            BuildError::NoExtendedSpace { id, len }
        })?;

        let nexts = offsets.iter().skip(1).chain([&0]);
        for (((capability, block), &offset), &next) in
            self.extended.iter().zip(&blocks).zip(&offsets).zip(nexts)
        {
            space.put_block(offset, block);
            space.put_bytes(offset, &capability.header(next));
        }
        Ok(())
    }
}

fn check_msix(msix: &MsiX, bars: &[Option<Bar>; BAR_COUNT as usize]) -> Result<(), BuildError> {
    let range = |what, at: BarOffset, len| {
        let index = at.bar;
        let bar = bars
            .get(usize::from(index))
            .copied()
            .flatten()
            .filter(|bar| bar.is_memory())
            .ok_or(BuildError::MsixBar { what, bar: index })?;
        let start = u64::from(at.offset);
        let end = start + len;
        if end > bar.size {
            return Err(BuildError::MsixOutside {
                what,
                bar: index,
                end,
                size: bar.size,
            });
        }
        Ok(start..end)
    };
    let table = range("table", msix.table, msix.table_len())?;
    let pba = range("PBA", msix.pba, msix.pba_len())?;
    if msix.table.bar == msix.pba.bar && overlaps(&table, &pba) {
        return Err(BuildError::MsixOverlap(msix.table.bar));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
