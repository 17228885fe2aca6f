// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software GPU: a PCI display device that any VMM can use without hardware.
//!
//! | BAR | file | what |
//! |---|---|---|
//! | 0, 64-bit prefetchable | `vram.rs` | video memory; the client maps it |
//! | 2, 4 KiB | `bochs.rs`, `edid.rs` | Bochs display interface; trapped |
//! | 4, 16 KiB | `registers.rs` | the engine's registers, MSI-X table and pending bits; trapped |
//! | ROM | `config.rs` | an image that does nothing |
//!
//! `command.rs` is what the engine can do, `engine.rs` its thread, `config.rs` what it shows of itself in
//! config space, `igd.rs` its place as Intel graphics, `dump/` a device of another's config space, `options.rs`
//! what can be chosen on the command line, `faults.rs` what can be made to go wrong, `dirt.rs` one of those,
//! `migration/` how its state is saved and loaded. The config space itself, and the MSI-X table in BAR4, are
//! served in front of the device.

pub mod bochs;
mod command;
pub mod config;
mod dirt;
pub mod dump;
pub mod edid;
mod engine;
mod faults;
mod igd;
mod migration;
mod options;
pub mod registers;
pub mod vram;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, Error, Mapping, Region, ResetCause, region};
use crate::interrupts::{
    Delivery, ERR, INTX, IrqConfig, IrqInfo, IrqRequest, Lines, MSI, MSIX, REQ,
};
use crate::memory::AddressSpace;
use crate::migration::MigrationDriver;
use crate::pci::{BuildError, ConfigSpace};
use bochs::Display;
use dirt::Dirt;
use engine::Engine;
pub use faults::{FAULTS, Faults, FaultsError};
use igd::Igd;
pub use migration::Migration;
use migration::Parts;
pub use options::{ModelOptions, OptionsError};
use vram::{Vram, VramError};

/// The region of the video memory.
pub const VRAM_REGION: u32 = region::BAR0;
/// The region of the Bochs display interface.
pub const DISPLAY_REGION: u32 = 2;
/// The region of the engine's registers.
pub const ENGINE_REGION: u32 = 4;

/// Why there is no model GPU.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its video memory cannot be had.
    #[error(transparent)]
    Vram(#[from] VramError),
    /// Its config space cannot be composed.
    #[error("Config space of the model GPU")]
    Config(#[from] BuildError),
    /// The file with its OpRegion cannot be read.
    #[error("OpRegion of the model GPU")]
    OpRegion(#[source] io::Error),
    /// A thread of it cannot be had.
    #[error("Thread of the model GPU")]
    Thread(#[source] io::Error),
}

/// The software GPU. Dropping it, and the data streams of its migrations, stops its thread.
#[derive(Debug)]
pub struct ModelGpu {
    vram: Arc<Vram>,
    display: Arc<Mutex<Display>>,
    engine: Arc<Engine>,
    lines: Arc<Lines>,
    migration: Migration,
    /// Works on its own, if there is one.
    _dirt: Option<Dirt>,
    config: ConfigSpace,
    rom: Vec<u8>,
    igd: Option<Igd>,
}

impl ModelGpu {
    /// A GPU at power-on that does its DMA through `memory`.
    ///
    /// # Errors
    /// No video memory or no thread.
    pub fn new(options: &ModelOptions, memory: Arc<AddressSpace>) -> Result<Self, ModelError> {
        let vram = Arc::new(match &options.vram_file {
            Some(path) => Vram::named(path, options.vram_size)?,
            None => Vram::anonymous(options.vram_size)?,
        });
        let igd = options.igd.as_deref().map(Igd::open).transpose();
        let igd = igd.map_err(ModelError::OpRegion)?;
        let config = match igd {
            Some(_) => igd::config_space(vram.size())?,
            None => config::config_space(vram.size()).build()?,
        };
        let vectors = u32::from(registers::VECTORS);
        let lines = Lines::new([1, vectors, vectors, 1, 1]);
        let engine = Engine::new(Arc::clone(&vram), memory, Arc::clone(&lines));
        let engine = Arc::new(engine.map_err(ModelError::Thread)?);
        let display = Arc::new(Mutex::new(Display::new(vram.size())));
        let parts = Parts::new(
            Arc::clone(&vram),
            Arc::clone(&engine),
            Arc::clone(&display),
            Arc::clone(&lines),
        );
        let dirt = options.faults.dirty_rate.map(|rate| {
            let started = Dirt::new(rate, Arc::clone(&vram), Arc::clone(&engine));
            started.map_err(ModelError::Thread)
        });
        Ok(Self {
            _dirt: dirt.transpose()?,
            migration: Migration::new(parts, options.faults.clone()),
            display,
            engine,
            rom: config::rom(&config.identity()),
            config,
            igd,
            vram,
            lines,
        })
    }

    /// The video memory.
    #[must_use]
    pub fn vram(&self) -> &Vram {
        &self.vram
    }

    /// The display as the guest set it up.
    #[must_use]
    pub fn display(&self) -> Display {
        self.lock_display().clone()
    }

    fn lock_display(&self) -> MutexGuard<'_, Display> {
        self.display.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for ModelGpu {
    fn name(&self) -> String {
        format!("model GPU, {} MiB", self.vram.size() >> 20)
    }

    fn description(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name()),
            ("migration", self.migration.description()),
        ]
    }

    fn config_space(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn migration(&self) -> Option<&dyn MigrationDriver> {
        Some(&self.migration)
    }

    fn resettable(&self) -> bool {
        true
    }

    fn region(&self, index: u32) -> Region {
        let size = match index {
            VRAM_REGION => self.vram.size(),
            DISPLAY_REGION => bochs::BAR_SIZE,
            ENGINE_REGION => registers::BAR_SIZE,
            region::ROM => self.rom.len() as u64,
            _ => 0,
        };
        Region {
            size,
            readable: size > 0,
            writable: size > 0 && index != region::ROM,
        }
    }

    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        if index != VRAM_REGION {
            return Ok(None);
        }
        let fd = self.vram.share().map_err(|source| Error::Io {
            what: "Descriptor of VRAM",
            source,
        })?;
        Ok(Some(Mapping {
            fd,
            offset: 0,
            areas: None,
        }))
    }

    fn specific(
        &self,
        region_type: u32,
        subtype: u32,
        largest: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        match &self.igd {
            Some(igd) => igd.specific((region_type, subtype), largest),
            None => Ok(None),
        }
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.region(region).check(region, offset, data.len())?;
        match region {
            VRAM_REGION => self.vram.read(offset, data).map_err(vram_lost)?,
            DISPLAY_REGION => self.lock_display().read(offset, data),
            ENGINE_REGION => self.engine.read(offset, data),
            _ => {
                let from = usize::try_from(offset).ok();
                let bytes = from.and_then(|from| self.rom.get(from..)?.get(..data.len()));
                if let Some(bytes) = bytes {
                    data.copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.region(region).check(region, offset, data.len())?;
        match region {
            VRAM_REGION => self.vram.write(offset, data).map_err(vram_lost)?,
            DISPLAY_REGION => self.lock_display().write(offset, data),
            ENGINE_REGION => self.engine.write(offset, data),
            _ => {
                return Err(Error::Denied {
                    region,
                    what: "written",
                });
            }
        }
        Ok(())
    }

    fn irq(&self, index: u32) -> IrqInfo {
        let vectors = u32::from(registers::VECTORS);
        match index {
            INTX => IrqInfo {
                count: 1,
                maskable: true,
                automasked: true,
                noresize: false,
            },
            MSI => IrqInfo {
                count: vectors,
                maskable: true,
                noresize: true,
                ..IrqInfo::default()
            },
            MSIX => IrqInfo {
                count: vectors,
                maskable: true,
                ..IrqInfo::default()
            },
            ERR | REQ => IrqInfo {
                count: 1,
                noresize: true,
                ..IrqInfo::default()
            },
            _ => IrqInfo::default(),
        }
    }

    fn set_irqs(&self, request: IrqRequest) -> Result<(), Error> {
        self.lines.apply(request).map_err(|source| Error::Io {
            what: "Arming interrupts",
            source,
        })
    }

    fn set_delivery(&self, delivery: Delivery) {
        self.lines.set_delivery(delivery);
    }

    fn set_irq_config(&self, config: IrqConfig) {
        self.lines.set_config(config);
        self.engine.set_bus_master(config.bus_master);
    }

    fn set_vector_mask(&self, index: u32, vector: u32, masked: bool) {
        self.lines.set_guest_mask(index, vector, masked);
    }

    fn vector_pending(&self, index: u32, vector: u32) -> bool {
        self.lines.pending(index, vector)
    }

    fn interrupt_status(&self) -> bool {
        self.lines.intx_status()
    }

    /// Ends a migration, and zeroes VRAM whatever the cause; the next client gets another memory than the last.
    fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        let also = || {
            self.lock_display().reset();
            match cause {
                ResetCause::Disconnect => self.vram.renew(),
                ResetCause::Client | ResetCause::FunctionLevel => self.vram.zero(),
            }
        };
        let zeroed = self.migration.reset(|| self.engine.reset(also));
        zeroed.map_err(|error| Error::Io {
            what: "Clearing VRAM",
            source: error.into(),
        })
    }

    fn release_irqs(&self) {
        self.lines.release();
    }
}

/// A range that was checked can only fail because the file was truncated.
fn vram_lost(fault: vram::VramFault) -> Error {
    Error::Io {
        what: "VRAM file truncated",
        source: io::Error::other(fault),
    }
}
