// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The config space of a dumped device as its hardware and the kernel's vfio-pci would have it: what the composition in
//! front reads and writes.

use crate::pci::registers::{
    PCI_CACHE_LINE_SIZE, PCI_CAP_ID_EXP, PCI_CAP_ID_PM, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2,
    PCI_EXP_FLAGS, PCI_INTERRUPT_LINE, PCI_PM_CTRL, PCI_PM_PMC, PCI_PM_PMC_D1, PCI_PM_PMC_D2,
};
use crate::pci::{Capabilities, ConfigSpace};

/// Bytes, and which bits of each take what is written.
#[derive(Debug)]
pub(super) struct Hardware {
    now: Vec<u8>,
    reset: Vec<u8>,
    writable: Vec<u8>,
    /// The byte that the power state is in, and which states there are.
    power: Option<(usize, [bool; 4])>,
}

impl Hardware {
    /// A device that reads `bytes` after power-on, in front of which stands `config`.
    pub(super) fn new(bytes: &[u8], config: &ConfigSpace) -> Self {
        let mut writable: Vec<u8> = bytes.iter().map(|_| 0).collect();
        let mut reset = bytes.to_vec();
        // What a driver had set up when the dump was made is gone.
        for (at, at_reset, mask) in config.followed() {
            if let Some((byte, write)) = reset.get_mut(at).zip(writable.get_mut(at)) {
                *byte = *byte & !mask | at_reset & mask;
                *write = mask;
            }
        }
        let mut scratch = |at: u16, mask: u8| {
            let at = usize::from(at);
            if let Some((byte, write)) = reset.get_mut(at).zip(writable.get_mut(at)) {
                *byte &= !mask;
                *write |= mask;
            }
        };
        scratch(PCI_INTERRUPT_LINE, 0xff);
        scratch(PCI_CACHE_LINE_SIZE, 0xff);
        let mut power = None;
        for (id, at) in Capabilities::new(bytes) {
            if id == PCI_CAP_ID_PM {
                let states = bytes.get(usize::from(at) + usize::from(PCI_PM_PMC) + 1);
                let has = |bit: u8| states.is_some_and(|states| states & bit != 0);
                let states = [true, has(PCI_PM_PMC_D1), has(PCI_PM_PMC_D2), true];
                power = Some((usize::from(at + PCI_PM_CTRL), states));
            }
            let version = bytes.get(usize::from(at + PCI_EXP_FLAGS));
            if id != PCI_CAP_ID_EXP {
                continue;
            }
            scratch(at + PCI_EXP_DEVCTL, 0xff);
            // Without Initiate FLR, which reads zero.
            scratch(at + PCI_EXP_DEVCTL + 1, 0x7f);
            if version.is_some_and(|version| version & 0xf >= 2) {
                scratch(at + PCI_EXP_DEVCTL2, 0xff);
            }
        }
        Self {
            now: reset.clone(),
            reset,
            writable,
            power,
        }
    }

    /// Ranges are checked by the caller; bytes outside read zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in (start..).zip(data) {
            *byte = self.now.get(index).copied().unwrap_or(0);
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in (start..).zip(data) {
            if let Some((now, mask)) = self.now.get_mut(index).zip(self.writable.get(index)) {
                let mut next = *now & !mask | byte & mask;
                if let Some((at, states)) = self.power
                    && at == index
                    && !states.get(usize::from(next & 3)).is_some_and(|has| *has)
                {
                    next = next & !3 | *now & 3;
                }
                *now = next;
            }
        }
    }

    pub(super) fn reset(&mut self) {
        self.now.clone_from(&self.reset);
    }
}
