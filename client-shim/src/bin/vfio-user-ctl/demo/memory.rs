// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory, and data that cannot be there by chance.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user_client::{Access, Client};

use crate::report::Failure;

/// Where guest memory is: above 4 GiB, so that addresses need all their bits.
pub const GUEST: u64 = 0x1_8000_0000;

/// Memory of a guest, as the VMM has it.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
    /// Bytes.
    pub size: u64,
}

impl GuestMemory {
    pub fn new(size: u64) -> Result<Self, Failure> {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, size)?;
        Ok(Self { file, size })
    }

    /// Lets a device reach it.
    pub fn map(&self, client: &Client) -> Result<(), Failure> {
        let memory = Some((self.file.as_fd(), 0));
        Ok(client.dma_map(GUEST, self.size, Access::ReadWrite, memory)?)
    }

    pub fn unmap(&self, client: &Client) -> Result<(), Failure> {
        Ok(client.dma_unmap(GUEST, self.size)?)
    }

    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Failure> {
        Ok(self.file.write_all_at(data, at)?)
    }

    pub fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, Failure> {
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, at)?;
        Ok(data)
    }
}

pub fn random(length: usize) -> Result<Vec<u8>, Failure> {
    let mut data = vec![0; length];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    Ok(data)
}

pub fn compare(what: &str, expected: &[u8], found: &[u8]) -> Result<(), Failure> {
    if expected.len() != found.len() {
        return Err(format!("{what} has another length").into());
    }
    if expected == found {
        return Ok(());
    }
    let differs = expected.iter().zip(found).position(|(a, b)| a != b);
    let at = differs.unwrap_or_default();
    Err(format!("{what} differs from byte {at:#x} on").into())
}
