// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source that is not trusted: whatever comes, nothing foreign ever runs.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::super::super::ResetCause;
use super::super::super::registers::offset;
use super::super::super::tests::noise;
use super::super::format::{MAGIC, Start, VERSION};
use super::*;

/// The stream of a device with little in it.
fn small() -> Vec<u8> {
    let source = rig("state-size=100");
    source.poke(3 * GRANULE, &noise(20));
    source.set(offset::SCRATCH, 0xabcd);
    save(&source, 1 << 20)
}

/// Writes a stream, which must not be loaded; how far it got.
fn refused(target: &Rig, data: &[u8]) -> usize {
    let mut stream = target.open(Resuming);
    let mut taken = 0;
    for piece in data.chunks(1000) {
        match write(&mut *stream, piece) {
            Ok(length) => taken += length,
            Err(error) => {
                assert_eq!(error, Errno::INVAL);
                let good = small();
                assert_eq!(write(&mut *stream, &good), Err(Errno::INVAL), "for good");
                break;
            }
        }
    }
    assert_eq!(target.driver().set_state(Stop).unwrap_err(), Errno::INVAL);
    assert_eq!(target.state(), Error);
    assert_eq!(write(&mut *stream, &[0]), Err(Errno::NODEV));
    target.gpu.reset(ResetCause::Client).unwrap();
    assert_eq!(target.state(), Running);
    assert_eq!(target.get(offset::SCRATCH), 0);
    assert_eq!(target.gpu.vram().allocated().unwrap(), 0);
    taken
}

#[test]
fn what_is_cut_off_is_not_loaded() {
    let data = small();
    let target = rig("no-p2p");
    let mut cuts: Vec<_> = chunks(&data).iter().map(|(at, _)| *at).collect();
    assert!(cuts.len() > 6);
    cuts.extend(cuts.clone().iter().flat_map(|at| [at + 1, at + HEADER]));
    cuts.push(data.len() - 1);
    for cut in cuts {
        assert_eq!(
            refused(&target, &data[..cut.min(data.len() - 1)]),
            cut.min(data.len() - 1)
        );
    }
    target.load(&data, 1).unwrap();
    assert_eq!(target.get(offset::SCRATCH), 0xabcd);
}

#[test]
fn chunks_that_are_doubled_missing_or_swapped() {
    let data = small();
    let target = rig("no-p2p");
    let found = chunks(&data);
    let ends = found[1..].iter().map(|(at, _)| *at).chain([data.len()]);
    let pieces: Vec<_> = found
        .iter()
        .zip(ends)
        .map(|((at, _), end)| &data[*at..end])
        .collect();
    let is_vram = |n: usize| found[n].1.kind.get() == Kind::Vram as u32;
    for n in 0..pieces.len() {
        let mut missing = pieces.clone();
        missing.remove(n);
        let mut doubled = pieces.clone();
        doubled.insert(n, pieces[n]);
        let mut swapped = pieces.clone();
        swapped.swap(n, (n + 1) % pieces.len());
        // VRAM may be sent twice, and need not be sent.
        if !is_vram(n) {
            refused(&target, &missing.concat());
            refused(&target, &doubled.concat());
        }
        refused(&target, &swapped.concat());
    }
    refused(&target, &[&data[..], &[0]].concat());
}

#[test]
fn headers_that_reach_outside() {
    let start = Start {
        magic: MAGIC,
        version: VERSION.into(),
        granule: (16 << 10).into(),
        vram_size: VRAM.into(),
        extra_size: u64::MAX.into(),
        ..Start::default()
    };
    let begin = [Header::new(Kind::Start, 0, 64).as_bytes(), start.as_bytes()].concat();
    let target = rig("no-p2p");
    let granule = GRANULE as u64;
    for (kind, at, length) in [
        (Kind::Vram, VRAM, granule),
        (Kind::Vram, VRAM - granule, 2 * granule),
        (Kind::Vram, 0u64.wrapping_sub(granule), 2 * granule),
        (Kind::Vram, granule, u64::MAX - granule + 1),
        (Kind::Vram, 0, 0),
        (Kind::Vram, 1, granule),
        (Kind::Vram, 0, granule - 1),
        (Kind::Zero, 0, VRAM + granule),
        (Kind::Zero, 0, 0),
        (Kind::Zero, 4096, granule),
        (Kind::Engine, 0, 111),
        (Kind::Engine, 8, 112),
        (Kind::End, 0, 0),
        (Kind::Extra, 0, 1),
    ] {
        let header = Header::new(kind, at, length);
        let mut data = [&begin[..], header.as_bytes()].concat();
        data.push(0);
        assert!(
            refused(&target, &data) < data.len(),
            "{kind:?} {at:#x} {length:#x}"
        );
    }
    for bad in [
        Start {
            magic: *b"VGPU-MIH",
            ..start
        },
        Start {
            version: (VERSION + 1).into(),
            ..start
        },
        Start {
            granule: 4096.into(),
            ..start
        },
        Start {
            vram_size: (2 * VRAM).into(),
            ..start
        },
        Start {
            zeros: [0.into(), 0.into(), 0.into(), 1.into()],
            ..start
        },
    ] {
        let header = Header::new(Kind::Start, 0, 64);
        let data = [header.as_bytes(), bad.as_bytes(), &[0]].concat();
        assert_eq!(refused(&target, &data), 0);
    }
    // Zeros for all of VRAM cost nothing, however often they come.
    let mut stream = target.open(Resuming);
    write(&mut *stream, &begin).unwrap();
    let zeros = Header::new(Kind::Zero, 0, VRAM);
    for _ in 0..1000 {
        write(&mut *stream, zeros.as_bytes()).unwrap();
    }
    assert_eq!(target.gpu.vram().allocated().unwrap(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..5000)) {
        refused(&rig("no-p2p"), &data);
    }

    /// Bits flipped anywhere: refused, or loaded as a device that can be; never anything in between.
    #[test]
    fn flipped_bits(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4),
        piece in 1_usize..20_000,
    ) {
        let mut data = small();
        // Mostly outside the contents of VRAM, where nothing can be wrong.
        let vram = chunks(&data)[1].0 + HEADER + 64..chunks(&data)[2].0;
        for (index, bit) in flips {
            let at = index.index(data.len() - vram.len());
            let at = if at < vram.start { at } else { at + vram.len() };
            data[at] ^= 1_u8 << bit;
        }
        let target = rig("no-p2p");
        let loaded = target.load(&data, piece);
        match target.state() {
            Running => prop_assert_eq!(loaded, Ok(())),
            Error | Resuming => prop_assert_eq!(loaded, Err(Errno::INVAL)),
            other => prop_assert!(false, "{}", other),
        }
        // Whatever it is now, it answers and can be reset.
        let status = target.get(offset::STATUS);
        prop_assert_eq!(status & !0x707, 0);
        target.gpu.reset(ResetCause::Client).unwrap();
        prop_assert_eq!(target.get(offset::STATUS), 0);
    }
}
