// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients that come, stay and leave as they should not, and the end of the process meanwhile.

use std::{
    fs,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command as Program,
    time::Instant,
};

use rustix::{
    net::{AddressFamily, SocketType},
    process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit},
};
use system_tests::{PATIENCE, backend::Backend, binaries, process::Process, raw_client::RawClient};
use vfio_user_protocol::{
    Command, Request,
    version::{Capabilities, Version},
};

use crate::{EBUSY, witness::received, words};

/// A program with arguments of the test's own.
fn program(arguments: &[&str]) -> Program {
    let mut program = Program::new(binaries::backend());
    program.args(arguments);
    program
}

fn version() -> Vec<u8> {
    Capabilities::default().encode(Version::default())
}

/// Connects as soon as somebody listens.
#[track_caller]
fn connected(socket: &Path, process: &Process) -> RawClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return RawClient::over(stream),
            Err(_) if !process.has_ended() && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("no connection: {error}\n{}", process.report()),
        }
    }
}

/// Sends reads of 1 MiB and takes no reply, until nothing more fits: then the backend is stuck with its own.
fn stop_reading(client: &mut RawClient) {
    client.write(7, 4, &[2, 0]);
    let read = Request::RegionRead(system_tests::raw_client::access(0, 0, 1 << 20)).encode();
    client.stream().set_nonblocking(true).expect("a socket");
    loop {
        let message = client.message(Command::RegionRead, 0, &read);
        if client.try_send(&message, &[]).is_err() {
            return;
        }
    }
}

#[test]
fn sigterm_without_a_client() {
    let mut backend = Backend::start();
    assert_eq!(backend.terminate().code(), Some(0));
    assert!(!backend.socket().exists());
}

#[test]
fn sigterm_during_a_session() {
    let mut backend = Backend::start();
    let client = RawClient::attach(&backend.socket());
    assert_eq!(backend.terminate().code(), Some(0));
    client.assert_closed();
    assert!(!backend.socket().exists());
}

#[test]
fn sigterm_during_an_unfinished_message() {
    for finished in [0, 4, 16, 20] {
        let mut backend = Backend::start();
        let mut client = RawClient::attach(&backend.socket());
        let message = client.message(Command::RegionWrite, 0, &[0; 100]);
        client.send(&message[..finished], &[]);
        received(&client);
        assert_eq!(backend.terminate().code(), Some(0));
    }
}

#[test]
fn sigterm_while_clients_say_nothing() {
    let mut backend = Backend::start();
    let _silent = [(); 12].map(|()| RawClient::connect(&backend.socket()));
    assert_eq!(backend.terminate().code(), Some(0));
}

#[test]
fn a_client_that_stops_reading_cannot_stop_sigterm() {
    let mut backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    stop_reading(&mut client);
    assert_eq!(backend.terminate().code(), Some(0));
}

#[test]
fn a_client_that_stops_reading_and_leaves() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    stop_reading(&mut client);
    drop(client);
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn a_client_that_leaves_within_a_message() {
    let backend = Backend::start();
    let mut client = RawClient::connect(&backend.socket());
    let versions = client.message(Command::Version, 0, &version());
    for cut in 0..versions.len() {
        let client = RawClient::connect(&backend.socket());
        client.send(&versions[..cut], &[]);
    }
    for cut in 0..116 {
        let mut client = RawClient::attach(&backend.socket());
        let message = client.message(Command::RegionWrite, 0, &[0; 100]);
        client.send(&message[..cut], &[]);
    }
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn a_client_that_leaves_without_waiting_for_its_answers() {
    let backend = Backend::start();
    for _ in 0..50 {
        let mut client = RawClient::attach(&backend.socket());
        let info = Request::DeviceGetInfo(Default::default()).encode();
        for _ in 0..20 {
            let message = client.message(Command::DeviceGetInfo, 0, &info);
            client.send(&message, &[]);
        }
    }
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn a_second_client_is_told_and_the_next_is_served() {
    let backend = Backend::start();
    let mut first = RawClient::attach(&backend.socket());
    for _ in 0..20 {
        let mut second = RawClient::connect(&backend.socket());
        let answer = second.call(Command::Version, &version(), &[]);
        assert_eq!(answer.err(), Some(EBUSY));
        second.assert_closed();
    }
    first.assert_in_step();
    // One that came while the first was there, and spoke when it was gone.
    let mut early = RawClient::connect(&backend.socket());
    drop(first);
    early.negotiate(&Capabilities::default());
    early.assert_in_step();
}

#[test]
fn whoever_says_nothing_keeps_nobody_out() {
    let backend = Backend::start();
    let mut silent: Vec<_> = (0..40)
        .map(|_| RawClient::connect(&backend.socket()))
        .collect();
    let mut client = RawClient::attach(&backend.socket());
    client.assert_in_step();
    drop(client);
    // The last of the silent ones was not forgotten.
    let mut last = silent.pop().expect("forty");
    last.negotiate(&Capabilities::default());
    last.assert_in_step();
}

#[test]
fn every_client_in_a_long_row_is_served() {
    let backend = Backend::start();
    for _ in 0..200 {
        RawClient::attach(&backend.socket()).assert_in_step();
    }
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced() {
    let mut backend = Backend::start();
    let path = backend.socket();
    backend.kill();
    assert!(path.exists(), "nobody removed it");
    let name = path.to_str().expect("a path of ASCII");
    let mut next = Process::spawn("next", program(&["--model", "--socket-path", name]));
    let mut client = connected(&path, &next);
    client.negotiate(&Capabilities::default());
    client.assert_in_step();
    assert_eq!(next.end_by(Signal::TERM).code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_living_process_serves_is_not_stolen() {
    let backend = Backend::start();
    let path = backend.socket();
    let name = path.to_str().expect("a path of ASCII");
    // With a client, and without.
    let client = RawClient::attach(&path);
    for _ in 0..2 {
        let mut thief = Process::spawn("thief", program(&["--model", "--socket-path", name]));
        assert_eq!(thief.wait().code(), Some(1));
        assert!(thief.stderr().contains("in use"), "{}", thief.report());
    }
    drop(client);
    let mut thief = Process::spawn("thief", program(&["--model", "--socket-path", name]));
    assert_eq!(thief.wait().code(), Some(1));
    RawClient::attach(&path).assert_in_step();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("precious");
    fs::write(&path, "data").expect("a file");
    let name = path.to_str().expect("a path of ASCII");
    let mut process = Process::spawn("careless", program(&["--model", "--socket-path", name]));
    assert_eq!(process.wait().code(), Some(1));
    assert_eq!(fs::read(&path).expect("still there"), b"data");
}

#[test]
fn a_connected_descriptor_is_one_client() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let command = program(&["--model", "--fd", "0"]);
    let mut process = Process::spawn_on("backend", command, std::os::fd::OwnedFd::from(theirs));
    let mut client = RawClient::over(ours);
    client.negotiate(&Capabilities::default());
    client.assert_in_step();
    assert!(!process.has_ended());
    drop(client);
    assert_eq!(process.wait().code(), Some(0), "{}", process.report());
}

#[test]
fn a_connected_descriptor_whose_client_is_bad_or_gone() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    drop(ours);
    let command = program(&["--model", "--fd", "0"]);
    let mut process = Process::spawn_on("backend", command, std::os::fd::OwnedFd::from(theirs));
    assert_eq!(process.wait().code(), Some(0));

    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let command = program(&["--model", "--fd", "0"]);
    let mut process = Process::spawn_on("backend", command, std::os::fd::OwnedFd::from(theirs));
    let mut client = RawClient::over(ours);
    assert!(client.call(Command::DeviceReset, &[], &[]).is_err());
    client.assert_closed();
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn sigterm_with_a_connected_descriptor() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let command = program(&["--model", "--fd", "0"]);
    let mut process = Process::spawn_on("backend", command, std::os::fd::OwnedFd::from(theirs));
    let mut client = RawClient::over(ours);
    client.negotiate(&Capabilities::default());
    assert_eq!(process.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn a_listening_descriptor_takes_one_client_after_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let command = program(&["--model", "--fd", "0"]);
    let mut process = Process::spawn_on("backend", command, std::os::fd::OwnedFd::from(listener));
    for _ in 0..3 {
        RawClient::attach(&path).assert_in_step();
    }
    assert_eq!(process.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn descriptors_that_cannot_be_served() {
    use rustix::net::{SocketFlags, socket_with, socketpair};
    let flags = SocketFlags::CLOEXEC;
    let inet = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let (packets, _other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    for fd in inet.into_iter().chain([packets, reader]) {
        let command = program(&["--model", "--fd", "0"]);
        let mut process = Process::spawn_on("backend", command, fd);
        assert_eq!(process.wait().code(), Some(1), "{}", process.report());
        assert_eq!(process.stderr().lines().count(), 1, "{}", process.report());
    }
}

#[test]
fn only_users_that_are_allowed() {
    let uid = rustix::process::getuid().as_raw();
    let other = (uid + 1).to_string();
    let backend = Backend::start_with(&[], &["--allow-uid", &other]);
    for _ in 0..3 {
        let mut client = RawClient::connect(&backend.socket());
        let message = client.message(Command::Version, 0, &version());
        let _ = client.try_send(&message, &[]);
        client.assert_closed();
    }
    assert!(backend.is_running());
    let both = ["--allow-uid", &other, "--allow-uid", &uid.to_string()];
    let backend = Backend::start_with(&[], &both);
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn a_reset_while_the_engine_works() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    client.write(7, 4, &[6, 0]);
    // VRAM to VRAM, 32 MiB; the reset is read while it is under way.
    let registers = [0_u64, 32 << 20, 32 << 20].map(u64::to_le_bytes).concat();
    for _ in 0..10 {
        for (offset, value) in (0x20..).step_by(8).zip(registers.chunks(8)) {
            client.write(4, offset, value);
        }
        client.write32(4, 0x3c, 0x31);
        client.write32(4, 0x40, 1);
        assert!(client.call(Command::DeviceReset, &[], &[]).is_ok());
        client.write(7, 4, &[6, 0]);
        assert_eq!(client.read32(4, 0x44), 0, "nothing runs");
    }
    client.write32(4, 0x3c, 0x31);
    client.write32(4, 0x40, 1);
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    assert!(
        next.call(Command::DeviceGetInfo, &words([16, 0, 0, 0]), &[])
            .is_ok()
    );
}

#[test]
fn who_cannot_be_accepted_is_once_there_is_room() {
    let backend = Backend::start();
    let mut first = RawClient::attach(&backend.socket());
    first.assert_in_step();
    let pid = i32::try_from(backend.process_id()).ok();
    let pid = pid.and_then(Pid::from_raw).expect("a process");
    let limit = |current| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current, maximum };
        prlimit(Some(pid), Resource::Nofile, limit).expect("a limit of descriptors");
    };
    limit(Some(backend.open_descriptors() as u64));
    // A few, should there be gaps among the numbers in use.
    let waiting: Vec<_> = (0..8)
        .map(|_| RawClient::connect(&backend.socket()))
        .collect();
    backend.wait_for_log("could not be accepted", 1);
    first.assert_in_step();
    limit(getrlimit(Resource::Nofile).current);
    drop(first);
    drop(waiting);
    RawClient::attach(&backend.socket()).assert_in_step();
}
