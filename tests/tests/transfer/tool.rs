// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-ctl migrate`, `save` and `load`, as people and scripts use them.

use std::fs;
use std::process::{Command, Output, Stdio};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::Signal;
use serde_json::Value;
use system_tests::backend::Backend;
use system_tests::binaries;
use system_tests::process::Process;
use vfio_user_client::protocol::{self, migration::MigrationState};
use vfio_user_client::{Client, MigrationFeatures};

use super::vm::{Vm, options, text};

pub const LENGTH: usize = 3 << 20;

pub fn start(model: &[&str]) -> Backend {
    let model = [&["vram=4M"], model].concat();
    Backend::start_with(&model, &["--on-disconnect", "keep"])
}

/// Started so that its log tells what its clients asked for.
pub fn start_watched(model: &[&str]) -> Backend {
    let model = [&["vram=4M"], model].concat();
    let arguments = ["--on-disconnect", "keep", "--log-level", "trace"];
    Backend::start_with(&model, &arguments)
}

/// The states in which clients left their migration channels, by the log of a backend. With `keep` a device goes on
/// afterwards whatever its client did: that would not tell.
pub fn left_in(backend: &Backend) -> Vec<String> {
    let report = backend.report();
    let mut states = Vec::new();
    let mut now = "RUNNING";
    for line in report.lines() {
        if let Some((_, state)) = line.split_once("Migration state ") {
            now = state;
        } else if line.contains("Migration channel closed") {
            states.push(now.to_owned());
        }
    }
    states
}

/// How often clients asked for a reset of the device, by the log of a backend.
pub fn resets(backend: &Backend) -> usize {
    let asked = format!("command: {},", u16::from(protocol::Command::DeviceReset));
    backend.report().matches(&asked).count()
}

/// Uses the device of a backend, as one of its clients.
#[track_caller]
pub fn with<R>(backend: &Backend, act: impl FnOnce(&mut Vm<'_>) -> R) -> R {
    let mut clients = 0;
    // The one before may just be leaving.
    let client = loop {
        match Client::connect(backend.socket(), options(MigrationFeatures::default())) {
            Ok(client) => break client,
            Err(error) if clients < 1000 => {
                clients += 1;
                assert_eq!(error.errno(), 16, "busy: {error}");
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    };
    act(&mut Vm::new(&client))
}

pub fn ctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(binaries::ctl());
    command
        .args(arguments)
        .output()
        .expect("vfio-user-ctl runs")
}

pub fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[track_caller]
pub fn line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_device_goes_from_socket_to_socket() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(41, LENGTH));
    source.wait_until_left(1);
    let folder = tempfile::TempDir::new().expect("a folder");
    let page = folder.path().join("page.html");
    let output = ctl(&[
        "migrate",
        "--from",
        text(&source.socket()),
        "--to",
        text(&destination.socket()),
        "--report",
        text(&page),
        "--bandwidth",
        "400Mbit",
    ]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("migrated: ") && text.contains("\ndowntime: "),
        "{text}"
    );
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(
        progress.contains("pass 1: ") && progress.contains("switch-over"),
        "{progress}"
    );
    let page = fs::read_to_string(page).expect("a page");
    assert!(
        page.contains("<svg") && page.contains("Outcome</td><td>migrated"),
        "{page}"
    );
    destination.wait_until_left(1);
    with(&destination, |vm| vm.check(41, LENGTH));
}

#[test]
pub fn programs_are_told_in_json() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(42, LENGTH));
    source.wait_until_left(1);
    let (from, to) = (source.socket(), destination.socket());
    let output = ctl(&[
        "migrate",
        "--json",
        "--from",
        text(&from),
        "--to",
        text(&to),
    ]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["ok"], true);
    assert!(
        object["bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 3 << 20)
    );
    for key in [
        "passes",
        "downtime_ms",
        "expected_downtime_ms",
        "throughput_mib_s",
        "total_ms",
    ] {
        assert!(
            object[key].as_f64().is_some_and(|value| value > 0.0),
            "{key}: {object:#}"
        );
    }
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_backend_that_resets_when_it_is_left_is_named() {
    let (source, destination) = (start(&[]), Backend::start_model(&["vram=4M"]));
    let (from, to) = (source.socket(), destination.socket());
    let output = ctl(&[
        "migrate",
        "--json",
        "--from",
        text(&from),
        "--to",
        text(&to),
    ]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let line = line(&output);
    assert!(
        line.contains("--on-disconnect keep") && line.contains(text(&to)),
        "{line}"
    );
}

#[test]
fn what_cannot_be_is_said_in_one_line_and_the_source_runs_on() {
    let source = start(&[]);
    with(&source, |vm| vm.fill(43, LENGTH));
    source.wait_until_left(1);
    let from = source.socket();
    let smaller = Backend::start_model(&["vram=2M"]);
    let to = smaller.socket();
    let output = ctl(&[
        "migrate",
        "--json",
        "--from",
        text(&from),
        "--to",
        text(&to),
    ]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    let said = line(&output);
    assert!(
        said.contains("Destination: ") && said.contains("4194304"),
        "{said}"
    );
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["ok"], false);
    source.wait_until_left(2);

    // Garbage sizes: no limit can be promised, and without one it goes.
    let garbage = start(&["faults=garbage-sizes"]);
    let other = start(&[]);
    let (from, to) = (garbage.socket(), other.socket());
    let base = [
        "migrate",
        "--json",
        "--from",
        text(&from),
        "--to",
        text(&to),
    ];
    let output = ctl(&[
        &base[..],
        &["--downtime-limit", "1000", "--bandwidth", "1G"],
    ]
    .concat());
    assert_eq!(code(&output), Some(3), "{output:?}");
    assert!(line(&output).contains("does not say"), "{output:?}");
    garbage.wait_until_left(1);
    other.wait_until_left(1);
    let output = ctl(&base);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["expected_downtime_ms"], Value::Null, "{object:#}");

    with(&source, |vm| vm.check(43, LENGTH));
}

/// There is nothing to acknowledge before the switch-over, whatever the destination could.
#[test]
fn a_source_without_pre_copy_reaches_a_destination_with_it() {
    let (source, destination) = (start(&["faults=no-precopy"]), start(&[]));
    with(&source, |vm| vm.fill(48, LENGTH));
    source.wait_until_left(1);
    let (from, to) = (source.socket(), destination.socket());
    let output = ctl(&["migrate", "--from", text(&from), "--to", text(&to)]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    destination.wait_until_left(1);
    with(&destination, |vm| vm.check(48, LENGTH));
}

#[test]
fn an_interrupted_migration_leaves_the_source_running() {
    // It changes faster than the link is, so that it does not end by itself before it is told to.
    let source = start_watched(&["faults=dirty-rate=50M"]);
    let destination = start_watched(&[]);
    with(&source, |vm| vm.enable());
    source.wait_until_left(1);
    let mut command = Command::new(binaries::ctl());
    command
        .args(["migrate", "--from", text(&source.socket())])
        .args(["--to", text(&destination.socket())])
        .args(["--bandwidth", "1M", "--downtime-limit", "1"]);
    let mut migrate = Process::spawn("vfio-user-ctl", command);
    migrate.wait_for_errors("that a pass is over", 1, |line| line.starts_with("pass 1"));
    let status = migrate.end_by(Signal::INT);
    assert_eq!(status.code(), Some(130), "{}", migrate.report());
    assert!(migrate.stderr().contains("Interrupted: the source runs on"));
    source.wait_until_left(2);
    destination.wait_until_left(1);
    assert_eq!(left_in(&source), ["RUNNING"]);
    assert_eq!(resets(&destination), 1);
    with(&source, |vm| {
        assert_eq!(vm.state(), MigrationState::Running);
        vm.works();
    });
    with(&destination, |vm| {
        vm.fill(47, LENGTH);
        vm.check(47, LENGTH);
    });
}

/// One signal is enough, also while the tool waits for the link, for its stdin, or for whoever reads its stream.
#[test]
fn a_wait_ends_with_the_first_signal() {
    let (source, destination) = (start_watched(&[]), start(&[]));
    with(&source, |vm| vm.fill(51, LENGTH));
    source.wait_until_left(1);
    let (from, to) = (source.socket(), destination.socket());
    let mut command = Command::new(binaries::ctl());
    // Each chunk takes longer than any test.
    command
        .args(["migrate", "--from", text(&from), "--to", text(&to)])
        .args(["--bandwidth", "1K"]);
    let mut migrate = Process::spawn("vfio-user-ctl", command);
    source.wait_for_log("Client attached", 2);
    destination.wait_for_log("Client attached", 1);
    let status = migrate.end_by(Signal::TERM);
    assert_eq!(status.code(), Some(130), "{}", migrate.report());
    source.wait_until_left(2);
    destination.wait_until_left(1);

    let mut command = Command::new(binaries::ctl());
    command.args(["load", text(&to)]);
    // Its stdin stays open, and gives nothing.
    let mut load = Process::spawn("vfio-user-ctl", command);
    destination.wait_for_log("Client attached", 2);
    let status = load.end_by(Signal::TERM);
    assert_eq!(status.code(), Some(130), "{}", load.report());

    let folder = tempfile::TempDir::new().expect("a folder");
    let fifo = folder.path().join("fifo");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("a FIFO");
    let mut command = Command::new(binaries::ctl());
    command.args(["save", text(&from), "-o", text(&fifo)]);
    let mut save = Process::spawn("vfio-user-ctl", command);
    let reader = fs::File::open(&fifo).expect("its other end");
    let room = fcntl_getpipe_size(&reader).expect("a pipe");
    while ioctl_fionread(&reader).expect("a pipe") < room as u64 {
        assert!(!save.has_ended(), "{}", save.report());
        std::thread::yield_now();
    }
    let status = save.end_by(Signal::TERM);
    assert_eq!(status.code(), Some(130), "{}", save.report());
    source.wait_until_left(3);
    drop(reader);

    // Nobody has its other end.
    for arguments in [
        ["load", text(&to), text(&fifo)].as_slice(),
        &["save", text(&from), "-o", text(&fifo)],
    ] {
        let mut command = Command::new(binaries::ctl());
        command.args(arguments);
        let mut waits = Process::spawn("vfio-user-ctl", command);
        while !catches(&waits, Signal::HUP) {
            assert!(!waits.has_ended(), "{}", waits.report());
            std::thread::yield_now();
        }
        let status = waits.end_by(Signal::TERM);
        assert_eq!(status.code(), Some(130), "{}", waits.report());
    }
    assert_eq!(left_in(&source), ["RUNNING", "RUNNING"]);
    with(&source, |vm| vm.check(51, LENGTH));
}

/// Whether a process has a handler for a signal; the tool's last one is that for SIGHUP.
fn catches(process: &Process, signal: Signal) -> bool {
    let status = format!("/proc/{}/status", process.id());
    let status = fs::read_to_string(status).expect("a process that was not reaped");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.expect("a mask") & 1 << (signal.as_raw() - 1) != 0
}

/// The destination runs: that the source cannot be put to rest as it should is no failure of the migration.
#[test]
fn a_source_that_does_not_stop_in_the_end_is_warned_of() {
    let (source, destination) = (start(&["faults=state-error=stop"]), start(&[]));
    with(&source, |vm| vm.fill(50, LENGTH));
    source.wait_until_left(1);
    let (from, to) = (source.socket(), destination.socket());
    let output = ctl(&[
        "migrate",
        "--json",
        "--from",
        text(&from),
        "--to",
        text(&to),
    ]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let said = line(&output);
    assert!(
        said.contains("Source: ") && said.contains("stands still"),
        "{said}"
    );
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["ok"], true);
    destination.wait_until_left(1);
    with(&destination, |vm| vm.check(50, LENGTH));
}

/// There is a warning to write, and nobody to read it.
#[test]
fn whoever_closes_stderr_loses_nothing_else() {
    let (source, destination) = (start(&[]), Backend::start_model(&["vram=4M"]));
    let (from, to) = (source.socket(), destination.socket());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(binaries::ctl())
        .args([
            "migrate",
            "--json",
            "--from",
            text(&from),
            "--to",
            text(&to),
        ])
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .and_then(|child| child.wait_with_output())
        .expect("vfio-user-ctl runs");
    assert_eq!(code(&output), Some(0), "{output:?}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["ok"], true);
}

#[test]
fn info_tells_what_migrates() {
    let source = start(&["faults=state-size=1G"]);
    let output = ctl(&["info", text(&source.socket())]);
    let text_found = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "Migration: yes (stop-copy, p2p, pre-copy)",
        "\tState: RUNNING",
        "\tStop-copy: about 1.00 GiB",
        "\tmigration data: model",
        "\ton disconnect: keep",
    ] {
        assert!(
            text_found.contains(expected),
            "no {expected:?} in:\n{text_found}"
        );
    }
    source.wait_until_left(1);
    let output = ctl(&["info", "--json", text(&source.socket())]);
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["migration"]["state"], "RUNNING");
    assert!(object["migration"]["stop_copy_bytes"].as_u64() > Some(1 << 30));
}
