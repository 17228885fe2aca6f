// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The seam to the kernel: one trait for a VFIO device descriptor, and the real one behind it.
//!
//! Arguments are bytes whose first field, `argsz`, is always the length of the buffer: the kernel reads and
//! writes no further, so one wrapper serves every request. What the bytes mean is in `vfio.rs`, and can be
//! tested against a scripted kernel.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_MASK, VFIO_TYPE,
};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_expr, ioctl_with_mut_ptr};

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
    /// `VFIO_DEVICE_FEATURE`, for features whose data holds no address.
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

    /// Whether one page of `file` can be mapped shared. Nothing is touched.
    fn is_mappable(&self, file: BorrowedFd<'_>) -> bool;
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
}

impl VfioFile for KernelFile {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<u32, Errno> {
        if request == Request::Feature && has_address(argument) {
            return Err(Errno::INVAL);
        }
        if request != Request::Reset {
            let argsz = u32::try_from(argument.len()).map_err(|_| Errno::INVAL)?;
            let (first, _) = argument.split_first_chunk_mut().ok_or(Errno::INVAL)?;
            *first = argsz.to_ne_bytes();
        }
        // SAFETY: the requests of this enum take a structure that begins with argsz and holds no address;
        // argsz is the length of the buffer, so the kernel writes inside it, and it lives through the call.
        // (VFIO_DEVICE_RESET looks at no argument.)
        let done =
            unsafe { ioctl_with_mut_ptr(&self.0, io_nr(request.number()), argument.as_mut_ptr()) };
        u32::try_from(done).map_err(|_| last_errno())
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

    fn is_mappable(&self, file: BorrowedFd<'_>) -> bool {
        const PAGE: usize = 4096;
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: the kernel chooses a free range; it is never accessed.
        let mapped = unsafe { mmap(ptr::null_mut(), PAGE, protection, flags, file, 0) };
        // SAFETY: the range was mapped just now and nobody else knows of it.
        mapped.is_ok_and(|start| unsafe { munmap(start, PAGE) }.is_ok())
    }
}

/// Whether the data of a DEVICE_FEATURE holds an address: the kernel would write through it.
fn has_address(argument: &[u8]) -> bool {
    matches!(
        feature(argument),
        Some(VFIO_DEVICE_FEATURE_DMA_LOGGING_START | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT)
    )
}

/// The feature that the argument of a DEVICE_FEATURE names.
fn feature(argument: &[u8]) -> Option<u32> {
    let flags = argument.get(4..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*flags) & VFIO_DEVICE_FEATURE_MASK)
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
