// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! New initial data in the midst of a transfer (REINIT): what both ends were ready for is taken back, and given again.

use vfio_user_client::MigrationFeatures;
use vfio_user_client::migration::Progress;

use super::vm::{Vm, backend, load, pass, rest};

const MODEL: &str = "vram=1M,faults=reinit@64K";
/// Below what makes new initial data appear, with all that is around it on the stream.
const FIRST: usize = 32 << 10;
/// Above.
const MORE: usize = 128 << 10;

#[test]
fn readiness_is_taken_back_and_given_again() {
    let by_message = MigrationFeatures {
        pending: true,
        precopy_info: true,
        ..MigrationFeatures::default()
    };
    for features in [by_message, MigrationFeatures::ALL] {
        let source = backend(MODEL, features);
        let destination = backend(MODEL, features);
        let mut from = Vm::new(&source.client);
        let mut to = Vm::new(&destination.client);
        from.fill(61, FIRST);
        let mut saver = from.migration.save(true).expect("a saver");
        let mut loader = to.migration.load().expect("a loader");
        let mut stream = Vec::new();
        assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
        load(&mut loader, &stream, 4096);
        assert!(saver.pending(false).expect("sizes").initial_done);
        assert!(loader.ready().expect("an acknowledgement"));
        let info = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(!info.reinit && info.initial == 0, "{info:?}");

        // The device finds, in the midst of what its guest changed, that it must begin again.
        from.fill(62, MORE);
        let pending = saver.pending(true).expect("sizes");
        assert!(pending.initial_done && pending.initial == 0, "{pending:?}");
        stream.clear();
        assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
        load(&mut loader, &stream, 4096);
        assert!(!loader.ready().expect("an acknowledgement"), "taken back");
        let pending = saver.pending(false).expect("sizes");
        assert!(!pending.initial_done, "taken back: {pending:?}");
        assert!(pending.initial > MORE as u64, "{pending:?}");
        let info = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(info.reinit, "{info:?}");
        assert_eq!(info.initial, pending.initial);
        let info = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(!info.reinit, "told once");

        stream.clear();
        assert_eq!(pass(&mut saver, &mut stream), Progress::Idle);
        assert!(stream.len() > MORE, "it came again");
        load(&mut loader, &stream, 4096);
        let pending = saver.pending(true).expect("sizes");
        assert!(pending.initial_done && pending.initial == 0, "{pending:?}");
        assert!(loader.ready().expect("an acknowledgement"), "given again");
        stream.clear();
        rest(&mut saver, &mut stream);
        load(&mut loader, &stream, 4096);
        loader.finish(true).expect("RUNNING");
        saver.finish().expect("STOP");
        to.check(62, MORE);
    }
}

/// Before anything was ready.
#[test]
fn initial_data_begins_again_in_its_midst() {
    let with = |channel| MigrationFeatures {
        channel,
        precopy_info: true,
        ..MigrationFeatures::default()
    };
    for features in [with(false), with(true)] {
        let source = backend("vram=4M,faults=reinit@64K", features);
        let mut from = Vm::new(&source.client);
        from.fill(63, 3 << 20);
        let mut saver = from.migration.save(true).expect("a saver");
        let first = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(!first.reinit && first.initial > 3 << 20, "{first:?}");
        let Ok(Progress::Data(read)) = saver.iterate(&mut Vec::new()) else {
            panic!("no data");
        };
        let again = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(again.reinit && again.dirty == 0, "{again:?}");
        let left = first.initial.saturating_sub(read as u64);
        assert!(again.initial > left, "{read} of {first:?}, {again:?}");
        let told = saver.precopy_info().expect("sizes").expect("pre-copy");
        assert!(!told.reinit, "told once");
    }
}
