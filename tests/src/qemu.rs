// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running QEMU: the command line, the control sockets, the end.

use std::{
    ffi::OsStr,
    fs,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, ExitStatus},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{lane, process::Process, qmp::Qmp, qtest::Qtest};

/// A QEMU command line in the making: a q35 machine with no device but those asked for, its RAM in a shared memfd so that the backend can map it.
#[derive(Debug)]
pub struct QemuCommand {
    command: Command,
    /// More properties of the machine, each after a comma.
    machine: String,
    processors: u32,
    folder: TempDir,
    qtest: Option<UnixListener>,
}

impl QemuCommand {
    /// A machine with `memory` MiB of RAM.
    #[must_use]
    #[track_caller]
    pub fn new(memory: u32) -> Self {
        let mut command = Command::new(lane::qemu());
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .args(["-m", &format!("{memory}M")])
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=ram,size={memory}M,share=on"
            ));
        Self {
            command,
            machine: String::new(),
            processors: 1,
            folder: TempDir::with_prefix("qemu-").expect("a temporary folder"),
            qtest: None,
        }
    }

    /// Sets a property of the machine, as `NAME=VALUE`.
    #[must_use]
    pub fn machine_property(mut self, property: &str) -> Self {
        self.machine.push(',');
        self.machine.push_str(property);
        self
    }

    /// Gives it more than one processor.
    #[must_use]
    pub fn processors(mut self, count: u32) -> Self {
        self.processors = count;
        self
    }

    /// Puts the test in the processor's place: see [`Qtest`].
    #[must_use]
    pub fn qtest(mut self) -> Self {
        let (listener, path) = self.listener("qtest");
        self.qtest = Some(listener);
        self.args(["-accel", "qtest", "-qtest-log", "/dev/null", "-qtest"])
            .arg(format!("unix:{path}"))
    }

    /// Boots a Linux kernel under emulation (KVM is never used, so that every machine runs the same test), its console
    /// on the process's standard input and output.
    #[must_use]
    pub fn linux(self, kernel: &Path, initrd: &Path, append: &str) -> Self {
        self.args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 quiet {append}"))
    }

    /// Adds a device, in QEMU's JSON form.
    #[must_use]
    pub fn device(self, device: &Value) -> Self {
        self.arg("-device").arg(device.to_string())
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it ends before it is connected.
    #[must_use]
    #[track_caller]
    pub fn start(mut self) -> Qemu {
        let (qmp, path) = self.listener("qmp");
        let machine = format!("q35,memory-backend=ram{}", self.machine);
        let processors = self.processors.to_string();
        let this = self
            .args(["-machine", &machine, "-smp", &processors, "-qmp"])
            .arg(format!("unix:{path}"));
        let process = Process::spawn("QEMU", this.command);
        let qtest = this
            .qtest
            .map(|listener| Qtest::new(accept(&listener, &process)));
        let qmp = Qmp::new(accept(&qmp, &process));
        Qemu {
            process,
            qtest,
            qmp,
            folder: this.folder,
        }
    }

    /// A socket for QEMU to connect to, so that nobody has to wait for one of QEMU's.
    fn listener(&mut self, name: &str) -> (UnixListener, String) {
        let path = self.folder.path().join(name);
        let listener = UnixListener::bind(&path).expect("a socket in a fresh folder");
        let path = path.to_str().expect("temporary folders have plain names");
        (listener, path.to_owned())
    }
}

/// The connection that `process` makes, or the end of the test when it ends instead.
#[track_caller]
fn accept(listener: &UnixListener, process: &Process) -> UnixStream {
    assert!(
        process.wait_readable_or_end(listener),
        "QEMU ended before it connected\n{}",
        process.report()
    );
    listener.accept().expect("a pending connection").0
}

/// A running QEMU. Dropping it kills it.
#[derive(Debug)]
pub struct Qemu {
    /// The process: console on standard input and output, QEMU's complaints on standard error.
    pub process: Process,
    /// The machine protocol.
    pub qmp: Qmp,
    qtest: Option<Qtest>,
    folder: TempDir,
}

impl Qemu {
    /// The qtest connection.
    ///
    /// # Panics
    /// When QEMU was not started with [`QemuCommand::qtest`].
    #[track_caller]
    pub fn qtest(&mut self) -> &mut Qtest {
        self.qtest
            .as_mut()
            .expect("this QEMU runs a guest, not qtest")
    }

    /// The guest's physical memory, BARs included, as QEMU sees it.
    ///
    /// # Panics
    /// When QEMU cannot save it.
    #[must_use]
    #[track_caller]
    pub fn physical_memory(&mut self, address: u64, length: u64) -> Vec<u8> {
        let path = self.folder.path().join("memory");
        let arguments = json!({ "val": address, "size": length, "filename": path });
        self.qmp.execute("pmemsave", arguments);
        fs::read(path).expect("the file that QEMU saved")
    }

    /// Waits for the end, for instance of a guest that powers off.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }
}
