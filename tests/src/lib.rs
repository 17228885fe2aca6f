// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the whole-process tests stand on: processes of ours and of others, driven and observed from outside.
//!
//! | module | what it does |
//! |---|---|
//! | [`lane`] | where the software we did not write lies (set by `tests/run`) |
//! | [`binaries`] | our own programs, built once per test process |
//! | [`process`] | a child process: captured output, awaited exit, never left behind |
//! | [`backend`] | a running `vfio-user-gpu` |
//! | [`raw_client`] | a client that sends whatever it is told, right or wrong |
//! | [`qemu`] | a running QEMU, with its control sockets |
//! | [`qtest`], [`qmp`] | QEMU's two control protocols |
//! | [`pci`] | configuration space and BARs of a device, driven through qtest |
//! | [`guest`], [`initramfs`] | a Linux guest assembled from a kernel tree and our own `/init` |
//! | [`vfio_machine`] | a guest with an IOMMU and devices for its own VFIO |
//! | [`nested_qemu`] | QEMU inside such a guest |
//! | [`screen`] | what a Bochs display shows |
//! | [`pattern`] | test data that host and guest both know |
//! | [`engine`] | the model GPU's engine, driven through whichever client |
//! | [`eventfd`] | interrupts as a client gets them |
//! | [`opregion`] | an OpRegion of Intel graphics |
//! | [`view`] | what a guest's lspci says of display devices, and the fixtures they are made of |
//! | [`model_gpu`] | the registers of the model GPU, as a driver writer sees them |
//!
//! Nothing here knows how the backend works inside; it is a program with options and a socket.
//!
//! # Failures
//! A harness function that cannot do its work ends the test by panic: the message says what was asked and what was
//! seen, and the place is that of the caller. Waits end by events; [`PATIENCE`] only turns a hang into a failure.

pub mod backend;
pub mod binaries;
pub mod engine;
pub mod eventfd;
pub mod guest;
pub mod initramfs;
pub mod lane;
pub mod migrating;
pub mod model_gpu;
pub mod nested_qemu;
pub mod opregion;
pub mod pattern;
pub mod pci;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod qtest;
pub mod raw_client;
pub mod screen;
pub mod vfio_machine;
pub mod view;

use std::time::Duration;

/// How long a wait may last before the test is called hung. Generous, since guests run emulated on loaded machines;
/// nothing is asserted about the time a thing takes.
pub const PATIENCE: Duration = Duration::from_secs(180);
