// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first migration interface of VFIO (Linux 5.8 to 5.17): a region whose registers move the data, spoken
//! as a [`MigrationDriver`](super::MigrationDriver) like any other.
//!
//! | file | job |
//! |---|---|
//! | `access.rs` | [`RegionAccess`], what is needed of whoever has the region; its registers and data |
//! | `layout.rs` | which bytes are mapped and which are trapped, pure |
//! | `save.rs` | taking data out, section by section |
//! | `load.rs` | putting data in, transaction by transaction |
//! | `driver.rs` | [`V1Migration`]: states, and the streams |
//! | `error.rs` | what a driver, or a source, may do wrong |
//!
//! ```text
//!  0              4              8              16             24             32
//!  +--------------+--------------+--------------+--------------+--------------+--------- ...
//!  | device_state | reserved     | pending_bytes| data_offset  | data_size    | data section
//!  +--------------+--------------+--------------+--------------+--------------+--------- ...
//! ```
//!
//! The registers are always trapped, each at its own width. Where in the region a section of data is, the
//! driver says each time; the section may lie in mapped parts, trapped parts, or both. No offset and no size
//! of the driver is believed: a section that is not wholly behind the registers and inside the region ends
//! the transfer. Completion is told by `pending_bytes` alone.
//!
//! There is no P2P state, no estimate of a stop-copy outside a transfer, and no initial data: what is pending
//! counts as dirty. The destination must be given the transactions of the source, which are never split or
//! joined.

mod access;
mod driver;
mod error;
mod layout;
mod load;
mod save;

#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod tests;

pub use access::RegionAccess;
pub use driver::V1Migration;
