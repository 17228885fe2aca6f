// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes the function: what the guest shall see, the quirks of the device, and what they need of it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use log::warn;

use super::rom::{self, ShadowError};
use super::{Function, State, probe};
use crate::device::{Device, region};
use crate::interrupts::{Delivery, MSI, MSIX};
use crate::memory::AddressSpace;
use crate::migration::Migration;
use crate::pci::registers::PCI_CAP_ID_MSI;
use crate::pci::{BarKind, ConfigSpace, GuestView, Identity, MsixTable, ViewError};
use crate::quirks::igd::{self, IgdError};
use crate::quirks::{Quirks, Traits};
use crate::routes::Routes;

/// Why a device cannot be shown as the operator wants it.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// Its config space.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Intel graphics.
    #[error(transparent)]
    Igd(#[from] IgdError),
    /// Its expansion ROM.
    #[error(transparent)]
    Rom(#[from] ShadowError),
}

impl Function {
    /// Composes a function from the device's own config space, as `view` shows it.
    ///
    /// # Errors
    /// The device cannot be shown so.
    pub fn new(
        device: Arc<dyn Device>,
        memory: Arc<AddressSpace>,
        view: &GuestView,
    ) -> Result<Self, ComposeError> {
        let config = device.config_space();
        let own = config.identity();
        let mut config = view.apply(config)?;
        for fault in config.list_faults().into_iter().flatten() {
            warn!(
                "The device's capability list is broken, and shown as far as it makes sense: {fault}"
            );
        }
        let mut traits = traits(&*device, own, &config);
        traits.ids_at = probe::mirrors(&*device, config.is_live(), &traits);
        let igd = igd::compose(&view.igd, &traits, &*device, &mut config)?;
        let rom = rom::compose(&view.rom, &*device, &mut config)?;
        let quirks = Quirks::find(&traits, igd.quirks);
        for index in 0..region::COUNT {
            let trapped: Vec<Range<u64>> = quirks.trapped(index).collect();
            if !trapped.is_empty() {
                device.trap(index, &trapped);
            }
        }
        let msix = config
            .msix()
            .map(|msix| (msix, MsixTable::new(msix.table_size)));
        let msi_vectors = device.irq(MSI).count;
        let msix_vectors = msix.as_ref().map_or(0, |(_, table)| table.vectors());
        let routes = Routes::new(&[(MSI, msi_vectors), (MSIX, msix_vectors)]);
        let state = Mutex::new(State {
            config,
            msix,
            delivery: Delivery::default(),
            routes,
            quirks,
            doorbells: Vec::new(),
        });
        Ok(Self {
            migration: Migration::new(Arc::clone(&device)),
            device,
            memory,
            view: view.clone(),
            specific: igd.regions,
            rom,
            state,
        })
    }
}

/// What decides which quirks there are.
fn traits(device: &dyn Device, own: Identity, config: &ConfigSpace) -> Traits {
    let mut traits = Traits {
        own,
        shown: config.identity(),
        sizes: [0; region::COUNT as usize],
        wide: [false; 6],
        io: [false; 6],
        config_size: config.bytes().len() as u64,
        msi: None,
        ids_at: Vec::new(),
    };
    for (index, size) in (0..).zip(&mut traits.sizes) {
        *size = device.region(index).size;
    }
    for (index, state) in config.bars() {
        let index = usize::from(index);
        let kind = state.bar.kind;
        if let (Some(wide), Some(io)) = (traits.wide.get_mut(index), traits.io.get_mut(index)) {
            *wide = kind == BarKind::Memory64;
            *io = kind == BarKind::Io;
        }
    }
    let mut capabilities = config.capabilities();
    let msi = capabilities.find(|(id, _)| *id == PCI_CAP_ID_MSI);
    traits.msi = msi.map(|(_, at)| at.into());
    traits
}
