// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The video memory of the model GPU: a file that the client maps and that the engine works on.
//!
//! The client gets the descriptor and may do with the file what it likes. A memfd is sealed, so that its
//! size stays; a named file cannot be, and may be truncated: then accesses find it lost until the next
//! [`Vram::zero`].

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{
    FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, fallocate,
    fcntl_add_seals, fcntl_setfl, fstat, ftruncate, memfd_create, open, seek,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec, pwrite};
use vm_memory::VolatileSlice;

use crate::memory::{Access, Mapping, MappingError};
use crate::migration::{Lend, Lent};

/// The least VRAM, in bytes.
pub const MIN_SIZE: u64 = 1 << 20;
/// The most VRAM, in bytes.
pub const MAX_SIZE: u64 = 16 << 30;
/// VRAM unless told otherwise, in bytes.
pub const DEFAULT_SIZE: u64 = 64 << 20;

/// Bytes written at once where holes cannot be punched.
const ZERO_CHUNK: usize = 1 << 20;
/// Bytes of a unit of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

/// Why VRAM cannot be had, or not cleared.
#[derive(Debug, thiserror::Error)]
pub enum VramError {
    /// Not a power of two between [`MIN_SIZE`] and [`MAX_SIZE`].
    #[error("VRAM of {0} bytes: must be a power of two from 1M to 16G")]
    Size(u64),
    /// The path names something that is no regular file.
    #[error("VRAM file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The operating system refused.
    #[error("VRAM: {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The file cannot be mapped.
    #[error("VRAM cannot be mapped")]
    Mapping(#[from] MappingError),
}

impl From<VramError> for io::Error {
    fn from(error: VramError) -> Self {
        match error {
            VramError::Size(_) | VramError::NotAFile(_) => Errno::INVAL.into(),
            VramError::Io { source, .. } => source.into(),
            VramError::Mapping(error) => error.errno().into(),
        }
    }
}

/// Why an access to VRAM failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VramFault {
    /// The range is not all inside.
    #[error("Outside VRAM: offset {offset:#x}, {length:#x} bytes")]
    Outside {
        /// Bytes from the start.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// The file no longer reaches this far.
    #[error("VRAM is lost from {offset:#x} on, its file was truncated")]
    Lost {
        /// Bytes from the start.
        offset: u64,
    },
}

/// Video memory, zero at first, of which only what is touched takes room.
#[derive(Debug)]
pub struct Vram {
    size: u64,
    /// Its file has a name and is kept for whoever looks at it.
    named: bool,
    memory: RwLock<Arc<Memory>>,
}

/// The file and where it is mapped.
#[derive(Debug)]
struct Memory {
    file: OwnedFd,
    mapping: Mapping,
}

impl Vram {
    /// VRAM that nobody can name, for the client to map.
    ///
    /// # Errors
    /// A bad size, or what the operating system says.
    pub fn anonymous(size: u64) -> Result<Self, VramError> {
        check_size(size)?;
        Self::over(sealed_memfd(size)?, size, false)
    }

    /// VRAM in a file, created if need be, so that what the guest drew can be looked at. Its former contents
    /// are dropped.
    ///
    /// # Errors
    /// A bad size, a path that is no regular file, or what the operating system says.
    pub fn named(path: &Path, size: u64) -> Result<Self, VramError> {
        check_size(size)?;
        // NONBLOCK: opening a fifo must not wait for its other end.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = open(path, flags | OFlags::NOCTTY, mode).map_err(refused("opening the file"))?;
        let status = fstat(&file).map_err(refused("fstat"))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(VramError::NotAFile(path.to_path_buf()));
        }
        ftruncate(&file, size).map_err(refused("ftruncate"))?;
        let vram = Self::over(file, size, true)?;
        vram.zero()?;
        Ok(vram)
    }

    fn over(file: OwnedFd, size: u64, named: bool) -> Result<Self, VramError> {
        let memory = RwLock::new(Arc::new(Memory::new(file, size)?));
        Ok(Self {
            size,
            named,
            memory,
        })
    }

    /// Bytes of VRAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A descriptor of the file, for the client to map from offset 0.
    ///
    /// # Errors
    /// The errno of dup(2).
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.memory().file.try_clone()
    }

    fn memory(&self) -> RwLockReadGuard<'_, Arc<Memory>> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, Arc<Memory>> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `visit` with part of the memory, which must not use this VRAM itself.
    ///
    /// # Errors
    /// The range is not inside, or the file was found truncated.
    pub fn with<R>(
        &self,
        offset: u64,
        length: u64,
        visit: impl FnOnce(VolatileSlice<'_>) -> R,
    ) -> Result<R, VramFault> {
        let memory = self.memory();
        let mapping = &memory.mapping;
        let result = visit(part(mapping, offset, length)?);
        check_kept(mapping, offset, length)?;
        Ok(result)
    }

    /// Copies within VRAM. Ranges that overlap are copied as by memmove.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn copy(&self, src: u64, dst: u64, length: u64) -> Result<(), VramFault> {
        let memory = self.memory();
        let mapping = &memory.mapping;
        let source = part(mapping, src, length)?;
        source.copy_to_volatile_slice(part(mapping, dst, length)?);
        check_kept(mapping, src, length)?;
        check_kept(mapping, dst, length)
    }

    /// Fills `data` from VRAM.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), VramFault> {
        self.with(offset, data.len() as u64, |slice| {
            slice.copy_to(data);
        })
    }

    /// Writes `data` to VRAM.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), VramFault> {
        self.with(offset, data.len() as u64, |slice| slice.copy_from(data))
    }

    /// Writes what somebody else may be changing, as a migration does that fills all of VRAM: by the file, where
    /// the kernel does not have to zero pages and enter them one by one before they are written.
    ///
    /// # Errors
    /// As [`Self::with`]; [`VramFault::Lost`] too when `data` is memory that was lost.
    pub fn write_shared(&self, offset: u64, data: &VolatileSlice<'_>) -> Result<(), VramFault> {
        if self.named {
            // A named file that was truncated must not grow again by this.
            return self.with(offset, data.len() as u64, |vram| {
                data.copy_to_volatile_slice(vram);
            });
        }
        let memory = self.memory();
        let length = data.len() as u64;
        part(&memory.mapping, offset, length)?;
        let mut done = 0;
        while let Ok(rest) = data.offset(done)
            && !rest.is_empty()
        {
            let at = offset.saturating_add(done as u64);
            match pwrite_shared(&memory.file, &rest, at) {
                Ok(written) if written > 0 => done += written,
                Err(Errno::INTR) => {}
                _ => return Err(VramFault::Lost { offset: at }),
            }
        }
        Ok(())
    }

    /// Copies from the file, for as much as `into` takes: pages that only the client has touched need not come into
    /// the tables of this process first.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn read_file(&self, offset: u64, into: &VolatileSlice<'_>) -> Result<(), VramFault> {
        let memory = self.memory();
        part(&memory.mapping, offset, into.len() as u64)?;
        let mut done = 0;
        while let Ok(rest) = into.offset(done)
            && !rest.is_empty()
        {
            let at = offset.saturating_add(done as u64);
            match pread_shared(&memory.file, &rest, at) {
                Ok(read) if read > 0 => done += read,
                Err(Errno::INTR) => {}
                _ => return Err(VramFault::Lost { offset: at }),
            }
        }
        Ok(())
    }

    /// A part of the memory to be sent from where it lies; it stays while it is lent, with whatever is written to it. Not
    /// of a named file, which may be truncated meanwhile.
    #[must_use]
    pub fn lend(&self, offset: u64, length: usize) -> Option<Lent> {
        if self.named {
            return None;
        }
        let memory = Arc::clone(&self.memory());
        part(&memory.mapping, offset, length as u64).ok()?;
        let offset = usize::try_from(offset).ok()?;
        Some(Lent {
            memory,
            offset,
            length,
        })
    }

    /// Makes every byte 0 and gives the room back; a named file that was truncated is whole again.
    ///
    /// # Errors
    /// What the operating system says; the contents are then unknown.
    pub fn zero(&self) -> Result<(), VramError> {
        let mut memory = self.memory_mut();
        let status = fstat(&memory.file).map_err(refused("fstat"))?;
        if u64::try_from(status.st_size) != Ok(self.size) {
            ftruncate(&memory.file, self.size).map_err(refused("ftruncate"))?;
        }
        let all = usize::try_from(self.size).unwrap_or(usize::MAX);
        if memory.mapping.lost_within(0, all).is_some() {
            let file = fcntl_dupfd_cloexec(&memory.file, 0).map_err(refused("dup"))?;
            *memory = Arc::new(Memory::new(file, self.size)?);
        }
        memory.zero(0..self.size)
    }

    /// Takes back what a client may have made of the file's flags, which it shares: writes that append, above all. A
    /// client that is still there can do so again.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn as_opened(&self) -> Result<(), VramError> {
        fcntl_setfl(&self.memory().file, OFlags::empty()).map_err(refused("F_SETFL"))
    }

    /// Makes a range 0 and gives its room back.
    ///
    /// # Errors
    /// Not inside (EINVAL), or what the operating system says; the contents are then unknown.
    pub fn zero_range(&self, offset: u64, length: u64) -> Result<(), VramError> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| refused("zeroing a range")(Errno::INVAL))?;
        self.memory().zero(offset..end)
    }

    /// About how many bytes take room.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn allocated(&self) -> Result<u64, VramError> {
        let status = fstat(&self.memory().file).map_err(refused("fstat"))?;
        let blocks = u64::try_from(status.st_blocks).unwrap_or(0);
        Ok(blocks.saturating_mul(BLOCK).min(self.size))
    }

    /// Visits the parts that take room, in order; all else is zero. What is touched meanwhile may be missed.
    ///
    /// Moves the position of the file, which is the client's too. Nobody needs it: the file is mapped.
    ///
    /// # Errors
    /// The file was found truncated (EIO), or what the operating system says.
    pub fn for_each_allocated(&self, mut visit: impl FnMut(Range<u64>)) -> Result<(), VramError> {
        let file = &self.memory().file;
        let status = fstat(file).map_err(refused("fstat"))?;
        if u64::try_from(status.st_size).map_or(true, |size| size < self.size) {
            return Err(refused("its file was truncated")(Errno::IO));
        }
        let mut at = 0;
        while at < self.size {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(refused("looking for data")(errno)),
            };
            let end = match seek(file, SeekFrom::Hole(start)) {
                // A hole that was punched in between must not make this loop for ever.
                Ok(end) => end.max(start.saturating_add(1)),
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(refused("looking for a hole")(errno)),
            };
            if start < self.size {
                visit(start..end.min(self.size));
            }
            at = end;
        }
        Ok(())
    }

    /// Zeros for another client: one that kept its descriptor or mapping has no part in them. (A named file
    /// stays the same file; whoever can open it was trusted with it.)
    ///
    /// # Errors
    /// What the operating system says; the contents are then unknown.
    pub fn renew(&self) -> Result<(), VramError> {
        if self.named {
            return self.zero();
        }
        *self.memory_mut() = Arc::new(Memory::new(sealed_memfd(self.size)?, self.size)?);
        Ok(())
    }
}

impl Lend for Memory {
    fn part(&self, offset: usize, length: usize) -> Option<VolatileSlice<'_>> {
        self.mapping.slice(offset, length)
    }
}

impl Memory {
    fn new(file: OwnedFd, size: u64) -> Result<Self, VramError> {
        let mapping = Mapping::new(file.as_fd(), 0, size, Access::READ_WRITE)?;
        Ok(Self { file, mapping })
    }

    fn zero(&self, range: Range<u64>) -> Result<(), VramError> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = range.end.saturating_sub(range.start);
        match fallocate(&self.file, punch, range.start, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => {
                write_zeros(&self.file, range).map_err(refused("writing zeros"))
            }
            Err(errno) => Err(refused("punching a hole")(errno)),
        }
    }
}

/// A memfd whose size nobody can change.
fn sealed_memfd(size: u64) -> Result<OwnedFd, VramError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("model-gpu-vram", flags).map_err(refused("memfd_create"))?;
    ftruncate(&file, size).map_err(refused("ftruncate"))?;
    // SEAL too: the client must not add a seal against writing, which would forbid punching holes.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(refused("sealing the size"))?;
    Ok(file)
}

/// pwrite(2) from memory that is no Rust slice, since others may change it.
fn pwrite_shared(file: &OwnedFd, data: &VolatileSlice<'_>, offset: u64) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::FBIG)?;
    let guard = data.ptr_guard();
    // SAFETY: the kernel only reads `data.len()` bytes, which are mapped as long as the slice lives; what cannot be
    // read any more is EFAULT.
    let written =
        unsafe { libc::pwrite(file.as_raw_fd(), guard.as_ptr().cast(), data.len(), offset) };
    usize::try_from(written)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// pread(2) into memory that is no Rust slice, since others may change it.
fn pread_shared(file: &OwnedFd, into: &VolatileSlice<'_>, offset: u64) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::FBIG)?;
    let guard = into.ptr_guard_mut();
    // SAFETY: the kernel writes no more than `into.len()` bytes, which are mapped as long as the slice lives; what
    // cannot be written any more is EFAULT.
    let read = unsafe { libc::pread(file.as_raw_fd(), guard.as_ptr().cast(), into.len(), offset) };
    usize::try_from(read)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// For file systems that cannot punch holes.
fn write_zeros(file: &OwnedFd, range: Range<u64>) -> Result<(), Errno> {
    let zeros = vec![0; ZERO_CHUNK];
    let mut offset = range.start;
    while offset < range.end {
        let rest = usize::try_from(range.end - offset).unwrap_or(ZERO_CHUNK);
        match pwrite(file, &zeros[..rest.min(ZERO_CHUNK)], offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => offset += written as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn part(mapping: &Mapping, offset: u64, length: u64) -> Result<VolatileSlice<'_>, VramFault> {
    let from = usize::try_from(offset).ok();
    let count = usize::try_from(length).ok();
    from.zip(count)
        .and_then(|(from, count)| mapping.slice(from, count))
        .ok_or(VramFault::Outside { offset, length })
}

/// Whether an access that is over was to the file all along.
fn check_kept(mapping: &Mapping, offset: u64, length: u64) -> Result<(), VramFault> {
    // Both fitted into the mapping, so they fit into usize.
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let count = usize::try_from(length).unwrap_or(usize::MAX);
    match mapping.lost_within(from, count) {
        Some(at) => Err(VramFault::Lost { offset: at as u64 }),
        None => Ok(()),
    }
}

fn check_size(size: u64) -> Result<(), VramError> {
    if size.is_power_of_two() && (MIN_SIZE..=MAX_SIZE).contains(&size) {
        Ok(())
    } else {
        Err(VramError::Size(size))
    }
}

fn refused(what: &'static str) -> impl FnOnce(Errno) -> VramError {
    move |source| VramError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use rustix::fs::fcntl_get_seals;
    use rustix::io::pread;

    use super::*;

    fn blocks(vram: &Vram) -> i64 {
        fstat(vram.share().unwrap()).unwrap().st_blocks
    }

    /// A path that no other test has, removed at the end.
    struct TempPath(PathBuf);

    impl TempPath {
        fn new(name: &str) -> Self {
            let name = format!("vfio-user-gpu-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for TempPath {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn sizes_are_checked() {
        for size in [0, 1, MIN_SIZE / 2, 3 << 20, MAX_SIZE * 2, u64::MAX] {
            assert!(matches!(Vram::anonymous(size), Err(VramError::Size(s)) if s == size));
        }
        assert_eq!(Vram::anonymous(MAX_SIZE).unwrap().size(), MAX_SIZE);
    }

    #[test]
    fn a_client_cannot_resize_or_seal_it() {
        let vram = Vram::anonymous(MIN_SIZE).unwrap();
        let client = vram.share().unwrap();
        assert_eq!(ftruncate(&client, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&client, 2 * MIN_SIZE), Err(Errno::PERM));
        let seal = fcntl_add_seals(&client, SealFlags::FUTURE_WRITE);
        assert_eq!(seal, Err(Errno::PERM));
        assert!(
            fcntl_get_seals(&client)
                .unwrap()
                .contains(SealFlags::SHRINK)
        );
    }

    #[test]
    fn room_is_taken_by_use_and_given_back() {
        let vram = Vram::anonymous(1 << 30).unwrap();
        assert_eq!(blocks(&vram), 0);
        vram.write((1 << 30) - 2, &[5, 6]).unwrap();
        let mut back = [0; 2];
        pread(vram.share().unwrap(), &mut back, (1 << 30) - 2).unwrap();
        assert_eq!(back, [5, 6]);
        assert!(blocks(&vram) > 0);
        vram.zero().unwrap();
        assert_eq!(blocks(&vram), 0);
        vram.read((1 << 30) - 2, &mut back).unwrap();
        assert_eq!(back, [0, 0]);
    }

    #[test]
    fn a_former_client_has_no_part_in_renewed_vram() {
        let vram = Vram::anonymous(MIN_SIZE).unwrap();
        let former = vram.share().unwrap();
        pwrite(&former, b"left", 0).unwrap();
        vram.renew().unwrap();
        pwrite(&former, b"late", 0).unwrap();
        let mut seen = [1; 4];
        vram.read(0, &mut seen).unwrap();
        assert_eq!(seen, [0; 4]);
        vram.write(0, b"next").unwrap();
        pread(&former, &mut seen, 0).unwrap();
        assert_eq!(&seen, b"late");
    }

    #[test]
    fn accesses_stay_inside() {
        let vram = Vram::anonymous(MIN_SIZE).unwrap();
        for offset in [MIN_SIZE, MIN_SIZE - 1, u64::MAX, u64::MAX - 1] {
            let outside = VramFault::Outside { offset, length: 2 };
            assert_eq!(vram.write(offset, &[0; 2]), Err(outside));
            assert_eq!(vram.copy(0, offset, 2), Err(outside));
            assert_eq!(vram.copy(offset, 0, 2), Err(outside));
        }
        vram.write(0, b"abcd").unwrap();
        vram.copy(0, MIN_SIZE - 4, 4).unwrap();
        let mut back = [0; 4];
        vram.read(MIN_SIZE - 4, &mut back).unwrap();
        assert_eq!(&back, b"abcd");
    }

    #[test]
    fn a_named_file_is_created_reused_and_emptied() {
        let path = TempPath::new("reused");
        drop(Vram::named(&path.0, MIN_SIZE).unwrap());
        std::fs::write(&path.0, b"left by another").unwrap();
        let vram = Vram::named(&path.0, 2 * MIN_SIZE).unwrap();
        let mut start = [1; 4];
        vram.read(0, &mut start).unwrap();
        assert_eq!(start, [0; 4]);
        vram.write(2 * MIN_SIZE - 4, b"pixl").unwrap();
        let seen = std::fs::read(&path.0).unwrap();
        assert_eq!(seen.len() as u64, 2 * MIN_SIZE);
        assert!(seen.ends_with(b"pixl"));
    }

    #[test]
    fn a_truncated_named_file_is_lost_until_zeroed() {
        let path = TempPath::new("truncated");
        let vram = Vram::named(&path.0, MIN_SIZE).unwrap();
        vram.write(0x8000, &[1]).unwrap();
        ftruncate(vram.share().unwrap(), 0x4000).unwrap();
        assert_eq!(
            vram.read(0x8000, &mut [0]),
            Err(VramFault::Lost { offset: 0x8000 })
        );
        vram.zero().unwrap();
        vram.write(0x8000, &[2]).unwrap();
        let mut byte = [0];
        pread(vram.share().unwrap(), &mut byte, 0x8000).unwrap();
        assert_eq!(byte, [2]);
    }

    #[test]
    fn zeros_can_be_written_too() {
        let vram = Vram::anonymous(4 * MIN_SIZE).unwrap();
        vram.write(4 * MIN_SIZE - 1, &[9]).unwrap();
        write_zeros(&vram.share().unwrap(), 0..4 * MIN_SIZE).unwrap();
        let mut byte = [1];
        vram.read(4 * MIN_SIZE - 1, &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn shared_memory_is_written_inside_only() {
        let path = TempPath::new("shared");
        for vram in [Vram::anonymous(MIN_SIZE), Vram::named(&path.0, MIN_SIZE)] {
            let vram = vram.unwrap();
            let mut data = *b"abcd";
            let data = VolatileSlice::from(&mut data[..]);
            vram.write_shared(MIN_SIZE - 4, &data).unwrap();
            for offset in [MIN_SIZE - 3, MIN_SIZE, u64::MAX] {
                let outside = VramFault::Outside { offset, length: 4 };
                assert_eq!(vram.write_shared(offset, &data), Err(outside));
            }
            let mut back = [0; 4];
            vram.read(MIN_SIZE - 4, &mut back).unwrap();
            assert_eq!(&back, b"abcd");
        }
    }

    #[test]
    fn what_takes_room_is_found_and_ranges_are_given_back() {
        let vram = Vram::anonymous(1 << 30).unwrap();
        let extents = || {
            let mut found = Vec::new();
            vram.for_each_allocated(|range| found.push(range)).unwrap();
            found
        };
        assert_eq!(extents(), []);
        vram.write(0x1_0000, &[1; 0x2000]).unwrap();
        vram.write((1 << 30) - 1, &[1]).unwrap();
        assert_eq!(extents(), [0x1_0000..0x1_2000, (1 << 30) - 0x1000..1 << 30]);
        assert_eq!(vram.allocated().unwrap(), 0x3000);
        vram.zero_range(0x1_1000, 0x8000).unwrap();
        assert_eq!(vram.allocated().unwrap(), 0x2000);
        for (offset, length) in [(1 << 30, 1), (0, (1 << 30) + 1), (u64::MAX, 2)] {
            assert!(vram.zero_range(offset, length).is_err());
        }
        vram.zero().unwrap();
        assert_eq!(extents(), []);
    }

    #[test]
    fn a_path_that_is_no_file_is_refused() {
        let error = Vram::named(Path::new("/dev/null"), MIN_SIZE).unwrap_err();
        assert!(matches!(error, VramError::NotAFile(_)), "{error}");
        let error = Vram::named(Path::new("/nonexistent/vram"), MIN_SIZE).unwrap_err();
        assert!(matches!(error, VramError::Io { .. }), "{error}");
    }
}
