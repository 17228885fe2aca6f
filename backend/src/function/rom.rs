// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The expansion ROM of the function: a copy, made and checked before anybody is offered it.
//!
//! It is the device's, a file's or none ([`RomView`]). Images for another device of the same vendor are made to be
//! for this one, as QEMU does it: firmware runs no others. What the guest reads no longer needs the device, nor
//! memory decoding.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use log::warn;

use super::probe;
use crate::device::{self, Device, region};
use crate::pci::rom::{self, RomError};
use crate::pci::{ConfigSpace, Identity, RomView};
use crate::report::chain;

/// The most that a ROM BAR decodes, in bytes.
const LARGEST: u64 = 16 << 20;

/// Why the ROM that was asked for cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// The file cannot be read.
    #[error("--rom {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any ROM.
    #[error("--rom {}: more than 16 MiB", .0.display())]
    TooLarge(PathBuf),
    /// What is in it is no ROM.
    #[error("--rom {}: no expansion ROM", .path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RomError,
    },
}

/// Makes the ROM of a function, and its BAR what that needs. Empty for none.
pub(super) fn compose(
    view: &RomView,
    device: &dyn Device,
    config: &mut ConfigSpace,
) -> Result<Vec<u8>, ShadowError> {
    let identity = config.identity();
    let rom = match view {
        RomView::Off => Vec::new(),
        RomView::File(path) => of_file(path, &identity)?,
        RomView::Device => return Ok(of_device(device, config, &identity)),
    };
    config.set_rom(rom::bar_size(rom.len()).filter(|_| !rom.is_empty()));
    Ok(rom)
}

/// The file's images, and as much behind them as the BAR decodes.
fn of_file(path: &Path, identity: &Identity) -> Result<Vec<u8>, ShadowError> {
    let failed = |source| ShadowError::File {
        path: path.to_owned(),
        source,
    };
    let mut rom = Vec::new();
    let mut file = File::open(path).map_err(failed)?.take(LARGEST + 1);
    file.read_to_end(&mut rom).map_err(failed)?;
    let size = rom::bar_size(rom.len()).and_then(|size| usize::try_from(size).ok());
    let size = size.ok_or_else(|| ShadowError::TooLarge(path.to_owned()))?;
    rom::adopt(&mut rom, identity).map_err(|source| ShadowError::Contents {
        path: path.to_owned(),
        source,
    })?;
    rom.resize(size, 0xff);
    Ok(rom)
}

/// What the device has; nothing if that is no ROM, which many a device shows until its firmware has run.
fn of_device(device: &dyn Device, config: &mut ConfigSpace, identity: &Identity) -> Vec<u8> {
    let size = device.region(region::ROM).size;
    if size == 0 {
        return Vec::new();
    }
    let why = match read(device, config, size) {
        Ok(mut rom) => match rom::adopt_repaired(&mut rom, identity) {
            Ok(()) => return rom,
            Err(error) => chain(&error),
        },
        Err(error) => chain(&error),
    };
    warn!("The device's ROM is not shown (--rom FILE gives it another): {why}");
    config.set_rom(None);
    Vec::new()
}

/// Reads it, for which a device of the kernel must decode memory.
fn read(device: &dyn Device, config: &ConfigSpace, size: u64) -> Result<Vec<u8>, device::Error> {
    let length = usize::try_from(size.min(LARGEST)).unwrap_or(0);
    let mut rom = vec![0; length];
    probe::while_decoding(device, config.is_live(), || {
        device.read(region::ROM, 0, &mut rom)
    })?;
    Ok(rom)
}
