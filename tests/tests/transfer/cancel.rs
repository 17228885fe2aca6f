// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration can be left at any point: the source goes on as if nothing had been, the destination is as new.

use system_tests::engine::Registers;
use system_tests::model_gpu::engine::SCRATCH;
use vfio_user_client::migration::Progress;
use vfio_user_client::protocol::migration::MigrationState;

use super::vm::{Vm, backend, load, snapshot, ways};

const LENGTH: usize = 3 << 19;

#[test]
fn the_source_works_on_wherever_it_was_cancelled() {
    for features in ways() {
        let source = backend("vram=2M,faults=state-size=2M", features);
        let mut vm = Vm::new(&source.client);
        vm.fill(11, LENGTH);
        vm.works();
        let whole = snapshot(&vm).len();
        let mut ended = false;
        // Before anything, in the first pass, between passes, in the stop-copy, behind its end.
        for steps in 0.. {
            let mut saver = vm.migration.save(true).expect("a saver");
            let mut idle = 0;
            for _ in 0..steps {
                match saver.iterate(&mut Vec::new()).expect("data") {
                    Progress::Data(_) => {}
                    Progress::Idle if idle == 0 => idle = 1,
                    Progress::Idle => saver.switch_over().expect("STOP_COPY"),
                    Progress::End => ended = true,
                }
            }
            if steps % 2 == 0 {
                saver.cancel().expect("RUNNING");
            } else {
                drop(saver);
            }
            vm.check(11, LENGTH);
            if ended {
                break;
            }
        }
        assert_eq!(snapshot(&vm).len(), whole, "{features:?}");
        drop(vm);
        assert!(source.finish().expect("a status").success());
    }
}

#[test]
fn the_destination_is_as_new_wherever_it_was_cancelled() {
    for features in ways() {
        let source = backend("vram=2M", features);
        let destination = backend("vram=2M", features);
        let mut from = Vm::new(&source.client);
        let mut to = Vm::new(&destination.client);
        from.fill(12, LENGTH);
        let stream = snapshot(&from);
        for part in 0..=8 {
            to.fill(13, 4096);
            let length = stream.len() * part / 8;
            let mut loader = to.migration.load().expect("a loader");
            load(&mut loader, &stream[..length], 100_000);
            if part % 2 == 0 {
                loader.cancel().expect("reset");
            } else {
                drop(loader);
            }
            assert_eq!(to.state(), MigrationState::Running);
            to.enable();
            assert_eq!(to.get(SCRATCH), 0, "{part} of 8");
            let mut found = vec![1; LENGTH];
            to.vram.read_bytes(0, &mut found).expect("VRAM");
            assert!(found.iter().all(|byte| *byte == 0), "{part} of 8");
        }
        // A stream without its end is not loaded either, and says so.
        let mut loader = to.migration.load().expect("a loader");
        load(&mut loader, &stream[..stream.len() - 1], 1 << 20);
        let text = loader.finish(true).expect_err("not whole").to_string();
        assert!(text.contains("end record"), "{text}");
        let mut loader = to.migration.load().expect("a loader");
        load(&mut loader, &stream, 1 << 20);
        loader.finish(true).expect("RUNNING");
        to.check(12, LENGTH);
    }
}
