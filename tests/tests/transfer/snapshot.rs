// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-ctl save` and `load`: snapshots on a disk and streams in pipes.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::Value;
use system_tests::binaries;
use system_tests::engine::Registers;
use system_tests::model_gpu::engine::SCRATCH;

use super::tool::*;
use super::vm::text;

#[test]
fn a_device_is_saved_to_a_file_and_loaded_from_it() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(44, LENGTH));
    source.wait_until_left(1);
    let folder = tempfile::TempDir::new().expect("a folder");
    let (from, to) = (source.socket(), destination.socket());
    for (round, live) in [&[][..], &["--live"]].into_iter().enumerate() {
        let file = folder.path().join("stream");
        let output = ctl(&[&["save", text(&from), "-o", text(&file)], live].concat());
        assert_eq!(code(&output), Some(0), "{output:?}");
        assert!(output.stdout.is_empty() && line(&output).starts_with("saved"));
        source.wait_until_left(2 + round);
        let output = ctl(&["load", text(&to), text(&file)]);
        assert_eq!(code(&output), Some(0), "{output:?}");
        destination.wait_until_left(1 + 2 * round);
        with(&destination, |vm| vm.check(44, LENGTH));
        destination.wait_until_left(2 + 2 * round);
    }
    with(&source, |vm| vm.check(44, LENGTH));
    source.wait_until_left(4);

    // As programs see it: on stdout, or where the stream goes there on stderr.
    let file = folder.path().join("stream");
    let to_file = ctl(&["save", "--json", text(&from), "-o", text(&file)]);
    source.wait_until_left(5);
    let to_stdout = ctl(&["save", "--json", text(&from)]);
    let loaded = ctl(&["load", "--json", text(&to), text(&file)]);
    for object in [&to_file.stdout, &to_stdout.stderr, &loaded.stdout] {
        let object: Value = serde_json::from_slice(object).expect("JSON");
        assert_eq!(object["ok"], true, "{object:#}");
        assert!(
            object["bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 3 << 20)
        );
    }
    assert!(to_stdout.stdout.len() > 3 << 20);

    // Not all of it: nothing is loaded, whatever is missing.
    let stream = fs::read(folder.path().join("stream")).expect("the stream");
    for length in [0, 1, 1000, stream.len() / 2, stream.len() - 1] {
        let file = folder.path().join("part");
        fs::write(&file, &stream[..length]).expect("a file");
        let other = start_watched(&[]);
        with(&other, |vm| vm.fill(52, LENGTH));
        other.wait_until_left(1);
        let load = |file| ctl(&["load", text(&other.socket()), text(file)]);
        let output = load(&file);
        // Nothing at all is no failure of the device's, and still not a device.
        assert_eq!(code(&output), Some(1), "{length}: {output:?}");
        line(&output);
        other.wait_until_left(2);
        // The backend would reset it as well, when it is left.
        assert_eq!(resets(&other), 1, "{length}");
        with(&other, |vm| {
            vm.enable();
            assert_eq!(vm.get(SCRATCH), 0, "{length}");
            let mut found = vec![1; LENGTH];
            vm.vram.read_bytes(0, &mut found).expect("VRAM");
            assert!(found.iter().all(|byte| *byte == 0), "{length}");
            vm.works();
        });
        other.wait_until_left(3);
        let output = load(&folder.path().join("stream"));
        assert_eq!(code(&output), Some(0), "{length}: {output:?}");
        other.wait_until_left(4);
        with(&other, |vm| vm.check(44, LENGTH));
    }
}

#[test]
fn save_and_load_meet_in_a_pipe() {
    let (source, destination) = (start(&[]), start(&[]));
    with(&source, |vm| vm.fill(45, LENGTH));
    source.wait_until_left(1);
    let mut save = Command::new(binaries::ctl())
        .args(["save", "--live", text(&source.socket())])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("vfio-user-ctl runs");
    let pipe = save.stdout.take().expect("a pipe");
    let output = Command::new(binaries::ctl())
        .args(["load", text(&destination.socket())])
        .stdin(pipe)
        .output()
        .expect("vfio-user-ctl runs");
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(save.wait().expect("a status").success());
    destination.wait_until_left(1);
    with(&destination, |vm| vm.check(45, LENGTH));
    source.wait_until_left(2);
    with(&source, |vm| vm.check(45, LENGTH));
}

#[test]
fn a_broken_pipe_leaves_the_source_running() {
    let source = start_watched(&[]);
    with(&source, |vm| vm.fill(46, LENGTH));
    source.wait_until_left(1);
    for (round, live) in [&[][..], &["--live"]].into_iter().enumerate() {
        let mut save = Command::new(binaries::ctl())
            .args([&["save", text(&source.socket())], live].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vfio-user-ctl runs");
        let mut pipe = save.stdout.take().expect("a pipe");
        pipe.read_exact(&mut [0; 1000]).expect("a beginning");
        drop(pipe);
        let output = save.wait_with_output().expect("a status");
        assert_eq!(code(&output), Some(1), "{output:?}");
        assert!(line(&output).contains("Broken pipe"), "{output:?}");
        source.wait_until_left(2 + round);
    }
    assert_eq!(left_in(&source), ["RUNNING", "RUNNING"]);
    with(&source, |vm| vm.check(46, LENGTH));
}

#[test]
fn a_snapshot_is_replaced_by_a_whole_one_only() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("snapshot");
    fs::write(&file, b"kept").expect("a file");
    let broken = start(&["faults=read-error@1M"]);
    with(&broken, |vm| vm.fill(48, LENGTH));
    broken.wait_until_left(1);
    let output = ctl(&["save", text(&broken.socket()), "-o", text(&file)]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert_eq!(fs::read(&file).expect("a file"), b"kept");

    // The device does not go on; its stream is whole all the same.
    let stands = start(&["faults=state-error=running"]);
    with(&stands, |vm| vm.fill(49, LENGTH));
    stands.wait_until_left(1);
    let output = ctl(&["save", text(&stands.socket()), "-o", text(&file)]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    let said = line(&output);
    assert!(
        said.contains("Stream complete, device not resumed: "),
        "{said}"
    );
    let other = start(&[]);
    let output = ctl(&["load", text(&other.socket()), text(&file)]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    other.wait_until_left(1);
    with(&other, |vm| vm.check(49, LENGTH));
    let left = fs::read_dir(folder.path()).expect("the folder");
    assert_eq!(left.count(), 1, "nothing beside it");
}
