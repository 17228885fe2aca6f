// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration as a VMM does it that links the shim, and as people do it with `vfio-user-ctl`, between real backends.

mod cancel;
mod death;
mod faults;
mod progress;
mod reinit;
mod report;
mod scenes;
mod segments;
mod snapshot;
mod tool;
mod vm;
