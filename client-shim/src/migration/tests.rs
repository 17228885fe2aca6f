// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Savers and loaders against a scripted device, in every way the data can go, and against servers that mean ill.

mod device;
mod hostile;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use device::{Device, serve};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::memory::{CHUNK, SLOT};
use super::*;
use crate::protocol::migration::MigrationState as State;
use crate::testing::try_client;
use crate::{MigrationFeatures, Options};

/// With and without channel, with and without shared memory, and all there is.
fn ways() -> Vec<MigrationFeatures> {
    let mut ways = vec![MigrationFeatures::ALL];
    for channel in [false, true] {
        for shared_memory in [false, true] {
            ways.push(MigrationFeatures {
                channel,
                shared_memory,
                ..MigrationFeatures::default()
            });
        }
    }
    ways
}

/// A client of a scripted device, which can be looked at from outside.
fn attach(
    features: MigrationFeatures,
    device: Device,
) -> (Client, Arc<Mutex<Device>>, JoinHandle<()>) {
    let device = Arc::new(Mutex::new(device));
    let served = Arc::clone(&device);
    let options = Options {
        migration: features,
        explain: true,
        ..Options::default()
    };
    let (client, server) = try_client(options, move |peer| serve(peer, &served));
    (client.unwrap(), device, server)
}

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    // A prime length, so that no two chunks are alike.
    let block: Vec<u8> = (0..4093)
        .map(|at: usize| ((at * 7 + at / 251 + seed) % 256).to_le_bytes()[0])
        .collect();
    let mut bytes = block.repeat(length.div_ceil(block.len()));
    bytes.truncate(length);
    bytes
}

/// Two passes and a stop-copy; sizes at the limits of messages and slots, nothing among them.
fn stream() -> Device {
    Device {
        passes: vec![bytes(1, (5 << 20) + 17), Vec::new(), bytes(2, 1 << 20)],
        stop_copy: bytes(3, (3 << 20) - 1),
        ..Device::default()
    }
}

/// Reads a pass to its end.
fn pass(saver: &mut Saver, into: &mut Vec<u8>) -> Progress {
    loop {
        match saver.iterate(into).unwrap() {
            Progress::Data(bytes) => assert!(bytes > 0),
            other => return other,
        }
    }
}

#[test]
fn a_stream_comes_out_whole_whichever_way_it_goes() {
    for features in ways() {
        let device = stream();
        let expected = [
            device.passes.concat(),
            bytes(4, 3 << 20),
            device.stop_copy.clone(),
        ];
        let expected = expected.concat();
        let (client, device, server) = attach(features, device);
        let migration = client.migration().unwrap().unwrap();
        let mut saver = migration.save(true).unwrap();
        assert_eq!(device.lock().unwrap().state, State::PreCopy);
        let mut found = Vec::new();
        for _ in 0..4 {
            assert_eq!(pass(&mut saver, &mut found), Progress::Idle, "{features:?}");
            device.lock().unwrap().next_pass();
        }
        // What was read ahead before the device stopped comes before what comes after.
        let last = bytes(4, 3 << 20);
        device.lock().unwrap().ready.extend(&last);
        assert!(matches!(saver.iterate(&mut found), Ok(Progress::Data(_))));
        saver.switch_over().unwrap();
        assert!(saver.switch_over().is_err());
        assert_eq!(pass(&mut saver, &mut found), Progress::End, "{features:?}");
        assert_eq!(saver.iterate(&mut found).unwrap(), Progress::End);
        let total = saver.pending(true).unwrap().total();
        assert_eq!(total, 0);
        saver.finish().unwrap();
        assert_eq!(device.lock().unwrap().state, State::Stop);
        assert!(found == expected, "{features:?}: {} bytes", found.len());
        drop(client);
        drop(migration);
        server.join().unwrap();
    }
}

#[test]
fn a_device_without_pre_copy_gives_all_at_the_end() {
    for features in ways() {
        let device = Device {
            pre_copy: false,
            stop_copy: bytes(3, 100),
            ..Device::default()
        };
        let (client, device, server) = attach(features, device);
        let migration = client.migration().unwrap().unwrap();
        assert!(!migration.support().pre_copy);
        let mut saver = migration.save(true).unwrap();
        let mut found = Vec::new();
        assert_eq!(saver.iterate(&mut found).unwrap(), Progress::Idle);
        assert_eq!(device.lock().unwrap().state, State::Running);
        let pending = saver.pending(true).unwrap();
        assert!(pending.total() == 100 && pending.initial_done);
        saver.switch_over().unwrap();
        assert_eq!(pass(&mut saver, &mut found), Progress::End);
        assert_eq!(found, bytes(3, 100));
        saver.finish().unwrap();
        drop((client, migration));
        server.join().unwrap();
    }
}

#[test]
fn a_stream_goes_in_whole_however_it_is_cut() {
    let data = bytes(5, (9 << 20) + 3);
    for features in ways() {
        let apart = features.channel && features.shared_memory;
        let longest = if apart { SLOT } else { CHUNK };
        for cut in [1000, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20] {
            let (client, device, server) = attach(features, Device::default());
            let migration = client.migration().unwrap().unwrap();
            let mut loader = migration.load().unwrap();
            for part in data.chunks(cut) {
                loader.load(part).unwrap();
            }
            assert!(loader.ready().unwrap());
            loader.finish(true).unwrap();
            let device = device.lock().unwrap();
            assert!(device.loaded == data, "{features:?}, by {cut}");
            assert_eq!(device.longest, longest, "{features:?}, by {cut}");
            assert_eq!(device.state, State::Running);
            drop(device);
            drop((client, migration));
            server.join().unwrap();
        }
    }
}

#[test]
fn bytes_one_by_one_from_a_reader_and_from_shared_memory_are_the_same() {
    let mut data = bytes(6, 3000);
    for features in ways() {
        let (client, device, server) = attach(features, Device::default());
        let migration = client.migration().unwrap().unwrap();
        let mut loader = migration.load().unwrap();
        for byte in &data[..1000] {
            loader.load(&[*byte]).unwrap();
        }
        let mut reader = &data[1000..2000];
        while loader.load_from(&mut reader).unwrap() > 0 {}
        loader
            .load_volatile(&VolatileSlice::from(&mut data[2000..]))
            .unwrap();
        loader.finish(false).unwrap();
        assert!(device.lock().unwrap().loaded == data, "{features:?}");
        assert_eq!(device.lock().unwrap().state, State::Stop);
        drop((client, migration));
        server.join().unwrap();
    }
}

/// Cancelled by word or by dropping it, before anything, in every pass, in the stop-copy and behind it.
#[test]
fn a_source_cancelled_anywhere_goes_on() {
    for features in ways() {
        for steps in 0..16 {
            let (client, device, server) = attach(features, stream());
            let migration = client.migration().unwrap().unwrap();
            let mut saver = migration.save(true).unwrap();
            let mut idle = 0;
            for _ in 0..steps {
                match saver.iterate(&mut Vec::new()).unwrap() {
                    Progress::Idle if idle < 2 => {
                        device.lock().unwrap().next_pass();
                        idle += 1;
                    }
                    Progress::Idle => saver.switch_over().unwrap(),
                    _ => {}
                }
            }
            if steps % 2 == 0 {
                saver.cancel().unwrap();
            } else {
                drop(saver);
            }
            assert_eq!(device.lock().unwrap().state, State::Running, "{features:?}");
            // Another one begins from the start.
            *device.lock().unwrap() = stream();
            let mut saver = migration.save(false).unwrap();
            saver.switch_over().unwrap();
            let mut found = Vec::new();
            assert_eq!(pass(&mut saver, &mut found), Progress::End);
            assert!(found == stream().stop_copy, "{features:?} after {steps}");
            drop((saver, client, migration));
            server.join().unwrap();
        }
    }
}

#[test]
fn a_destination_cancelled_anywhere_is_reset() {
    for features in ways() {
        for length in [0, 1, 1 << 20, 6 << 20] {
            let (client, device, server) = attach(features, Device::default());
            let migration = client.migration().unwrap().unwrap();
            let mut loader = migration.load().unwrap();
            loader.load(&bytes(1, length)).unwrap();
            if length % 2 == 0 {
                loader.cancel().unwrap();
            } else {
                drop(loader);
            }
            assert_eq!(device.lock().unwrap().resets, 1);
            assert_eq!(device.lock().unwrap().state, State::Running);
            let mut loader = migration.load().unwrap();
            loader.load(b"again").unwrap();
            loader.finish(true).unwrap();
            assert_eq!(device.lock().unwrap().loaded, b"again");
            drop((client, migration));
            server.join().unwrap();
        }
    }
}

#[test]
fn one_transfer_at_a_time() {
    let (client, _, server) = attach(MigrationFeatures::ALL, stream());
    let migration = client.migration().unwrap().unwrap();
    let saver = migration.save(true).unwrap();
    let second = client.migration().unwrap().unwrap();
    assert!(matches!(second.save(true), Err(Error::InvalidArgument(_))));
    assert!(matches!(second.load(), Err(Error::InvalidArgument(_))));
    drop(saver);
    drop(second.load().unwrap());
    drop((client, migration, second));
    server.join().unwrap();
}

#[test]
fn a_stream_that_has_not_ended_does_not_finish() {
    let (client, device, server) = attach(MigrationFeatures::ALL, stream());
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(true).unwrap();
    saver.switch_over().unwrap();
    saver.iterate(&mut Vec::new()).unwrap();
    assert!(matches!(saver.finish(), Err(Error::InvalidArgument(_))));
    assert_eq!(device.lock().unwrap().state, State::Running, "cancelled");
    drop((client, migration));
    server.join().unwrap();
}

#[test]
fn pending_is_the_same_asked_or_estimated() {
    let features = [
        MigrationFeatures::default(),
        MigrationFeatures {
            precopy_info: true,
            ..MigrationFeatures::default()
        },
        MigrationFeatures::ALL,
    ];
    for features in features {
        let (client, device, server) = attach(features, stream());
        let migration = client.migration().unwrap().unwrap();
        let size = device.lock().unwrap().size();
        assert_eq!(migration.stop_copy_size().unwrap(), Some(size));
        let mut saver = migration.save(true).unwrap();
        let first = (5 << 20) + 17;
        let exact = saver.pending(true).unwrap();
        assert_eq!(exact.total(), size, "{features:?}");
        if features.precopy_info {
            assert_eq!((exact.initial, exact.stop_copy), (first, size - first));
            assert!(!exact.initial_done);
        } else {
            assert_eq!((exact.precopy(), exact.stop_copy), (0, size));
        }
        pass(&mut saver, &mut Vec::new());
        let estimate = saver.pending(false).unwrap();
        assert_eq!(estimate.total(), size - first, "{features:?}");
        assert!(estimate.initial_done);
        assert_eq!(
            saver.pending(true).unwrap().total(),
            estimate.total(),
            "{features:?}"
        );
        drop((saver, client, migration));
        server.join().unwrap();
    }
}

/// A read behind the end of a pass would begin another.
#[test]
fn no_more_is_read_ahead_than_a_pass_has() {
    for length in [1, SLOT, SLOT + 1, 5 * SLOT + 17] {
        let device = Device {
            passes: vec![bytes(1, length)],
            ..Device::default()
        };
        let (client, device, server) = attach(MigrationFeatures::ALL, device);
        let migration = client.migration().unwrap().unwrap();
        let mut saver = migration.save(true).unwrap();
        let mut found = Vec::new();
        assert_eq!(pass(&mut saver, &mut found), Progress::Idle);
        assert_eq!(found.len(), length);
        // One that is not filled tells the end.
        let reads = length / SLOT + 1;
        assert_eq!(device.lock().unwrap().reads, reads, "{length}");
        drop((saver, client, migration));
        server.join().unwrap();
    }
}

#[test]
fn states_and_their_absence() {
    let (client, device, server) = attach(MigrationFeatures::ALL, Device::default());
    let migration = client.migration().unwrap().unwrap();
    let all = Support {
        pre_copy: true,
        p2p: true,
    };
    assert_eq!(migration.support(), all);
    assert_eq!(migration.state().unwrap(), State::Running);
    migration.set_state(State::Stop).unwrap();
    assert_eq!(migration.state().unwrap(), State::Stop);
    // A source that was stopped is stopped again when its transfer is cancelled.
    let mut saver = migration.save(false).unwrap();
    saver.switch_over().unwrap();
    saver.cancel().unwrap();
    assert_eq!(migration.state().unwrap(), State::Stop);
    migration.set_state(State::Running).unwrap();
    let mut saver = migration.save(true).unwrap();
    saver.quiesce_peers().unwrap();
    assert_eq!(migration.state().unwrap(), State::PreCopyP2p);
    saver.cancel().unwrap();
    let mut saver = migration.save(false).unwrap();
    saver.quiesce_peers().unwrap();
    assert_eq!(migration.state().unwrap(), State::RunningP2p);
    saver.cancel().unwrap();
    assert_eq!(device.lock().unwrap().state, State::Running);
    drop((client, migration));
    server.join().unwrap();

    let (client, _, server) = attach(
        MigrationFeatures::default(),
        Device {
            migrates: false,
            ..Device::default()
        },
    );
    assert!(client.migration().unwrap().is_none());
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_refusal_says_why() {
    for features in ways() {
        let device = Device {
            refuse_at: Some(100),
            ..Device::default()
        };
        let (client, _, server) = attach(features, device);
        let migration = client.migration().unwrap().unwrap();
        let mut loader = migration.load().unwrap();
        let refused = loader.load(&bytes(1, 200)).and_then(|()| loader.flush());
        match refused {
            Err(Error::Peer {
                errno: 71, reason, ..
            }) => {
                assert_eq!(reason, "Not  for this device", "no control characters");
            }
            other => panic!("{features:?}: {other:?}"),
        }
        drop((loader, client, migration));
        server.join().unwrap();
    }
}

#[test]
fn a_sink_that_fails_says_so_and_the_source_goes_on() {
    let (client, device, server) = attach(MigrationFeatures::ALL, stream());
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(true).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let mut writer = std::fs::File::from(writer);
    let error = saver.iterate(&mut writer).unwrap_err();
    assert!(matches!(error, Error::PassOn(_)), "{error:?}");
    assert_eq!(error.errno(), Errno::PIPE.raw_os_error());
    drop(saver);
    assert_eq!(device.lock().unwrap().state, State::Running);
    drop((client, migration));
    server.join().unwrap();
}

/// The main socket answers while the channel is busy.
#[test]
fn guest_accesses_do_not_wait_for_a_slow_save() {
    let device = Device {
        hold: true,
        ..stream()
    };
    let (client, device, server) = attach(MigrationFeatures::ALL, device);
    let migration = client.migration().unwrap().unwrap();
    let mut saver = migration.save(true).unwrap();
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| saver.iterate(&mut Vec::new()).unwrap());
        // Each is answered, though no read is before the last.
        for _ in 0..10 {
            client.region_read(7, 0, &mut [0; 4]).unwrap();
        }
        device::let_go(&device);
        assert!(matches!(saving.join().unwrap(), Progress::Data(_)));
    });
    drop((saver, client, migration));
    server.join().unwrap();
}
