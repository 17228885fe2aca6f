// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of a backend with few rights: descriptors handed over to an ordinary user, root given up, little memory to lock.

use std::{
    error::Error,
    fs,
    os::fd::{AsFd, AsRawFd},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use vfio_user_client::Access;

use super::{
    backend::{Device, Launch},
    kernel::{Iommu, OpenDevice},
    lifecycle::works,
    memory::SharedMemory,
    pci::Function,
    places::{EDU, IOVA},
};
use crate::{Outcome, check_eq, say};

/// An ordinary user of the guest.
pub const USER: u32 = 1000;
/// Who has given up root.
const NOBODY: u32 = 65534;

/// A launcher opens the device and hands it over to an ordinary user's backend, which opens nothing.
pub fn launcher() -> Outcome {
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let (device, launch) = handed_over(&function)?;
    let backend = launch.user_id(USER).attach()?;
    // The launcher's own descriptors go; the backend's are enough.
    drop(device);
    check_eq!(
        users_of(backend.id())?,
        format!("{USER} {USER} {USER} {USER}"),
        "the backend's user ids"
    );
    works(&backend)
}

/// Root opens the device and is root no more.
pub fn user() -> Outcome {
    fs::create_dir_all("/etc")?;
    fs::write(
        "/etc/passwd",
        format!("root:x:0:0::/:\nnobody:x:{NOBODY}:{NOBODY}::/:\n"),
    )?;
    fs::write("/etc/group", format!("root:x:0:\nnogroup:x:{NOBODY}:\n"))?;
    let backend = Launch::on(&Function::at(EDU)?)?
        .args(&["--user", "nobody"])
        .attach()?;
    check_eq!(
        users_of(backend.id())?,
        format!("{NOBODY} {NOBODY} {NOBODY} {NOBODY}"),
        "the backend's user ids"
    );
    works(&backend)
}

/// A map that passes RLIMIT_MEMLOCK is refused with the figures, and what fits goes on working.
pub fn memlock() -> Outcome {
    const LIMIT: u64 = 256 << 10;
    const TOO_MUCH: u64 = 1 << 20;
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let (device, launch) = handed_over(&function)?;
    let before = getrlimit(Resource::Memlock);
    // Only a privileged user may raise it again, which this one is and the backend is not.
    setrlimit(
        Resource::Memlock,
        Rlimit {
            current: Some(LIMIT),
            maximum: Some(LIMIT),
        },
    )?;
    let backend = launch.user_id(USER).attach();
    setrlimit(Resource::Memlock, before)?;
    let backend = backend?;
    drop(device);
    let memory = SharedMemory::new(usize::try_from(TOO_MUCH)?)?;
    let refused =
        backend
            .client()
            .dma_map(IOVA, TOO_MUCH, Access::ReadWrite, Some((memory.fd(), 0)));
    check_eq!(
        refused.map_err(|error| error.errno()),
        Err(libc::ENOMEM),
        "errno of too large a map"
    );
    let log = backend.log();
    say(&log);
    if !log.contains("MEMLOCK") {
        return Err(format!("the backend does not name the limit: {log}").into());
    }
    works(&backend)
}

/// Opens `function` as a launcher does; the launch names the descriptors.
fn handed_over(function: &Function) -> Result<(OpenDevice, Launch), Box<dyn Error>> {
    let device = match function.cdev_file()? {
        Some(_) => OpenDevice::by_cdev(function)?,
        None => OpenDevice::by_group(function, None)?,
    };
    let (option, iommu) = match &device.iommu {
        Iommu::Container { container, .. } => ("--container-fd", container),
        Iommu::Iommufd { iommufd, .. } => ("--iommufd-fd", iommufd),
    };
    // Every child of ours inherits them from here on; there is only the backend.
    fcntl_setfd(device.device.as_fd(), FdFlags::empty())?;
    fcntl_setfd(iommu, FdFlags::empty())?;
    let launch = Launch::with(&[
        "--device-fd",
        &device.device.as_raw_fd().to_string(),
        option,
        &iommu.as_raw_fd().to_string(),
    ]);
    Ok((device, launch))
}

/// The user ids of a process: real, effective, saved, file system.
pub fn users_of(id: u32) -> Result<String, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids: Vec<_> = line
        .ok_or("no user ids")?
        .split_ascii_whitespace()
        .collect();
    Ok(ids.join(" "))
}
