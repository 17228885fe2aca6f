// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI configuration space, composed from data: what the guest sees of the function.
//!
//! ```text
//! Identity + Bar + Capability + ExtendedCapability     what the function is  (data)
//!        │  each becomes Registers: reset value and masks
//!        ▼
//! ConfigSpaceBuilder::build                            lays out, links and checks
//!        ▼
//! ConfigSpace::{read, write, reset} ──► Changes        what the caller must act upon
//! ```
//!
//! In front of a real device the space is an overlay instead ([`ConfigSpace::from_device`]): most bits are
//! read from the device when the guest reads them. Before the guest sees either, what the operator chose is
//! applied ([`GuestView`]).
//!
//! Everything here is a value: no I/O, no descriptors, no locks. Acting on what a guest wrote
//! (mapping a BAR, arming an interrupt, resetting the device) is the caller's, told by [`Changes`].
//!
//! ```
//! use vfio_user_gpu::pci::{Bar, Capability, ConfigSpaceBuilder, Express, Identity, registers};
//!
//! let mut config = ConfigSpaceBuilder::new(Identity {
//!     vendor_id: 0x1234,
//!     device_id: 0x1111,
//!     class_code: 0x03_8000,
//!     ..Identity::default()
//! })
//! .interrupt_pin(1)
//! .bar(0, Bar::memory64(64 << 20).prefetchable())
//! .capability(Capability::Express(Express::default()))
//! .build()
//! .unwrap();
//!
//! let changes = config.write(registers::PCI_COMMAND.into(), &[0x02]).unwrap();
//! assert!(changes.command() && config.command().memory);
//! ```

mod bar;
mod build_error;
mod builder;
mod capability;
mod changes;
mod clique;
mod config_space;
mod express;
mod extended_capability;
mod layout;
mod lengths;
mod lists;
mod msix_table;
mod overlay;
mod overrides;
mod policy;
mod range;
mod register_block;
pub mod registers;
pub mod rom;
mod state;
mod view;
mod virtual_register;
mod walk;

pub use bar::{Bar, BarError, BarKind, BarOffset};
pub use build_error::BuildError;
pub use builder::ConfigSpaceBuilder;
pub use capability::{Capability, CapabilityError, Msi, MsiX};
pub use changes::Changes;
pub use clique::{Clique, CliqueError, NotAClique, VENDOR_NVIDIA};
pub use config_space::ConfigSpace;
pub use express::{Express, LinkSpeed};
pub use extended_capability::{ExtendedCapability, Vsec};
pub use lists::ListFault;
pub use msix_table::{MsixEntry, MsixTable};
pub use overlay::{DeviceSizes, OverlayError};
pub use overrides::{ClassCode, Id, IdentityOverrides, NumberError, VendorId};
pub use policy::{Policy, PolicyError, Rule};
pub use range::OutOfRange;
pub use register_block::{Register, RegisterBlock};
pub use state::{BarState, Command, Identity, MsiState, MsixState, PowerState, RomState};
pub use view::{GuestView, RomView, ViewError};
pub use walk::{Capabilities, ExtendedCapabilities};
