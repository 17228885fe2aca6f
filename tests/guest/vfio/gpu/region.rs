// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A region with its capabilities, and its parts that can be mapped, mapped: reading and writing by whichever way each byte has.

use std::{
    error::Error,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr::{self, NonNull},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Outcome;

const GET_REGION_INFO: u64 = 0x3b6c;
const CAP_SPARSE_MMAP: u16 = 1;
const CAP_TYPE: u16 = 2;
/// Bytes of `struct vfio_region_info`.
const INFO: usize = 32;

/// Bytes that go in one piece, whatever the region says.
const PIECE: u64 = 0x1_0000;

/// A mapped part of a region.
struct Area {
    start: u64,
    size: u64,
    memory: NonNull<u8>,
    length: usize,
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing refers to it any more.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

/// A region.
pub struct Region {
    pub size: u64,
    pub flags: u32,
    /// Type and subtype.
    pub kind: Option<(u32, u32)>,
    /// Offset and size of what can be mapped, in the kernel's order.
    pub areas: Vec<(u64, u64)>,
    offset: u64,
    mapped: Vec<Area>,
    device: File,
}

impl Region {
    /// Asks the kernel.
    pub fn new(device: &File, index: u32) -> Result<Self, Box<dyn Error>> {
        let mut info = vec![0_u8; INFO];
        loop {
            let argsz = u32::try_from(info.len())?;
            info[..4].copy_from_slice(&argsz.to_ne_bytes());
            info[8..12].copy_from_slice(&index.to_ne_bytes());
            // SAFETY: as many bytes as their first field says, borrowed exclusively for the call.
            let result =
                unsafe { libc::ioctl(device.as_raw_fd(), GET_REGION_INFO, info.as_mut_ptr()) };
            if result != 0 {
                return Err(io::Error::last_os_error().into());
            }
            let wanted = usize::try_from(word(&info, 0)?)?;
            if wanted <= info.len() {
                break;
            }
            info = vec![0; wanted];
        }
        let mut region = Self {
            size: double(&info, 16)?,
            flags: word(&info, 4)?,
            kind: None,
            areas: Vec::new(),
            offset: double(&info, 24)?,
            mapped: Vec::new(),
            device: device.try_clone()?,
        };
        let mut at = usize::try_from(word(&info, 12)?)?;
        while at != 0 {
            region.take_capability(&info, at)?;
            at = usize::try_from(word(&info, at + 4)?)?;
        }
        Ok(region)
    }

    fn take_capability(&mut self, info: &[u8], at: usize) -> Outcome {
        // Below the version, in the upper half.
        match word(info, at)? & 0xffff {
            id if id == u32::from(CAP_SPARSE_MMAP) => {
                for area in 0..usize::try_from(word(info, at + 8)?)? {
                    let at = at + 16 + 16 * area;
                    self.areas.push((double(info, at)?, double(info, at + 8)?));
                }
            }
            id if id == u32::from(CAP_TYPE) => {
                self.kind = Some((word(info, at + 8)?, word(info, at + 12)?));
            }
            _ => {}
        }
        Ok(())
    }

    /// Maps what can be mapped.
    pub fn map(&mut self) -> Outcome {
        for &(start, size) in &self.areas {
            self.mapped.push(self.map_part(start, size)?);
        }
        Ok(())
    }

    /// Whether the kernel refuses to map this.
    pub fn refuses_to_map(&self, start: u64, size: u64) -> bool {
        self.map_part(start, size).is_err()
    }

    fn map_part(&self, start: u64, size: u64) -> Result<Area, Box<dyn Error>> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let (length, offset) = (usize::try_from(size)?, self.offset + start);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let memory = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &self.device,
                offset,
            )
        }?;
        let memory = NonNull::new(memory.cast()).ok_or("mapped at address 0")?;
        Ok(Area {
            start,
            size,
            memory,
            length,
        })
    }

    /// What to do with up to `length` bytes from `offset`: the mapping that has them, if one has, and how many go in one piece.
    fn piece(&self, offset: u64, length: u64) -> (Option<&Area>, u64) {
        let length = length.min(PIECE);
        let has = |area: &&Area| (area.start..area.start + area.size).contains(&offset);
        if let Some(area) = self.mapped.iter().find(has) {
            return (Some(area), length.min(area.start + area.size - offset));
        }
        let starts = self.mapped.iter().map(|area| area.start);
        let next = starts.filter(|&start| start > offset).min();
        (None, next.map_or(length, |next| length.min(next - offset)))
    }

    /// Refuses what does not lie in the region.
    fn bound(&self, offset: u64, length: u64) -> Outcome {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(format!("{length:#x} bytes at {offset:#x} of {:#x}", self.size).into()),
        }
    }

    /// Reads bytes, mapped where they can be.
    pub fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Box<dyn Error>> {
        self.bound(offset, length)?;
        let mut bytes = vec![0; usize::try_from(length)?];
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let (area, count) = self.piece(at, length - done);
            let part = &mut bytes[usize::try_from(done)?..usize::try_from(done + count)?];
            match area {
                Some(area) => {
                    let from = area
                        .memory
                        .as_ptr()
                        .wrapping_add(usize::try_from(at - area.start)?);
                    // SAFETY: `piece` keeps it within the mapping, which is shared with the kernel and not with `bytes`.
                    unsafe { ptr::copy_nonoverlapping(from, part.as_mut_ptr(), part.len()) };
                }
                None => self.device.read_exact_at(part, self.offset + at)?,
            }
            done += count;
        }
        Ok(bytes)
    }

    /// Writes bytes, mapped where they can be.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Outcome {
        let length = u64::try_from(bytes.len())?;
        self.bound(offset, length)?;
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let (area, count) = self.piece(at, length - done);
            let part = &bytes[usize::try_from(done)?..usize::try_from(done + count)?];
            match area {
                Some(area) => {
                    let to = area
                        .memory
                        .as_ptr()
                        .wrapping_add(usize::try_from(at - area.start)?);
                    // SAFETY: as in `read`.
                    unsafe { ptr::copy_nonoverlapping(part.as_ptr(), to, part.len()) };
                }
                None => self.device.write_all_at(part, self.offset + at)?,
            }
            done += count;
        }
        Ok(())
    }

    /// One access by message, with the kernel's errno.
    pub fn get<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.device.read_at(&mut bytes, self.offset + offset)? {
            length if length == N => Ok(bytes),
            length => Err(io::Error::other(format!("{length} bytes of {N}"))),
        }
    }

    /// One access by message, with the kernel's errno.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.device.write_at(bytes, self.offset + offset)? {
            length if length == bytes.len() => Ok(()),
            length => Err(io::Error::other(format!(
                "{length} bytes of {}",
                bytes.len()
            ))),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Box<dyn Error>> {
    let bytes = bytes.get(at..at + 4).ok_or("a short region info")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

fn double(bytes: &[u8], at: usize) -> Result<u64, Box<dyn Error>> {
    let bytes = bytes.get(at..at + 8).ok_or("a short region info")?;
    Ok(u64::from_ne_bytes(bytes.try_into()?))
}
