// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keeps the process alive when a mapped file is truncated by its other owner.
//!
//! Touching a page past the end of a mapped file raises SIGBUS. One handler for the process looks the
//! address up in a table of guarded ranges: inside one, it maps zeros over the rest of the range and notes
//! where, so that the copy in progress ends and its caller finds out from [`Guard::lost_from`]; elsewhere
//! the signal takes its default course and ends the process.
//!
//! ```text
//!  guarded range   |======================|xxxxxxxxxxxxxx|
//!                start                 fault            end
//!                  still the file         private zeros
//! ```
//!
//! The handler only loads and stores atomics and makes system calls. Slots of the table are never freed,
//! only reused; a sequence number tells the handler that a slot changed while it was read.

use std::ffi::{c_int, c_void};
use std::ops::RangeInclusive;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{SIG_DFL, SIGBUS, siginfo_t};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::{Signal, getpid, kill_process};
use vmm_sys_util::signal::register_signal_handler;

/// Slots come in segments of this many, allocated when first needed.
const SEGMENT_SLOTS: usize = 1024;
/// Room for two full clients (65,535 maps each) in one process.
const SEGMENTS: usize = 128;
/// Mappings of this process that are left to everything else: the heap, threads, and what a mended range is
/// split into. Without them the handler could not mend.
const RESERVED_MAPPINGS: usize = 4096;
/// `DEFAULT_MAX_MAP_COUNT` of linux/mm.h.
const DEFAULT_MAX_MAP_COUNT: usize = 65_530;
/// Fault addresses are rounded down to this: no supported machine has smaller pages.
const PAGE_MASK: usize = 4095;
/// The value of [`Slot::lost`] while nothing is lost; no page begins there.
const NOTHING_LOST: usize = usize::MAX;

/// BUS_ADRALN, BUS_ADRERR, BUS_OBJERR, BUS_MCEERR_AR (sigaction(2)): raised by an access of this thread.
const SYNCHRONOUS_CODES: RangeInclusive<c_int> = 1..=4;

static TABLE: [OnceLock<Box<[Slot]>>; SEGMENTS] = [const { OnceLock::new() }; SEGMENTS];
static FREE: Mutex<Free> = Mutex::new(Free {
    slots: Vec::new(),
    segments: 0,
    taken: 0,
});
static LIMIT: OnceLock<usize> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();

/// One range of host addresses, readable by the handler without a lock.
#[derive(Debug)]
struct Slot {
    /// Odd while the slot is being written, so that a torn range is never believed.
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// The first address after the range; 0 for a free slot.
    end: AtomicUsize,
    /// The lowest address that was mended, or [`NOTHING_LOST`].
    lost: AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            lost: AtomicUsize::new(NOTHING_LOST),
        }
    }

    /// Only called by the owner of the slot, which the free list makes unique.
    fn set(&self, start: usize, end: usize) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.lost.store(NOTHING_LOST, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The range, if it contains `address`. A slot being written is skipped: the range of the faulting
    /// access itself cannot be, as its guard outlives the access.
    fn range_around(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let stable = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        (stable && (start..end).contains(&address)).then_some((start, end))
    }

    /// Puts zeros where the file no longer reaches. Runs in the signal handler.
    fn mend(&self, address: usize) -> bool {
        let Some((start, end)) = self.range_around(address) else {
            return false;
        };
        // A huge page cannot be split: then the whole range goes.
        [address & !PAGE_MASK, start].into_iter().any(|from| {
            let from = from.max(start);
            // Noted first, so that whoever reads a zero afterwards finds the note.
            self.lost.fetch_min(from, Ordering::SeqCst);
            // SAFETY: [from, end) lies in a range whose guard promises that it is a mapping of the guard's
            // owner, only accessed volatilely, and that stays while an access to it (this one) is going on.
            unsafe {
                mmap_anonymous(
                    ptr::without_provenance_mut(from),
                    end - from,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                )
            }
            .is_ok()
        })
    }
}

#[derive(Debug)]
struct Free {
    slots: Vec<&'static Slot>,
    segments: usize,
    taken: usize,
}

impl Free {
    fn take(&mut self) -> Option<&'static Slot> {
        if self.taken >= *LIMIT.get_or_init(limit) {
            return None;
        }
        if self.slots.is_empty() {
            let segment = TABLE.get(self.segments)?;
            let slots = segment.get_or_init(|| (0..SEGMENT_SLOTS).map(|_| Slot::new()).collect());
            self.segments += 1;
            // Reversed, so that the first slots are handed out, and found, first.
            self.slots.extend(slots.iter().rev());
        }
        let slot = self.slots.pop()?;
        self.taken += 1;
        Some(slot)
    }

    fn give_back(&mut self, slot: &'static Slot) {
        self.slots.push(slot);
        self.taken = self.taken.saturating_sub(1);
    }
}

/// How many ranges can be guarded, given how many mappings the kernel lets a process have.
fn limit() -> usize {
    let setting = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let setting = setting.and_then(|text| text.trim().parse().ok());
    let mappings = setting.unwrap_or(DEFAULT_MAX_MAP_COUNT);
    mappings.saturating_sub(RESERVED_MAPPINGS)
}

/// Why a range cannot be guarded.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum GuardError {
    /// The table is full, or the process has almost as many mappings as it may have.
    #[error("No room for another guarded mapping (vm.max_map_count)")]
    Full,
    /// The kernel refused the signal handler.
    #[error("SIGBUS handler not installed")]
    Install(#[source] Errno),
}

impl GuardError {
    /// The errno for the wire.
    pub fn errno(self) -> Errno {
        match self {
            Self::Full => Errno::NOSPC,
            Self::Install(errno) => errno,
        }
    }
}

/// A range of this process that may lose its file. Dropped before the range is unmapped.
#[derive(Debug)]
pub(super) struct Guard {
    slot: &'static Slot,
    start: usize,
}

impl Guard {
    /// Guards `size` bytes from `start`.
    ///
    /// # Safety
    /// The range must be whole pages of a mapping that belongs to the caller, is only accessed volatilely
    /// (its contents may be replaced at any time), and stays mapped until the guard is dropped.
    pub(super) unsafe fn new(start: *mut u8, size: usize) -> Result<Self, GuardError> {
        INSTALLED
            .get_or_init(install)
            .map_err(GuardError::Install)?;
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.take().ok_or(GuardError::Full)?;
        let start = start.addr();
        slot.set(start, start.saturating_add(size));
        Ok(Self { slot, start })
    }

    /// Where the first lost page begins, in bytes from the start of the range; `None` while nothing is lost.
    ///
    /// To be asked after each access: an access that ended before this offset was to the file.
    pub(super) fn lost_from(&self) -> Option<usize> {
        // The compiler must not move the access that is asked about past the load.
        fence(Ordering::SeqCst);
        let lost = self.slot.lost.load(Ordering::SeqCst);
        (lost != NOTHING_LOST).then(|| lost.saturating_sub(self.start))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.set(0, 0);
        FREE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .give_back(self.slot);
    }
}

extern "C" fn handle(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo that is valid for this call; a SIGBUS that an
    // access raised has its address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let fault = SYNCHRONOUS_CODES.contains(&code);
    let mended = fault
        && TABLE
            .iter()
            .map_while(OnceLock::get)
            .flat_map(|segment| segment.iter())
            .any(|slot| slot.mend(address));
    if !mended {
        // SAFETY: signal(2) is async-signal-safe, and the default action needs no handler.
        unsafe { libc::signal(SIGBUS, SIG_DFL) };
        if !fault {
            // A signal that was sent does not come again by itself, as a faulting instruction does.
            let _ = kill_process(getpid(), Signal::BUS);
        }
    }
}

fn install() -> Result<(), Errno> {
    register_signal_handler(SIGBUS, handle).map_err(|e| Errno::from_raw_os_error(e.errno()))
}
