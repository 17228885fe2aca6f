// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process that owns a GPU and serves it to a virtual machine monitor over vfio-user.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | the listening socket, the session, one function per command |
//! | [`function`] | the PCI function as the client sees it: composition in front of a device |
//! | [`pci`] | config space, capability lists, MSI-X table, ROM images: pure |
//! | [`quirks`] | what particular GPUs need beside it: trapped parts of BARs, registers of their own |
//! | [`device`] | the trait of a device: [`device::kernel`], the kernel's VFIO, and [`device::model`], the software GPU |
//! | [`memory`] | guest memory that the device reaches (DMA maps) |
//! | [`migration`] | states, stream, sizes of a device on its way to another process |
//! | [`interrupts`], [`routes`] | eventfds, levels and masks; where the guest wants messages delivered |
//! | [`options`] | the command line |
//! | [`privileges`], [`sandbox`] | becoming an ordinary user; giving up what serving does not need |
//! | [`poller`], [`ratelimit`], [`report`] | epoll, bounded logging, errors for people |

pub mod device;
pub mod function;
pub mod interrupts;
pub mod memory;
pub mod migration;
pub mod options;
pub mod pci;
pub mod poller;
pub mod privileges;
pub mod quirks;
pub mod ratelimit;
pub mod report;
pub mod routes;
pub mod sandbox;
pub mod server;
