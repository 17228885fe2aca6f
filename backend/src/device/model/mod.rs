// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software GPU.

pub mod bochs;
mod command;
pub mod edid;
mod engine;
mod options;
pub mod registers;
pub mod vram;

pub use engine::Engine;
pub use options::{ModelOptions, OptionsError};
