// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options that say what the guest sees of the device.

use clap::{Args, ValueEnum};

use crate::pci::{ClassCode, Clique, GuestView, Id, IdentityOverrides, VendorId};

/// What the guest sees.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What the guest sees")]
pub struct ViewOptions {
    /// Show this vendor id (0 to 0xfffe, hexadecimal or decimal) instead of the device's.
    #[arg(long, value_name = "ID")]
    pub pci_vendor_id: Option<VendorId>,

    /// Show this device id (0 to 0xffff).
    #[arg(long, value_name = "ID")]
    pub pci_device_id: Option<Id>,

    /// Show this subsystem vendor id (0 to 0xffff).
    #[arg(long, value_name = "ID")]
    pub pci_subsystem_vendor_id: Option<Id>,

    /// Show this subsystem id (0 to 0xffff).
    #[arg(long, value_name = "ID")]
    pub pci_subsystem_id: Option<Id>,

    /// Show this class code of 24 bits (0 to 0xffffff): 0x030000 is a VGA controller.
    #[arg(long, value_name = "CODE")]
    pub pci_class: Option<ClassCode>,

    /// Show the capabilities of address translation: ATS, page requests and PASID. Only for a VMM whose virtual
    /// IOMMU keeps the device's translations right; vfio-user has no message for that.
    #[arg(long, value_name = "HOW", default_value = "off")]
    pub ats: Switch,

    /// Put the GPU into this NVIDIA GPUDirect P2P clique (0 to 15): guest drivers then do peer-to-peer DMA between the
    /// GPUs of one clique. Only for GPUs that the host can connect (one root complex, no ACS redirection between them),
    /// and only for boards whose driver supports it: on GeForce boards peers read WRONG DATA without an error.
    #[arg(long, value_name = "N")]
    pub nvidia_gpudirect_clique: Option<Clique>,
}

/// An option that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is there.
    On,
    /// It is not.
    Off,
}

impl ViewOptions {
    /// The choices as values.
    #[must_use]
    pub fn view(&self) -> GuestView {
        GuestView {
            identity: IdentityOverrides {
                vendor_id: self.pci_vendor_id,
                device_id: self.pci_device_id,
                subsystem_vendor_id: self.pci_subsystem_vendor_id,
                subsystem_id: self.pci_subsystem_id,
                class: self.pci_class,
            },
            ats: self.ats == Switch::On,
            nvidia_clique: self.nvidia_gpudirect_clique,
        }
    }
}
