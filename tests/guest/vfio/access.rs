// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of what a client of the backend can read and write: the description of the device, config space, BARs.

use std::{error::Error, os::unix::fs::FileExt, process::Command, time::Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use system_tests::pci;

use super::{
    backend::{CONFIG, Device, Launch, SOCKET},
    edu::{self, Registers},
    kernel::OpenDevice,
    pci::Function,
    places,
};
use crate::{Outcome, check_eq, say};

/// The program itself runs here, without a device of the kernel's.
pub fn model() -> Outcome {
    let backend = Launch::with(&["--model"]).attach()?;
    let id = u32::from_le_bytes(backend.config(pci::VENDOR_ID)?);
    check_eq!(id, 0x1111_1234, "the model GPU's ids");
    Ok(())
}

/// `vfio-user-ctl info` of a kernel device reads well; what it says is for people, so only the ids are looked for.
pub fn info() -> Outcome {
    let mut backend = Launch::on(&Function::at(places::EDU)?)?.listen()?;
    drop(backend.connect()?);
    let output = Command::new("/bin/vfio-user-ctl")
        .args(["info", SOCKET])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    say(&text);
    let described = [
        "1234:11e8",
        "driver: vfio-pci",
        "IOMMU group: ",
        "opened by: /dev/vfio/",
        "BAR handoff: auto: ",
        "written pages: ",
    ];
    if !output.status.success() || !described.iter().all(|part| text.contains(part)) {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("vfio-user-ctl: {}, {errors}", output.status).into());
    }
    Ok(())
}

/// How long accesses take through the socket and straight on the kernel's descriptor. Told, not judged.
pub fn speed() -> Outcome {
    let everywhere = sched_getaffinity(None)?;
    // One processor for both sides: waking another one would be most of an emulated round trip.
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one)?;
    let outcome = timings();
    sched_setaffinity(None, &everywhere)?;
    outcome
}

fn timings() -> Outcome {
    const ROUNDS: u32 = 2000;
    let function = Function::at(places::EDU)?;
    function.bind_to_vfio()?;
    let device = OpenDevice::open(&function)?;
    device.write(
        CONFIG,
        u64::from(pci::COMMAND),
        &pci::COMMAND_MEMORY.to_le_bytes(),
    )?;
    let timed = |access: &dyn Fn() -> Outcome| -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        (0..ROUNDS).try_for_each(|_| access())?;
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
    };
    // The region's place is looked up once, as the backend does.
    let offset = |region| -> Result<u64, Box<dyn Error>> {
        Ok(device.region(region)?.ok_or("no such region")?.offset)
    };
    let (config, bar) = (offset(CONFIG)?, offset(0)?);
    let direct = |offset| timed(&|| Ok(device.device.read_exact_at(&mut [0; 4], offset)?));
    let (config_direct, bar_direct) = (direct(config)?, direct(bar)?);
    drop(device);
    let backend = Launch::on(&function)?
        .args(&["--bar-handoff", "none"])
        .attach()?;
    backend.enable(pci::COMMAND_MEMORY)?;
    let config_socket = timed(&|| backend.config::<4>(0).map(drop))?;
    let bar = backend.trapped(0);
    let bar_socket = timed(&|| bar.read32(edu::ID).map(drop))?;
    say(&format!(
        "microseconds for a read of 4 bytes, socket / pread: config space {config_socket:.1} / {config_direct:.1}, \
         BAR {bar_socket:.1} / {bar_direct:.1}"
    ));
    Ok(())
}

/// The backend serves every device of the machine, with the regions that the kernel lists.
pub fn all_devices() -> Outcome {
    for (name, function) in places::all()? {
        function.bind_to_vfio()?;
        let device = OpenDevice::open(&function)?;
        let mut sizes = Vec::new();
        for index in 0..8 {
            sizes.push(device.region(index)?.map_or(0, |region| region.size));
        }
        drop(device);
        let backend = Launch::on(&function)?
            .attach()
            .map_err(|error| format!("{name}: {error}"))?;
        for line in backend.log().lines() {
            say(&format!("{name}: {line}"));
        }
        for (index, size) in (0..8).zip(sizes) {
            // Config space is the backend's own, and a ROM is served only where it can be read.
            if index != 6 && index != CONFIG {
                check_eq!(
                    backend.region(index)?.size,
                    size,
                    "{name}: size of region {index}"
                );
            }
        }
        let id = u32::from_le_bytes(backend.config(pci::VENDOR_ID)?);
        let (vendor, product) = function.ids()?;
        check_eq!(
            id,
            u32::from(product) << 16 | u32::from(vendor),
            "{name}'s ids"
        );
    }
    Ok(())
}

/// A mediated device is served by the path of its folder: a framebuffer that keeps what is written.
pub fn mediated() -> Outcome {
    let uuid = "6d646576-0000-4000-8000-000000000004";
    let function = Function::mediated("mdpy", "mdpy-vga", uuid)?;
    let device = OpenDevice::open(&function)?;
    let size = device.region(0)?.map_or(0, |region| region.size);
    drop(device);
    let path = function.path();
    let backend = Launch::with(&["--device", &path]).attach()?;
    for line in backend.log().lines() {
        say(&format!("mdpy: {line}"));
    }
    check_eq!(backend.region(0)?.size, size, "size of mdpy's BAR0");
    backend.enable(pci::COMMAND_MEMORY)?;
    let framebuffer = backend.trapped(0);
    for (offset, value) in [(0, 0x1234_5678), (0x1000, 0x9abc_def0)] {
        framebuffer.write32(offset, value)?;
        check_eq!(
            framebuffer.read32(offset)?,
            value,
            "framebuffer at {offset:#x}"
        );
    }
    Ok(())
}

/// Config space as a guest uses it: sizing and placing BARs, enabling, read-only ids.
pub fn config_space() -> Outcome {
    let backend = Launch::on(&Function::at(places::EDU)?)?.attach()?;
    backend.set_config32(pci::BAR0, u32::MAX)?;
    let sized = u32::from_le_bytes(backend.config(pci::BAR0)?);
    check_eq!(!(sized & !0xf) + 1, 1 << 20, "size of edu's BAR0");
    backend.set_config32(pci::BAR0, 0xe000_0000)?;
    check_eq!(
        u32::from_le_bytes(backend.config(pci::BAR0)?) & !0xf,
        0xe000_0000,
        "BAR0, placed"
    );
    check_eq!(
        backend.config16(pci::COMMAND)? & pci::COMMAND_MASTER,
        0,
        "bus mastering at first"
    );
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let wanted = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    check_eq!(
        backend.config16(pci::COMMAND)? & wanted,
        wanted,
        "command register, enabled"
    );
    backend.set_config16(pci::VENDOR_ID, 0)?;
    check_eq!(
        backend.config16(pci::VENDOR_ID)?,
        edu::VENDOR,
        "vendor after a write"
    );
    backend.capability(pci::CAP_MSI)?;
    Ok(())
}

/// A BAR by messages: registers answer, and nothing is handed over unasked.
pub fn trapped() -> Outcome {
    let function = Function::at(places::EDU)?;
    let backend = Launch::on(&function)?
        .args(&["--bar-handoff", "none"])
        .attach()?;
    check_eq!(
        backend.region(0)?.mapping.is_none(),
        true,
        "no mapping of a trapped BAR"
    );
    backend.enable(pci::COMMAND_MEMORY)?;
    edu::check_alive(&backend.trapped(0))
}

/// A BAR by the device's descriptor: the mapping and the messages reach the same registers.
pub fn handed_over() -> Outcome {
    let function = Function::at(places::EDU)?;
    let backend = Launch::on(&function)?
        .args(&["--bar-handoff", "device-fd"])
        .attach()?;
    backend.enable(pci::COMMAND_MEMORY)?;
    let mapped = backend.mapped(0)?;
    edu::check_alive(&mapped)?;
    mapped.write32(edu::INVERT, 0x600d_cafe)?;
    check_eq!(
        backend.trapped(0).read32(edu::INVERT)?,
        !0x600d_cafe,
        "what was written through the mapping"
    );

    // Memory behind a root port, with a framebuffer that keeps what is written.
    let display = Function::with_ids(0x1234, 0x1111)?;
    let backend = Launch::on(&display)?
        .args(&["--bar-handoff", "device-fd"])
        .attach()?;
    backend.enable(pci::COMMAND_MEMORY)?;
    let (mapped, trapped) = (backend.mapped(0)?, backend.trapped(0));
    for offset in [0, 0x1000, 0xff_fffc] {
        mapped.write32(offset, 0xfeed_0000)?;
        check_eq!(
            trapped.read32(offset)?,
            0xfeed_0000,
            "framebuffer at {offset:#x}"
        );
        trapped.write32(offset, 0x1234_5678)?;
        check_eq!(
            mapped.read32(offset)?,
            0x1234_5678,
            "framebuffer at {offset:#x}, mapped"
        );
    }
    Ok(())
}
