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

/// The `/init` of test guests.
///
/// # Panics
/// When it does not build.
#[track_caller]
pub fn guest_init() -> PathBuf {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    // Emulated processors are slow and initramfs small: optimised, and without debug information.
    let profile = [
        ("CARGO_PROFILE_DEV_OPT_LEVEL", "2"),
        ("CARGO_PROFILE_DEV_DEBUG", "0"),
        ("CARGO_PROFILE_DEV_STRIP", "symbols"),
    ];
    let build = || static_program("system-tests", "guest-init", "dev", &profile);
    unwrap_built("the guest's init", BUILT.get_or_init(build))
}

/// The backend as it is released for any distribution: optimised and linked statically. `VFIO_USER_GPU_STATIC` names one
/// that was built elsewhere.
///
/// # Panics
/// When it does not build.
#[track_caller]
pub fn static_backend() -> PathBuf {
    if let Some(path) = env::var_os("VFIO_USER_GPU_STATIC") {
        return path.into();
    }
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || static_program("vfio-user-gpu", "vfio-user-gpu", "release", &[]);
    unwrap_built("the static backend", BUILT.get_or_init(build))
}

/// The tool for people, like [`static_backend`].
///
/// # Panics
/// When it does not build.
#[track_caller]
pub fn static_ctl() -> PathBuf {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || static_program("vfio-user-client", "vfio-user-ctl", "release", &[]);
    unwrap_built("the static vfio-user-ctl", BUILT.get_or_init(build))
}

#[track_caller]
fn unwrap_built(what: &str, built: &Result<PathBuf, String>) -> PathBuf {
    match built {
        Ok(path) => path.clone(),
        Err(why) => panic!("{what} does not build: {why}"),
    }
}

/// Builds a program that runs in an empty root file system.
fn static_program(
    package: &str,
    name: &str,
    profile: &str,
    settings: &[(&str, &str)],
) -> Result<PathBuf, String> {
    // With an explicit target the flags reach the program only, not the build scripts and macros it is built by.
    let triple = "x86_64-unknown-linux-gnu";
    let target = profile_folder()
        .parent()
        .unwrap_or(Path::new("target"))
        .join("guest");
    let mut cargo = cargo();
    cargo
        .args(["build", "--quiet", "--profile", profile])
        .args(["--package", package, "--bin", name])
        .args(["--target", triple, "--target-dir"])
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .envs(settings.iter().copied());
    run(cargo)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(triple).join(folder).join(name))
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
