// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client leaves, or the process is to end, while a driver does not return from what it was asked on the main socket.

use system_tests::{backend::Backend, migrating::Migrates, raw_client::RawClient};
use vfio_user_protocol::{Command, migration::MigrationState::*};
use zerocopy::IntoBytes;

/// Asks for data that takes an hour to come, and sees that the driver is asked for it, for the n-th time.
fn read_for_an_hour(backend: &Backend, client: &mut RawClient, times: usize) {
    client.set_state(PreCopy);
    let read = client.message(Command::MigDataRead, 0, [65_544_u32, 65_536].as_bytes());
    client.send(&read, &[]);
    backend.wait_for_log("A fault: waiting", times);
}

#[test]
fn a_driver_that_does_not_return_keeps_nobody() {
    for on_disconnect in ["reset", "keep"] {
        let arguments = ["--on-disconnect", on_disconnect, "--log-level", "debug"];
        let mut backend = Backend::start_with(&["faults=slow-save=3600s"], &arguments);
        let mut client = RawClient::attach(&backend.socket());
        read_for_an_hour(&backend, &mut client, 1);
        drop(client);
        let mut next = RawClient::attach(&backend.socket());
        assert_eq!(next.state(), Running);
        read_for_an_hour(&backend, &mut next, 2);
        assert!(backend.terminate().success());
        next.assert_closed();
    }
}
