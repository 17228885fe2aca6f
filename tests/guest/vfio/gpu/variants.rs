// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every type of the module: what it has, that its memory is one memory, its interrupts, Intel's regions.

use std::os::unix::fs::FileExt;

use super::{
    BAR0, BAR2, ID, ID_VALUE, IRQ_RAISE, IRQ_STATUS, SCRATCH, TestGpu, check_errno, enable,
    feature::{self, P2P_FLAG, PRE_COPY_FLAG, STOP_COPY_FLAG},
    region::Region,
    register, set_register,
};
use crate::{
    Outcome, check_eq, say, system,
    vfio::{
        backend::{CONFIG, INTX, MSIX, REQ},
        events::Event,
    },
};

/// Every type, with its `VFIO_MIGRATION_*` flags.
const TYPES: [(&str, u64); 11] = [
    ("none", 0),
    ("stop", STOP_COPY_FLAG),
    ("p2p", STOP_COPY_FLAG | P2P_FLAG),
    ("precopy", STOP_COPY_FLAG | PRE_COPY_FLAG),
    ("full", STOP_COPY_FLAG | P2P_FLAG | PRE_COPY_FLAG),
    ("log", STOP_COPY_FLAG | P2P_FLAG | PRE_COPY_FLAG),
    ("igd", STOP_COPY_FLAG | P2P_FLAG),
    ("v1-trapped", 0),
    ("v1-mapped", 0),
    ("v1-across", 0),
    ("v1-sparse", 0),
];

/// The first device-specific region.
const EXTRA: u32 = 9;
/// `VFIO_REGION_TYPE_PCI_VENDOR_TYPE | 0x8086`.
const INTEL: u32 = 0x8000_8086;

/// Every type opens, and has the migration and the regions that it should.
pub fn variants() -> Outcome {
    for (kind, flags) in TYPES {
        let gpu = TestGpu::new(kind)?;
        let device = gpu.open()?;
        let info = device.info()?;
        check_eq!(info.flags, 3, "{kind}: PCI, with reset");
        match feature::migration_flags(&device.device) {
            Ok(seen) => check_eq!(seen, flags, "{kind}: migration flags"),
            Err(error) => {
                check_eq!(flags, 0, "{kind}: {error}");
                check_eq!(
                    error.raw_os_error(),
                    Some(libc::ENOTTY),
                    "{kind}: no migration"
                );
            }
        }
        let mut extra = Vec::new();
        for index in EXTRA..info.num_regions {
            let region = Region::new(&device.device, index)?;
            extra.push((region.kind, region.size, region.areas));
        }
        say(&format!(
            "{kind}: migration flags {flags}, device-specific regions {extra:x?}"
        ));
        match kind {
            "igd" => check_eq!(extra.len(), 3, "Intel's regions"),
            _ if kind.starts_with("v1-") => {
                check_eq!(extra.len(), 1, "{kind}: regions");
                check_eq!(extra[0].0, Some((3, 1)), "{kind}: type of the region");
            }
            _ => check_eq!(extra.len(), 0, "{kind}: regions"),
        }
        check_eq!(register(&device, ID)?, ID_VALUE, "{kind}: its id register");
        set_register(&device, SCRATCH, 0x600d_f00d)?;
        device.reset()?;
        let bar = Region::new(&device.device, BAR2)?;
        check_errno(bar.get::<4>(ID), libc::EIO, "a BAR without decoding")?;
        enable(&device)?;
        check_eq!(
            register(&device, SCRATCH)?,
            0,
            "{kind}: scratch after reset"
        );
        check_eq!(gpu.get("resets")?, 1, "{kind}: resets");
    }
    one_memory()
}

/// What is written through mappings and by message is the same memory; what is between cannot be mapped.
fn one_memory() -> Outcome {
    let device = TestGpu::new("none")?.open()?;
    let (trapped, mut mapped) = (
        Region::new(&device.device, BAR0)?,
        Region::new(&device.device, BAR0)?,
    );
    mapped.map()?;
    check_eq!(mapped.areas.len(), 2, "areas of BAR0");
    let gap = mapped.areas[0].1;
    for offset in [
        0,
        gap - 8,
        gap,
        gap + 0x8000,
        mapped.areas[1].0,
        mapped.size - 16,
    ] {
        let bytes: Vec<u8> = (0..16)
            .map(|index| offset.to_le_bytes()[1] ^ index)
            .collect();
        mapped.write(offset, &bytes)?;
        check_eq!(
            trapped.read(offset, 16)?,
            bytes,
            "VRAM at {offset:#x}, written mapped"
        );
        trapped.write(offset, &[0x5a; 16])?;
        check_eq!(
            mapped.read(offset, 16)?,
            [0x5a; 16],
            "VRAM at {offset:#x}, read mapped"
        );
    }
    for (start, size) in [(gap, 0x1000), (gap - 0x1000, 0x2000), (0, mapped.size)] {
        check_eq!(
            mapped.refuses_to_map(start, size),
            true,
            "a map of {size:#x} at {start:#x}"
        );
    }
    let registers = Region::new(&device.device, BAR2)?;
    check_eq!(
        registers.refuses_to_map(0, 0x1000),
        true,
        "a map of the registers"
    );
    Ok(())
}

/// Four vectors, INTx that is masked by its arrival, and the kernel's wish to have the device back.
pub fn interrupts() -> Outcome {
    let gpu = TestGpu::new("none")?;
    let device = gpu.open()?;
    let intx = Event::new()?;
    device.arm(INTX, 0, &[&intx])?;
    set_register(&device, IRQ_RAISE, 0)?;
    check_eq!(intx.wait("INTx")?, 1, "INTx");
    check_eq!(register(&device, IRQ_STATUS)?, 1, "INTx is pending");
    set_register(&device, IRQ_RAISE, 0)?;
    check_eq!(intx.count(), 0, "INTx while it is masked");
    device.unmask(INTX)?;
    check_eq!(intx.wait("INTx")?, 1, "INTx, unmasked while it is pending");
    set_register(&device, IRQ_STATUS, 1)?;
    device.unmask(INTX)?;
    check_eq!(intx.count(), 0, "INTx without a cause");
    device.disable(INTX)?;

    let events = [Event::new()?, Event::new()?, Event::new()?, Event::new()?];
    device.arm(MSIX, 0, &events.each_ref())?;
    for (vector, event) in events.iter().enumerate() {
        set_register(&device, IRQ_RAISE, u32::try_from(vector)?)?;
        check_eq!(event.wait("MSI-X")?, 1, "vector {vector}");
        gpu.set("raise", i64::try_from(vector)?)?;
        check_eq!(event.wait("MSI-X")?, 1, "vector {vector}, by the knob");
    }
    check_eq!(
        events.iter().map(Event::count).sum::<u64>(),
        0,
        "other vectors"
    );
    device.disable(MSIX)?;
    device.arm(MSIX, 0, &[&events[0]])?;
    if device.arm(MSIX, 1, &[&events[1]]).is_ok() {
        return Err("MSI-X grew, in spite of NORESIZE".into());
    }
    device.arm(REQ, 0, &[&events[2]])
}

/// The regions of an Intel GPU: the OpRegion and two config spaces, read-only.
pub fn igd() -> Outcome {
    let device = TestGpu::new("igd")?.open()?;
    check_eq!(
        device.read(CONFIG, 0)?,
        [0x86, 0x80, 0x92, 0x3e],
        "Intel's ids"
    );
    check_eq!(device.read(CONFIG, 0x0a)?, [0x00, 0x03], "VGA class");
    let asls = u32::from_le_bytes(device.read(CONFIG, 0xfc)?);
    check_eq!(asls, 0x7a5e_0018, "the host's address in ASLS");
    for (index, (subtype, size)) in (EXTRA..).zip([(1, 0x3800), (2, 256), (3, 256)]) {
        let region = Region::new(&device.device, index)?;
        check_eq!(
            region.kind,
            Some((INTEL, subtype)),
            "type of region {index}"
        );
        check_eq!(region.size, size, "size of region {index}");
        check_eq!(region.flags & 3, 1, "region {index} is read-only");
        check_errno(region.put(0, &[0; 4]), libc::EINVAL, "writing it")?;
    }
    let opregion = Region::new(&device.device, EXTRA)?;
    let bytes = opregion.read(0, opregion.size)?;
    check_eq!(
        &bytes[..16],
        b"IntelGraphicsMem",
        "the OpRegion's signature"
    );
    check_eq!(&bytes[0x2000..0x2004], b"$VBT", "what follows it");
    // A read past the end is cut to what there is.
    let info = device.region(EXTRA)?.ok_or("no OpRegion")?;
    let length = device
        .device
        .read_at(&mut [0; 64], info.offset + info.size - 16)?;
    check_eq!(length, 16, "bytes at the end of the OpRegion");
    let bridges = [(EXTRA + 1, 0x0600), (EXTRA + 2, 0x0601)];
    for (index, class) in bridges {
        let region = Region::new(&device.device, index)?;
        check_eq!(
            u16::from_le_bytes(region.get(0)?),
            0x8086,
            "vendor of bridge {index}"
        );
        check_eq!(
            u16::from_le_bytes(region.get(0x0a)?),
            class,
            "class of bridge {index}"
        );
    }
    Ok(())
}

/// Devices go as they came, and the kernel had nothing to complain about in all the checks before.
pub fn quiet() -> Outcome {
    let gpu = TestGpu::new("log")?;
    drop(gpu.open()?);
    gpu.function.write("remove", "1")?;
    check_eq!(gpu.get("state").is_err(), true, "the device is gone");
    let log = system::kernel_log();
    for complaint in ["WARNING:", "BUG:", "Call Trace:", "refcount_t"] {
        check_eq!(
            log.contains(complaint),
            false,
            "{complaint} in the kernel's log"
        );
    }
    Ok(())
}
