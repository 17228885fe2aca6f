// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The composed function over a device that only remembers what it was told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState;

use super::*;
use crate::device::Region;
use crate::interrupts::{IrqInfo, IrqRequest};
use crate::memory::{Access, CpuAccess, MapRequest};
use crate::migration::{
    DRIVER_DATA, DataStream, Guest, MigrationDriver, ShowP2p, Support, UNKNOWN,
};
use crate::pci::registers::{PCI_COMMAND, PCI_STATUS};
use crate::pci::{Bar, BarOffset, Capability, ConfigSpaceBuilder, Express, Identity, Msi, MsiX};

mod quirks;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Config(IrqConfig),
    Mask(u32, u32, bool),
    Delivery(Delivery),
    Release,
    Reset(ResetCause),
    Routes(u32, u32, Vec<IrqRoute>),
}

#[derive(Debug, Default)]
struct Log(Mutex<Vec<Event>>);

impl Log {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl RouteSink for Log {
    fn routes_changed(&self, index: u32, start: u32, routes: &[IrqRoute]) {
        self.push(Event::Routes(index, start, routes.to_vec()));
    }
}

#[derive(Debug, Default)]
struct Recorder {
    log: Arc<Log>,
    pending: Mutex<Vec<u32>>,
    mover: Mover,
    reset_fails: AtomicBool,
}

/// Goes to whatever state it is told.
#[derive(Debug)]
struct Mover(Mutex<MigrationState>);

impl Default for Mover {
    fn default() -> Self {
        Self(Mutex::new(MigrationState::Running))
    }
}

impl MigrationDriver for Mover {
    fn support(&self) -> Support {
        Support::default()
    }

    fn data_version(&self) -> String {
        String::new()
    }

    fn state(&self) -> Result<MigrationState, Errno> {
        Ok(*self.0.lock().unwrap())
    }

    fn set_state(&self, next: MigrationState) -> Result<Option<Box<dyn DataStream>>, Errno> {
        *self.0.lock().unwrap() = next;
        Ok(None)
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        Err(Errno::NOTTY)
    }
}

const MSIX_CONTROL: u64 = 0x40 + 2;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;

impl Device for Recorder {
    fn name(&self) -> String {
        "recorder".into()
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpaceBuilder::new(Identity::default())
            .interrupt_pin(1)
            .bar(1, Bar::io(0x20))
            .bar(4, Bar::memory32(0x4000))
            .capability_at(
                0x40,
                Capability::MsiX(MsiX {
                    vectors: 3,
                    table: BarOffset {
                        bar: 4,
                        offset: 0x2000,
                    },
                    pba: BarOffset {
                        bar: 4,
                        offset: 0x3000,
                    },
                }),
            )
            .capability_at(
                0x50,
                Capability::Msi(Msi {
                    vectors: 2,
                    address_64bit: true,
                    per_vector_masking: true,
                }),
            )
            .capability_at(0x80, Capability::Express(Express::default()))
            .build()
            .unwrap()
    }

    fn resettable(&self) -> bool {
        true
    }

    fn region(&self, index: u32) -> Region {
        let size = match index {
            1 => 0x20,
            4 => 0x4000,
            _ => 0,
        };
        Region {
            size,
            readable: true,
            writable: true,
        }
    }

    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.log.push(Event::Read(offset, data.len()));
        data.fill(0xdd);
        Ok(())
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.log.push(Event::Write(offset, data.to_vec()));
        Ok(())
    }

    fn irq(&self, index: u32) -> IrqInfo {
        let count = if index == MSI { 2 } else { 3 };
        IrqInfo {
            count,
            ..IrqInfo::default()
        }
    }

    fn set_irqs(&self, _request: IrqRequest) -> Result<(), Error> {
        Ok(())
    }

    fn set_delivery(&self, delivery: Delivery) {
        self.log.push(Event::Delivery(delivery));
    }

    fn set_irq_config(&self, config: IrqConfig) {
        self.log.push(Event::Config(config));
    }

    fn set_vector_mask(&self, index: u32, vector: u32, masked: bool) {
        self.log.push(Event::Mask(index, vector, masked));
    }

    fn vector_pending(&self, _index: u32, vector: u32) -> bool {
        self.pending.lock().unwrap().contains(&vector)
    }

    fn interrupt_status(&self) -> bool {
        true
    }

    fn migration(&self) -> Option<&dyn MigrationDriver> {
        Some(&self.mover)
    }

    fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        self.log.push(Event::Reset(cause));
        if self.reset_fails.load(Ordering::SeqCst) {
            return Err(Error::Io {
                what: "Reset",
                source: Errno::IO.into(),
            });
        }
        *self.mover.0.lock().unwrap() = MigrationState::Running;
        Ok(())
    }

    fn release_irqs(&self) {
        self.log.push(Event::Release);
    }
}

fn function() -> (Function, Arc<Log>, Arc<Recorder>) {
    let device = Arc::new(Recorder::default());
    let log = Arc::clone(&device.log);
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, 8));
    let function = Function::new(Arc::clone(&device) as _, memory, &GuestView::default());
    (function.unwrap(), log, device)
}

fn enable(function: &Function) {
    function
        .write(region::CONFIG, PCI_COMMAND.into(), &[6, 0])
        .unwrap();
}

fn read<const N: usize>(function: &Function, region: u32, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    function.read(region, offset, &mut data).unwrap();
    data
}

#[test]
fn a_reset_that_fails_opens_no_stopped_device() {
    let (function, _, device) = function();
    enable(&function);
    let stop = MigrationState::Stop.into();
    let stopped = function
        .migration()
        .set_state(stop, ShowP2p(false), &function);
    stopped.unwrap();
    let last = || function.migration().last_state();
    device.reset_fails.store(true, Ordering::SeqCst);
    assert!(function.reset(ResetCause::Client).is_err());
    assert_eq!(last(), MigrationState::Stop);
    device.reset_fails.store(false, Ordering::SeqCst);
    function.reset(ResetCause::Client).unwrap();
    assert_eq!(last(), MigrationState::Running);
}

#[test]
fn bars_answer_only_while_decoded() {
    let (function, log, _) = function();
    assert_eq!(read(&function, 4, 0), [0xff; 4]);
    function.write(4, 0, &[1]).unwrap();
    assert_eq!(log.take(), []);
    enable(&function);
    assert_eq!(read(&function, 4, 0), [0xdd; 4]);
    function.write(4, 8, &[1]).unwrap();
    let config = IrqConfig {
        bus_master: true,
        ..IrqConfig::default()
    };
    assert_eq!(
        log.take(),
        [
            Event::Config(config),
            Event::Read(0, 4),
            Event::Write(8, vec![1])
        ]
    );
}

#[test]
fn ports_and_memory_have_their_own_enable_bits() {
    let (function, ..) = function();
    for (command, ports, memory) in [(0, 0xff, 0xff), (1, 0xdd, 0xff), (2, 0xff, 0xdd)] {
        function
            .write(region::CONFIG, PCI_COMMAND.into(), &[command, 0])
            .unwrap();
        assert_eq!(read(&function, 1, 0), [ports; 4], "command {command}");
        assert_eq!(read(&function, 4, 0), [memory; 4], "command {command}");
    }
}

#[test]
fn ranges_are_checked_here() {
    let (function, log, _) = function();
    enable(&function);
    log.take();
    for (region, offset, length) in [
        (4, 0x3fff, 2),
        (4, u64::MAX, 1),
        (0, 0, 1),
        (8, 0, 1),
        (7, 4096, 1),
    ] {
        let mut data = vec![0; length];
        let read = function.read(region, offset, &mut data);
        assert!(
            matches!(read, Err(Error::OutOfRange { .. })),
            "{region} {offset:#x}"
        );
        let written = function.write(region, offset, &data);
        assert!(
            matches!(written, Err(Error::OutOfRange { .. })),
            "{region} {offset:#x}"
        );
    }
    assert_eq!(log.take(), []);
}

#[test]
fn the_msix_table_and_pending_bits_are_cut_out_of_an_access() {
    let (function, log, device) = function();
    enable(&function);
    log.take();
    *device.pending.lock().unwrap() = vec![0, 2];
    // 16 bytes before the table, its three entries, 16 bytes behind.
    let data: [u8; 16 + 48 + 16] = read(&function, 4, TABLE - 16);
    assert_eq!(data[..16], [0xdd; 16]);
    assert_eq!(data[16..28], [0; 12]);
    assert_eq!(data[28], 1, "masked");
    assert_eq!(data[64..], [0xdd; 16]);
    assert_eq!(
        log.take(),
        [Event::Read(TABLE - 16, 16), Event::Read(TABLE + 48, 16)]
    );

    let data: [u8; 12] = read(&function, 4, PBA);
    assert_eq!(data, [5, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xdd, 0xdd, 0xdd]);
    log.take();

    function.write(4, TABLE - 4, &[7; 12]).unwrap();
    assert_eq!(log.take()[0], Event::Write(TABLE - 4, vec![7; 4]));
    let entry: [u8; 8] = read(&function, 4, TABLE);
    assert_eq!(
        entry,
        [4, 7, 7, 7, 7, 7, 7, 7],
        "the low address bits are fixed"
    );
    function.write(4, PBA, &[0xff; 8]).unwrap();
    assert_eq!(log.take(), [], "read-only, and not the device's");
}

#[test]
fn status_tells_of_intx() {
    let (function, ..) = function();
    let status: [u8; 2] = read(&function, region::CONFIG, PCI_STATUS.into());
    assert_eq!(status[0] & 8, 8);
}

#[test]
fn function_level_reset_through_config_space() {
    let (function, log, _) = function();
    enable(&function);
    log.take();
    function.write(region::CONFIG, 0x88 + 1, &[0x80]).unwrap();
    assert_eq!(
        log.take(),
        [
            Event::Reset(ResetCause::FunctionLevel),
            Event::Config(IrqConfig::default())
        ]
    );
    let command: [u8; 2] = read(&function, region::CONFIG, PCI_COMMAND.into());
    assert_eq!(command, [0, 0]);
}

#[test]
fn routes_follow_the_guest_in_the_right_order() {
    let (function, log, _) = function();
    function.follow_guest_routes(Arc::clone(&log) as _);
    enable(&function);
    let entry = [
        0x04, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 1, 0, 0, 0,
    ];
    function.write(4, TABLE + 16, &entry).unwrap();
    assert!(
        !log.take().iter().any(|e| matches!(e, Event::Routes(..))),
        "not enabled yet"
    );

    function
        .write(region::CONFIG, MSIX_CONTROL + 1, &[0x80])
        .unwrap();
    let events = log.take();
    let masked = routes::enabled(0xfee0_1004, 0x41, true);
    let told = events.iter().find_map(|event| match event {
        Event::Routes(MSIX, 0, routes) => Some(routes[1]),
        _ => None,
    });
    assert_eq!(told, Some(masked));
    let position = |wanted: &Event| events.iter().position(|event| event == wanted).unwrap();
    let config = IrqConfig {
        bus_master: true,
        msix_enabled: true,
        ..IrqConfig::default()
    };
    assert!(position(&Event::Mask(MSIX, 1, true)) < position(&Event::Config(config)));

    function.write(4, TABLE + 16 + 12, &[0; 4]).unwrap();
    let events = log.take();
    let routes = events.iter().position(|event| {
        *event == Event::Routes(MSIX, 1, vec![routes::enabled(0xfee0_1004, 0x41, false)])
    });
    let unmasked = events
        .iter()
        .position(|event| *event == Event::Mask(MSIX, 1, false));
    assert!(routes.unwrap() < unmasked.unwrap(), "{events:?}");
}

#[test]
fn msi_routes_carry_the_vector_in_the_data() {
    let (function, log, _) = function();
    function.follow_guest_routes(Arc::clone(&log) as _);
    enable(&function);
    log.take();
    function
        .write(region::CONFIG, 0x54, &0xfee0_0000_u32.to_le_bytes())
        .unwrap();
    function.write(region::CONFIG, 0x5c, &[0x30, 0]).unwrap();
    function.write(region::CONFIG, 0x52, &[0x11, 0]).unwrap();
    let told = log.take().into_iter().find_map(|event| match event {
        Event::Routes(MSI, 0, routes) => Some(routes),
        _ => None,
    });
    let expected = [0x30, 0x31].map(|data| routes::enabled(0xfee0_0000, data, false));
    assert_eq!(told.as_deref(), Some(&expected[..]));
}

#[test]
fn leaving_takes_interrupts_then_memory_then_resets() {
    let (function, log, _) = function();
    function.follow_guest_routes(Arc::clone(&log) as _);
    enable(&function);
    let access = Access::READ;
    let request = MapRequest {
        iova: 0,
        size: 4096,
        access,
        backing: None,
    };
    function.memory().map(request).unwrap();
    log.take();
    function.disconnect(true).unwrap();
    let events = log.take();
    assert_eq!(
        events[..2],
        [Event::Release, Event::Config(IrqConfig::default())]
    );
    assert!(events.contains(&Event::Reset(ResetCause::Disconnect)));
    assert!(
        !events.iter().any(|e| matches!(e, Event::Routes(..))),
        "nobody listens"
    );
    assert!(function.memory().is_empty());
}

#[test]
fn a_client_may_ask_to_keep_the_device() {
    let (function, log, _) = function();
    enable(&function);
    log.take();
    function.disconnect(false).unwrap();
    assert!(
        !log.take()
            .iter()
            .any(|event| matches!(event, Event::Reset(_)))
    );
    let command: [u8; 1] = read(&function, region::CONFIG, PCI_COMMAND.into());
    assert_eq!(command, [6]);
}

#[test]
fn what_a_guest_set_up_arrives_in_another_function() {
    let (source, ..) = function();
    enable(&source);
    let entry = [
        0x04, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0,
    ];
    source.write(4, TABLE + 16, &entry).unwrap();
    source
        .write(region::CONFIG, MSIX_CONTROL + 1, &[0x80])
        .unwrap();
    source
        .write(region::CONFIG, 0x20, &0xfeb0_0000_u32.to_le_bytes())
        .unwrap();
    let saved = source.save().unwrap();

    let (destination, log, _) = function();
    destination.follow_guest_routes(Arc::clone(&log) as _);
    assert_eq!(destination.identity(), source.identity());
    destination.check(&saved).unwrap();
    destination.load(&saved, &|| true).unwrap();
    assert_eq!(destination.save().unwrap(), saved);
    assert_eq!(read(&destination, 4, TABLE + 16), entry);
    let told = log.take().into_iter().find_map(|event| match event {
        Event::Routes(MSIX, 0, routes) => Some(routes[1]),
        _ => None,
    });
    assert_eq!(told, Some(routes::enabled(0xfee0_1004, 0x41, false)));
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let (function, ..) = function();
    let before = function.save().unwrap();
    for cut in [
        |state: &mut crate::migration::GuestState| state.config.truncate(256),
        |state: &mut crate::migration::GuestState| state.msix_table.clear(),
    ] {
        let mut other = before.clone();
        other.config[4] = 0xff;
        cut(&mut other);
        assert!(function.check(&other).is_err());
        assert!(function.load(&other, &|| true).is_err());
        assert_eq!(function.save().unwrap(), before);
    }
    // What a guest cannot write does not come from elsewhere.
    let mut forged = before.clone();
    forged.config[0..4].fill(0xaa);
    forged.config[8..12].fill(0xaa);
    function.load(&forged, &|| true).unwrap();
    assert_eq!(function.save().unwrap(), before);
}

#[test]
fn a_state_whose_device_was_reset_is_not_taken() {
    let (function, ..) = function();
    let before = function.save().unwrap();
    let mut saved = before.clone();
    saved.config[4] = 6;
    let asked = std::cell::Cell::new(false);
    let undone = || {
        // A reset needs the lock that is held here, so that none comes between the answer and the end.
        asked.set(function.state.try_lock().is_err());
        false
    };
    assert_eq!(function.load(&saved, &undone), Ok(false));
    assert!(asked.get());
    assert_eq!(function.save().unwrap(), before);
    assert_eq!(function.load(&saved, &|| true), Ok(true));
    assert_eq!(function.save().unwrap(), saved);
}

#[test]
fn an_identity_names_what_a_guest_depends_on() {
    let (function, ..) = function();
    let identity = function.identity();
    let text: Vec<_> = identity
        .0
        .iter()
        .map(|(k, v)| format!("{k}: {v}"))
        .collect();
    for expected in [
        "BAR1: 32 bytes of I/O",
        "BAR4: 16384 bytes of memory",
        "MSI-X vectors: 3",
        "config space: 4096 bytes",
        "capabilities: 11@40 05@50 10@80",
    ] {
        assert!(
            text.iter().any(|line| line == expected),
            "{expected}: {text:?}"
        );
    }
    assert!(text.contains(&format!("{DRIVER_DATA}: {UNKNOWN}")));
}
