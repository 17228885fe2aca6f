// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our own programs: built once per test process, found beside the test's own executable.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The backend, `vfio-user-gpu`.
///
/// # Panics
/// When the workspace's programs do not build.
#[track_caller]
pub fn backend() -> PathBuf {
    product("vfio-user-gpu")
}

/// The tool for people, `vfio-user-ctl`.
///
/// # Panics
/// When the workspace's programs do not build.
#[track_caller]
pub fn ctl() -> PathBuf {
    product("vfio-user-ctl")
}

/// The `/init` of test guests, linked statically so that it runs in an empty root file system.
///
/// # Panics
/// When it does not build.
#[track_caller]
pub fn guest_init() -> PathBuf {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        // With an explicit target the flags reach the program only, not the build scripts and macros it is built by.
        let triple = "x86_64-unknown-linux-gnu";
        let target = profile_folder()
            .parent()
            .unwrap_or(Path::new("target"))
            .join("guest");
        let mut cargo = cargo();
        cargo
            .args([
                "build",
                "--quiet",
                "--package",
                "system-tests",
                "--bin",
                "guest-init",
            ])
            .args(["--target", triple, "--target-dir"])
            .arg(&target)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // Emulated processors are slow and initramfs small: optimised, and without debug information.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_STRIP", "symbols");
        run(cargo)?;
        Ok(target.join(triple).join("debug").join("guest-init"))
    });
    match built {
        Ok(path) => path.clone(),
        Err(why) => panic!("the guest's init does not build: {why}"),
    }
}

#[track_caller]
fn product(name: &str) -> PathBuf {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = profile_folder();
        // The folder of the `dev` profile is called debug; every other profile gives its folder its own name.
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            None | Some("debug") => "dev",
            Some(name) => name,
        };
        let mut cargo = cargo();
        cargo
            .args(["build", "--quiet", "--bins", "--profile", profile])
            .args([
                "--package",
                "vfio-user-gpu",
                "--package",
                "vfio-user-client",
            ])
            .arg("--target-dir")
            .arg(folder.parent().unwrap_or(&folder));
        run(cargo)
    });
    if let Err(why) = built {
        panic!("the programs under test do not build: {why}");
    }
    let path = profile_folder().join(name);
    assert!(path.exists(), "cargo built no {}", path.display());
    path
}

/// `target/PROFILE`, found from `target/PROFILE/deps/TEST`.
fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("a process knows its own executable");
    test.ancestors()
        .nth(2)
        .expect("cargo puts tests in target/PROFILE/deps")
        .to_path_buf()
}

fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .arg("--color=never")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn run(mut command: Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
