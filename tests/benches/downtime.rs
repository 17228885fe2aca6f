// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether predictions of downtime come true: the two scenes that users reported, migrated by `vfio-user-ctl`. What is
//! left then only the stopped device gives, at a bandwidth that is given; measured downtime over expected is the ratio.
//! Exits with 1 if one is more than 20 % off, or if a limit below the expected downtime does not stop the migration.
//!
//! `cargo bench -p system-tests --bench downtime`

use std::process::{Command, ExitCode};

use serde_json::Value;
use system_tests::{backend::Backend, binaries};

/// Each is migrated so often.
const ROUNDS: usize = 3;
/// How far off a prediction may be.
const TOLERANCE: f64 = 0.2;

struct Scene {
    name: &'static str,
    /// Bytes that only the stopped device gives.
    size: u64,
    bandwidth: &'static str,
    /// Limits in ms: one that must stop the migration, one that must let it through.
    limits: [u64; 2],
}

const SCENES: [Scene; 2] = [
    Scene {
        name: "1.91 GiB at 1 GiB/s",
        size: (1 << 30) / 100 * 191,
        bandwidth: "1G",
        limits: [1900, 2000],
    },
    Scene {
        name: "309 MB at 950 Mbit/s",
        size: 309_000_000,
        bandwidth: "950Mbit/s",
        limits: [2500, 3000],
    },
];

fn main() -> ExitCode {
    println!("{ROUNDS} migrations each; downtime of the median, expected and measured");
    let all: Vec<bool> = SCENES.iter().map(comes_true).collect();
    if all.contains(&false) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn comes_true(scene: &Scene) -> bool {
    let [below, above] = scene.limits;
    let (code, refused) = migrate(scene, below);
    let stops = code == Some(3);
    let needs = &refused["needs"]["downtime_limit_ms"];
    println!(
        "{:22} a limit of {below} ms {}; it would take {needs} ms",
        scene.name,
        if stops { "is refused" } else { "IS TAKEN" },
    );
    let mut runs: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            let (code, done) = migrate(scene, above);
            assert_eq!(code, Some(0), "{done:#}");
            let figure = |name: &str| done[name].as_f64().expect("a figure");
            let (expected, measured) = (figure("expected_downtime_ms"), figure("downtime_ms"));
            [measured / expected, expected, measured]
        })
        .collect();
    runs.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let (first, [ratio, expected, measured], last) =
        (runs[0][0], runs[ROUNDS / 2], runs[ROUNDS - 1][0]);
    println!(
        "{:22} {expected:6.0} ms expected   {measured:6.0} ms measured   ratio {ratio:.3} ({first:.3}..{last:.3})   target {} to {}",
        "",
        1.0 - TOLERANCE,
        1.0 + TOLERANCE,
    );
    stops && runs.iter().all(|run| (run[0] - 1.0).abs() <= TOLERANCE)
}

/// The exit code, and what the tool printed.
fn migrate(scene: &Scene, limit: u64) -> (Option<i32>, Value) {
    let state = format!("faults=state-size={}", scene.size);
    let start = || Backend::start_with(&["vram=1M", &state], &[]);
    let (source, destination) = (start(), start());
    let output = Command::new(binaries::ctl())
        .args(["migrate", "--json", "--bandwidth", scene.bandwidth])
        .args(["--downtime-limit", &limit.to_string()])
        .arg("--from")
        .arg(source.socket())
        .arg("--to")
        .arg(destination.socket())
        .output()
        .expect("vfio-user-ctl runs");
    let printed = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code(), printed)
}
