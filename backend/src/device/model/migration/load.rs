// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking the state of a model GPU: bytes in any segmentation, every one of them checked.
//!
//! VRAM is written as it comes; the rest is kept until all is there. What is not right makes the whole stream
//! wrong for good.

use rustix::io::Errno;
use vm_memory::VolatileSlice;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::super::bochs;
use super::super::engine::Snapshot;
use super::super::vram::{Vram, VramFault};
use super::format::{self, FIXED, GRANULE, HEADER, Header, Kind, MAGIC, Start, VERSION};
use super::{Parts, parts, pattern};
use crate::interrupts::LinesState;
use crate::memory::MAX_PIECE;

/// Why data is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// No chunk has this number.
    #[error("Chunk {0} is not known")]
    UnknownKind(u32),
    /// The chunk does not belong here.
    #[error("Chunk {0:?} is out of order")]
    Order(Kind),
    /// Offset, length or a field that must be 0.
    #[error("Chunk {kind:?} at {offset:#x}, {length:#x} bytes: not allowed")]
    Shape {
        /// The chunk.
        kind: Kind,
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// The first chunk is not that of a model GPU's data, or of another version of it.
    #[error("Not data of a model GPU, version {VERSION}")]
    Foreign,
    /// The source has another size of VRAM.
    #[error("The source has {source_size:#x} bytes of VRAM, this GPU {size:#x}")]
    VramSize {
        /// VRAM of the source.
        source_size: u64,
        /// VRAM here.
        size: u64,
    },
    /// A state that no model GPU can be in.
    #[error("Contents of chunk {0:?} cannot be")]
    Contents(Kind),
    /// Something follows the end.
    #[error("Data after the end")]
    AfterEnd,
    /// Not all was written.
    #[error("The end is missing")]
    Incomplete,
    /// It was bad before.
    #[error("Data was refused before")]
    Before,
    /// The operating system failed; the data may be good.
    #[error("VRAM cannot be written: {0}")]
    Vram(Errno),
    /// The device was reset meanwhile.
    #[error("The device was reset")]
    Reset,
}

impl Bad {
    /// The errno for whoever writes.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Vram(errno) => *errno,
            Self::Reset => Errno::NODEV,
            _ => Errno::INVAL,
        }
    }
}

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Header,
    /// The payload of a chunk that is kept until it is whole.
    Fixed(Kind),
    /// Contents of VRAM.
    Vram {
        offset: u64,
        left: u64,
    },
    /// Bytes of the pattern.
    Extra {
        left: u64,
    },
}

/// A stream that is being taken.
#[derive(Debug)]
pub struct Loading {
    at: At,
    /// The chunk before.
    last: Option<Kind>,
    /// A header or payload, as far as it has come.
    kept: [u8; FIXED],
    have: usize,
    extra: u64,
    extra_size: u64,
    engine: Option<Snapshot>,
    display: Option<bochs::Display>,
    lines: Option<LinesState>,
    refused: bool,
    /// For comparing EXTRA: what came, and what should have.
    scratch: Box<[[u8; GRANULE]; 2]>,
}

/// All that is not in VRAM already.
#[derive(Debug)]
pub struct Loaded {
    /// The engine.
    pub engine: Snapshot,
    /// The display.
    pub display: bochs::Display,
    /// Interrupts.
    pub lines: LinesState,
}

impl Loading {
    /// Nothing has come yet; VRAM is zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            at: At::Header,
            last: None,
            kept: [0; FIXED],
            have: 0,
            extra: 0,
            extra_size: 0,
            engine: None,
            display: None,
            lines: None,
            refused: false,
            scratch: Box::new([[0; GRANULE]; 2]),
        }
    }

    /// Takes all of `from`.
    ///
    /// # Errors
    /// [`Bad`]; from then on nothing is taken.
    pub fn write(&mut self, from: &VolatileSlice<'_>, parts: &Parts) -> Result<(), Bad> {
        if self.refused {
            return Err(Bad::Before);
        }
        let result = self.take(from, parts);
        self.refused = result.is_err();
        result
    }

    /// All that came, if it is all there is.
    ///
    /// # Errors
    /// [`Bad::Incomplete`] or [`Bad::Before`].
    pub fn finish(self) -> Result<Loaded, Bad> {
        if self.refused {
            return Err(Bad::Before);
        }
        if self.last != Some(Kind::End) {
            return Err(Bad::Incomplete);
        }
        let parts = self.engine.zip(self.display).zip(self.lines);
        let ((engine, display), lines) = parts.ok_or(Bad::Incomplete)?;
        Ok(Loaded {
            engine,
            display,
            lines,
        })
    }

    fn take(&mut self, from: &VolatileSlice<'_>, parts: &Parts) -> Result<(), Bad> {
        let mut done = 0;
        while let Ok(rest) = from.offset(done)
            && !rest.is_empty()
        {
            parts.go_on().map_err(|_| Bad::Reset)?;
            done += match self.at {
                At::Header => self.take_header(&rest, &parts.vram)?,
                At::Fixed(kind) => self.take_fixed(kind, &rest, parts.vram.size())?,
                At::Vram { offset, left } => self.take_vram(offset, left, &rest, &parts.vram)?,
                At::Extra { left } => self.take_extra(left, &rest)?,
            };
        }
        Ok(())
    }

    /// Keeps bytes until there are `wanted`: how many were taken.
    fn keep(&mut self, wanted: usize, rest: &VolatileSlice<'_>) -> usize {
        let space = self.kept.get_mut(self.have..wanted).unwrap_or_default();
        let taken = rest.copy_to(space);
        self.have += taken;
        taken
    }

    fn take_header(&mut self, rest: &VolatileSlice<'_>, vram: &Vram) -> Result<usize, Bad> {
        if self.last == Some(Kind::End) {
            return Err(Bad::AfterEnd);
        }
        let taken = self.keep(HEADER, rest);
        if self.have == HEADER {
            self.have = 0;
            let header = Header::read_from_prefix(&self.kept);
            let (header, _) = header.map_err(|_| Bad::Incomplete)?;
            self.at = self.header(header, vram)?;
        }
        Ok(taken)
    }

    /// Checks a header; what follows it.
    fn header(&mut self, header: Header, vram: &Vram) -> Result<At, Bad> {
        let kind = Kind::try_from(header.kind.get()).map_err(Bad::UnknownKind)?;
        let (offset, length) = (header.offset.get(), header.length.get());
        if !follows(self.last, kind) {
            return Err(Bad::Order(kind));
        }
        let shape = Bad::Shape {
            kind,
            offset,
            length,
        };
        let end = offset.checked_add(length);
        let inside = |size: u64| length > 0 && end.is_some_and(|end| end <= size);
        let granule = GRANULE as u64;
        let good = match kind {
            Kind::Vram | Kind::Zero => {
                offset.is_multiple_of(granule)
                    && length.is_multiple_of(granule)
                    && inside(vram.size())
            }
            Kind::Extra => offset == self.extra && length <= granule && inside(self.extra_size),
            Kind::End => offset == 0 && length == 0 && self.extra == self.extra_size,
            _ => offset == 0 && length == fixed_size(kind) as u64,
        };
        if !good || header.reserved.get() != 0 || header.zeros != [U64::ZERO; 5] {
            return Err(shape);
        }
        self.last = Some(kind);
        Ok(match kind {
            Kind::Vram => At::Vram {
                offset,
                left: length,
            },
            Kind::Zero => {
                let zeroed = vram.zero_range(offset, length);
                zeroed.map_err(|error| {
                    let error = std::io::Error::from(error);
                    Bad::Vram(Errno::from_io_error(&error).unwrap_or(Errno::IO))
                })?;
                At::Header
            }
            Kind::Extra => At::Extra { left: length },
            Kind::End => At::Header,
            fixed => At::Fixed(fixed),
        })
    }

    fn take_fixed(
        &mut self,
        kind: Kind,
        rest: &VolatileSlice<'_>,
        size: u64,
    ) -> Result<usize, Bad> {
        let taken = self.keep(fixed_size(kind), rest);
        if self.have == fixed_size(kind) {
            self.have = 0;
            self.at = At::Header;
            self.fixed(kind, size)?;
        }
        Ok(taken)
    }

    fn fixed(&mut self, kind: Kind, vram_size: u64) -> Result<(), Bad> {
        let bad = Bad::Contents(kind);
        match kind {
            Kind::Start => self.start(vram_size)?,
            Kind::Engine => {
                let payload: format::Engine = self.payload().ok_or(bad.clone())?;
                self.engine = Some(parts::read_engine(&payload, vram_size).ok_or(bad)?);
            }
            Kind::Display => {
                let payload: format::Display = self.payload().ok_or(bad.clone())?;
                self.display = Some(parts::read_display(&payload, vram_size).ok_or(bad)?);
            }
            _ => {
                let payload: format::Lines = self.payload().ok_or(bad.clone())?;
                let engine = self.engine.as_ref().ok_or(bad.clone())?;
                self.lines = Some(parts::read_lines(&payload, engine).ok_or(bad)?);
            }
        }
        Ok(())
    }

    fn payload<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.kept).ok().map(|(value, _)| value)
    }

    fn start(&mut self, size: u64) -> Result<(), Bad> {
        let start: Start = self.payload().ok_or(Bad::Foreign)?;
        let granule = u32::try_from(GRANULE) == Ok(start.granule.get());
        let zeros = start.zeros == [U64::ZERO; 4];
        if start.magic != MAGIC || start.version.get() != VERSION || !granule || !zeros {
            return Err(Bad::Foreign);
        }
        let source_size = start.vram_size.get();
        if source_size != size {
            return Err(Bad::VramSize { source_size, size });
        }
        self.extra_size = start.extra_size.get();
        Ok(())
    }

    fn take_vram(
        &mut self,
        offset: u64,
        left: u64,
        rest: &VolatileSlice<'_>,
        vram: &Vram,
    ) -> Result<usize, Bad> {
        let most = rest.len().min(MAX_PIECE);
        let taken = usize::try_from(left).map_or(most, |left| left.min(most));
        let part = rest
            .subslice(0, taken)
            .map_err(|_| Bad::Vram(Errno::INVAL))?;
        vram.write_shared(offset, &part)
            .map_err(|fault| match fault {
                VramFault::Outside { .. } => Bad::Contents(Kind::Vram),
                VramFault::Lost { .. } => Bad::Vram(Errno::IO),
            })?;
        let left = left.saturating_sub(taken as u64);
        let offset = offset.saturating_add(taken as u64);
        self.at = match left {
            0 => At::Header,
            _ => At::Vram { offset, left },
        };
        Ok(taken)
    }

    fn take_extra(&mut self, left: u64, rest: &VolatileSlice<'_>) -> Result<usize, Bad> {
        // The pattern comes in words of 8 bytes; one that was begun is made again.
        let begun = usize::try_from(self.extra % 8).unwrap_or(0);
        let most = rest.len().min(GRANULE - begun);
        let taken = usize::try_from(left).map_or(most, |left| left.min(most));
        let [came, wanted] = &mut *self.scratch;
        rest.copy_to(&mut came[..taken]);
        pattern::fill(self.extra - begun as u64, &mut wanted[..begun + taken]);
        if came[..taken] != wanted[begun..begun + taken] {
            return Err(Bad::Contents(Kind::Extra));
        }
        self.extra = self.extra.saturating_add(taken as u64);
        let left = left.saturating_sub(taken as u64);
        self.at = match left {
            0 => At::Header,
            _ => At::Extra { left },
        };
        Ok(taken)
    }
}

/// Whether a chunk may come after another.
fn follows(last: Option<Kind>, kind: Kind) -> bool {
    match last {
        None => kind == Kind::Start,
        Some(Kind::Start | Kind::Vram | Kind::Zero) => {
            matches!(kind, Kind::Vram | Kind::Zero | Kind::Engine)
        }
        Some(Kind::Engine) => kind == Kind::Display,
        Some(Kind::Display) => kind == Kind::Lines,
        Some(Kind::Lines | Kind::Extra) => matches!(kind, Kind::Extra | Kind::End),
        Some(Kind::End) => false,
    }
}

/// Bytes of a payload that is kept whole.
fn fixed_size(kind: Kind) -> usize {
    match kind {
        Kind::Start => size_of::<Start>(),
        Kind::Engine => size_of::<format::Engine>(),
        Kind::Display => size_of::<format::Display>(),
        Kind::Lines => size_of::<format::Lines>(),
        Kind::Vram | Kind::Zero | Kind::Extra | Kind::End => 0,
    }
}
