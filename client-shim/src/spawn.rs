// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A backend process per device, over a socket pair, so that no socket path exists for others to find.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Client, Error, Options};

/// How long a disconnected backend may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A backend of one's own and the connection to it. Dropping it disconnects, then waits for the process to
/// end, and kills one that has not after ten seconds.
#[derive(Debug)]
pub struct Spawned {
    /// The connection.
    pub client: Client,
    /// The process; dropping it alone would leave a zombie.
    pub child: Child,
}

/// Starts `command` with `--fd 0` added and one end of a socket pair as its standard input, and negotiates.
///
/// Standard input is how a descriptor gets into one child and no other without `unsafe`: the standard library
/// duplicates it there after the fork, and every other descriptor of this crate is close-on-exec.
///
/// # Errors
/// [`Error::Spawn`], [`Error::BackendEnded`] if the process ended with a failure of its own, or as
/// [`Client::from_stream`].
pub fn spawn(mut command: Command, options: Options) -> Result<Spawned, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::Spawn { program, source };
    let started = UnixStream::pair().and_then(|(ours, theirs)| {
        command
            .arg("--fd")
            .arg("0")
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        Ok((ours, command.spawn()?))
    });
    let (ours, mut child) = started.map_err(failed)?;
    // It holds the child's end: only without it is a child that dies noticed.
    drop(command);
    match Client::from_stream(ours, options) {
        Ok(client) => Ok(Spawned { client, child }),
        Err(source) => Err(match end(&mut child) {
            Ok(status) if !status.success() => Error::BackendEnded {
                status,
                source: Box::new(source),
            },
            _ => source,
        }),
    }
}

impl Spawned {
    /// Disconnects, waits for the process to end, and tells how it did.
    ///
    /// # Errors
    /// The errno of waitpid(2).
    pub fn finish(mut self) -> io::Result<ExitStatus> {
        self.client.disconnect();
        end(&mut self.child)
    }
}

/// Waits for a disconnected child.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let ended = pid
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .is_some_and(|fd| {
            let timeout = Timespec::try_from(PATIENCE).ok();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            retry_on_intr(|| poll(&mut fds, timeout.as_ref())).is_ok_and(|ready| ready > 0)
        });
    if !ended {
        child.kill()?;
    }
    child.wait()
}

impl Drop for Spawned {
    fn drop(&mut self) {
        self.client.disconnect();
        // There is nobody left to tell.
        let _ = end(&mut self.child);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;
    use rustix::process::test_kill_process;

    use super::*;
    use crate::testing::{Peer, capabilities};

    /// A shell that runs `script` and sees `--fd 0` as its parameters 0 and 1.
    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    /// Not a test of its own: the backend that the next one starts.
    #[test]
    #[ignore = "run by a_backend_lives_as_long_as_its_client"]
    fn backend() {
        let stream = io::stdin().as_fd().try_clone_to_owned().unwrap();
        let mut peer = Peer::new(UnixStream::from(stream));
        peer.negotiate(&capabilities(), &[]);
        while let Some(request) = peer.next() {
            peer.reply(&request, &[], &[]);
        }
    }

    #[test]
    fn a_backend_lives_as_long_as_its_client() {
        let mut command = shell(
            "test \"$0 $1\" = '--fd 0' && exec \"$TEST\" --ignored --exact spawn::tests::backend",
        );
        command
            .env("TEST", std::env::current_exe().unwrap())
            .stdout(Stdio::null());
        let mut spawned = spawn(command, Options::default()).unwrap();
        spawned.client.reset().unwrap();
        assert!(spawned.child.try_wait().unwrap().is_none());
        let pid = Pid::from_raw(i32::try_from(spawned.child.id()).unwrap()).unwrap();
        drop(spawned);
        assert_eq!(test_kill_process(pid), Err(Errno::SRCH), "ended and reaped");
    }

    #[test]
    fn a_backend_that_does_not_start_says_how() {
        let missing = spawn(Command::new("/nonexistent/backend"), Options::default()).unwrap_err();
        assert!(matches!(missing, Error::Spawn { .. }), "{missing:?}");
        assert_eq!(missing.errno(), Errno::NOENT.raw_os_error());
        match spawn(shell("exit 3"), Options::default()) {
            Err(Error::BackendEnded { status, .. }) => assert_eq!(status.code(), Some(3)),
            other => panic!("{other:?}"),
        }
        let quiet = spawn(shell("exit 0"), Options::default()).unwrap_err();
        assert!(matches!(quiet, Error::Disconnected), "{quiet:?}");
    }
}
