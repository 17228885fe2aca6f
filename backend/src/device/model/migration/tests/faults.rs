// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each fault does what it says, and a reset heals it.

use std::sync::mpsc::channel;
use std::thread;

use super::super::super::ResetCause;
use super::super::super::registers::{command, offset};
use super::super::super::tests::{DONE, noise};
use super::*;

/// A device with some VRAM in use.
fn used(faults: &str) -> Rig {
    let rig = rig(faults);
    rig.poke(0, &noise(200_000));
    rig
}

fn works(rig: &Rig) {
    rig.prepare();
    let fill = command::FILL | command::DST_VRAM;
    assert_eq!(rig.run(fill, 0, 0, 8), DONE);
}

#[test]
fn states_that_are_not_there() {
    for (faults, p2p, pre_copy) in [
        ("no-p2p", false, true),
        ("no-precopy", true, false),
        ("no-p2p+no-precopy", false, false),
    ] {
        let source = used(faults);
        let support = source.driver().support();
        assert_eq!((support.p2p, support.pre_copy), (p2p, pre_copy));
        for (state, there) in [(RunningP2p, p2p), (PreCopy, pre_copy)] {
            assert_eq!(source.driver().set_state(state).is_ok(), there);
            source.go(Running).unwrap();
        }
        let mut stream = source.open(StopCopy);
        let data = drain(&mut *stream, 4096).unwrap();
        let target = rig(faults);
        target.load(&data, 4096).unwrap();
        assert!(target.vram() == source.vram());
    }
}

#[test]
fn nothing_for_now_is_0_bytes() {
    let rig = used("zero-in-precopy");
    let mut stream = rig.open(PreCopy);
    assert!(!drain(&mut *stream, 4096).unwrap().is_empty());
    assert_eq!(read(&mut *stream, 4096), Ok(vec![]));
    rig.go(StopCopy).unwrap();
    assert!(!read(&mut *stream, 4096).unwrap().is_empty());
}

#[test]
fn sizes_that_mislead() {
    let rig = used("garbage-sizes");
    let garbage = |size: u64| i64::try_from(size).is_err();
    assert!(garbage(rig.driver().stop_copy_size().unwrap()));
    let mut stream = rig.open(PreCopy);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let told = info(&mut *stream);
        assert!(garbage(told.initial) && garbage(told.dirty));
        seen.extend([told.initial, told.dirty]);
        drain(&mut *stream, 4096).unwrap();
    }
    assert!(seen.contains(&u64::MAX) && seen.iter().any(|size| *size < u64::MAX - 4096));

    let rig = used("moving-sizes");
    let sizes: Vec<_> = (0..60)
        .map(|_| rig.driver().stop_copy_size().unwrap())
        .collect();
    assert!(sizes.windows(2).any(|pair| pair[0] < pair[1]));
    assert!(sizes.windows(2).any(|pair| pair[0] > pair[1]));
    let mut different = sizes.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), sizes.len());
    let target = super::rig("moving-sizes");
    target.load(&save(&rig, 4096), 4096).unwrap();
    assert!(target.vram() == rig.vram());
}

#[test]
fn reading_fails_at_a_byte_and_from_then_on() {
    for at in [0, 1, 5000] {
        let rig = used(&format!("read-error@{at}"));
        let mut stream = rig.open(PreCopy);
        let mut given = 0;
        let error = loop {
            match read(&mut *stream, 333) {
                Ok(data) => given += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((error, given), (Errno::IO, at));
        assert_eq!(read(&mut *stream, 1), Err(Errno::IO));
        rig.go(Running).unwrap();
        works(&rig);
    }
}

#[test]
fn writing_fails_at_a_byte_and_nothing_is_loaded() {
    let data = save(&used("no-p2p"), 4096);
    for at in [0, 1, 50, data.len() as u64 - 1] {
        let target = rig(&format!("write-error@{at}"));
        let mut stream = target.open(Resuming);
        let mut taken = 0;
        let error = loop {
            let rest = &data[taken..];
            match write(&mut *stream, &rest[..rest.len().min(777)]) {
                Ok(length) => taken += length,
                Err(error) => break error,
            }
        };
        assert_eq!((error, taken as u64), (Errno::IO, at));
        assert_eq!(write(&mut *stream, &data[taken..]), Err(Errno::IO));
        assert_eq!(target.go(Running).unwrap_err(), Errno::IO);
        assert_eq!(target.state(), Error);
        assert_eq!(write(&mut *stream, &data), Err(Errno::NODEV));
        target.gpu.reset(ResetCause::Client).unwrap();
        works(&target);
    }
}

#[test]
fn changes_of_state_that_fail() {
    let rig = used("state-error=stop_copy");
    let mut stream = rig.open(PreCopy);
    rig.go(PreCopyP2p).unwrap();
    assert_eq!(rig.driver().set_state(StopCopy).unwrap_err(), Errno::IO);
    assert_eq!(rig.state(), PreCopyP2p);
    rig.go(StopCopy).unwrap();
    assert!(!drain(&mut *stream, 4096).unwrap().is_empty());

    let rig = used("broken=stop_copy");
    let mut stream = rig.open(PreCopy);
    rig.go(PreCopyP2p).unwrap();
    assert_eq!(rig.driver().set_state(StopCopy).unwrap_err(), Errno::IO);
    assert_eq!(rig.state(), Error);
    assert_eq!(read(&mut *stream, 1), Err(Errno::NODEV));
    for state in [Stop, Running, Resuming, PreCopy] {
        assert_eq!(rig.driver().set_state(state).unwrap_err(), Errno::INVAL);
    }
    // It does nothing until it is reset.
    rig.start(command::FILL | command::DST_VRAM, 0, 0, 8);
    assert_eq!(rig.get(offset::STATUS), 1);
    rig.gpu.reset(ResetCause::Client).unwrap();
    assert_eq!(rig.state(), Running);
    works(&rig);
}

#[test]
fn new_initial_data_appears() {
    let rig = used("reinit@100K");
    let mut stream = rig.open(PreCopy);
    let first = info(&mut *stream);
    assert!(!first.reinit);
    let mut data = read(&mut *stream, 100 << 10).unwrap();
    let again = info(&mut *stream);
    assert!(again.reinit && again.dirty == 0);
    assert!(again.initial > first.initial - (100 << 10));
    assert!(!info(&mut *stream).reinit, "told once");
    data.extend(drain(&mut *stream, 4096).unwrap());
    // 13 granules: 6 of them before.
    assert!(places(&data, Kind::Vram).len() > 13);
    assert_eq!(info(&mut *stream), PrecopyInfo::default());
    rig.go(StopCopy).unwrap();
    data.extend(drain(&mut *stream, 4096).unwrap());
    let target = super::rig("no-p2p");
    target.load(&data, 4096).unwrap();
    assert!(target.vram() == rig.vram());
}

#[test]
fn more_state_that_only_a_stopped_device_gives() {
    for size in [1, 8, GRANULE - 1, 3 * GRANULE + 5] {
        let source = used(&format!("state-size={size}"));
        let mut stream = source.open(PreCopy);
        let only_stopped = source.driver().stop_copy_size().unwrap() - info(&mut *stream).initial;
        assert!((size + 200..size + 1000).contains(&usize::try_from(only_stopped).unwrap()));
        let mut data = drain(&mut *stream, 4096).unwrap();
        source.go(StopCopy).unwrap();
        let left = source.driver().stop_copy_size().unwrap();
        let rest = drain(&mut *stream, 4096).unwrap();
        assert_eq!(left, rest.len() as u64);
        data.extend(rest);
        source.go(Stop).unwrap();
        let extra = places(&data, Kind::Extra);
        assert_eq!(extra.iter().map(|(_, length)| length).sum::<usize>(), size);
        for piece in [1, 3, 4096, 1 << 20] {
            let target = rig("no-p2p");
            target.load(&data, piece).unwrap();
            assert!(target.vram() == source.vram());
        }
        // One byte of it is wrong.
        let at = data.len() - HEADER - 1;
        data[at] ^= 1;
        assert_eq!(rig("no-p2p").load(&data, 4096), Err(Errno::INVAL));
    }
}

#[test]
fn a_reset_ends_what_is_slow() {
    // Far longer than the test may take: only the reset can end these.
    let rig = used("slow-save=1000s");
    let mut stream = rig.open(PreCopy);
    ended_by_reset(&rig, || {
        assert_eq!(read(&mut *stream, 4096), Err(Errno::NODEV));
    });
    assert_eq!(stream.precopy_info(), Err(Errno::NODEV));

    let rig = used("slow-state=1000s");
    ended_by_reset(&rig, || {
        assert_eq!(rig.driver().set_state(PreCopy).unwrap_err(), Errno::NODEV);
    });
}

/// Calls `act` on a thread, and resets the device until that returns.
fn ended_by_reset(rig: &Rig, act: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let (ended, wait) = channel();
        scope.spawn(move || {
            act();
            ended.send(()).unwrap();
        });
        // A reset that comes too early ends nothing of a call that begins later.
        while wait.try_recv().is_err() {
            thread::yield_now();
            rig.gpu.reset(ResetCause::FunctionLevel).unwrap();
        }
    });
    assert_eq!(rig.state(), Running);
    works(rig);
}

#[test]
fn slow_is_slow() {
    let rig = used("slow-state=30ms+slow-save=20ms");
    let begin = std::time::Instant::now();
    let mut stream = rig.open(PreCopy);
    read(&mut *stream, 4096).unwrap();
    assert!(begin.elapsed().as_millis() >= 50);
}

#[test]
fn vram_changes_by_itself_while_it_may() {
    let rig = rig("dirty-rate=1G");
    // Its own start is not awaited by time: the first change is.
    let changed = || rig.vram().iter().any(|byte| *byte != 0);
    while !changed() {
        thread::yield_now();
    }
    let mut stream = rig.open(PreCopy);
    drain(&mut *stream, 1 << 20).unwrap();
    while info(&mut *stream).dirty == 0 {
        thread::yield_now();
    }
    for state in [PreCopyP2p, StopCopy] {
        rig.go(state).unwrap();
        let before = rig.vram();
        thread::yield_now();
        assert!(rig.vram() == before);
    }
}
