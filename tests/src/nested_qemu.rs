// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's program, its libraries and its firmware as files of a guest, where it runs a machine of its own without a guest
//! (`-accel qtest`).

use std::{fs, path::Path, process::Command};

use crate::{guest::Guest, lane};

/// The guest's folder for all of it, without a leading slash.
pub const FOLDER: &str = "qemu";
/// The dynamic linker in that folder.
pub const LINKER: &str = "ld-linux-x86-64.so.2";
/// QEMU itself in that folder.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// What starts it: the guest's own `/init`, which becomes QEMU when it is called by this name.
pub const WRAPPER: &str = "/qemu/run";

/// Puts QEMU into `guest`, and tells the harness in it where.
///
/// # Panics
/// When QEMU's tree is incomplete.
#[must_use]
#[track_caller]
pub fn add_to(guest: Guest, init: &Path) -> Guest {
    let tree = lane::qemu_tree();
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let program = tree.join("usr/bin").join(PROGRAM);
    // The linker says which libraries it takes: "NAME => PATH (ADDRESS)".
    let listed = Command::new(libraries.join(LINKER))
        .arg("--library-path")
        .arg(&libraries)
        .arg("--list")
        .arg(&program)
        .output()
        .expect("QEMU's own dynamic linker");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut files: Vec<_> = listed
        .lines()
        .filter_map(|line| line.trim().split_once(" => ")?.0.split('/').next_back())
        .map(|name| libraries.join(name))
        .collect();
    files.push(libraries.join(LINKER));
    files.push(libraries.join("qemu/accel-qtest.so"));
    files.push(program);
    files.push(tree.join("usr/share/seabios/bios-256k.bin"));
    files.push(tree.join("usr/share/qemu/kvmvapic.bin"));
    let mut guest = guest
        .folder(FOLDER)
        .file(WRAPPER.trim_start_matches('/'), init.to_path_buf())
        // The kernel hands what it does not know to init, as environment.
        .append(&format!("QEMU_VFIO_USER={WRAPPER}"));
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let path = format!("{FOLDER}/{name}");
        // A name in the tree may be a link to the file's full name.
        let file = fs::canonicalize(&file).unwrap_or(file);
        guest = guest.file(&path, file);
    }
    guest
}
