// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that writes anywhere in config space: the lists stay walkable, what is read-only stays, and power-on brings
//! everything back. The input is a row of: offset (2 bytes), length (1 byte), data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_gpu::device::model::config;

fuzz_target!(|data: &[u8]| {
    let mut space = config::config_space(64 << 20)
        .build()
        .expect("the model's own");
    let power_on = space.bytes().to_vec();
    let identity = space.identity();
    let mut rest = data;
    while let Some((&[low, high, length], after)) = rest.split_first_chunk() {
        let (data, after) = after.split_at(usize::from(length % 17).min(after.len()));
        rest = after;
        let offset = u16::from_le_bytes([low, high]) % 4200;
        let fits = usize::from(offset) + data.len() <= power_on.len();
        assert_eq!(space.write(offset.into(), data).is_ok(), fits);
        let mut back = [0; 16];
        let read = space.read(offset.into(), &mut back[..data.len()]);
        assert_eq!(read.is_ok(), fits);

        assert_eq!(space.identity(), identity);
        assert_eq!(space.capabilities().count(), 4);
        assert!(space.extended_capabilities().count() < 32);
        assert_eq!(space.bars().count(), 3);
        let msix = space.msix().expect("MSI-X is there");
        assert_eq!(msix.table_size, 8);
        if let Some(msi) = space.msi() {
            for vector in 0..=u8::MAX {
                let message = msi.message(vector);
                assert!(message.is_none() || vector < 32);
            }
        }
        let _ = (space.command(), space.power_state(), space.rom());
    }
    space.reset();
    assert_eq!(space.identity(), identity);
    space.power_on();
    assert_eq!(space.bytes(), power_on);
});
