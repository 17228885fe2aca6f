// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Command lines that cannot be obeyed: one line that says why, and a status that is not 0.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use system_tests::{binaries, process::Process};

#[track_caller]
pub fn assert_refused<A: AsRef<OsStr>>(arguments: &[A]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(binaries::backend());
    command.args(arguments).current_dir(folder.path());
    let mut process = Process::spawn("vfio-user-gpu", command);
    let status = process.wait();
    let report = process.report();
    assert!(status.code().is_some_and(|code| code > 0), "{report}");
    assert_eq!(process.stdout(), "", "{report}");
    let line = process.stderr();
    assert_eq!(line.lines().count(), 1, "{report}");
    assert!(line.starts_with("vfio-user-gpu: "), "{report}");
    assert!(!line.contains("panicked"), "{report}");
    line
}

#[test]
fn one_line_for_whatever_is_wrong() {
    let lines: &[&[&str]] = &[
        &[],
        &["--model"],
        &["--socket-path", "s"],
        &["--fd", "3"],
        &["--nonsense"],
        &["stray"],
        &["--model", "--socket-path"],
        &["--model", "--socket-path", "s", "--fd", "3"],
        &["--model", "--socket-path", "s", "--socket-path", "t"],
        &["--model", "--socket-path", ""],
        &["--model", "--socket-path", "no/such/folder/s"],
        &["--model", "--socket-path", "/"],
        &["--model", "--socket-path", "/proc/s"],
        &["--model", "--socket-path", "line\nbreak/s"],
        &["--model", "--fd", "-1"],
        &["--model", "--fd", "999"],
        &["--model", "--fd", "x"],
        &["--model", "--fd", "99999999999"],
        &["--model=vram=3M", "--socket-path", "s"],
        &["--model=vram=0", "--socket-path", "s"],
        &["--model=vram=99999999999G", "--socket-path", "s"],
        &["--model=vram", "--socket-path", "s"],
        &["--model=colour=red", "--socket-path", "s"],
        &["--model=vram=1M,vram=1M", "--socket-path", "s"],
        &["--model=vram-file=/", "--socket-path", "s"],
        &["--model=vram-file=no/such/folder/v", "--socket-path", "s"],
        &["--model=vram-file=/dev/null", "--socket-path", "s"],
        &["--model=line\nbreak=1", "--socket-path", "s"],
        &["--model=igd=/nonexistent", "--socket-path", "s"],
        &["--model=igd=/dev/null", "--socket-path", "s"],
        &["--model=igd=/dev/zero", "--socket-path", "s"],
        &["--model", "--socket-path", "s", "--igd-opregion", "copy"],
        &["--model", "--socket-path", "s", "--igd-opregion", "map"],
        &["--model", "--socket-path", "s", "--igd-gms", "1"],
        &["--model", "--socket-path", "s", "--rom", ""],
        &["--model", "--socket-path", "s", "--rom", "/nonexistent"],
        &["--model", "--socket-path", "s", "--rom", "/dev/null"],
        &["--model", "--socket-path", "s", "--rom", "/dev/zero"],
        &["--model", "--socket-path", "s", "--rom", "/"],
        &["--model", "--socket-path", "s", "--igd-gms", "0xff"],
        &["--model", "--socket-path", "s", "--igd-gms", "+1"],
        &[
            "--model",
            "--socket-path",
            "s",
            "--on-disconnect",
            "explode",
        ],
        &["--model", "--socket-path", "s", "--allow-uid", "root"],
        &["--model", "--socket-path", "s", "--allow-uid", "-1"],
        &["--model", "--socket-path", "s", "--socket-mode", "9"],
        &["--model", "--socket-path", "s", "--socket-mode", "7777"],
        &["--model", "--socket-path", "s", "--log-level", "loud"],
    ];
    for arguments in lines {
        assert_refused(arguments);
    }
    let long = "x".repeat(200);
    assert_refused(&["--model", "--socket-path", &long]);
    let not_utf8 = OsStr::from_bytes(b"--\xff");
    assert_refused(&[not_utf8]);
}

#[test]
fn the_line_says_what_is_wrong() {
    for (arguments, word) in [
        (&["--socket-path", "s"][..], "--model"),
        (&["--model"], "--socket-path"),
        (&["--model=vram=3M", "--socket-path", "s"], "power of two"),
        (&["--model=colour=red", "--socket-path", "s"], "colour"),
        (&["--model", "--fd", "999"], "999"),
    ] {
        let line = assert_refused(arguments);
        assert!(line.contains(word), "{line:?} for {arguments:?}");
    }
}

#[test]
fn capabilities_are_json() {
    let mut command = Command::new(binaries::backend());
    command.arg("--print-capabilities");
    let mut process = Process::spawn("vfio-user-gpu", command);
    assert_eq!(process.wait().code(), Some(0));
    let json: serde_json::Value = serde_json::from_str(&process.stdout()).expect("JSON");
    assert_eq!(json["type"], "vfio-user");
}
