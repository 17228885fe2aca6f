// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A command number and a body: whatever decodes, encodes to what decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_protocol::Request;

fuzz_target!(|data: &[u8]| {
    let Some((command, body)) = data.split_first_chunk() else {
        return;
    };
    let command = u16::from_le_bytes(*command);
    if let Ok(request) = Request::decode(command, body) {
        let encoded = request.encode();
        assert_eq!(Request::decode(command, &encoded), Ok(request));
    }
});
