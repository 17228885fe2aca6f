// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that serving makes, each with who makes it.

use std::collections::BTreeMap;

use libc as l;
use seccompiler::{
    BackendError, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Argument,
    SeccompRule,
};

/// Rules by system call number; an empty list is any arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that open a file by its name.
pub(super) fn opening() -> Rules {
    [l::SYS_openat, l::SYS_openat2]
        .into_iter()
        .chain(legacy_open())
        .map(any)
        .collect()
}

#[cfg(target_arch = "x86_64")]
fn legacy_open() -> [i64; 2] {
    [l::SYS_open, l::SYS_creat]
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy_open() -> [i64; 0] {
    []
}

/// Everything that serving is expected to call.
///
/// # Errors
/// A rule that cannot be expressed.
pub(super) fn expected() -> Result<Rules, BackendError> {
    let calls = [
        l::SYS_recvmsg,           // session, twin: messages
        l::SYS_sendmsg,           // session, twin: messages
        l::SYS_sendto,            // signal-hook: tells the main loop of a signal
        l::SYS_recvfrom,          // main loop: the first message of a refused client
        l::SYS_accept4,           // main loop: clients
        l::SYS_getsockopt,        // main loop: who connects; kinds of sockets a client passed
        l::SYS_getsockname,       // migration channel: whether it leads back here
        l::SYS_getpeername,       // the same
        l::SYS_socketpair,        // VERSION: twin socket
        l::SYS_shutdown,          // ending sessions
        l::SYS_read,              // eventfds, a refused client's header, migration data
        l::SYS_write,             // eventfds, the log on stderr, migration data
        l::SYS_writev,            // the log on stderr
        l::SYS_pread64,           // kernel device: regions, the migration region
        l::SYS_pwrite64,          // kernel device: the same; VRAM: zeros, migration
        l::SYS_close,             // descriptors of a client
        l::SYS_dup,               // descriptors for a client
        l::SYS_fcntl,             // duplicating close-on-exec, seals
        l::SYS_fstat,             // what a client passed as memory
        l::SYS_fstatfs,           // whether its pages are huge, where a file lies
        l::SYS_statx,             // what a client passed; the same, by the standard library
        l::SYS_newfstatat,        // the same, by the C library
        l::SYS_lseek,             // size of what a client passed; which parts of VRAM take room
        l::SYS_memfd_create,      // VRAM for the next client
        l::SYS_ftruncate,         // its size
        l::SYS_fallocate,         // zeroing it
        l::SYS_io_submit,         // interrupts of a software device
        l::SYS_io_getevents,      // the same
        l::SYS_preadv2,           // resample eventfd
        l::SYS_eventfd2,          // watching a resample eventfd
        l::SYS_epoll_create1,     // the same
        l::SYS_epoll_ctl,         // main loop, resample watcher
        l::SYS_epoll_pwait,       // main loop, resample watcher
        l::SYS_ppoll,             // whether a client has left, migration data after EAGAIN
        l::SYS_mmap,              // guest memory, heap, SIGBUS handler
        l::SYS_munmap,            // the same
        l::SYS_mremap,            // heap
        l::SYS_mprotect,          // heap, guard pages of threads
        l::SYS_madvise,           // heap, stacks of threads that ended
        l::SYS_brk,               // heap
        l::SYS_clone3,            // session, DMA and watcher threads
        l::SYS_clone,             // the same, with an older C library
        l::SYS_set_robust_list,   // thread start
        l::SYS_rseq,              // thread start
        l::SYS_sched_getaffinity, // thread start (stack of the new thread)
        l::SYS_prctl,             // thread names
        l::SYS_sigaltstack,       // thread start and end
        l::SYS_rt_sigprocmask,    // thread start, signal handlers
        l::SYS_rt_sigaction,      // SIGBUS handler
        l::SYS_rt_sigreturn,      // signal handlers
        l::SYS_futex,             // locks
        l::SYS_sched_yield,       // locks
        l::SYS_restart_syscall,   // a wait that was stopped and goes on
        l::SYS_clock_gettime,     // rate limits and log, where the vDSO does not do
        l::SYS_clock_nanosleep,   // waiting for a device after a reset
        l::SYS_nanosleep,         // the same
        l::SYS_getrandom,         // seeds of hash tables
        l::SYS_getpid,            // SIGBUS handler, abort
        l::SYS_gettid,            // abort, locks
        l::SYS_kill,              // SIGBUS handler: a SIGBUS that was sent
        l::SYS_tgkill,            // abort
        l::SYS_getrlimit,         // limits named in refusals
        l::SYS_prlimit64,         // the same
        l::SYS_capget,            // kernel device: whether locked memory is limited
        l::SYS_exit,              // end of a thread
        l::SYS_exit_group,        // the end
        l::SYS_unlinkat,          // the socket path
        l::SYS_openat,            // refused by the other filter, not deadly
        l::SYS_openat2,           // the same
    ];
    let mut rules: Rules = calls.into_iter().chain(legacy()).map(any).collect();
    rules.insert(l::SYS_ioctl, ioctls()?);
    Ok(rules)
}

/// Older names of the same calls, where the architecture has them.
#[cfg(target_arch = "x86_64")]
fn legacy() -> [i64; 5] {
    [
        l::SYS_poll,       // whether a client has left, migration data after EAGAIN
        l::SYS_epoll_wait, // main loop, resample watcher
        l::SYS_unlink,     // the socket path
        l::SYS_open,       // refused by the other filter, not deadly
        l::SYS_creat,      // the same
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy() -> [i64; 0] {
    []
}

/// ioctls by number: VFIO (linux/vfio.h), iommufd (linux/iommufd.h), and two of sockets and terminals.
fn ioctls() -> Result<Vec<SeccompRule>, BackendError> {
    let number = |is, value: u64| Argument::new(1, Length::Dword, is, value);
    Ok(vec![
        SeccompRule::new(vec![number(Is::Ge, 0x3b64)?, number(Is::Le, 0x3bff)?])?,
        // FIONBIO: sockets that do not block.
        SeccompRule::new(vec![number(Is::Eq, 0x5421)?])?,
        // TCGETS: whether stderr is a terminal.
        SeccompRule::new(vec![number(Is::Eq, 0x5401)?])?,
    ])
}

fn any(call: i64) -> (i64, Vec<SeccompRule>) {
    (call, Vec::new())
}
