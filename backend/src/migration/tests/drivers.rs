// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that leave a state by themselves, cannot say how much is left, or never come to an end.

use super::super::record::{HEADER, Kind, Sequence};
use super::*;

#[test]
fn a_load_that_the_driver_left_by_itself_is_no_success() {
    let stream = small();
    for now in [Running, Stop] {
        let front = Front::new();
        set(&front, Resuming).unwrap();
        write_all(&front, &stream, 1 << 20, false).unwrap();
        front.device.script().state = now;
        let left = set(&front, Running);
        assert!(matches!(left, Err(Error::Reset)), "{now}: {left:?}");
        unharmed(&front);
    }
}

#[test]
fn a_save_that_the_driver_left_by_itself_can_begin_again() {
    let front = Front::new();
    set(&front, PreCopy).unwrap();
    front.device.script().state = Running;
    for to in [PreCopy, StopCopy] {
        assert!(matches!(set(&front, to), Err(Error::Reset)));
        set(&front, to).unwrap();
        let (stream, _) = read_all(&front, 1 << 16, false).unwrap();
        assert!(stream.starts_with(b"VUGM"), "a stream from its beginning");
        front.device.script().state = Running;
    }
    assert!(matches!(set(&front, Running), Err(Error::Reset)));
    set(&front, Running).unwrap();
}

#[test]
fn a_save_that_fell_into_error_is_not_said_to_be_reset() {
    let front = Front::new();
    set(&front, PreCopy).unwrap();
    front.device.script().state = Error;
    let refused = set(&front, StopCopy);
    assert!(matches!(refused, Err(Error::Illegal(_))), "{refused:?}");
    assert!(read_all(&front, 100, false).is_err());
}

#[test]
fn nothing_of_a_client_that_left_is_found_by_the_next() {
    let front = Front::new();
    set(&front, Resuming).unwrap();
    write_all(&front, &small()[..100], 100, false).unwrap();
    front.device.script().state = Running;
    assert!(!front.migration.end(&front), "it runs, and is not loaded");

    for left in [Running, Stop] {
        let front = Front::new();
        set(&front, PreCopy).unwrap();
        front.device.script().state = left;
        assert!(front.migration.end(&front), "{left}");
        assert_eq!(state(&front), Running);
        set(&front, PreCopy).unwrap();
        assert_eq!(front.device.script().resets, 0);
    }
}

#[test]
fn a_size_that_cannot_be_asked_stays_what_it_was() {
    const DIRTY: u64 = 8 << 30;
    let front = Front::new();
    front.device.script().infos = [info(0, DIRTY)].into();
    front.device.script().size = Ok(DIRTY + 5);
    set(&front, PreCopy).unwrap();
    front.device.script().infos = [Err(Errno::IO)].into();
    front.device.script().size = Err(Errno::IO);
    let report = front.migration.pending(true).unwrap();
    assert!(!report.exact);
    assert_eq!((report.pending.dirty, report.pending.stop_copy), (DIRTY, 5));
    assert!(!report.pending.unknown);
}

#[test]
fn figures_that_change_all_the_time_do_not_keep_a_read() {
    let front = Front::new();
    front.device.script().infos = (0..1000).map(|i| info(i % 2 * 5, 0)).collect();
    set(&front, PreCopy).unwrap();
    for shared in [false, true] {
        let (stream, more) = read_all(&front, 1 << 16, shared).unwrap();
        assert_eq!(more, More::Later);
        let markers = stream.len() / HEADER;
        assert!(markers <= 3, "{markers} records about nothing");
    }
}

#[test]
fn new_initial_data_is_told_to_the_client_whoever_asked_first() {
    let front = Front::new();
    front.device.script().infos = [info(0, 0), info(0, 0)].into();
    set(&front, PreCopy).unwrap();
    read_all(&front, 1 << 16, false).unwrap();
    let again = PrecopyInfo {
        initial: 70,
        dirty: 0,
        reinit: true,
    };
    front.device.script().infos = [Ok(again), info(70, 0)].into();
    // The read finds nothing, and asks.
    read_all(&front, 1 << 16, false).unwrap();
    front.migration.pending(true).unwrap();
    assert!(front.migration.precopy_info().unwrap().reinit);
    assert!(!front.migration.precopy_info().unwrap().reinit);
}

#[test]
fn what_came_before_an_error_is_handed_out_where_it_may_be_short() {
    let front = Front::new();
    front.device.answer([
        Answer::Bytes(pattern(300_000, 1)),
        Answer::Errno(Errno::IO),
        Answer::Errno(Errno::IO),
    ]);
    set(&front, StopCopy).unwrap();
    let mut memory = vec![0; 1 << 20];
    let slice = VolatileSlice::from(&mut memory[..]);
    let mut room = Room::Shared(slice);
    let (length, more) = front.migration.read(&mut room, &front).unwrap();
    assert!(length > 300_000 && more == More::Yes, "{length} {more:?}");
    let error = front.migration.read(&mut room, &front).unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    let (_, end) = read_all(&front, 1 << 16, true).unwrap();
    assert_eq!(end, More::No);
}

#[test]
fn pieces_in_shared_memory_begin_with_a_cache_line_of_the_driver() {
    const LINE: usize = 64;
    const SLOT: usize = 64 << 10;
    let front = Front::new();
    let mut memory = vec![0; SLOT + LINE];
    let from = memory.as_ptr().align_offset(LINE);
    let slot = &mut memory[from..][..SLOT];
    let mut sequence = Sequence::default();
    let mut given = 0;
    // Bytes of the slot, and of the driver up to there.
    let mut next = || {
        let room = &mut Room::Shared(VolatileSlice::from(&mut *slot));
        let (length, more) = front.migration.read(room, &front).unwrap();
        let mut at = 0;
        while at < length {
            let header = slot[at..].first_chunk().unwrap();
            let record = sequence.header(header).unwrap();
            let is_data = record.kind == Kind::DeviceData;
            given += if is_data { record.length } else { 0 };
            at += HEADER + record.length;
        }
        (length, given, more)
    };
    // How much pre-copy gives is nobody's choice.
    front.device.answer([
        Answer::Bytes(pattern(4096 + 33, 1)),
        Answer::Errno(Errno::NOMSG),
    ]);
    set(&front, PreCopy).unwrap();
    let (_, given, more) = next();
    assert_eq!((given, more), (4096 + 33, More::Later));
    set(&front, StopCopy).unwrap();
    let answers = (0..10).map(|seed| Answer::Bytes(pattern(40_001, seed)));
    front.device.answer(answers.chain([Answer::Zero]));
    for slot in 0..5 {
        let (length, given, more) = next();
        assert_eq!(more, More::Yes);
        assert!(SLOT - length < LINE, "{length} bytes of slot {slot}");
        assert_eq!(given % LINE, 0, "slot {slot}");
    }
}

#[test]
fn a_client_is_not_left_in_a_state_it_does_not_know() {
    for (begin, fail, back) in [(PreCopy, StopCopy, PreCopy), (Running, Stop, Running)] {
        let front = Front::new();
        set(&front, begin).unwrap();
        let hidden = states_on_the_way(begin);
        front.device.script().fail_to = Some((fail, Errno::NOMEM, hidden));
        let to = fail.into();
        let error = front.migration.set_state(to, HIDDEN, &front).unwrap_err();
        assert_eq!(error.errno(), Errno::NOMEM);
        assert_eq!(state(&front), back);
        front.migration.set_state(to, HIDDEN, &front).unwrap();
    }
}

fn states_on_the_way(begin: State) -> State {
    if begin == PreCopy {
        PreCopyP2p
    } else {
        RunningP2p
    }
}

#[test]
fn a_reset_while_the_last_is_read_leaves_no_stream_of_two_halves() {
    let front = Front::new();
    front.device.answer([Answer::Bytes(pattern(100, 1))]);
    set(&front, StopCopy).unwrap();
    *front.while_saved.lock().unwrap() = Some(|front| Guest::reset(front).unwrap());
    let read = read_all(&front, 1 << 16, false);
    assert!(matches!(read, Err(Error::Reset)), "{read:?}");
    assert_eq!(state(&front), Running);
    assert!(read_all(&front, 1 << 16, false).is_err());
}
