// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_DEVICE_FEATURE` and what hangs on it, with the errno of the kernel as it is.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd},
};

const DEVICE_FEATURE: u64 = 0x3b75;
const GET_PRECOPY_INFO: u64 = 0x3b79;

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;

const MIGRATION: u32 = 1;
const MIG_DEVICE_STATE: u32 = 2;
const DMA_LOGGING_START: u32 = 6;
const DMA_LOGGING_STOP: u32 = 7;
const DMA_LOGGING_REPORT: u32 = 8;
const MIG_DATA_SIZE: u32 = 9;
const MIG_PRECOPY_INFO_V2: u32 = 12;

/// `VFIO_MIGRATION_*`.
pub const STOP_COPY_FLAG: u64 = 1;
/// Peer-to-peer states.
pub const P2P_FLAG: u64 = 2;
/// Pre-copy states.
pub const PRE_COPY_FLAG: u64 = 4;

/// `VFIO_PRECOPY_INFO_REINIT`.
pub const REINIT: u32 = 1;

/// `enum vfio_device_mig_state`.
pub mod state {
    pub const ERROR: u32 = 0;
    pub const STOP: u32 = 1;
    pub const RUNNING: u32 = 2;
    pub const STOP_COPY: u32 = 3;
    pub const RESUMING: u32 = 4;
    pub const RUNNING_P2P: u32 = 5;
    pub const PRE_COPY: u32 = 6;
    pub const PRE_COPY_P2P: u32 = 7;
}

#[repr(C)]
struct Feature<T> {
    argsz: u32,
    flags: u32,
    data: T,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MigState {
    device_state: u32,
    data_fd: i32,
}

/// `struct vfio_precopy_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    argsz: u32,
    pub flags: u32,
    pub initial: u64,
    pub dirty: u64,
}

#[repr(C)]
struct LoggingControl {
    page_size: u64,
    num_ranges: u32,
    reserved: u32,
    ranges: u64,
}

#[repr(C)]
struct LoggingReport {
    iova: u64,
    length: u64,
    page_size: u64,
    bitmap: u64,
}

fn call<T>(device: &File, flags: u32, data: T) -> io::Result<T> {
    let argsz = u32::try_from(size_of::<Feature<T>>()).map_err(io::Error::other)?;
    let mut feature = Feature { argsz, flags, data };
    // SAFETY: the feature's own structure, with its size in the first field, borrowed exclusively for the call; what addresses
    // in it point to is borrowed by the caller.
    match unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_FEATURE, &raw mut feature) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(feature.data),
    }
}

/// What the device can do; ENOTTY: no migration.
pub fn migration_flags(device: &File) -> io::Result<u64> {
    call(device, GET | MIGRATION, 0)
}

/// Its state.
pub fn state_of(device: &File) -> io::Result<u32> {
    call(device, GET | MIG_DEVICE_STATE, MigState::default()).map(|state| state.device_state)
}

/// Goes to a state; with a data fd where that begins a transfer.
pub fn set_state(device: &File, state: u32) -> io::Result<Option<File>> {
    let request = MigState {
        device_state: state,
        data_fd: -1,
    };
    let answer = call(device, SET | MIG_DEVICE_STATE, request)?;
    if answer.data_fd < 0 {
        return Ok(None);
    }
    // SAFETY: a new descriptor of this process, which nothing else owns.
    Ok(Some(unsafe { File::from_raw_fd(answer.data_fd) }))
}

/// An estimate of the whole.
pub fn data_size(device: &File) -> io::Result<u64> {
    call(device, GET | MIG_DATA_SIZE, 0)
}

/// Makes the flags of [`precopy_info`] mean something; ENOTTY before Linux 7.
pub fn opt_in_to_flags(device: &File) -> io::Result<()> {
    call(device, SET | MIG_PRECOPY_INFO_V2, ())
}

/// What pre-copy has to give.
pub fn precopy_info(data: &File) -> io::Result<PrecopyInfo> {
    let argsz = u32::try_from(size_of::<PrecopyInfo>()).map_err(io::Error::other)?;
    let mut info = PrecopyInfo {
        argsz,
        ..PrecopyInfo::default()
    };
    // SAFETY: the request's own structure, borrowed exclusively for the call.
    match unsafe { libc::ioctl(data.as_raw_fd(), GET_PRECOPY_INFO, &raw mut info) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(info),
    }
}

/// Starts taking down what the device writes in the ranges (address, length); with the device's page size.
pub fn start_logging(device: &File, ranges: &[(u64, u64)]) -> io::Result<u64> {
    let ranges: Vec<[u64; 2]> = ranges
        .iter()
        .map(|&(iova, length)| [iova, length])
        .collect();
    let control = LoggingControl {
        page_size: 4096,
        num_ranges: u32::try_from(ranges.len()).map_err(io::Error::other)?,
        reserved: 0,
        ranges: address(&ranges),
    };
    call(device, SET | DMA_LOGGING_START, control).map(|control| control.page_size)
}

/// Ends it.
pub fn stop_logging(device: &File) -> io::Result<()> {
    call(device, SET | DMA_LOGGING_STOP, ())
}

/// The pages of `page_size` of a range that were written since the last report.
pub fn report(device: &File, iova: u64, length: u64, page_size: u64) -> io::Result<Vec<u64>> {
    let pages = length.div_ceil(page_size);
    let words = usize::try_from(pages.div_ceil(64)).map_err(io::Error::other)?;
    let mut bitmap = vec![0_u64; words];
    let request = LoggingReport {
        iova,
        length,
        page_size,
        bitmap: bitmap.as_mut_ptr().expose_provenance() as u64,
    };
    call(device, GET | DMA_LOGGING_REPORT, request)?;
    let dirty = |page: &u64| {
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        bitmap
            .get(word)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    };
    Ok((0..pages).filter(dirty).collect())
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

/// How a read of the data fd ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With 0 bytes.
    Zero,
    /// With an errno.
    Errno(i32),
}

/// Reads in pieces of `piece` bytes until there is nothing, and says how that was told.
pub fn drain(mut data: &File, piece: usize, into: &mut Vec<u8>) -> End {
    let mut buffer = vec![0; piece];
    loop {
        match data.read(&mut buffer) {
            Ok(0) => return End::Zero,
            Ok(length) => into.extend_from_slice(&buffer[..length]),
            Err(error) => return End::Errno(error.raw_os_error().unwrap_or_default()),
        }
    }
}
