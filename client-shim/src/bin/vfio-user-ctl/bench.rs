// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `bench`: how long round trips take, as a client sees them.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::{Map, Value, json};
use vfio_user_client::{Access, Client, Error};

use crate::args::Bench;
use crate::pci::region;
use crate::report::{Failure, json as print_json};

/// The dword with INTERRUPT_LINE, which any guest may write and no device acts on.
const HARMLESS: u64 = 0x3c;
/// Where memory is mapped, and how much.
const IOVA: u64 = 1 << 40;
const SIZE: u64 = 2 << 20;
/// Rounds before those that count, as a share of them.
const WARM_UP_SHARE: u32 = 10;

/// Median and 99th percentile.
#[derive(Debug)]
struct Figures {
    name: &'static str,
    median: Duration,
    p99: Duration,
}

/// Attaches, measures, and says how long it took.
pub fn run(options: &Bench) -> Result<String, Failure> {
    let client = options.target.connect()?;
    let figures = [
        read(&client, options.samples)?,
        write(&client, options.samples)?,
        map_unmap(&client, options.samples)?,
    ];
    if options.target.json {
        return Ok(print_json(&object(&figures, options.samples)));
    }
    let mut text = format!("{:<42} {:>12} {:>12}\n", "round trip", "median", "99 %");
    for Figures { name, median, p99 } in &figures {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{name:<42} {:>12} {:>12}",
            micros(*median),
            micros(*p99)
        );
    }
    let _ = writeln!(text, "{} samples each", options.samples);
    Ok(text)
}

fn read(client: &Client, samples: u32) -> Result<Figures, Error> {
    measure("REGION_READ, 4 bytes of config space", samples, || {
        client.region_read(region::CONFIG, 0, &mut [0; 4])
    })
}

fn write(client: &Client, samples: u32) -> Result<Figures, Error> {
    let mut value = [0; 4];
    client.region_read(region::CONFIG, HARMLESS, &mut value)?;
    measure("REGION_WRITE, 4 bytes of config space", samples, || {
        client.region_write(region::CONFIG, HARMLESS, &value)
    })
}

fn map_unmap(client: &Client, samples: u32) -> Result<Figures, Failure> {
    let memory = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, SIZE)?;
    let figures = measure("DMA_MAP of a 2 MiB memfd + DMA_UNMAP", samples, || {
        client.dma_map(IOVA, SIZE, Access::ReadWrite, Some((memory.as_fd(), 0)))?;
        client.dma_unmap(IOVA, SIZE)
    })?;
    Ok(figures)
}

fn measure(
    name: &'static str,
    samples: u32,
    mut exchange: impl FnMut() -> Result<(), Error>,
) -> Result<Figures, Error> {
    for _ in 0..samples / WARM_UP_SHARE {
        exchange()?;
    }
    let mut times = Vec::new();
    for _ in 0..samples {
        let start = Instant::now();
        exchange()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    // By rank: the smallest time that so many percent of the samples do not exceed.
    let percentile = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1) - 1;
        times.get(rank).copied().unwrap_or_default()
    };
    Ok(Figures {
        name,
        median: percentile(50),
        p99: percentile(99),
    })
}

fn micros(duration: Duration) -> String {
    format!("{:.2} us", duration.as_secs_f64() * 1e6)
}

fn object(figures: &[Figures; 3], samples: u32) -> Value {
    let mut object = Map::new();
    object.insert("samples".to_owned(), samples.into());
    for (key, Figures { median, p99, .. }) in ["region_read_4", "region_write_4", "dma_map_unmap"]
        .iter()
        .zip(figures)
    {
        let value = json!({
            "median_ns": u64::try_from(median.as_nanos()).unwrap_or(u64::MAX),
            "p99_ns": u64::try_from(p99.as_nanos()).unwrap_or(u64::MAX),
        });
        object.insert((*key).to_owned(), value);
    }
    object.into()
}
