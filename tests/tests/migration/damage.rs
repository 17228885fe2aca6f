// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that are not right, at every byte: never loaded, the device reset and usable, the source able to run.

use std::os::fd::OwnedFd;

use rustix::io::pwrite;
use system_tests::{
    backend::Backend,
    engine::Registers,
    migrating::{Migrates, explain, offering},
    model_gpu::engine as registers,
    raw_client::RawClient,
};
use vfio_user_protocol::{
    Request,
    extension::migration::{EXPLAIN, MIG_SHM, ShmTransfer},
    migration::MigrationState::*,
};

use crate::{EPROTO, MIB, share};

fn enable(client: &mut RawClient) {
    client.write(7, 4, &[6, 0]);
}

/// A small stream: hardly any VRAM was touched.
fn stream(client: &mut RawClient) -> Vec<u8> {
    enable(client);
    client.set(registers::SCRATCH, 0xdead_beef);
    client.write(0, 0x8000, b"VRAM");
    let stream = client.stop_and_copy(MIB);
    client.set_state(Running);
    stream
}

/// A destination's client, and the memory that it shares, if it does.
struct Target {
    client: RawClient,
    memory: Option<OwnedFd>,
}

impl Target {
    /// By message.
    fn attach(backend: &Backend) -> Self {
        Self {
            client: RawClient::attach(&backend.socket()),
            memory: None,
        }
    }

    fn sharing(backend: &Backend) -> Self {
        let mut client = RawClient::connect(&backend.socket());
        let (granted, _) = client.negotiate(&offering(&[MIG_SHM]));
        assert!(granted.has_feature(MIG_SHM));
        let memory = share(&mut client, MIB);
        Self {
            client,
            memory: Some(memory),
        }
    }

    fn write(&mut self, stream: &[u8]) -> Result<(), u32> {
        let Some(memory) = &self.memory else {
            return self.client.write_all(stream, MIB);
        };
        for piece in stream.chunks(MIB) {
            assert_eq!(pwrite(memory, piece, 0), Ok(piece.len()));
            let transfer = ShmTransfer {
                argsz: 24,
                size: piece.len() as u64,
                ..ShmTransfer::default()
            };
            self.client.request(&Request::MigShmWrite(transfer), &[])?;
        }
        Ok(())
    }
}

/// Whether a stream is loaded; if not, the device must be as after a reset.
fn loads(target: &mut Target, stream: &[u8]) -> bool {
    target.client.set_state(Resuming);
    let taken = target.write(stream);
    let client = &mut target.client;
    let left = client.try_set_state(Running.into());
    assert_eq!(client.state(), Running);
    enable(client);
    let scratch = client.get(registers::SCRATCH);
    if left.is_ok() {
        assert_eq!(taken, Ok(()), "loaded although a write failed");
        return scratch == 0xdead_beef;
    }
    assert_eq!(left, Err(EPROTO));
    assert_eq!(scratch, 0, "something was loaded");
    assert_eq!(client.read(0, 0x8000), [0; 4]);
    false
}

#[test]
fn at_every_byte_by_message() {
    damaged(Target::attach, 1);
}

/// At so many bytes; the backend's own tests of sessions try each in memory of either kind.
#[test]
fn throughout_in_shared_memory() {
    damaged(Target::sharing, 17);
}

/// Damages a stream at every `step`th byte.
fn damaged(client: fn(&Backend) -> Target, step: usize) {
    let (from, to) = (
        Backend::start_model(&["vram=1M"]),
        Backend::start_model(&["vram=1M"]),
    );
    let mut source = RawClient::attach(&from.socket());
    let good = stream(&mut source);
    println!(
        "a stream of {} bytes, cut and changed at every {step}",
        good.len()
    );
    let mut client = client(&to);
    assert!(loads(&mut client, &good));
    for at in (0..good.len()).step_by(step) {
        assert!(!loads(&mut client, &good[..at]), "cut at {at}");
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(!loads(&mut client, &bad), "changed at {at}");
        if at % 16 == 0 {
            let mut twice = good.clone();
            twice.splice(
                at..at,
                good[..at]
                    .iter()
                    .copied()
                    .rev()
                    .take(64)
                    .collect::<Vec<_>>(),
            );
            assert!(at == 0 || !loads(&mut client, &twice), "longer at {at}");
            let mut gap = good.clone();
            gap.drain(at..(at + 64).min(good.len()));
            assert!(!loads(&mut client, &gap), "shorter at {at}");
        }
    }
    assert!(loads(&mut client, &good), "usable after all of it");
    assert_eq!(
        source.get(registers::SCRATCH),
        0xdead_beef,
        "the source runs"
    );
}

#[test]
fn another_device_is_named() {
    let (from, to) = (
        Backend::start_model(&["vram=1M"]),
        Backend::start_model(&["vram=2M"]),
    );
    let mut source = RawClient::attach(&from.socket());
    source.set_state(PreCopy);
    let beginning = source.read_all(MIB).unwrap();
    let mut client = RawClient::connect(&to.socket());
    client.negotiate(&offering(&[EXPLAIN]));
    client.set_state(Resuming);
    assert_eq!(client.data_write(&beginning), Err(EPROTO));
    let why = explain(&mut client);
    assert!(
        why.contains(
            "BAR0: 1048576 bytes of 64-bit memory, prefetchable at the source, 2097152 bytes"
        ),
        "{why}"
    );
    assert_eq!(client.try_set_state(Stop.into()), Err(EPROTO));
    assert!(explain(&mut client).contains("BAR0"), "asked again");
    assert_eq!(client.state(), Running);
}

/// The first record of a stream, as a source with driver data of another version would have made it; the versions of
/// both.
fn of_another_version(mut stream: Vec<u8>) -> (Vec<u8>, String, String) {
    /// Where a record has the length of its payload, its checksum, and the payload (`backend/src/migration/record.rs`).
    const LENGTH: usize = 24;
    const CHECKSUM: usize = 28;
    const PAYLOAD: usize = 64;
    let length = stream[LENGTH..CHECKSUM].try_into().expect("4 bytes");
    stream.truncate(PAYLOAD + u32::from_le_bytes(length) as usize);
    let name = b"driver data";
    let mut windows = stream.windows(name.len());
    let at = windows.position(|window| window == name);
    // Behind the length of the value, in 2 bytes.
    let at = at.expect("the property") + name.len() + 2;
    let here = String::from_utf8(stream[at..].to_vec()).expect("the last property");
    let last = stream.last_mut().expect("a version");
    *last ^= 1;
    let there = String::from_utf8(stream[at..].to_vec()).expect("UTF-8");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stream[PAYLOAD..]);
    hasher.update(&stream[..CHECKSUM]);
    stream[CHECKSUM..CHECKSUM + 4].copy_from_slice(&hasher.finalize().to_le_bytes());
    (stream, there, here)
}

#[test]
fn driver_data_of_another_version_is_named() {
    let backend = Backend::start_model(&["vram=1M"]);
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&offering(&[EXPLAIN]));
    let good = stream(&mut client);
    let (bad, there, here) = of_another_version(good.clone());
    client.set_state(Resuming);
    assert_eq!(client.data_write(&bad), Err(EPROTO));
    let why = explain(&mut client);
    let expected = format!("driver data: {there} at the source, {here} here");
    assert!(why.contains(&expected), "{expected}: {why}");
    assert_eq!(client.try_set_state(Running.into()), Err(EPROTO));
    assert_eq!(client.state(), Running);
    let memory = None;
    assert!(loads(&mut Target { client, memory }, &good));
}

#[test]
fn loads_that_come_to_nothing_do_not_fill_the_log() {
    let mut backend = Backend::start_model(&["vram=1M"]);
    let mut client = RawClient::attach(&backend.socket());
    for _ in 0..200 {
        client.set_state(Resuming);
        assert_eq!(client.data_write(&[b'x'; 100]), Err(EPROTO));
        assert_eq!(client.try_set_state(Stop.into()), Err(EPROTO));
    }
    drop(client);
    backend.terminate();
    let report = backend.report();
    let lines = report.matches("Nothing loaded").count();
    // Ten, then one a second is written. (In 140 seconds this fails for another reason.)
    assert!((1..150).contains(&lines), "{lines} lines");
}
