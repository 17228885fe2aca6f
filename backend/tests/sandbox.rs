// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a sandboxed process can no longer do, tried by processes of our own.

use std::env;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;

use vfio_user_gpu::sandbox::{Seccomp, enter};

const SIGSYS: i32 = 31;

/// Runs one of the tests below that are only for a process of their own.
fn alone(test: &str, seccomp: &str) -> ExitStatus {
    Command::new(env::current_exe().expect("own path"))
        .args(["--ignored", "--exact", test])
        .env("SANDBOX_TEST", seccomp)
        .output()
        .expect("own process")
        .status
}

fn locked_down() {
    let seccomp = match env::var("SANDBOX_TEST").as_deref() {
        Ok("kill") => Seccomp::Kill,
        Ok("log") => Seccomp::Log,
        other => panic!("not started by its test: {other:?}"),
    };
    // A thread that was there before is bound too.
    let (before, go) = std::sync::mpsc::channel::<()>();
    let early = thread::spawn(move || {
        go.recv().expect("told");
        File::open("/proc/self/status")
            .expect_err("no files")
            .kind()
    });
    enter(None, seccomp).expect("sandbox");
    before.send(()).expect("told");
    assert_eq!(
        early.join().expect("thread"),
        io::ErrorKind::PermissionDenied
    );
}

#[test]
fn files_cannot_be_opened_and_threads_still_work() {
    for seccomp in ["kill", "log"] {
        let status = alone("opens_a_file", seccomp);
        assert!(status.success(), "{seccomp}: {status}");
    }
}

#[test]
#[ignore = "run by files_cannot_be_opened_and_threads_still_work"]
fn opens_a_file() {
    locked_down();
    let opened = File::open("/etc/passwd");
    assert_eq!(
        opened.expect_err("no files").kind(),
        io::ErrorKind::PermissionDenied
    );
    thread::spawn(|| vec![1; 1 << 20].len())
        .join()
        .expect("thread");
    UnixStream::pair().expect("socket pairs are for the twin socket");
}

#[test]
fn what_is_not_expected_is_deadly() {
    for test in ["makes_a_socket", "starts_a_program"] {
        let status = alone(test, "kill");
        assert_eq!(status.signal(), Some(SIGSYS), "{test}: {status}");
    }
}

#[test]
#[ignore = "run by what_is_not_expected_is_deadly"]
fn makes_a_socket() {
    locked_down();
    let _ = std::net::UdpSocket::bind("127.0.0.1:0");
}

#[test]
#[ignore = "run by what_is_not_expected_is_deadly"]
fn starts_a_program() {
    locked_down();
    let _ = Command::new("/bin/true").status();
}
