// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration between running backends: by a client of the bare specification, and by one that does everything wrong.

mod base;
mod channel;
mod damage;
mod faults;
mod leaving;
mod memory;
mod undone;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use system_tests::raw_client::RawClient;
use vfio_user_protocol::{Request, extension::migration::MigShm};

/// 1 MiB, the most that one message carries.
const MIB: usize = 1 << 20;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const ENOTTY: u32 = 25;
const EPROTO: u32 = 71;

/// Memory for migration data, so many bytes, that the client shares from now on.
#[track_caller]
fn share(client: &mut RawClient, size: usize) -> OwnedFd {
    let memory = memfd_create("shared", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&memory, size as u64).expect("its size");
    let share = MigShm {
        argsz: 16,
        flags: 0,
        size: size as u64,
    };
    let shared = client.request(&Request::MigShm(share), &[memory.as_fd()]);
    assert!(shared.is_ok(), "MIG_SHM refused");
    memory
}
