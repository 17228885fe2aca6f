// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device over a scripted kernel, alone and behind the composed function.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user_protocol::device::{RegionCapability, SparseArea};
use vfio_user_protocol::feature::{DmaLoggingRange, DmaLoggingReport};

mod quirks;

use super::fake::{Asked, Fake, Logging, PCI, RESET, Script};
use super::*;
use crate::function::Function;
use crate::interrupts::{INTX, MSIX, REQ};
use crate::memory::{
    Access, AddressSpace, Backing, Iommu, IommuError, IommuMap, LoggingError, MapRequest,
};
use crate::migration::Guest;
use crate::pci::{
    Bar, BarOffset, Capability, ConfigSpaceBuilder, Express, GuestView, Identity, MsiX,
};
use crate::server::{Endpoint, ServeOptions, Signals, serve};

const READ_WRITE_MMAP: u32 = 7;
const EXPRESS: u16 = 0x90;

fn config_bytes() -> Vec<u8> {
    let config = ConfigSpaceBuilder::new(Identity {
        vendor_id: 0x1af4,
        device_id: 0x1050,
        class_code: 0x03_8000,
        ..Identity::default()
    })
    .interrupt_pin(1)
    .bar(0, Bar::memory64(0x8000).prefetchable())
    .bar(2, Bar::memory32(0x4000))
    .capability_at(0x40, Capability::PowerManagement)
    .capability_at(
        0x80,
        Capability::MsiX(MsiX {
            vectors: 4,
            table: BarOffset {
                bar: 2,
                offset: 0x1000,
            },
            pba: BarOffset {
                bar: 2,
                offset: 0x2000,
            },
        }),
    )
    .capability_at(EXPRESS, Capability::Express(Express::default()))
    .build()
    .unwrap();
    let mut bytes = config.bytes().to_vec();
    // As firmware left it: decoding and bus mastering on.
    bytes[4] = 6;
    bytes
}

fn rom_bytes() -> Vec<u8> {
    let mut rom = crate::pci::rom::build(&Identity {
        vendor_id: 0x1af4,
        // For another device of the vendor.
        device_id: 0x1051,
        ..Identity::default()
    });
    rom.resize(0x800, 0);
    rom
}

pub(super) fn script() -> Script {
    let mut script = Script {
        flags: PCI | RESET,
        ..Script::default()
    };
    script.regions = [
        (0, (READ_WRITE_MMAP, vec![0xa0; 0x8000], vec![])),
        (
            2,
            (
                READ_WRITE_MMAP,
                vec![0xa2; 0x4000],
                vec![RegionCapability::MsixMappable],
            ),
        ),
        (region::CONFIG, (3, config_bytes(), vec![])),
        (region::ROM, (1, rom_bytes(), vec![])),
    ]
    .into();
    script.irqs = [(INTX, (7, 1)), (MSIX, (1, 4)), (REQ, (9, 1))].into();
    script
}

fn device_with(
    script: Script,
    handoff: BarHandoff,
) -> (Arc<Fake>, Result<KernelDevice, KernelError>) {
    let fake = Arc::new(Fake::new(script));
    let device = KernelDevice::new(open_with(&fake), handoff);
    (fake, device)
}

pub(super) fn open_with(fake: &Arc<Fake>) -> OpenDevice {
    OpenDevice {
        file: Arc::clone(fake) as _,
        group: None,
        name: "0000:01:00.0".into(),
        driver: String::new(),
        origin: Vec::new(),
    }
}

fn device() -> (Arc<Fake>, KernelDevice) {
    let (fake, device) = device_with(script(), BarHandoff::DeviceFd);
    let device = device.unwrap();
    fake.take_asked();
    (fake, device)
}

/// Notes in the fake's diary.
#[derive(Debug)]
struct Diary(Arc<Fake>);

impl Iommu for Diary {
    fn map(&self, _: &IommuMap<'_>) -> Result<(), IommuError> {
        self.0.script().asked.push(Asked::Note("map"));
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), IommuError> {
        self.0.script().asked.push(Asked::Note("unmap"));
        Ok(())
    }
}

fn function() -> (Arc<Fake>, Function) {
    let (fake, device) = device();
    let memory = AddressSpace::with_iommu(Arc::new(Diary(Arc::clone(&fake))), 8);
    let function = Function::new(Arc::new(device), Arc::new(memory), &GuestView::default());
    fake.take_asked();
    (fake, function.unwrap())
}

fn config_write(at: u64, data: &[u8]) -> Asked {
    Asked::Write(region::CONFIG, at, data.to_vec())
}

#[test]
fn a_new_device_is_at_rest() {
    let (fake, device) = device_with(script(), BarHandoff::None);
    let device = device.unwrap();
    assert_eq!(
        fake.take_asked(),
        [
            Asked::SetIrqs(REQ, 0x24, 0, 1, vec![true]),
            config_write(4, &[0, 0]),
            config_write(0x10, &[0; 4]),
            config_write(0x14, &[0; 4]),
            config_write(0x18, &[0; 4]),
            config_write(0x30, &[0; 4]),
        ]
    );
    assert!(!device.config_space().command().memory);
    assert!(device.resettable() && device.mapping(0).unwrap().is_none());
    assert_eq!(device.region(8), Region::default(), "no VGA region");
    assert!(!device.region(region::ROM).writable);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let refused = |script| device_with(script, BarHandoff::None).1.unwrap_err();
    let not_pci = Script {
        flags: RESET,
        ..script()
    };
    assert!(matches!(refused(not_pci), KernelError::NotPci));
    let mut no_config = script();
    no_config.regions.remove(&region::CONFIG);
    assert!(matches!(refused(no_config), KernelError::Config(_)));
    let mut failing = script();
    failing.fail = vec![(Request::GetRegionInfo, Errno::NODEV)];
    let text = refused(failing).to_string();
    assert!(text.starts_with("A region of the device:"), "{text}");
    let dmabuf = device_with(script(), BarHandoff::Dmabuf).1;
    assert!(matches!(dmabuf, Err(KernelError::NoDmaBuf)));
}

#[test]
fn region_information_grows_as_the_kernel_asks() {
    let mut script = script();
    let areas = vec![
        SparseArea {
            offset: 0,
            size: 0x1000
        };
        40
    ];
    let row = script.regions.get_mut(&0).unwrap();
    row.2 = vec![
        RegionCapability::Type {
            region_type: 1,
            subtype: 2,
        },
        RegionCapability::SparseMmap(areas),
    ];
    let (fake, device) = device_with(script, BarHandoff::DeviceFd);
    device.unwrap();
    let argsz = std::mem::take(&mut fake.script().argsz);
    assert_eq!(
        argsz[..2],
        [32, 32 + 16 + 16 + 40 * 16],
        "never more than asked for"
    );
}

#[test]
fn msix_pages_are_not_mapped_though_the_kernel_would() {
    let (_, device) = device();
    assert!(device.mapping(0).unwrap().unwrap().areas.is_none());
    let mapping = device.mapping(2).unwrap().unwrap();
    assert_eq!(mapping.offset, 2 << 40);
    let areas: Vec<_> = mapping
        .areas
        .unwrap()
        .iter()
        .map(|a| (a.offset, a.size))
        .collect();
    assert_eq!(areas, [(0, 0x1000), (0x3000, 0x1000)]);
}

#[test]
fn accesses_are_checked_and_errnos_kept() {
    let (fake, device) = device();
    let mut data = [0; 20];
    device.read(0, 0x7fec, &mut data).unwrap();
    assert_eq!(data, [0xa0; 20], "in several short reads");
    for (region, offset) in [(0, 0x7fed), (0, u64::MAX), (1, 0), (9, 0), (u32::MAX, 0)] {
        let error = device.read(region, offset, &mut data).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "{region} {offset:#x}");
    }
    let error = device.write(region::ROM, 0, &[0]).unwrap_err();
    assert_eq!(error.errno(), Errno::PERM);
    fake.script().regions.remove(&0);
    assert_eq!(
        device.read(0, 0, &mut data).unwrap_err().errno(),
        Errno::INVAL
    );
}

#[test]
fn nothing_is_touched_while_the_function_does_not_decode() {
    let (_fake, function) = function();
    let mut byte = [0];
    let mut read = |region| {
        byte = [0];
        function.read(region, 0, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!(read(0), 0xff);
    function.write(region::CONFIG, 4, &[2, 0]).unwrap();
    function.write(region::CONFIG, 0x44, &[3]).unwrap();
    assert_eq!(read(0), 0xff, "in D3hot");
    function.write(region::CONFIG, 0x44, &[0]).unwrap();
    assert_eq!(read(0), 0xa0);
}

#[test]
fn the_guest_reads_the_device_and_what_is_composed() {
    let (fake, function) = function();
    let mut id = [0; 4];
    function.read(region::CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x50, 0x10]);
    fake.script().regions.get_mut(&region::CONFIG).unwrap().1[8] = 9;
    let mut revision = [0];
    function.read(region::CONFIG, 8, &mut revision).unwrap();
    assert_eq!(revision, [9], "live");
    function.write(region::CONFIG, 0x83, &[0x80]).unwrap();
    fake.script().regions.get_mut(&region::CONFIG).unwrap().1[0x83] = 0;
    let mut control = [0];
    function.read(region::CONFIG, 0x83, &mut control).unwrap();
    assert_eq!(
        control,
        [0x80],
        "vfio-pci ignores the enable bit, the guest must not see that"
    );
    for (offset, length) in [(4095, 2), (u64::MAX, 1)] {
        let mut data = vec![0; length];
        assert!(function.read(region::CONFIG, offset, &mut data).is_err());
        assert!(function.write(region::CONFIG, offset, &data).is_err());
    }
}

#[test]
fn a_guests_flr_is_one_reset_of_ours() {
    let (fake, function) = function();
    let control = u64::from(EXPRESS) + 8;
    function
        .write(region::CONFIG, control, &[0x10, 0xa8])
        .unwrap();
    assert_eq!(
        fake.take_asked(),
        [
            config_write(control, &[0x10, 0x28]),
            Asked::Reset,
            config_write(4, &[0, 0]),
            config_write(0x10, &[0; 4]),
            config_write(0x14, &[0; 4]),
            config_write(0x18, &[0; 4]),
            config_write(0x30, &[0; 4]),
        ],
        "the kernel puts the header back after a reset, and a reset function has none"
    );
    let mut byte = [0];
    function.read(0, 0, &mut byte).unwrap();
    assert_eq!(byte, [0xff], "memory decoding is off");
}

fn arm_msix(function: &Function) -> OwnedFd {
    let client = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let eventfds = vec![Some(client.try_clone().unwrap())];
    let request = IrqRequest::SetEventfds {
        index: MSIX,
        start: 0,
        eventfds,
    };
    function.device().set_irqs(request).unwrap();
    client
}

fn map(function: &Function) {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4096).unwrap();
    let request = MapRequest {
        iova: 0x1000,
        size: 4096,
        access: Access::READ_WRITE,
        backing: Some(Backing { file, offset: 0 }),
    };
    function.memory().map(request).unwrap();
}

#[test]
fn a_client_that_leaves_is_cleaned_up_after_in_order() {
    let (fake, function) = function();
    function.write(region::CONFIG, 4, &[6, 0]).unwrap();
    arm_msix(&function);
    map(&function);
    fake.take_asked();
    function.disconnect(true).unwrap();
    let asked = fake.take_asked();
    assert_eq!(
        asked[..4],
        [
            config_write(4, &[2, 0]),
            Asked::SetIrqs(MSIX, 0x21, 0, 0, vec![]),
            Asked::SetIrqs(REQ, 0x24, 0, 1, vec![true]),
            Asked::Reset,
        ],
        "bus mastering, interrupts, reset"
    );
    assert_eq!(asked.last(), Some(&Asked::Note("unmap")), "then memory");
    assert!(function.memory().is_empty());
}

#[test]
fn a_step_that_fails_does_not_keep_the_others_from_being_taken() {
    let (fake, function) = function();
    arm_msix(&function);
    map(&function);
    fake.take_asked();
    fake.script().fail = vec![(Request::SetIrqs, Errno::IO), (Request::Reset, Errno::IO)];
    let error = function.disconnect(true).unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
    let asked = fake.take_asked();
    assert!(asked.contains(&Asked::Note("unmap")));
    assert!(asked.contains(&config_write(4, &[0, 0])), "{asked:?}");
}

#[test]
fn without_a_reset_the_client_is_told() {
    let script = Script {
        flags: PCI,
        ..script()
    };
    let (_, device) = device_with(script, BarHandoff::None);
    let device = device.unwrap();
    assert!(!device.resettable());
    let error = device.reset(ResetCause::Client).unwrap_err();
    assert_eq!(error.errno(), Errno::NOTTY);
    device.reset(ResetCause::Disconnect).unwrap();
}

#[test]
fn a_device_that_is_wanted_back_is_let_go_of() {
    let (fake, function) = function();
    let function = Arc::new(function);
    let (mut client, server) = UnixStream::pair().unwrap();
    let request = function.device().release_request().unwrap();
    rustix::io::write(request, &1_u64.to_ne_bytes()).unwrap();
    let options = ServeOptions {
        reset_on_disconnect: true,
        allowed_uids: vec![],
    };
    let signals = Signals::catch().unwrap();
    serve(Endpoint::Connected(server), &signals, &function, &options).unwrap();
    assert_eq!(
        client.read(&mut [0; 16]).unwrap(),
        0,
        "the client is told by its leaving"
    );
    assert!(fake.take_asked().contains(&Asked::Reset));
}

#[test]
fn a_config_space_that_is_a_byte_short_is_filled_up() {
    let mut script = script();
    let bytes = &mut script.regions.get_mut(&region::CONFIG).unwrap().1;
    bytes.truncate(255);
    let (fake, device) = device_with(script, BarHandoff::None);
    let function = Function::new(
        Arc::new(device.unwrap()),
        Arc::new(AddressSpace::with_iommu(Arc::new(Diary(fake)), 8)),
        &GuestView::default(),
    );
    let function = function.unwrap();
    assert_eq!(function.region(region::CONFIG).size, 256);
    let mut all = [0xee; 256];
    function.read(region::CONFIG, 0, &mut all).unwrap();
    assert_eq!((all[0], all[255]), (0xf4, 0));
    function.write(region::CONFIG, 252, &[0; 4]).unwrap();
    function.write(region::CONFIG, 255, &[1]).unwrap();
    function.read(region::CONFIG, 255, &mut all[..1]).unwrap();
    assert_eq!(all[0], 0);
}

#[test]
fn a_device_that_is_kept_does_no_dma() {
    let (_fake, function) = function();
    function.write(region::CONFIG, 4, &[6, 0]).unwrap();
    function.disconnect(false).unwrap();
    let mut command = [0; 2];
    function.read(region::CONFIG, 4, &mut command).unwrap();
    assert_eq!(command, [2, 0], "no bus mastering");
}

#[test]
fn a_loaded_config_space_reaches_the_device_with_decoding_last() {
    let (_, source) = function();
    let write = |at: u64, bytes: &[u8]| source.write(region::CONFIG, at, bytes).unwrap();
    write(0x10, &0x8000_0000_u32.to_le_bytes());
    write(u64::from(PCI_COMMAND), &[6, 0]);
    write(0x3c, &[11]);
    let saved = source.save().unwrap();

    let (fake, destination) = function();
    fake.take_asked();
    destination.load(&saved, &|| true).unwrap();
    let writes: Vec<_> = fake
        .take_asked()
        .into_iter()
        .filter_map(|asked| match asked {
            Asked::Write(region::CONFIG, at, bytes) => Some((at, bytes)),
            _ => None,
        })
        .collect();
    let place = |at: u64| {
        let holds =
            |write: &(u64, Vec<u8>)| (write.0..write.0 + write.1.len() as u64).contains(&at);
        writes.iter().position(holds).unwrap()
    };
    assert!(place(0x13) < place(PCI_COMMAND.into()));
    assert!(place(PCI_COMMAND.into()) < place(0x44), "power state last");
    assert_eq!(writes[place(0x3c)].1, [11]);
    assert_eq!(writes[place(PCI_COMMAND.into())].1, [6, 0]);
    assert!(
        !writes.iter().any(|(at, _)| *at == 0 || *at == 8),
        "{writes:?}"
    );
    assert_eq!(destination.save().unwrap(), saved);
}

/// START, a write of the device, an unmap, REPORT, the client's leaving: as the kernel hears of it.
#[test]
fn a_device_that_tracks_itself_is_asked_and_ends_with_its_client() {
    let mut script = script();
    script.logging = Some(Logging {
        max_ranges: 8,
        ..Logging::default()
    });
    let (fake, device) = device_with(script, BarHandoff::None);
    let iommu = Arc::new(Diary(Arc::clone(&fake)));
    let memory = Arc::new(AddressSpace::with_iommu(iommu, 8));
    let function = Function::new(Arc::new(device.unwrap()), memory, &GuestView::default());
    let function = function.unwrap();
    assert!(function.can_log());
    let file: OwnedFd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 0x8000).unwrap();
    let request = MapRequest {
        iova: 0x10_0000,
        size: 0x8000,
        access: Access::READ_WRITE,
        backing: Some(Backing { file, offset: 0 }),
    };
    function.memory().map(request).unwrap();
    fake.take_asked();
    let range = DmaLoggingRange {
        iova: 0,
        length: 1 << 32,
    };
    function.logging_start(0x1000, &[range]).unwrap();
    let written = |at| fake.script().logging.as_mut().unwrap().written.push(at);
    written(0x10_2345);
    let asked = |length, page_size| DmaLoggingReport {
        iova: 0x10_0000,
        length,
        page_size,
    };
    let report = |asked| function.logging_report(&asked).unwrap();
    assert_eq!(report(asked(0x8000, 0x2000)), [0b10]);
    assert_eq!(report(asked(0x8000, 0x1000)), [0]);
    written(0x10_7fff);
    function.memory().unmap(0x10_0000, 0x8000).unwrap();
    assert_eq!(report(asked(0x8000, 0x1000)), [0x80]);
    function.disconnect(false).unwrap();
    assert_eq!(
        function.logging_report(&asked(0x8000, 0x1000)),
        Err(LoggingError::NotStarted)
    );
    let heard = fake.take_asked();
    let start = Asked::LoggingStart(0x1000, vec![(0, 1 << 32)]);
    let of_logging: Vec<_> = heard
        .into_iter()
        .filter(|asked| !matches!(asked, Asked::Write(..) | Asked::SetIrqs(..)))
        .collect();
    assert_eq!(
        of_logging,
        [start, Asked::Note("unmap"), Asked::LoggingStop]
    );
}
