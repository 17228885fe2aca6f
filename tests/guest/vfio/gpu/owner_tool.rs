// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-ctl` moves devices of the kernel: live from one backend to another, and by way of a file.

use std::{
    error::Error,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use system_tests::{pci, raw_client::RawClient};

use super::{BAR0, BAR2, SCRATCH, TestGpu, VRAM};
use crate::{
    Outcome, check_eq, say,
    vfio::backend::{CONFIG, Listening},
};

const SOURCE: &str = "/tmp/source.sock";
const DESTINATION: &str = "/tmp/destination.sock";
const FILE: &str = "/tmp/device.stream";
const REPORT: &str = "/tmp/report.html";

/// Live migration, and save and load, of each kind of device.
pub fn every_way() -> Outcome {
    let limit = ["--downtime-limit", "60000"];
    // Nothing moves before the stop that a bandwidth could be told from: it is given.
    let both = ["--bandwidth", "500M", "--downtime-limit", "60000"];
    for (kind, options) in [("full", &limit[..]), ("stop", &both), ("v1-across", &[])] {
        let said = between(kind, &|| {
            let migrate = ["migrate", "--from", SOURCE, "--to", DESTINATION];
            ctl(&[&migrate[..], &["--json", "--report", REPORT], options].concat())
        })?;
        let report = std::fs::read_to_string(REPORT)?;
        check_eq!(report.contains("<svg"), true, "a picture in the report");
        let figures: Value = serde_json::from_str(&said)?;
        check_eq!(
            figures["downtime_ms"].is_number(),
            true,
            "downtime_ms in {figures}"
        );
        say(&format!("{kind}: migrate: {figures}"));
        between(kind, &|| {
            ctl(&["save", "--live", "--output", FILE, SOURCE])?;
            ctl(&["load", DESTINATION, FILE])
        })?;
        say(&format!(
            "{kind}: saved and loaded, {} bytes",
            std::fs::metadata(FILE)?.len()
        ));
    }
    Ok(())
}

/// Starts two backends, has `moved` move the device, and looks whether it is there. What `moved` printed.
fn between(
    kind: &str,
    moved: &dyn Fn() -> Result<String, Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
    let (there, here) = (TestGpu::new(kind)?, TestGpu::new(kind)?);
    let mut source = listening(&there, SOURCE)?;
    let mut destination = listening(&here, DESTINATION)?;
    drop((source.connect()?, destination.connect()?));
    let mut client = RawClient::attach(Path::new(SOURCE));
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    client.write(CONFIG, u64::from(pci::COMMAND), &command.to_le_bytes());
    client.write32(BAR2, SCRATCH, 0x600d_cafe);
    for at in (0..VRAM).step_by(1 << 20) {
        client.write(BAR0, u64::try_from(at)?, kind.as_bytes());
    }
    drop(client);
    let said = moved().map_err(|error| format!("{kind}: {error}"))?;
    let mut client = RawClient::attach(Path::new(DESTINATION));
    let scratch = client.read32(BAR2, SCRATCH);
    check_eq!(scratch, 0x600d_cafe, "{kind}: a register, moved");
    for at in (0..VRAM).step_by(1 << 20) {
        let seen: [u8; 16] = client.read(BAR0, u64::try_from(at)?);
        check_eq!(
            seen.starts_with(kind.as_bytes()),
            true,
            "{kind}: VRAM at {at:#x}, moved"
        );
    }
    for gpu in [&there, &here] {
        check_eq!(
            gpu.get("refused_states")?,
            0,
            "{kind}: states that it does not have"
        );
    }
    drop(client);
    for backend in [source, destination] {
        let status = backend.terminate()?;
        check_eq!(
            status.success(),
            true,
            "{kind}: a backend that was told to end: {status}"
        );
    }
    Ok(said)
}

fn listening(gpu: &TestGpu, socket: &'static str) -> Result<Listening, Box<dyn Error>> {
    let mut command = Command::new("/bin/vfio-user-gpu");
    command.args(["--device", &gpu.function.path(), "--socket-path", socket]);
    // The tool is one client after another.
    command.args(["--on-disconnect", "keep"]);
    Listening::start(command, socket)
}

/// Runs the tool; what it printed.
fn ctl(arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new("/bin/vfio-user-ctl")
        .args(arguments)
        .output()?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).trim_end().to_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Err(format!("vfio-user-ctl {arguments:?}: {status}: {stderr}").into())
}
