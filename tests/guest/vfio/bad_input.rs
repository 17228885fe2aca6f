// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of what the backend says when it cannot have a device: one line that names the cause and what to do.

use std::{fs, os::unix::fs::chown};

use super::{
    backend::Launch,
    kernel::OpenDevice,
    pci::Function,
    places::{self, EDU, SERIAL, SHARED_EDU},
    privileges::USER,
};
use crate::{Outcome, say};

/// Fails unless `line` has all of `words`, whatever their case.
fn names(line: &str, words: &[&str]) -> Outcome {
    say(line);
    let lower = line.to_lowercase();
    match words
        .iter()
        .find(|word| !lower.contains(&word.to_lowercase()))
    {
        None => Ok(()),
        Some(word) => Err(format!("{word:?} is not in: {line}").into()),
    }
}

/// An address where nothing is, one that is none, a path that leads nowhere.
pub fn no_such_device() -> Outcome {
    names(
        &Launch::with(&["--device", "0000:00:1e.7"]).refused()?,
        &["0000:00:1e.7"],
    )?;
    names(
        &Launch::with(&["--device", "nonsense"]).refused()?,
        &["nonsense"],
    )?;
    let path = "/sys/bus/pci/devices/0000:00:1e.7";
    names(
        &Launch::with(&["--device", path]).refused()?,
        &["0000:00:1e.7"],
    )
}

/// A device without a driver, and one with another driver.
pub fn not_bound() -> Outcome {
    let edu = Function::at(EDU)?;
    edu.unbind()?;
    let line = Launch::with(&["--device", EDU]).refused();
    edu.bind_to_vfio()?;
    names(&line?, &[EDU, "vfio-pci"])?;
    names(
        &Launch::with(&["--device", SERIAL]).refused()?,
        &[SERIAL, "vfio-pci", "serial"],
    )
}

/// A group of which the kernel still drives a part.
pub fn not_viable() -> Outcome {
    let function = Function::at(SHARED_EDU)?;
    function.bind_to_vfio()?;
    names(
        &Launch::with(&["--device", SHARED_EDU]).refused()?,
        &[&function.group()?, SERIAL, "serial"],
    )
}

/// A device that somebody else has open.
pub fn busy() -> Outcome {
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let owner = OpenDevice::open(&function)?;
    let line = Launch::with(&["--device", EDU]).refused();
    drop(owner);
    names(&line?, &["use"])
}

/// A user who may not open the device's file.
pub fn no_permission() -> Outcome {
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let refused = || Launch::with(&["--device", EDU]).user_id(USER).refused();
    let Some(file) = function.cdev_file()? else {
        let group = function.group_file()?;
        return names(&refused()?, &[&group.to_string_lossy(), "600"]);
    };
    let iommu = "/dev/iommu";
    names(&refused()?, &[iommu, "660"])?;
    chown(iommu, Some(USER), None)?;
    let line = refused();
    chown(iommu, Some(0), None)?;
    names(&line?, &[&file.to_string_lossy(), "600"])
}

/// A virtual function whose physical function's owner set a token.
pub fn vf_token() -> Outcome {
    places::with_virtual_function(|function, _token| {
        let line = Launch::with(&["--device", &function.address()]).refused()?;
        names(&line, &["token"])
    })
}

/// A machine without an IOMMU.
pub fn no_iommu() -> Outcome {
    if fs::read_dir("/sys/class/iommu").is_ok_and(|mut entries| entries.next().is_some()) {
        return Err("this machine has an IOMMU".into());
    }
    // vfio-pci does not take a device here.
    let function = Function::at(EDU)?;
    let _ = function.bind_to_vfio();
    names(
        &Launch::with(&["--device", EDU]).refused()?,
        &[EDU, "IOMMU"],
    )
}
