// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of how things end and begin again: resets, unplugging, a client or a backend that dies.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, Read, stdin},
    process::{Command, Stdio},
    thread,
};

use system_tests::pci;
use vfio_user_client::{Access, Client, Options};

use super::{
    backend::{Device, Launch, REQ, SOCKET, chain},
    dma::{map, mastering_edu},
    edu::{self, BUFFER, Direction},
    events::Event,
    memory::SharedMemory,
    pci::Function,
    places::{EDU, IOVA},
};
use crate::{Outcome, check_eq, say};

/// The argument by which this program becomes [`hold_dma`].
pub const HOLD_DMA: &str = "hold-dma";

/// `VFIO_DEVICE_FLAGS_RESET`.
const RESETTABLE: u32 = 1;
/// virtio-gpu's register BAR, and device_status of the common configuration in it (VIRTIO 1.2, 4.1.4.3).
pub const VIRTIO_BAR: u32 = 4;
pub const VIRTIO_STATUS: u64 = 0x14;
/// PCI Express Device Control, from its capability; Initiate Function Level Reset.
pub const DEVICE_CONTROL: u16 = 8;
pub const INITIATE_FLR: u16 = 1 << 15;

/// FLR by config space and reset by message both clear virtio-gpu's registers; edu, which has no reset, claims none.
pub fn resets() -> Outcome {
    let gpu = Function::with_ids(0x1af4, 0x1050)?;
    let backend = Launch::on(&gpu)?.attach()?;
    let flags = backend
        .client()
        .device_info()
        .map_err(|error| chain(&error))?
        .flags;
    check_eq!(flags & RESETTABLE, RESETTABLE, "virtio-gpu's RESET flag");
    let acknowledged = || -> Outcome {
        backend.enable(pci::COMMAND_MEMORY)?;
        let written = backend
            .client()
            .region_write(VIRTIO_BAR, VIRTIO_STATUS, &[1]);
        written.map_err(|error| chain(&error))?;
        check_eq!(status(&backend)?, 1, "device_status, written");
        Ok(())
    };
    acknowledged()?;
    let express = backend.capability(pci::CAP_EXPRESS)?;
    let control = backend.config16(express + DEVICE_CONTROL)?;
    backend.set_config16(express + DEVICE_CONTROL, control | INITIATE_FLR)?;
    backend.enable(pci::COMMAND_MEMORY)?;
    check_eq!(status(&backend)?, 0, "device_status after FLR");

    acknowledged()?;
    backend.client().reset().map_err(|error| chain(&error))?;
    check_eq!(
        backend.config16(pci::COMMAND)? & pci::COMMAND_MEMORY,
        0,
        "memory decode after a reset"
    );
    backend.enable(pci::COMMAND_MEMORY)?;
    check_eq!(status(&backend)?, 0, "device_status after a reset");
    drop(backend);

    let backend = Launch::on(&Function::at(EDU)?)?.attach()?;
    let flags = backend
        .client()
        .device_info()
        .map_err(|error| chain(&error))?
        .flags;
    say(&format!(
        "edu: device flags {flags:#x} (the kernel cannot reset it)"
    ));
    Ok(())
}

/// The kernel takes a device back while a client has it: the client is asked, or told by the end of the connection.
pub fn unplug() -> Outcome {
    // The client does not ask for the request.
    let function = Function::with_ids(0x1002, 0x5046)?;
    let backend = Launch::on(&function)?.attach()?;
    let removed = remove(&function);
    while backend.client().device_info().is_ok() {
        thread::yield_now();
    }
    removed
        .join()
        .map_err(|_| "the removing thread panicked")??;
    drop(backend);
    fs::write("/sys/bus/pci/rescan", "1")?;

    // The client asks for it, and lets go.
    let function = Function::with_ids(0x1002, 0x5046)?;
    let backend = Launch::on(&function)?.attach()?;
    let event = Event::new()?;
    backend
        .client()
        .arm(REQ, 0, &[Some(event.fd())])
        .map_err(|error| chain(&error))?;
    let removed = remove(&function);
    event.wait("device request")?;
    drop(backend);
    removed
        .join()
        .map_err(|_| "the removing thread panicked")??;
    fs::write("/sys/bus/pci/rescan", "1")?;
    Function::with_ids(0x1002, 0x5046)?.bind_to_vfio()
}

/// A client that is killed while the device writes to its memory: the next one finds a quiet device that works.
pub fn client_killed() -> Outcome {
    let mut backend = Launch::on(&Function::at(EDU)?)?.listen()?;
    for round in 0..3 {
        // Before the child, which does not wait for the backend to listen.
        drop(backend.connect()?);
        let mut child = Command::new("/proc/self/exe")
            .args([HOLD_DMA, SOCKET])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
        child.kill()?;
        child.wait()?;
        check_eq!(line.trim(), "started", "the client in round {round}");

        let client = backend.connect()?;
        check_eq!(
            client.config16(pci::COMMAND)? & pci::COMMAND_MASTER,
            0,
            "bus mastering for the next client"
        );
        works(&client)?;
    }
    let status = backend.terminate()?;
    check_eq!(status.code(), Some(0), "exit status after SIGTERM");
    Ok(())
}

/// The client of [`client_killed`], a process of its own: starts a DMA, says so, and waits for its end.
pub fn hold_dma(socket: &str) -> Outcome {
    let client = loop {
        // The backend may not be done with the client before.
        if let Ok(client) = Client::connect(socket, Options::default()) {
            break client;
        }
        thread::yield_now();
    };
    client.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let memory = SharedMemory::new(BUFFER)?;
    map(
        &client,
        IOVA,
        u64::try_from(BUFFER)?,
        Access::ReadWrite,
        &memory,
        0,
    )?;
    edu::start_dma(&client.trapped(0), Direction::ToRam, IOVA)?;
    say("started");
    stdin().read_exact(&mut [0])?;
    Ok(())
}

/// A backend that is killed: the client is told at once, and a new backend serves the device.
pub fn backend_killed() -> Outcome {
    let mut backend = mastering_edu(&[])?;
    let memory = SharedMemory::new(BUFFER)?;
    map(
        &backend,
        IOVA,
        u64::try_from(BUFFER)?,
        Access::ReadWrite,
        &memory,
        0,
    )?;
    edu::start_dma(&backend.trapped(0), Direction::ToRam, IOVA)?;
    backend.kill()?;
    check_eq!(
        backend.client().device_info().is_err(),
        true,
        "a call without a backend fails"
    );
    drop(backend);
    works(&mastering_edu(&[])?)
}

/// The device answers and does DMA both ways.
pub fn works(device: &impl Device) -> Outcome {
    device.enable(pci::COMMAND_MEMORY)?;
    let bar = device.trapped(0);
    edu::check_alive(&bar)?;
    // Nothing can reset edu: a DMA that a client before started goes on, without bus mastering to nowhere.
    edu::wait_idle(&bar)?;
    device.enable(pci::COMMAND_MASTER)?;
    let memory = SharedMemory::new(2 * BUFFER)?;
    let page = u64::try_from(BUFFER)?;
    map(device, IOVA, 2 * page, Access::ReadWrite, &memory, 0)?;
    memory.fill(0, BUFFER, 9);
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    edu::dma(&bar, Direction::ToRam, IOVA + page)?;
    memory.check(BUFFER, BUFFER, 9)?;
    device
        .client()
        .dma_unmap(IOVA, 2 * page)
        .map_err(|error| chain(&error).into())
}

fn status(backend: &impl Device) -> Result<u8, Box<dyn Error>> {
    let mut status = [0];
    let read = backend
        .client()
        .region_read(VIRTIO_BAR, VIRTIO_STATUS, &mut status);
    read.map_err(|error| chain(&error))?;
    Ok(status[0])
}

/// Has the kernel remove the function, which it does when nobody has the device open any more.
fn remove(function: &Function) -> thread::JoinHandle<Result<(), String>> {
    let function = function.clone();
    thread::spawn(move || {
        function
            .write("remove", "1")
            .map_err(|error| error.to_string())
    })
}
