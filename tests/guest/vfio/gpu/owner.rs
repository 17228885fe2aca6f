// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same devices, and the kernel's mtty, each owned by a backend: a client of it, message by message.

use std::{
    error::Error,
    fs::{self, File},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use system_tests::{
    migrating::{Migrates, offering},
    pattern, pci,
    raw_client::RawClient,
};
use vfio_user_protocol::{
    Command as Message, Request,
    extension::migration::{
        EXPLAIN, MIG_CHANNEL, MIG_P2P, PENDING, PENDING_EXACT, PRECOPY_INFO, Pending, PrecopyInfo,
        Query,
    },
    feature::{GET, MIGRATION},
    migration::MigrationState,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{BAR0, BAR2, TestGpu, VRAM, migrated_registers};
use crate::{
    Outcome, check_eq, say,
    vfio::{backend::CONFIG, mtty, pci::Function},
};

/// What these clients offer, all of which is granted.
pub const FEATURES: [&str; 5] = [PENDING, PRECOPY_INFO, EXPLAIN, MIG_P2P, MIG_CHANNEL];
/// Bytes of VRAM in one message.
const PIECE: usize = 0x1_0000;

/// A backend with its only client.
pub struct Owner {
    child: Child,
    log: String,
    /// The connection.
    pub client: RawClient,
}

impl Owner {
    /// Of a device of the module.
    pub fn of(gpu: &TestGpu) -> Result<Self, Box<dyn Error>> {
        let mut owner = Self::of_function(&gpu.function)?;
        owner.enable();
        Ok(owner)
    }

    /// Of any mediated device.
    pub fn of_function(function: &Function) -> Result<Self, Box<dyn Error>> {
        static STARTED: AtomicU32 = AtomicU32::new(1);
        let log = format!("/tmp/owner-{}.log", STARTED.fetch_add(1, Ordering::Relaxed));
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/bin/vfio-user-gpu")
            .args(["--device", &function.path(), "--fd", "0"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut client = RawClient::over(ours);
        let (granted, _) = client.negotiate(&offering(&FEATURES));
        let missing = FEATURES
            .iter()
            .find(|feature| !granted.has_feature(feature));
        check_eq!(missing, None, "features that were not granted");
        Ok(Self { child, log, client })
    }

    /// Memory decoding and bus mastering.
    pub fn enable(&mut self) {
        let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
        self.client
            .write(CONFIG, u64::from(pci::COMMAND), &command.to_le_bytes());
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log)
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    }

    /// The device's features of migration, as this client sees them.
    pub fn migration_flags(&mut self) -> Result<u64, Box<dyn Error>> {
        match self.client.feature(MIGRATION | GET, 16, &[]) {
            Ok(data) => Ok(u64::from_ne_bytes(data.as_slice().try_into()?)),
            Err(errno) => Err(format!("FEATURE_MIGRATION: errno {errno}").into()),
        }
    }

    /// Fills VRAM and the registers that migrate.
    pub fn fill(&mut self, seed: u32) -> Outcome {
        for (index, piece) in pattern::bytes(seed, VRAM).chunks(PIECE).enumerate() {
            self.client
                .write(BAR0, u64::try_from(index * PIECE)?, piece);
        }
        for (index, offset) in migrated_registers().enumerate() {
            let value = pattern::word(!seed, u32::try_from(index)?);
            self.client.write32(BAR2, offset, value);
        }
        Ok(())
    }

    /// What the device is made of: VRAM, then registers, then config space.
    pub fn state(&mut self) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut state = Vec::new();
        for at in (0..VRAM).step_by(PIECE) {
            state.extend_from_slice(&self.client.read::<PIECE>(BAR0, u64::try_from(at)?));
        }
        for offset in migrated_registers() {
            state.extend_from_slice(&self.client.read::<4>(BAR2, offset));
        }
        state.extend_from_slice(&self.client.read::<256>(CONFIG, 0));
        Ok(state)
    }

    /// All sizes.
    pub fn pending(&mut self, flags: u32) -> Result<Pending, Box<dyn Error>> {
        self.query(Message::MigPending, flags)
    }

    /// What the kernel says of pre-copy.
    pub fn precopy_info(&mut self) -> Result<PrecopyInfo, Box<dyn Error>> {
        self.query(Message::MigPrecopyInfo, 0)
    }

    fn query<T: FromBytes>(&mut self, message: Message, flags: u32) -> Result<T, Box<dyn Error>> {
        let query = Query { argsz: 64, flags };
        match self.client.call(message, query.as_bytes(), &[]) {
            Ok(reply) => T::read_from_bytes(&reply.body).map_err(|_| "another size".into()),
            Err(errno) => Err(format!("{message:?}: errno {errno}").into()),
        }
    }

    /// A socket of its own for migration.
    pub fn channel(&mut self) -> Result<RawClient, Box<dyn Error>> {
        let (ours, theirs) = UnixStream::pair()?;
        let query = Query { argsz: 8, flags: 0 };
        let opened = self
            .client
            .call(Message::MigChannel, query.as_bytes(), &[theirs.as_fd()]);
        match opened {
            Ok(_) => Ok(RawClient::over(ours)),
            Err(errno) => Err(format!("MIG_CHANNEL: errno {errno}").into()),
        }
    }

    /// Resets the device.
    pub fn reset(&mut self) -> Outcome {
        match self.client.request(&Request::DeviceReset, &[]) {
            Ok(_) => Ok(()),
            Err(errno) => Err(format!("DEVICE_RESET: errno {errno}").into()),
        }
    }

    /// The client leaves; returns when the backend has ended.
    pub fn leave(mut self) -> Outcome {
        self.client.stream().shutdown(Shutdown::Both)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every kind of device with migration v2 goes from one backend to another.
pub fn every_variant() -> Outcome {
    for (kind, flags) in [
        ("stop", 1),
        ("p2p", 3),
        ("precopy", 5),
        ("full", 7),
        ("log", 7),
    ] {
        migrate(kind, flags)?;
    }
    no_migration()
}

/// Every layout of the v1 region does, too.
pub fn every_layout() -> Outcome {
    for layout in ["trapped", "mapped", "across", "sparse"] {
        migrate(&format!("v1-{layout}"), 5)?;
    }
    Ok(())
}

fn migrate(kind: &str, flags: u64) -> Outcome {
    let (there, here) = (TestGpu::new(kind)?, TestGpu::new(kind)?);
    let (mut source, mut destination) = (Owner::of(&there)?, Owner::of(&here)?);
    check_eq!(source.migration_flags()?, flags, "{kind}: what migrates");
    source.fill(0x5eed)?;
    destination.fill(0xdead)?;
    let mut stream = Vec::new();
    if flags & 4 != 0 {
        pre_copy(kind, &there, &mut source, &mut stream)?;
    }
    if flags & 6 == 6 {
        source.client.set_state(MigrationState::PreCopyP2p);
    }
    let before = stream.len();
    stream.extend(source.client.stop_and_copy(1 << 20));
    check_eq!(
        there.get("stopped_accesses")?,
        0,
        "{kind}: accesses to the stopped device"
    );
    // Carried in pieces that are nobody's.
    destination.client.set_state(MigrationState::Resuming);
    if let Err(errno) = destination.client.write_all(&stream, 99_991) {
        return Err(format!("{kind}: not loaded, errno {errno}: {}", destination.log()).into());
    }
    destination.client.set_state(MigrationState::Running);
    source.client.set_state(MigrationState::Running);
    let (wanted, seen) = (source.state()?, destination.state()?);
    if let Some(at) =
        (0..wanted.len()).find(|&at| wanted[at] != seen.get(at).copied().unwrap_or(!wanted[at]))
    {
        return Err(format!("{kind}: the states differ at {at:#x}").into());
    }
    for gpu in [&there, &here] {
        check_eq!(
            gpu.get("refused_states")?,
            0,
            "{kind}: states that it does not have"
        );
    }
    say(&format!(
        "{kind}: {} bytes migrated from backend to backend, {} of them stopped",
        stream.len(),
        stream.len() - before
    ));
    Ok(())
}

fn pre_copy(kind: &str, gpu: &TestGpu, source: &mut Owner, stream: &mut Vec<u8>) -> Outcome {
    let v1 = kind.starts_with("v1-");
    source.client.set_state(MigrationState::PreCopy);
    let at_first = source.pending(PENDING_EXACT)?;
    let initial = at_first.initial_bytes + at_first.dirty_bytes;
    check_eq!(
        initial >= VRAM as u64,
        true,
        "{kind}: {at_first:?} at first"
    );
    stream.extend(
        source
            .client
            .read_all(1 << 20)
            .map_err(|errno| format!("errno {errno}"))?,
    );
    let drained = source.pending(PENDING_EXACT)?;
    check_eq!(
        (drained.initial_bytes, drained.dirty_bytes),
        (0, 0),
        "{kind}: pending, with nothing left"
    );
    // The device changes five pages, the guest one.
    gpu.set("scribble", 5)?;
    source.client.write(BAR0, VRAM as u64 - 4, &[1, 2, 3, 4]);
    let dirty = source.pending(PENDING_EXACT)?;
    check_eq!(dirty.dirty_bytes, 6 * 4112, "{kind}: dirty bytes");
    if !v1 {
        let info = source.precopy_info()?;
        check_eq!(
            (info.initial_bytes, info.dirty_bytes),
            (0, 6 * 4112),
            "{kind}: as the kernel says"
        );
    }
    let estimate = source.pending(0)?;
    check_eq!(
        estimate.total_bytes,
        dirty.total_bytes,
        "{kind}: estimate and exact"
    );
    stream.extend(
        source
            .client
            .read_all(1000)
            .map_err(|errno| format!("errno {errno}"))?,
    );
    gpu.set("scribble", 2)?;
    Ok(())
}

/// A device without migration says so, and nothing more.
fn no_migration() -> Outcome {
    let gpu = TestGpu::new("none")?;
    let mut owner = Owner::of(&gpu)?;
    let refused = owner.client.feature(MIGRATION | GET, 16, &[]);
    check_eq!(
        refused.is_err(),
        true,
        "migration of a device that has none"
    );
    say(&format!("none: FEATURE_MIGRATION {refused:?}"));
    check_eq!(
        owner.client.try_set_state(3).is_err(),
        true,
        "STOP_COPY of it"
    );
    Ok(())
}

/// The kernel's sample serial port migrates, with what its guest set up.
pub fn mtty() -> Outcome {
    let function = |uuid| Function::mediated("mtty", "mtty-1", uuid);
    let (there, here) = (
        function("6d747479-0000-4000-8000-000000000001")?,
        function("6d747479-0000-4000-8000-000000000002")?,
    );
    let (mut source, mut destination) = (Owner::of_function(&there)?, Owner::of_function(&here)?);
    check_eq!(source.migration_flags()?, 7, "mtty: what migrates");
    mtty::set_up(&mut source.client, 0x5c)?;
    mtty::set_up(&mut destination.client, 0xa3)?;
    // What the guest of the source decodes is decoded afterwards.
    mtty::decode(&mut destination.client, false);
    source.client.set_state(MigrationState::PreCopy);
    let mut stream = source
        .client
        .read_all(4096)
        .map_err(|errno| format!("errno {errno}"))?;
    let pending = source.pending(PENDING_EXACT)?;
    say(&format!("mtty: {pending:?}"));
    stream.extend(source.client.stop_and_copy(4096));
    destination.client.set_state(MigrationState::Resuming);
    destination
        .client
        .write_all(&stream, 48)
        .map_err(|errno| format!("errno {errno}"))?;
    destination.client.set_state(MigrationState::Running);
    mtty::check(&mut destination.client, 0x5c, "mtty, moved")?;
    say(&format!(
        "mtty: {} bytes migrated from backend to backend",
        stream.len()
    ));
    Ok(())
}
