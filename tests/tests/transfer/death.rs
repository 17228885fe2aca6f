// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One of the two backends dies in the middle: the other is as it should be.

use std::process::Command;

use system_tests::backend::Backend;
use system_tests::binaries;
use system_tests::engine::Registers;
use system_tests::model_gpu::engine::SCRATCH;
use system_tests::process::Process;
use vfio_user_client::migration::Progress;
use vfio_user_client::{Client, Error};

use super::tool::{self, left_in, start, start_watched, with};
use super::vm::{Vm, backend, load, options, rest, snapshot, text, ways};

/// More than a loader collects before it notices.
const LENGTH: usize = 15 << 20;
const MODEL: &str = "vram=16M";

#[test]
fn a_destination_that_dies_leaves_the_source_running() {
    for features in ways() {
        let source = backend(MODEL, features);
        let mut from = Vm::new(&source.client);
        from.fill(21, LENGTH);
        for stopped in [false, true] {
            let mut dies = Backend::start_model(&[MODEL]);
            let client = Client::connect(dies.socket(), options(features)).expect("attached");
            let to = Vm::new(&client);
            let mut saver = from.migration.save(true).expect("a saver");
            let mut loader = to.migration.load().expect("a loader");
            if stopped {
                saver.switch_over().expect("STOP_COPY");
            }
            let mut killed = false;
            let error = loop {
                let mut chunk = Vec::new();
                match saver.iterate(&mut chunk).expect("data") {
                    Progress::Data(_) => {}
                    other => panic!("{other:?}: it did not die"),
                }
                if let Err(error) = loader.load(&chunk) {
                    break error;
                }
                if !killed {
                    dies.kill();
                    killed = true;
                }
            };
            assert!(!matches!(error, Error::Peer { .. }), "{error}");
            // Nobody is there to be reset; nothing hangs.
            drop(loader);
            saver.cancel().expect("RUNNING");
            from.check(21, LENGTH);
        }
        // It can still go elsewhere.
        let destination = backend(MODEL, features);
        let mut to = Vm::new(&destination.client);
        let mut loader = to.migration.load().expect("a loader");
        load(&mut loader, &snapshot(&from), 1 << 20);
        loader.finish(true).expect("RUNNING");
        to.check(21, LENGTH);
    }
}

#[test]
fn a_source_that_dies_leaves_the_destination_reset_and_usable() {
    for features in ways() {
        let destination = backend(MODEL, features);
        let mut to = Vm::new(&destination.client);
        for stopped in [false, true] {
            to.fill(22, 4096);
            let mut dies = Backend::start_model(&[MODEL]);
            let client = Client::connect(dies.socket(), options(features)).expect("attached");
            let mut from = Vm::new(&client);
            from.fill(23, LENGTH);
            let mut saver = from.migration.save(true).expect("a saver");
            let mut loader = to.migration.load().expect("a loader");
            if stopped {
                saver.switch_over().expect("STOP_COPY");
            }
            let mut killed = false;
            let error = loop {
                let mut chunk = Vec::new();
                match saver.iterate(&mut chunk) {
                    Ok(Progress::Data(_)) => loader.load(&chunk).expect("taken"),
                    Ok(other) => panic!("{other:?}: it did not die"),
                    Err(error) => break error,
                }
                if !killed {
                    dies.kill();
                    killed = true;
                }
            };
            assert!(!matches!(error, Error::Peer { .. }), "{error}");
            assert!(saver.cancel().is_err());
            drop(loader);
            to.enable();
            assert_eq!(to.get(SCRATCH), 0);
            to.works();
        }
        let source = backend(MODEL, features);
        let mut from = Vm::new(&source.client);
        from.fill(24, LENGTH);
        let mut saver = from.migration.save(false).expect("a saver");
        let mut stream = Vec::new();
        rest(&mut saver, &mut stream);
        let mut loader = to.migration.load().expect("a loader");
        load(&mut loader, &stream, 1 << 20);
        loader.finish(true).expect("RUNNING");
        to.check(24, LENGTH);
    }
}

/// As people see it, while the device runs and once it is stopped.
#[test]
fn the_tool_says_in_one_line_that_a_destination_died() {
    for (faults, limit, last) in [
        ("faults=dirty-rate=50M", "1", "pass 1"),
        ("faults=no-precopy+state-size=1G", "1000000", "switch-over"),
    ] {
        let (source, mut destination) = (start_watched(&[faults]), start(&[]));
        with(&source, |vm| vm.fill(53, tool::LENGTH));
        source.wait_until_left(1);
        let mut command = Command::new(binaries::ctl());
        command
            .args(["migrate", "--from", text(&source.socket())])
            .args(["--to", text(&destination.socket())])
            .args(["--bandwidth", "2M", "--downtime-limit", limit]);
        let mut migrate = Process::spawn("vfio-user-ctl", command);
        migrate.wait_for_errors(last, 1, |line| line.starts_with(last));
        destination.kill();
        let status = migrate.wait();
        assert_eq!(status.code(), Some(1), "{}", migrate.report());
        let said = migrate.stderr();
        let lines = said.lines().filter(|line| line.contains("vfio-user-ctl"));
        let lines: Vec<_> = lines.collect();
        assert!(
            matches!(lines[..], [line] if line.starts_with("vfio-user-ctl: Destination: ")),
            "{said}"
        );
        assert!(said.ends_with(&format!("{}\n", lines[0])), "{said}");
        source.wait_until_left(2);
        assert_eq!(left_in(&source), ["RUNNING"], "{faults}");
        with(&source, |vm| {
            if faults.contains("dirty-rate") {
                // It changes VRAM by itself.
                assert_eq!(vm.get(SCRATCH), 53);
                vm.works();
            } else {
                vm.check(53, tool::LENGTH);
            }
        });
    }
}
