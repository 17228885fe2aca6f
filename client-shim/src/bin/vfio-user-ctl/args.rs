// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand};
use vfio_user_client::{Client, Error, Options};

/// Looks at vfio-user devices, and shows that a backend works.
#[derive(Debug, Parser)]
#[command(name = "vfio-user-ctl", version, max_term_width = 100)]
// One line says better than the whole help that the action is missing.
#[command(arg_required_else_help = false)]
#[command(after_help = "\
Exit status: 0 done, 1 failed (the reason is one line on stderr), 2 bad arguments.

A server has one client at a time: info and bench cannot look at a device that a VMM uses.
When they leave, the server may reset the device.

Examples:
  vfio-user-ctl demo
  vfio-user-ctl info /run/gpu0.sock
  vfio-user-ctl info --json /run/gpu0.sock | jq .regions
  vfio-user-ctl info --dump opregion opregion.bin /run/gpu0.sock
  vfio-user-ctl bench --samples 100000 /run/gpu0.sock")]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show a device: identity, BARs, capabilities, regions, interrupts, in the manner of lspci -vv.
    Info(Info),
    /// Start a model GPU and use it: DMA both ways, interrupts, mapped VRAM, resets; check everything.
    Demo(Demo),
    /// Measure round trips: 4-byte accesses of config space, DMA_MAP with DMA_UNMAP.
    Bench(Bench),
}

/// Options of `info`.
#[derive(Debug, Group)]
pub struct Info {
    #[command(flatten)]
    pub target: Target,

    /// Write what a device-specific region holds to a file, too: opregion,
    /// host-bridge or lpc-bridge of Intel graphics. QEMU takes the first with -fw_cfg
    /// name=etc/igd-opregion,file=FILE.
    #[arg(long, num_args = 2, value_names = ["REGION", "FILE"])]
    pub dump: Option<Vec<String>>,
}

/// A server to attach to.
#[derive(Debug, Group)]
pub struct Target {
    /// The socket a server listens on.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// How long to wait for any one reply, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// Options of `demo`.
#[derive(Debug, Group)]
pub struct Demo {
    /// The backend program [default: vfio-user-gpu beside this program].
    #[arg(long, value_name = "PATH")]
    pub backend: Option<PathBuf>,

    /// Print one JSON object at the end instead of text on the way.
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench`.
#[derive(Debug, Group)]
pub struct Bench {
    #[command(flatten)]
    pub target: Target,

    /// How many times to do each.
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub samples: u32,
}

impl Target {
    /// Attaches without the twin socket.
    pub fn connect(&self) -> Result<Client, Error> {
        let options = Options {
            timeout: Some(Duration::from_secs(self.timeout)),
            describe: true,
            ..Options::default()
        };
        Client::connect(&self.socket, options)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
