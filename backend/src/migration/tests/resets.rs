// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets in the midst of everything.

use super::*;

#[test]
fn a_reset_ends_the_transfer() {
    for during in [PreCopy, StopCopy, Resuming] {
        let front = Front::new();
        set(&front, during).unwrap();
        Guest::reset(&front).unwrap();
        assert_eq!(front.migration.last_state(), Running);
        assert!(read_all(&front, 100, false).is_err());
        assert!(write_all(&front, b"x", 1, false).is_err());
        set(&front, during).unwrap();
        set(&front, Running).unwrap();
    }
}

#[test]
fn a_change_of_state_ends_at_the_arc_that_a_reset_finds() {
    for holds in [true, false] {
        let front = Front::new();
        let (there, parked) = mpsc::channel();
        let (go_on, told) = mpsc::channel();
        front.device.script().linger = Some((RunningP2p, there, told));
        thread::scope(|scope| {
            let changing = scope.spawn(|| set(&front, Resuming));
            parked.recv().unwrap();
            let reset = front.migration.reset(false, || {
                let held = Device::reset(&front.device, ResetCause::Client);
                go_on.send(()).unwrap();
                held.map_err(drop).and(if holds { Ok(()) } else { Err(()) })
            });
            assert_eq!(reset.is_ok(), holds);
            let changed = changing.join().unwrap();
            assert!(matches!(changed, Err(Error::Reset)), "{changed:?}");
        });
        assert_eq!(front.device.script().arcs, [RunningP2p]);
        assert_eq!(front.migration.last_state(), Running);
    }
}

#[test]
fn an_answer_from_before_a_reset_is_not_believed() {
    let front = Front::new();
    set(&front, Stop).unwrap();
    let (there, parked) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    front.device.script().linger_asked = Some((there, told));
    thread::scope(|scope| {
        let asking = scope.spawn(|| state(&front));
        parked.recv().unwrap();
        Guest::reset(&front).unwrap();
        go_on.send(()).unwrap();
        assert_eq!(asking.join().unwrap(), Running);
    });
    assert_eq!(front.migration.last_state(), Running);
}

#[test]
fn what_a_reset_undid_while_it_was_loaded_is_not_loaded() {
    let stream = small();
    let front = Front::new();
    set(&front, Resuming).unwrap();
    write_all(&front, &stream, 100, false).unwrap();
    let (there, loaded) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    front.device.script().linger = Some((Stop, there, told));
    thread::scope(|scope| {
        let leaving = scope.spawn(|| set(&front, Running));
        loaded.recv().unwrap();
        Guest::reset(&front).unwrap();
        go_on.send(()).unwrap();
        let left = leaving.join().unwrap();
        assert!(matches!(left, Err(Error::Reset)), "{left:?}");
    });
    assert!(front.loaded.lock().unwrap().is_none());
    assert_eq!(state(&front), Running);
}

#[test]
fn a_reset_between_the_device_and_the_guest_leaves_nothing_loaded() {
    for target in [Stop, Running] {
        let mut front = Front::new();
        front.reset_before_load = true;
        set(&front, Resuming).unwrap();
        write_all(&front, &small(), 100, true).unwrap();
        let error = set(&front, target).unwrap_err();
        assert!(matches!(error, Error::Reset), "{target}: {error}");
        assert!(front.loaded.lock().unwrap().is_none());
        assert_eq!(state(&front), Running);
    }
}

/// A load under way, and a reset of the device that its client did not ask for.
fn undone(holds: bool) -> Front {
    let front = Front::new();
    set(&front, Resuming).unwrap();
    write_all(&front, &small(), 100, true).unwrap();
    let reset = || match holds {
        true => Device::reset(&front.device, ResetCause::FunctionLevel).map_err(drop),
        false => Err(()),
    };
    assert_eq!(front.migration.reset(false, reset).is_ok(), holds);
    front
}

#[test]
fn whoever_ends_a_load_hears_that_a_reset_undid_it() {
    for target in [Stop, RunningP2p, Running, PreCopy, StopCopy] {
        let front = undone(true);
        front.migration.pending(false).unwrap();
        let error = set(&front, target).unwrap_err();
        assert!(matches!(error, Error::Reset), "{target}: {error}");
        // Once: then it is a device like any other.
        set(&front, target).unwrap();
    }
    // One that begins anew ends nothing.
    set(&undone(true), Resuming).unwrap();
    // Who asked for the state knows, and so does who asked for a reset since.
    let front = undone(true);
    assert_eq!(state(&front), Running);
    set(&front, Running).unwrap();
    let front = undone(true);
    Guest::reset(&front).unwrap();
    set(&front, Running).unwrap();
    // The next client has ended nothing.
    let front = undone(true);
    front.migration.forget();
    set(&front, Running).unwrap();
    // Nothing had come.
    let front = Front::new();
    set(&front, Resuming).unwrap();
    front
        .migration
        .reset(false, || {
            Device::reset(&front.device, ResetCause::FunctionLevel)
        })
        .unwrap();
    set(&front, Running).unwrap();
}

#[test]
fn a_load_under_a_reset_that_fails_is_reset_when_it_is_left() {
    for target in [Resuming, Stop, Running] {
        let front = undone(false);
        let error = set(&front, target).unwrap_err();
        assert!(matches!(error, Error::Reset), "{target}: {error}");
        unharmed(&front);
    }
}
