// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Follows the README's section for a real host, word for word: its commands are taken from the text and given to a
//! shell. What the section says in prose, this module does.

use std::{
    error::Error,
    fs,
    os::unix::fs::{chown, symlink},
    path::Path,
    process::Command,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    backend::Listening,
    lifecycle::works,
    pci::Function,
    places::EDU,
    privileges::{USER, users_of},
};
use crate::{Outcome, check_eq, say};

const README: &str = include_str!("../../../README.md");
const SECTION: &str = "\n## Own a GPU of the host\n";
/// The address that the reader replaces.
const DEVICE: &str = "DEVICE=0000:01:00.0";
const SOCKET: &str = "/run/gpu/gpu0.sock";

/// Binding, and the start as root and as an ordinary user.
pub fn real_host() -> Outcome {
    prepare_system()?;
    let edu = Function::at(EDU)?;
    edu.unbind()?;
    edu.write("driver_override", "\n")?;
    let commands = commands()?;
    let own_device = format!("DEVICE={EDU}");
    // The first blank-separated words tell the commands apart; a README that lost one fails here.
    let position = |start: &str| -> Result<usize, Box<dyn Error>> {
        let found = commands.iter().position(|line| line.starts_with(start));
        found.ok_or_else(|| format!("the README has no command {start:?}").into())
    };
    let (first, last) = (position(DEVICE)?, position("echo $DEVICE >")?);
    let binding = commands[first..=last]
        .join("\n")
        .replace(DEVICE, &own_device);
    run(&binding)?;
    check_eq!(
        edu.driver(),
        Some("vfio-pci".to_owned()),
        "the driver after binding"
    );

    // As the third step has it, for root here and for the user that inherits it.
    let before = getrlimit(Resource::Memlock);
    setrlimit(
        Resource::Memlock,
        Rlimit {
            current: None,
            maximum: None,
        },
    )?;
    let as_root = &commands[position("vfio-user-gpu --device $DEVICE --user gpu")?];
    serves(&own_device, as_root, None)?;

    let chown_group = &commands[position("chown gpu /dev/vfio/")?];
    match edu.cdev_file()? {
        None => run(&format!("{own_device}\n{chown_group}"))?,
        // "or with iommufd the two of cdev and iommufd"
        Some(file) => {
            chown(file, Some(USER), None)?;
            chown("/dev/iommu", Some(USER), None)?;
        }
    }
    let as_user = &commands[position("vfio-user-gpu --device $DEVICE --socket-path")?];
    let outcome = serves(&own_device, as_user, Some(USER));
    setrlimit(Resource::Memlock, before)?;
    outcome
}

/// Starts the backend by a command of the README; it serves the device, as the user gpu.
fn serves(device: &str, line: &str, user: Option<u32>) -> Outcome {
    say(&format!("README: {line}"));
    let mut command = shell(&format!("{device}\nexec {line}"));
    if let Some(id) = user {
        std::os::unix::process::CommandExt::uid(&mut command, id);
        std::os::unix::process::CommandExt::gid(&mut command, id);
    }
    let mut backend = Listening::start(command, SOCKET)?;
    let client = backend.connect()?;
    check_eq!(
        users_of(backend.id())?,
        format!("{USER} {USER} {USER} {USER}"),
        "the backend's user ids"
    );
    works(&client)?;
    drop(client);
    check_eq!(
        backend.terminate()?.code(),
        Some(0),
        "exit status after SIGTERM"
    );
    Ok(())
}

/// What a host has: commands, the user gpu, a folder for the socket.
fn prepare_system() -> Outcome {
    for name in ["sh", "test", "echo", "basename", "readlink", "chown"] {
        let link = Path::new("/bin").join(name);
        if !link.exists() {
            symlink("/bin/busybox", link)?;
        }
    }
    // modprobe finds the module in its lists, and then that it is loaded or built in.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let modules = Path::new("/lib/modules").join(release.trim());
    fs::create_dir_all(&modules)?;
    let vfio_pci = "kernel/drivers/vfio/pci/vfio-pci.ko";
    fs::write(modules.join("modules.dep"), format!("{vfio_pci}:\n"))?;
    let loaded = fs::read_to_string("/proc/modules")?.contains("vfio_pci ");
    if !loaded {
        fs::write(modules.join("modules.builtin"), format!("{vfio_pci}\n"))?;
    }
    fs::create_dir_all("/etc")?;
    fs::write(
        "/etc/passwd",
        format!("root:x:0:0::/:\ngpu:x:{USER}:{USER}::/:\n"),
    )?;
    fs::write("/etc/group", format!("root:x:0:\ngpu:x:{USER}:\n"))?;
    fs::create_dir_all("/run/gpu")?;
    Ok(chown("/run/gpu", Some(USER), Some(USER))?)
}

/// The section's commands: its indented lines, without comments.
fn commands() -> Result<Vec<&'static str>, Box<dyn Error>> {
    let (_, rest) = README
        .split_once(SECTION)
        .ok_or("the README's section is gone")?;
    let section = rest.split("\n## ").next().unwrap_or_default();
    let indented = section
        .lines()
        .filter_map(|line| line.strip_prefix("       "));
    Ok(indented
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect())
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-ec", script]).env("PATH", "/bin");
    command
}

fn run(script: &str) -> Outcome {
    for line in script.lines() {
        say(&format!("README: {line}"));
    }
    let output = shell(script).output()?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {errors}", output.status).into())
}
