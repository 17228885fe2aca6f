// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `irq_routes`: a client that only forwards learns where the guest wants its interrupts, before the guest's write is
//! answered.

use std::{collections::BTreeMap, os::fd::AsFd};

use system_tests::{
    backend::Backend,
    eventfd::Eventfd,
    model_gpu::{
        MSIX_PBA, MSIX_TABLE,
        engine::{INT_ENABLE, INT_RAISE},
    },
    pci,
    raw_client::{RawClient, access},
};
use vfio_user_protocol::{
    Command, Header, Request,
    extension::{IrqRoute, IrqRoutes, ROUTE_ENABLED, ROUTE_MASKED},
};
use zerocopy::IntoBytes;

use crate::{CONFIG, ENGINE, attach, capability, offer};

const MSI: u32 = 1;
const MSIX: u32 = 2;

/// A client that knows nothing of PCI: it forwards the guest's writes, and sets routes as it is told.
struct Forwarder {
    main: RawClient,
    twin: RawClient,
    routes: BTreeMap<(u32, u32), IrqRoute>,
    eventfds: [Eventfd; 8],
}

impl Forwarder {
    fn attach(backend: &Backend, index: u32) -> Self {
        let (main, twin) = attach(backend, &offer(None, true));
        let mut this = Self {
            main,
            twin,
            routes: BTreeMap::new(),
            eventfds: std::array::from_fn(|_| Eventfd::new()),
        };
        // Once, before the guest has done anything.
        let fds: Vec<_> = this.eventfds.iter().map(AsFd::as_fd).collect();
        let body = [20_u32, 0x24, index, 0, 8].map(u32::to_ne_bytes).concat();
        let armed = this.main.call(Command::DeviceSetIrqs, &body, &fds);
        assert!(armed.is_ok(), "SET_IRQS");
        this
    }

    /// Notes the next routes, and answers.
    fn take_routes(&mut self) -> Header {
        let request = self.twin.receive().expect("routes");
        assert_eq!(request.header.command, u16::from(Command::IrqRoutes));
        let (fixed, routes) = IrqRoutes::decode(&request.body).expect("routes");
        for (vector, route) in (fixed.start..).zip(routes) {
            self.routes.insert((fixed.index, vector), route);
        }
        request.header
    }

    fn note(&mut self) {
        let header = self.take_routes();
        self.twin.send(header.reply(0).as_bytes(), &[]);
    }

    /// Forwards a write of the guest that changes `changes` runs of routes: each is told of, and the write is answered
    /// only after the answer.
    fn forward(&mut self, region: u32, offset: u64, data: &[u8], changes: usize) {
        let access = access(region, offset, data.len());
        let body = Request::RegionWrite(access, data).encode();
        let message = self.main.message(Command::RegionWrite, 0, &body);
        self.main.send(&message, &[]);
        for _ in 0..changes {
            let header = self.take_routes();
            // While this is unanswered, so is the write. (A backend that answered too early might be late to do so;
            // then this passes by luck, but it never fails by bad luck.)
            assert!(self.main.is_silent(), "answered before the route was taken");
            self.twin.send(header.reply(0).as_bytes(), &[]);
        }
        assert!(self.main.answer_to(&message).is_ok());
        assert!(self.twin.is_silent(), "a route that was not expected");
    }

    fn route(&self, index: u32, vector: u32) -> (u64, u32, u32) {
        let route = self.routes.get(&(index, vector)).copied();
        let route = route.unwrap_or_default();
        (route.address, route.data, route.flags)
    }

    fn counts(&self) -> [u64; 8] {
        self.eventfds.each_ref().map(Eventfd::count)
    }

    fn pending(&mut self) -> u64 {
        u64::from_le_bytes(self.main.read(ENGINE, MSIX_PBA))
    }
}

const NO_COUNTS: [u64; 8] = [0; 8];

fn only(vector: usize) -> [u64; 8] {
    std::array::from_fn(|other| u64::from(other == vector))
}

/// The bytes of a vector's entry: address, data, and whether it is masked.
fn entry(address: u64, data: u32, masked: bool) -> Vec<u8> {
    let words = (u64::from(masked) << 32) | u64::from(data);
    [address.to_le_bytes(), words.to_le_bytes()].concat()
}

#[test]
fn msix_routes_masks_and_pending_bits() {
    let backend = Backend::start();
    let mut guest = Forwarder::attach(&backend, MSIX);
    let control = capability(&mut guest.main, pci::CAP_MSIX) + 2;
    guest.forward(CONFIG, 4, &[6, 0], 0);
    guest.forward(ENGINE, INT_ENABLE, &[0xff, 0, 0, 0], 0);

    // Not enabled: programming tells nothing, and nothing is delivered.
    let table = |vector: u64| MSIX_TABLE + vector * 16;
    guest.forward(ENGINE, table(2), &entry(0xfee0_1000, 0x42, false), 0);
    guest.forward(ENGINE, INT_RAISE, &[4, 0, 0, 0], 0);
    assert_eq!(guest.counts(), NO_COUNTS);

    // Enabled: all routes, in one run; all but vector 2 are masked, as they come up.
    guest.forward(CONFIG, control, &[0, 0x80], 1);
    let masked = ROUTE_ENABLED | ROUTE_MASKED;
    assert_eq!(guest.routes.len(), 8);
    for vector in 0..8 {
        let expected = match vector {
            2 => (0xfee0_1000, 0x42, ROUTE_ENABLED),
            _ => (0, 0, masked),
        };
        assert_eq!(guest.route(MSIX, vector), expected, "vector {vector}");
    }
    guest.forward(ENGINE, INT_RAISE, &[4, 0, 0, 0], 0);
    assert_eq!(guest.counts(), only(2));

    // A masked vector is held, and its pending bit seen; unmasked, it is delivered, once.
    guest.forward(ENGINE, table(5), &entry(0x1_fee0_2000, 0x55, true), 1);
    assert_eq!(guest.route(MSIX, 5), (0x1_fee0_2000, 0x55, masked));
    guest.forward(ENGINE, INT_RAISE, &[0x20, 0, 0, 0], 0);
    guest.forward(ENGINE, INT_RAISE, &[0x20, 0, 0, 0], 0);
    assert_eq!(guest.counts(), NO_COUNTS);
    assert_eq!(guest.pending(), 1 << 5);
    guest.forward(ENGINE, table(5) + 12, &[0; 4], 1);
    assert_eq!(guest.route(MSIX, 5), (0x1_fee0_2000, 0x55, ROUTE_ENABLED));
    assert_eq!(guest.counts(), only(5));
    assert_eq!(guest.pending(), 0);

    // A change of the address alone; a write that changes nothing.
    guest.forward(ENGINE, table(5), &0xfee0_3000_u32.to_le_bytes(), 1);
    assert_eq!(guest.route(MSIX, 5).0, 0x1_fee0_3000);
    guest.forward(ENGINE, table(5), &0xfee0_3000_u32.to_le_bytes(), 0);

    // The function mask holds all of them, and lets them go.
    guest.forward(CONFIG, control, &[0, 0xc0], 2);
    assert_eq!(guest.route(MSIX, 2).2, masked);
    guest.forward(ENGINE, INT_RAISE, &[0x24, 0, 0, 0], 0);
    assert_eq!(guest.counts(), NO_COUNTS);
    assert_eq!(guest.pending(), 1 << 5 | 1 << 2);
    guest.forward(CONFIG, control, &[0, 0x80], 2);
    let both = std::array::from_fn(|vector| u64::from(vector == 2 || vector == 5));
    assert_eq!(guest.counts(), both);

    // Reset: no routes, and nothing pending.
    let message = guest.main.message(Command::DeviceReset, 0, &[]);
    guest.main.send(&message, &[]);
    guest.note();
    assert!(guest.main.answer_to(&message).is_ok());
    for vector in 0..8 {
        assert_eq!(guest.route(MSIX, vector), (0, 0, 0));
    }
    guest.main.assert_in_step();
}

#[test]
fn msi_routes_by_granted_vectors() {
    let backend = Backend::start();
    let mut guest = Forwarder::attach(&backend, MSI);
    let msi = capability(&mut guest.main, pci::CAP_MSI);
    let control: [u8; 2] = guest.main.read(CONFIG, msi + 2);
    let control = u16::from_le_bytes(control);
    assert_eq!(control & 0x80, 0x80, "64-bit addresses");
    guest.forward(CONFIG, 4, &[6, 0], 0);
    guest.forward(ENGINE, INT_ENABLE, &[0xff, 0, 0, 0], 0);
    guest.forward(CONFIG, msi + 4, &0xfee0_4000_u32.to_le_bytes(), 0);
    guest.forward(CONFIG, msi + 8, &[0; 4], 0);
    guest.forward(CONFIG, msi + 12, &[0x40, 0], 0);
    // Four vectors, enabled.
    let enabled = (2_u16 << 4 | 1).to_le_bytes();
    guest.forward(CONFIG, msi + 2, &enabled, 1);
    for vector in 0..8 {
        let expected = match vector {
            0..4 => (0xfee0_4000, 0x40 + vector, ROUTE_ENABLED),
            _ => (0, 0, 0),
        };
        assert_eq!(guest.route(MSI, vector), expected, "vector {vector}");
    }
    for raised in 0..4 {
        guest.forward(ENGINE, INT_RAISE, &[1 << raised, 0, 0, 0], 0);
        assert_eq!(guest.counts(), only(raised), "vector {raised}");
    }
    if control & 0x100 != 0 {
        // Per-vector masks.
        guest.forward(CONFIG, msi + 16, &[2, 0, 0, 0], 1);
        assert_eq!(guest.route(MSI, 1).2, ROUTE_ENABLED | ROUTE_MASKED);
        guest.forward(ENGINE, INT_RAISE, &[2, 0, 0, 0], 0);
        assert_eq!(guest.counts(), NO_COUNTS);
        assert_eq!(guest.main.read(CONFIG, msi + 20), [2, 0, 0, 0]);
        guest.forward(CONFIG, msi + 16, &[0; 4], 1);
        assert_eq!(guest.counts(), only(1));
        assert_eq!(guest.main.read(CONFIG, msi + 20), [0; 4]);
    }
    guest.forward(CONFIG, msi + 2, &[0, 0], 1);
    assert_eq!(guest.route(MSI, 0), (0, 0, 0));
    guest.forward(ENGINE, INT_RAISE, &[1, 0, 0, 0], 0);
    assert_eq!(guest.counts(), NO_COUNTS);
}

#[test]
fn routes_that_were_kept_are_told_to_the_next_client() {
    let mut backend = Backend::start_with(&[], &["--on-disconnect", "keep"]);
    let mut first = Forwarder::attach(&backend, MSIX);
    let control = capability(&mut first.main, pci::CAP_MSIX) + 2;
    first.forward(CONFIG, 4, &[6, 0], 0);
    first.forward(ENGINE, MSIX_TABLE, &entry(0xfee0_1000, 0x42, false), 0);
    first.forward(CONFIG, control, &[0, 0x80], 1);
    drop(first);

    let (main, twin) = attach(&backend, &offer(None, true));
    let mut second = Forwarder {
        main,
        twin,
        routes: BTreeMap::new(),
        eventfds: std::array::from_fn(|_| Eventfd::new()),
    };
    second.note();
    assert_eq!(second.route(MSIX, 0), (0xfee0_1000, 0x42, ROUTE_ENABLED));
    second.main.assert_in_step();
    drop(second);

    // One that does not answer can be ended like any other.
    let (_main, _twin) = attach(&backend, &offer(None, true));
    assert_eq!(backend.terminate().code(), Some(0));
}
