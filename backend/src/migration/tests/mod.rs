// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sessions of migration with a scripted driver: both ends, in any pieces, and everything that can go wrong.

mod damage;
mod drivers;
mod resets;
mod scripted;

use std::fmt;
use std::sync::mpsc;
use std::thread;

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState::{self as State, *};
use vm_memory::VolatileSlice;

use super::buffer::{Piece, Room};
use super::record::HEADER;
use super::{Error, Guest, GuestState, More, PrecopyInfo, ShowP2p, Support};
use crate::device::{Device, ResetCause};
use scripted::{Answer, Front};

const SHOWN: ShowP2p = ShowP2p(true);
const HIDDEN: ShowP2p = ShowP2p(false);

fn set(front: &Front, state: State) -> Result<(), Error> {
    front.migration.set_state(state.into(), SHOWN, front)
}

fn state(front: &Front) -> State {
    front.migration.state().unwrap()
}

/// Reads with room for `size` bytes at a time until nothing more comes.
fn read_all(front: &Front, size: usize, shared: bool) -> Result<(Vec<u8>, More), Error> {
    let mut stream = Vec::new();
    let mut room = vec![0; size];
    loop {
        let (length, more) = if shared {
            let slice = VolatileSlice::from(&mut room[..]);
            front.migration.read(&mut Room::Shared(slice), front)?
        } else {
            front.migration.read(
                &mut Room::Reply {
                    bytes: &mut room,
                    borrowed: &mut None,
                },
                front,
            )?
        };
        stream.extend_from_slice(&room[..length]);
        if more != More::Yes {
            return Ok((stream, more));
        }
        let full = length == size || (shared && length > 0);
        assert!(full, "a full room, or nothing more");
    }
}

fn write_all(front: &Front, stream: &[u8], size: usize, shared: bool) -> Result<(), Error> {
    for piece in stream.chunks(size) {
        if shared {
            let mut copy = piece.to_vec();
            let slice = VolatileSlice::from(&mut copy[..]);
            front
                .migration
                .write(Piece::Shared(slice), front, &|| false)?;
        } else {
            front
                .migration
                .write(Piece::Private(piece), front, &|| false)?;
        }
    }
    Ok(())
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    let byte = |i| u8::try_from((i + seed) * 31 % 251).unwrap();
    (0..length).map(byte).collect()
}

fn info(initial: u64, dirty: u64) -> Result<PrecopyInfo, Errno> {
    Ok(PrecopyInfo {
        initial,
        dirty,
        reinit: false,
    })
}

/// A stream of a device with two passes of pre-copy, made with room for `size` bytes.
fn saved(size: usize, shared: bool) -> (Front, Vec<u8>, Vec<u8>) {
    let front = Front::new();
    let data = [pattern(5000, 1), pattern(70_000, 2), pattern(300, 3)];
    front.device.script().infos = [info(5000, 0), info(0, 70_000), info(0, 0)].into();
    front.device.answer([
        Answer::Bytes(data[0].clone()),
        Answer::Errno(Errno::NOMSG),
        Answer::Bytes(data[1].clone()),
        Answer::Zero,
    ]);
    set(&front, PreCopy).unwrap();
    let mut stream = Vec::new();
    for _ in 0..4 {
        let (more, end) = read_all(&front, size, shared).unwrap();
        assert_eq!(end, More::Later);
        stream.extend(more);
    }
    front
        .device
        .answer([Answer::Bytes(data[2].clone()), Answer::Zero]);
    set(&front, StopCopy).unwrap();
    let (rest, end) = read_all(&front, size, shared).unwrap();
    assert_eq!(end, More::No);
    stream.extend(rest);
    let after = read_all(&front, size, shared).unwrap();
    assert_eq!(after, (Vec::new(), More::No), "the end stays the end");
    set(&front, Stop).unwrap();
    (front, stream, data.concat())
}

fn loads(stream: &[u8], shared: bool) -> Result<Front, Box<(Front, Error)>> {
    let front = Front::new();
    set(&front, Resuming).unwrap();
    let taken = write_all(&front, stream, 1 << 20, shared);
    match (taken, set(&front, Running)) {
        (Ok(()), Ok(())) => Ok(front),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(Box::new((front, error))),
        (Err(error), Ok(())) => panic!("loaded although {error}"),
    }
}

#[test]
fn a_device_arrives_whole_in_any_pieces() {
    let (_, reference, data) = saved(1 << 20, false);
    for size in [1, 7, 31, 32, 33, 4127, 4128, 4129, 65_536, 1 << 20] {
        for shared in [false, true] {
            let (_, stream, _) = saved(size, shared);
            let destination = Front::new();
            destination.device.script().gulp = 999;
            set(&destination, Resuming).unwrap();
            write_all(&destination, &stream, size, shared).unwrap();
            set(&destination, Running).unwrap();
            let script = destination.device.script();
            assert!(script.written == data, "pieces of {size}");
            assert!(script.loaded && script.resets == 0);
            assert_eq!(
                script.arcs,
                [RunningP2p, Stop, Resuming, Stop, RunningP2p, Running]
            );
            let loaded = destination.loaded.lock().unwrap();
            assert_eq!(*loaded, Some(destination.state.clone()));
        }
    }
    loads(&reference, false).unwrap();
}

#[test]
fn errnos_of_a_busy_driver_are_no_errors() {
    let front = Front::new();
    front.device.answer([
        Answer::Errno(Errno::INTR),
        Answer::Bytes(pattern(10, 0)),
        Answer::Errno(Errno::AGAIN),
    ]);
    set(&front, PreCopy).unwrap();
    assert_eq!(read_all(&front, 1 << 16, false).unwrap().1, More::Later);
    front.device.answer([
        Answer::Errno(Errno::AGAIN),
        Answer::Errno(Errno::INTR),
        Answer::Bytes(pattern(10, 1)),
        Answer::Errno(Errno::NOMSG),
    ]);
    set(&front, StopCopy).unwrap();
    let (_, end) = read_all(&front, 1 << 16, false).unwrap();
    assert_eq!((end, front.device.script().waits), (More::No, 1));
}

#[test]
fn a_failed_read_loses_nothing_and_the_source_runs_on() {
    for (answer, errno) in [
        (Answer::Errno(Errno::IO), Errno::IO),
        (Answer::TooMuch, Errno::IO),
        (Answer::Errno(Errno::NODEV), Errno::NODEV),
    ] {
        let front = Front::new();
        front.device.answer([
            Answer::Bytes(pattern(100, 0)),
            answer,
            Answer::Bytes(pattern(100, 1)),
        ]);
        set(&front, PreCopy).unwrap();
        let error = read_all(&front, 1 << 16, false).unwrap_err();
        assert_eq!(error.errno(), errno);
        // What came before the failure is handed out by the next call, without a gap.
        let (stream, _) = read_all(&front, 1 << 16, false).unwrap();
        set(&front, StopCopy).unwrap();
        let (rest, _) = read_all(&front, 1 << 16, false).unwrap();
        let destination = loads(&[stream, rest].concat(), false).unwrap();
        let expected = [pattern(100, 0), pattern(100, 1)].concat();
        assert_eq!(destination.device.script().written, expected);
        set(&front, Running).unwrap();
        assert_eq!(state(&front), Running);
    }
}

#[test]
fn transactions_keep_their_ends() {
    let front = Front::new();
    front.device.script().support = Support::default();
    front.device.answer([
        Answer::Section(pattern(100, 0)),
        Answer::Section(pattern(200_000, 1)),
        Answer::Section(pattern(1, 2)),
    ]);
    set(&front, StopCopy).unwrap();
    let (stream, _) = read_all(&front, 50_000, false).unwrap();
    let destination = loads(&stream, false).unwrap();
    assert_eq!(
        destination.device.script().transactions,
        [100, 200_100, 200_101]
    );
}

#[test]
fn initial_data_is_announced_and_taken_back() {
    let front = Front::new();
    let destination = Front::new();
    set(&destination, Resuming).unwrap();
    let carry = || {
        let (stream, _) = read_all(&front, 1 << 16, false).unwrap();
        write_all(&destination, &stream, 1000, false).unwrap();
        let ready = |f: &Front| f.migration.pending(false).unwrap().initial_done;
        (ready(&front), ready(&destination))
    };
    front.device.script().infos = [info(200, 0)].into();
    front
        .device
        .answer([Answer::Bytes(pattern(150, 0)), Answer::Zero]);
    set(&front, PreCopy).unwrap();
    assert_eq!(carry(), (false, false));
    front.device.script().infos = [info(0, 0)].into();
    front
        .device
        .answer([Answer::Bytes(pattern(50, 0)), Answer::Zero]);
    assert_eq!(carry(), (true, true));
    // VFIO_PRECOPY_INFO_REINIT
    let again = PrecopyInfo {
        initial: 70,
        dirty: 0,
        reinit: true,
    };
    front.device.script().infos = [Ok(again)].into();
    assert!(front.migration.precopy_info().unwrap().reinit);
    assert_eq!(carry(), (false, false));
    front.device.script().infos = [info(0, 0)].into();
    front
        .device
        .answer([Answer::Bytes(pattern(70, 0)), Answer::Zero]);
    assert_eq!(carry(), (true, true));
    set(&front, StopCopy).unwrap();
    carry();
    set(&destination, Running).unwrap();
}

#[test]
fn sizes_are_made_safe() {
    let front = Front::new();
    assert!(!front.migration.pending(false).unwrap().initial_done);
    let no_pre_copy = Front::new();
    no_pre_copy.device.script().support = Support::default();
    let report = no_pre_copy.migration.pending(false).unwrap();
    assert!(report.initial_done, "nothing to wait for");
    set(&no_pre_copy, Resuming).unwrap();
    let report = no_pre_copy.migration.pending(false).unwrap();
    assert!(report.initial_done, "at a destination neither");
    front.device.script().size = Ok(u64::MAX - 5);
    let error = front.migration.data_size().unwrap_err();
    assert_eq!(error.errno(), Errno::NOTTY, "0 would be taken for a size");
    let report = front.migration.pending(true).unwrap();
    assert!(report.pending.unknown && report.exact && report.pending.total() == 0);
    front.device.script().infos = [info(u64::MAX - 43_967, 4096)].into();
    set(&front, PreCopy).unwrap();
    let info = front.migration.precopy_info().unwrap();
    assert_eq!((info.initial, info.dirty), (0, 4096));
    front.device.script().size = Err(Errno::NOTTY);
    assert!(front.migration.pending(true).unwrap().pending.unknown);
    front.device.script().size = Ok(10_000);
    let pending = front.migration.pending(true).unwrap().pending;
    assert_eq!((pending.total(), pending.stop_copy), (10_000, 5904));
    // What is read is no longer pending, whether or not the driver is asked.
    front.device.answer([Answer::Bytes(pattern(1000, 0))]);
    let mut room = vec![0; 1096];
    front
        .migration
        .read(
            &mut Room::Reply {
                bytes: &mut room,
                borrowed: &mut None,
            },
            &front,
        )
        .unwrap();
    let estimate = front.migration.pending(false).unwrap();
    assert!(!estimate.exact);
    set(&front, StopCopy).unwrap();
    assert_eq!(front.migration.pending(true).unwrap().pending.dirty, 0);
    assert!(front.migration.precopy_info().is_err());
}

#[test]
fn p2p_is_for_those_who_know_it() {
    let front = Front::new();
    assert!(!front.migration.support(HIDDEN).unwrap().p2p);
    for hidden in [RunningP2p, PreCopyP2p] {
        let error = front
            .migration
            .set_state(hidden.into(), HIDDEN, &front)
            .unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        assert_eq!(state(&front), Running);
        set(&front, hidden).unwrap();
        assert_eq!(state(&front), hidden);
        set(&front, Running).unwrap();
    }
    // On the way they are passed all the same.
    front.device.script().arcs.clear();
    front
        .migration
        .set_state(Stop.into(), HIDDEN, &front)
        .unwrap();
    assert_eq!(front.device.script().arcs, [RunningP2p, Stop]);
}

#[test]
fn nothing_illegal_reaches_the_driver() {
    // The scripted driver panics at anything that is not an arc of its own.
    let supports = [(false, false), (true, false), (false, true), (true, true)];
    for (p2p, pre_copy) in supports {
        for from in State::ALL {
            for to in (0..10).chain([0xabcd, u32::MAX]) {
                let front = Front::new();
                front.device.script().support = Support { p2p, pre_copy };
                if from == Error {
                    front.device.script().state = Error;
                } else if set(&front, from).is_err() {
                    continue;
                }
                let before = front.device.script().arcs.len();
                let changed = front.migration.set_state(to, SHOWN, &front);
                let script = front.device.script();
                match changed {
                    Ok(()) => assert_eq!(u32::from(script.state), to),
                    Err(error) => {
                        assert_eq!(error.errno(), Errno::INVAL, "{from} to {to}");
                        assert_eq!((script.state, script.arcs.len()), (from, before));
                    }
                }
            }
        }
    }
}

#[test]
fn a_refused_change_says_where_the_device_is() {
    for (fail, stays) in [
        (StopCopy, PreCopyP2p),
        (PreCopyP2p, PreCopy),
        (StopCopy, Error),
    ] {
        let front = Front::new();
        front.device.script().fail_to = Some((fail, Errno::NOMEM, stays));
        set(&front, PreCopy).unwrap();
        let error = set(&front, StopCopy).unwrap_err();
        assert_eq!(error.errno(), Errno::NOMEM);
        assert_eq!(state(&front), stays);
        if stays == Error {
            assert!(front.migration.is_closed());
            assert_eq!(set(&front, Running).unwrap_err().errno(), Errno::INVAL);
            Guest::reset(&front).unwrap();
        } else {
            set(&front, StopCopy).unwrap();
            set(&front, Running).unwrap();
        }
        assert_eq!(state(&front), Running);
        assert!(!front.migration.is_closed());
    }
}

#[test]
fn leaving_resuming_with_nothing_written_loads_nothing() {
    for to in [Stop, Running, StopCopy, PreCopy] {
        let front = Front::new();
        set(&front, Resuming).unwrap();
        set(&front, to).unwrap();
        assert_eq!(state(&front), to);
        let script = front.device.script();
        assert!(!script.loaded && script.resets == 1);
    }
}

/// Nothing was loaded, the device was reset, and it can be used again.
fn unharmed(front: &Front) {
    assert!(front.loaded.lock().unwrap().is_none());
    {
        let script = front.device.script();
        assert!(!script.loaded && script.resets == 1);
        assert_eq!(script.state, Running);
    }
    assert_eq!(front.migration.last_state(), Running);
    set(front, PreCopy).unwrap();
    set(front, Running).unwrap();
}

/// A stream of little data, so that every byte of it can be tried.
fn small() -> Vec<u8> {
    small_of(0)
}

/// The same with other data.
fn small_of(seed: usize) -> Vec<u8> {
    let mut front = Front::new();
    front.state = GuestState {
        config: vec![7; 256],
        msix_table: Vec::new(),
        ..GuestState::default()
    };
    front
        .device
        .answer([Answer::Bytes(pattern(20, seed)), Answer::Zero]);
    set(&front, PreCopy).unwrap();
    let (mut stream, _) = read_all(&front, 1 << 16, false).unwrap();
    front.device.answer([Answer::Bytes(pattern(5, seed + 1))]);
    set(&front, StopCopy).unwrap();
    stream.extend(read_all(&front, 1 << 16, false).unwrap().0);
    stream
}

#[test]
fn another_device_is_refused_by_name_before_its_data() {
    let (_, stream, _) = saved(1 << 16, false);
    let mut front = Front::new();
    front.identity = Default::default();
    front.identity.push("device", "1234:9999");
    set(&front, Resuming).unwrap();
    let error = write_all(&front, &stream[..200], 10, false).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("1234:5678 at the source") && text.contains("1234:9999 here"),
        "{text}"
    );
    assert!(front.device.script().written.is_empty());
    let again = write_all(&front, &stream[200..], 1000, false).unwrap_err();
    assert!(again.to_string().contains("1234:9999"), "{again}");
    assert!(set(&front, Stop).is_err());
    unharmed(&front);
}

#[test]
fn a_driver_that_refused_data_does_not_load_it() {
    let (_, stream, _) = saved(1 << 16, false);
    let front = Front::new();
    front.device.script().write_errors = [Errno::INTR, Errno::AGAIN, Errno::FAULT].into();
    set(&front, Resuming).unwrap();
    let error = write_all(&front, &stream, 1 << 16, false).unwrap_err();
    assert_eq!(error.errno(), Errno::FAULT);
    assert_eq!(front.device.script().waits, 1);
    // mtty would load it.
    assert_eq!(set(&front, Running).unwrap_err().errno(), Errno::FAULT);
    unharmed(&front);
}

#[test]
fn a_load_that_fails_at_the_end_leaves_a_reset_device() {
    let stream = small();
    let mut front = Front::new();
    front.refuses = true;
    set(&front, Resuming).unwrap();
    write_all(&front, &stream, 100, true).unwrap();
    assert!(
        set(&front, Running)
            .unwrap_err()
            .to_string()
            .contains("refused")
    );
    assert_eq!(front.device.script().resets, 1);
    assert_eq!(state(&front), Running);

    let front = Front::new();
    set(&front, Resuming).unwrap();
    write_all(&front, &stream, 100, true).unwrap();
    front.device.script().fail_to = Some((Stop, Errno::IO, Error));
    assert_eq!(set(&front, Stop).unwrap_err().errno(), Errno::IO);
    unharmed(&front);
}

#[test]
fn a_client_that_leaves_finds_its_device_running_or_to_be_reset() {
    for (during, goes_on) in [
        (Running, true),
        (PreCopy, true),
        (StopCopy, true),
        (Stop, true),
        (Resuming, false),
    ] {
        let front = Front::new();
        set(&front, during).unwrap();
        assert_eq!(front.migration.end(&front), goes_on, "{during}");
        if goes_on {
            assert_eq!(state(&front), Running);
        }
    }
}
