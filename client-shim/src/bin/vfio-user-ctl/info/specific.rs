// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device-specific regions that are known by their type: what to call them, and writing them to a file.

use std::fs;
use std::io;
use std::path::PathBuf;

use vfio_user_client::protocol::device::RegionCapability;
use vfio_user_client::{Client, RegionInfo};

use super::MAX_INDEXES;
use crate::report::Failure;

/// No such region is larger, in bytes: the size comes from the server.
const LARGEST: u64 = 16 << 20;
/// `VFIO_REGION_TYPE_PCI_VENDOR_TYPE` with Intel's id.
const INTEL: u32 = 0x8000_8086;

/// Type and subtype, the word for it on the command line, and its name.
const KNOWN: [((u32, u32), &str, &str); 3] = [
    ((INTEL, 1), "opregion", "OpRegion"),
    ((INTEL, 2), "host-bridge", "Host bridge config space"),
    ((INTEL, 3), "lpc-bridge", "LPC bridge config space"),
];

/// Why a region is not written to a file.
#[derive(Debug, thiserror::Error)]
enum DumpError {
    /// Nobody knows it.
    #[error("--dump {0:?}: must be opregion, host-bridge or lpc-bridge")]
    Unknown(String),
    /// The server has none.
    #[error("The device has no {0}")]
    Missing(&'static str),
    /// The server's word on its size cannot be believed.
    #[error("{what} of {size} bytes: more than {LARGEST}")]
    Size { what: &'static str, size: u64 },
    /// The file cannot be written.
    #[error("{} not written", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A region to write to a file.
#[derive(Debug)]
pub struct Dump {
    kind: (u32, u32),
    what: &'static str,
    path: PathBuf,
}

/// What the region is, if its type is known.
pub fn name(info: &RegionInfo) -> Option<&'static str> {
    let kind = kind(info)?;
    let known = KNOWN.iter().find(|(known, ..)| *known == kind);
    known.map(|(_, _, name)| *name)
}

fn kind(info: &RegionInfo) -> Option<(u32, u32)> {
    info.capabilities
        .iter()
        .find_map(|capability| match capability {
            RegionCapability::Type {
                region_type,
                subtype,
            } => Some((*region_type, *subtype)),
            _ => None,
        })
}

impl Dump {
    /// Takes the two values of `--dump`.
    pub fn parse(values: &[String]) -> Result<Self, Failure> {
        let [word, path] = values else {
            return Err(DumpError::Unknown(values.concat()).into());
        };
        let known = KNOWN.iter().find(|(_, known, _)| known == word);
        let (kind, _, what) = *known.ok_or_else(|| DumpError::Unknown(word.clone()))?;
        let path = path.into();
        Ok(Self { kind, what, path })
    }

    /// Finds the region, reads it and writes the file.
    pub fn write(&self, client: &Client) -> Result<(), Failure> {
        let what = self.what;
        let count = client.device_info()?.num_regions.min(MAX_INDEXES);
        for index in 0..count {
            let info = client.region_info(index)?;
            if kind(&info) != Some(self.kind) {
                continue;
            }
            let size = info.size;
            let length = usize::try_from(size).ok().filter(|_| size <= LARGEST);
            let mut bytes = vec![0; length.ok_or(DumpError::Size { what, size })?];
            client.region_read(index, 0, &mut bytes)?;
            return fs::write(&self.path, bytes).map_err(|source| {
                let path = self.path.clone();
                DumpError::File { path, source }.into()
            });
        }
        Err(DumpError::Missing(what).into())
    }
}
