// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VMM does with the library, without a guest: spawn a backend, serve what it asks, list its regions,
//! hand it memory and an eventfd, and be told where interrupts go.
//!
//! `cargo run --example minimal_vmm -- target/release/vfio-user-gpu --model`

use std::env;
use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user_client::protocol::extension::IrqRoute;
use vfio_user_client::{Access, Callbacks, Options, spawn};

/// `VFIO_PCI_MSIX_IRQ_INDEX` of linux/vfio.h.
const MSIX: u32 = 2;

/// Guest memory that has no descriptor, and the interrupt controller.
struct Vmm;

impl Callbacks for Vmm {
    fn dma_read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        println!("The device reads {} bytes at {iova:#x}", data.len());
        data.fill(0);
        Ok(())
    }

    fn irq_routes(&self, index: u32, start: u32, routes: &[IrqRoute]) -> io::Result<()> {
        // Here a VMM calls KVM_SET_GSI_ROUTING.
        println!("Interrupts {index}, vectors from {start}: {routes:x?}");
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut backend = Command::new(arguments.next().ok_or("Which backend?")?);
    backend.args(arguments);
    let options = Options {
        callbacks: Some(Arc::new(Vmm)),
        irq_routes: true,
        ..Options::default()
    };
    let backend = spawn(backend, options)?;
    let client = &backend.client;
    println!("{:?}", client.negotiated());

    for index in 0..client.device_info()?.num_regions.min(16) {
        let region = client.region_info(index)?;
        let mapped = region.map()?;
        println!(
            "Region {index}: {} bytes, {} mapped areas",
            region.size,
            mapped.areas().len()
        );
    }

    let memory = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, 1 << 20)?;
    client.dma_map(0, 1 << 20, Access::ReadWrite, Some((memory.as_fd(), 0)))?;

    let interrupt = eventfd(0, EventfdFlags::CLOEXEC)?;
    client.arm(MSIX, 0, &[Some(interrupt.as_fd())])?;
    client.trigger(MSIX, 0, 1)?;
    println!("The backend ended with {}", backend.finish()?);
    Ok(())
}
