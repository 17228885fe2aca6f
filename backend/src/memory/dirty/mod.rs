// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages of guest memory the device wrote (DMA logging), for a VMM that copies them while it migrates.
//!
//! | file | job |
//! |---|---|
//! | `request.rs` | what a client asks, checked: [`LoggingStart`], [`LoggingReport`], [`LoggingError`] |
//! | `logging.rs` | logging in force, and the calls of the address space |
//! | `tracker.rs` | [`DirtyTracker`]: what is asked of hardware |
//! | `pages.rs`, `bits.rs` | a sparse set of pages; bits in words |
//!
//! Everything that is known to be written ends up in one set of pages of 4 KiB, whatever page size whoever
//! tracks it has, and every report takes its range out of that set, whatever page size it asks for. So no
//! combination of the two can lose or misplace a page.

mod bits;
mod logging;
mod pages;
mod request;
mod tracker;

#[cfg(test)]
mod tests;

pub use bits::for_each_run;
pub(super) use logging::Logging;
pub use request::{LoggingError, LoggingReport, LoggingStart, MAX_BITMAP, MAX_RANGES};
pub use tracker::{DirtyTracker, Mark};
