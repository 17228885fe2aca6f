// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process that owns a GPU and serves it to a virtual machine monitor over vfio-user.

pub mod device;
pub mod interrupts;
pub mod memory;
pub mod pci;
pub mod poller;
