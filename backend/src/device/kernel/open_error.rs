// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a device cannot be opened, as one line that says what to do: the errors, and what errnos of the kernel
//! mean. Opens nothing.

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::open::VfToken;
use super::sysfs::{Found, Member};

/// Why there is no device. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The text names no device.
    #[error(
        "{0:?} is no device: pass a PCI address (0000:01:00.0), the UUID of a mdev, or a sysfs path"
    )]
    Name(String),
    /// There is none of that name.
    #[error("No device {device}: {} does not exist (lspci -D lists the devices)", .path.display())]
    NoSuchDevice {
        /// As asked for.
        device: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// Another driver has it, or none.
    #[error("{name} has {}, not vfio-pci: run `modprobe vfio-pci; {}`", driver_text(.driver), bind_commands(.name, .driver))]
    NotBound {
        /// Its PCI address.
        name: String,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// Nothing would keep its DMA inside the guest.
    #[error(
        "{name} is behind no IOMMU: enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on"
    )]
    NoIommu {
        /// Its name.
        name: String,
    },
    /// Other devices of the group are in use by the host.
    #[error(
        "IOMMU group {group} of {name} is not viable: {} must be bound to vfio-pci or to no driver",
        others_text(.others)
    )]
    NotViable {
        /// Its name.
        name: String,
        /// The group's number.
        group: u32,
        /// The members whose driver is in the way.
        others: Vec<Member>,
    },
    /// Somebody else has it open.
    #[error("{} is in use by another process: `fuser -v {}` names it", .0.display(), .0.display())]
    Busy(PathBuf),
    /// The file may not be opened.
    #[error(
        "No permission to open {} (mode {mode:03o}, owner {uid}:{gid}): `chown` it to this user, start as \
         root with --user NAME, or hand its descriptor over (--device-fd)",
        .path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The file cannot be opened for another reason.
    #[error("Cannot open {}: {errno}{}", .path.display(), missing_hint(.path, *.errno))]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// A virtual function whose physical function demands a token.
    #[error(
        "{0} is a virtual function whose physical function has a VF token: pass --vf-token UUID"
    )]
    MissingToken(String),
    /// The token is not that of the physical function, or none is wanted.
    #[error("{0} does not take this --vf-token: it must be the one set on its physical function")]
    WrongToken(String),
    /// Interrupts of the device could be forged.
    #[error(
        "The IOMMU has no interrupt remapping, so that a guest could forge interrupts: enable it in the \
         firmware, or accept that with allow_unsafe_interrupts=1 of module vfio_iommu_type1"
    )]
    UnsafeInterrupts,
    /// The descriptor is not open.
    #[error("Descriptor {fd} cannot be used: {errno}")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why not.
        errno: Errno,
    },
    /// `--container-fd` is something else, or its IOMMU is not set.
    #[error("--container-fd {0} is not a VFIO container with a group and a type1 IOMMU")]
    NotAContainer(RawFd),
    /// `--device-fd` is something else.
    #[error("--device-fd {fd} is not a VFIO device that goes with {with}: {errno}")]
    NotADevice {
        /// Its number.
        fd: RawFd,
        /// What it should go with.
        with: &'static str,
        /// What the kernel says.
        errno: Errno,
    },
    /// A step that has no explanation of its own.
    #[error("{what} for {name}: {errno}")]
    Step {
        /// The call.
        what: &'static str,
        /// The device.
        name: String,
        /// Its errno.
        errno: Errno,
    },
}

fn driver_text(driver: &Option<String>) -> String {
    match driver {
        Some(driver) => format!("driver {driver}"),
        None => "no driver".into(),
    }
}

fn bind_commands(name: &str, driver: &Option<String>) -> String {
    let device = format!("/sys/bus/pci/devices/{name}");
    let unbind = match driver {
        Some(_) => format!("echo {name} > {device}/driver/unbind; "),
        None => String::new(),
    };
    format!(
        "echo vfio-pci > {device}/driver_override; {unbind}echo {name} > /sys/bus/pci/drivers_probe"
    )
}

fn others_text(others: &[Member]) -> String {
    if others.is_empty() {
        return "the other devices of the group".into();
    }
    let named: Vec<_> = others
        .iter()
        .map(|member| format!("{} ({})", member.name, driver_text(&member.driver)))
        .collect();
    named.join(", ")
}

fn missing_hint(path: &Path, errno: Errno) -> &'static str {
    match (errno, path.file_name().and_then(|name| name.to_str())) {
        (Errno::NOENT | Errno::NODEV, Some("vfio")) => " (`modprobe vfio_iommu_type1`)",
        (Errno::NOENT | Errno::NODEV, Some("iommu")) => " (`modprobe iommufd`)",
        _ => "",
    }
}

pub(super) fn no_type1(container: &Path) -> OpenError {
    OpenError::File {
        path: container.into(),
        errno: Errno::NODEV,
    }
}

pub(super) fn not_viable(found: &Found) -> OpenError {
    let in_the_way = |member: &&Member| {
        let driver = member.driver.as_deref();
        member.name != found.name && driver.is_some_and(|driver| !is_harmless(driver))
    };
    OpenError::NotViable {
        name: found.name.clone(),
        group: found.group,
        others: found.members.iter().filter(in_the_way).cloned().collect(),
    }
}

/// Drivers that a viable group may have beside VFIO's: they do no DMA.
pub(super) fn is_harmless(driver: &str) -> bool {
    driver.contains("vfio") || matches!(driver, "pci-stub" | "pcieport")
}

/// What an errno of taking the device itself means.
pub(super) fn explain_device(
    found: &Found,
    node: &Path,
    token: Option<&VfToken>,
    errno: Errno,
) -> OpenError {
    let name = &found.name;
    match errno {
        Errno::ACCESS if token.is_none() => OpenError::MissingToken(name.into()),
        Errno::ACCESS => OpenError::WrongToken(name.into()),
        Errno::INVAL if token.is_some() => OpenError::WrongToken(name.into()),
        // A cdev that is open already answers EINVAL, one of a group that is not viable EPERM.
        Errno::BUSY | Errno::INVAL => OpenError::Busy(node.into()),
        Errno::PERM => not_viable(found),
        errno => step("Taking the device", name, errno),
    }
}

pub(super) fn step(what: &'static str, name: &str, errno: Errno) -> OpenError {
    OpenError::Step {
        what,
        name: name.into(),
        errno,
    }
}

pub(super) fn explain_node(path: &Path, errno: Errno) -> OpenError {
    match errno {
        Errno::BUSY => OpenError::Busy(path.into()),
        Errno::ACCESS | Errno::PERM => match fs::metadata(path) {
            Ok(file) => OpenError::Permission {
                path: path.into(),
                mode: file.mode() & 0o7777,
                uid: file.uid(),
                gid: file.gid(),
            },
            Err(_) => OpenError::File {
                path: path.into(),
                errno,
            },
        },
        errno => OpenError::File {
            path: path.into(),
            errno,
        },
    }
}

#[cfg(test)]
mod tests;
