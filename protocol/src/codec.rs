// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading wire structures out of bytes nobody has checked yet.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before the field does.
    #[error("{field}: {have} bytes where {need} are needed")]
    TooShort {
        /// The field or structure that is cut.
        field: &'static str,
        /// Its bytes.
        need: usize,
        /// What was left.
        have: usize,
    },
    /// Lengths that must agree do not.
    #[error("{field}: {announced} announced, {found} found")]
    LengthMismatch {
        /// The field that announces.
        field: &'static str,
        /// What it says.
        announced: u64,
        /// What there is.
        found: u64,
    },
    /// A value the specification does not allow.
    #[error("{field}: {value:#x} is not allowed")]
    BadValue {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The number of descriptors does not fit the request.
    #[error("{found} descriptors where {expected} are allowed")]
    Descriptors {
        /// How many the request takes.
        expected: usize,
        /// How many came.
        found: usize,
    },
    /// The capabilities are not the JSON they should be.
    #[error("Version capabilities: {field}: {problem}")]
    Json {
        /// The key, or what part of the text.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A command number that is not known here.
    #[error("Command {0} is not known")]
    UnknownCommand(u16),
    /// A reply, or a message of an undefined type, where a command is expected.
    #[error("Message type {0} where a command is expected")]
    NotACommand(u32),
}

/// A cursor over bytes that cannot run past their end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Takes one structure.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] naming `field`.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        field: &'static str,
    ) -> Result<T, DecodeError> {
        match T::read_from_prefix(self.bytes) {
            Ok((value, rest)) => {
                self.bytes = rest;
                Ok(value)
            }
            Err(_) => Err(DecodeError::TooShort {
                field,
                need: size_of::<T>(),
                have: self.bytes.len(),
            }),
        }
    }

    /// Takes `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] naming `field`.
    pub fn take_bytes(
        &mut self,
        field: &'static str,
        count: usize,
    ) -> Result<&'a [u8], DecodeError> {
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(DecodeError::TooShort {
                field,
                need: count,
                have: self.bytes.len(),
            }),
        }
    }

    /// What was not taken.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

/// Refuses an `argsz` smaller than the structure that holds it.
pub(crate) fn check_argsz<T>(field: &'static str, argsz: u32) -> Result<(), DecodeError> {
    let need = size_of::<T>();
    let have = usize::try_from(argsz).unwrap_or(usize::MAX);
    if have < need {
        return Err(DecodeError::TooShort { field, need, have });
    }
    Ok(())
}

/// Refuses lengths that do not agree.
pub(crate) fn check_length(
    field: &'static str,
    announced: u64,
    found: usize,
) -> Result<(), DecodeError> {
    let found = u64::try_from(found).unwrap_or(u64::MAX);
    if announced != found {
        return Err(DecodeError::LengthMismatch {
            field,
            announced,
            found,
        });
    }
    Ok(())
}

/// A length as a wire field; saturates, so that an impossible length fails at the peer's check.
pub(crate) fn wire_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
