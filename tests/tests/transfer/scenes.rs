// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two scenes that users reported: what is expected, a limit below it that never converges and says so, one just
//! above it that completes at once. By decision, not by the clock: the machine may be as slow as it likes.

use std::process::{Command, Output};

use serde_json::Value;
use system_tests::backend::Backend;
use system_tests::binaries;

use super::vm::text;

fn migrate(source: &Backend, destination: &Backend, bandwidth: &str, limit: u64) -> Output {
    Command::new(binaries::ctl())
        .args(["migrate", "--json", "--from", text(&source.socket())])
        .args(["--to", text(&destination.socket())])
        .args(["--bandwidth", bandwidth])
        .args(["--downtime-limit", &limit.to_string()])
        .output()
        .expect("vfio-user-ctl runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// `size` is left when only the stop-copy remains; at `bandwidth` that takes `expected` seconds.
fn scene(size: u64, bandwidth: &str, expected: f64, below: u64, above: u64, complete: bool) {
    let size_option = format!("faults=state-size={size}");
    let model = ["vram=1M", &size_option];
    let source = Backend::start_with(&model, &["--on-disconnect", "keep"]);
    let destination = Backend::start_with(&model, &["--on-disconnect", "keep"]);

    let output = migrate(&source, &destination, bandwidth, below);
    let object = json(&output);
    assert_eq!(output.status.code(), Some(3), "{object:#}");
    assert_eq!(object["ok"], false);
    let remaining = object["remaining"].as_u64().expect("bytes");
    // The model's data has a frame around it: 64 bytes for each 16 KiB.
    assert!(
        (size..size / 1000 * 1005).contains(&remaining),
        "{remaining}"
    );
    let ms = object["expected_downtime_ms"].as_f64().expect("ms");
    assert!((ms / 1000.0 - expected).abs() < expected / 100.0, "{ms} ms");
    let needed = object["needs"]["downtime_limit_ms"].as_u64().expect("ms");
    assert!(needed > below && needed <= above, "{needed} ms");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    let says =
        format!("needs a limit of at least {needed} ms at this bandwidth instead of {below} ms");
    assert!(line.contains(&says), "{line}");
    assert!(line.trim_end().ends_with("The source runs on"), "{line}");

    if complete {
        let output = migrate(&source, &destination, bandwidth, above);
        let object = json(&output);
        assert_eq!(output.status.code(), Some(0), "{object:#}");
        assert_eq!(object["passes"], 1, "at once: {object:#}");
        assert!(object["bytes"].as_u64().expect("bytes") > size);
        assert!(object["downtime_ms"].as_f64().expect("ms") > 0.0);
    }
}

#[test]
fn two_gibibytes_at_one_a_second() {
    // Without optimisation the completion takes long and shows nothing more than the other scene's.
    let complete = !cfg!(debug_assertions);
    let size = (1 << 30) * 191 / 100;
    scene(size, "1G", 1.91, 1900, 1950, complete);
}

#[test]
fn three_hundred_megabytes_over_a_gigabit() {
    scene(309_000_000, "950Mbit/s", 2.6, 2500, 3000, true);
}
