// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `/init` of test guests: brings the system up, runs the checks named on the kernel command line, says on the
//! console how each went (the lines that `system_tests::guest` reads), and powers off.
//!
//! A check looks at the device as a user-space driver does, through sysfs, `mmap` and UIO, or through DRM.

mod dma;
mod draw;
mod engine;
mod interrupt;
mod lspci;
mod mapping;
mod pci_device;
mod registers;
mod reset;
mod system;
mod vfio;

use std::{error::Error, io::Write, panic};

use system_tests::nested_qemu;

/// How a check ends: with the reason when it fails.
type Outcome = Result<(), Box<dyn Error>>;

/// Fails the check unless two values are equal, naming both.
macro_rules! check_eq {
    ($seen:expr, $wanted:expr, $($what:tt)+) => {{
        let (seen, wanted) = ($seen, $wanted);
        if seen != wanted {
            return Err(format!("{}: {seen:#x?} seen, {wanted:#x?} wanted", format_args!($($what)+)).into());
        }
    }};
}
use check_eq;

fn main() {
    // This program again, as one of a check's other processes.
    let mut arguments = std::env::args();
    if arguments.next().as_deref() == Some(nested_qemu::WRAPPER) {
        say(&vfio::become_qemu().to_string());
        return;
    }
    if arguments.next().as_deref() == Some(vfio::HOLD_DMA) {
        if let Err(error) = vfio::hold_dma(&arguments.next().unwrap_or_default()) {
            say(&error.to_string());
        }
        return;
    }
    if let Err(error) = system::bring_up() {
        say(&format!("init FAILED: {error}"));
        system::power_off();
    }
    match system::wanted_checks() {
        Ok(names) => names.iter().for_each(|name| run(name)),
        Err(error) => say(&format!("init FAILED: {error}")),
    }
    say("checks done");
    system::power_off();
}

fn run(name: &str) {
    // The harness fails by panic, and an init that dies takes the machine with it.
    let outcome = panic::catch_unwind(|| check(name))
        .unwrap_or_else(|_| Err("it panicked, see above".into()));
    match outcome {
        Ok(()) => say(&format!("check {name} ok")),
        Err(why) => {
            say(&system::kernel_log());
            // One line, whatever the reason's own form.
            let why = why.to_string().replace('\n', " ");
            say(&format!("check {name} FAILED: {why}"));
        }
    }
}

/// Runs the check `name`.
fn check(name: &str) -> Outcome {
    match name {
        "config" => registers::config_space(),
        "registers" => registers::engine_registers(),
        "vram" => registers::vram(),
        "dma" => dma::copy(),
        "dma-errors" => dma::errors(),
        "interrupt" => interrupt::intx(),
        "reset" => reset::function_level(),
        "draw" => draw::draw(),
        "lspci" => lspci::displays(),
        _ => match vfio::check(name) {
            Some(check) => check(),
            None => Err("there is no such check".into()),
        },
    }
}

/// Prints a line in one write.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A console that cannot be written leaves nobody to tell.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}
