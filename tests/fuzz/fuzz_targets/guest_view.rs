// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device with any config space, and what a guest is shown of it: both lists end, and nothing in them comes twice or
//! lies elsewhere; a clique is there whole or refused. The same bytes as the file of a dump. The input begins with a byte
//! of options.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_gpu::{
    device::model::dump::Dump,
    pci::{Clique, ConfigSpace, DeviceSizes, GuestView},
};

fuzz_target!(|data: &[u8]| {
    let Some((&options, bytes)) = data.split_first() else {
        return;
    };
    if let Ok(dump) = Dump::parse(bytes) {
        let _ = dump.sizes();
    }
    let Ok(space) = ConfigSpace::from_device(bytes, &DeviceSizes::default()) else {
        return;
    };
    let number = options & 0xf;
    let clique: Clique = number.to_string().parse().expect("a clique");
    let view = GuestView {
        ats: options & 0x10 != 0,
        nvidia_clique: (options & 0x20 != 0).then_some(clique),
        ..GuestView::default()
    };
    let Ok(space) = view.apply(space) else {
        assert!(view.nvidia_clique.is_some(), "only a clique can be refused");
        return;
    };
    let mut read = bytes.to_vec();
    space.compose_over(0, &mut read).expect("the whole space");
    if view.nvidia_clique.is_some() {
        let last = usize::from(follow(&read));
        assert_eq!(
            read[last + 2..last + 8],
            [8, b'P', b'2', b'P', number << 3, 0]
        );
    } else {
        follow(&read);
    }
    follow_extended(&read);
});

/// Follows the standard list to its end; the last capability, or 0.
fn follow(bytes: &[u8]) -> u8 {
    let (mut at, mut last, mut steps) = (bytes[0x34], 0, 0);
    if bytes[6] & 0x10 == 0 {
        assert_eq!(at, 0);
    }
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0 && steps < 48);
        (last, at, steps) = (at, bytes[usize::from(at) + 1], steps + 1);
    }
    last
}

fn follow_extended(bytes: &[u8]) {
    let (mut at, mut steps) = (0x100, 0);
    while at != 0 && bytes.len() >= 0x104 {
        assert!(at >= 0x100 && at % 4 == 0 && at + 4 <= bytes.len() && steps < 960);
        let next = u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]) >> 4;
        (at, steps) = (next.into(), steps + 1);
    }
}
