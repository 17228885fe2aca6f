// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Live migration: this process alone reads and writes the device's migration data.
//!
//! | file | job |
//! |---|---|
//! | `driver.rs` | what is asked of a device: [`MigrationDriver`], [`DataStream`] |
//! | `states.rs` | the state machine of `linux/vfio.h`, pure |
//! | `v1/` | the interface before that, a region, as a [`MigrationDriver`] |

mod driver;
pub mod states;
pub mod v1;

pub use driver::{DataStream, MigrationDriver, PrecopyInfo, Support, Taken};
