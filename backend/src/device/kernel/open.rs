// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a PCI address, a sysfs path or descriptors to an open device with its IOMMU.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use log::info;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::OpenDevice;
use super::bind::{self, Token};
use super::file::KernelFile;
use super::iommu::HostIommu;
use super::open_error::{OpenError, explain_device, explain_node, no_type1, not_viable, step};
use super::reset::Group;
use super::sysfs::{Found, Roots, Route, is_uuid};
use super::translators::{Container, Ioas};
use super::vfio::Vfio;

/// `--vf-token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfToken {
    text: String,
    bytes: Token,
}

impl FromStr for VfToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "expected a UUID such as 14d63f20-8445-11ea-8900-1f9ce7d5650d".to_owned();
        if !is_uuid(text) {
            return Err(error());
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            let pair = digits.get(at..at + 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self {
            text: text.to_ascii_lowercase(),
            bytes,
        })
    }
}

/// A device and what translates its DMA. The device goes first: the kernel then detaches it.
#[derive(Debug)]
pub struct Opened {
    /// The device.
    pub device: OpenDevice,
    /// Its IOMMU.
    pub iommu: Arc<HostIommu>,
}

/// What was handed over instead of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Companion {
    /// The iommufd that a cdev is, or is to be, bound to.
    Iommufd(RawFd),
    /// The container of a group's device.
    Container(RawFd),
}

impl Companion {
    /// Its word for people.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Iommufd(_) => "iommufd",
            Self::Container(_) => "container",
        }
    }
}

/// Opens a device by name.
///
/// # Errors
/// [`OpenError`].
pub fn open(roots: &Roots, text: &str, token: Option<&VfToken>) -> Result<Opened, OpenError> {
    let found = roots.find(text)?;
    let mut opened = match &found.route {
        Route::Cdev { cdev, iommu } => open_cdev(&found, cdev, iommu, token)?,
        Route::Group { node, container } => open_group(&found, node, container, token)?,
    };
    let Found { name, group, .. } = &found;
    let driver = found.driver.as_deref().unwrap_or("none");
    let by = match &found.route {
        Route::Cdev { cdev, iommu } => format!("{} and {}", cdev.display(), iommu.display()),
        Route::Group { node, container } => {
            format!("{} and {}", node.display(), container.display())
        }
    };
    info!("Opened {name} by {by} (driver {driver}, IOMMU group {group})");
    opened.device.driver = found.data_owner();
    opened.device.origin = vec![
        ("opened by", by),
        ("driver", driver.into()),
        ("IOMMU group", group.to_string()),
    ];
    Ok(opened)
}

fn open_cdev(
    found: &Found,
    cdev: &Path,
    iommu: &Path,
    token: Option<&VfToken>,
) -> Result<Opened, OpenError> {
    let name = &found.name;
    let iommufd = open_node(iommu)?;
    let device = open_node(cdev)?;
    let token_bytes = token.map(|token| &token.bytes);
    let id = bind::bind_iommufd(device.as_fd(), iommufd.as_fd(), token_bytes)
        .map_err(|errno| explain_device(found, cdev, token, errno))?;
    attach(name, (device, Some(id)), iommufd, !found.mediated)
}

/// Gives a bound cdev an address space of its own. With the device's id in the iommufd, one that tracks what
/// is written, if the IOMMU can.
fn attach(
    name: &str,
    (device, id): (OwnedFd, Option<u32>),
    iommufd: OwnedFd,
    pins: bool,
) -> Result<Opened, OpenError> {
    let step = |what| move |errno| step(what, name, errno);
    let mut ioas = Ioas::new(iommufd).map_err(step("IOMMU_IOAS_ALLOC"))?;
    let page_table = id.and_then(|id| ioas.page_table(id).ok());
    let tracking = page_table.filter(|table| bind::attach(device.as_fd(), *table).is_ok());
    match (page_table, tracking) {
        (_, Some(table)) => ioas.set_tracking(table),
        (unused, None) => {
            if let Some(table) = unused {
                ioas.drop_page_table(table);
            }
            bind::attach(device.as_fd(), ioas.id())
                .map_err(step("VFIO_DEVICE_ATTACH_IOMMUFD_PT"))?;
        }
    }
    let device = OpenDevice {
        file: Arc::new(KernelFile::new(device)),
        group: None,
        name: name.into(),
        driver: String::new(),
        origin: Vec::new(),
    };
    let iommu = Arc::new(HostIommu::new(Box::new(ioas), pins));
    Ok(Opened { device, iommu })
}

fn open_group(
    found: &Found,
    node: &Path,
    container: &Path,
    token: Option<&VfToken>,
) -> Result<Opened, OpenError> {
    let name = &found.name;
    let step = |what| move |errno| step(what, name, errno);
    let container_fd = open_node(container)?;
    match bind::is_type1_container(container_fd.as_fd()) {
        Ok(true) => {}
        Ok(false) => return Err(no_type1(container)),
        Err(errno) => return Err(step("VFIO_GET_API_VERSION")(errno)),
    }
    let group = open_node(node)?;
    if !bind::is_viable(group.as_fd()).map_err(step("VFIO_GROUP_GET_STATUS"))? {
        return Err(not_viable(found));
    }
    bind::set_container(group.as_fd(), container_fd.as_fd())
        .map_err(step("VFIO_GROUP_SET_CONTAINER"))?;
    bind::set_iommu(container_fd.as_fd()).map_err(|errno| match errno {
        Errno::PERM => OpenError::UnsafeInterrupts,
        Errno::NODEV => no_type1(container),
        errno => step("VFIO_SET_IOMMU")(errno),
    })?;
    let full_name = device_name(name, token)?;
    let device = bind::device_of_group(group.as_fd(), &full_name)
        .map_err(|errno| explain_device(found, node, token, errno))?;
    let device = OpenDevice {
        file: Arc::new(KernelFile::new(device)),
        group: Some(Group {
            id: found.group,
            fd: group,
        }),
        name: name.clone(),
        driver: String::new(),
        origin: Vec::new(),
    };
    let translator = Box::new(Container::new(container_fd));
    let iommu = Arc::new(HostIommu::new(translator, !found.mediated));
    Ok(Opened { device, iommu })
}

/// What GROUP_GET_DEVICE_FD takes: the name, and for a virtual function the token behind it.
fn device_name(name: &str, token: Option<&VfToken>) -> Result<CString, OpenError> {
    let full = match token {
        Some(token) => format!("{name} vf_token={}", token.text),
        None => name.to_owned(),
    };
    CString::new(full).map_err(|_| OpenError::Name(name.into()))
}

fn open_node(path: &Path) -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| explain_node(path, errno))
}

/// Takes over a device whose descriptors this process was started with. No path is opened.
///
/// # Errors
/// [`OpenError`].
pub fn adopt(device: RawFd, companion: Companion) -> Result<Opened, OpenError> {
    let name = format!("VFIO device of descriptor {device}");
    let file = take(device)?;
    match companion {
        Companion::Iommufd(number) => {
            let iommufd = take(number)?;
            adopt_cdev(device, &name, file, iommufd)
        }
        Companion::Container(number) => {
            let fd = take(number)?;
            let type1 = bind::is_type1_container(fd.as_fd());
            let container = Container::new(fd);
            if type1 != Ok(true) || container.info().is_err() {
                return Err(OpenError::NotAContainer(number));
            }
            let with = "--container-fd";
            let file = checked_device(device, with, file)?;
            info!("Took over device descriptor {device} and container {number}");
            // What the launcher opened may be a mediated device: whether memory is pinned, the kernel knows.
            let iommu = Arc::new(HostIommu::new(Box::new(container), false));
            let device = OpenDevice {
                file,
                group: None,
                name,
                driver: String::new(),
                origin: Vec::new(),
            };
            Ok(Opened { device, iommu })
        }
    }
}

/// A cdev that the launcher may have bound or not.
fn adopt_cdev(
    number: RawFd,
    name: &str,
    device: OwnedFd,
    iommufd: OwnedFd,
) -> Result<Opened, OpenError> {
    let with = "--iommufd-fd";
    let id = match bind::bind_iommufd(device.as_fd(), iommufd.as_fd(), None) {
        Ok(id) => Some(id),
        // A bound one cannot be bound again, and answers for itself.
        Err(Errno::INVAL) => {
            checked_device(number, with, duplicate(number, &device)?)?;
            None
        }
        Err(errno) => {
            return Err(OpenError::NotADevice {
                fd: number,
                with,
                errno,
            });
        }
    };
    info!("Took over device descriptor {number} and its iommufd");
    attach(name, (device, id), iommufd, false)
}

fn duplicate(number: RawFd, fd: &OwnedFd) -> Result<OwnedFd, OpenError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
        .map_err(|errno| OpenError::Descriptor { fd: number, errno })
}

/// The descriptor as a device, if it answers like one.
fn checked_device(
    number: RawFd,
    with: &'static str,
    fd: OwnedFd,
) -> Result<Arc<KernelFile>, OpenError> {
    let file = Arc::new(KernelFile::new(fd));
    match Vfio::new(Arc::clone(&file) as _).info() {
        Ok(_) => Ok(file),
        Err(errno) => Err(OpenError::NotADevice {
            fd: number,
            with,
            errno,
        }),
    }
}

/// Takes over one descriptor by its number.
fn take(fd: RawFd) -> Result<OwnedFd, OpenError> {
    let unusable = |errno| OpenError::Descriptor { fd, errno };
    if fd < 0 {
        return Err(unusable(Errno::BADF));
    }
    // SAFETY: only borrowed for a system call that says whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(unusable)?;
    // SAFETY: open, and ours: whoever started this process handed it over by its number, and the command
    // line names each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests;
