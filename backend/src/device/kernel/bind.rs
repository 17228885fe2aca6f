// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests that bind a device to its IOMMU: on a container, a group, and an unbound cdev. What their
//! errnos mean for an operator is in `open.rs`.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DEVICE_BIND_FLAG_TOKEN, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_TYPE1v2_IOMMU, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_group_status,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};

use super::file::{io_nr, last_errno};
use super::translators::size_of_u32;

/// The token that an SR-IOV physical function's owner demands of a virtual function's.
pub(super) type Token = [u8; 16];

fn done(returned: i32) -> Result<u32, Errno> {
    u32::try_from(returned).map_err(|_| last_errno())
}

/// Whether the container speaks this interface and has a type1 IOMMU.
pub(super) fn is_type1_container(container: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: this request takes no argument.
    let version = done(unsafe { ioctl(&container, io_nr(VFIO_BASE)) })?;
    // SAFETY: this request takes a number.
    let extension = done(unsafe {
        ioctl_with_val(&container, io_nr(VFIO_BASE + 1), VFIO_TYPE1v2_IOMMU.into())
    })?;
    Ok(version == VFIO_API_VERSION && extension == 1)
}

/// Chooses the type1 IOMMU for a container that has a group.
pub(super) fn set_iommu(container: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: this request takes a number.
    let set =
        unsafe { ioctl_with_val(&container, io_nr(VFIO_BASE + 2), VFIO_TYPE1v2_IOMMU.into()) };
    done(set).map(drop)
}

/// Whether every device of the group is free for VFIO.
pub(super) fn is_viable(group: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut status = vfio_group_status {
        argsz: size_of_u32::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: `status` is the structure of this request and lives through the call.
    done(unsafe { ioctl_with_mut_ref(&group, io_nr(VFIO_BASE + 3), &mut status) })?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<(), Errno> {
    let number = container.as_raw_fd();
    // SAFETY: this request takes a pointer to a descriptor number, which lives through the call.
    done(unsafe { ioctl_with_ref(&group, io_nr(VFIO_BASE + 4), &number) }).map(drop)
}

/// Opens a device of a group by its name.
pub(super) fn device_of_group(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: this request takes a string that ends with zero and lives through the call.
    let device = done(unsafe { ioctl_with_ptr(&group, io_nr(VFIO_BASE + 6), name.as_ptr()) })?;
    let number = RawFd::try_from(device).map_err(|_| Errno::BADF)?;
    // SAFETY: the request returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Binds a cdev to an iommufd, and says which id it has there.
pub(super) fn bind_iommufd(
    cdev: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    token: Option<&Token>,
) -> Result<u32, Errno> {
    let mut bind = vfio_device_bind_iommufd {
        argsz: size_of_u32::<vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..vfio_device_bind_iommufd::default()
    };
    match token {
        Some(token) => {
            bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
            bind.token_uuid_ptr = token.as_ptr().expose_provenance() as u64;
        }
        // Kernels before the token take no longer structure.
        None => bind.argsz -= 8,
    }
    // SAFETY: `bind` is the structure of this request; it and the 16 bytes of the token live through the call.
    done(unsafe { ioctl_with_mut_ref(&cdev, io_nr(VFIO_BASE + 18), &mut bind) })?;
    Ok(bind.out_devid)
}

/// Attaches a bound cdev to an I/O address space of its iommufd, or to a page table in one.
pub(super) fn attach(cdev: BorrowedFd<'_>, pt_id: u32) -> Result<(), Errno> {
    let mut attach = vfio_device_attach_iommufd_pt {
        // Without the PASID, which older kernels do not know.
        argsz: size_of_u32::<vfio_device_attach_iommufd_pt>() - 4,
        pt_id,
        ..vfio_device_attach_iommufd_pt::default()
    };
    // SAFETY: `attach` is the structure of this request and lives through the call.
    done(unsafe { ioctl_with_mut_ref(&cdev, io_nr(VFIO_BASE + 19), &mut attach) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn another_kind_of_descriptor_is_told_by_errno() {
        let other = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        let other = other.as_fd();
        assert_eq!(is_type1_container(other), Err(Errno::NOTTY));
        assert_eq!(set_iommu(other), Err(Errno::NOTTY));
        assert_eq!(is_viable(other), Err(Errno::NOTTY));
        assert_eq!(set_container(other, other), Err(Errno::NOTTY));
        assert_eq!(device_of_group(other, c"gpu").unwrap_err(), Errno::NOTTY);
        assert_eq!(
            bind_iommufd(other, other, Some(&[1; 16])),
            Err(Errno::NOTTY)
        );
        assert_eq!(attach(other, 1), Err(Errno::NOTTY));
    }
}
