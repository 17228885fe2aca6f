// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every fault that the model GPU has on demand, with and without extensions: what still arrives does so whole, and
//! what does not leaves both ends usable. The table is in the test output.

use std::io::Write;

use vfio_user_client::migration::{Loader, Progress, Saver};
use vfio_user_client::protocol::migration::MigrationState;
use vfio_user_client::{Error, MigrationFeatures};

use super::vm::{Vm, backend};

const LENGTH: usize = 3 << 20;

/// What is to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Arrives,
    /// The source says this errno; it goes on.
    Source(i32),
    /// The destination says this errno; it is reset, and the source goes on.
    Destination(i32),
    /// The source is in ERROR: only a reset helps.
    Broken,
}
use Outcome::{Arrives, Broken, Destination, Source};

const EIO: i32 = 5;

const FAULTS: [(&str, Outcome); 20] = [
    ("no-precopy", Arrives),
    ("no-p2p", Arrives),
    ("no-precopy+no-p2p", Arrives),
    ("zero-in-precopy", Arrives),
    ("garbage-sizes", Arrives),
    ("moving-sizes", Arrives),
    ("slow-state=5ms", Arrives),
    ("slow-save=5ms", Arrives),
    ("reinit@64K", Arrives),
    ("reinit@2M+zero-in-precopy", Arrives),
    ("state-size=5M", Arrives),
    ("dirty-rate=1M", Arrives),
    ("read-error@0", Source(EIO)),
    ("read-error@1M", Source(EIO)),
    ("write-error@0", Destination(EIO)),
    ("write-error@2M", Destination(EIO)),
    ("state-error=pre_copy", Source(EIO)),
    ("state-error=stop_copy", Source(EIO)),
    ("state-error=resuming", Destination(EIO)),
    ("broken=stop_copy", Broken),
];

/// Which side failed.
enum Failed {
    From(Error),
    To(Error),
}

fn migrate(from: &Vm<'_>, to: &Vm<'_>) -> Result<(Saver, Loader), Failed> {
    let mut saver = from.migration.save(true).map_err(Failed::From)?;
    let mut loader = to.migration.load().map_err(Failed::To)?;
    let mut chunk = Vec::new();
    let mut passes = 0;
    loop {
        match saver.iterate(&mut chunk).map_err(Failed::From)? {
            Progress::Data(_) => loader.load(&chunk).map_err(Failed::To)?,
            Progress::Idle => {
                passes += 1;
                saver.pending(true).map_err(Failed::From)?;
                // Without pre-copy nothing was sent that could be acknowledged.
                let sent = from.migration.support().pre_copy;
                let ready = !sent || loader.ready().map_err(Failed::To)?;
                // Sizes that move may never say that the initial data is over.
                if passes == 5 || (passes > 1 && ready) {
                    saver.switch_over().map_err(Failed::From)?;
                }
            }
            Progress::End => break,
        }
        chunk.clear();
    }
    loader.flush().map_err(Failed::To)?;
    Ok((saver, loader))
}

fn outcome(fault: &str, expected: Outcome, features: MigrationFeatures) -> Outcome {
    let model = format!("vram=4M,faults={fault}");
    // A fault of loading belongs to the destination, and the device must be the same one.
    let plain = match fault.split_once('=') {
        Some(("state-size", _)) => &model[..],
        _ => "vram=4M",
    };
    let (one, other) = match expected {
        Destination(_) => (plain, &model[..]),
        _ => (&model[..], plain),
    };
    let (source, destination) = (backend(one, features), backend(other, features));
    let mut from = Vm::new(&source.client);
    let mut to = Vm::new(&destination.client);
    from.fill(31, LENGTH);
    let rates = fault.contains("dirty-rate");
    match migrate(&from, &to) {
        Ok((saver, loader)) => {
            loader.finish(true).expect("RUNNING");
            saver.finish().expect("STOP");
            assert_eq!(from.state(), MigrationState::Stop);
            if rates {
                // It changes VRAM by itself: what it had when it stopped is what arrived.
                to.works();
            } else {
                to.check(31, LENGTH);
            }
            Arrives
        }
        Err(Failed::To(error)) => {
            from.check(31, LENGTH);
            to.fill(32, LENGTH);
            to.check(32, LENGTH);
            Destination(error.errno())
        }
        Err(Failed::From(_)) if from.state() == MigrationState::Error => {
            source.client.reset().expect("reset");
            from.fill(33, LENGTH);
            from.check(33, LENGTH);
            Broken
        }
        Err(Failed::From(error)) => {
            from.check(31, LENGTH);
            to.fill(32, LENGTH);
            to.check(32, LENGTH);
            Source(error.errno())
        }
    }
}

#[test]
fn every_fault_comes_out_as_it_should() {
    let ways = [
        ("base", MigrationFeatures::default()),
        ("extensions", MigrationFeatures::ALL),
    ];
    let mut table = format!(
        "\nFaults, and what became of the device:\n  {:<28} {:<12} outcome\n",
        "fault", "client"
    );
    for (fault, expected) in FAULTS {
        for (name, features) in ways {
            let found = outcome(fault, expected, features);
            table += &format!("  {fault:<28} {name:<12} {found:?}\n");
            assert_eq!(found, expected, "{fault}, {name}");
        }
    }
    // Past the capture of test output: the table is to be read.
    let _ = std::io::stderr().write_all(table.as_bytes());
}
