// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, as the backend program conventions of the vfio-user specification have it.

mod view;

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};
use log::LevelFilter;

use crate::device::kernel::{BarHandoff, VfToken};
use crate::device::model::ModelOptions;
use crate::sandbox::Seccomp;
pub use view::{Switch, ViewOptions};

/// Owns a GPU and serves it to a virtual machine monitor over vfio-user.
///
/// One process serves one device to one client at a time. It stays in the foreground, logs to stderr and
/// ends on SIGTERM or SIGINT, or when the kernel wants the device back, with the device reset.
#[derive(Debug, Parser)]
#[command(name = "vfio-user-gpu", version, max_term_width = 100)]
#[command(group(ArgGroup::new("endpoint").args(["socket_path", "fd"])))]
#[command(group(ArgGroup::new("gpu").args(["device", "device_fd", "model"])))]
#[command(group(ArgGroup::new("companion").args(["iommufd_fd", "container_fd"])))]
#[command(after_help = "\
Examples:
  vfio-user-gpu --model --socket-path /run/gpu0.sock
  vfio-user-gpu --model=vram=256M,vram-file=/dev/shm/vram --socket-path /run/gpu0.sock
  vfio-user-gpu --device 0000:01:00.0 --user gpu --socket-path /run/gpu/gpu0.sock
  vfio-user-gpu --device-fd 3 --iommufd-fd 4 --fd 5

QEMU attaches with (guest memory must be shared, or no DMA reaches it):
  -object memory-backend-memfd,id=m0,size=4G,share=on -machine q35,memory-backend=m0
  -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/gpu0.sock\"}}'")]
pub struct Options {
    /// Listen on this path. A socket nobody listens on any more is replaced.
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Use this descriptor: a listening UNIX socket, or a connected one (then the process ends with its
    /// client).
    #[arg(long, value_name = "N")]
    pub fd: Option<RawFd>,

    /// Print what this program can do as JSON and exit.
    #[arg(long)]
    pub print_capabilities: bool,

    /// Serve this device of the kernel's VFIO: a PCI address (0000:01:00.0), the UUID of a mediated device, or
    /// a sysfs path. It is opened by cdev and iommufd where the kernel has both, else by group and
    /// container.
    #[arg(long, value_name = "BDF|UUID|PATH")]
    pub device: Option<String>,

    /// Serve the VFIO device of this descriptor, a cdev (bound or not) or a group's device; no path is
    /// opened. Needs --iommufd-fd or --container-fd.
    #[arg(long, value_name = "N", requires = "companion")]
    pub device_fd: Option<RawFd>,

    /// The iommufd that goes with the cdev of --device-fd.
    #[arg(long, value_name = "N", requires = "device_fd", conflicts_with_all = ["device", "model"])]
    pub iommufd_fd: Option<RawFd>,

    /// The container, with its IOMMU set, that goes with the group's device of --device-fd.
    #[arg(long, value_name = "N", requires = "device_fd", conflicts_with_all = ["device", "model"])]
    pub container_fd: Option<RawFd>,

    /// The VF token of the physical function, when --device is an SR-IOV virtual function that needs one.
    #[arg(long, value_name = "UUID", requires = "device", conflicts_with_all = ["device_fd", "model"])]
    pub vf_token: Option<VfToken>,

    /// How BARs reach the VMM: as dma-bufs where the kernel can map those, else every access is a message
    /// (auto); dma-bufs or refuse to start (dmabuf); through the VFIO device descriptor, which is fast
    /// everywhere and gives the VMM every ioctl of the device (device-fd); messages only (none).
    #[arg(
        long,
        value_name = "HOW",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub bar_handoff: BarHandoff,

    /// Started as root: open the device, then become this user for good. The socket path must be writable
    /// for that user.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// Serve the software GPU. Keys: vram=SIZE (power of two, 1M to 16G, default 64M), vram-file=PATH (keep
    /// VRAM in this file, so that it can be looked at; a client that has left and kept its mapping shares it with
    /// the next), config=FILE (serve the config space in this file, as `lspci -vv -xxxx` prints it or as sysfs has
    /// it, with BARs and interrupts that do nothing), igd=PATH (stand in the place of Intel graphics, with the
    /// OpRegion in this file), faults=FAULT+FAULT+... (what goes wrong when it migrates, for tests of VMMs).
    /// Faults: no-precopy, no-p2p, zero-in-precopy (0 bytes where drivers say ENOMSG), garbage-sizes,
    /// moving-sizes, slow-state=MS (each change of state), slow-save=MS (each read), read-error@BYTES,
    /// write-error@BYTES, state-error=STATE (fails once), broken=STATE (leads to ERROR), reinit@BYTES (new
    /// initial data), state-size=SIZE (more that only a stopped device gives),
    /// dirty-rate=BYTES/S (the device changes VRAM itself).
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, require_equals = true,
          default_missing_value = "")]
    pub model: Option<ModelOptions>,

    /// What becomes of the device when its client leaves.
    #[arg(long, value_name = "WHAT", default_value = "reset")]
    pub on_disconnect: OnDisconnect,

    /// Only this user may connect (may be repeated). Default: whoever can open the socket.
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,

    /// Permission bits of the socket path, in octal.
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = parse_mode)]
    pub socket_mode: u32,

    /// Give the socket path to this group (by number).
    #[arg(long, value_name = "GID")]
    pub socket_group: Option<u32>,

    /// Give up files, privileges and unexpected system calls before the first client.
    #[arg(long, value_name = "HOW", default_value = "strict")]
    pub sandbox: Sandbox,

    /// What an unexpected system call does in the sandbox.
    #[arg(long, value_name = "HOW", default_value = "kill")]
    pub seccomp: SeccompMode,

    /// How much to say on stderr; RUST_LOG overrides it.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// What the guest sees.
    #[command(flatten)]
    pub view: ViewOptions,
}

/// `--on-disconnect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDisconnect {
    /// Reset it: nothing of one client is left for the next.
    Reset,
    /// Leave it as it is, without interrupts and guest memory; a client that kept its mapping of VRAM shares it
    /// with the next.
    Keep,
}

impl Options {
    /// A descriptor number that two options name, each of which would own it.
    #[must_use]
    pub fn shared_descriptor(&self) -> Option<RawFd> {
        let numbers = [self.fd, self.device_fd, self.iommufd_fd, self.container_fd];
        let mut numbers: Vec<_> = numbers.into_iter().flatten().collect();
        numbers.sort_unstable();
        let twice = numbers.windows(2).find(|pair| pair[0] == pair[1])?;
        Some(twice[0])
    }
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Enter it, or do not serve.
    Strict,
    /// Keep every right.
    Off,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeccompMode {
    /// Kills the process.
    Kill,
    /// Is logged by the kernel and passes.
    Log,
    /// Passes: only files and privileges are given up.
    Off,
}

impl From<SeccompMode> for Seccomp {
    fn from(mode: SeccompMode) -> Self {
        match mode {
            SeccompMode::Kill => Self::Kill,
            SeccompMode::Log => Self::Log,
            SeccompMode::Off => Self::Off,
        }
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected octal permission bits such as 660".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::device::model::FAULTS;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_fault() {
        let help = Options::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for fault in FAULTS.split(", ") {
            assert!(help.contains(fault), "{fault}");
        }
    }

    #[test]
    fn one_device_and_what_goes_with_it() {
        let accepts = |args: &[&str]| {
            let all = ["vfio-user-gpu", "--socket-path", "s"].iter().chain(args);
            Options::try_parse_from(all).is_ok()
        };
        let token = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
        assert!(accepts(&["--device", "01:00.0", "--vf-token", token]));
        assert!(accepts(&[
            "--device-fd",
            "3",
            "--iommufd-fd",
            "4",
            "--user",
            "nobody"
        ]));
        assert!(accepts(&[
            "--device-fd",
            "3",
            "--container-fd",
            "4",
            "--bar-handoff",
            "device-fd"
        ]));
        for refused in [
            &["--device", "01:00.0", "--model"][..],
            &["--device-fd", "3"],
            &["--iommufd-fd", "3"],
            &[
                "--device-fd",
                "3",
                "--iommufd-fd",
                "4",
                "--container-fd",
                "5",
            ],
            &["--device", "01:00.0", "--iommufd-fd", "4"],
            &["--device", "01:00.0", "--vf-token", "7"],
            &["--model", "--vf-token", token],
            &["--device", "01:00.0", "--bar-handoff", "mmap"],
        ] {
            assert!(!accepts(refused), "{refused:?}");
        }
    }

    #[test]
    fn a_descriptor_has_one_owner() {
        let shared = |fd, iommufd| {
            let device = [
                "vfio-user-gpu",
                "--device-fd",
                "3",
                "--fd",
                fd,
                "--iommufd-fd",
                iommufd,
            ];
            Options::try_parse_from(device).unwrap().shared_descriptor()
        };
        assert_eq!(shared("4", "5"), None);
        assert_eq!(shared("5", "5"), Some(5));
        assert_eq!(shared("4", "3"), Some(3));
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("660"), Ok(0o660));
        for bad in ["9", "1000", "", "rw"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }
}
