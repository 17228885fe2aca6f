// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running `vfio-user-gpu` with the model GPU, listening on a socket in a folder of its own.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    process::Signal,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, binaries, process::Process};

/// The backend's process. Dropping it kills it.
#[derive(Debug)]
pub struct Backend {
    process: Process,
    folder: TempDir,
}

impl Backend {
    /// Starts the model GPU with its default 64 MiB of VRAM.
    ///
    /// # Panics
    /// When it ends before it listens.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        Self::start_model(&[])
    }

    /// Starts the model GPU with its VRAM in a file, which [`Backend::vram_file`] names.
    ///
    /// # Panics
    /// When it ends before it listens.
    #[must_use]
    #[track_caller]
    pub fn start_with_vram_file() -> Self {
        Self::start_model(&["vram-file=vram"])
    }

    /// Starts the model GPU with `options` (`NAME=VALUE`); relative paths are inside the backend's folder.
    ///
    /// # Panics
    /// When it ends before it listens.
    #[must_use]
    #[track_caller]
    pub fn start_model(options: &[&str]) -> Self {
        Self::start_with(options, &[])
    }

    /// Starts the model GPU with `options`, and the program with `arguments` beside those that every start has.
    ///
    /// # Panics
    /// When it ends before it listens.
    #[must_use]
    #[track_caller]
    pub fn start_with(options: &[&str], arguments: &[&str]) -> Self {
        let folder = TempDir::with_prefix("vfio-user-gpu-").expect("a temporary folder");
        let socket = folder.path().join("socket");
        // Watched before the start, so that the socket cannot appear unseen.
        let watch = inotify::init(CreateFlags::CLOEXEC).expect("inotify");
        inotify::add_watch(&watch, folder.path(), WatchFlags::CREATE).expect("inotify watch");

        let model = match options {
            [] => "--model".to_owned(),
            options => format!("--model={}", options.join(",")),
        };
        let mut command = Command::new(binaries::backend());
        command
            .arg(model)
            .arg("--socket-path")
            .arg(&socket)
            .args(arguments)
            .current_dir(folder.path())
            // Its log is read, so it must be the default one.
            .env_remove("RUST_LOG");
        let backend = Self {
            process: Process::spawn("vfio-user-gpu", command),
            folder,
        };
        // No trial connection: the first client the backend meets must be the test's own.
        while !is_listening(&socket) {
            if !backend.socket_may_have_appeared(&watch) {
                panic!(
                    "the backend ended before it listened\n{}",
                    backend.process.report()
                );
            }
        }
        backend
    }

    /// False when the process ended instead. Once the socket's path exists, only the instant between bind and listen is
    /// left to wait for.
    #[track_caller]
    fn socket_may_have_appeared(&self, watch: &rustix::fd::OwnedFd) -> bool {
        if self.socket().exists() {
            std::thread::yield_now();
            return !self.process.has_ended();
        }
        let appeared = self.process.wait_readable_or_end(watch);
        let mut events = [std::mem::MaybeUninit::uninit(); 4096];
        if appeared {
            let _ = rustix::io::read(watch, &mut events);
        }
        appeared
    }

    /// The socket a client connects to.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The file behind the VRAM, for [`Backend::start_with_vram_file`].
    #[must_use]
    pub fn vram_file(&self) -> PathBuf {
        self.folder.path().join("vram")
    }

    /// The value of QEMU's `-device` for this backend, without a place on a bus.
    #[must_use]
    pub fn qemu_device(&self) -> Value {
        json!({
            "driver": "vfio-user-pci",
            "id": "gpu",
            "socket": { "type": "unix", "path": self.socket() },
            // An emulated guest on a loaded machine may leave the backend without a processor for a while.
            "x-msg-timeout": 60_000,
        })
    }

    /// The process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// How many descriptors the process has open.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    #[track_caller]
    pub fn open_descriptors(&self) -> usize {
        match fs::read_dir(format!("/proc/{}/fd", self.process_id())) {
            Ok(entries) => entries.count(),
            Err(error) => panic!("no descriptors to be seen: {error}\n{}", self.report()),
        }
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.process.has_ended()
    }

    /// Kills it as a crash would: no clean-up of any kind.
    ///
    /// # Panics
    /// When it cannot be killed.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.end_by(Signal::KILL);
    }

    /// Stops it where it is, until [`Backend::resume`].
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn suspend(&mut self) {
        self.process.suspend();
    }

    /// Lets it go on after [`Backend::suspend`].
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Waits until `count` clients have left and the backend is free for the next, as its log says. (A killed QEMU's
    /// socket outlives it for a moment: the kernel takes io_uring down behind the scenes.)
    ///
    /// # Panics
    /// When they do not leave.
    #[track_caller]
    pub fn wait_until_left(&self, count: usize) {
        let what = format!("that {count} clients left");
        self.process.wait_for_errors(&what, count, |line| {
            line.ends_with("Client left") || line.contains("Session ended")
        });
    }

    /// Waits until its log holds `count` lines with `text` in them.
    ///
    /// # Panics
    /// When it ends first, or never says so.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str, count: usize) {
        self.process
            .wait_for_errors(text, count, |line| line.contains(text));
    }

    /// Becomes the backend's next client and does nothing but agree on a version: when this returns, the backend is done
    /// with its previous client, and nothing that it did was done at the new one's request.
    ///
    /// # Panics
    /// When the backend refuses.
    #[must_use]
    #[track_caller]
    pub fn attach(&self) -> UnixStream {
        match self.try_attach() {
            Ok(stream) => stream,
            Err(errno) => panic!("the backend refuses: errno {errno}\n{}", self.report()),
        }
    }

    /// Tries once to become the backend's client, by the shortest VERSION message there is.
    ///
    /// # Errors
    /// The errno in the backend's reply.
    ///
    /// # Panics
    /// When it does not reply at all.
    #[track_caller]
    pub fn try_attach(&self) -> Result<UnixStream, u32> {
        // Header: id, command VERSION (1), size, flags (a command), error; then version 0.0 and capabilities.
        let mut request = vec![0, 0, 1, 0, 23, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        request.extend_from_slice(b"{}\0");
        let mut stream = UnixStream::connect(self.socket()).expect("the backend listens");
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let mut reply = [0; 16];
        let exchanged = stream
            .write_all(&request)
            .and_then(|()| stream.read_exact(&mut reply));
        if let Err(error) = exchanged {
            panic!("the backend does not reply: {error}\n{}", self.report());
        }
        let [.., e0, e1, e2, e3] = reply;
        match u32::from_le_bytes([e0, e1, e2, e3]) {
            0 => Ok(stream),
            errno => Err(errno),
        }
    }

    /// Asks it to end, as a service manager would.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.end_by(Signal::TERM)
    }

    /// Its output, for failure messages.
    #[must_use]
    pub fn report(&self) -> String {
        self.process.report()
    }
}

/// Whether some process listens on the Unix socket `path`, by the kernel's own table.
fn is_listening(path: &Path) -> bool {
    /// `__SO_ACCEPTCON`, as /proc/net/unix shows a listening socket.
    const LISTENING: &str = "00010000";
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().any(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut columns = line.split_ascii_whitespace();
        columns.nth(3) == Some(LISTENING) && columns.nth(3).map(Path::new) == Some(path)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_others() {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("socket");
        assert!(!is_listening(&path));
        let listener = UnixListener::bind(&path).expect("a socket");
        assert!(is_listening(&path));
        drop(listener);
        assert!(
            path.exists() && !is_listening(&path),
            "a path alone is not a listener"
        );
    }
}
