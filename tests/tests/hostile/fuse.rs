// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that is a process of the client's (FUSE), which answers nothing once the file is open: whoever asks after it, or
//! closes it, waits for that process.
//!
//! Layouts: linux/fuse.h.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount};
use system_tests::backend::Backend;
use system_tests::raw_client::RawClient;

use crate::{longs, words};

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const INIT: u32 = 26;
/// Bytes of the header of a request.
const REQUEST: usize = 40;

/// In user and mount namespaces of its own, so that no root is needed and nothing stays mounted.
const INSIDE: &str = "HOSTILE_FUSE_INSIDE";

#[test]
fn a_file_that_does_not_answer_keeps_nobody() {
    if env::var_os(INSIDE).is_some() {
        return inside();
    }
    // Not every machine that builds this lets its users mount FUSE.
    let namespaces = ["--user", "--map-root-user", "--mount", "--"];
    let can = Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .status();
    if !can.is_ok_and(|status| status.success()) || !Path::new("/dev/fuse").exists() {
        let why =
            b"not tested: files of FUSE, as there is no /dev/fuse or no user namespaces here\n";
        return std::io::stderr().write_all(why).expect("stderr");
    }
    let name = "fuse::a_file_that_does_not_answer_keeps_nobody";
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(env::current_exe().expect("own path"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(
        status.expect("unshare of util-linux").success(),
        "in namespaces of its own"
    );
}

fn inside() {
    let mut backend = Backend::start();
    let (file, daemon) = silent_file();
    let map = [words([32, 3]), longs([0, 0x10_0000, 0x1000])].concat();
    for (command, body) in [(2_u16, map), (8, words([20, 0x24, 2, 0, 1]))] {
        let mut client = RawClient::attach(&backend.socket());
        let message = client.message(command, 0, &body);
        client.send(&message, &[file.as_fd()]);
        client.assert_closed();
        RawClient::attach(&backend.socket()).assert_in_step();
    }
    // As the process behind the file ends, everybody is let go; until then the kernel lets no process end that has it.
    drop(daemon);
    drop(file);
    assert!(backend.terminate().success());
}

/// What the other side of a FUSE mount holds; the mount is over when it is dropped.
struct Daemon {
    hang_up: Option<std::io::PipeWriter>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.hang_up = None;
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn silent_file() -> (File, Daemon) {
    let place = tempfile::tempdir().expect("a directory");
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = device.expect("/dev/fuse");
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).expect("options");
    mount(
        "silent",
        place.path(),
        "fuse",
        MountFlags::empty(),
        &*options,
    )
    .expect("a FUSE mount");
    let (wait, hang_up) = std::io::pipe().expect("a pipe");
    let thread = thread::spawn(move || serve(device, &wait));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(place.path().join("file"));
    // The mount goes with its namespace.
    let _ = place.keep();
    let daemon = Daemon {
        hang_up: Some(hang_up),
        thread: Some(thread),
    };
    (file.expect("the file"), daemon)
}

/// Answers what it takes to open a file, and nothing else, until the other end of `wait` is closed.
fn serve(mut device: File, wait: &std::io::PipeReader) {
    let mut request = vec![0; 1 << 17];
    loop {
        let mut either = [
            PollFd::new(&device, PollFlags::IN),
            PollFd::new(wait, PollFlags::empty()),
        ];
        poll(&mut either, None).expect("poll");
        if !either[1].revents().is_empty() {
            return;
        }
        let length = device.read(&mut request).expect("a request");
        assert!(length >= REQUEST);
        let word = |at: usize| u32::from_ne_bytes(*request[at..].first_chunk().expect("a word"));
        let answer = match word(4) {
            INIT => [words([7, 31, 0, 0, 0, 4096, 1]), vec![0; 36]].concat(),
            LOOKUP => entry(),
            OPEN => vec![0; 16],
            _ => continue,
        };
        let length = u32::try_from(16 + answer.len()).expect("a length");
        let header = [words([length, 0]), request[8..16].to_vec()].concat();
        device
            .write_all(&[header, answer].concat())
            .expect("an answer");
    }
}

/// A regular file of 1 MiB, which stays what it is for a day.
fn entry() -> Vec<u8> {
    const DAY: u64 = 86_400;
    let attributes = [
        longs([2, 1 << 20, 2048, 0, 0, 0]),
        words([0, 0, 0, 0o100_666, 1, 0, 0, 0, 4096, 0]),
    ];
    [longs([2, 0, DAY, DAY]), words([0, 0]), attributes.concat()].concat()
}
