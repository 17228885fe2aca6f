// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tool as people call it, without a backend: help, refusals, exit codes.
#![cfg(feature = "ctl")]

use std::fs;
use std::process::{Command, Output};

fn ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vfio-user-ctl"))
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line that a failure writes, without the program's name.
fn complaint(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end()
        .strip_prefix("vfio-user-ctl: ")
        .unwrap()
        .to_owned()
}

#[test]
fn help_names_every_command_and_option() {
    let help = ctl(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in [
        "info",
        "migrate",
        "save",
        "load",
        "demo",
        "bench",
        "Exit status",
        "guest memory",
    ] {
        assert!(stdout(&help).contains(word), "{word}: {help:?}");
    }
    for (command, options) in [
        ("info", &["<SOCKET>", "--json", "--timeout"][..]),
        ("demo", &["--json", "--backend"]),
        (
            "migrate",
            &[
                "--from",
                "--to",
                "--bandwidth",
                "--downtime-limit",
                "--report",
                "--json",
                "no guest memory",
            ],
        ),
        (
            "save",
            &["<SOCKET>", "--live", "--output", "--json", "stdout"],
        ),
        ("load", &["<SOCKET>", "[FILE]", "--json", "stdin"]),
        ("bench", &["<SOCKET>", "--json", "--timeout", "--samples"]),
    ] {
        let help = ctl(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        for option in options {
            assert!(
                stdout(&help).contains(option),
                "{command} {option}: {help:?}"
            );
        }
    }
    assert!(stdout(&ctl(&["--version"])).starts_with("vfio-user-ctl "));
}

#[test]
fn bad_arguments_get_one_line_and_exit_code_2() {
    for (arguments, expected) in [
        (&[][..], "subcommand"),
        (&["infos", "/s"], "infos"),
        (&["info"], "<SOCKET>"),
        (&["info", "/s", "/t"], "/t"),
        (&["info", "--jsn", "/s"], "--jsn"),
        (&["info", "--timeout", "0", "/s"], "--timeout"),
        (&["bench", "--samples", "many", "/s"], "many"),
        (&["bench", "--samples", "0", "/s"], "--samples"),
        (&["demo", "--backend"], "--backend"),
        (&["migrate", "--from", "/s"], "--to"),
        (
            &[
                "migrate",
                "--from",
                "/s",
                "--to",
                "/t",
                "--bandwidth",
                "fast",
            ],
            "950Mbit",
        ),
        (&["save"], "<SOCKET>"),
        (&["load", "/s", "/f", "/g"], "/g"),
    ] {
        let output = ctl(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let complaint = complaint(&output);
        assert!(complaint.contains(expected), "{arguments:?}: {complaint}");
    }
}

#[test]
fn a_failure_names_its_cause_in_one_line_and_exits_with_1() {
    for (arguments, expected) in [
        (
            &["info", "/nonexistent/s"][..],
            "/nonexistent/s: No such file or directory",
        ),
        (
            &["bench", "/nonexistent/s"],
            "/nonexistent/s: No such file or directory",
        ),
        (
            &["demo", "--backend", "/nonexistent/b"],
            "/nonexistent/b: No such file or directory",
        ),
        (&["demo", "--backend", "false"], "ended at once"),
        (
            &[
                "migrate",
                "--from",
                "/nonexistent/s",
                "--to",
                "/nonexistent/t",
            ],
            "/nonexistent/s: No such file or directory",
        ),
        // Before anything is attached to.
        (
            &[
                "migrate",
                "--from",
                "/nonexistent/s",
                "--to",
                "/nonexistent/t",
                "--report",
                "/nonexistent/r",
            ],
            "Cannot write /nonexistent/r",
        ),
        (
            &["save", "/nonexistent/s"],
            "/nonexistent/s: No such file or directory",
        ),
        (
            &["save", "/nonexistent/s", "-o", "/nonexistent/f"],
            "Cannot write /nonexistent/f",
        ),
        (
            &["load", "/nonexistent/s", "/nonexistent/f"],
            "Cannot read /nonexistent/f",
        ),
    ] {
        let output = ctl(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let complaint = complaint(&output);
        assert!(complaint.contains(expected), "{arguments:?}: {complaint}");
    }
}

#[test]
fn a_failure_is_told_in_json_too() {
    for (arguments, on_stdout) in [
        (&["info", "--json", "/nonexistent/s"][..], true),
        (&["bench", "--json", "/nonexistent/s"], true),
        (&["load", "--json", "/nonexistent/s", "/dev/null"], true),
        (
            &["save", "--json", "/nonexistent/s", "-o", "/dev/null"],
            true,
        ),
        (&["save", "--json", "/nonexistent/s"], false),
    ] {
        let output = ctl(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let object = if on_stdout {
            &output.stdout
        } else {
            &output.stderr
        };
        let object: serde_json::Value = serde_json::from_slice(object).unwrap();
        assert_eq!(object["ok"], false);
        assert!(object["error"].as_str().unwrap().contains("/nonexistent/s"));
    }
}

#[test]
fn a_snapshot_is_not_lost_to_a_save_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("snapshot"), folder.path().join("link"));
    fs::write(&file, b"kept").unwrap();
    std::os::unix::fs::symlink("snapshot", &link).unwrap();
    for path in [&file, &link] {
        let output = ctl(&["save", "/nonexistent/s", "-o", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }
    let left = fs::read_dir(folder.path()).unwrap();
    assert_eq!(left.count(), 2, "nothing beside it");
}

#[test]
fn a_failed_demo_is_told_in_json_too() {
    let output = ctl(&["demo", "--json", "--backend", "false"]);
    assert_eq!(output.status.code(), Some(1));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["ok"], false);
    assert!(
        object["error"].as_str().unwrap().contains("ended at once"),
        "{object}"
    );
}
