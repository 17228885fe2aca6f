// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the software of the system lanes lies. `tests/run` unpacks it and says so in the environment.

use std::{env, path::PathBuf};

/// The QEMU program, with `vfio-user-pci`.
///
/// # Panics
/// Outside its lane, like all of this module.
#[track_caller]
pub fn qemu() -> PathBuf {
    from_environment("QEMU_VFIO_USER")
}

/// The folder Debian's QEMU was unpacked into.
#[track_caller]
pub fn qemu_tree() -> PathBuf {
    from_environment("VFIO_USER_GPU_QEMU_TREE")
}

/// The tree of Debian's kernel for virtual machines, with `uio_pci_generic`.
#[track_caller]
pub fn cloud_kernel() -> PathBuf {
    from_environment("VFIO_USER_GPU_CLOUD_KERNEL")
}

/// The tree of Debian's ordinary kernel, with the `bochs` DRM driver.
#[track_caller]
pub fn stock_kernel() -> PathBuf {
    from_environment("VFIO_USER_GPU_STOCK_KERNEL")
}

/// The tree of the kernel whose VFIO the kernel lanes test: Debian's ordinary one with the mediated samples, or our own.
#[track_caller]
pub fn vfio_kernel() -> PathBuf {
    from_environment("VFIO_USER_GPU_VFIO_KERNEL")
}

/// Our kernel module of test devices, built for [`vfio_kernel`].
#[track_caller]
pub fn test_module() -> PathBuf {
    from_environment("VFIO_USER_GPU_TEST_MODULE")
}

/// A shell and its usual commands in one static program.
#[track_caller]
pub fn busybox() -> PathBuf {
    from_environment("VFIO_USER_GPU_BUSYBOX")
}

/// The tree of Debian's pciutils: `lspci/` with all that the program needs.
///
/// # Panics
/// Outside its lane, like all of this module.
#[track_caller]
pub fn pciutils() -> PathBuf {
    from_environment("VFIO_USER_GPU_PCIUTILS")
}

#[track_caller]
fn from_environment(name: &str) -> PathBuf {
    let Some(path) = env::var_os(name).map(PathBuf::from) else {
        panic!("{name} is not set: run this test through `tests/run`");
    };
    assert!(path.exists(), "{name}={} does not exist", path.display());
    path
}
