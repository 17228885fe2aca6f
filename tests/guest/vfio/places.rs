// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine that `system_tests::vfio_machine` builds, and the addresses the checks use.

use std::error::Error;

use super::{kernel::OpenDevice, pci::Function};
use crate::Outcome;

/// `edu` alone in its group.
pub const EDU: &str = "0000:00:07.0";
/// `edu` that shares its group with [`SERIAL`].
pub const SHARED_EDU: &str = "0000:00:08.0";
/// A serial port, bound to the kernel's own driver.
pub const SERIAL: &str = "0000:00:08.1";

/// Where the checks map memory for the device; edu reaches 28 bits.
pub const IOVA: u64 = 0x0010_0000;
/// Where nothing is mapped.
pub const UNMAPPED_IOVA: u64 = 0x0700_0000;

/// The devices that go to VFIO one by one, by name.
pub fn all() -> Result<Vec<(&'static str, Function)>, Box<dyn Error>> {
    Ok(vec![
        ("edu", Function::at(EDU)?),
        ("bochs-display", Function::with_ids(0x1234, 0x1111)?),
        ("ati-vga", Function::with_ids(0x1002, 0x5046)?),
        ("virtio-gpu", Function::with_ids(0x1af4, 0x1050)?),
        ("igb", Function::with_ids(0x8086, 0x10c9)?),
    ])
}

/// The network function with MSI-X and virtual functions.
pub fn igb() -> Result<Function, Box<dyn Error>> {
    Function::with_ids(0x8086, 0x10c9)
}

/// Calls `check` with a virtual function of igb, bound to vfio-pci, and the token that its use takes.
pub fn with_virtual_function(check: impl FnOnce(&Function, &str) -> Outcome) -> Outcome {
    let physical = igb()?;
    physical.bind_to_vfio()?;
    // The token holds as long as its owner has the physical function.
    let owner = OpenDevice::open(&physical)?;
    owner.set_vf_token([0x5a; 16])?;
    physical.write("sriov_numvfs", "1")?;
    let function = Function::with_ids(0x8086, 0x10ca);
    let outcome = function.and_then(|function| {
        function.bind_to_vfio()?;
        check(&function, "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a")
    });
    physical.write("sriov_numvfs", "0")?;
    outcome
}
