// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The message header: 16 bytes before every message, both ways.
//!
//! ```text
//!  0        2        4                 8                 12                16
//!  +--------+--------+-----------------+-----------------+-----------------+
//!  |   id   | command|  message size   |      flags      |  errno (reply)  |
//!  +--------+--------+-----------------+-----------------+-----------------+
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER_SIZE: usize = size_of::<Header>();

/// Flag bits 0-3: the message type.
const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
/// The sender of a command wants no reply.
pub const NO_REPLY: u32 = 1 << 4;
/// The reply reports a failure; the errno field is valid.
pub const ERROR: u32 = 1 << 5;

/// A message header as it is on the wire.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, echoed in its reply. Need not be unique.
    pub id: u16,
    /// A [`Command`] number; also set in replies.
    pub command: u16,
    /// Bytes of the whole message, these 16 included.
    pub size: u32,
    /// Type, [`NO_REPLY`], [`ERROR`].
    pub flags: u32,
    /// A UNIX errno in an error reply, else 0.
    pub errno: u32,
}

/// What kind of message a header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// A request.
    Command,
    /// The answer to one.
    Reply,
    /// A type the specification does not define.
    Unknown(u32),
}

impl Header {
    /// The header of a request with `payload` bytes after it, saturating at what a size can say.
    #[must_use]
    pub fn request(id: u16, command: Command, payload: usize) -> Self {
        Self {
            id,
            command: command.into(),
            size: message_size(payload),
            flags: TYPE_COMMAND,
            errno: 0,
        }
    }

    /// The header of a successful reply to this request with `payload` bytes after it.
    #[must_use]
    pub fn reply(&self, payload: usize) -> Self {
        Self {
            size: message_size(payload),
            flags: TYPE_REPLY,
            errno: 0,
            ..*self
        }
    }

    /// The header of an error reply to this request. It has no payload.
    #[must_use]
    pub fn error_reply(&self, errno: u32) -> Self {
        Self {
            flags: TYPE_REPLY | ERROR,
            errno,
            ..self.reply(0)
        }
    }

    /// Request or reply.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        match self.flags & TYPE_MASK {
            TYPE_COMMAND => MessageType::Command,
            TYPE_REPLY => MessageType::Reply,
            other => MessageType::Unknown(other),
        }
    }

    /// The sender of this request wants no reply.
    #[must_use]
    pub fn wants_no_reply(&self) -> bool {
        self.flags & NO_REPLY != 0
    }

    /// The errno of an error reply; a peer's 0 or nonsense is kept as it came.
    #[must_use]
    pub fn error(&self) -> Option<u32> {
        (self.flags & ERROR != 0).then_some(self.errno)
    }
}

fn message_size(payload: usize) -> u32 {
    u32::try_from(HEADER_SIZE.saturating_add(payload)).unwrap_or(u32::MAX)
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Command {
            $($(#[$doc])* $name,)*
        }

        impl Command {
            /// Every command this crate knows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }

        impl From<Command> for u16 {
            fn from(command: Command) -> Self {
                match command { $(Command::$name => $number,)* }
            }
        }

        impl TryFrom<u16> for Command {
            type Error = u16;

            fn try_from(number: u16) -> Result<Self, u16> {
                match number { $($number => Ok(Self::$name),)* other => Err(other) }
            }
        }
    };
}

commands! {
    /// Agree on version and capabilities; the first message.
    Version = 1,
    /// Make guest memory reachable for the device.
    DmaMap = 2,
    /// Take guest memory away.
    DmaUnmap = 3,
    /// Flags, number of regions and interrupt indexes.
    DeviceGetInfo = 4,
    /// Size, flags and capabilities of one region.
    DeviceGetRegionInfo = 5,
    /// Descriptors that stand for parts of a region.
    DeviceGetRegionIoFds = 6,
    /// Number and properties of the interrupts at one index.
    DeviceGetIrqInfo = 7,
    /// Arm, mask, trigger interrupts.
    DeviceSetIrqs = 8,
    /// Read from a region.
    RegionRead = 9,
    /// Write to a region.
    RegionWrite = 10,
    /// Server to client: read guest memory.
    DmaRead = 11,
    /// Server to client: write guest memory.
    DmaWrite = 12,
    /// Reset the device.
    DeviceReset = 13,
    /// Many small region writes in one message.
    RegionWriteMulti = 15,
    /// Get, set or probe a device feature.
    DeviceFeature = 16,
    /// Read migration data.
    MigDataRead = 17,
    /// Write migration data.
    MigDataWrite = 18,
    /// Server to client, extension `irq_routes`: where interrupt messages go.
    IrqRoutes = 0x8000,
    /// Extension `mig_channel`: a second socket for migration.
    MigChannel = 0x8001,
    /// Extension `precopy_info`: what the pre-copy phase still has.
    MigPrecopyInfo = 0x8002,
    /// Extension `pending`: how much is still to be moved.
    MigPending = 0x8003,
    /// Extension `mig_shm`: shared memory for migration data.
    MigShm = 0x8004,
    /// Extension `mig_shm`: read migration data into it.
    MigShmRead = 0x8005,
    /// Extension `mig_shm`: write migration data out of it.
    MigShmWrite = 0x8006,
    /// Extension `explain`: why the last request was refused.
    Explain = 0x8007,
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn layout() {
        let header = Header {
            id: 0x1122,
            command: 9,
            size: 32,
            flags: 0x21,
            errno: 22,
        };
        #[cfg(target_endian = "little")]
        assert_eq!(
            header.as_bytes(),
            [0x22, 0x11, 9, 0, 32, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0]
        );
        assert_eq!(header.message_type(), MessageType::Reply);
        assert_eq!(header.error(), Some(22));
    }

    #[test]
    fn commands_round_trip_and_keep_their_numbers() {
        for &command in Command::ALL {
            assert_eq!(Command::try_from(u16::from(command)), Ok(command));
        }
        assert_eq!(u16::from(Command::DeviceFeature), 16);
        for unknown in [0, 14, 19, 999] {
            assert_eq!(Command::try_from(unknown), Err(unknown));
        }
    }

    #[test]
    fn an_error_reply_is_a_reply_and_header_only() {
        let request = Header::request(7, Command::DmaMap, 32);
        let reply = request.error_reply(17);
        assert_eq!((reply.id, reply.command, reply.size), (7, 2, 16));
        assert_eq!(reply.flags, 0x21);
    }
}
