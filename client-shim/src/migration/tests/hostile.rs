// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Servers that answer migration with what nobody can want: nothing panics, hangs, grows or is believed.

use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rustix::thread::gettid;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::protocol::extension::migration as wire;
use crate::protocol::feature::{MIG_DEVICE_STATE, SET};
use crate::protocol::version::{Capabilities, Extension};
use crate::protocol::{Command, extension};
use crate::testing::{Message, Peer, word};

/// A client of a server that answers each command as `script` says: a body, or an errno.
fn scripted(
    features: MigrationFeatures,
    script: impl FnMut(Command, &Message) -> Result<Vec<u8>, u32> + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let options = Options {
        migration: features,
        ..Options::default()
    };
    scripted_with(options, script)
}

fn scripted_with(
    options: Options,
    script: impl FnMut(Command, &Message) -> Result<Vec<u8>, u32> + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (client, server) = try_client(options, move |peer| {
        let features = [
            extension::migration::PENDING,
            extension::migration::MIG_CHANNEL,
            extension::migration::MIG_SHM,
        ];
        let capabilities = Capabilities {
            extension: Some(Extension {
                version: extension::VERSION,
                features: features.map(str::to_owned).to_vec(),
                ..Extension::default()
            }),
            ..Capabilities::default()
        };
        peer.negotiate(&capabilities, &[]);
        answer_all(peer, &Mutex::new(script));
    });
    (client.unwrap(), server)
}

fn answer_all(
    peer: &mut Peer,
    script: &Mutex<impl FnMut(Command, &Message) -> Result<Vec<u8>, u32> + Send>,
) {
    thread::scope(|scope| {
        while let Some(mut request) = peer.next() {
            let command = Command::try_from(request.header.command).unwrap();
            if command == Command::MigChannel {
                let end = UnixStream::from(request.fds.pop().unwrap());
                peer.reply(&request, &[], &[]);
                scope.spawn(|| answer_all(&mut Peer::new(end), script));
                continue;
            }
            let answer = script.lock().unwrap()(command, &request);
            // The client may have hung up on what it got.
            let _ = match answer {
                Ok(body) => {
                    let header = request.header.reply(body.len());
                    peer.sender.send(&header, &[&body], &[])
                }
                Err(errno) => peer
                    .sender
                    .send(&request.header.error_reply(errno), &[], &[]),
            };
        }
    });
}

/// Features and states as of a device that has them, so that the interesting part is reached.
fn sane(request: &Message) -> Vec<u8> {
    let value: u64 = match word(&request.body, 4) & 0xffff {
        1 => 7,
        // RUNNING.
        2 => 2,
        _ => 1000,
    };
    [&request.body[..8], value.as_bytes()].concat()
}

fn shared() -> MigrationFeatures {
    MigrationFeatures {
        channel: true,
        shared_memory: true,
        ..MigrationFeatures::default()
    }
}

/// What the first read gives if a transfer is answered so.
fn read_shared(
    stopped: bool,
    answer: impl Fn(&mut wire::ShmTransfer) + Send + 'static,
) -> Result<Progress, Error> {
    let (client, server) = scripted(shared(), move |command, request| {
        Ok(match command {
            Command::DeviceFeature => sane(request),
            Command::MigShmRead => {
                let mut transfer = wire::ShmTransfer::read_from_bytes(&request.body).unwrap();
                answer(&mut transfer);
                transfer.as_bytes().to_vec()
            }
            _ => Vec::new(),
        })
    });
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(true).unwrap();
    if stopped {
        saver.switch_over().unwrap();
    }
    let mut sink = Vec::new();
    let result = saver.iterate(&mut sink);
    drop((saver, client, migration));
    server.join().unwrap();
    result
}

#[test]
fn transfers_that_were_not_asked_for_are_refused() {
    type Change = fn(&mut wire::ShmTransfer);
    let changes: [(bool, Change); 7] = [
        (false, |transfer| transfer.size += 1),
        (false, |transfer| transfer.size = u64::MAX),
        (false, |transfer| transfer.offset += 4096),
        (false, |transfer| transfer.size = 0),
        (false, |transfer| transfer.flags = wire::SHM_END_OF_STREAM),
        (true, |transfer| transfer.flags = wire::SHM_END_OF_PRECOPY),
        (true, |transfer| transfer.flags = 1 << 31),
    ];
    for (number, (stopped, change)) in changes.into_iter().enumerate() {
        let result = read_shared(stopped, change);
        assert!(
            matches!(result, Err(Error::Reply { .. })),
            "{number}: {result:?}"
        );
    }
}

#[test]
fn data_by_message_that_was_not_asked_for_is_refused() {
    // Size as said, bytes as sent.
    for (said, sent) in [
        (u32::MAX, 10),
        (11, 10),
        (9, 10),
        ((1 << 20) + 1, (1 << 20) + 1),
        (0, 1),
    ] {
        let (client, server) = scripted(MigrationFeatures::default(), move |command, request| {
            Ok(match command {
                Command::DeviceFeature => sane(request),
                Command::MigDataRead => [[8, said].as_bytes(), &vec![1; sent][..]].concat(),
                _ => Vec::new(),
            })
        });
        let migration = client.migration().unwrap().unwrap();
        let mut saver = migration.save(true).unwrap();
        let result = saver.iterate(&mut Vec::new());
        assert!(
            matches!(result, Err(Error::Reply { .. } | Error::TooLong { .. })),
            "{said} {sent}: {result:?}"
        );
        drop((saver, client, migration));
        server.join().unwrap();
    }
}

/// A channel on which nothing more can be said: the main socket leads back, and takes the next transfer.
#[test]
fn a_broken_channel_does_not_strand_the_source() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let (client, server) = scripted(shared(), move |command, request| {
        let mut body = request.body.clone();
        Ok(match command {
            Command::DeviceFeature => {
                let flags = word(&body, 4);
                if flags == SET | MIG_DEVICE_STATE {
                    log.lock().unwrap().push(word(&body, 8));
                }
                sane(request)
            }
            Command::MigShmRead => {
                // The offset.
                body[8] = 1;
                body
            }
            Command::MigDataRead => [8, 0].as_bytes().to_vec(),
            _ => Vec::new(),
        })
    });
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    let error = saver.chunk().unwrap_err();
    assert!(matches!(error, Error::Reply { .. }), "{error:?}");
    // What it had of the stream is lost, so it does not go on elsewhere.
    let error = saver.chunk().unwrap_err();
    assert!(matches!(error, Error::Disconnected), "{error:?}");
    saver.cancel().unwrap();
    let states = |states: &[State]| {
        states
            .iter()
            .map(|state| u32::from(*state))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        *seen.lock().unwrap(),
        states(&[State::StopCopy, State::Running])
    );

    let mut saver = migration.save(false).unwrap();
    let second = client.migration().unwrap().unwrap();
    assert!(matches!(second.save(false), Err(Error::InvalidArgument(_))));
    saver.switch_over().unwrap();
    assert_eq!(saver.iterate(&mut Vec::new()).unwrap(), Progress::End);
    saver.finish().unwrap();
    let mut loader = migration.load().unwrap();
    loader.load(&[1; 3]).unwrap();
    loader.finish(true).unwrap();
    drop((second, client, migration));
    server.join().unwrap();
}

/// The driver takes longer than the client waits, first on the channel and then, for the way back, on the main socket.
#[test]
fn a_driver_that_is_late_does_not_cost_the_guest_its_socket() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let (hold, held) = mpsc::channel::<()>();
    let script = move |command, request: &Message| {
        Ok(match command {
            Command::DeviceFeature => {
                let body = &request.body;
                let running = u32::from(State::Running);
                if word(body, 4) == SET | MIG_DEVICE_STATE && word(body, 8) == running {
                    thread::sleep(2 * TIMEOUT);
                }
                sane(request)
            }
            Command::MigShmRead => {
                let _ = held.recv();
                request.body.clone()
            }
            Command::RegionRead => [&request.body[..], &[0; 4]].concat(),
            _ => Vec::new(),
        })
    };
    let options = Options {
        timeout: Some(TIMEOUT),
        migration: shared(),
        ..Options::default()
    };
    let (client, server) = scripted_with(options, script);
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    let error = saver.chunk().unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    drop(hold);
    saver.cancel().unwrap();
    client.region_read(7, 0, &mut [0; 4]).unwrap();
    drop((client, migration));
    server.join().unwrap();
}

/// Threads that wait for a server that does not answer are all released.
#[test]
fn a_mute_channel_does_not_keep_anybody_from_disconnecting() {
    let (asked, wait) = mpsc::channel();
    // Dropped at the end: only then are reads answered.
    let (hold, held) = mpsc::channel::<()>();
    let (client, server) = scripted(shared(), move |command, request| {
        if command == Command::MigShmRead {
            asked.send(()).unwrap();
            let _ = held.recv();
        }
        Ok(match command {
            Command::DeviceFeature => sane(request),
            _ => Vec::new(),
        })
    });
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    thread::scope(|scope| {
        let saving = scope.spawn(|| saver.chunk().map(drop));
        wait.recv().unwrap();
        let (started, id) = mpsc::channel();
        let asking = scope.spawn({
            let client = &client;
            move || {
                started.send(gettid()).unwrap();
                client.migration().map(drop)
            }
        });
        let stat = format!(
            "/proc/self/task/{}/stat",
            id.recv().unwrap().as_raw_nonzero()
        );
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            thread::yield_now();
        }
        client.disconnect();
        assert!(matches!(saving.join().unwrap(), Err(Error::Disconnected)));
        assert!(matches!(asking.join().unwrap(), Err(Error::Disconnected)));
    });
    drop((hold, saver, client, migration));
    server.join().unwrap();
}

/// The last piece says that it is the last; reads that were sent ahead of knowing it may well be refused.
#[test]
fn nothing_behind_the_end_of_a_stream_counts() {
    let mut reads = 0;
    let (client, server) = scripted(shared(), move |command, request| {
        Ok(match command {
            Command::DeviceFeature => sane(request),
            Command::MigShmRead if reads == 0 => {
                reads += 1;
                let mut transfer = wire::ShmTransfer::read_from_bytes(&request.body).unwrap();
                transfer.flags = wire::SHM_END_OF_STREAM;
                transfer.as_bytes().to_vec()
            }
            Command::MigShmRead => return Err(22),
            _ => Vec::new(),
        })
    });
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    let mut sink = Vec::new();
    assert_eq!(saver.iterate(&mut sink).unwrap(), Progress::Data(SLOT));
    assert_eq!(saver.iterate(&mut sink).unwrap(), Progress::End);
    saver.finish().unwrap();
    drop((client, migration));
    server.join().unwrap();
}

/// The destination runs by then: whatever becomes of the source, it does not.
#[test]
fn a_source_that_cannot_be_finished_is_not_started_again() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let (client, server) = scripted(MigrationFeatures::default(), move |command, request| {
        if command == Command::DeviceFeature && word(&request.body, 4) == SET | MIG_DEVICE_STATE {
            let state = State::try_from(word(&request.body, 8)).unwrap();
            log.lock().unwrap().push(state);
            if state == State::Stop {
                return Err(5);
            }
        }
        Ok(match command {
            Command::DeviceFeature => sane(request),
            Command::MigDataRead => [8, 0].as_bytes().to_vec(),
            _ => Vec::new(),
        })
    });
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    assert_eq!(saver.iterate(&mut Vec::new()).unwrap(), Progress::End);
    assert!(matches!(saver.finish(), Err(Error::Peer { errno: 5, .. })));
    assert_eq!(*seen.lock().unwrap(), [State::StopCopy, State::Stop]);
    drop((client, migration));
    server.join().unwrap();
}

/// The caller is asked after each chunk, and can leave.
#[test]
fn a_stream_without_end_can_be_left() {
    for (features, chunk) in [(MigrationFeatures::default(), CHUNK), (shared(), SLOT)] {
        let (client, server) = scripted(features, |command, request| {
            Ok(match command {
                Command::DeviceFeature => sane(request),
                Command::MigDataRead => {
                    let size = word(&request.body, 4);
                    [[size + 8, size].as_bytes(), &vec![7; size as usize][..]].concat()
                }
                Command::MigShmRead => request.body.clone(),
                _ => Vec::new(),
            })
        });
        let migration = client.migration().unwrap().unwrap();
        let mut saver = migration.save(true).unwrap();
        saver.switch_over().unwrap();
        for _ in 0..100 {
            let progress = saver.iterate(&mut Vec::new()).unwrap();
            assert_eq!(progress, Progress::Data(chunk));
        }
        saver.cancel().unwrap();
        drop((client, migration));
        server.join().unwrap();
    }
}

#[test]
fn garbage_sizes_are_unknown() {
    for (size, expected) in [
        (0, Some(0)),
        (u64::MAX >> 1, Some(u64::MAX >> 1)),
        (1 << 63, None),
        (u64::MAX, None),
    ] {
        let (client, server) = scripted(MigrationFeatures::default(), move |command, request| {
            Ok(match command {
                Command::DeviceFeature if word(&request.body, 4) & 0xffff == 9 => {
                    [&request.body[..8], size.as_bytes()].concat()
                }
                Command::DeviceFeature => sane(request),
                _ => Vec::new(),
            })
        });
        let migration = client.migration().unwrap().unwrap();
        assert_eq!(migration.stop_copy_size().unwrap(), expected);
        let mut saver = migration.save(true).unwrap();
        let pending = saver.pending(true).unwrap();
        assert_eq!(pending.total(), expected.unwrap_or(0));
        assert_eq!(pending.unknown, expected.is_none());
        drop((saver, client, migration));
        server.join().unwrap();
    }
}

/// Everything a migration does, whatever it gets.
fn migrate(client: &Client) -> Result<(), Error> {
    let Some(migration) = client.migration()? else {
        return Ok(());
    };
    let _ = migration.state();
    if let Ok(mut saver) = migration.save(true) {
        let _ = saver.pending(true);
        let _ = saver.precopy_info();
        for _ in 0..5 {
            let _ = saver.iterate(&mut Vec::new());
        }
        let _ = saver.switch_over();
        let _ = saver.pending(false);
        for _ in 0..5 {
            let _ = saver.iterate(&mut Vec::new());
        }
        let _ = saver.finish();
    }
    if let Ok(mut loader) = migration.load() {
        let _ = loader.load(&[1; 3000]);
        let _ = loader.ready();
        let _ = loader.finish(true);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_server_answers_nothing_panics_or_hangs(
        answers in prop::collection::vec(
            prop_oneof![
                (1_u32..200).prop_map(Err),
                prop::collection::vec(any::<u8>(), 0..60).prop_map(Ok),
                // Words of plausible sizes.
                prop::collection::vec(0_u32..40, 0..12)
                    .prop_map(|words| Ok(words.as_bytes().to_vec())),
            ],
            1..30,
        ),
        honest in 0_usize..8,
        all in any::<bool>(),
    ) {
        let features = if all { MigrationFeatures::ALL } else { MigrationFeatures::default() };
        let mut answers = answers.into_iter().cycle();
        let mut seen = 0;
        let (client, server) = scripted(features, move |command, request| {
            seen += 1;
            if seen <= honest && command == Command::DeviceFeature {
                return Ok(sane(request));
            }
            if command == Command::MigShm {
                return Ok(Vec::new());
            }
            answers.next().unwrap()
        });
        let _ = migrate(&client);
        drop(client);
        server.join().unwrap();
    }
}
