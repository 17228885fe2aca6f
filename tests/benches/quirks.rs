// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What quirks cost an access that is not for them: a function with all of its board's quirks beside the same with
//! none, alternating in one run, on one core, in one process (a socket would hide the difference). Only the vendor of
//! the two differs.
//!
//! `cargo bench -p system-tests --bench quirks`

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use system_tests::{opregion, view};
use vfio_user_gpu::device::Device;
use vfio_user_gpu::device::model::ModelOptions;
use vfio_user_gpu::device::model::dump::DumpedGpu;
use vfio_user_gpu::function::Function;
use vfio_user_gpu::memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
use vfio_user_gpu::pci::GuestView;
use vfio_user_gpu::quirks::igd::{IgdView, OpRegionUse};

const BATCH: u32 = 20_000;
const ROUNDS: usize = 41;
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;

fn main() {
    let mut set = CpuSet::new();
    set.set(0);
    sched_setaffinity(None, &set).expect("to be pinned to one core");
    let folder = tempfile::tempdir().expect("a folder");
    println!("{ROUNDS} x {BATCH} accesses each, alternating, one core; medians");

    let nvidia = board(
        folder.path(),
        "nvidia-gtx-1080",
        "",
        "",
        &GuestView::default(),
    );
    let plain = board(
        folder.path(),
        "nvidia-gtx-1080",
        "00: de 10",
        "00: 34 12",
        &GuestView::default(),
    );
    report("NVIDIA", &nvidia, &plain, 0x3c);

    let copy = GuestView {
        igd: IgdView {
            opregion: OpRegionUse::Copy,
            gms: Some(1),
        },
        ..GuestView::default()
    };
    let intel = board(folder.path(), "intel-gen9-skylake", "", "", &copy);
    let plain = board(
        folder.path(),
        "intel-gen9-skylake",
        "00: 86 80",
        "00: 34 12",
        &GuestView::default(),
    );
    report("Intel", &intel, &plain, 0xfc);
}

/// A function in front of a fixture in which one line is changed.
fn board(folder: &Path, name: &str, from: &str, to: &str, view: &GuestView) -> Function {
    let text = fs::read_to_string(view::fixture(name)).expect("a fixture");
    assert!(text.contains(from), "{from}");
    let (config, igd) = (folder.join("config"), folder.join("opregion"));
    fs::write(&config, text.replacen(from, to, 1)).expect("a file");
    fs::write(&igd, opregion::of_host()).expect("a file");
    let options = ModelOptions {
        config: Some(config.clone()),
        igd: Some(igd),
        ..ModelOptions::default()
    };
    let device: Arc<dyn Device> = Arc::new(DumpedGpu::open(&config, &options).expect("a device"));
    let memory = AddressSpace::new(CpuAccess::TrackedOnly, DEFAULT_MAX_MAPS);
    let function = Function::new(device, Arc::new(memory), view).expect("a function");
    function.write(CONFIG, COMMAND, &[3, 0]).expect("COMMAND");
    function
}

fn report(board: &str, with: &Function, without: &Function, register: u64) {
    let quirks = with.quirks();
    assert!(without.quirks().is_empty(), "{:?}", without.quirks());
    println!("{board}: {}", quirks.join(", "));
    for (what, region, offset) in [
        ("config read, plain register", CONFIG, 0x08),
        ("config read, a quirk's", CONFIG, register),
        ("BAR0 read, outside windows", 0, 0x9_0000),
    ] {
        compare(what, with, without, region, offset);
    }
}

fn compare(what: &str, with: &Function, without: &Function, region: u32, offset: u64) {
    let mut times = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let a = batch(with, region, offset);
        let b = batch(without, region, offset);
        // The first round warms caches.
        if round > 0 {
            times.0.push(a);
            times.1.push(b);
        }
    }
    let pairs = times.0.iter().zip(&times.1);
    let mut ratios: Vec<f64> = pairs
        .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let each = |times: &mut Vec<Duration>| {
        times.sort();
        times[ROUNDS / 2].as_secs_f64() * 1e9 / f64::from(BATCH)
    };
    println!(
        "  {what:30} {:6.1} ns   without {:6.1} ns   ratio {:.3} ({:.3}..{:.3})   target <= 1.05",
        each(&mut times.0),
        each(&mut times.1),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
}

fn batch(function: &Function, region: u32, offset: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..BATCH {
        let mut data = [0; 4];
        function
            .read(region, black_box(offset), &mut data)
            .expect("a read");
        black_box(data);
    }
    start.elapsed()
}
