// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that are not right, or not for this device: never loaded, and the device can be used afterwards.

use std::error::Error;

use system_tests::migrating::{Migrates, explain};
use vfio_user_protocol::migration::MigrationState::{Resuming, Running};

use super::{TestGpu, owner::Owner, owner_support::*};
use crate::{Outcome, check_eq};

const EPROTO: u32 = 71;

/// Streams that are not right, or not for this device.
pub fn streams() -> Outcome {
    table(&[
        ("cut anywhere", cut),
        ("a byte wrong anywhere", damaged),
        ("of another device", foreign),
        ("of another driver", foreign_driver),
        ("its client leaves half-way", abandoned),
    ])
}

fn cut() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    let lengths = [
        1,
        31,
        32,
        200,
        5000,
        1_048_000,
        4_000_000,
        stream.len() - 33,
        stream.len() - 1,
    ];
    let mut errors = Vec::new();
    for length in lengths {
        errors.push(check_not_loaded(
            &here,
            &mut destination,
            &stream[..length],
        )?);
    }
    check_usable(&here, &mut destination, &stream)?;
    errors.dedup();
    Ok(format!(
        "at {} places: errno {errors:?}; reset",
        lengths.len()
    ))
}

fn damaged() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    let step = stream.len() / 9;
    let places = [0, 17, 40]
        .into_iter()
        .chain((1..9).map(|part| part * step + 7))
        .chain([stream.len() - 1]);
    let (mut errors, mut count) = (Vec::new(), 0);
    for at in places {
        let mut bad = stream.clone();
        bad[at] ^= 0x10;
        errors.push(check_not_loaded(&here, &mut destination, &bad)?);
        count += 1;
    }
    check_usable(&here, &mut destination, &stream)?;
    errors.dedup();
    check_eq!(errors, [EPROTO], "errors");
    Ok(format!("at {count} places: EPROTO; reset"))
}

fn foreign() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let here = TestGpu::new("full")?;
    here.set("device", 0x4321)?;
    let mut destination = Owner::of(&here)?;
    let both = "device: 1b36:0f9d at the source, 1b36:4321 here";
    refused_at_once(&here, &mut destination, &stream, both)
}

fn foreign_driver() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("v1-mapped")?;
    let both = "driver data: vugtest-full at the source, vugtest-v1-mapped v1 here";
    refused_at_once(&here, &mut destination, &stream, both)
}

/// The first record is enough to refuse, in words that name `both` sides, and again when the load is ended.
pub fn refused_at_once(
    gpu: &TestGpu,
    owner: &mut Owner,
    stream: &[u8],
    both: &str,
) -> Result<String, Box<dyn Error>> {
    owner.client.set_state(Resuming);
    let refused = owner.client.write_all(&stream[..4096], 4096);
    check_eq!(refused, Err(EPROTO), "its first 4 KiB");
    let why = explain(&mut owner.client);
    check_eq!(why.contains(both), true, "{both:?} in {why:?}");
    check_eq!(
        owner.client.try_set_state(Running.into()),
        Err(EPROTO),
        "running it"
    );
    let again = explain(&mut owner.client);
    check_eq!(again.contains(both), true, "{both:?} in {again:?}");
    check_eq!(owner.client.state(), Running, "state afterwards");
    check_eq!(
        gpu.get("refused_states")?,
        0,
        "states that it does not have"
    );
    Ok(format!("EPROTO: {why}"))
}

fn abandoned() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    destination.client.set_state(Resuming);
    destination
        .client
        .write_all(&stream[..4_000_000], 1 << 18)
        .map_err(|errno| format!("errno {errno}"))?;
    destination.leave()?;
    check_eq!(
        here.get("state")?,
        i64::from(u32::from(Running)),
        "state afterwards"
    );
    // Another backend takes it as it is.
    let mut next = Owner::of(&here)?;
    load(&mut next, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    Ok("the device is reset, and takes the stream from the next client".into())
}
