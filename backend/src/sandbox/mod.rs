// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks this process down once it has every descriptor it will need: no files, no new privileges, and only
//! the system calls of `syscalls.rs`.
//!
//! Entered after device and socket are there and before the first client is. Both filters bind every
//! thread; Landlock binds the calling thread and those it starts, and is what is left with seccomp off.

mod syscalls;

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use log::{info, warn};
use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// What happens on a system call that is not expected (`--seccomp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The process is killed (SIGSYS).
    Kill,
    /// The kernel logs it and lets it pass: to find out what is missing.
    Log,
    /// Nothing is filtered.
    Off,
}

/// Why the process could not be locked down. It must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Privileges can still be gained.
    #[error("no_new_privs")]
    NoNewPrivs(#[source] Errno),
    /// The file system is still there.
    #[error("Landlock")]
    Landlock(#[from] RulesetError),
    /// System calls are not filtered.
    #[error("Seccomp filter")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter cannot be made.
    #[error("Seccomp rules")]
    Rules(#[from] seccompiler::BackendError),
}

/// Gives up what serving does not need. `socket_folder` is where the socket path must be removed at the end.
///
/// # Errors
/// [`SandboxError`]; the process may then be partly locked down.
pub fn enter(socket_folder: Option<&Path>, seccomp: Seccomp) -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::NoNewPrivs)?;
    let files = restrict_files(socket_folder)?;
    if seccomp != Seccomp::Off {
        restrict_calls(seccomp)?;
    }
    info!("Sandboxed: files by {files}, system calls by seccomp ({seccomp:?})");
    Ok(())
}

/// Forbids opening anything by Landlock, where the kernel has it.
fn restrict_files(socket_folder: Option<&Path>) -> Result<&'static str, SandboxError> {
    let abi = ABI::V5;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    if let Some(folder) = socket_folder {
        match PathFd::new(folder) {
            Ok(folder) => rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?,
            Err(error) => warn!("The socket path will stay behind: {error}"),
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => "seccomp only (this kernel has no Landlock)",
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => "Landlock and seccomp",
    })
}

/// Filters the system calls of all threads. Two filters, the stricter answer wins: opening files fails with
/// EACCES (the C library tries, and can do without), everything else that is not expected is deadly.
fn restrict_calls(seccomp: Seccomp) -> Result<(), SandboxError> {
    let unexpected = match seccomp {
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Log | Seccomp::Off => SeccompAction::Log,
    };
    let refused = SeccompAction::Errno(Errno::ACCESS.raw_os_error().unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let opening = SeccompFilter::new(syscalls::opening(), SeccompAction::Allow, refused, arch)?;
    let expected = syscalls::expected()?;
    let expected = SeccompFilter::new(expected, unexpected, SeccompAction::Allow, arch)?;
    for filter in [opening, expected] {
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}
