// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vfio-user client for VMMs: connects to a device in another process and forwards to it.
//!
//! | module | what |
//! |---|---|
//! | [`Options`], [`Negotiated`] | what is offered to the server, what it granted |
//! | [`Client`] | the connection; `info`, `access`, `dma`, `logging`, `irqs` and `feature` add its calls, one subject each |
//! | [`migration`] | saving and loading a device from a VMM's migration thread |
//! | [`mapping`] | regions mapped into this process |
//! | [`twin`] | requests the server makes: guest memory by message, interrupt routes |
//! | [`spawn()`] | a backend process of one's own |
//! | [`Error`] | what can go wrong, each with an errno |
//!
//! All calls block until the server has answered and take `&self`, so that any thread may forward. Nothing
//! here knows PCI: regions and interrupt indexes are numbers, and what they mean is between server and guest.
//!
//! The server is not trusted: sizes are bounded, replies are checked, descriptors nobody asked for are
//! closed. What remains in its power is to answer late or never ([`Options::timeout`],
//! [`Client::disconnect`]), and to shrink memory it shared (see [`mapping`]).
#![deny(unsafe_code)]

mod access;
mod client;
mod connection;
mod dma;
mod error;
mod feature;
mod info;
mod irqs;
mod logging;
pub mod mapping;
pub mod migration;
mod negotiation;
mod spawn;
pub mod twin;

#[cfg(test)]
mod testing;

pub use client::Client;
pub use dma::Access;
pub use error::Error;
pub use info::{RegionInfo, RegionIoFds};
pub use negotiation::{MigrationFeatures, Negotiated, Options};
pub use spawn::{Spawned, spawn};
pub use twin::Callbacks;
pub use vfio_user_protocol as protocol;
