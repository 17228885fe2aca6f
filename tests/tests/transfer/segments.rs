// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device arrives whole, whichever way its stream goes and however it is cut.

use system_tests::model_gpu::engine::SCRATCH;
use vfio_user_client::MigrationFeatures;
use vfio_user_client::migration::{Chunk, Progress};
use vfio_user_client::protocol::migration::MigrationState;

use super::vm::{Vm, backend, backend_with, load, pass, rest, snapshot, ways};
use system_tests::engine::Registers;

const LENGTH: usize = (1 << 20) - 4096;

#[test]
fn a_running_device_arrives_whole() {
    for (number, features) in ways().into_iter().enumerate() {
        let source = backend("vram=2M", features);
        let destination = backend("vram=2M", features);
        let mut from = Vm::new(&source.client);
        let mut to = Vm::new(&destination.client);
        for (round, cut) in [1, 61, 4096, 65_537, 1 << 20].into_iter().enumerate() {
            let seed = u32::try_from(number * 100 + round + 1).expect("a seed");
            from.fill(seed, LENGTH);
            let mut saver = from.migration.save(true).expect("a saver");
            let mut stream = Vec::new();
            assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
            let first = stream.len();
            assert!(first > LENGTH, "the first pass has all of it: {first}");
            // The guest goes on, and what it changes comes again.
            from.fill(seed + 1000, LENGTH);
            from.works();
            saver.pending(true).expect("sizes");
            assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
            from.set(SCRATCH, seed + 1000);
            rest(&mut saver, &mut stream);
            assert!(stream.len() > first + LENGTH, "it came again");
            saver.finish().expect("STOP");
            assert_eq!(from.state(), MigrationState::Stop);

            let mut loader = to.migration.load().expect("a loader");
            load(&mut loader, &stream, cut);
            assert!(loader.ready().expect("an acknowledgement"));
            loader.finish(true).expect("RUNNING");
            to.check(seed + 1000, LENGTH);
            // For the next round.
            from.migration
                .set_state(MigrationState::Running)
                .expect("RUNNING");
        }
        drop((from, to));
        assert!(source.finish().expect("a status").success());
        assert!(destination.finish().expect("a status").success());
    }
}

/// From the saver's memory into the loader's, with nothing in between.
#[test]
fn chunks_go_from_one_shared_memory_to_the_other() {
    let source = backend("vram=8M", MigrationFeatures::ALL);
    let destination = backend("vram=8M", MigrationFeatures::ALL);
    let mut from = Vm::new(&source.client);
    let mut to = Vm::new(&destination.client);
    let length = (8 << 20) - 4096;
    from.fill(7, length);
    let mut saver = from.migration.save(true).expect("a saver");
    let mut loader = to.migration.load().expect("a loader");
    assert!(!loader.ready().expect("an acknowledgement"), "nothing yet");
    assert!(!saver.pending(false).expect("sizes").initial_done);
    let mut switched = false;
    loop {
        match saver.chunk().expect("data") {
            Chunk::Data(data) => loader.load_volatile(&data).expect("taken"),
            Chunk::Idle => {
                assert!(loader.ready().expect("an acknowledgement"));
                assert!(saver.pending(true).expect("sizes").initial_done);
                saver.quiesce_peers().expect("PRE_COPY_P2P");
                assert_eq!(from.state(), MigrationState::PreCopyP2p);
                saver.switch_over().expect("STOP_COPY");
                switched = true;
            }
            Chunk::End => break,
        }
    }
    assert!(switched);
    loader.finish(false).expect("STOP");
    saver.finish().expect("STOP");
    assert_eq!(to.state(), MigrationState::Stop);
    to.migration
        .set_state(MigrationState::Running)
        .expect("RUNNING");
    to.check(7, length);
}

#[test]
fn pending_means_the_same_asked_or_not_and_with_or_without_extensions() {
    let mut totals = Vec::new();
    let sizes = MigrationFeatures {
        precopy_info: true,
        ..MigrationFeatures::default()
    };
    for features in [MigrationFeatures::default(), sizes, MigrationFeatures::ALL] {
        let source = backend("vram=4M,faults=state-size=1M", features);
        let mut from = Vm::new(&source.client);
        from.fill(3, 3 << 20);
        let mut saver = from.migration.save(true).expect("a saver");
        let asked = saver.pending(true).expect("sizes");
        let estimated = saver.pending(false).expect("sizes");
        assert_eq!(asked.total(), estimated.total(), "{features:?}");
        let whole = from.migration.stop_copy_size().expect("MIG_DATA_SIZE");
        assert_eq!(Some(asked.total()), whole, "{features:?}");
        assert!(asked.total() > 4 << 20, "{asked:?}");
        assert!(!asked.unknown);
        if features.precopy_info {
            assert!(asked.initial >= 3 << 20, "{asked:?}");
            assert!(asked.stop_copy >= 1 << 20, "{asked:?}");
        }
        let mut stream = Vec::new();
        pass(&mut saver, &mut stream);
        let left = saver.pending(false).expect("sizes");
        assert!(left.initial_done && left.precopy() == 0, "{left:?}");
        assert!(left.total() < asked.total() - (2 << 20), "{left:?}");
        rest(&mut saver, &mut stream);
        assert_eq!(saver.pending(false).expect("sizes").total(), 0);
        totals.push(asked.total());
        drop(saver);
    }
    assert!(totals.iter().all(|total| *total == totals[0]), "{totals:?}");
}

#[test]
fn another_device_is_refused_before_its_data_moves() {
    for features in ways() {
        let source = backend("vram=4M", features);
        let destination = backend("vram=2M", features);
        let mut from = Vm::new(&source.client);
        let mut to = Vm::new(&destination.client);
        from.fill(5, 1 << 20);
        let mut saver = from.migration.save(true).expect("a saver");
        let mut stream = Vec::new();
        assert!(matches!(saver.iterate(&mut stream), Ok(Progress::Data(_))));
        let mut loader = to.migration.load().expect("a loader");
        let refused = loader.load(&stream).and_then(|()| loader.flush());
        let text = refused.expect_err("another device").to_string();
        assert!(
            text.contains("4194304") && text.contains("2097152"),
            "both sides are named: {text}"
        );
        drop((saver, loader));
        from.check(5, 1 << 20);
        to.fill(6, 4096);
        to.check(6, 4096);
    }
}

#[test]
fn what_changed_is_told_with_all_that_the_stopped_device_gives() {
    let source = backend("vram=4M,faults=state-size=2M", MigrationFeatures::ALL);
    let mut from = Vm::new(&source.client);
    from.fill(3, 3 << 20);
    let mut saver = from.migration.save(true).expect("a saver");
    let mut stream = Vec::new();
    pass(&mut saver, &mut stream);
    from.fill(4, 1 << 20);
    // Finds nothing, and has the driver look again.
    pass(&mut saver, &mut stream);
    let estimated = saver.pending(false).expect("sizes");
    assert!(estimated.dirty >= 1 << 20, "{estimated:?}");
    assert!(estimated.stop_copy >= 2 << 20, "{estimated:?}");
    let asked = saver.pending(true).expect("sizes");
    assert_eq!(estimated.total(), asked.total(), "{estimated:?} {asked:?}");
}

/// The same hardware: only what its guest was told about it differs.
#[test]
fn another_clique_is_refused_while_the_source_runs() {
    const SMALL: usize = 1 << 19;
    let start = |clique, features| {
        let nvidia = ["--pci-vendor-id", "0x10de"];
        let arguments = [&nvidia[..], &["--nvidia-gpudirect-clique", clique]].concat();
        backend_with("vram=1M", &arguments, features)
    };
    for features in ways() {
        let (source, destination) = (start("3", features), start("4", features));
        let mut from = Vm::new(&source.client);
        let mut to = Vm::new(&destination.client);
        from.fill(8, SMALL);
        to.fill(9, SMALL);
        let mut saver = from.migration.save(true).expect("a saver");
        let mut stream = Vec::new();
        assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
        let mut loader = to.migration.load().expect("a loader");
        let refused = loader.load(&stream).and_then(|()| loader.flush());
        let text = refused.expect_err("another clique").to_string();
        assert!(
            text.contains("NVIDIA GPUDirect clique: 3 at the source, 4 here"),
            "{text}"
        );
        assert_eq!(from.state(), MigrationState::PreCopy);
        from.works();
        // The backend resets it without being told to.
        let left = to.migration.set_state(MigrationState::Running);
        left.expect_err("nothing was loaded");
        assert_eq!(to.state(), MigrationState::Running);
        to.enable();
        assert_eq!(to.get(SCRATCH), 0);
        to.works();
        drop((saver, loader));
        from.check(8, SMALL);

        // With what it is for it still migrates.
        let same = start("3", features);
        let mut there = Vm::new(&same.client);
        let mut loader = there.migration.load().expect("a loader");
        load(&mut loader, &snapshot(&from), 1 << 20);
        loader.finish(true).expect("RUNNING");
        there.check(8, SMALL);
        to.fill(9, SMALL);
        to.check(9, SMALL);
    }
}
