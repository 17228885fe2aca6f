// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The GPU as sysfs shows it.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use system_tests::model_gpu;

use crate::mapping::Mapping;

/// A PCI function's folder in sysfs.
pub struct PciDevice {
    folder: PathBuf,
}

impl PciDevice {
    /// The model GPU, by its vendor and device id.
    pub fn gpu() -> Result<Self, Box<dyn Error>> {
        let mut seen = Vec::new();
        for entry in fs::read_dir("/sys/bus/pci/devices")? {
            let device = Self {
                folder: entry?.path(),
            };
            let ids = (device.number("vendor")?, device.number("device")?);
            if ids == (u64::from(model_gpu::VENDOR), u64::from(model_gpu::DEVICE)) {
                return Ok(device);
            }
            seen.push(format!("{:04x}:{:04x}", ids.0, ids.1));
        }
        Err(format!("no GPU among {seen:?}").into())
    }

    /// The GPU, enabled: it answers memory accesses.
    pub fn enabled_gpu() -> Result<Self, Box<dyn Error>> {
        let device = Self::gpu()?;
        device.write("enable", "1")?;
        Ok(device)
    }

    /// Its place, as `DOMAIN:BUS:DEVICE.FUNCTION`.
    pub fn address(&self) -> Result<String, Box<dyn Error>> {
        let name = self.folder.file_name().and_then(|name| name.to_str());
        Ok(name.ok_or("a device without a name")?.to_owned())
    }

    /// The text of an attribute.
    pub fn read(&self, attribute: &str) -> Result<String, Box<dyn Error>> {
        let text = fs::read_to_string(self.folder.join(attribute))
            .map_err(|error| format!("{attribute}: {error}"))?;
        Ok(text.trim().to_owned())
    }

    /// A number, as sysfs writes it in hexadecimal.
    pub fn number(&self, attribute: &str) -> Result<u64, Box<dyn Error>> {
        let text = self.read(attribute)?;
        Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
    }

    /// Writes an attribute.
    pub fn write(&self, attribute: &str, text: &str) -> Result<(), Box<dyn Error>> {
        fs::write(self.folder.join(attribute), text)
            .map_err(|error| format!("{attribute}: {error}").into())
    }

    /// Configuration space, as a file.
    pub fn config(&self) -> Result<Config, Box<dyn Error>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.folder.join("config"))?;
        Ok(Config { file })
    }

    /// The size of BAR `index` in bytes, 0 when there is none.
    pub fn bar_size(&self, index: usize) -> Result<usize, Box<dyn Error>> {
        let path = self.folder.join(format!("resource{index}"));
        Ok(fs::metadata(path).map_or(Ok(0), |data| usize::try_from(data.len()))?)
    }

    /// BAR `index`, mapped whole.
    pub fn bar(&self, index: usize) -> Result<Mapping, Box<dyn Error>> {
        let path = self.folder.join(format!("resource{index}"));
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        Mapping::of_file(&file, self.bar_size(index)?)
            .map_err(|error| format!("BAR{index}: {error}").into())
    }
}

/// Configuration space.
pub struct Config {
    file: File,
}

impl Config {
    /// Size in bytes: 256, or 4096 where the extended space can be reached.
    pub fn size(&self) -> Result<u64, Box<dyn Error>> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads 8 bits.
    pub fn read8(&self, register: u16) -> Result<u8, Box<dyn Error>> {
        Ok(u8::from_le_bytes(self.read(register)?))
    }

    /// Reads 16 bits.
    pub fn read16(&self, register: u16) -> Result<u16, Box<dyn Error>> {
        Ok(u16::from_le_bytes(self.read(register)?))
    }

    /// Reads 32 bits.
    pub fn read32(&self, register: u16) -> Result<u32, Box<dyn Error>> {
        Ok(u32::from_le_bytes(self.read(register)?))
    }

    /// Writes 16 bits.
    pub fn write16(&self, register: u16, value: u16) -> Result<(), Box<dyn Error>> {
        Ok(self
            .file
            .write_all_at(&value.to_le_bytes(), u64::from(register))?)
    }

    /// The capability ids in list order.
    pub fn capabilities(&self) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut ids = Vec::new();
        let mut at = self.read8(system_tests::pci::CAPABILITIES)?;
        while at != 0 {
            if ids.len() == 48 {
                return Err(format!("the capability list has a loop: {ids:x?}").into());
            }
            ids.push(self.read8(u16::from(at))?);
            at = self.read8(u16::from(at) + 1)?;
        }
        Ok(ids)
    }

    fn read<const N: usize>(&self, register: u16) -> Result<[u8; N], Box<dyn Error>> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, u64::from(register))?;
        Ok(bytes)
    }
}
