// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Placeholder until the first module lands.

pub mod pci;
