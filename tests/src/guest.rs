// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest: a kernel tree, its modules and our own `/init`, which runs the checks that it is asked for and says
//! on the console how each went.
//!
//! What `/init` prints (`guest/main.rs`), each on a line of its own: `check NAME ok`, `check NAME FAILED: WHY`,
//! `ready NAME` when a check waits for a line from outside, `checks done` before power-off.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::{
    binaries,
    initramfs::Initramfs,
    qemu::{Qemu, QemuCommand},
};

/// The kernel parameter that names the checks, separated by commas.
pub const CHECKS_PARAMETER: &str = "system_tests.checks";

/// A guest in the making.
#[derive(Debug)]
pub struct Guest {
    kernel: PathBuf,
    memory: u32,
    processors: u32,
    append: String,
    machine: Vec<String>,
    devices: Vec<Value>,
    folders: Vec<String>,
    files: Vec<(String, PathBuf)>,
    modules: Vec<(String, PathBuf)>,
}

impl Guest {
    /// A guest with the kernel of `tree` (`vmlinuz`, `modules/`, `load-order`) and 256 MiB of RAM.
    #[must_use]
    pub fn new(tree: PathBuf) -> Self {
        Self {
            kernel: tree,
            memory: 256,
            processors: 1,
            append: String::new(),
            machine: Vec::new(),
            devices: Vec::new(),
            folders: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
        }
    }

    /// Gives it `memory` MiB of RAM and so many processors.
    #[must_use]
    pub fn size(mut self, memory: u32, processors: u32) -> Self {
        self.memory = memory;
        self.processors = processors;
        self
    }

    /// Sets a property of the machine, as `NAME=VALUE`.
    #[must_use]
    pub fn machine_property(mut self, property: &str) -> Self {
        self.machine.push(property.to_owned());
        self
    }

    /// Makes a folder, without a leading slash, in the guest's root.
    #[must_use]
    pub fn folder(mut self, path: &str) -> Self {
        self.folders.push(path.to_owned());
        self
    }

    /// Puts the file `source` at `path`, which has no leading slash, into the guest's root; its folder must exist.
    #[must_use]
    pub fn file(mut self, path: &str, source: PathBuf) -> Self {
        self.files.push((path.to_owned(), source));
        self
    }

    /// Has it load a module after those of its kernel's tree.
    #[must_use]
    pub fn module(mut self, name: &str, source: PathBuf) -> Self {
        self.modules.push((name.to_owned(), source));
        self
    }

    /// Adds kernel parameters.
    #[must_use]
    pub fn append(mut self, parameters: &str) -> Self {
        self.append.push_str(parameters);
        self.append.push(' ');
        self
    }

    /// Adds a device, in QEMU's JSON form.
    #[must_use]
    pub fn device(mut self, device: Value) -> Self {
        self.devices.push(device);
        self
    }

    /// Boots it; `/init` then runs `checks` in this order.
    ///
    /// # Panics
    /// When the kernel tree is incomplete or QEMU does not start.
    #[must_use]
    #[track_caller]
    pub fn boot(self, checks: &[&str]) -> RunningGuest {
        let initrd = NamedTempFile::with_prefix("initramfs-").expect("a temporary file");
        fs::write(initrd.path(), self.initramfs()).expect("a written initramfs");
        let append = format!("{} {CHECKS_PARAMETER}={}", self.append, checks.join(","));
        let mut command = QemuCommand::new(self.memory)
            .processors(self.processors)
            .linux(&self.kernel.join("vmlinuz"), initrd.path(), &append);
        for property in &self.machine {
            command = command.machine_property(property);
        }
        for device in &self.devices {
            command = command.device(device);
        }
        RunningGuest {
            qemu: command.start(),
            checks: checks.iter().map(|name| (*name).to_owned()).collect(),
            _initrd: initrd,
        }
    }

    #[track_caller]
    fn initramfs(&self) -> Vec<u8> {
        let mut order =
            String::from_utf8_lossy(&read(&self.kernel.join("load-order"))).into_owned();
        let packaged: Vec<_> = order.lines().map(str::to_owned).collect();
        let mut archive = Initramfs::new();
        for folder in ["bin", "modules", "proc", "sys", "tmp"] {
            archive.folder(folder);
        }
        for module in packaged {
            let content = read(&self.kernel.join("modules").join(&module));
            archive.file(&format!("modules/{module}"), &content);
        }
        for (name, source) in &self.modules {
            archive.file(&format!("modules/{name}"), &read(source));
            order.push_str(name);
            order.push('\n');
        }
        archive.file("modules/load-order", order.as_bytes());
        for folder in &self.folders {
            archive.folder(folder);
        }
        for (path, source) in &self.files {
            archive.file(path, &read(source));
        }
        archive.file("init", &read(&binaries::guest_init()));
        archive.finish()
    }
}

#[track_caller]
fn read(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(content) => content,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// A guest that was started.
#[derive(Debug)]
pub struct RunningGuest {
    /// Its QEMU.
    pub qemu: Qemu,
    checks: Vec<String>,
    _initrd: NamedTempFile,
}

impl RunningGuest {
    /// Waits until the check `name` has prepared what the test wants to look at, and waits to be told to go on.
    ///
    /// # Panics
    /// When the check fails or the guest ends first.
    #[track_caller]
    pub fn wait_until_ready(&self, name: &str) {
        let ready = format!("ready {name}");
        let over = format!("check {name} ");
        let line = self
            .qemu
            .process
            .wait_for_line(&ready, |line| line == ready || line.starts_with(&over));
        assert_eq!(line, ready, "{}", self.qemu.process.report());
    }

    /// Lets a check that is ready go on.
    ///
    /// # Panics
    /// When the guest is gone.
    #[track_caller]
    pub fn go_on(&mut self) {
        self.qemu.process.send(b"\n");
    }

    /// Waits for the guest to power off and returns how each check went.
    ///
    /// # Panics
    /// When QEMU fails or the guest ends before its last check.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> Report {
        // One by one, so that patience is for each check and not for all.
        for name in &self.checks {
            let over = format!("check {name} ");
            self.qemu
                .process
                .wait_for_line(&over, |line| line.starts_with(&over));
        }
        let status = self.qemu.wait();
        let process = &self.qemu.process;
        assert!(
            status.success(),
            "QEMU ended with {status}\n{}",
            process.report()
        );
        let report = Report::parse(&process.stdout());
        assert!(
            report.complete,
            "the guest ended before its checks\n{}",
            process.report()
        );
        report
    }
}

/// What the guest's checks found.
#[derive(Debug)]
pub struct Report {
    checks: BTreeMap<String, Result<(), String>>,
    complete: bool,
    console: String,
}

impl Report {
    fn parse(console: &str) -> Self {
        let mut checks = BTreeMap::new();
        let mut complete = false;
        for line in console.lines() {
            let line = line.trim_end();
            complete |= line == "checks done";
            let Some(rest) = line.strip_prefix("check ") else {
                continue;
            };
            if let Some((name, why)) = rest.split_once(" FAILED: ") {
                checks.insert(name.to_owned(), Err(why.to_owned()));
            } else if let Some(name) = rest.strip_suffix(" ok") {
                checks.insert(name.to_owned(), Ok(()));
            }
        }
        Self {
            checks,
            complete,
            console: console.to_owned(),
        }
    }

    /// Asserts that the check `name` ran and passed.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_ok(&self, name: &str) {
        match self.checks.get(name) {
            Some(Ok(())) => {}
            Some(Err(why)) => panic!("in the guest: {why}\n--- console:\n{}", self.console),
            None => panic!(
                "the guest did not run {name}\n--- console:\n{}",
                self.console
            ),
        }
    }

    /// What the guest said.
    #[must_use]
    pub fn console(&self) -> &str {
        &self.console
    }

    /// Prints what the guest said, for the record of what was exercised.
    pub fn print(&self) {
        println!("{}", self.console);
    }

    /// Why the check `name` failed.
    #[must_use]
    pub fn failure(&self, name: &str) -> Option<&str> {
        self.checks.get(name)?.as_ref().err().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "boot\r\ncheck a ok\r\ncheck b FAILED: 1 is not 2\r\nchecks done\r\n";

    #[test]
    fn the_console_is_understood() {
        let report = Report::parse(CONSOLE);
        assert!(report.complete);
        report.assert_ok("a");
    }

    #[test]
    #[should_panic(expected = "in the guest: 1 is not 2")]
    fn a_failed_check_fails_the_test() {
        Report::parse(CONSOLE).assert_ok("b");
    }

    #[test]
    #[should_panic(expected = "did not run c")]
    fn a_check_that_never_ran_fails_the_test() {
        Report::parse(CONSOLE).assert_ok("c");
    }

    #[test]
    fn a_guest_that_stopped_early_is_not_complete() {
        assert!(!Report::parse("check a ok\n").complete);
    }
}
