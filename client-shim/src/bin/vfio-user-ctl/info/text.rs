// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The report for people, in the manner of `lspci -vv`.

use std::fmt::Write as _;

use super::{Pci, Region, Report};
use crate::pci::BarKind;
use crate::report::bytes;
use crate::units::size;

/// Writing to a String does not fail.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {{ let _ = writeln!($out, $($text)*); }};
}

/// The whole report, lines ended.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    match &report.pci {
        Some(pci) => device(&mut out, pci, &report.regions),
        None if report.is_pci => line!(out, "PCI device without config space"),
        None => line!(out, "Device that is not PCI"),
    }
    if !report.negotiated.device.is_empty() {
        line!(out, "Backend:");
    }
    for (name, value) in &report.negotiated.device {
        // The server's words: nothing in them may reach the terminal as it is.
        line!(out, "\t{}: {}", name.escape_debug(), value.escape_debug());
    }
    line!(out, "Regions:");
    for region in &report.regions {
        line!(
            out,
            "\t{}: {}: {}",
            region.index,
            region.name,
            access(region)
        );
    }
    line!(out, "Interrupts:");
    for interrupt in &report.interrupts {
        let mut flags = interrupt.flags.join(", ");
        if !flags.is_empty() {
            flags = format!(" ({flags})");
        }
        line!(
            out,
            "\t{}: {}: {}{flags}",
            interrupt.index,
            interrupt.name,
            interrupt.count
        );
    }
    line!(out, "Reset: {}", yes_no(report.can_reset));
    match &report.migration {
        None => line!(out, "Migration: no"),
        Some(migration) => {
            line!(out, "Migration: yes ({})", migration.can.join(", "));
            line!(out, "\tState: {}", migration.state);
            match migration.size {
                Some(bytes) => line!(out, "\tStop-copy: about {}", size(bytes)),
                None => line!(out, "\tStop-copy: size not known"),
            }
        }
    }
    let negotiated = &report.negotiated;
    line!(out, "Negotiated:");
    line!(
        out,
        "\tLargest transfer: {}",
        bytes(negotiated.max_data_xfer_size.into())
    );
    line!(out, "\tDescriptors per message: {}", negotiated.max_msg_fds);
    line!(
        out,
        "\tDMA maps: {}, page sizes: {}",
        negotiated.max_dma_maps,
        page_sizes(negotiated.pgsizes)
    );
    line!(
        out,
        "\tWrite lists: {}, twin socket: {}, interrupt routes: {}",
        yes_no(negotiated.write_multiple),
        yes_no(negotiated.twin_socket),
        yes_no(negotiated.irq_routes)
    );
    let features = negotiated.migration.names();
    let granted = features.iter().filter(|(_, granted)| *granted);
    let granted: Vec<_> = granted.map(|(name, _)| *name).collect();
    if !granted.is_empty() {
        line!(out, "\tOf migration's extensions: {}", granted.join(", "));
    }
    out
}

fn device(out: &mut String, pci: &Pci, regions: &[Region]) {
    let header = &pci.header;
    line!(
        out,
        "{} [{:04x}]: Device {:04x}:{:04x} (rev {:02x}) (prog-if {:02x})",
        header.class_name,
        header.class >> 8,
        header.vendor,
        header.device,
        header.revision,
        header.class & 0xff
    );
    line!(
        out,
        "\tSubsystem: Device {:04x}:{:04x}",
        header.subsystem_vendor,
        header.subsystem
    );
    line!(out, "\tControl: {}", header.control);
    line!(out, "\tStatus: {}", header.status);
    if let Some(pin) = header.pin_letter() {
        line!(
            out,
            "\tInterrupt: pin {pin}, line {}",
            header.interrupt_line
        );
    }
    for bar in &header.bars {
        if let Some(region) = present(regions, bar.index) {
            let kind = match bar.kind {
                BarKind::Io => "I/O ports".to_owned(),
                BarKind::Memory32 { prefetchable } => memory(32, prefetchable),
                BarKind::Memory64 { prefetchable } => memory(64, prefetchable),
            };
            line!(
                out,
                "\tRegion {}: {kind} at {:x} [size={}]{}",
                bar.index,
                bar.address,
                bytes(region.size),
                mappable(region)
            );
        }
    }
    if let Some(region) = present(regions, crate::pci::region::ROM) {
        let disabled = if header.rom & 1 == 0 {
            " [disabled]"
        } else {
            ""
        };
        let address = header.rom & !0x7ff;
        line!(
            out,
            "\tExpansion ROM at {address:x}{disabled} [size={}]",
            bytes(region.size)
        );
    }
    for capability in &pci.capabilities {
        let version = match capability.entry.version {
            Some(version) => format!(" v{version}"),
            None => String::new(),
        };
        let offset = capability.entry.offset;
        line!(
            out,
            "\tCapabilities: [{offset:02x}{version}] {}",
            capability.title
        );
        for detail in &capability.details {
            line!(out, "\t\t{detail}");
        }
    }
    for problem in &pci.problems {
        line!(out, "\tBroken: {problem}");
    }
}

fn present(regions: &[Region], index: u32) -> Option<&Region> {
    regions
        .iter()
        .find(|region| region.index == index && region.size > 0)
}

fn memory(bits: u32, prefetchable: bool) -> String {
    let prefetchable = if prefetchable {
        "prefetchable"
    } else {
        "non-prefetchable"
    };
    format!("Memory ({bits}-bit, {prefetchable})")
}

fn mappable(region: &Region) -> String {
    match region.mappable.as_slice() {
        [] => " trapped".to_owned(),
        [area] if area.offset == 0 && area.size == region.size => " mappable".to_owned(),
        areas => {
            let areas: Vec<_> = areas
                .iter()
                .map(|area| format!("{:#x}+{:#x}", area.offset, area.size))
                .collect();
            format!(" mappable in part: {}", areas.join(" "))
        }
    }
}

fn access(region: &Region) -> String {
    if let Some(refused) = &region.refused {
        return refused.clone();
    }
    if region.size == 0 {
        return "none".to_owned();
    }
    let read = if region.readable { "r" } else { "-" };
    let write = if region.writable { "w" } else { "-" };
    let notes: String = region
        .notes
        .iter()
        .map(|note| format!(", {note}"))
        .collect();
    format!(
        "size={}, {read}{write},{}{notes}",
        bytes(region.size),
        mappable(region)
    )
}

fn page_sizes(sizes: u64) -> String {
    let sizes = (0..u64::BITS)
        .map(|bit| 1 << bit)
        .filter(|size| sizes & size != 0);
    sizes.map(bytes).collect::<Vec<_>>().join(" ")
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
