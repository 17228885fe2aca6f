// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The backend, started in the guest on a kernel device and driven through the client library.

use std::{
    error::Error,
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use rustix::process::Signal;
use vfio_user_client::{Client, Options, RegionInfo, Spawned, mapping::RegionMapping, spawn};

use super::{edu::Registers, pci::Function};

const PROGRAM: &str = "/bin/vfio-user-gpu";
/// Where a backend of several clients listens.
pub const SOCKET: &str = "/tmp/gpu.sock";
const LOG: &str = "/tmp/backend.log";

/// Region of PCI's config space.
pub const CONFIG: u32 = 7;
/// `VFIO_PCI_INTX_IRQ_INDEX` and its neighbours.
pub const INTX: u32 = 0;
/// Message-signalled interrupts.
pub const MSI: u32 = 1;
/// Message-signalled interrupts with a table.
pub const MSIX: u32 = 2;
/// The kernel wants the device back.
pub const REQ: u32 = 4;

/// A backend in the making.
pub struct Launch {
    command: Command,
}

impl Launch {
    /// With these arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        Self { command }
    }

    /// On `function`, which is given to vfio-pci first.
    pub fn on(function: &Function) -> Result<Self, Box<dyn Error>> {
        function.bind_to_vfio()?;
        Ok(Self::with(&["--device", &function.address()]))
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// As an ordinary user.
    pub fn user_id(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Starts it with a connection that only we have.
    pub fn attach(self) -> Result<Backend, Box<dyn Error>> {
        self.attach_with(Options::default())
    }

    /// The same, as a client that offers this.
    pub fn attach_with(mut self, options: Options) -> Result<Backend, Box<dyn Error>> {
        self.command.stderr(File::create(LOG)?);
        match spawn(self.command, options) {
            Ok(spawned) => Ok(Backend { spawned }),
            Err(error) => Err(format!("{}; it said: {}", chain(&error), last_words()).into()),
        }
    }

    /// Starts it listening on [`SOCKET`].
    pub fn listen(self) -> Result<Listening, Box<dyn Error>> {
        self.listen_at(SOCKET)
    }

    /// Starts it listening.
    pub fn listen_at(mut self, socket: &'static str) -> Result<Listening, Box<dyn Error>> {
        self.command.args(["--socket-path", socket]);
        Listening::start(self.command, socket)
    }

    /// Starts it where it must refuse, and returns the one line in which it says why.
    pub fn refused(mut self) -> Result<String, Box<dyn Error>> {
        // A client that is gone already: a backend that starts after all ends at once.
        let (theirs, ours) = UnixStream::pair()?;
        drop(ours);
        let output = self
            .command
            .args(["--log-level", "error", "--fd", "0"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned();
        if output.status.success() {
            return Err(format!("the backend started; it said: {said}").into());
        }
        if output.status.code().is_none() {
            return Err(format!("the backend died by {}; it said: {said}", output.status).into());
        }
        if said.lines().count() != 1 {
            return Err(format!("not one line: {said:?}").into());
        }
        Ok(said)
    }
}

/// A running backend that takes one client after another.
pub struct Listening {
    child: Child,
    socket: &'static str,
}

impl Listening {
    /// Starts the backend by `command`, which has it listen on `socket`.
    pub fn start(mut command: Command, socket: &'static str) -> Result<Self, Box<dyn Error>> {
        let child = command
            .stderr(File::create(LOG)?)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next client, once the backend listens and has done with the one before.
    pub fn connect(&mut self) -> Result<Client, Box<dyn Error>> {
        loop {
            let error = match Client::connect(self.socket, Options::default()) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                let error = chain(&error);
                return Err(format!(
                    "{error}; the backend ended, {status}; it said: {}",
                    last_words()
                )
                .into());
            }
            thread::yield_now();
        }
    }

    /// Asks it to end.
    pub fn terminate(mut self) -> Result<ExitStatus, Box<dyn Error>> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), Signal::TERM)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running backend and the connection to it.
pub struct Backend {
    spawned: Spawned,
}

impl Backend {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.spawned.child.id()
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<(), Box<dyn Error>> {
        self.spawned.child.kill()?;
        self.spawned.child.wait()?;
        Ok(())
    }

    /// How often its threads have waited for something so far.
    pub fn waits(&self) -> Result<u64, Box<dyn Error>> {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += line
                .ok_or("no count of context switches")?
                .trim()
                .parse::<u64>()?;
        }
        Ok(sum)
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        last_words()
    }
}

impl Device for Backend {
    fn client(&self) -> &Client {
        &self.spawned.client
    }
}

impl Device for Client {
    fn client(&self) -> &Client {
        self
    }
}

/// The device behind a connection, as a guest sees it.
pub trait Device {
    /// The connection.
    fn client(&self) -> &Client;

    /// Reads config space.
    fn config<const N: usize>(&self, offset: u16) -> Result<[u8; N], Box<dyn Error>> {
        let mut bytes = [0; N];
        self.client()
            .region_read(CONFIG, u64::from(offset), &mut bytes)
            .map_err(|error| chain(&error))?;
        Ok(bytes)
    }

    /// Reads 16 bits of config space.
    fn config16(&self, offset: u16) -> Result<u16, Box<dyn Error>> {
        Ok(u16::from_le_bytes(self.config(offset)?))
    }

    /// Writes 16 bits of config space.
    fn set_config16(&self, offset: u16, value: u16) -> Result<(), Box<dyn Error>> {
        let written = self
            .client()
            .region_write(CONFIG, u64::from(offset), &value.to_le_bytes());
        written.map_err(|error| chain(&error).into())
    }

    /// Writes 32 bits of config space.
    fn set_config32(&self, offset: u16, value: u32) -> Result<(), Box<dyn Error>> {
        let written = self
            .client()
            .region_write(CONFIG, u64::from(offset), &value.to_le_bytes());
        written.map_err(|error| chain(&error).into())
    }

    /// Where capability `id` is.
    fn capability(&self, id: u8) -> Result<u16, Box<dyn Error>> {
        let mut at = self.config::<1>(system_tests::pci::CAPABILITIES)?[0];
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let [found, next] = self.config(u16::from(at))?;
            if found == id {
                return Ok(at.into());
            }
            at = next;
        }
        Err(format!("no capability {id:#x}").into())
    }

    /// Sets bits of the command register.
    fn enable(&self, bits: u16) -> Result<(), Box<dyn Error>> {
        let command = self.config16(system_tests::pci::COMMAND)?;
        self.set_config16(system_tests::pci::COMMAND, command | bits)
    }

    /// One region.
    fn region(&self, index: u32) -> Result<RegionInfo, Box<dyn Error>> {
        self.client()
            .region_info(index)
            .map_err(|error| chain(&error).into())
    }

    /// A region through messages.
    fn trapped(&self, region: u32) -> Trapped<'_> {
        Trapped {
            client: self.client(),
            region,
        }
    }

    /// A region through a mapping, where the backend was told to hand it over.
    fn mapped(&self, region: u32) -> Result<Mapped, Box<dyn Error>> {
        let info = self.region(region)?;
        if info.mapping.is_none() {
            return Err(format!(
                "region {region} is not handed over; the backend said: {}",
                last_words()
            )
            .into());
        }
        Ok(Mapped(info.map().map_err(|error| chain(&error))?))
    }
}

/// A region through messages.
pub struct Trapped<'a> {
    client: &'a Client,
    region: u32,
}

impl Registers for Trapped<'_> {
    fn read32(&self, offset: u64) -> Result<u32, Box<dyn Error>> {
        let mut bytes = [0; 4];
        self.client
            .region_read(self.region, offset, &mut bytes)
            .map_err(|error| chain(&error))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), Box<dyn Error>> {
        let written = self
            .client
            .region_write(self.region, offset, &value.to_le_bytes());
        written.map_err(|error| chain(&error).into())
    }

    fn read64(&self, offset: u64) -> Result<u64, Box<dyn Error>> {
        let mut bytes = [0; 8];
        self.client
            .region_read(self.region, offset, &mut bytes)
            .map_err(|error| chain(&error))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), Box<dyn Error>> {
        let written = self
            .client
            .region_write(self.region, offset, &value.to_le_bytes());
        written.map_err(|error| chain(&error).into())
    }
}

/// A region through a mapping.
pub struct Mapped(RegionMapping);

impl Registers for Mapped {
    fn read32(&self, offset: u64) -> Result<u32, Box<dyn Error>> {
        Ok(u32::from_le(self.0.read(offset)?))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), Box<dyn Error>> {
        Ok(self.0.write(offset, value.to_le())?)
    }

    fn read64(&self, offset: u64) -> Result<u64, Box<dyn Error>> {
        Ok(u64::from_le(self.0.read(offset)?))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), Box<dyn Error>> {
        Ok(self.0.write(offset, value.to_le())?)
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn last_words() -> String {
    fs::read_to_string(LOG)
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}
