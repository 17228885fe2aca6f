// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the device sees it: the maps a client makes with DMA_MAP, and access through them.
//!
//! | file | job |
//! |---|---|
//! | `request.rs` | the vocabulary: [`Access`], [`MapRequest`], [`MapError`] |
//! | `address_space.rs` | [`AddressSpace`]: which IOVA ranges are mapped, and to what |
//! | `dma.rs` | reading and writing through it; [`DmaFault`], [`MessageDma`] |
//! | `dirty/` | which pages the device wrote: [`LoggingStart`], [`LoggingReport`], [`DirtyTracker`] |
//! | `iommu.rs` | [`Iommu`]: what is told of the maps when the device is hardware |
//! | `mapping.rs` | one shared mapping of a file in this process |
//! | `sigbus.rs` | survives a file that is truncated while mapped |
//!
//! Guest bytes are only ever touched through vm-memory's volatile access, never as a Rust slice. This room
//! does not know the protocol and makes no VFIO ioctl: an [`Iommu`] of the kernel device does.

mod address_space;
mod dirty;
mod dma;
mod iommu;
mod mapping;
mod request;
mod sigbus;

#[cfg(test)]
mod tests;

pub use address_space::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
pub use dirty::{
    DirtyTracker, LoggingError, LoggingReport, LoggingStart, MAX_BITMAP, MAX_RANGES, Mark,
    for_each_run,
};
pub use dma::{DmaFault, FaultReason, MAX_PIECE, MessageDma};
pub use iommu::{Iommu, IommuError, IommuMap};
pub use mapping::{Mapping, MappingError};
pub use request::{Access, Backing, MapError, MapRequest, PAGE_SIZE};
pub use sigbus::GuardError;
