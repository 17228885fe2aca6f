// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VERSION: missing, repeated, wrong.

use system_tests::{backend::Backend, raw_client::RawClient};
use vfio_user_protocol::{
    Command, Request,
    version::{self, Capabilities, Version},
};
use zerocopy::IntoBytes;

use crate::{EINVAL, MAX_MESSAGE, witness::Witness, words};

/// A VERSION body: major, minor, and `json` with a NUL.
fn body(major: u16, minor: u16, json: &str) -> Vec<u8> {
    let version = Version { major, minor };
    [version.as_bytes(), json.as_bytes(), b"\0"].concat()
}

fn with_capability(key: &str, value: &str) -> Vec<u8> {
    body(0, 0, &format!(r#"{{"capabilities":{{"{key}":{value}}}}}"#))
}

#[track_caller]
fn assert_refused(backend: &Backend, command: u16, body: &[u8]) {
    let mut client = RawClient::connect(&backend.socket());
    let answer = client.call(command, body, &[]);
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
    assert_eq!(answer.err(), Some(EINVAL), "command {command}, {shown:?}");
    client.assert_closed();
}

#[test]
fn a_first_message_that_is_not_version_ends_the_connection() {
    let backend = Backend::start();
    let info = Request::DeviceGetInfo(Default::default()).encode();
    for (command, body) in [
        (4, &info[..]),
        (13, &[]),
        (999, &[]),
        (0, &[]),
        (1, &[0; 3]),
    ] {
        assert_refused(&backend, command, body);
    }
    assert_refused(&backend, 4, &words([16, 0, 0, 0]));
    assert_refused(&backend, 1, &vec![0; MAX_MESSAGE]);
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn versions_that_are_refused() {
    let backend = Backend::start();
    let deep = "[".repeat(10_000);
    let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(17_000));
    let mut bodies = vec![
        vec![],
        vec![0; 1],
        body(1, 0, "{}"),
        body(999, 0, "{}"),
        // No NUL.
        [Version::default().as_bytes(), b"{}"].concat(),
        // Not UTF-8.
        [Version::default().as_bytes(), b"{\"\xff\":1}\0"].concat(),
    ];
    for json in [
        "", "{", "\"", "23", "[]", "{}{}", "{} x", "\0", &deep, &long,
    ] {
        bodies.push(body(0, 0, json));
    }
    bodies.push(body(0, 0, r#"{"capabilities":"23"}"#));
    for (key, values) in [
        ("max_msg_fds", &["\"foo\"", "-1", "1025", "1.5", "null"][..]),
        ("max_data_xfer_size", &["0", "-1", "\"1\"", "1e30", "true"]),
        ("max_dma_maps", &["-1", "4294967296", "{}"]),
        ("pgsizes", &["0", "-1", "8192", "[]"]),
        ("twin_socket", &["true", "[]", r#"{"supported":1}"#]),
        ("write_multiple", &["1", "\"true\""]),
        (
            "x_vfio_user_gpu",
            &["1", r#"{"version":"1"}"#, r#"{"version":1,"features":"x"}"#],
        ),
    ] {
        bodies.extend(values.iter().map(|value| with_capability(key, value)));
    }
    for body in bodies {
        assert_refused(&backend, 1, &body);
    }
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn versions_that_are_taken() {
    let backend = Backend::start();
    let bodies = [
        Version::default().as_bytes().to_vec(),
        Version {
            major: 0,
            minor: 99,
        }
        .as_bytes()
        .to_vec(),
        body(0, 1, "{}"),
        body(0, 0, r#"{"capabilities":{}}"#),
        body(
            0,
            0,
            r#"{"future":[1,2],"capabilities":{"other":{"a":null}}}"#,
        ),
        with_capability("max_msg_fds", "1024"),
        with_capability("max_data_xfer_size", "18446744073709551615"),
        // An old key of the reference library, whatever is in it.
        with_capability("migration", r#"{"pgsize":"foo"}"#),
    ];
    for body in bodies {
        let mut client = RawClient::connect(&backend.socket());
        let answer = client.call(Command::Version, &body, &[]).expect("taken");
        let (version, _) = version::decode(&answer.body).expect("a VERSION reply");
        assert_eq!((version.major, version.minor), (0, 0));
        client.assert_in_step();
    }
}

#[test]
fn a_second_version_is_refused_and_changes_nothing() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for body in [body(0, 0, "{}"), body(1, 0, "{}"), vec![]] {
        let answer = client.call(Command::Version, &body, &[]);
        assert_eq!(answer.err(), Some(EINVAL));
        client.assert_in_step();
    }
}

#[test]
fn descriptors_with_version_are_closed() {
    let backend = Backend::start();
    for count in [1, 16, 200] {
        let witness = Witness::new();
        let mut client = RawClient::connect(&backend.socket());
        let answer = client.call(Command::Version, &body(0, 0, "{}"), &witness.fds(count));
        assert_eq!(answer.err(), Some(EINVAL));
        client.assert_closed();
        witness.assert_all_closed();
    }
}

#[test]
fn the_clients_limit_on_data_is_kept() {
    let backend = Backend::start();
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&Capabilities {
        max_data_xfer_size: Some(16),
        ..Capabilities::default()
    });
    let config = 7;
    client.read::<16>(config, 0);
    let access = system_tests::raw_client::access(config, 0, 17);
    let answer = client.request(&Request::RegionRead(access), &[]);
    assert_eq!(answer.err(), Some(EINVAL));
    client.assert_in_step();
}
