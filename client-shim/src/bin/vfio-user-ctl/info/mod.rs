// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `info`: what a server says of its device.
//!
//! This file gathers; `text` and `json` print the same facts.

mod json;
mod text;

use vfio_user_client::protocol::device::{DEVICE_PCI, DEVICE_RESET, RegionCapability, SparseArea};
use vfio_user_client::protocol::feature;
use vfio_user_client::protocol::irq::{
    INFO_AUTOMASKED, INFO_EVENTFD, INFO_MASKABLE, INFO_NORESIZE,
};
use vfio_user_client::{Client, Error, Negotiated, RegionInfo};

use crate::args::Target;
use crate::pci::{self, Capability, ConfigSpace, Header, region};
use crate::report::Failure;

/// More indexes than this no device has; the number comes from the server.
const MAX_INDEXES: u32 = 64;
/// The largest config space there is, in bytes.
const CONFIG_SPACE: u64 = 4096;

/// Migration flags (`VFIO_MIGRATION_*`, linux/vfio.h) and their names.
const MIGRATION_FLAGS: [(u64, &str); 3] = [(1, "stop-copy"), (2, "p2p"), (4, "pre-copy")];

/// All that is shown.
#[derive(Debug)]
struct Report {
    negotiated: Negotiated,
    is_pci: bool,
    can_reset: bool,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
    /// Names of what migration can do; `None` where the device does not migrate.
    migration: Option<Vec<&'static str>>,
    pci: Option<Pci>,
}

#[derive(Debug)]
struct Region {
    index: u32,
    name: String,
    /// Why the server refused to tell.
    refused: Option<String>,
    size: u64,
    readable: bool,
    writable: bool,
    mappable: Vec<SparseArea>,
    /// What else the server says of it.
    notes: Vec<String>,
}

#[derive(Debug)]
struct Interrupt {
    index: u32,
    name: String,
    count: u32,
    /// Names of its flags.
    flags: Vec<&'static str>,
}

#[derive(Debug)]
struct Pci {
    header: Header,
    capabilities: Vec<Capability>,
    problems: Vec<String>,
}

/// Attaches, looks, and says what it saw.
pub fn run(target: &Target) -> Result<String, Failure> {
    let client = target.connect()?;
    let report = gather(&client)?;
    if target.json {
        return Ok(crate::report::json(&json::render(&report)));
    }
    Ok(text::render(&report))
}

fn gather(client: &Client) -> Result<Report, Error> {
    let device = client.device_info()?;
    let is_pci = device.flags & DEVICE_PCI != 0;
    let indexes = 0..device.num_regions.min(MAX_INDEXES);
    let regions: Vec<_> = indexes
        .map(|index| gather_region(client, index, is_pci))
        .collect::<Result<_, _>>()?;
    let indexes = 0..device.num_irqs.min(MAX_INDEXES);
    let interrupts = indexes
        .map(|index| gather_interrupt(client, index, is_pci))
        .collect::<Result<_, _>>()?;
    let pci = match regions.iter().find(|region| region.index == region::CONFIG) {
        Some(config) if is_pci => Some(gather_pci(client, config.size)?),
        _ => None,
    };
    Ok(Report {
        negotiated: client.negotiated().clone(),
        is_pci,
        can_reset: device.flags & DEVICE_RESET != 0,
        regions,
        interrupts,
        migration: gather_migration(client)?,
        pci,
    })
}

fn gather_region(client: &Client, index: u32, is_pci: bool) -> Result<Region, Error> {
    let name = if is_pci { region_name(index) } else { None };
    let mut region = Region {
        index,
        name: name.unwrap_or_else(|| format!("Region {index}")),
        refused: None,
        size: 0,
        readable: false,
        writable: false,
        mappable: Vec::new(),
        notes: Vec::new(),
    };
    match client.region_info(index) {
        Ok(info) => {
            region.size = info.size;
            region.readable = info.readable;
            region.writable = info.writable;
            region.mappable = info.mappable_areas();
            region.notes = notes(&info);
        }
        Err(error @ Error::Peer { .. }) => region.refused = Some(error.to_string()),
        Err(error) => return Err(error),
    }
    Ok(region)
}

fn notes(info: &RegionInfo) -> Vec<String> {
    let note = |capability: &RegionCapability| match capability {
        RegionCapability::SparseMmap(_) => None,
        RegionCapability::Type {
            region_type,
            subtype,
        } => Some(format!("type {region_type:#x} subtype {subtype:#x}")),
        RegionCapability::MsixMappable => Some("MSI-X table mappable".to_owned()),
        RegionCapability::Unknown(id) => Some(format!("capability {id}")),
    };
    info.capabilities.iter().filter_map(note).collect()
}

fn gather_interrupt(client: &Client, index: u32, is_pci: bool) -> Result<Interrupt, Error> {
    let (count, flags) = match client.irq_info(index) {
        Ok(info) => (info.count, info.flags),
        // Some servers refuse the indexes their device has nothing at.
        Err(Error::Peer { .. }) => (0, 0),
        Err(error) => return Err(error),
    };
    let names = [
        (INFO_EVENTFD, "eventfd"),
        (INFO_MASKABLE, "maskable"),
        (INFO_AUTOMASKED, "automasked"),
        (INFO_NORESIZE, "noresize"),
    ];
    let name = if is_pci { irq_name(index) } else { None };
    Ok(Interrupt {
        index,
        name: name.map_or_else(|| format!("Interrupt {index}"), str::to_owned),
        count,
        flags: names
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, name)| *name)
            .collect(),
    })
}

fn gather_pci(client: &Client, size: u64) -> Result<Pci, Error> {
    let mut bytes = vec![0; usize::try_from(size.min(CONFIG_SPACE)).unwrap_or(0)];
    client.region_read(region::CONFIG, 0, &mut bytes)?;
    let space = ConfigSpace::new(bytes);
    let (capabilities, problems) = pci::capabilities(&space);
    Ok(Pci {
        header: Header::decode(&space),
        capabilities,
        problems,
    })
}

fn gather_migration(client: &Client) -> Result<Option<Vec<&'static str>>, Error> {
    let data = match client.feature_probe(feature::MIGRATION, feature::GET)? {
        false => return Ok(None),
        true => match client.feature_get(feature::MIGRATION, &[]) {
            Ok(data) => data,
            Err(Error::Peer { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    let flags = data
        .first_chunk()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let names = MIGRATION_FLAGS.iter().filter(|(bit, _)| flags & bit != 0);
    Ok(Some(names.map(|(_, name)| *name).collect()))
}

fn region_name(index: u32) -> Option<String> {
    match index {
        0..6 => Some(format!("BAR {}", index - region::BAR0)),
        region::ROM => Some("Expansion ROM".to_owned()),
        region::CONFIG => Some("Config space".to_owned()),
        region::VGA => Some("VGA".to_owned()),
        _ => None,
    }
}

/// `VFIO_PCI_*_IRQ_INDEX`, linux/vfio.h.
fn irq_name(index: u32) -> Option<&'static str> {
    let names = ["INTx", "MSI", "MSI-X", "Error", "Request"];
    usize::try_from(index)
        .ok()
        .and_then(|index| names.get(index))
        .copied()
}
