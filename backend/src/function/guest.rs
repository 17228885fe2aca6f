// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function as migration sees it: who it is, what the guest set up, and taking that over.

use super::{Function, State};
use crate::device::{Error, ResetCause};
use crate::migration::{DRIVER_DATA, Guest, GuestState, Identity, UNKNOWN};
use crate::pci::registers::{PCI_COMMAND, PCI_INTERRUPT_LINE};
use crate::pci::{BarKind, BarState, ConfigSpace};
use crate::report::chain;

impl Guest for Function {
    fn identity(&self) -> Identity {
        let state = self.state();
        let config = &state.config;
        let ids = config.identity();
        let mut identity = Identity::default();
        identity.push(
            "device",
            format!("{:04x}:{:04x}", ids.vendor_id, ids.device_id),
        );
        identity.push("revision", format!("{:02x}", ids.revision));
        let (vendor, board) = (ids.subsystem_vendor_id, ids.subsystem_id);
        identity.push("subsystem", format!("{vendor:04x}:{board:04x}"));
        identity.push("class", format!("{:06x}", ids.class_code));
        for (index, bar) in config.bars() {
            identity.push(&format!("BAR{index}"), describe_bar(&bar));
        }
        if let Some(size) = config.rom_size() {
            identity.push("ROM", format!("{size} bytes"));
        }
        if let Some(msix) = config.msix() {
            identity.push("MSI-X vectors", msix.table_size.to_string());
        }
        identity.push("config space", format!("{} bytes", config.bytes().len()));
        identity.push("capabilities", describe_capabilities(config));
        if let Some(clique) = self.view.nvidia_clique {
            identity.push("NVIDIA GPUDirect clique", clique.number().to_string());
        }
        if !config.is_live() {
            let checksum = config.fixed_checksum();
            identity.push("read-only registers", format!("checksum {checksum:08x}"));
        }
        let quirks: Vec<_> = state.quirks.names().collect();
        if !quirks.is_empty() {
            identity.push("quirks", quirks.join(" "));
        }
        let driver = self.device.migration().map(|driver| driver.data_version());
        let driver = driver.filter(|version| !version.is_empty());
        identity.push(DRIVER_DATA, driver.unwrap_or_else(|| UNKNOWN.to_owned()));
        identity
    }

    fn save(&self) -> Result<GuestState, String> {
        let mut config = vec![0; self.state().config.bytes().len()];
        self.read_config(0, &mut config)
            .map_err(|error| format!("Config space: {}", chain(&error)))?;
        let state = self.state();
        let msix_table = state.msix.as_ref().map(|(_, table)| table.bytes().to_vec());
        Ok(GuestState {
            config,
            msix_table: msix_table.unwrap_or_default(),
            quirks: state.quirks.save(),
        })
    }

    fn check(&self, saved: &GuestState) -> Result<(), String> {
        check(&self.state(), saved)
    }

    fn load(&self, saved: &GuestState, still: &dyn Fn() -> bool) -> Result<bool, String> {
        // A reset holds the same lock from its beginning to its end, but for one that frees a thread whose client has left.
        let mut state = self.state();
        if !still() {
            return Ok(false);
        }
        check(&state, saved)?;
        if state.config.is_live() {
            self.write_live(&state.config, &saved.config)
                .map_err(|error| chain(&error))?;
        }
        // The size was checked.
        let restored = state.config.restore(&saved.config);
        restored.map_err(|error| error.to_string())?;
        if let Some((_, table)) = &mut state.msix {
            let written = table.write(0, &saved.msix_table);
            written.map_err(|error| error.to_string())?;
        }
        state.quirks.restore(&saved.quirks);
        self.refresh(&mut state);
        self.update_interrupts(&mut state);
        Ok(true)
    }

    fn reset(&self) -> Result<(), String> {
        Self::reset(self, ResetCause::Client).map_err(|error| chain(&error))
    }
}

fn check(state: &State, saved: &GuestState) -> Result<(), String> {
    let size = state.config.check_size(saved.config.len());
    size.map_err(|error| format!("Config space: {error}"))?;
    let table = state
        .msix
        .as_ref()
        .map_or(0, |(_, table)| table.bytes().len());
    if table != saved.msix_table.len() {
        let found = saved.msix_table.len();
        return Err(format!("MSI-X table of {found} bytes where {table} are"));
    }
    state.quirks.check(&saved.quirks)
}

impl Function {
    /// Writes what the guest can write, and is followed here, to the device's own config space. What decodes
    /// and what puts to sleep comes last.
    fn write_live(&self, config: &ConfigSpace, saved: &[u8]) -> Result<(), Error> {
        let line = usize::from(PCI_INTERRUPT_LINE);
        let command = usize::from(PCI_COMMAND);
        let mut registers = config.written_by_software();
        registers.push(line..line + 1);
        registers.sort_by_key(|register| {
            (
                config.is_power_control(register),
                register.contains(&command),
            )
        });
        for register in registers {
            let offset = register.start as u64;
            if let Some(bytes) = saved.get(register) {
                self.device.write_config(offset, bytes)?;
            }
        }
        Ok(())
    }
}

fn describe_bar(state: &BarState) -> String {
    let bar = state.bar;
    let kind = match bar.kind {
        BarKind::Memory32 => "memory",
        BarKind::Memory64 => "64-bit memory",
        BarKind::Io => "I/O",
    };
    let prefetchable = if bar.prefetchable {
        ", prefetchable"
    } else {
        ""
    };
    format!("{} bytes of {kind}{prefetchable}", bar.size)
}

fn describe_capabilities(config: &ConfigSpace) -> String {
    let standard = config
        .capabilities()
        .map(|(id, at)| format!("{id:02x}@{at:02x}"));
    let extended = config.extended_capabilities();
    let extended = extended.map(|(id, at)| format!("{id:04x}@{at:03x}"));
    standard.chain(extended).collect::<Vec<_>>().join(" ")
}
