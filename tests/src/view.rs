// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest sees of display devices, as its check `lspci` reports it, and the fixtures that the devices are made of.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{guest::Report, lane};

/// The config space fixture `name`: `tests/fixtures/NAME.txt`.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    folder.join(name).with_extension("txt")
}

/// The files of lspci, as `(path in the guest, source)`.
///
/// # Panics
/// Outside its lane.
#[must_use]
#[track_caller]
pub fn lspci_files() -> Vec<(String, PathBuf)> {
    let folder = lane::pciutils().join("lspci");
    let entries = std::fs::read_dir(&folder).expect("the folder of lspci");
    let path = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a plain name");
        (format!("lspci/{name}"), entry.path())
    };
    entries.map(path).collect()
}

/// One display device as a guest saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its configuration space, as the guest's kernel read it.
    pub config: Vec<u8>,
    /// What lspci said, line by line.
    pub lspci: Vec<String>,
}

impl Seen {
    /// All display devices of a report, by address.
    ///
    /// # Panics
    /// When the report has none.
    #[must_use]
    #[track_caller]
    pub fn in_report(report: &Report) -> BTreeMap<String, Self> {
        let mut seen = BTreeMap::<String, Self>::new();
        for line in report.console().lines().map(str::trim_end) {
            if let Some((address, digits)) =
                line.strip_prefix("config ").and_then(|l| l.split_once(' '))
            {
                seen.entry(address.to_owned()).or_default().config = bytes(digits);
            } else if let Some((address, text)) = line
                .strip_prefix("lspci ")
                .and_then(|l| l.split_once(" | "))
            {
                seen.entry(address.to_owned())
                    .or_default()
                    .lspci
                    .push(text.to_owned());
            }
        }
        assert!(
            !seen.is_empty(),
            "no display devices in\n{}",
            report.console()
        );
        seen
    }

    /// The lines in which lspci complains. It marks as unknown (`<?>`) whatever stands in a vendor's own capability, and
    /// in one for power budgets, which it does not decode: those are no complaints.
    #[must_use]
    pub fn complaints(&self) -> Vec<&str> {
        const UNDECODED: [&str; 2] = ["Vendor Specific Information: ", "Power Budgeting <?>"];
        let is_complaint = |line: &&str| {
            let lower = line.to_ascii_lowercase();
            let marked = line.contains("<?>") && !UNDECODED.iter().any(|what| line.contains(what));
            let words = [
                "!!!",
                "unknown header",
                "access denied",
                "chain looped",
                "chain broken",
            ];
            marked || words.iter().any(|word| lower.contains(word))
        };
        self.lspci
            .iter()
            .map(String::as_str)
            .filter(is_complaint)
            .collect()
    }

    /// The standard capabilities, as `(id, offset)`.
    ///
    /// # Panics
    /// When the list is not well formed.
    #[must_use]
    #[track_caller]
    pub fn capabilities(&self) -> Vec<(u8, u8)> {
        let mut list = Vec::new();
        let mut at = self.config[0x34];
        assert!(
            at == 0 || self.config[6] & 0x10 != 0,
            "a head without a list"
        );
        while at != 0 {
            assert!(
                at >= 0x40 && at.is_multiple_of(4),
                "a capability at {at:#x}"
            );
            assert!(
                list.iter().all(|(_, other)| *other != at),
                "a loop at {at:#x}"
            );
            list.push((self.config[usize::from(at)], at));
            at = self.config[usize::from(at) + 1];
        }
        list
    }

    /// The extended capabilities, as `(id, offset)`, without what holds the place of a hidden first one.
    ///
    /// # Panics
    /// When the list is not well formed.
    #[must_use]
    #[track_caller]
    pub fn extended_capabilities(&self) -> Vec<(u16, u16)> {
        let mut list = Vec::new();
        let mut at: u16 = if self.config.len() > 0x100 { 0x100 } else { 0 };
        while at != 0 {
            assert!(
                at >= 0x100 && at.is_multiple_of(4),
                "a capability at {at:#x}"
            );
            assert!(
                list.iter().all(|(_, other)| *other != at),
                "a loop at {at:#x}"
            );
            let header = self.dword(at);
            let id = u16::try_from(header & 0xffff).expect("16 bits");
            assert!(id != 0 || at == 0x100, "nothing at {at:#x}");
            list.push((id, at));
            at = u16::try_from(header >> 20).expect("12 bits");
        }
        list.retain(|(id, _)| *id != 0);
        list
    }

    /// Four bytes of configuration space.
    ///
    /// # Panics
    /// Past its end.
    #[must_use]
    #[track_caller]
    pub fn dword(&self, at: u16) -> u32 {
        let at = usize::from(at);
        u32::from_le_bytes(self.config[at..at + 4].try_into().expect("4 bytes"))
    }

    /// The clique that an NVIDIA driver finds, with the offset of its capability.
    ///
    /// # Panics
    /// When the capability is not bit-exact.
    #[must_use]
    #[track_caller]
    pub fn clique(&self) -> Option<(u8, u8)> {
        let list = self.capabilities();
        let is_clique = |(id, at): &&(u8, u8)| {
            let at = usize::from(*at);
            *id == 9 && self.config[at + 3..at + 6] == *b"P2P"
        };
        let (_, at) = *list.iter().find(is_clique)?;
        let bytes = &self.config[usize::from(at)..usize::from(at) + 8];
        assert_eq!(
            (bytes[2], bytes[6] & 0x87, bytes[7]),
            (8, 0, 0),
            "{bytes:02x?}"
        );
        Some((bytes[6] >> 3, at))
    }
}

#[track_caller]
fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs
        .map(byte)
        .collect::<Option<_>>()
        .expect("bytes in hexadecimal")
}
