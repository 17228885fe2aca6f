// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software GPU.

pub mod bochs;
pub mod edid;
mod options;
pub mod vram;

pub use options::{ModelOptions, OptionsError};
