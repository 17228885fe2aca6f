// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes that a guest reads and writes, each with its masks.
//!
//! Any offset, length and alignment inside the space is served: clients read all 4096 bytes at once
//! and write single bytes. What the registers mean is in the sibling `state`.

use std::fmt;

use super::{
    Bar, Capabilities, Changes, ListFault, OutOfRange, RegisterBlock, bar::BAR_COUNT, range,
    register_block::ByteRule, registers::*,
};

/// Where the capabilities are that have typed state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub pm: Option<u16>,
    pub msi: Option<u16>,
    pub msix: Option<u16>,
}

/// A configuration space of 256 or 4096 bytes. Built by [`ConfigSpaceBuilder`].
///
/// [`ConfigSpaceBuilder`]: super::ConfigSpaceBuilder
#[derive(Clone)]
pub struct ConfigSpace {
    values: Vec<u8>,
    rules: Vec<ByteRule>,
    pub(super) bars: [Option<Bar>; BAR_COUNT as usize],
    pub(super) rom_size: Option<u32>,
    pub(super) places: Places,
    /// In front of a real device: which bits are its own. `None` when all are composed.
    pub(super) live: Option<Vec<u8>>,
    /// Bytes of which a write never reaches the device: they are kept here alone.
    pub(super) withheld: Vec<std::ops::Range<usize>>,
    /// What was wrong with the device's lists.
    pub(super) list_faults: [Option<ListFault>; 2],
}

impl ConfigSpace {
    pub(super) fn new(
        rules: Vec<ByteRule>,
        bars: [Option<Bar>; BAR_COUNT as usize],
        rom_size: Option<u32>,
    ) -> Self {
        let values: Vec<_> = rules.iter().map(|rule| rule.reset).collect();
        let mut space = Self {
            values,
            rules,
            bars,
            rom_size,
            places: Places::default(),
            live: None,
            withheld: Vec::new(),
            list_faults: [None; 2],
        };
        space.find_places();
        space
    }

    /// Looks the capabilities with typed state up, after the list changed.
    pub(super) fn find_places(&mut self) {
        let find = |wanted| {
            Capabilities::new(&self.values)
                .find(|&(id, _)| id == wanted)
                .map(|(_, offset)| offset)
        };
        self.places = Places {
            pm: find(PCI_CAP_ID_PM),
            msi: find(PCI_CAP_ID_MSI),
            msix: find(PCI_CAP_ID_MSIX),
        };
    }

    /// All bytes as the guest would read them.
    pub fn bytes(&self) -> &[u8] {
        &self.values
    }

    /// What the guest reads at `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let range = range::checked(offset, out.len(), self.values.len())?;
        out.copy_from_slice(&self.values[range]);
        Ok(())
    }

    /// The guest writes `data` at `offset`. Bits that are not writable ignore it, as hardware does.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Changes, OutOfRange> {
        let range = range::checked(offset, data.len(), self.values.len())?;
        let power_control = self.power_control();
        let is_live = self.is_live();
        let mut changes = Changes::NONE;
        for (index, &byte) in range.zip(data) {
            let (value, rule) = (&mut self.values[index], self.rules[index]);
            let mut next = (*value & !rule.write | byte & rule.write) & !(byte & rule.clear);
            if Some(index) == power_control && !is_live {
                next = settled_power(next, *value);
            }
            if next != *value {
                *value = next;
                changes |= rule.effect;
            }
            if byte & rule.flr != 0 {
                changes |= Changes::FLR;
            }
        }
        Ok(changes)
    }

    /// The device itself changes registers, read-only ones too: error bits, link status, quirks.
    ///
    /// No rule applies, so this can also break what the builder made; walks stay safe even then.
    pub fn set_by_device(&mut self, offset: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let range = range::checked(offset, data.len(), self.values.len())?;
        self.values[range].copy_from_slice(data);
        Ok(())
    }

    /// Whether the function has an INTx interrupt pending: Status bit 3, read-only to the guest.
    ///
    /// Drivers that share the line believe only this bit, so keep it set as long as INTx is
    /// asserted.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = self.u16_at(PCI_STATUS) & !PCI_STATUS_INTERRUPT;
        let bit = if pending { PCI_STATUS_INTERRUPT } else { 0 };
        self.put(PCI_STATUS, &(status | bit).to_le_bytes());
    }

    /// Which MSI vectors are pending while masked. Without per-vector masking there is no such
    /// register.
    pub fn set_msi_pending(&mut self, pending: u32) {
        let Some(at) = self.places.msi else { return };
        let flags = self.u16_at(at + PCI_MSI_FLAGS);
        if flags & PCI_MSI_FLAGS_MASKBIT == 0 {
            return;
        }
        let wide = flags & PCI_MSI_FLAGS_64BIT != 0;
        let register = 4 + if wide {
            PCI_MSI_MASK_64
        } else {
            PCI_MSI_MASK_32
        };
        let vectors = 1_u32 << ((flags & PCI_MSI_FLAGS_QMASK) >> 1).min(5);
        let existing = u32::MAX >> (32 - vectors);
        self.put(at + register, &(pending & existing).to_le_bytes());
    }

    /// What a function level reset or DEVICE_RESET leaves: power-on values, except sticky bits
    /// (AER, and the payload size and link settings that a reset of one function must not disturb,
    /// PCIe 6.0, 6.6.2).
    pub fn reset(&mut self) {
        for (value, rule) in self.values.iter_mut().zip(&self.rules) {
            *value = *value & rule.sticky | rule.reset & !rule.sticky;
        }
    }

    /// What power-on leaves: nothing of before. For the next client of the same device.
    pub fn power_on(&mut self) {
        for (value, rule) in self.values.iter_mut().zip(&self.rules) {
            *value = rule.reset;
        }
    }

    /// Takes over what a guest wrote to another function like this one, whose space read `bytes`: every bit that
    /// software can change. What is the hardware's own stays.
    ///
    /// # Errors
    /// [`OutOfRange`] for another size; nothing is changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.check_size(bytes.len())?;
        let power_control = self.power_control();
        let is_live = self.is_live();
        let values = self.values.iter_mut().zip(&self.rules).zip(bytes);
        for (index, ((value, rule), byte)) in values.enumerate() {
            let mask = rule.write | rule.clear;
            let mut next = *value & !mask | byte & mask;
            if Some(index) == power_control && !is_live {
                next = settled_power(next, *value);
            }
            *value = next;
        }
        Ok(())
    }

    /// Whether `bytes` could be taken over by [`Self::restore`].
    ///
    /// # Errors
    /// [`OutOfRange`] for another size.
    pub fn check_size(&self, length: usize) -> Result<(), OutOfRange> {
        if length == self.values.len() {
            return Ok(());
        }
        Err(OutOfRange {
            offset: 0,
            len: length,
            size: self.values.len(),
        })
    }

    /// Runs of bytes, within dwords, in which software can change something that the device has too.
    #[must_use]
    pub fn written_by_software(&self) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (at, rule) in self.rules.iter().enumerate() {
            if rule.write == 0 || self.is_withheld(at) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == at && at % 4 != 0 => run.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
        runs
    }

    /// Whether the power state is among these bytes.
    #[must_use]
    pub fn is_power_control(&self, bytes: &std::ops::Range<usize>) -> bool {
        self.power_control().is_some_and(|at| bytes.contains(&at))
    }

    /// The byte that the power state is in.
    fn power_control(&self) -> Option<usize> {
        self.places.pm.map(|pm| usize::from(pm + PCI_PM_CTRL))
    }

    /// A checksum of what no software can change, at power-on: equal for functions made alike.
    #[must_use]
    pub fn fixed_checksum(&self) -> u32 {
        let fixed: Vec<u8> = self
            .rules
            .iter()
            .map(|rule| rule.reset & !rule.write)
            .collect();
        crc32fast::hash(&fixed)
    }

    /// The bits of each byte that start a function level reset.
    pub(super) fn flr_bits(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = u8> + '_ {
        let rules = self.rules.get(range).unwrap_or_default();
        rules.iter().map(|rule| rule.flr)
    }

    pub(super) fn rules_mut(&mut self) -> &mut Vec<ByteRule> {
        &mut self.rules
    }

    /// Puts read-only bytes of our own at `offset`, whatever was there. What is outside is left out.
    pub(super) fn compose_bytes(&mut self, offset: u16, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            self.compose_bits(at, byte, 0xff);
        }
    }

    /// Puts registers of our own at `offset`, whatever was there. What is outside is left out.
    pub(super) fn compose_block(&mut self, offset: u16, block: &RegisterBlock) {
        for (index, rule) in (usize::from(offset)..).zip(block.rules()) {
            let (Some(old), Some(value)) = (self.rules.get_mut(index), self.values.get_mut(index))
            else {
                return;
            };
            (*old, *value) = (*rule, rule.reset);
            if let Some(mask) = self.live.as_mut().and_then(|live| live.get_mut(index)) {
                *mask = 0;
            }
        }
    }

    /// Makes some bits of a byte read-only and our own.
    pub(super) fn compose_bits(&mut self, offset: u16, value: u8, mask: u8) {
        let index = usize::from(offset);
        let (Some(rule), Some(now)) = (self.rules.get_mut(index), self.values.get_mut(index))
        else {
            return;
        };
        let others = |bits: u8| bits & !mask;
        *rule = ByteRule {
            reset: others(rule.reset) | value & mask,
            write: others(rule.write),
            clear: others(rule.clear),
            sticky: others(rule.sticky),
            flr: others(rule.flr),
            effect: rule.effect,
        };
        *now = others(*now) | value & mask;
        if let Some(live) = self.live.as_mut().and_then(|live| live.get_mut(index)) {
            *live &= !mask;
        }
    }

    /// A write to this byte is no concern of the device's: it exists here alone, or all of it is ours and read-only.
    pub(super) fn is_withheld(&self, index: usize) -> bool {
        if self.withheld.iter().any(|range| range.contains(&index)) {
            return true;
        }
        let ours = self.live.as_ref().and_then(|live| live.get(index)) == Some(&0);
        // Registers that are followed go whole.
        let fixed = |rule: &ByteRule| {
            rule.write | rule.clear | rule.flr == 0 && rule.effect == Changes::NONE
        };
        ours && self.rules.get(index).is_some_and(fixed)
    }

    pub(super) fn rules(&self) -> &[ByteRule] {
        &self.rules
    }

    pub(super) fn values_mut(&mut self) -> &mut [u8] {
        &mut self.values
    }

    pub(super) fn u8_at(&self, offset: u16) -> u8 {
        let [value] = self.array_at(offset);
        value
    }

    pub(super) fn u16_at(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.array_at(offset))
    }

    pub(super) fn u32_at(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.array_at(offset))
    }

    /// Zero outside, so that a capability cut short (the raw form allows one) reads as empty.
    fn array_at<const N: usize>(&self, offset: u16) -> [u8; N] {
        let tail = self.values.get(usize::from(offset)..).unwrap_or_default();
        tail.first_chunk().copied().unwrap_or([0; N])
    }

    fn put(&mut self, offset: u16, bytes: &[u8]) {
        let tail = self
            .values
            .get_mut(usize::from(offset)..)
            .unwrap_or_default();
        for (value, byte) in tail.iter_mut().zip(bytes) {
            *value = *byte;
        }
    }
}

/// The byte with the power state after a write: a function without D1 and D2, as all that are composed here, discards
/// them (PCI-PM 1.2, 3.2.4). A device behind decides for itself.
const fn settled_power(next: u8, before: u8) -> u8 {
    match next & 3 {
        0 | 3 => next,
        _ => next & !3 | before & 3,
    }
}

/// What the function is; its thousands of bytes are in [`ConfigSpace::bytes`].
impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("size", &self.values.len())
            .field("identity", &self.identity())
            .field("bars", &self.bars)
            .field("capabilities", &self.capabilities().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
