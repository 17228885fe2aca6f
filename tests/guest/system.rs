// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an init owes the system: mounts, modules, the kernel command line, power-off.

use std::{
    error::Error,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
};

use rustix::{
    fs::OFlags,
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};
use system_tests::guest::CHECKS_PARAMETER;

/// Mounts the kernel's file systems and loads the modules in `/modules/load-order`.
pub fn bring_up() -> Result<(), Box<dyn Error>> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, place, kind, MountFlags::empty(), None)
            .map_err(|error| format!("mount {place}: {error}"))?;
    }
    // Kernel messages must not cut our lines in two; a failed check prints them.
    fs::write("/proc/sys/kernel/printk", "1")?;
    let line = fs::read_to_string("/proc/cmdline")?;
    for module in fs::read_to_string("/modules/load-order")?.lines() {
        let file = File::open(format!("/modules/{module}"))?;
        let parameters = module_parameters(&line, module)?;
        finit_module(&file, &parameters, 0).map_err(|error| format!("module {module}: {error}"))?;
    }
    Ok(())
}

/// What the kernel command line says for a module (`NAME.PARAMETER=VALUE`), which the kernel itself applies only to what
/// is built in.
fn module_parameters(line: &str, module: &str) -> Result<CString, Box<dyn Error>> {
    let prefix = module.replace(".ko", ".");
    let own = line
        .split_ascii_whitespace()
        .filter_map(|parameter| parameter.strip_prefix(&prefix));
    Ok(CString::new(own.collect::<Vec<_>>().join(" "))?)
}

/// The checks that the kernel command line names.
pub fn wanted_checks() -> Result<Vec<String>, Box<dyn Error>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let mut parameters = line.split_ascii_whitespace();
    let names = parameters
        .find_map(|parameter| parameter.strip_prefix(CHECKS_PARAMETER)?.strip_prefix('='))
        .ok_or_else(|| format!("no {CHECKS_PARAMETER} on the kernel command line"))?;
    Ok(names.split(',').map(str::to_owned).collect())
}

/// The kernel's messages, as far as they can be had without waiting.
pub fn kernel_log() -> String {
    let mut text = String::new();
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open("/dev/kmsg");
    if let Ok(mut log) = log {
        let mut record = [0; 8192];
        // One record per read: "level,number,time,flags;message".
        while let Ok(length @ 1..) = log.read(&mut record) {
            let record = String::from_utf8_lossy(&record[..length]);
            let message = record.split_once(';').map_or("", |(_, message)| message);
            text.push_str(message.lines().next().unwrap_or_default());
            text.push('\n');
        }
    }
    text
}

/// Ends the virtual machine.
pub fn power_off() -> ! {
    let error = reboot(RebootCommand::PowerOff);
    // An init that returns panics the kernel, and that ends the machine too.
    panic!("power-off: {error:?}");
}
