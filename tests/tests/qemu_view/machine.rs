// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest with several backends, each a GPU of its own.

use std::collections::BTreeMap;

use serde_json::json;
use system_tests::{
    backend::Backend,
    guest::Guest,
    lane,
    view::{self, Seen},
};

/// One GPU: a fixture, the backend's further arguments, and whether it sits in the root complex, as Intel's do.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    pub fixture: &'static str,
    pub arguments: &'static [&'static str],
    pub integrated: bool,
}

/// Starts a backend for each, attaches all to one QEMU, and returns what the guest saw of each, in this order.
#[track_caller]
pub fn seen_by_a_guest(gpus: &[Gpu]) -> Vec<Seen> {
    let mut guest = Guest::new(lane::cloud_kernel())
        .size(384, 1)
        .folder("lspci");
    for (path, source) in view::lspci_files() {
        guest = guest.file(&path, source);
    }
    let mut backends = Vec::new();
    for (number, gpu) in gpus.iter().enumerate() {
        let config = format!("config={}", view::fixture(gpu.fixture).display());
        let backend = Backend::start_with(&[&config], gpu.arguments);
        let mut device = backend.qemu_device();
        device["id"] = json!(format!("gpu{number}"));
        if gpu.integrated {
            device["addr"] = json!(format!("{:#x}", number + 2));
        } else {
            let port = format!("port{number}");
            guest = guest.device(json!({
                "driver": "pcie-root-port", "id": port, "chassis": number + 1,
                "addr": format!("{:#x}", number + 2),
            }));
            device["bus"] = json!(port);
        }
        guest = guest.device(device);
        backends.push(backend);
    }
    let report = guest.boot(&["lspci"]).finish();
    report.assert_ok("lspci");
    for backend in &backends {
        assert!(backend.is_running(), "{}", backend.report());
    }
    in_order(gpus, Seen::in_report(&report))
}

/// Slots were given in order: the integrated ones are on bus 0, the ports' buses are numbered by slot.
#[track_caller]
fn in_order(gpus: &[Gpu], seen: BTreeMap<String, Seen>) -> Vec<Seen> {
    assert_eq!(seen.len(), gpus.len(), "{:?}", seen.keys());
    let (integrated, mut behind_ports): (Vec<_>, Vec<_>) = seen
        .into_iter()
        .partition(|(address, _)| address.starts_with("0000:00:"));
    let mut integrated = integrated.into_iter();
    behind_ports.reverse();
    let next = |gpu: &Gpu| {
        let found = if gpu.integrated {
            integrated.next()
        } else {
            behind_ports.pop()
        };
        found.expect("a device").1
    };
    gpus.iter().map(next).collect()
}
