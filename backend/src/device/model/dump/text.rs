// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file behind `--model=config=FILE`: what a device's config space read, taken down on another machine.
//!
//! Binary, it is the 256 or 4096 bytes of sysfs' `config` (as root; without, the kernel gives 64). As text, it is what
//! `lspci -vv -xxxx -s ADDRESS` prints:
//!
//! ```text
//! # comments begin so
//! 01:00.0 3D controller: NVIDIA Corporation GP104GL [Tesla P4] (rev a1)
//!         Region 1: Memory at 3bfe0000000 (64-bit, prefetchable) [size=256M]
//!         Expansion ROM at f7000000 [disabled] [size=512K]
//! 00: de 10 b3 1b 46 05 10 00 a1 00 02 03 00 00 00 00
//! 60: 01 68 03 00 08 00 00 00 05 78 81 00 00 00 00 00
//! ```
//!
//! Lines of bytes that are not there are zero; with one from 0x100 on there are 4096 bytes, else 256. The lines that name
//! a size may be comments too. Everything else is skipped.

use crate::pci::DeviceSizes;
use crate::pci::registers::{
    PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64,
    PCI_BASE_ADDRESS_SPACE_IO, PCI_CFG_SPACE_EXP_SIZE, PCI_CFG_SPACE_SIZE,
};

/// What the largest file that makes sense has, with room for what lspci says beside.
pub(super) const MAX_FILE: usize = 1 << 20;
const CONVENTIONAL: usize = PCI_CFG_SPACE_SIZE as usize;
const EXTENDED: usize = PCI_CFG_SPACE_EXP_SIZE as usize;

/// Why a file is no dump of a config space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// Neither text nor of a size that a config space has.
    #[error(
        "{0} bytes that are not text: a binary dump has 256 or 4096 (sysfs gives all of them to root only)"
    )]
    Binary(usize),
    /// Too much to be one device.
    #[error("More than {MAX_FILE} bytes: not the config space of one device")]
    TooLong,
    /// Without the header there is no device.
    #[error("No line \"00: ...\" with the first 16 bytes of a config space")]
    NoHeader,
    /// A line of bytes has another number of them, or none.
    #[error("Line {0}: expected an offset and 16 bytes in hexadecimal")]
    Bytes(usize),
    /// An offset is no multiple of 16, or behind the end.
    #[error("Line {line}: no config space has 16 bytes at {offset:#x}")]
    Offset {
        /// Which line, from 1.
        line: usize,
        /// The offset.
        offset: usize,
    },
    /// Bytes for one place, twice.
    #[error("Line {line}: the bytes at {offset:#04x} are given twice (a dump is of one device)")]
    Twice {
        /// Which line, from 1.
        line: usize,
        /// The offset.
        offset: usize,
    },
    /// A size that no BAR has.
    #[error("Line {0}: expected a BAR 0 to 5 and a size such as [size=16M]")]
    Size(usize),
}

/// A device's config space as it read, and what is known of its BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// 256 or 4096 bytes.
    pub bytes: Vec<u8>,
    /// Sizes, where they were given.
    bars: [Option<u64>; 6],
    rom: Option<u64>,
}

impl Dump {
    /// Understands the contents of a file.
    ///
    /// # Errors
    /// [`DumpError`], which names the line.
    pub fn parse(file: &[u8]) -> Result<Self, DumpError> {
        if file.len() > MAX_FILE {
            return Err(DumpError::TooLong);
        }
        let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
        // Names of vendors may have letters of any alphabet; config space without a zero byte does not exist.
        match std::str::from_utf8(file) {
            Ok(text) if file.iter().all(|byte| is_text(byte) || *byte >= 0x80) => {
                Self::parse_text(text)
            }
            _ if [CONVENTIONAL, EXTENDED].contains(&file.len()) => Ok(Self {
                bytes: file.to_vec(),
                bars: [None; 6],
                rom: None,
            }),
            _ => Err(DumpError::Binary(file.len())),
        }
    }

    fn parse_text(text: &str) -> Result<Self, DumpError> {
        let mut dump = Self {
            bytes: vec![0; EXTENDED],
            bars: [None; 6],
            rom: None,
        };
        let mut given = [false; EXTENDED / 16];
        for (number, line) in (1..).zip(text.lines()) {
            if let Some((offset, rest)) = bytes_line(line) {
                let row = given
                    .get_mut(offset / 16)
                    .filter(|_| offset % 16 == 0)
                    .ok_or(DumpError::Offset {
                        line: number,
                        offset,
                    })?;
                if std::mem::replace(row, true) {
                    return Err(DumpError::Twice {
                        line: number,
                        offset,
                    });
                }
                let bytes = sixteen(rest).ok_or(DumpError::Bytes(number))?;
                let place = dump.bytes.get_mut(offset..offset + 16);
                place
                    .ok_or(DumpError::Bytes(number))?
                    .copy_from_slice(&bytes);
            } else {
                dump.size_line(line.trim_start_matches('#').trim())
                    .ok_or(DumpError::Size(number))?;
            }
        }
        if !given.first().is_some_and(|given| *given) {
            return Err(DumpError::NoHeader);
        }
        if !given.iter().skip(CONVENTIONAL / 16).any(|given| *given) {
            dump.bytes.truncate(CONVENTIONAL);
        }
        Ok(dump)
    }

    /// Takes the size over that a line may name; `None` for a line that names a bad one.
    fn size_line(&mut self, line: &str) -> Option<()> {
        let size = || {
            let (_, text) = line.rsplit_once("[size=")?;
            parse_size(text.strip_suffix(']')?)
        };
        if let Some(rest) = line.strip_prefix("Region ") {
            let (index, _) = rest.split_once(':')?;
            let index: usize = index.parse().ok()?;
            // lspci leaves the size out where it does not know it.
            if line.contains("[size=") {
                *self.bars.get_mut(index)? = Some(size()?);
            }
        } else if line.starts_with("Expansion ROM at ") && line.contains("[size=") {
            self.rom = Some(size()?);
        }
        Some(())
    }

    /// The sizes as given, and where none was, one that the BAR's address allows: at most 256 MiB where it is
    /// prefetchable, 16 MiB of other memory, 128 ports. A ROM is there only if its size was given.
    #[must_use]
    pub fn sizes(&self) -> DeviceSizes {
        let mut sizes = DeviceSizes {
            rom: self.rom.unwrap_or(0),
            ..DeviceSizes::default()
        };
        let mut index = 0;
        while index < sizes.bars.len() {
            let low = self.bar(index);
            let io = low & PCI_BASE_ADDRESS_SPACE_IO != 0;
            let wide = !io && low & PCI_BASE_ADDRESS_MEM_TYPE_64 != 0;
            let high = if wide { self.bar(index + 1) } else { 0 };
            let flags = if io { 3 } else { 0xf };
            let largest = match low {
                _ if io => 128,
                _ if low & PCI_BASE_ADDRESS_MEM_PREFETCH != 0 => 256 << 20,
                _ => 16 << 20,
            };
            let address = u64::from(high) << 32 | u64::from(low & !flags);
            let aligned = 1_u64.checked_shl(address.trailing_zeros());
            let likely = aligned.map_or(largest, |aligned| aligned.min(largest));
            let there = low != 0 || high != 0;
            if let Some(size) = sizes.bars.get_mut(index) {
                let given = self.bars.get(index).copied().flatten();
                *size = given.unwrap_or(if there { likely } else { 0 });
            }
            index += if wide { 2 } else { 1 };
        }
        sizes
    }

    fn bar(&self, index: usize) -> u32 {
        let at = usize::from(PCI_BASE_ADDRESS_0) + 4 * index;
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes
            .filter(|_| index < 6)
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// The offset of a line of bytes, and the bytes: `f0: 00 11 ...`. A device's address (`01:00.0 ...`) is none.
fn bytes_line(line: &str) -> Option<(usize, &str)> {
    let (offset, rest) = line.trim().split_once(": ")?;
    let digits = (2..=3).contains(&offset.len()) && offset.bytes().all(|b| b.is_ascii_hexdigit());
    let offset = usize::from_str_radix(offset, 16).ok()?;
    digits.then_some((offset, rest))
}

fn sixteen(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut words = text.split_ascii_whitespace();
    for byte in &mut bytes {
        let word = words.next().filter(|word| word.len() == 2)?;
        let hexadecimal = word.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(word, 16).ok().filter(|_| hexadecimal)?;
    }
    words.next().is_none().then_some(bytes)
}

/// A power of two with the suffix that lspci gives it.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| plain)?;
    let size = number.checked_mul(1 << shift)?;
    size.is_power_of_two().then_some(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "00: de 10 b3 1b 07 00 10 00 a1 00 02 03 00 00 00 00\n";

    fn text(lines: &str) -> Result<Dump, DumpError> {
        Dump::parse(format!("{HEADER}{lines}").as_bytes())
    }

    #[test]
    fn what_lspci_prints_is_understood() {
        let dump = Dump::parse(
            b"# Region 3: 64-bit, prefetchable [size=32M]\n\
              01:00.0 3D controller: NVIDIA Corporation GP104GL [Tesla P4] (rev a1)\n\
              \tSubsystem: NVIDIA Corporation Device 11d8\n\
              \tRegion 0: Memory at f6000000 (32-bit, non-prefetchable) [size=16M]\n\
              \tRegion 5: I/O ports at e000 [virtual]\n\
              \tExpansion ROM at f7000000 [disabled] [size=512K]\n\
              \tCapabilities: [60] Power Management version 3\n\
              00: de 10 b3 1b 07 00 10 00 a1 00 02 03 00 00 00 00\n\
              10: 00 00 00 f6 0c 00 00 e0 ff 3b 00 00 0c 00 00 f0\n\
              20: ff 3b 00 00 01 e0 00 00 00 00 00 00 de 10 d8 11\n\
              100: 02 00 01 25 00 00 00 00 00 00 00 00 00 00 00 00\n\n",
        )
        .unwrap();
        assert_eq!(dump.bytes.len(), 4096);
        assert_eq!(dump.bytes[0x2c..0x30], [0xde, 0x10, 0xd8, 0x11]);
        assert_eq!(dump.bytes[0x100..0x104], [2, 0, 1, 0x25]);
        let sizes = dump.sizes();
        let likely = [16 << 20, 256 << 20, 0, 32 << 20, 0, 128];
        assert_eq!((sizes.bars, sizes.rom), (likely, 512 << 10));
    }

    #[test]
    fn sizes_that_nobody_gave_follow_the_address() {
        let sizes = text("10: 00 00 10 f6 0c 00 00 00 00 00 00 00 08 00 00 00\n").unwrap();
        let bars = sizes.sizes().bars;
        assert_eq!(bars, [1 << 20, 256 << 20, 0, 256 << 20, 0, 0]);
        assert_eq!(text("").unwrap().bytes.len(), 256);
    }

    #[test]
    fn binary_by_its_size() {
        let mut bytes = vec![0; 4096];
        bytes[..2].copy_from_slice(&[0xde, 0x10]);
        assert_eq!(Dump::parse(&bytes).unwrap().bytes, bytes);
        assert_eq!(Dump::parse(&bytes[..256]).unwrap().bytes.len(), 256);
        assert_eq!(Dump::parse(&bytes[..64]), Err(DumpError::Binary(64)));
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        for (lines, error) in [
            ("10: 00 11\n", DumpError::Bytes(2)),
            (
                "10: 00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee fg\n",
                DumpError::Bytes(2),
            ),
            (
                "10: 00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff 00\n",
                DumpError::Bytes(2),
            ),
            (
                "10: ?? 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff\n",
                DumpError::Bytes(2),
            ),
            (HEADER, DumpError::Twice { line: 2, offset: 0 }),
            (
                "\n18: 00\n",
                DumpError::Offset {
                    line: 3,
                    offset: 0x18,
                },
            ),
            ("# Region 6: [size=16M]\n", DumpError::Size(2)),
            ("# Region 0: [size=3M]\n", DumpError::Size(2)),
            ("# Region 0: [size=16X]\n", DumpError::Size(2)),
            ("# Region 0: [size=99999999999T]\n", DumpError::Size(2)),
            ("Expansion ROM at 0 [size=]\n", DumpError::Size(2)),
        ] {
            assert_eq!(text(lines), Err(error), "{lines:?}");
        }
        assert_eq!(Dump::parse(b""), Err(DumpError::NoHeader));
        assert_eq!(Dump::parse(b"10: x\n"), Err(DumpError::Bytes(1)));
        assert_eq!(
            Dump::parse(&vec![b' '; MAX_FILE + 1]),
            Err(DumpError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn any_file_is_survived(file in proptest::collection::vec(any::<u8>(), 0..600), line in "\\PC{0,80}") {
            if let Ok(dump) = Dump::parse(&file) {
                let _ = dump.sizes();
            }
            if let Ok(dump) = text(&line) {
                let _ = dump.sizes();
            }
        }
    }
}
