// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VERSION's text: what is read survives being written, and an answer holds only what was offered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_gpu::server::capabilities;
use vfio_user_protocol::version::{Capabilities, Version, decode};

fuzz_target!(|data: &[u8]| {
    let text = [data, b"\0"].concat();
    let Ok(offer) = Capabilities::decode(&text) else {
        return;
    };
    let (_, again) = decode(&offer.encode(Version::default())).expect("what was encoded decodes");
    assert_eq!(again, offer);
    if let Ok(answer) = capabilities().answer(&offer) {
        offer.check_answer(&answer).expect("nothing unasked");
        let (_, again) = decode(&answer.encode(Version::default())).expect("an answer decodes");
        assert_eq!(again, answer);
    }
});
