// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every fixture in one guest: who it is, which capabilities are left, and whether lspci has anything to complain about.

use crate::{
    machine::{Gpu, seen_by_a_guest},
    table,
};

/// What a guest must see of a GPU.
struct Wanted {
    gpu: Gpu,
    /// Device and vendor.
    ids: u32,
    /// Standard capabilities, as `(id, offset)`.
    capabilities: &'static [(u8, u8)],
    /// Extended ones.
    extended: &'static [u16],
    /// The clique and where it is.
    clique: Option<(u8, u8)>,
}

const fn gpu(fixture: &'static str, arguments: &'static [&'static str]) -> Gpu {
    Gpu {
        fixture,
        arguments,
        integrated: false,
    }
}

const fn integrated(fixture: &'static str) -> Gpu {
    Gpu {
        fixture,
        arguments: &[],
        integrated: true,
    }
}

const WANTED: &[Wanted] = &[
    Wanted {
        gpu: gpu("nvidia-tesla-p4", &["--nvidia-gpudirect-clique", "5"]),
        ids: 0x1bb3_10de,
        capabilities: &[(1, 0x60), (5, 0x68), (0x10, 0x78), (9, 0xb4), (9, 0xc8)],
        extended: &[2, 0x18, 4, 1, 0xb, 0x19],
        clique: Some((5, 0xc8)),
    },
    Wanted {
        gpu: gpu("nvidia-tesla-t4", &["--nvidia-gpudirect-clique", "15"]),
        ids: 0x1eb8_10de,
        capabilities: &[(1, 0x60), (0, 0x68), (0x10, 0x78), (0x11, 0xc8), (9, 0xd4)],
        extended: &[2, 0x18, 0x1e, 4, 1, 0xb, 0x19, 0x15],
        clique: Some((15, 0xd4)),
    },
    Wanted {
        gpu: gpu("nvidia-gtx-1080", &[]),
        ids: 0x1b80_10de,
        capabilities: &[(1, 0x60), (5, 0x68), (0x10, 0x78)],
        extended: &[2, 0x18, 4, 1, 0xb, 0x19],
        clique: None,
    },
    Wanted {
        gpu: gpu("amd-vega-64", &[]),
        ids: 0x687f_1002,
        capabilities: &[(9, 0x48), (1, 0x50), (0x10, 0x64), (5, 0xa0)],
        extended: &[0xb, 1, 0x15, 0x19, 0xd, 0x18],
        clique: None,
    },
    Wanted {
        gpu: gpu(
            "amd-vega-64",
            &[
                "--ats",
                "on",
                "--pci-device-id",
                "0x6860",
                "--pci-class",
                "0x030200",
            ],
        ),
        ids: 0x6860_1002,
        capabilities: &[(9, 0x48), (1, 0x50), (0x10, 0x64), (5, 0xa0)],
        extended: &[0xb, 1, 0x15, 0x19, 0xd, 0xf, 0x13, 0x1b, 0x18],
        clique: None,
    },
    Wanted {
        gpu: integrated("intel-gen8-broadwell"),
        ids: 0x1616_8086,
        capabilities: &[(5, 0x90), (1, 0xd0), (0x13, 0xa4)],
        extended: &[],
        clique: None,
    },
    Wanted {
        gpu: integrated("intel-gen9-skylake"),
        ids: 0x1912_8086,
        capabilities: &[(9, 0x40), (0x10, 0x70), (5, 0xac), (1, 0xd0)],
        extended: &[],
        clique: None,
    },
    Wanted {
        gpu: integrated("intel-gen11-ice-lake"),
        ids: 0x8a52_8086,
        capabilities: &[(9, 0x40), (0x10, 0x70), (5, 0xac), (1, 0xd0)],
        extended: &[],
        clique: None,
    },
    Wanted {
        gpu: integrated("intel-gen12-tiger-lake"),
        ids: 0x9a49_8086,
        capabilities: &[(9, 0x40), (0x10, 0x70), (5, 0xac), (1, 0xd0)],
        extended: &[],
        clique: None,
    },
];

#[test]
#[ignore = "lane qemu: needs QEMU and a kernel"]
fn lspci_decodes_every_fixture_without_a_complaint() {
    let gpus: Vec<_> = WANTED.iter().map(|wanted| wanted.gpu).collect();
    let seen = seen_by_a_guest(&gpus);
    let titles = [
        "fixture",
        "arguments",
        "ids",
        "class",
        "capabilities",
        "extended",
        "clique",
        "lspci",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let mut failures = Vec::new();
    for (wanted, seen) in WANTED.iter().zip(&seen) {
        let capabilities = seen.capabilities();
        let extended: Vec<_> = seen
            .extended_capabilities()
            .iter()
            .map(|(id, _)| *id)
            .collect();
        let complaints = seen.complaints();
        let clique = seen.clique();
        let list = |ids: &[String]| {
            if ids.is_empty() {
                "none".to_owned()
            } else {
                ids.join(" ")
            }
        };
        let standard: Vec<_> = capabilities
            .iter()
            .map(|(id, at)| format!("{id:02x}@{at:02x}"))
            .collect();
        let ids: Vec<_> = extended.iter().map(|id| format!("{id:02x}")).collect();
        rows.push(vec![
            wanted.gpu.fixture.to_owned(),
            wanted.gpu.arguments.join(" "),
            format!("{:04x}:{:04x}", seen.dword(0) & 0xffff, seen.dword(0) >> 16),
            format!("{:06x}", seen.dword(8) >> 8),
            list(&standard),
            list(&ids),
            clique.map_or("-".to_owned(), |(number, at)| {
                format!("{number} at {at:#x}")
            }),
            if complaints.is_empty() {
                "clean".to_owned()
            } else {
                complaints.join("; ")
            },
        ]);
        // QEMU puts capabilities in its own order.
        let sorted = |list: &[(u8, u8)]| {
            let mut list = list.to_vec();
            list.sort_by_key(|(_, at)| *at);
            list
        };
        if seen.dword(0) != wanted.ids
            || sorted(&capabilities) != sorted(wanted.capabilities)
            || extended != wanted.extended
            || clique != wanted.clique
            || !complaints.is_empty()
        {
            failures.push(format!(
                "{}:\n{}",
                wanted.gpu.fixture,
                seen.lspci.join("\n")
            ));
        }
    }
    table::print("Fixtures, as the guest reads them:", &rows);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
