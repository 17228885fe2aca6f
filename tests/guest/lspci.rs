// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The display devices as the guest's `lspci` decodes them, and their configuration space as the kernel reads it: on the
//! console, for the test outside to judge (the lines that `system_tests::view` reads).

use std::{fs, process::Command};

use crate::{Outcome, say};

/// Where the test put lspci and what it needs.
const FOLDER: &str = "/lspci";
/// Base class of display controllers, as sysfs writes it.
const DISPLAY: &str = "0x03";

/// Prints `config ADDRESS BYTES` and `lspci ADDRESS | LINE` for each.
pub fn displays() -> Outcome {
    let mut addresses = Vec::new();
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let folder = entry?.path();
        if !fs::read_to_string(folder.join("class"))?.starts_with(DISPLAY) {
            continue;
        }
        let address = folder.file_name().and_then(|name| name.to_str());
        let address = address.ok_or("a device without a name")?.to_owned();
        let bytes = fs::read(folder.join("config"))?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        say(&format!("config {address} {digits}"));
        addresses.push(address);
    }
    addresses.sort();
    for address in &addresses {
        decode(address)?;
    }
    if addresses.is_empty() {
        return Err("no display device".into());
    }
    Ok(())
}

fn decode(address: &str) -> Outcome {
    let output = Command::new(format!("{FOLDER}/ld.so"))
        .args(["--library-path", FOLDER])
        .arg(format!("{FOLDER}/lspci"))
        .args(["-vvv", "-i", &format!("{FOLDER}/pci.ids"), "-s", address])
        .output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        say(&format!("lspci {address} | {line}"));
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        // It looks for modules of the running kernel, which an initramfs does not have.
        if !line.contains("libkmod") {
            say(&format!("lspci {address} | !!! {line}"));
        }
    }
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("lspci ended with {}", output.status).into())
    }
}
