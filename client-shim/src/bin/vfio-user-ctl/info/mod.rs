// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `info`: what a server says of its device.
//!
//! This file gathers; `text` and `json` print the same facts. `specific` knows device-specific regions by their
//! type.

mod json;
mod specific;
mod text;

use vfio_user_client::protocol::device::{DEVICE_PCI, DEVICE_RESET, RegionCapability, SparseArea};
use vfio_user_client::protocol::irq::{
    INFO_AUTOMASKED, INFO_EVENTFD, INFO_MASKABLE, INFO_NORESIZE,
};
use vfio_user_client::{Client, Error, Negotiated, RegionInfo};

use crate::args::Info;
use crate::pci::{self, Capability, ConfigSpace, Header, region};
use crate::report::Failure;

/// More indexes than this no device has; the number comes from the server.
const MAX_INDEXES: u32 = 64;
/// The largest config space there is, in bytes.
const CONFIG_SPACE: u64 = 4096;

/// All that is shown.
#[derive(Debug)]
struct Report {
    negotiated: Negotiated,
    is_pci: bool,
    can_reset: bool,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
    /// `None` where the device does not migrate.
    migration: Option<Migration>,
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
struct Migration {
    /// Names of what it can do.
    can: Vec<&'static str>,
    /// The state, or why the server does not tell.
    state: String,
    /// About how many bytes a stop-copy gives.
    size: Option<u64>,
}

#[derive(Debug)]
struct Pci {
    header: Header,
    capabilities: Vec<Capability>,
    problems: Vec<String>,
}

/// Attaches, looks, and says what it saw.
pub fn run(options: &Info) -> Result<String, Failure> {
    let Info { target, dump } = options;
    // What is misspelt is told before anybody is disturbed.
    let dump = dump.as_deref().map(specific::Dump::parse).transpose()?;
    let client = target.connect()?;
    let report = gather(&client)?;
    if let Some(dump) = dump {
        dump.write(&client)?;
    }
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
            if let Some(known) = specific::name(&info) {
                region.name = known.to_owned();
            }
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

fn gather_migration(client: &Client) -> Result<Option<Migration>, Error> {
    let told = |error| match error {
        error @ Error::Peer { .. } => Ok(error.to_string()),
        error => Err(error),
    };
    let Some(migration) = client.migration()? else {
        return Ok(None);
    };
    let support = migration.support();
    let flags = [
        (true, "stop-copy"),
        (support.p2p, "p2p"),
        (support.pre_copy, "pre-copy"),
    ];
    let can = flags.iter().filter(|(can, _)| *can);
    Ok(Some(Migration {
        can: can.map(|(_, name)| *name).collect(),
        state: match migration.state() {
            Ok(state) => state.to_string(),
            Err(error) => told(error)?,
        },
        size: match migration.stop_copy_size() {
            Ok(size) => size,
            Err(error) => told(error).map(|_| None)?,
        },
    }))
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use vfio_user_client::Options;
    use vfio_user_client::protocol::deframer::Frame;
    use vfio_user_client::protocol::device::{self, DeviceInfo};
    use vfio_user_client::protocol::irq::IrqInfo;
    use vfio_user_client::protocol::transport::split;
    use vfio_user_client::protocol::version::{Capabilities, Version};
    use vfio_user_client::protocol::{Request, header::HEADER_SIZE};
    use zerocopy::IntoBytes;

    use super::*;

    /// A PCI device with one sparse BAR, nothing at the other indexes, and a list that loops.
    fn serve(stream: UnixStream) {
        let (mut receiver, sender) = split(stream, 1 << 20);
        let fd = std::fs::File::open("/dev/zero").unwrap();
        while let Ok(Some(Frame::Message { header, body, .. })) = receiver.receive() {
            let mut fds = Vec::new();
            let reply = match Request::decode(header.command, body).unwrap() {
                Request::Version(..) => Capabilities::default().encode(Version::default()),
                Request::DeviceGetInfo(_) => {
                    let (flags, num_regions, num_irqs) = (DEVICE_PCI, u32::MAX, 1);
                    let argsz = 16;
                    DeviceInfo {
                        argsz,
                        flags,
                        num_regions,
                        num_irqs,
                    }
                    .as_bytes()
                    .to_vec()
                }
                Request::DeviceGetRegionInfo(request) if request.index > 8 => Vec::new(),
                Request::DeviceGetRegionInfo(request) => {
                    let size = match request.index {
                        0 => 0x10000,
                        region::CONFIG => 256,
                        _ => 0,
                    };
                    let mut capabilities = Vec::new();
                    let mut flags = device::REGION_READ;
                    if request.index == 0 {
                        let (offset, size) = (0x1000, 0xf000);
                        capabilities.push(RegionCapability::SparseMmap(vec![SparseArea {
                            offset,
                            size,
                        }]));
                        flags |= device::REGION_MMAP;
                        fds.push(std::os::fd::AsFd::as_fd(&fd));
                    }
                    let info = device::RegionInfo {
                        flags,
                        size,
                        ..request
                    };
                    let mut reply = Vec::new();
                    info.encode(&capabilities, request.argsz, &mut reply);
                    reply
                }
                Request::DeviceGetIrqInfo(request) => {
                    let flags = INFO_EVENTFD | INFO_NORESIZE;
                    IrqInfo {
                        flags,
                        count: 4,
                        ..request
                    }
                    .as_bytes()
                    .to_vec()
                }
                Request::RegionRead(access) => {
                    let mut config = vec![0; 256];
                    config[..4].copy_from_slice(&[0x86, 0x80, 0xad, 0xde]);
                    config[6] = 0x10;
                    config[0x0b] = 3;
                    config[0x34] = 0x40;
                    config[0x40..0x44].copy_from_slice(&[0x11, 0x40, 1, 0]);
                    [access.as_bytes(), &config].concat()
                }
                _ => Vec::new(),
            };
            let answer = if reply.is_empty() {
                header.error_reply(22)
            } else {
                header.reply(reply.len())
            };
            assert!(reply.len() + HEADER_SIZE <= 1 << 20);
            sender.send(&answer, &[&reply], &fds).unwrap();
        }
    }

    fn report() -> Report {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || serve(theirs));
        let client = Client::from_stream(ours, Options::default()).unwrap();
        let report = gather(&client).unwrap();
        drop(client);
        server.join().unwrap();
        report
    }

    #[test]
    fn people_are_told_what_there_is() {
        let text = text::render(&report());
        for line in [
            "VGA compatible controller [0300]: Device 8086:dead (rev 00) (prog-if 00)",
            "\tRegion 0: Memory (32-bit, non-prefetchable) at 0 [size=64K] mappable in part: 0x1000+0xf000",
            "\tCapabilities: [40] MSI-X: Enable- Count=2 Masked-",
            "\tBroken: The capability list loops at 0x40",
            "\t1: BAR 1: none",
            "\t9: Region 9: The server refused DeviceGetRegionInfo: Invalid argument (os error 22)",
            "\t0: INTx: 4 (eventfd, noresize)",
            "Reset: no",
            "Migration: no",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            text.lines().count() < 100,
            "a made-up number of regions is bounded"
        );
    }

    #[test]
    fn programs_are_told_the_same() {
        let object = json::render(&report());
        assert_eq!(object["identity"]["device"], "dead");
        assert_eq!(object["bars"][0]["size"], 0x10000);
        assert_eq!(object["capabilities"][0]["id"], 0x11);
        assert_eq!(object["regions"][0]["mappable"][0]["offset"], 0x1000);
        assert_eq!(object["interrupts"][0]["count"], 4);
        assert_eq!(object["migration"]["supported"], false);
        assert_eq!(object["negotiated"]["max_msg_fds"], 1);
        assert!(object["problems"][0].as_str().unwrap().contains("loops"));
    }
}
