// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that has the config space of another, taken down in a file: so that any GPU can be composed, shown to a
//! guest and looked at without the GPU. It has BARs and interrupts, and does nothing.
//!
//! | part | what it is |
//! |---|---|
//! | config space | as a kernel device's: live, with the composition in front |
//! | the largest prefetchable memory BAR | a memfd that the client maps, as VRAM is (1 MiB to 16 GiB) |
//! | other BARs | plain memory, trapped; 64 MiB of it at the most |
//! | ROM | an image that does nothing, with the device's ids |
//! | device-specific regions | those of Intel graphics, with `igd=FILE` |
//! | interrupts | as many as the capabilities say; they come only when a client triggers them |

mod hardware;
mod memory;
mod text;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::igd::Igd;
use super::vram::{self, Vram, VramError};
use super::{ModelOptions, vram_lost};
use crate::device::{Device, Error, Mapping, Region, ResetCause, region};
use crate::interrupts::{
    Delivery, ERR, INTX, IrqConfig, IrqInfo, IrqRequest, Lines, MSI, MSIX, REQ,
};
use crate::pci::{BarState, ConfigSpace, DeviceSizes, OverlayError, rom};
use hardware::Hardware;
use memory::SparseMemory;
pub use text::{Dump, DumpError};

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum DumpedError {
    /// The file cannot be read.
    #[error("Config space file {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// The file is no dump.
    #[error("Config space file {}", .0.display())]
    Dump(PathBuf, #[source] DumpError),
    /// No ordinary function has this config space.
    #[error("Config space file {}", .0.display())]
    Config(PathBuf, #[source] OverlayError),
    /// The file with its OpRegion cannot be read.
    #[error("OpRegion of the device")]
    OpRegion(#[source] io::Error),
    /// The memory of its large BAR cannot be had.
    #[error(transparent)]
    Vram(#[from] VramError),
}

/// A device made of a dump.
#[derive(Debug)]
pub struct DumpedGpu {
    config: ConfigSpace,
    sizes: DeviceSizes,
    hardware: Mutex<Hardware>,
    /// The BAR that is mapped, and its memory.
    vram: Option<(u32, Vram)>,
    memory: Mutex<SparseMemory>,
    rom: Vec<u8>,
    lines: Arc<Lines>,
    irqs: [IrqInfo; 5],
    igd: Option<Igd>,
}

impl DumpedGpu {
    /// The device that `path` describes, at power-on.
    ///
    /// # Errors
    /// [`DumpedError`].
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Self, DumpedError> {
        let file = read(path).map_err(|error| DumpedError::File(path.to_owned(), error))?;
        let dump = Dump::parse(&file).map_err(|error| DumpedError::Dump(path.to_owned(), error))?;
        let mut device = Self::new(&dump, options).map_err(|error| match error {
            NewError::Config(error) => DumpedError::Config(path.to_owned(), error),
            NewError::Vram(error) => error.into(),
        })?;
        let igd = options.igd.as_deref().map(Igd::open).transpose();
        device.igd = igd.map_err(DumpedError::OpRegion)?;
        Ok(device)
    }

    fn new(dump: &Dump, options: &ModelOptions) -> Result<Self, NewError> {
        let sizes = dump.sizes();
        let config = ConfigSpace::from_device(&dump.bytes, &sizes)?;
        let hardware = Hardware::new(&dump.bytes, &config);
        let vram = match vram_bar(&config) {
            Some((index, size)) => {
                let vram = match &options.vram_file {
                    Some(path) => Vram::named(path, size),
                    None => Vram::anonymous(size),
                };
                Some((index, vram?))
            }
            None => None,
        };
        let mut rom = Vec::new();
        if let Some(size) = config
            .rom_size()
            .and_then(|size| usize::try_from(size).ok())
        {
            rom = rom::build(&config.identity());
            rom.resize(size, 0xff);
        }
        let irqs = irqs(&config);
        let mut device = Self {
            config,
            sizes,
            hardware: Mutex::new(hardware),
            vram,
            memory: Mutex::default(),
            rom,
            lines: Lines::new(irqs.map(|info| info.count)),
            irqs,
            igd: None,
        };
        // The guest finds the device as power-on leaves it, not as a driver had it.
        let mut bytes = vec![0; dump.bytes.len()];
        device.hardware().read(0, &mut bytes);
        device.config.refresh(&bytes);
        Ok(device)
    }

    fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, SparseMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapped memory, where `index` is its BAR.
    fn vram(&self, index: u32) -> Option<&Vram> {
        let vram = self.vram.as_ref().filter(|(bar, _)| *bar == index);
        vram.map(|(_, vram)| vram)
    }
}

/// Why a dump makes no device, without the file's name.
#[derive(Debug, thiserror::Error)]
enum NewError {
    #[error(transparent)]
    Config(#[from] OverlayError),
    #[error(transparent)]
    Vram(#[from] VramError),
}

/// The whole file, as far as it can make sense.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    let limit = text::MAX_FILE as u64 + 1;
    File::open(path)?.take(limit).read_to_end(&mut file)?;
    Ok(file)
}

/// The largest prefetchable memory BAR whose memory can be had as one file.
fn vram_bar(config: &ConfigSpace) -> Option<(u32, u64)> {
    let fits = |state: &BarState| (vram::MIN_SIZE..=vram::MAX_SIZE).contains(&state.bar.size);
    let prefetchable = config
        .bars()
        .filter(|(_, state)| state.bar.prefetchable && fits(state));
    let largest = prefetchable.max_by_key(|(_, state)| state.bar.size);
    largest.map(|(index, state)| (index.into(), state.bar.size))
}

fn irqs(config: &ConfigSpace) -> [IrqInfo; 5] {
    let mut irqs = [IrqInfo::default(); 5];
    let vectors = |index: u32, count: u32, irqs: &mut [IrqInfo; 5]| {
        if let Some(info) = irqs.get_mut(index as usize) {
            info.count = count;
            info.maskable = count > 0 && index != ERR && index != REQ;
            info.automasked = count > 0 && index == INTX;
            info.noresize = count > 0 && matches!(index, MSI | ERR | REQ);
        }
    };
    vectors(
        INTX,
        u32::from((1..=4).contains(&config.interrupt_pin())),
        &mut irqs,
    );
    vectors(MSI, config.msi_capable().into(), &mut irqs);
    vectors(
        MSIX,
        config.msix().map_or(0, |msix| msix.table_size.into()),
        &mut irqs,
    );
    vectors(ERR, 1, &mut irqs);
    vectors(REQ, 1, &mut irqs);
    irqs
}

impl Device for DumpedGpu {
    fn name(&self) -> String {
        let ids = self.config.identity();
        format!(
            "config space of {:04x}:{:04x}",
            ids.vendor_id, ids.device_id
        )
    }

    fn config_space(&self) -> ConfigSpace {
        self.config.clone()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.hardware().read(offset, data);
        Ok(())
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.hardware().write(offset, data);
        Ok(())
    }

    fn resettable(&self) -> bool {
        true
    }

    fn region(&self, index: u32) -> Region {
        let bar = usize::try_from(index).ok();
        let size = match index {
            region::ROM => self.rom.len() as u64,
            _ => bar
                .and_then(|bar| self.sizes.bars.get(bar))
                .copied()
                .unwrap_or(0),
        };
        Region {
            size,
            readable: size > 0,
            writable: size > 0 && index != region::ROM,
        }
    }

    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        let Some(vram) = self.vram(index) else {
            return Ok(None);
        };
        let fd = vram.share().map_err(|source| Error::Io {
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
        if let Some(vram) = self.vram(region) {
            return vram.read(offset, data).map_err(vram_lost);
        }
        if region == region::ROM {
            let from = usize::try_from(offset).ok();
            let bytes = from.and_then(|from| self.rom.get(from..)?.get(..data.len()));
            if let Some(bytes) = bytes {
                data.copy_from_slice(bytes);
            }
        } else {
            self.memory().read(region, offset, data);
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.region(region).check(region, offset, data.len())?;
        if let Some(vram) = self.vram(region) {
            return vram.write(offset, data).map_err(vram_lost);
        }
        if region > region::BAR5 {
            let what = "written";
            return Err(Error::Denied { region, what });
        }
        self.memory().write(region, offset, data);
        Ok(())
    }

    fn irq(&self, index: u32) -> IrqInfo {
        self.irqs.get(index as usize).copied().unwrap_or_default()
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

    /// Nothing of one client is left for the next, which gets another memory too.
    fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        self.hardware().reset();
        self.memory().clear();
        self.lines.reset();
        let Some((_, vram)) = &self.vram else {
            return Ok(());
        };
        let cleared = match cause {
            ResetCause::Disconnect => vram.renew(),
            ResetCause::Client | ResetCause::FunctionLevel => vram.zero(),
        };
        cleared.map_err(|error| Error::Io {
            what: "Clearing VRAM",
            source: error.into(),
        })
    }

    fn release_irqs(&self) {
        self.lines.release();
    }
}
