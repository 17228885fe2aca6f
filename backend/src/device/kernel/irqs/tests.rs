// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel is asked for, for each thing a client and a guest do.

use std::sync::Arc;

use rustix::io::{read, write};

use super::*;
use crate::device::kernel::fake::{Asked, Fake, Script};
use crate::device::kernel::file::Request;

const EVENTFD_TRIGGER: u32 = 4 | 0x20;
const NONE_TRIGGER: u32 = 1 | 0x20;
const NORESIZE: u32 = 9;

fn fake() -> (Arc<Fake>, Irqs) {
    let irqs = [
        (INTX, (7, 1)),
        (MSI, (NORESIZE, 32)),
        (MSIX, (1, 64)),
        (ERR, (NORESIZE, 1)),
        (REQ, (NORESIZE, 1)),
    ];
    let fake = Arc::new(Fake::new(Script {
        irqs: irqs.into(),
        ..Script::default()
    }));
    let irqs = Irqs::new(Vfio::new(Arc::clone(&fake) as _)).unwrap();
    assert_eq!(
        fake.take_asked(),
        [Asked::SetIrqs(REQ, EVENTFD_TRIGGER, 0, 1, vec![true])],
        "REQ is ours from the start"
    );
    (fake, irqs)
}

fn eventfds(count: usize) -> Vec<Option<OwnedFd>> {
    (0..count)
        .map(|_| Some(eventfd(0, EventfdFlags::NONBLOCK).unwrap()))
        .collect()
}

fn arm(irqs: &Irqs, index: u32, start: u32, count: usize) -> Result<(), Errno> {
    irqs.apply(IrqRequest::SetEventfds {
        index,
        start,
        eventfds: eventfds(count),
    })
}

fn set(index: u32, start: u32, fds: &[bool]) -> Asked {
    let count = u32::try_from(fds.len()).unwrap();
    Asked::SetIrqs(index, EVENTFD_TRIGGER, start, count, fds.to_vec())
}

fn off(index: u32) -> Asked {
    Asked::SetIrqs(index, NONE_TRIGGER, 0, 0, vec![])
}

#[test]
fn msix_grows_by_single_vectors() {
    let (fake, irqs) = fake();
    arm(&irqs, MSIX, 0, 2).unwrap();
    arm(&irqs, MSIX, 5, 1).unwrap();
    irqs.apply(IrqRequest::SetEventfds {
        index: MSIX,
        start: 1,
        eventfds: vec![None],
    })
    .unwrap();
    assert_eq!(
        fake.take_asked(),
        [
            set(MSIX, 0, &[true, true]),
            set(MSIX, 5, &[true]),
            set(MSIX, 1, &[false])
        ]
    );
}

#[test]
fn msi_in_pieces_is_armed_as_a_whole() {
    let (fake, irqs) = fake();
    arm(&irqs, MSI, 0, 2).unwrap();
    arm(&irqs, MSI, 2, 2).unwrap();
    arm(&irqs, MSI, 1, 1).unwrap();
    assert_eq!(
        fake.take_asked(),
        [
            set(MSI, 0, &[true; 2]),
            off(MSI),
            set(MSI, 0, &[true; 4]),
            set(MSI, 1, &[true])
        ]
    );
}

#[test]
fn a_set_that_cannot_grow_is_put_back() {
    let (fake, irqs) = fake();
    arm(&irqs, MSI, 0, 2).unwrap();
    {
        // Switching off succeeds, the larger set fails.
        let mut script = fake.script();
        script.pass = 1;
        script.fail = vec![(Request::SetIrqs, Errno::NOMEM)];
    }
    assert_eq!(arm(&irqs, MSI, 2, 1), Err(Errno::NOMEM));
    assert_eq!(
        fake.take_asked(),
        [set(MSI, 0, &[true; 2]), off(MSI), set(MSI, 0, &[true; 2])]
    );
    assert_eq!(irqs.state().reach(MSI, false), 2);
}

#[test]
fn a_refused_vector_is_forgotten() {
    let (fake, irqs) = fake();
    fake.script().fail = vec![(Request::SetIrqs, Errno::NOSPC)];
    assert_eq!(arm(&irqs, MSIX, 0, 2), Err(Errno::NOSPC));
    assert!(!irqs.state().has_eventfd(MSIX) && !irqs.state().is_armed(MSIX));
    irqs.apply(IrqRequest::Disable { index: MSIX }).unwrap();
    assert_eq!(fake.take_asked(), [], "nothing to switch off");
}

#[test]
fn intx_with_mask_unmask_and_resample() {
    let (fake, irqs) = fake();
    let resample = || IrqRequest::UnmaskEventfd {
        eventfd: eventfds(1).pop().unwrap(),
    };
    assert_eq!(irqs.apply(resample()), Err(Errno::INVAL), "not armed yet");
    arm(&irqs, INTX, 0, 1).unwrap();
    irqs.apply(resample()).unwrap();
    let vectors = Vectors::Range { start: 0, count: 1 };
    irqs.apply(IrqRequest::Unmask {
        index: INTX,
        vectors: vectors.clone(),
    })
    .unwrap();
    let flags = Vectors::Flags {
        start: 0,
        flags: vec![true],
    };
    irqs.apply(IrqRequest::Mask {
        index: INTX,
        vectors: flags,
    })
    .unwrap();
    irqs.apply(IrqRequest::Disable { index: INTX }).unwrap();
    assert_eq!(
        fake.take_asked(),
        [
            set(INTX, 0, &[true]),
            Asked::SetIrqs(INTX, 4 | 0x10, 0, 1, vec![true]),
            Asked::SetIrqs(INTX, 1 | 0x10, 0, 1, vec![]),
            Asked::SetIrqs(INTX, 2 | 8, 0, 1, vec![]),
            off(INTX),
        ]
    );
}

#[test]
fn err_and_req_are_forwarded_and_req_comes_back_to_us() {
    let (fake, irqs) = fake();
    arm(&irqs, ERR, 0, 1).unwrap();
    arm(&irqs, REQ, 0, 1).unwrap();
    irqs.release();
    assert_eq!(
        fake.take_asked(),
        [
            set(ERR, 0, &[true]),
            set(REQ, 0, &[true]),
            off(ERR),
            set(REQ, 0, &[true]),
        ]
    );
    assert!(
        irqs.state().target(REQ, 0).is_none(),
        "the last one is ours"
    );
}

fn composed() -> (Arc<Fake>, Irqs, Vec<OwnedFd>) {
    let (fake, irqs) = fake();
    irqs.set_delivery(Delivery::Composed);
    let clients = eventfds(3);
    let ours = clients.iter().flatten().map(|fd| fd.try_clone().unwrap());
    let ours = ours.collect();
    irqs.apply(IrqRequest::SetEventfds {
        index: MSIX,
        start: 0,
        eventfds: clients,
    })
    .unwrap();
    arm(&irqs, MSI, 0, 4).unwrap();
    assert_eq!(fake.take_asked(), [], "the guest has enabled nothing");
    arm(&irqs, INTX, 0, 1).unwrap();
    assert_eq!(fake.take_asked(), [set(INTX, 0, &[true])]);
    (fake, irqs, ours)
}

#[test]
fn the_guest_decides_for_a_client_that_arms_everything() {
    let (fake, irqs, _clients) = composed();
    let msi = IrqConfig {
        msi_vectors: 2,
        ..IrqConfig::default()
    };
    irqs.set_config(msi);
    irqs.set_config(IrqConfig {
        msi_vectors: 4,
        ..msi
    });
    irqs.set_config(IrqConfig {
        msix_enabled: true,
        ..IrqConfig::default()
    });
    irqs.set_config(IrqConfig::default());
    assert_eq!(
        fake.take_asked(),
        [
            off(INTX),
            set(MSI, 0, &[true; 2]),
            off(MSI),
            set(MSI, 0, &[true; 4]),
            off(MSI),
            set(MSIX, 0, &[true; 3]),
            off(MSIX),
            set(INTX, 0, &[true]),
        ]
    );
}

#[test]
fn masked_msix_vectors_are_held_and_passed_on() {
    let (fake, irqs, clients) = composed();
    for vector in 0..3 {
        irqs.set_vector_mask(MSIX, vector, true);
    }
    irqs.set_config(IrqConfig {
        msix_enabled: true,
        ..IrqConfig::default()
    });
    irqs.set_vector_mask(MSIX, 1, false);
    assert_eq!(
        fake.take_asked(),
        [off(INTX), set(MSIX, 0, &[false]), set(MSIX, 1, &[true])],
        "only what the guest unmasks takes a vector of the machine"
    );
    irqs.set_vector_mask(MSIX, 1, true);
    irqs.set_vector_mask(MSIX, 1, true);
    assert_eq!(fake.take_asked(), [set(MSIX, 1, &[true])], "held by us");
    assert!(!irqs.pending(MSIX, 1));
    // The device fires while masked.
    write(&irqs.state().held[&1], &1_u64.to_ne_bytes()).unwrap();
    assert!(irqs.pending(MSIX, 1) && !irqs.pending(MSIX, 0));
    irqs.set_vector_mask(MSIX, 1, false);
    assert!(!irqs.pending(MSIX, 1));
    let mut count = [0; 8];
    read(&clients[1], &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "told once unmasked");
    irqs.release();
    assert!(irqs.state().held.is_empty());
}
