// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `vfio-user-ctl` says while it moves a device: a bar where stderr is a terminal, lines elsewhere.

use std::fs::File;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use system_tests::binaries;

use super::tool::{LENGTH, code, ctl, start, with};
use super::vm::text;

const FLAGS: OpenptFlags = OpenptFlags::RDWR
    .union(OpenptFlags::NOCTTY)
    .union(OpenptFlags::CLOEXEC);

/// Runs the tool with a terminal as its stderr; how it ended, and all that went there.
#[track_caller]
fn on_a_terminal(arguments: &[&str]) -> (ExitStatus, String) {
    let controller = openpt(FLAGS).expect("a terminal");
    grantpt(&controller).expect("a terminal");
    unlockpt(&controller).expect("a terminal");
    let terminal = ioctl_tiocgptpeer(&controller, FLAGS).expect("its other end");
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).expect("a size");
    let mut tool = Command::new(binaries::ctl())
        .args(arguments)
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(terminal)
        .spawn()
        .expect("vfio-user-ctl runs");
    let mut shown = Vec::new();
    // The end of a terminal that nobody has open any more is an error.
    let end = File::from(controller).read_to_end(&mut shown);
    let errno = end.err().as_ref().and_then(Errno::from_io_error);
    assert_eq!(errno, Some(Errno::IO));
    let status = tool.wait().expect("a status");
    (status, String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn a_migration_draws_a_bar_on_a_terminal_and_writes_lines_elsewhere() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(71, LENGTH));
    source.wait_until_left(1);
    let (from, to) = (source.socket(), destination.socket());
    let arguments = ["migrate", "--from", text(&from), "--to", text(&to)];
    let (status, shown) = on_a_terminal(&arguments);
    assert!(status.success(), "{shown}");
    for drawn in [
        "MiB of 3.",
        "B/s, pass 1, expected downtime ",
        "B/s, switch-over",
    ] {
        assert!(shown.contains(drawn), "no {drawn:?}: {shown:?}");
    }
    assert!(!shown.contains("pass 1: "), "a line of a log: {shown:?}");
    assert!(shown.contains("\r\u{1b}[2K"), "not drawn over: {shown:?}");
    source.wait_until_left(2);
    destination.wait_until_left(1);

    let output = ctl(&["migrate", "--from", text(&to), "--to", text(&from)]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let mut lines = said.lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("pass 1: ")),
        "{said}"
    );
    let last = lines.next_back();
    assert!(
        last.is_some_and(|line| line.starts_with("switch-over with ")),
        "{said}"
    );
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{said:?}");
}

#[test]
fn a_save_and_a_load_draw_bars_on_a_terminal_and_write_a_line_elsewhere() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(72, LENGTH));
    source.wait_until_left(1);
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("stream");
    let (from, to) = (source.socket(), destination.socket());
    let save = ["save", text(&from), "-o", text(&file)];
    let load = ["load", text(&to), text(&file)];
    for (arguments, said) in [(&save[..], "saved"), (&load, "loaded")] {
        let (status, shown) = on_a_terminal(arguments);
        assert!(status.success(), "{shown}");
        for drawn in ["MiB of 3.", "B/s"] {
            assert!(shown.contains(drawn), "no {drawn:?}: {shown:?}");
        }
        assert!(!shown.contains("B/s,"), "nothing follows: {shown:?}");
        let (_, last) = shown.trim_end().rsplit_once(['\r', '\n']).expect("lines");
        assert!(last.contains(said), "{shown:?}");
    }
    source.wait_until_left(2);
    destination.wait_until_left(1);
    for (arguments, said) in [(&save[..], "saved"), (&load, "loaded")] {
        let output = ctl(arguments);
        assert_eq!(code(&output), Some(0), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.starts_with(said) && text.lines().count() == 1,
            "{text:?}"
        );
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}
