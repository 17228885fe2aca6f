// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data of a model GPU that migrates. This is the place that defines it.
//!
//! A sequence of chunks, little endian, nothing between them:
//!
//! ```text
//!  0        4        8                16               24               64
//!  +--------+--------+----------------+----------------+----------------+-------- - -
//!  | kind   | 0      | offset         | length         | 0              | payload
//!  +--------+--------+----------------+----------------+----------------+-------- - -
//!
//!  START ( VRAM | ZERO )* ENGINE DISPLAY LINES EXTRA* END
//! ```
//!
//! | kind | offset | length | payload |
//! |---|---|---|---|
//! | 1 START | 0 | 64 | [`Start`] |
//! | 2 VRAM | in VRAM, whole granules | whole granules | that part of VRAM |
//! | 3 ZERO | in VRAM, whole granules | whole granules | none: that part is zero |
//! | 4 ENGINE | 0 | 112 | [`Engine`] |
//! | 5 DISPLAY | 0 | 28 | [`Display`] |
//! | 6 LINES | 0 | 24 | [`Lines`] |
//! | 7 EXTRA | where the last one ended | up to a granule | [`super::pattern`] from there |
//! | 8 END | 0 | 0 | none |
//!
//! VRAM begins at multiples of 64 bytes of the stream: processors copy slower, some several times, where source and
//! destination are not at the same place in a cache line.
//!
//! VRAM is zero before the first chunk; of several chunks for one place the last counts. There is as much EXTRA
//! as START says, for tests of devices with much state that only a stopped device gives.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::bochs;

/// Version of all this, part of the driver's data version.
pub const VERSION: u32 = 3;
/// What a stream begins with, in [`Start`].
pub const MAGIC: [u8; 8] = *b"VGPU-MIG";
/// VRAM is looked at, sent and placed in pieces of this many bytes.
pub const GRANULE: usize = 16 << 10;
/// Bytes of a chunk's header.
pub const HEADER: usize = size_of::<Header>();
/// Bytes of the largest payload that is kept before it is used.
pub const FIXED: usize = size_of::<Engine>();

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Kind {
    /// Whose data this is.
    Start = 1,
    /// Contents of VRAM.
    Vram = 2,
    /// VRAM that is zero.
    Zero = 3,
    /// The engine.
    Engine = 4,
    /// The display.
    Display = 5,
    /// Interrupts.
    Lines = 6,
    /// More state, for tests.
    Extra = 7,
    /// There is no more.
    End = 8,
}

impl TryFrom<u32> for Kind {
    type Error = u32;

    fn try_from(number: u32) -> Result<Self, u32> {
        [
            Self::Start,
            Self::Vram,
            Self::Zero,
            Self::Engine,
            Self::Display,
            Self::Lines,
            Self::Extra,
            Self::End,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
        .ok_or(number)
    }
}

macro_rules! wire {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
            )]
            #[repr(C)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*
    };
}

wire! {
    /// The header of a chunk.
    pub struct Header {
        /// A [`Kind`].
        pub kind: U32,
        /// 0.
        pub reserved: U32,
        /// Where the payload belongs.
        pub offset: U64,
        /// Bytes of it.
        pub length: U64,
        /// 0.
        pub zeros: [U64; 5],
    }

    /// Payload of START.
    pub struct Start {
        /// [`MAGIC`].
        pub magic: [u8; 8],
        /// [`VERSION`].
        pub version: U32,
        /// [`GRANULE`].
        pub granule: U32,
        /// Bytes of VRAM.
        pub vram_size: U64,
        /// Bytes of EXTRA.
        pub extra_size: U64,
        /// 0.
        pub zeros: [U64; 4],
    }

    /// Payload of ENGINE: registers as `registers.rs` draws them, and the command under way.
    pub struct Engine {
        /// SRC.
        pub src: U64,
        /// DST.
        pub dst: U64,
        /// LEN.
        pub len: U64,
        /// COMPLETED.
        pub completed: U64,
        /// FAULT_ADDRESS.
        pub fault_address: U64,
        /// SCRATCH.
        pub scratch: U32,
        /// FILL.
        pub fill: U32,
        /// COMMAND.
        pub command: U32,
        /// STATUS.
        pub status: U32,
        /// FENCE.
        pub fence: U32,
        /// INT_STATUS.
        pub int_status: U32,
        /// INT_ENABLE.
        pub int_enable: U32,
        /// 1 while a command is under way, else 0, and then all that follows is 0.
        pub busy: U32,
        /// SRC of that command.
        pub job_src: U64,
        /// DST of that command.
        pub job_dst: U64,
        /// LEN of that command.
        pub job_len: U64,
        /// Bytes of it that are done: whole MiB.
        pub job_done: U64,
        /// FILL of that command.
        pub job_fill: U32,
        /// COMMAND of that command.
        pub job_command: U32,
    }

    /// Payload of DISPLAY.
    pub struct Display {
        /// The dispi registers, by number.
        pub dispi: [U16; bochs::index::COUNT],
        /// 0.
        pub reserved: U16,
        /// The byte order register.
        pub byte_order: U32,
    }

    /// Payload of LINES.
    pub struct Lines {
        /// 1 while INTx is asserted, else 0.
        pub level: U32,
        /// 0.
        pub reserved: U32,
        /// MSI vectors with an event that waits, one bit each.
        pub msi: U64,
        /// MSI-X vectors with an event that waits, one bit each.
        pub msix: U64,
    }
}

impl Header {
    /// The header of a chunk.
    #[must_use]
    pub fn new(kind: Kind, offset: u64, length: u64) -> Self {
        Self {
            kind: (kind as u32).into(),
            reserved: U32::ZERO,
            offset: offset.into(),
            length: length.into(),
            zeros: [U64::ZERO; 5],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawing_is_true() {
        let sizes = [
            size_of::<Header>(),
            size_of::<Start>(),
            size_of::<Engine>(),
            size_of::<Display>(),
            size_of::<Lines>(),
        ];
        assert_eq!(sizes, [64, 64, 112, 28, 24]);
        assert!(
            [sizes[0], sizes[1], GRANULE]
                .iter()
                .all(|size| size % 64 == 0)
        );
        assert_eq!(FIXED, sizes[1..].iter().copied().max().unwrap());
        let header = Header::new(Kind::Zero, 0x1_0000, 0x4000);
        let mut bytes = [0; 64];
        bytes[0] = 3;
        bytes[10] = 1;
        bytes[17] = 0x40;
        assert_eq!(header.as_bytes(), bytes);
        for number in 0..20 {
            let kind = Kind::try_from(number);
            assert_eq!(
                kind.map(|kind| kind as u32).is_ok(),
                (1..=8).contains(&number)
            );
        }
    }
}
