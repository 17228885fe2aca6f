// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eight GPUs in one guest, four in clique 0 and four in clique 8.

use crate::{
    machine::{Gpu, seen_by_a_guest},
    table,
};

const IN_CLIQUE_0: Gpu = Gpu {
    fixture: "nvidia-tesla-p4",
    arguments: &["--nvidia-gpudirect-clique", "0"],
    integrated: false,
};
const IN_CLIQUE_8: Gpu = Gpu {
    fixture: "nvidia-tesla-t4",
    arguments: &["--nvidia-gpudirect-clique", "8"],
    integrated: false,
};

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn eight_gpus_in_two_cliques() {
    let gpus: Vec<_> = [[IN_CLIQUE_0; 4], [IN_CLIQUE_8; 4]].concat();
    let seen = seen_by_a_guest(&gpus);
    let mut rows = vec![
        ["GPU", "device", "clique", "at", "lspci complains"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (number, gpu) in seen.iter().enumerate() {
        let (clique, at) = gpu.clique().expect("a clique");
        rows.push(vec![
            number.to_string(),
            format!("{:04x}", gpu.dword(0) >> 16),
            clique.to_string(),
            format!("{at:#x}"),
            gpu.complaints().len().to_string(),
        ]);
        assert_eq!(gpu.complaints(), [""; 0]);
        // The last of its list, as QEMU has it.
        assert_eq!(gpu.capabilities().last(), Some(&(9, at)));
    }
    table::print("Eight GPUs, as the guest reads them:", &rows);
    let cliques: Vec<_> = seen.iter().filter_map(|gpu| gpu.clique()).collect();
    assert_eq!(cliques[..4], [(0, 0xc8); 4]);
    assert_eq!(cliques[4..], [(8, 0xd4); 4]);
}
