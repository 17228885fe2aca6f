// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration of the kernel's devices through two backends, by a client of the bare specification.

use std::{error::Error, path::Path};

use system_tests::{migrating::Migrates, raw_client::RawClient};
use vfio_user_client::protocol::{
    feature::{GET, MIG_DATA_SIZE, MIGRATION, MIGRATION_PRE_COPY, MIGRATION_STOP_COPY},
    migration::MigrationState::{PreCopy, Resuming, Running, Stop, StopCopy},
};

use super::{
    backend::{Launch, Listening},
    mtty::{PORTS, SCRATCH, check, decode, set_up},
    pci::Function,
};
use crate::{Outcome, check_eq, say};

const SOURCE: &str = "/tmp/source.sock";
const DESTINATION: &str = "/tmp/destination.sock";
const EINVAL: u32 = 22;

/// A mediated device of `parent`, served at `socket`, and a client of it.
fn serve(
    parent: &str,
    kind: &str,
    uuid: &str,
    socket: &'static str,
) -> Result<(Listening, RawClient), Box<dyn Error>> {
    let path = Function::mediated(parent, kind, uuid)?.path();
    let mut backend = Launch::with(&["--device", &path]).listen_at(socket)?;
    // A first client, to see that it listens.
    drop(backend.connect()?);
    Ok((backend, RawClient::attach(Path::new(socket))))
}

/// The kernel's sample driver, a serial port: its registers and config space go over, with pre-copy and without, in pieces
/// of any size, and a damaged stream leaves the destination as after a reset.
pub fn mtty() -> Outcome {
    let uuid = |number| format!("6d646576-0000-4000-8000-0000000001{number:02}");
    let (_source, mut source) = serve("mtty", "mtty-1", &uuid(1), SOURCE)?;
    let (_destination, mut destination) = serve("mtty", "mtty-1", &uuid(2), DESTINATION)?;
    let flags = source.feature(MIGRATION | GET, 16, &[]);
    let wanted = MIGRATION_STOP_COPY | MIGRATION_PRE_COPY;
    check_eq!(
        flags,
        Ok(wanted.to_ne_bytes().to_vec()),
        "flags without P2P"
    );
    let size = source.feature(MIG_DATA_SIZE | GET, 16, &[]);
    say(&format!("mtty: size of a stop-copy {size:?}"));

    for (seed, pre_copy, piece) in [(0x5a, true, 4096), (0xc3, false, 4096), (0x76, true, 1)] {
        set_up(&mut source, seed)?;
        set_up(&mut destination, !seed)?;
        // What the guest of the source decodes is decoded afterwards.
        decode(&mut destination, false);
        let mut stream = Vec::new();
        if pre_copy {
            source.set_state(PreCopy);
            stream = read_all(&mut source, piece)?;
            check_eq!(source.read::<1>(PORTS, SCRATCH), [seed], "while it runs");
        }
        source.set_state(StopCopy);
        stream.extend(read_all(&mut source, piece)?);
        source.set_state(Stop);
        source.set_state(Running);
        check(&mut source, seed, "source afterwards")?;

        destination.set_state(Resuming);
        let written = destination.write_all(&stream, piece);
        check_eq!(written, Ok(()), "stream of {} bytes", stream.len());
        destination.set_state(Running);
        let how = format!("at the destination, pieces of {piece} bytes, pre-copy {pre_copy}");
        check(&mut destination, seed, &how)?;
        say(&format!(
            "mtty: {} bytes in pieces of {piece}",
            stream.len()
        ));
    }

    // Half a stream: nothing is loaded.
    source.set_state(StopCopy);
    let stream = read_all(&mut source, 4096)?;
    source.set_state(Running);
    destination.set_state(Resuming);
    check_eq!(
        destination.write_all(&stream[..stream.len() / 2], 64),
        Ok(()),
        "half a stream"
    );
    let loaded = destination.try_set_state(Running.into());
    check_eq!(loaded.is_err(), true, "half a stream is not loaded");
    check_eq!(destination.state(), Running, "after a reset");
    check_eq!(
        source.data_read(64),
        Err(EINVAL),
        "nothing to read while it runs"
    );
    Ok(())
}

fn read_all(client: &mut RawClient, piece: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    client
        .read_all(piece)
        .map_err(|errno| format!("migration data: errno {errno}").into())
}
