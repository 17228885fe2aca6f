// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options that say what the guest sees of the device.

use clap::{Args, ValueEnum};

use crate::pci::{ClassCode, Clique, GuestView, Id, IdentityOverrides, RomView, VendorId};
use crate::quirks::igd::{IgdView, OpRegionUse};

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

    /// The expansion ROM: of the device, if it has a sound one (the default), of this file, or none (off).
    #[arg(long, value_name = "FILE|off", value_parser = parse_rom)]
    pub rom: Option<RomView>,

    /// Intel graphics: what becomes of the OpRegion, the table by which a driver knows what is connected. The
    /// client gets it as a region to read or map (serve); and guest firmware gets a copy where it writes an address
    /// to ASLS, so that the VMM has nothing to do with it (copy); it is not read (off).
    #[arg(
        long,
        value_name = "HOW",
        default_value = "serve",
        hide_possible_values = true
    )]
    pub igd_opregion: OpRegionHow,

    /// Intel graphics: the size of stolen memory that the guest reads in GMCH, in that register's coding (0 to 0x10
    /// before generation 8, 0 to 0x40 since, 0xf0 to 0xfe since generation 9).
    #[arg(long, value_name = "N", value_parser = parse_gms)]
    pub igd_gms: Option<u8>,

    /// Put the GPU into this NVIDIA GPUDirect P2P clique (0 to 15): guest drivers then do peer-to-peer DMA between the
    /// GPUs of one clique. Only for GPUs that the host can connect (one root complex, no ACS redirection between them),
    /// and only for boards whose driver supports it: on GeForce boards peers read WRONG DATA without an error.
    #[arg(long, value_name = "N")]
    pub nvidia_gpudirect_clique: Option<Clique>,
}

/// `--igd-opregion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpRegionHow {
    /// Not read.
    Off,
    /// A region for the client.
    Serve,
    /// And a copy for guest firmware.
    Copy,
}

impl From<OpRegionHow> for OpRegionUse {
    fn from(how: OpRegionHow) -> Self {
        match how {
            OpRegionHow::Off => Self::Off,
            OpRegionHow::Serve => Self::Serve,
            OpRegionHow::Copy => Self::Copy,
        }
    }
}

/// A file by the name of `off` can be had as `./off`.
fn parse_rom(text: &str) -> Result<RomView, String> {
    match text {
        "" => Err("expected a file, or off".into()),
        "off" => Ok(RomView::Off),
        path => Ok(RomView::File(path.into())),
    }
}

fn parse_gms(text: &str) -> Result<u8, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u8::from_str_radix(digits, 16),
        None if !text.starts_with('+') => text.parse(),
        _ => return Err("expected a number from 0 to 0xfe".into()),
    };
    match number {
        Ok(gms) if gms < 0xff => Ok(gms),
        _ => Err("expected a number from 0 to 0xfe".into()),
    }
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
            rom: self.rom.clone().unwrap_or_default(),
            igd: IgdView {
                opregion: self.igd_opregion.into(),
                gms: self.igd_gms,
            },
            nvidia_clique: self.nvidia_gpudirect_clique,
        }
    }
}
