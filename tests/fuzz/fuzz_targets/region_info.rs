// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies that a client reads: region infos with their capability lists, sub-region lists, routes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_protocol::{device::RegionInfo, extension::IrqRoutes, io_fds::IoFds};

fuzz_target!(|data: &[u8]| {
    let _ = RegionInfo::decode(data);
    let _ = IoFds::decode(data);
    let _ = IrqRoutes::decode(data);
});
