// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: which parts the device reaches.

use std::os::fd::BorrowedFd;

use zerocopy::IntoBytes;

use crate::info::size_u32;
use crate::protocol::Command;
use crate::protocol::dma::{DmaMap, DmaUnmap, MAP_READ, MAP_WRITE, UNMAP_ALL};
use crate::{Client, Error};

/// What the device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    fn flags(self) -> u32 {
        match self {
            Self::Read => MAP_READ,
            Self::Write => MAP_WRITE,
            Self::ReadWrite => MAP_READ | MAP_WRITE,
        }
    }
}

impl Client {
    /// Lets the device reach `size` bytes at `iova`. `memory` is a descriptor that the server can map and
    /// where in it the memory begins, in bytes; without one the server reaches the memory by message over
    /// the twin socket, or not at all.
    ///
    /// # Errors
    /// [`Error::Peer`] (EEXIST for an overlap) and what a lost connection gives.
    pub fn dma_map(
        &self,
        iova: u64,
        size: u64,
        access: Access,
        memory: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), Error> {
        let request = DmaMap {
            argsz: size_u32::<DmaMap>(),
            flags: access.flags(),
            offset: memory.map_or(0, |(_, offset)| offset),
            address: iova,
            size,
        };
        let fd = memory.map(|(fd, _)| fd);
        // Servers differ in what they put into the replies of both, so nothing is asked of the body.
        self.call(
            Command::DmaMap,
            &[request.as_bytes()],
            fd.as_slice(),
            |_, _| Ok(()),
        )
    }

    /// Takes away what one [`Self::dma_map`] gave. The server has let go of it when this returns.
    ///
    /// # Errors
    /// [`Error::Peer`] (ENOENT where no map is just that range) and what a lost connection gives.
    pub fn dma_unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        self.unmap(0, iova, size)
    }

    /// Takes away all maps.
    ///
    /// # Errors
    /// [`Error::Peer`] and what a lost connection gives.
    pub fn dma_unmap_all(&self) -> Result<(), Error> {
        self.unmap(UNMAP_ALL, 0, 0)
    }

    fn unmap(&self, flags: u32, address: u64, size: u64) -> Result<(), Error> {
        let request = DmaUnmap {
            argsz: size_u32::<DmaUnmap>(),
            flags,
            address,
            size,
        };
        self.call(Command::DmaUnmap, &[request.as_bytes()], &[], |_, _| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::protocol::Request;
    use crate::testing::{capabilities, client};

    #[test]
    fn maps_with_and_without_a_descriptor_and_both_ways_to_unmap() {
        let (client, server) = client(capabilities(), |peer| {
            let mut seen = Vec::new();
            while let Some(request) = peer.next() {
                let bytes = request.body.clone();
                let values = match Request::decode(request.header.command, &bytes).unwrap() {
                    Request::DmaMap(map) => (map.flags, map.offset, map.address, map.size),
                    Request::DmaUnmap(unmap) => (unmap.flags, 0, unmap.address, unmap.size),
                    other => panic!("{other:?}"),
                };
                seen.push((values, request.fds.len()));
                // Header only, as the specification has it, and repeated, as others do.
                let repeated = if seen.len() % 2 == 0 { &bytes[..] } else { &[] };
                peer.reply(&request, repeated, &[]);
            }
            seen
        });
        let file = File::open("/dev/null").unwrap();
        let memory = Some((file.as_fd(), 0x3000));
        client
            .dma_map(0x1000, 0x2000, Access::ReadWrite, memory)
            .unwrap();
        client.dma_map(0xf000, 0x1000, Access::Read, None).unwrap();
        client.dma_unmap(0x1000, 0x2000).unwrap();
        client.dma_unmap_all().unwrap();
        drop(client);
        let expected = [
            ((3, 0x3000, 0x1000, 0x2000), 1),
            ((1, 0, 0xf000, 0x1000), 0),
            ((0, 0, 0x1000, 0x2000), 0),
            ((2, 0, 0, 0), 0),
        ];
        assert_eq!(server.join().unwrap(), expected);
    }
}
