// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest that owns VFIO devices itself: an emulated IOMMU with interrupt remapping, and QEMU's own devices
//! behind it, each for what it can show.
//!
//! | device | place | for |
//! |---|---|---|
//! | `edu` | 00:07.0 | DMA, MSI, INTx |
//! | `edu` and a serial port | 00:08.0, 00:08.1 | a group that is not viable |
//! | `bochs-display` | behind a root port | display class, PCI Express, ROM-less |
//! | `ati-vga` | behind a root port | display class, VGA ranges, I/O BAR, ROM |
//! | `virtio-gpu-pci` | behind a root port | MSI-X beside other registers, FLR |
//! | `igb` | behind a root port | MSI-X on request, FLR, virtual functions |

use std::path::PathBuf;

use serde_json::json;

use crate::guest::Guest;

/// Such a guest with the kernel of `tree`.
#[must_use]
pub fn vfio_guest(tree: PathBuf) -> Guest {
    let mut guest = Guest::new(tree)
        .size(1024, 2)
        .machine_property("kernel-irqchip=split")
        // On a loaded machine an emulated timer may miss the kernel's check of it, which then panics.
        .append("intel_iommu=on no_timer_check vfio_pci.enable_sriov=1")
        .device(json!({ "driver": "intel-iommu", "intremap": "on", "caching-mode": true }))
        .device(json!({ "driver": "edu", "addr": "7" }))
        .device(json!({ "driver": "edu", "addr": "8.0", "multifunction": true }))
        .device(json!({ "driver": "pci-serial", "addr": "8.1" }));
    let behind_ports = ["bochs-display", "ati-vga", "virtio-gpu-pci", "igb"];
    for (index, driver) in behind_ports.iter().enumerate() {
        let port = format!("port{index}");
        guest = guest
            .device(json!({
                "driver": "pcie-root-port", "id": port, "chassis": index + 1, "addr": format!("{:x}", 0x10 + index),
            }))
            .device(json!({ "driver": driver, "bus": port }));
    }
    guest
}

/// A machine like that without the IOMMU, and with the device `edu` only.
#[must_use]
pub fn bare_guest(tree: PathBuf) -> Guest {
    Guest::new(tree)
        .size(1024, 2)
        .append("no_timer_check")
        .device(json!({ "driver": "edu", "addr": "7" }))
}
