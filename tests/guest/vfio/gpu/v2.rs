// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration v2 from one device to another, by every set of states.

use std::{error::Error, fs::File, io::Write};

use system_tests::pattern;

use super::{
    BAR0, TestGpu, VRAM, check_errno, check_same,
    feature::{
        self, End, P2P_FLAG, PRE_COPY_FLAG, REINIT, data_size, drain, migration_flags,
        precopy_info, set_state, state, state_of,
    },
    fill,
    region::Region,
};
use crate::{Outcome, check_eq, say, vfio::kernel::OpenDevice};

/// A header, and every page.
const INITIAL: u64 = 40 + 2048 * PAGE_RECORD;
/// A page, with what says which.
const PAGE_RECORD: u64 = 16 + 4096;

/// VRAM and registers go from one device to another, whatever states the devices have.
pub fn every_variant() -> Outcome {
    for kind in ["stop", "p2p", "precopy", "full", "log"] {
        let (source, destination) = (TestGpu::new(kind)?, TestGpu::new(kind)?);
        let (from, to) = (source.open()?, destination.open()?);
        fill(&from, 0x5eed)?;
        fill(&to, 0xdead)?;
        let stream = save(&source, &from)?;
        load(&to, &stream, 1000)?;
        check_same(&to, &from)?;
        for gpu in [&source, &destination] {
            check_eq!(
                gpu.get("state")?,
                i64::from(state::RUNNING),
                "{kind}: state, at the end"
            );
        }
        say(&format!("{kind}: {} bytes migrated", stream.len()));
    }
    reinit()
}

/// Saves a device, by pre-copy where it has that, and lets it run again.
pub fn save(gpu: &TestGpu, device: &OpenDevice) -> Result<Vec<u8>, Box<dyn Error>> {
    let flags = migration_flags(&device.device)?;
    let mut stream = Vec::new();
    let estimate = data_size(&device.device)?;
    let data = if flags & PRE_COPY_FLAG == 0 {
        set_state(&device.device, state::STOP_COPY)?.ok_or("no data fd")?
    } else {
        let data = set_state(&device.device, state::PRE_COPY)?.ok_or("no data fd")?;
        pre_copy(gpu, device, &data, &mut stream)?;
        if flags & P2P_FLAG != 0 {
            let again = set_state(&device.device, state::PRE_COPY_P2P)?;
            check_eq!(again.is_none(), true, "another data fd in PRE_COPY_P2P");
            precopy_info(&data)?;
        }
        let again = set_state(&device.device, state::STOP_COPY)?;
        check_eq!(again.is_none(), true, "another data fd in STOP_COPY");
        check_errno(
            precopy_info(&data),
            libc::EINVAL,
            "pre-copy sizes in STOP_COPY",
        )?;
        let left = data_size(&device.device)?;
        let before = u64::try_from(stream.len())?;
        check_eq!(
            drain(&data, 777, &mut stream),
            End::Zero,
            "the end of the stream"
        );
        let read = u64::try_from(stream.len())? - before;
        check_eq!(read, left, "what STOP_COPY had, and what it said");
        data
    };
    if flags & PRE_COPY_FLAG == 0 {
        check_eq!(
            drain(&data, 0x4321, &mut stream),
            End::Zero,
            "the end of the stream"
        );
        check_eq!(
            u64::try_from(stream.len())?,
            estimate,
            "the whole, and the estimate of it"
        );
    }
    check_eq!(drain(&data, 64, &mut stream), End::Zero, "the end, again");
    set_state(&device.device, state::STOP)?;
    check_eq!(
        drain(&data, 64, &mut stream),
        End::Errno(libc::ENODEV),
        "reading after the transfer"
    );
    set_state(&device.device, state::RUNNING)?;
    check_eq!(
        gpu.get("stopped_accesses")?,
        0,
        "accesses to the stopped device"
    );
    Ok(stream)
}

/// Initial data, then what the guest and the device change meanwhile.
fn pre_copy(gpu: &TestGpu, device: &OpenDevice, data: &File, stream: &mut Vec<u8>) -> Outcome {
    let sizes = || precopy_info(data).map(|info| (info.initial, info.dirty));
    check_eq!(sizes()?, (INITIAL, 0), "sizes at first");
    gpu.set("max_transfer", 0x10_0000)?;
    let mut first = vec![0; 0x20_0000];
    let length = std::io::Read::read(&mut &*data, &mut first)?;
    gpu.set("max_transfer", 0)?;
    check_eq!(length, 0x10_0000, "a short read");
    stream.extend_from_slice(&first[..length]);
    check_eq!(sizes()?, (INITIAL - 0x10_0000, 0), "sizes after it");
    // Of pages that were sent already, and of one that was not.
    gpu.set("scribble", 3)?;
    device.write(BAR0, u64::try_from(VRAM)? - 8, b"not sent")?;
    check_eq!(
        sizes()?,
        (INITIAL - 0x10_0000, 3 * PAGE_RECORD),
        "sizes after changes"
    );
    check_eq!(
        drain(data, 0x1_0000, stream),
        End::Errno(libc::ENOMSG),
        "nothing for now"
    );
    check_eq!(sizes()?, (0, 0), "sizes with nothing left");
    // Through a mapping, and where there is none.
    let mut region = Region::new(&device.device, BAR0)?;
    region.map()?;
    region.write(0x3f_fff0, &pattern::bytes(7, 32))?;
    check_eq!(
        sizes()?,
        (0, 2 * PAGE_RECORD),
        "sizes after writes at a mapping's end"
    );
    gpu.set("empty_read", 1)?;
    check_eq!(
        drain(data, 0x1_0000, stream),
        End::Zero,
        "nothing for now, as some drivers say it"
    );
    gpu.set("empty_read", 0)?;
    // Left for when it stops.
    gpu.set("scribble", 5)?;
    Ok(())
}

/// Loads it in pieces, and lets the device run.
pub fn load(device: &OpenDevice, stream: &[u8], piece: usize) -> Outcome {
    let mut data = set_state(&device.device, state::RESUMING)?.ok_or("no data fd")?;
    for part in stream.chunks(piece) {
        data.write_all(part)?;
    }
    set_state(&device.device, state::STOP)?;
    check_errno(data.write(&[0]), libc::ENODEV, "writing after the transfer")?;
    set_state(&device.device, state::RUNNING)?;
    check_eq!(
        state_of(&device.device)?,
        state::RUNNING,
        "state after loading"
    );
    Ok(())
}

/// Initial data anew, for a user who can be told.
fn reinit() -> Outcome {
    let (source, destination) = (TestGpu::new("full")?, TestGpu::new("full")?);
    let (from, to) = (source.open()?, destination.open()?);
    fill(&from, 1)?;
    let told = source.tells_reinit()?;
    let opted_in = feature::opt_in_to_flags(&from.device);
    if told {
        opted_in?;
    } else {
        check_errno(opted_in, libc::ENOTTY, "a feature that is newer")?;
    }
    say(&format!("REINIT can be told: {told}"));
    let data = set_state(&from.device, state::PRE_COPY)?.ok_or("no data fd")?;
    let mut stream = Vec::new();
    check_eq!(
        drain(&data, 0x1_0000, &mut stream),
        End::Errno(libc::ENOMSG),
        "all initial data"
    );
    fill(&from, 2)?;
    source.set("reinit", 1)?;
    let info = precopy_info(&data)?;
    let wanted = if told {
        (REINIT, INITIAL, 0)
    } else {
        (0, 0, 2048 * PAGE_RECORD)
    };
    check_eq!(
        (info.flags, info.initial, info.dirty),
        wanted,
        "sizes after reinit"
    );
    let info = precopy_info(&data)?;
    check_eq!(info.flags, 0, "REINIT is told once");
    check_eq!(
        drain(&data, 0x1_0000, &mut stream),
        End::Errno(libc::ENOMSG),
        "all of it again"
    );
    set_state(&from.device, state::STOP_COPY)?;
    check_eq!(drain(&data, 0x1_0000, &mut stream), End::Zero, "the end");
    load(&to, &stream, 0x1_0000)?;
    set_state(&from.device, state::RUNNING)?;
    check_same(&to, &from)
}
