// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device says only while it decodes memory, which one of the kernel's does not before the guest wants it.

use log::debug;

use crate::device::{Device, Error, region};
use crate::pci::registers::{PCI_COMMAND, PCI_COMMAND_MEMORY};
use crate::quirks::{Traits, mirror_candidates};
use crate::report::chain;

/// Does `read` while the device decodes memory; one with a config space of its own is told to, and left as it was.
pub(super) fn while_decoding<T>(
    device: &dyn Device,
    is_live: bool,
    read: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if !is_live {
        return read();
    }
    let at = u64::from(PCI_COMMAND);
    let mut command = [0; 2];
    device.read_config(at, &mut command)?;
    let decoding = u16::from_le_bytes(command) | PCI_COMMAND_MEMORY;
    device.write_config(at, &decoding.to_le_bytes())?;
    let done = read();
    if let Err(error) = device.write_config(at, &command) {
        debug!("Memory decoding stays on: {}", chain(&error));
    }
    done
}

/// Which of the places that quirks ask about show the ids of the device. Those that cannot be read count.
pub(super) fn mirrors(device: &dyn Device, is_live: bool, traits: &Traits) -> Vec<u64> {
    let candidates = mirror_candidates(traits);
    if candidates.is_empty() {
        return Vec::new();
    }
    let [low, high] = [traits.own.vendor_id, traits.own.device_id].map(u16::to_le_bytes);
    let shows_ids = |at: &u64| {
        let mut ids = [0; 4];
        match device.read(region::BAR0, *at, &mut ids) {
            Ok(()) => ids == [low, high].as_flattened(),
            Err(error) => {
                debug!("BAR0 not read at {at:#x}: {}", chain(&error));
                true
            }
        }
    };
    let found = while_decoding(device, is_live, || {
        Ok(candidates.iter().copied().filter(shows_ids).collect())
    });
    found.unwrap_or_else(|error| {
        debug!("BAR0 not read: {}", chain(&error));
        candidates
    })
}
