// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads whose device is reset in their midst, or whose pieces are lost: whoever ends them hears of it.

use rustix::fs::ftruncate;
use system_tests::{
    backend::Backend,
    migrating::{Migrates, offering},
    raw_client::RawClient,
};
use vfio_user_protocol::{
    Command, Request,
    extension::migration::{MIG_SHM, ShmTransfer},
    migration::MigrationState::*,
};

use crate::{EPROTO, MIB, share};

const ENODEV: u32 = 19;
const EFAULT: u32 = 14;

/// The stream of a device with a few bytes of VRAM, zeros behind them.
fn stream(client: &mut RawClient) -> Vec<u8> {
    client.write(7, 4, &[6, 0]);
    client.write(0, 0x8000, b"VRAM");
    let stream = client.stop_and_copy(MIB);
    client.set_state(Running);
    stream
}

/// A reset by the guest: a write to the Device Control register of the PCI Express capability (`PCI_EXP_DEVCTL_BCR_FLR`).
fn function_level_reset(client: &mut RawClient) {
    let [mut at] = client.read(7, 0x34);
    while client.read(7, at.into()) != [0x10] {
        [at] = client.read(7, u64::from(at) + 1);
        assert_ne!(at, 0, "no PCI Express capability");
    }
    client.write(7, u64::from(at) + 8, &0x8000_u16.to_le_bytes());
}

#[test]
fn a_reset_is_not_taken_for_a_load() {
    let backend = Backend::start_model(&["vram=1M"]);
    let mut client = RawClient::attach(&backend.socket());
    let stream = stream(&mut client);
    let received = |client: &mut RawClient| {
        client.set_state(Resuming);
        client.write_all(&stream, MIB).unwrap();
    };
    for end in [Running, Stop, StopCopy] {
        received(&mut client);
        function_level_reset(&mut client);
        assert_eq!(client.try_set_state(end.into()), Err(ENODEV));
        assert_eq!(client.state(), Running);
        client.set_state(end);
        client.set_state(Running);
    }
    // Begun anew, without a word in between.
    received(&mut client);
    function_level_reset(&mut client);
    received(&mut client);
    client.set_state(Running);
    assert_eq!(client.read(0, 0x8000), *b"VRAM");
    // Who asks for a reset knows.
    received(&mut client);
    client.call(Command::DeviceReset, &[], &[]).unwrap();
    client.set_state(Running);
    client.write(7, 4, &[6, 0]);
    assert_eq!(client.read(0, 0x8000), [0; 4]);
    // The next client has ended nothing.
    received(&mut client);
    function_level_reset(&mut client);
    drop(client);
    RawClient::attach(&backend.socket()).set_state(Running);
}

#[test]
fn a_piece_that_was_truncated_is_not_forgotten() {
    const LOST: usize = 4096;
    let backend = Backend::start_model(&["vram=1M"]);
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&offering(&[MIG_SHM]));
    let stream = stream(&mut client);
    let zeros = stream
        .windows(2 * LOST)
        .position(|part| part == [0; 2 * LOST]);
    // What is lost is as it would have been: nothing but the truncation tells.
    let from = zeros.expect("zeros behind what is in VRAM") + LOST;
    client.set_state(Resuming);
    client.data_write(&stream[..from]).unwrap();
    let memory = share(&mut client, LOST);
    ftruncate(&memory, 0).unwrap();
    let piece = ShmTransfer {
        argsz: 24,
        flags: 0,
        offset: 0,
        size: LOST as u64,
    };
    let written = client.request(&Request::MigShmWrite(piece), &[]);
    assert_eq!(written.err(), Some(EFAULT));
    let rest = client.data_write(&stream[from + LOST..]);
    assert_eq!(rest, Err(EPROTO));
    assert_eq!(client.try_set_state(Running.into()), Err(EFAULT));
    assert_eq!(client.state(), Running);
}
