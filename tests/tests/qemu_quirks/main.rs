// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Quirks of particular GPUs, with QEMU as the client: what BARs show of config space, and Intel graphics.

mod fixtures;
mod igd;
#[path = "../qemu_view/table.rs"]
mod table;
