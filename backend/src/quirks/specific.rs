// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device-specific regions that the client gets: read-only copies, in memory that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open,
};

use crate::memory::PAGE_SIZE;

/// What a device-specific region is, as the type capability of DEVICE_GET_REGION_INFO says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecificKind {
    /// A `VFIO_REGION_TYPE_*`, or 0x80000000 with a PCI vendor id.
    pub region_type: u32,
    /// What it is within the type.
    pub subtype: u32,
    /// For people, such as `OpRegion`.
    pub name: &'static str,
}

/// A region made of bytes that do not change.
#[derive(Debug)]
pub struct SpecificRegion {
    /// What it is.
    pub kind: SpecificKind,
    bytes: Vec<u8>,
    /// The same bytes, padded to whole pages, to be mapped.
    file: Option<OwnedFd>,
}

impl SpecificRegion {
    /// A region that is only read by messages.
    #[must_use]
    pub fn trapped(kind: SpecificKind, bytes: Vec<u8>) -> Self {
        Self {
            kind,
            bytes,
            file: None,
        }
    }

    /// A region that can be mapped read-only, too.
    ///
    /// # Errors
    /// No memory file could be had.
    pub fn mappable(kind: SpecificKind, bytes: Vec<u8>) -> io::Result<Self> {
        let file = sealed(kind.name, &bytes)?;
        Ok(Self {
            file: Some(file),
            ..Self::trapped(kind, bytes)
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A descriptor of it for a client, if it can be mapped.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn share(&self) -> io::Result<Option<OwnedFd>> {
        self.file.as_ref().map(OwnedFd::try_clone).transpose()
    }
}

/// A file of whole pages with these bytes, which can neither be written nor change its size, nor lose that.
fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, (bytes.len() as u64).next_multiple_of(PAGE_SIZE))?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, seals)?;
    // A client that gets a descriptor open for reading alone can map it on every kernel: some refuse even a
    // read-only mapping of a sealed file through one that is open for writing.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty()).unwrap_or_else(|_| file.into()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{fcntl_get_seals, fstat};
    use rustix::io::{Errno, pread, pwrite};

    use super::*;
    use crate::memory::{Access, Mapping};

    const KIND: SpecificKind = SpecificKind {
        region_type: 0x8000_8086,
        subtype: 1,
        name: "test",
    };

    #[test]
    fn what_is_handed_over_cannot_be_changed() {
        let bytes = vec![7; 0x3800];
        let region = SpecificRegion::mappable(KIND, bytes.clone()).unwrap();
        let file = region.share().unwrap().expect("a descriptor");
        assert_eq!(fstat(&file).unwrap().st_size, 0x4000);
        assert!(fcntl_get_seals(&file).unwrap().contains(SealFlags::WRITE));
        assert!(matches!(
            pwrite(&file, &[1], 0),
            Err(Errno::PERM | Errno::BADF)
        ));
        assert!(ftruncate(&file, 0).is_err());
        assert!(Mapping::new(file.as_fd(), 0, 0x4000, Access::READ_WRITE).is_err());
        let mapping = Mapping::new(file.as_fd(), 0, 0x4000, Access::READ).unwrap();
        let mut mapped = vec![0; 0x3800];
        mapping.slice(0, 0x3800).unwrap().copy_to(&mut mapped);
        assert_eq!((&mapped, region.bytes()), (&bytes, &*bytes));
        let mut padding = [1; 4];
        assert_eq!(pread(&file, &mut padding, 0x3800), Ok(4));
        assert_eq!(padding, [0; 4]);
        let trapped = SpecificRegion::trapped(KIND, bytes);
        assert!(trapped.share().unwrap().is_none());
    }
}
