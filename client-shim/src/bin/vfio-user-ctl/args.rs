// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as Group, Parser, Subcommand};
use vfio_user_client::{Client, Error, MigrationFeatures, Options};

use crate::units;

/// Looks at vfio-user devices, and shows that a backend works.
#[derive(Debug, Parser)]
#[command(name = "vfio-user-ctl", version, max_term_width = 100)]
// One line says better than the whole help that the action is missing.
#[command(arg_required_else_help = false)]
#[command(after_help = "\
Exit status: 0 done, 1 failed (the reason is one line on stderr), 2 bad arguments,
3 a migration that will not converge, 130 interrupted.

A server has one client at a time: no command can look at a device that a VMM uses, and migrate,
save and load move the device alone, without any guest memory. When a command leaves, the
server resets the device, unless it runs with --on-disconnect keep.

Examples:
  vfio-user-ctl demo
  vfio-user-ctl info /run/gpu0.sock
  vfio-user-ctl info --json /run/gpu0.sock | jq .regions
  vfio-user-ctl info --dump opregion opregion.bin /run/gpu0.sock
  vfio-user-ctl bench --samples 100000 /run/gpu0.sock
  vfio-user-ctl migrate --from /run/gpu0.sock --to /run/gpu1.sock --bandwidth 10Gbit
  vfio-user-ctl save --live /run/gpu0.sock | ssh host vfio-user-ctl load /run/gpu0.sock")]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show a device: identity, BARs, capabilities, regions, interrupts, in the manner of lspci -vv.
    Info(Info),
    /// Migrate a device from one server to another, live.
    ///
    /// This tool is the client of both; no VMM is attached to either meanwhile. Only the device moves: its memory and
    /// registers and what a guest set up in its config space, but no guest memory.
    Migrate(Migrate),
    /// Save a device: its stream goes to stdout or a file, and the device goes on.
    Save(Save),
    /// Load a device from stdin or a file: it is then as it was when it was saved, and runs.
    Load(Load),
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

/// Options of `migrate`.
#[derive(Debug, Group)]
pub struct Migrate {
    /// The server that has the device.
    #[arg(long, value_name = "SOCKET")]
    pub from: PathBuf,

    /// The server that is to have it.
    #[arg(long, value_name = "SOCKET")]
    pub to: PathBuf,

    /// Move no more than this in a second: bytes as 500M or 1.5G, or bits as 950Mbit.
    #[arg(long, value_name = "BYTES/S", value_parser = units::bandwidth)]
    pub bandwidth: Option<u64>,

    /// Stop the device only once the rest is expected to take no longer, in milliseconds [default: 300, and what
    /// cannot be predicted is risked].
    #[arg(long, value_name = "MS")]
    pub downtime_limit: Option<u64>,

    /// Write a page with remaining bytes, throughput and expected downtime over time.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// How long to wait for any one reply, in seconds; after a late one the source may take longer to go on.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// Options of `save`.
#[derive(Debug, Group)]
pub struct Save {
    /// The socket a server listens on.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Save what can be had while the device runs, and stop it for the rest only.
    #[arg(long)]
    pub live: bool,

    /// Where the stream goes [default: stdout]. A file is replaced once the stream is whole and on disk.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Print one JSON object at the end, instead of text on the way: on stdout, or on stderr where the stream goes to
    /// stdout.
    #[arg(long)]
    pub json: bool,

    /// How long to wait for any one reply, in seconds; after a late one the source may take longer to go on.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
}

/// Options of `load`.
#[derive(Debug, Group)]
pub struct Load {
    /// The socket a server listens on.
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Where the stream comes from [default: stdin].
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Print one JSON object at the end, instead of text on the way.
    #[arg(long)]
    pub json: bool,

    /// How long to wait for any one reply, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
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

/// What a client offers that migrates.
pub fn for_migration(timeout: u64) -> Options {
    Options {
        timeout: Some(Duration::from_secs(timeout)),
        describe: true,
        explain: true,
        migration: MigrationFeatures::ALL,
        ..Options::default()
    }
}

impl Target {
    /// Attaches without the twin socket.
    pub fn connect(&self) -> Result<Client, Error> {
        let options = Options {
            timeout: Some(Duration::from_secs(self.timeout)),
            describe: true,
            explain: true,
            // For the P2P states and for the sizes; nothing migrates here.
            migration: MigrationFeatures {
                pending: true,
                p2p: true,
                ..MigrationFeatures::default()
            },
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
