// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI function as the client sees it: a composed config space and MSI-X table in front of a device.
//!
//! What the guest writes to them is acted upon here, and the device is told only what concerns it.

mod logging;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::debug;
use vfio_user_protocol::extension::IrqRoute;

use crate::device::{Device, Error, ResetCause, region};
use crate::interrupts::{Delivery, IrqConfig, MSI, MSIX};
use crate::memory::AddressSpace;
use crate::migration::Migration;
use crate::pci::{Changes, ConfigSpace, GuestView, MsixState, MsixTable, PowerState};
use crate::quirks::{Context, Handled, Quirks, SpecificRegion};
use crate::report::chain;
use crate::routes::{self, RouteSink, Routes};

pub use compose::ComposeError;
use doorbells::Armed;
pub use regions::Mapped;
pub use rom::ShadowError;
use target::Target;

/// A device, composed.
#[derive(Debug)]
pub struct Function {
    device: Arc<dyn Device>,
    memory: Arc<AddressSpace>,
    migration: Migration,
    /// Behind the regions that every PCI device has.
    specific: Vec<SpecificRegion>,
    /// The expansion ROM; empty for none.
    rom: Vec<u8>,
    view: GuestView,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: ConfigSpace,
    msix: Option<(MsixState, MsixTable)>,
    delivery: Delivery,
    routes: Routes,
    quirks: Quirks,
    doorbells: Armed,
}

impl Function {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device behind.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// The quirks it has, by name.
    #[must_use]
    pub fn quirks(&self) -> Vec<&'static str> {
        self.state().quirks.names().collect()
    }

    /// The guest memory the device reaches.
    #[must_use]
    pub fn memory(&self) -> &AddressSpace {
        &self.memory
    }

    /// The migration of the device.
    #[must_use]
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    /// A client that takes interrupt routes has come: from now on the guest's own tables decide.
    pub fn follow_guest_routes(&self, sink: Arc<dyn RouteSink>) {
        let mut state = self.state();
        state.delivery = Delivery::Composed;
        state.routes.set_sink(Some(sink));
        self.device.set_delivery(Delivery::Composed);
        self.update_interrupts(&mut state);
    }

    /// Reads from a region.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or what the device says.
    pub fn read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        if index == region::CONFIG {
            return self.read_config(offset, data);
        }
        self.check_range(index, offset, data.len())?;
        if let Some(bytes) = self.fixed_bytes(index) {
            let from = usize::try_from(offset).ok();
            let bytes = from.and_then(|from| bytes.get(from..)?.get(..data.len()));
            data.copy_from_slice(bytes.ok_or_else(|| out_of_range(index, offset, data.len()))?);
            return Ok(());
        }
        self.check_open(index)?;
        let mut state = self.state();
        if !state.answers(index) {
            // What a bus answers when nobody claims the address.
            data.fill(0xff);
            return Ok(());
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (length, target) = state.target(index, at, rest.len());
            let (piece, after) = rest.split_at_mut(length);
            self.read_piece(&mut state, target, (index, at), piece)?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn read_piece(
        &self,
        state: &mut State,
        target: Target,
        (index, at): (u32, u64),
        piece: &mut [u8],
    ) -> Result<(), Error> {
        let length = piece.len();
        let out_of_range = |_| out_of_range(index, at, length);
        match (target, &state.msix) {
            (Target::Table(at), Some((_, table))) => table.read(at, piece).map_err(out_of_range),
            (Target::Pending(at), Some((_, table))) => {
                let pending = |vector| self.device.vector_pending(MSIX, vector);
                table.pba_read(at, piece, pending).map_err(out_of_range)
            }
            (Target::Quirk(owner), _) => match state.ask_read(owner, index, at, length) {
                Handled::Device => self.device.read(index, at, piece),
                Handled::Config(at) => self.read_config_locked(state, at, piece),
                Handled::ConfigEdge { skip, at } => {
                    piece.fill(0);
                    match state.config_part((skip, at), length) {
                        Some(part) => self.read_config_locked(state, at, &mut piece[part]),
                        None => Ok(()),
                    }
                }
                Handled::ConfigAndDevice(config) => {
                    self.device.read(index, at, piece)?;
                    self.read_config_locked(state, config, piece)
                }
                Handled::Fixed(byte) => {
                    piece.fill(byte);
                    Ok(())
                }
            },
            _ => self.device.read(index, at, piece),
        }
    }

    /// Writes to a region.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or what the device says.
    pub fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        if index == region::CONFIG {
            return self.write_config(offset, data);
        }
        self.check_range(index, offset, data.len())?;
        if self.fixed_bytes(index).is_some() {
            let what = "written";
            return Err(Error::Denied {
                region: index,
                what,
            });
        }
        self.check_open(index)?;
        let mut state = self.state();
        if !state.answers(index) {
            return Ok(());
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (length, target) = state.target(index, at, rest.len());
            let (piece, after) = rest.split_at(length);
            self.write_piece(&mut state, target, (index, at), piece)?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn write_piece(
        &self,
        state: &mut State,
        target: Target,
        (index, at): (u32, u64),
        piece: &[u8],
    ) -> Result<(), Error> {
        match (target, &mut state.msix) {
            (Target::Table(into), Some((_, table))) => {
                table
                    .write(into, piece)
                    .map_err(|_| out_of_range(index, at, piece.len()))?;
                self.update_interrupts(state);
                Ok(())
            }
            (Target::Pending(_), _) => Ok(()),
            (Target::Quirk(owner), _) => match state.ask_write(owner, index, at, piece) {
                Handled::Device => self.device.write(index, at, piece),
                Handled::Config(at) => self.write_config_locked(state, at, piece),
                Handled::ConfigEdge { skip, at } => {
                    match state.config_part((skip, at), piece.len()) {
                        Some(part) => self.write_config_locked(state, at, &piece[part]),
                        None => Ok(()),
                    }
                }
                Handled::ConfigAndDevice(config) => {
                    self.write_config_locked(state, config, piece)?;
                    self.device.write(index, at, piece)
                }
                Handled::Fixed(_) => Ok(()),
            },
            _ => self.device.write(index, at, piece),
        }
    }

    fn check_range(&self, index: u32, offset: u64, length: usize) -> Result<(), Error> {
        self.region(index).check(index, offset, length)
    }

    /// What is written to a device that was saved would be lost, and what a device is loaded with is not there yet.
    fn check_open(&self, region: u32) -> Result<(), Error> {
        if self.migration.is_closed() {
            return Err(Error::Migrating { region });
        }
        Ok(())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.read_config_locked(&mut self.state(), offset, data)
    }

    fn read_config_locked(
        &self,
        state: &mut State,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Error> {
        state
            .config
            .set_interrupt_status(self.device.interrupt_status());
        if let Some(msi) = state.config.msi() {
            let waits = |vector: &u8| self.device.vector_pending(MSI, (*vector).into());
            let pending = (0..msi.vectors)
                .filter(waits)
                .fold(0, |bits, vector| bits | 1 << vector);
            state.config.set_msi_pending(pending);
        }
        if state.config.is_live() {
            check_end(offset, data.len(), state.config.bytes().len())?;
            self.device.read_config(offset, data)?;
            let length = data.len();
            return state
                .config
                .compose_over(offset, data)
                .map_err(|_| out_of_range(region::CONFIG, offset, length));
        }
        let length = data.len();
        state
            .config
            .read(offset, data)
            .map_err(|_| out_of_range(region::CONFIG, offset, length))
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.write_config_locked(&mut self.state(), offset, data)
    }

    fn write_config_locked(
        &self,
        state: &mut State,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        if state.config.is_live() {
            check_end(offset, data.len(), state.config.bytes().len())?;
            for (at, piece) in state.config.for_device(offset, data) {
                self.device.write_config(at, &piece)?;
            }
        }
        let changes = state
            .config
            .write(offset, data)
            .map_err(|_| out_of_range(region::CONFIG, offset, data.len()))?;
        state.config_written(&self.memory, offset, data.len());
        if changes.flr() {
            return self.reset_locked(state, ResetCause::FunctionLevel);
        }
        if changes.power_state() {
            // Waking up may have reset the function, and the kernel puts back what it sees fit.
            self.refresh(state);
        }
        let interrupts = [
            Changes::COMMAND,
            Changes::POWER_STATE,
            Changes::MSI,
            Changes::MSIX,
        ];
        if interrupts
            .into_iter()
            .any(|change| changes.contains(change))
        {
            self.update_interrupts(state);
        }
        Ok(())
    }

    /// Returns device and composition to the power-on state. Maps and eventfds stay.
    ///
    /// # Errors
    /// What the device says.
    pub fn reset(&self, cause: ResetCause) -> Result<(), Error> {
        self.reset_locked(&mut self.state(), cause)
    }

    fn reset_locked(&self, state: &mut State, cause: ResetCause) -> Result<(), Error> {
        let asked_for = cause == ResetCause::Client;
        let done = self.migration.reset(asked_for, || self.device.reset(cause));
        // The guest sees a reset function even if the device is not: nothing of before must be believed.
        match cause {
            ResetCause::Disconnect => state.config.power_on(),
            ResetCause::Client | ResetCause::FunctionLevel => state.config.reset(),
        }
        if let Some((_, table)) = &mut state.msix {
            table.reset();
        }
        state.quirks.reset();
        self.refresh(state);
        self.update_interrupts(state);
        done
    }

    /// Reads what is the device's own again, after something changed it behind the guest's back.
    fn refresh(&self, state: &mut State) {
        if !state.config.is_live() {
            return;
        }
        let mut bytes = vec![0; state.config.bytes().len()];
        match self.device.read_config(0, &mut bytes) {
            Ok(()) => state.config.refresh(&bytes),
            // A guest can provoke this line; who asked for the change hears of the device's state anyway.
            Err(error) => debug!("Config space not read again: {}", chain(&error)),
        }
    }

    /// Tells device and client what the guest's interrupt registers say now. Vectors are masked before, and
    /// unmasked after the client knows the route: no message leaves by an old one.
    fn update_interrupts(&self, state: &mut State) {
        let config = state.irq_config();
        if state.delivery == Delivery::Armed {
            return self.device.set_irq_config(config);
        }
        let State {
            config: registers,
            msix,
            routes,
            ..
        } = state;
        routes.refresh(|index, vector| route(registers, msix.as_ref(), index, vector));
        let set_masks = |routes: &Routes, masked| {
            for (index, vector, _) in routes.iter().filter(|v| routes::is_masked(v.2) == masked) {
                self.device.set_vector_mask(index, vector, masked);
            }
        };
        set_masks(routes, true);
        routes.announce();
        self.device.set_irq_config(config);
        set_masks(routes, false);
    }
}

impl State {
    fn irq_config(&self) -> IrqConfig {
        let command = self.config.command();
        let msi = self.config.msi().filter(|msi| msi.enabled);
        IrqConfig {
            bus_master: command.bus_master && self.config.power_state() == PowerState::D0,
            intx_disable: command.intx_disable,
            msi_vectors: msi.map_or(0, |msi| msi.vectors.into()),
            msix_enabled: self.config.msix().is_some_and(|msix| msix.enabled),
        }
    }

    fn config_written(&mut self, memory: &AddressSpace, offset: u64, length: usize) {
        let context = Context {
            config: &self.config,
            memory,
        };
        let end = offset.saturating_add(length as u64);
        self.quirks.config_written(context, &(offset..end));
    }
}

/// The route that the guest's registers give one vector.
fn route(
    config: &ConfigSpace,
    msix: Option<&(MsixState, MsixTable)>,
    index: u32,
    vector: u32,
) -> IrqRoute {
    let route = if index == MSI {
        config.msi().filter(|msi| msi.enabled).and_then(|msi| {
            let number = u8::try_from(vector).ok()?;
            let (address, data) = msi.message(number)?;
            let masked = msi.mask.checked_shr(vector).unwrap_or(0) & 1 != 0;
            Some(routes::enabled(address, data, masked))
        })
    } else {
        config
            .msix()
            .filter(|control| control.enabled)
            .zip(msix)
            .and_then(|(control, (_, table))| {
                let entry = table.entry(vector)?;
                let masked = entry.masked || control.function_mask;
                Some(routes::enabled(entry.address, entry.data, masked))
            })
    };
    route.unwrap_or_default()
}

/// The range lies inside a config space of `size` bytes.
fn check_end(offset: u64, length: usize, size: usize) -> Result<(), Error> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= size as u64 => Ok(()),
        _ => Err(out_of_range(region::CONFIG, offset, length)),
    }
}

fn out_of_range(region: u32, offset: u64, length: usize) -> Error {
    Error::OutOfRange {
        region,
        offset,
        length,
    }
}

mod compose;
mod doorbells;
mod guest;
mod leaving;
mod probe;
mod regions;
mod rom;
mod target;
#[cfg(test)]
mod tests;
