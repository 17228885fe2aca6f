// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One of the two backends dies in the middle: the other is as it should be.

use system_tests::backend::Backend;
use system_tests::engine::Registers;
use system_tests::model_gpu::engine::SCRATCH;
use vfio_user_client::migration::Progress;
use vfio_user_client::{Client, Error};

use super::vm::{Vm, backend, load, options, rest, snapshot, ways};

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
