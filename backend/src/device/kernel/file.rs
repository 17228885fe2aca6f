// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seam to the kernel: one trait for a VFIO device descriptor, and the real one behind it.
//!
//! Arguments are bytes whose first field, `argsz`, is always the length of the buffer: the kernel reads and
//! writes no further, so one wrapper serves every request. What the bytes mean is in `vfio.rs`, and can be
//! tested against a scripted kernel.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_MASK,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET,
    VFIO_TYPE, vfio_device_feature_dma_logging_control,
    vfio_device_feature_dma_logging_range as LoggedRange, vfio_device_feature_dma_logging_report,
};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_expr, ioctl_with_mut_ptr, ioctl_with_mut_ref};

use super::dirty::words_for;
use super::translators::size_of_u32;

/// `VFIO_MIG_GET_PRECOPY_INFO`, of a data descriptor.
const MIG_GET_PRECOPY_INFO: u32 = VFIO_BASE + 21;
/// Bytes of a DEVICE_FEATURE with the data of MIG_DEVICE_STATE, and where its `data_fd` is.
const MIG_DEVICE_STATE: usize = 16;
const DATA_FD: usize = 12;

/// A request of a device descriptor whose argument holds no address (linux/vfio.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// `VFIO_DEVICE_GET_INFO`.
    GetInfo,
    /// `VFIO_DEVICE_GET_REGION_INFO`.
    GetRegionInfo,
    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    GetIrqInfo,
    /// `VFIO_DEVICE_SET_IRQS`.
    SetIrqs,
    /// `VFIO_DEVICE_RESET`; its argument is ignored.
    Reset,
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    GetHotResetInfo,
    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    HotReset,
    /// `VFIO_DEVICE_IOEVENTFD`.
    IoEventFd,
    /// `VFIO_DEVICE_FEATURE`, for features whose data holds no address and no new descriptor.
    Feature,
}

impl Request {
    fn number(self) -> u32 {
        VFIO_BASE
            + match self {
                Self::GetInfo => 7,
                Self::GetRegionInfo => 8,
                Self::GetIrqInfo => 9,
                Self::SetIrqs => 10,
                Self::Reset => 11,
                Self::GetHotResetInfo => 12,
                Self::HotReset => 13,
                Self::IoEventFd => 16,
                Self::Feature => 17,
            }
    }
}

/// A VFIO device descriptor. May be used from several threads.
pub trait VfioFile: Send + Sync + fmt::Debug {
    /// Makes a request. `argument` begins with `argsz`, which is set here. Returns what the call returned.
    ///
    /// # Errors
    /// The errno of ioctl(2); EINVAL for an argument without room for `argsz`.
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<u32, Errno>;

    /// pread(2) on the descriptor; may be short.
    ///
    /// # Errors
    /// Its errno.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno>;

    /// pwrite(2) on the descriptor; may be short.
    ///
    /// # Errors
    /// Its errno.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize, Errno>;

    /// The descriptor, to be handed to a client that was promised it.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Gets a part of a BAR as a dma-buf: DEVICE_FEATURE with `VFIO_DEVICE_FEATURE_DMA_BUF`, which returns
    /// a new descriptor.
    ///
    /// # Errors
    /// The errno of ioctl(2); EINVAL if the argument names another feature.
    fn export_dma_buf(&self, argument: &mut [u8]) -> Result<OwnedFd, Errno>;

    /// Changes the migration state: DEVICE_FEATURE with `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`, SET. Returns
    /// the data stream if that opened one. `data_fd` of the argument is not used.
    ///
    /// # Errors
    /// The errno of ioctl(2); EINVAL if the argument is not that. The argument then says nothing.
    fn set_migration_state(&self, argument: &mut [u8]) -> Result<Option<Box<dyn DataFile>>, Errno>;
    /// DEVICE_FEATURE SET with `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`; the page size that was granted.
    ///
    /// # Errors
    /// The errno of ioctl(2).
    fn start_logging(&self, page_size: u64, ranges: &mut [LoggedRange]) -> Result<u64, Errno>;

    /// DEVICE_FEATURE GET with `VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT` for a range of address and bytes: sets
    /// a bit for each page that was written since this was last asked.
    ///
    /// # Errors
    /// The errno of ioctl(2); EINVAL for a bitmap that is too short. Every page may then have been written.
    fn report_logging(
        &self,
        range: (u64, u64),
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno>;

    /// Whether one page of `file` can be mapped shared. Nothing is touched.
    fn is_mappable(&self, file: BorrowedFd<'_>) -> bool;
}

/// A migration data descriptor: read only while a device is saved, written only while it is resumed.
pub trait DataFile: Send + fmt::Debug {
    /// read(2).
    ///
    /// # Errors
    /// Its errno.
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<usize, Errno>;

    /// write(2).
    ///
    /// # Errors
    /// Its errno.
    fn write(&mut self, from: &VolatileSlice<'_>) -> Result<usize, Errno>;

    /// poll(2) for whichever way the descriptor goes, and for so long. Returns at once where the driver has no poll.
    ///
    /// # Errors
    /// Its errno.
    fn wait(&mut self, patience: Duration) -> Result<(), Errno>;

    /// `VFIO_MIG_GET_PRECOPY_INFO`. `argument` begins with `argsz`, which is set here.
    ///
    /// # Errors
    /// The errno of ioctl(2); EINVAL for an argument without room for `argsz`.
    fn precopy_info(&mut self, argument: &mut [u8]) -> Result<(), Errno>;
}

/// A device descriptor of the kernel.
#[derive(Debug)]
pub struct KernelFile(OwnedFd);

impl KernelFile {
    /// Takes a device descriptor, of a group's device or a bound cdev.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The request, whatever feature it names.
    fn request(&self, request: Request, argument: &mut [u8]) -> Result<u32, Errno> {
        if request != Request::Reset {
            set_argsz(argument)?;
        }
        // SAFETY: the requests of this enum take a structure that begins with argsz and holds no address;
        // argsz is the length of the buffer, so the kernel writes inside it, and it lives through the call.
        // (VFIO_DEVICE_RESET looks at no argument.)
        let done =
            unsafe { ioctl_with_mut_ptr(&self.0, io_nr(request.number()), argument.as_mut_ptr()) };
        u32::try_from(done).map_err(|_| last_errno())
    }
}

impl VfioFile for KernelFile {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<u32, Errno> {
        if request == Request::Feature && (has_address(argument) || sets_state(argument)) {
            return Err(Errno::INVAL);
        }
        self.request(request, argument)
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::pread(&self.0, data, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        rustix::io::pwrite(&self.0, data, offset)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn export_dma_buf(&self, argument: &mut [u8]) -> Result<OwnedFd, Errno> {
        if feature(argument) != Some(VFIO_DEVICE_FEATURE_DMA_BUF) {
            return Err(Errno::INVAL);
        }
        let returned = self.ioctl(Request::Feature, argument)?;
        let number = RawFd::try_from(returned).map_err(|_| Errno::BADF)?;
        // SAFETY: this feature returns a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    fn set_migration_state(&self, argument: &mut [u8]) -> Result<Option<Box<dyn DataFile>>, Errno> {
        if argument.len() != MIG_DEVICE_STATE || !sets_state(argument) {
            return Err(Errno::INVAL);
        }
        let (_, fd) = argument.split_at_mut(DATA_FD);
        // A driver that answers nothing has opened nothing.
        fd.copy_from_slice(&(-1_i32).to_ne_bytes());
        self.request(Request::Feature, argument)?;
        let (_, fd) = argument.split_last_chunk().ok_or(Errno::INVAL)?;
        let number = RawFd::from_ne_bytes(*fd);
        if number < 0 {
            return Ok(None);
        }
        // SAFETY: a successful change of state returns a new descriptor that nobody else owns, or -1, which
        // was also there before.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Some(Box::new(KernelData(fd))))
    }

    fn start_logging(&self, page_size: u64, ranges: &mut [LoggedRange]) -> Result<u64, Errno> {
        let mut argument = Feature {
            argsz: size_of_u32::<Feature<vfio_device_feature_dma_logging_control>>(),
            flags: VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
            data: vfio_device_feature_dma_logging_control {
                page_size,
                num_ranges: u32::try_from(ranges.len()).map_err(|_| Errno::TOOBIG)?,
                ranges: ranges.as_mut_ptr().expose_provenance() as u64,
                ..vfio_device_feature_dma_logging_control::default()
            },
        };
        // SAFETY: `argument` is the structure of this feature; the ranges it names are as many as it says, and
        // both live through the call.
        let done =
            unsafe { ioctl_with_mut_ref(&self.0, io_nr(Request::Feature.number()), &mut argument) };
        if done < 0 {
            return Err(last_errno());
        }
        Ok(argument.data.page_size)
    }

    fn report_logging(
        &self,
        (iova, length): (u64, u64),
        page_size: u64,
        bitmap: &mut [u64],
    ) -> Result<(), Errno> {
        if !page_size.is_power_of_two() || bitmap.len() < words_for(length, page_size)? {
            return Err(Errno::INVAL);
        }
        let mut argument = Feature {
            argsz: size_of_u32::<Feature<vfio_device_feature_dma_logging_report>>(),
            flags: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
            data: vfio_device_feature_dma_logging_report {
                iova,
                length,
                page_size,
                bitmap: bitmap.as_mut_ptr().expose_provenance() as u64,
            },
        };
        // SAFETY: `argument` is the structure of this feature; the bitmap it names is `bitmap`, which has a bit
        // for each page of the range, and both live through the call.
        let done =
            unsafe { ioctl_with_mut_ref(&self.0, io_nr(Request::Feature.number()), &mut argument) };
        if done < 0 { Err(last_errno()) } else { Ok(()) }
    }

    fn is_mappable(&self, file: BorrowedFd<'_>) -> bool {
        const PAGE: usize = 4096;
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: the kernel chooses a free range; it is never accessed.
        let mapped = unsafe { mmap(ptr::null_mut(), PAGE, protection, flags, file, 0) };
        // SAFETY: the range was mapped just now and nobody else knows of it.
        mapped.is_ok_and(|start| unsafe { munmap(start, PAGE) }.is_ok())
    }
}

/// A data descriptor of the kernel.
#[derive(Debug)]
struct KernelData(OwnedFd);

impl DataFile for KernelData {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<usize, Errno> {
        let mut into = into.offset(0).map_err(|_| Errno::FAULT)?;
        self.0.read_volatile(&mut into).map_err(errno_of)
    }

    fn write(&mut self, from: &VolatileSlice<'_>) -> Result<usize, Errno> {
        self.0.write_volatile(from).map_err(errno_of)
    }

    fn wait(&mut self, patience: Duration) -> Result<(), Errno> {
        let patience = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&patience)).map(drop)
    }

    fn precopy_info(&mut self, argument: &mut [u8]) -> Result<(), Errno> {
        set_argsz(argument)?;
        let number = io_nr(MIG_GET_PRECOPY_INFO);
        // SAFETY: the request takes a structure that begins with argsz and holds no address; argsz is the
        // length of the buffer, so the kernel writes inside it, and it lives through the call.
        let done = unsafe { ioctl_with_mut_ptr(&self.0, number, argument.as_mut_ptr()) };
        if done < 0 { Err(last_errno()) } else { Ok(()) }
    }
}

fn errno_of(error: VolatileMemoryError) -> Errno {
    match error {
        VolatileMemoryError::IOError(error) => Errno::from_io_error(&error).unwrap_or(Errno::IO),
        _ => Errno::FAULT,
    }
}

/// Every argument begins with its length.
fn set_argsz(argument: &mut [u8]) -> Result<(), Errno> {
    let argsz = u32::try_from(argument.len()).map_err(|_| Errno::INVAL)?;
    let (first, _) = argument.split_first_chunk_mut().ok_or(Errno::INVAL)?;
    *first = argsz.to_ne_bytes();
    Ok(())
}

/// Whether a DEVICE_FEATURE changes the migration state, which may open a descriptor.
fn sets_state(argument: &[u8]) -> bool {
    feature(argument) == Some(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE)
        && flags(argument).is_some_and(|flags| flags & VFIO_DEVICE_FEATURE_SET != 0)
}

/// `struct vfio_device_feature` with its data.
#[repr(C)]
struct Feature<T> {
    argsz: u32,
    flags: u32,
    data: T,
}

/// Whether the data of a DEVICE_FEATURE holds an address: the kernel would write through it. A probe looks at
/// no data.
fn has_address(argument: &[u8]) -> bool {
    let probe = flags(argument).is_some_and(|flags| flags & VFIO_DEVICE_FEATURE_PROBE != 0);
    let logging = matches!(
        feature(argument),
        Some(VFIO_DEVICE_FEATURE_DMA_LOGGING_START | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT)
    );
    logging && !probe
}

/// The flags of the argument of a DEVICE_FEATURE.
fn flags(argument: &[u8]) -> Option<u32> {
    let flags = argument.get(4..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*flags))
}

/// The feature that it names.
fn feature(argument: &[u8]) -> Option<u32> {
    flags(argument).map(|flags| flags & VFIO_DEVICE_FEATURE_MASK)
}

/// The ioctl number of a VFIO request: no size and no direction are encoded in it.
pub(super) fn io_nr(number: u32) -> libc::c_ulong {
    ioctl_expr(0, VFIO_TYPE.into(), number, 0)
}

/// The errno of the call that failed just now.
pub(super) fn last_errno() -> Errno {
    Errno::from_raw_os_error(errno::Error::last().errno())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(io_nr(Request::GetInfo.number()), 0x3b6b);
        assert_eq!(io_nr(Request::SetIrqs.number()), 0x3b6e);
        assert_eq!(io_nr(Request::Feature.number()), 0x3b75);
    }

    #[test]
    fn errno_comes_back_and_arguments_are_checked() {
        let file = KernelFile::new(File::open("/dev/null").unwrap().into());
        let mut info = [0; 16];
        assert_eq!(file.ioctl(Request::GetInfo, &mut info), Err(Errno::NOTTY));
        assert_eq!(info[0], 16, "argsz is the length");
        assert_eq!(file.ioctl(Request::GetInfo, &mut [0; 3]), Err(Errno::INVAL));
        assert_eq!(file.ioctl(Request::Reset, &mut []), Err(Errno::NOTTY));
        let mut logging = [0; 40];
        logging[4] = 6;
        assert_eq!(
            file.ioctl(Request::Feature, &mut logging),
            Err(Errno::INVAL),
            "never with an address in the data"
        );
        logging[6] = 1 << 2;
        assert_eq!(
            file.ioctl(Request::Feature, &mut logging),
            Err(Errno::NOTTY),
            "a probe has no data"
        );
        assert_eq!(file.start_logging(4096, &mut []), Err(Errno::NOTTY));
        for (words, errno) in [(1, Errno::INVAL), (2, Errno::NOTTY)] {
            let report = file.report_logging((0, 65 * 4096), 4096, &mut vec![0; words]);
            assert_eq!(report, Err(errno));
        }
    }

    #[test]
    fn features_have_no_padding() {
        use std::mem::offset_of;
        type Control = Feature<vfio_device_feature_dma_logging_control>;
        assert_eq!((offset_of!(Control, data), size_of::<Control>()), (8, 32));
        type Report = Feature<vfio_device_feature_dma_logging_report>;
        assert_eq!((offset_of!(Report, data), size_of::<Report>()), (8, 40));
    }

    #[test]
    fn the_state_is_set_in_one_way_only() {
        let file = KernelFile::new(File::open("/dev/null").unwrap().into());
        let mut argument = [0; 16];
        argument[4..8].copy_from_slice(&(2 | VFIO_DEVICE_FEATURE_SET).to_ne_bytes());
        let refused = file.ioctl(Request::Feature, &mut argument);
        assert_eq!(refused, Err(Errno::INVAL), "a descriptor would be lost");
        argument[12] = 1;
        let tried = file.set_migration_state(&mut argument).map(drop);
        assert_eq!(tried, Err(Errno::NOTTY));
        assert_eq!(argument[12..], [0xff; 4], "no descriptor of the caller's");
        for other in [&mut argument[..12], &mut [0; 16]] {
            let refused = file.set_migration_state(other).map(drop);
            assert_eq!(refused, Err(Errno::INVAL));
        }
    }

    #[test]
    fn data_goes_through_the_descriptor() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut read, mut write) = (KernelData(read), KernelData(write));
        let mut data = [1, 2, 3];
        let from = VolatileSlice::from(&mut data[..]);
        assert_eq!(write.write(&from), Ok(3));
        let mut back = [0; 8];
        let into = VolatileSlice::from(&mut back[..]);
        assert_eq!(read.read(&into), Ok(3));
        assert_eq!(back[..4], [1, 2, 3, 0]);
        assert_eq!(read.write(&from), Err(Errno::BADF));
        assert_eq!(io_nr(MIG_GET_PRECOPY_INFO), 0x3b79);
        let mut info = [0; 24];
        assert_eq!(read.precopy_info(&mut info), Err(Errno::NOTTY));
        assert_eq!(info[0], 24);
        assert_eq!(read.precopy_info(&mut []), Err(Errno::INVAL));
    }

    #[test]
    fn mappable_is_tried() {
        let file = KernelFile::new(File::open("/dev/null").unwrap().into());
        assert!(!file.is_mappable(file.fd()));
        let memory = memfd_create("bar", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 4096).unwrap();
        assert!(file.is_mappable(memory.as_fd()));
    }
}
