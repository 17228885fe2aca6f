// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The report for programs: numbers as numbers, ids as hexadecimal strings.

use serde_json::{Value, json};

use super::{Interrupt, Migration, Pci, Region, Report};
use crate::pci::BarKind;

/// The whole report as one object.
pub fn render(report: &Report) -> Value {
    let negotiated = &report.negotiated;
    json!({
        "identity": report.pci.as_ref().map(identity),
        "bars": report.pci.as_ref().map(|pci| bars(pci, &report.regions)),
        "capabilities": report.pci.as_ref().map(capabilities),
        "problems": report.pci.as_ref().map(|pci| &pci.problems),
        "regions": report.regions.iter().map(region).collect::<Vec<_>>(),
        "interrupts": report.interrupts.iter().map(interrupt).collect::<Vec<_>>(),
        "reset": report.can_reset,
        "migration": migration(report.migration.as_ref()),
        "backend": negotiated.device,
        "negotiated": {
            "max_data_xfer_size": negotiated.max_data_xfer_size,
            "max_msg_fds": negotiated.max_msg_fds,
            "max_dma_maps": negotiated.max_dma_maps,
            "pgsizes": negotiated.pgsizes,
            "write_multiple": negotiated.write_multiple,
            "twin_socket": negotiated.twin_socket,
            "irq_routes": negotiated.irq_routes,
        },
    })
}

fn migration(migration: Option<&Migration>) -> Value {
    json!({
        "supported": migration.is_some(),
        "flags": migration.map_or(&[][..], |migration| &migration.can),
        "state": migration.map(|migration| &migration.state),
        "stop_copy_bytes": migration.and_then(|migration| migration.size),
    })
}

fn hex(value: u16) -> String {
    format!("{value:04x}")
}

fn identity(pci: &Pci) -> Value {
    let header = &pci.header;
    json!({
        "vendor": hex(header.vendor),
        "device": hex(header.device),
        "subsystem_vendor": hex(header.subsystem_vendor),
        "subsystem": hex(header.subsystem),
        "class": format!("{:06x}", header.class),
        "class_name": header.class_name,
        "revision": header.revision,
        "control": header.control,
        "status": header.status,
        "interrupt_pin": header.pin_letter(),
        "interrupt_line": header.interrupt_line,
    })
}

fn bars(pci: &Pci, regions: &[Region]) -> Vec<Value> {
    let found = pci.header.bars.iter().filter_map(|bar| {
        let region = regions.iter().find(|region| region.index == bar.index)?;
        let (kind, prefetchable) = match bar.kind {
            BarKind::Io => ("io", false),
            BarKind::Memory32 { prefetchable } => ("memory32", prefetchable),
            BarKind::Memory64 { prefetchable } => ("memory64", prefetchable),
        };
        (region.size > 0).then(|| {
            json!({
                "index": bar.index,
                "kind": kind,
                "prefetchable": prefetchable,
                "address": bar.address,
                "size": region.size,
            })
        })
    });
    found.collect()
}

fn capabilities(pci: &Pci) -> Vec<Value> {
    let found = pci.capabilities.iter().map(|capability| {
        json!({
            "offset": capability.entry.offset,
            "id": capability.entry.id,
            "extended": capability.entry.version.is_some(),
            "version": capability.entry.version,
            "title": capability.title,
            "details": capability.details.iter().map(|line| line.trim()).collect::<Vec<_>>(),
        })
    });
    found.collect()
}

fn region(region: &Region) -> Value {
    let areas = region.mappable.iter();
    json!({
        "index": region.index,
        "name": region.name,
        "refused": region.refused,
        "size": region.size,
        "readable": region.readable,
        "writable": region.writable,
        "mappable": areas
            .map(|area| json!({ "offset": area.offset, "size": area.size }))
            .collect::<Vec<_>>(),
        "notes": region.notes,
    })
}

fn interrupt(interrupt: &Interrupt) -> Value {
    json!({
        "index": interrupt.index,
        "name": interrupt.name,
        "count": interrupt.count,
        "flags": interrupt.flags,
    })
}
