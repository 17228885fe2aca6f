// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration between running backends: by a client of the bare specification, and by one that does everything wrong.

mod base;
mod channel;
mod damage;
mod faults;
mod leaving;
mod memory;
mod undone;

/// 1 MiB, the most that one message carries.
const MIB: usize = 1 << 20;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const ENOTTY: u32 = 25;
const EPROTO: u32 = 71;
