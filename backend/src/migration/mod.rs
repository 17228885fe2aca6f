// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration: this process alone reads and writes the device's migration data.
//!
//! | file | job |
//! |---|---|
//! | `session.rs` | [`Migration`]: the state of a device, and the stream being sent or received |
//! | `resetting.rs` | resets under way |
//! | `sizes.rs` | what is left, as a client asks for it: [`Report`] |
//! | `states.rs` | the state machine of `linux/vfio.h`, pure |
//! | `driver.rs` | what is asked of a device: [`MigrationDriver`], [`DataStream`] |
//! | `v1/` | the region that came before, as a [`MigrationDriver`] |
//! | `source.rs`, `sink.rs` | the sending and the receiving end of a stream |
//! | `record.rs` | what a stream is made of, pure |
//! | `guest.rs` | [`Guest`]: identity, and what the guest set up in front of the device |
//! | `estimate.rs` | [`Pending`]: how much is still to be moved, pure |
//! | `checksum.rs` | the checksum of records, of memory that may change meanwhile too |
//! | `buffer.rs` | a piece of the stream: memory of this process, or shared with the client |

pub mod buffer;
pub mod checksum;
mod driver;
mod error;
mod estimate;
mod guest;
pub mod record;
mod resetting;
mod session;
mod sink;
mod sizes;
mod source;
pub mod states;
pub mod v1;

pub use driver::{DataStream, Lend, Lent, MigrationDriver, PrecopyInfo, Support, Taken};
pub use error::Error;
pub use estimate::Pending;
pub use guest::{DRIVER_DATA, Difference, Guest, GuestState, Identity, UNKNOWN};
pub use session::{Migration, ShowP2p};
pub use sizes::Report;
pub use source::More;

#[cfg(test)]
mod tests;
