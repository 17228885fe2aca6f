// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfio-user-ctl` as people and scripts use it.

use std::process::{Command, Output};

use serde_json::Value;
use system_tests::backend::Backend;
use system_tests::binaries;

fn ctl(arguments: &[&str]) -> Output {
    // The demo looks for the backend beside itself.
    let _ = binaries::backend();
    Command::new(binaries::ctl())
        .args(arguments)
        .output()
        .expect("vfio-user-ctl runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    })
}

#[test]
fn the_demo_says_ok() {
    let output = ctl(&["demo", "--json"]);
    let report = json(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["verified"], true, "{report:#}");
    assert!(
        report["bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 24 << 20),
        "all of the VRAM that was in use: {report:#}"
    );
    assert_eq!(
        report["dma_bytes"],
        (2 * 16 + 8) << 20,
        "there and back, and once at the destination: {report:#}"
    );
    for key in [
        "passes",
        "downtime_ms",
        "expected_downtime_ms",
        "throughput_mib_s",
    ] {
        assert!(
            report[key].as_f64().is_some_and(|figure| figure > 0.0),
            "{key}: {report:#}"
        );
    }
    assert!(
        report["interrupts"]
            .as_u64()
            .is_some_and(|count| count >= 2),
        "{report:#}"
    );
    assert!(
        report["spawn_to_negotiated_ms"]
            .as_f64()
            .is_some_and(|ms| ms > 0.0),
        "{report:#}"
    );

    let output = ctl(&["demo"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|line| line.starts_with("ok: ")), "{text}");
}

#[test]
fn a_demo_without_a_backend_fails_in_one_line() {
    for backend in ["/nonexistent", "/bin/false"] {
        let output = ctl(&["demo", "--backend", backend]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        let output = ctl(&["demo", "--json", "--backend", backend]);
        assert_eq!(json(&output)["ok"], false);
    }
}

#[test]
fn info_reads_like_lspci() {
    let backend = Backend::start();
    let socket = backend.socket();
    let socket = socket.to_str().expect("UTF-8");
    let output = ctl(&["info", socket]);
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "Display controller [0380]: Device 1234:1111 (rev 02)",
        "Subsystem: Device 1af4:1100",
        "Region 0: Memory (64-bit, prefetchable) at 0 [size=64M] mappable",
        "Region 4: Memory (32-bit, non-prefetchable) at 0 [size=16K] trapped",
        "MSI-X: Enable- Count=8 Masked-",
        "Vector table: BAR=4 offset=00002000",
        "FLReset+",
        "name: model GPU, 64 MiB",
    ] {
        assert!(text.contains(expected), "no \"{expected}\" in:\n{text}");
    }
    backend.wait_until_left(1);
    let report = json(&ctl(&["info", "--json", socket]));
    assert_eq!(report["backend"]["name"], "model GPU, 64 MiB", "{report:#}");
    backend.wait_until_left(2);

    let _occupied = backend.attach();
    let output = ctl(&["info", socket]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("busy"), "{text}");
}
