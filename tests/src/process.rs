// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A child process whose output is kept and which never outlives the test: killed and reaped when dropped.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
    },
    time::Timespec,
};

use crate::PATIENCE;

/// A running (or ended) child with its output.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
    /// Whether a failure message has quoted it already.
    reported: AtomicBool,
}

impl Process {
    /// Starts `command`; `name` stands for it in messages.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn spawn(name: &str, command: Command) -> Self {
        Self::spawn_on(name, command, Stdio::piped())
    }

    /// Starts `command` with `stdin` as its standard input: also the way to hand it a descriptor, as number 0.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn spawn_on(name: &str, mut command: Command, stdin: impl Into<Stdio>) -> Self {
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{name} does not start: {error} ({command:?})"),
        };
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .expect("a child that was not reaped has a pidfd");
        Self {
            name: name.to_owned(),
            stdin: child.stdin.take(),
            stdout: Capture::of(child.stdout.take()),
            stderr: Capture::of(child.stderr.take()),
            child,
            pidfd,
            reported: AtomicBool::new(false),
        }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote on standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it wrote on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let sent = match &mut self.stdin {
            Some(stdin) => stdin.write_all(bytes).and_then(|()| stdin.flush()),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = sent {
            panic!("{} takes no input: {error}\n{}", self.name, self.report());
        }
    }

    /// Waits until standard output holds a whole line for which `wanted` is true, and returns it.
    ///
    /// # Panics
    /// When output ends first, or [`PATIENCE`] does.
    #[track_caller]
    pub fn wait_for_line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        match self.stdout.wait_for_line(wanted) {
            Some(line) => line,
            None => panic!("{} never said {what}\n{}", self.name, self.report()),
        }
    }

    /// Waits until standard error holds `count` lines for which `wanted` is true.
    ///
    /// # Panics
    /// When output ends first, or [`PATIENCE`] does.
    #[track_caller]
    pub fn wait_for_errors(&self, what: &str, count: usize, wanted: impl Fn(&str) -> bool) {
        let found = Cell::new(0);
        let enough = |line: &str| {
            found.set(found.get() + usize::from(wanted(line)));
            found.get() == count
        };
        if self.stderr.wait_for_line(enough).is_none() {
            panic!("{} never said {what}\n{}", self.name, self.report());
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // A pidfd is readable once its process has ended, reaped or not.
        wait_readable(
            &[self.pidfd.as_fd()],
            Some(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .is_some()
    }

    /// Waits for `other` to be readable, or for the process to end; true when `other` is.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn wait_readable_or_end(&self, other: &impl AsFd) -> bool {
        match wait_readable(&[other.as_fd(), self.pidfd.as_fd()], Some(patience())) {
            Some(first) => first == 0,
            None => panic!("nothing happened for {PATIENCE:?}\n{}", self.report()),
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        if wait_readable(&[self.pidfd.as_fd()], Some(patience())).is_none() {
            panic!("{} does not end\n{}", self.name, self.report());
        }
        self.reap()
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Panics
    /// When the signal does not end it within [`PATIENCE`].
    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) -> ExitStatus {
        // An error means that it has ended already, which is what is wanted.
        let _ = pidfd_send_signal(&self.pidfd, signal);
        self.wait()
    }

    /// Stops it (SIGSTOP), and returns once it has stopped.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn suspend(&mut self) {
        self.signal(Signal::STOP);
        // Not WEXITED: a child that ends is still ours to reap.
        let stopped = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::STOPPED);
        assert!(stopped.is_ok(), "{} does not stop: {stopped:?}", self.name);
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            panic!("{} takes no signal: {error}\n{}", self.name, self.report());
        }
    }

    /// All that is known about it, for a failure message.
    #[must_use]
    pub fn report(&self) -> String {
        self.reported.store(true, Ordering::Relaxed);
        let state = if self.has_ended() {
            // Its last words may still be in the pipe.
            self.stdout.wait_until_ended();
            self.stderr.wait_until_ended();
            "ended"
        } else {
            "running"
        };
        format!(
            "--- {name} ({state}), standard output:\n{}\n--- {name}, standard error:\n{}\n---",
            self.stdout().trim_end(),
            self.stderr().trim_end(),
            name = self.name,
        )
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap_or(ExitStatus::from_raw(-1));
        self.stdout.finish();
        self.stderr.finish();
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() && !self.reported.load(Ordering::Relaxed) {
            // A failed test wants to know what everybody had to say.
            eprintln!("{}", self.report());
        }
        let _ = self.child.kill();
        self.reap();
    }
}

/// The index of the first readable descriptor, or none after `limit`.
fn wait_readable(fds: &[rustix::fd::BorrowedFd<'_>], limit: Option<Timespec>) -> Option<usize> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) => return polled.iter().position(|fd| !fd.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll failed: {error}"),
        }
    }
}

fn patience() -> Timespec {
    Timespec {
        tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    }
}

/// The bytes of one output, collected by a thread so that the child never blocks on a full pipe.
#[derive(Debug)]
struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Collected>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let shared = Arc::<Shared>::default();
        let ours = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut chunk = [0; 4096];
            if let Some(mut pipe) = pipe {
                while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                    ours.lock().bytes.extend_from_slice(&chunk[..length]);
                    ours.changed.notify_all();
                }
            }
            ours.lock().ended = true;
            ours.changed.notify_all();
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut state = self.shared.lock();
        loop {
            while let Some(length) = state.bytes[seen..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&state.bytes[seen..seen + length]);
                let line = line.trim_end_matches('\r');
                if wanted(line) {
                    return Some(line.to_owned());
                }
                seen += length + 1;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if state.ended {
                return None;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the output is complete.
    fn wait_until_ended(&self) {
        let state = self.shared.lock();
        let changed = &self.shared.changed;
        drop(changed.wait_timeout_while(state, PATIENCE, |state| !state.ended));
    }

    /// Waits for the end of the output, once the child is gone.
    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command)
    }

    #[test]
    fn output_input_and_status_are_seen() {
        let mut process = shell("echo first; read line; echo got $line; echo bad >&2; exit 7");
        assert_eq!(
            process.wait_for_line("first", |line| line == "first"),
            "first"
        );
        process.send(b"it\n");
        assert_eq!(process.wait().code(), Some(7));
        assert_eq!(process.stdout(), "first\ngot it\n");
        assert_eq!(process.stderr(), "bad\n");
    }

    #[test]
    #[should_panic(expected = "never said anything else")]
    fn a_line_that_never_comes_ends_the_wait_with_the_process() {
        shell("echo something").wait_for_line("anything else", |line| line == "else");
    }

    #[test]
    fn a_report_on_an_ended_process_holds_its_last_words() {
        // Many lines, so that a report made at once would very likely miss the last.
        let process = shell("seq 20000 >&2; echo last >&2; exit 1");
        let (never_readable, _other_end) = rustix::pipe::pipe().expect("a pipe");
        assert!(!process.wait_readable_or_end(&never_readable));
        assert!(process.report().contains("20000\nlast\n"));
    }

    #[test]
    fn dropping_kills_and_reaps() {
        let process = shell("echo up; exec sleep 1000");
        process.wait_for_line("up", |line| line == "up");
        let pid = process.id();
        drop(process);
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        assert_eq!(
            rustix::process::test_kill_process(pid),
            Err(rustix::io::Errno::SRCH),
            "neither running nor a zombie"
        );
    }

    #[test]
    fn ending_by_signal_is_reported() {
        let mut process = shell("echo up; exec sleep 1000");
        process.wait_for_line("up", |line| line == "up");
        assert!(!process.has_ended());
        assert_eq!(process.end_by(Signal::TERM).signal(), Some(15));
        assert!(process.has_ended());
    }
}
