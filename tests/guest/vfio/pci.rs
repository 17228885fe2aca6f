// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI functions, and mediated devices, as sysfs shows them to somebody who gives one to VFIO: finding, binding, group
//! and character device.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// A PCI function's folder in sysfs.
#[derive(Clone)]
pub struct Function {
    folder: PathBuf,
}

impl Function {
    /// The function at `address` (`DOMAIN:BUS:DEVICE.FUNCTION`).
    pub fn at(address: &str) -> Result<Self, Box<dyn Error>> {
        let folder = Path::new("/sys/bus/pci/devices").join(address);
        if !folder.exists() {
            return Err(format!("no PCI function at {address}").into());
        }
        Ok(Self { folder })
    }

    /// A new mediated device of `parent`'s type `kind` (`mtty-1`, ...), under this UUID.
    pub fn mediated(parent: &str, kind: &str, uuid: &str) -> Result<Self, Box<dyn Error>> {
        let create = format!("/sys/class/mdev_bus/{parent}/mdev_supported_types/{kind}/create");
        fs::write(&create, uuid).map_err(|error| format!("{create}: {error}"))?;
        let folder = Path::new("/sys/bus/mdev/devices").join(uuid);
        Ok(Self { folder })
    }

    /// The first function with these ids, in order of address.
    pub fn with_ids(vendor: u16, device: u16) -> Result<Self, Box<dyn Error>> {
        let mut folders: Vec<_> = fs::read_dir("/sys/bus/pci/devices")?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        folders.sort();
        for folder in folders {
            let function = Self { folder };
            if function.ids()? == (vendor, device) {
                return Ok(function);
            }
        }
        Err(format!("no PCI function {vendor:04x}:{device:04x}").into())
    }

    /// Its place, as `DOMAIN:BUS:DEVICE.FUNCTION`.
    pub fn address(&self) -> String {
        name_of(&self.folder)
    }

    /// Its folder.
    pub fn path(&self) -> String {
        self.folder.to_string_lossy().into_owned()
    }

    /// Vendor and device ID.
    pub fn ids(&self) -> Result<(u16, u16), Box<dyn Error>> {
        let number = |name| -> Result<u16, Box<dyn Error>> {
            let text = self.read(name)?;
            Ok(u16::from_str_radix(text.trim_start_matches("0x"), 16)?)
        };
        Ok((number("vendor")?, number("device")?))
    }

    /// The text of an attribute.
    pub fn read(&self, attribute: &str) -> Result<String, Box<dyn Error>> {
        let text = fs::read_to_string(self.folder.join(attribute))
            .map_err(|error| format!("{} {attribute}: {error}", self.address()))?;
        Ok(text.trim().to_owned())
    }

    /// Writes an attribute.
    pub fn write(&self, attribute: &str, text: &str) -> Result<(), Box<dyn Error>> {
        fs::write(self.folder.join(attribute), text)
            .map_err(|error| format!("{} {attribute}: {error}", self.address()).into())
    }

    /// The driver that has it.
    pub fn driver(&self) -> Option<String> {
        fs::canonicalize(self.folder.join("driver"))
            .ok()
            .map(|path| name_of(&path))
    }

    /// Takes it from its driver, if it has one.
    pub fn unbind(&self) -> Result<(), Box<dyn Error>> {
        match self.driver() {
            Some(_) => self.write("driver/unbind", &self.address()),
            None => Ok(()),
        }
    }

    /// Gives it to vfio-pci, and only it.
    pub fn bind_to_vfio(&self) -> Result<(), Box<dyn Error>> {
        if self.driver().as_deref() == Some("vfio-pci") {
            return Ok(());
        }
        self.unbind()?;
        self.write("driver_override", "vfio-pci")?;
        fs::write("/sys/bus/pci/drivers_probe", self.address())?;
        match self.driver() {
            Some(driver) if driver == "vfio-pci" => Ok(()),
            driver => Err(format!("{} is bound to {driver:?}", self.address()).into()),
        }
    }

    /// The number of its IOMMU group.
    pub fn group(&self) -> Result<String, Box<dyn Error>> {
        let path = fs::canonicalize(self.folder.join("iommu_group"))
            .map_err(|error| format!("{} has no IOMMU group: {error}", self.address()))?;
        Ok(name_of(&path))
    }

    /// The addresses of all functions of its IOMMU group, itself included.
    pub fn group_members(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join("iommu_group/devices"))? {
            names.push(name_of(&entry?.path()));
        }
        names.sort();
        Ok(names)
    }

    /// The group's file.
    pub fn group_file(&self) -> Result<PathBuf, Box<dyn Error>> {
        Ok(Path::new("/dev/vfio").join(self.group()?))
    }

    /// The device's own file, where the kernel has such.
    pub fn cdev_file(&self) -> Result<Option<PathBuf>, Box<dyn Error>> {
        let Ok(mut entries) = fs::read_dir(self.folder.join("vfio-dev")) else {
            return Ok(None);
        };
        let entry = entries.next().ok_or("an empty vfio-dev folder")??;
        let file = Path::new("/dev/vfio/devices").join(name_of(&entry.path()));
        // The folder is there without the file on kernels without cdev.
        Ok(file.exists().then_some(file))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
