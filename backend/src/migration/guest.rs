// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What migrates beside the device's own data: who it is, and what the guest set up in front of it.

use std::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// The property for the format of the driver's own data, which not every driver tells.
pub const DRIVER_DATA: &str = "driver data";
/// Its value on a side that does not know it, which agrees with every other. In another property it is a value like any,
/// or a source that claims to know nothing would pass for every device.
pub const UNKNOWN: &str = "unknown";

/// The most properties that an identity may have; comparing two takes the square of it.
const MAX_PAIRS: u16 = 256;

/// The function in front of the device, as migration needs it.
pub trait Guest {
    /// What source and destination must have in common.
    fn identity(&self) -> Identity;

    /// What the guest set up. Asked once nothing runs any more.
    ///
    /// # Errors
    /// What the device says.
    fn save(&self) -> Result<GuestState, String>;

    /// Whether [`Self::load`] would take this.
    ///
    /// # Errors
    /// What does not fit, in words.
    fn check(&self, state: &GuestState) -> Result<(), String>;

    /// Takes what the guest set up at the source, once the device has its own state; false if `still` is, which is asked
    /// where no reset can come between the answer and the end of this.
    ///
    /// # Errors
    /// What the device says.
    fn load(&self, state: &GuestState, still: &dyn Fn() -> bool) -> Result<bool, String>;

    /// Returns device and function to power-on: a load came to nothing.
    ///
    /// # Errors
    /// What the device says.
    fn reset(&self) -> Result<(), String>;
}

/// Names and values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub Vec<(String, String)>);

/// Where two identities differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In what.
    pub name: String,
    /// The source's value; empty if it has none.
    pub source: String,
    /// The destination's.
    pub destination: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &str| {
            if value.is_empty() {
                "none".to_owned()
            } else {
                value.to_owned()
            }
        };
        write!(
            f,
            "{}: {} at the source, {} here",
            self.name,
            shown(&self.source),
            shown(&self.destination)
        )
    }
}

impl Identity {
    /// Adds a property.
    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Everything in which this destination differs from `source`.
    #[must_use]
    pub fn differences(&self, source: &Self) -> Vec<Difference> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(source.0.iter().map(|(name, _)| name.as_str()));
        let mut differences: Vec<Difference> = Vec::new();
        for name in names {
            let (ours, theirs) = (self.get(name), source.get(name));
            let unknown = name == DRIVER_DATA && (ours == UNKNOWN || theirs == UNKNOWN);
            let agree = ours == theirs || unknown;
            if !agree && !differences.iter().any(|known| known.name == name) {
                differences.push(Difference {
                    name: name.to_owned(),
                    source: theirs.to_owned(),
                    destination: ours.to_owned(),
                });
            }
        }
        differences
    }

    /// `count (u16)`, then for each name and value a length (u16) and UTF-8, little endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let short = |text: &str| U16::new(u16::try_from(text.len()).unwrap_or(u16::MAX));
        let mut bytes = U16::new(u16::try_from(self.0.len()).unwrap_or(u16::MAX))
            .as_bytes()
            .to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend_from_slice(short(text).as_bytes());
            bytes.extend_from_slice(&text.as_bytes()[..usize::from(short(text).get())]);
        }
        bytes
    }

    /// `None` for bytes that are no such list, or a list of more than anybody has.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (count, mut rest) = U16::read_from_prefix(bytes).ok()?;
        let mut text = || {
            let (length, after) = U16::read_from_prefix(rest).ok()?;
            let (text, after) = after.split_at_checked(length.get().into())?;
            rest = after;
            String::from_utf8(text.to_vec()).ok()
        };
        if count.get() > MAX_PAIRS {
            return None;
        }
        let mut pairs = Vec::new();
        for _ in 0..count.get() {
            pairs.push((text()?, text()?));
        }
        rest.is_empty().then_some(Self(pairs))
    }
}

/// What the guest set up in front of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestState {
    /// Config space as the guest reads it: 256 or 4096 bytes.
    pub config: Vec<u8>,
    /// The MSI-X table, 16 bytes a vector; empty without.
    pub msix_table: Vec<u8>,
    /// What quirks remember of the guest's accesses; empty for nothing.
    pub quirks: Vec<u8>,
}

const CONFIG: u32 = 1;
const MSIX_TABLE: u32 = 2;
/// There only with something in it.
const QUIRKS: u32 = 3;

impl GuestState {
    /// Sections, each a number (u32), a length (u32) and its bytes, little endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, section) in [
            (CONFIG, &self.config),
            (MSIX_TABLE, &self.msix_table),
            (QUIRKS, &self.quirks),
        ] {
            if number == QUIRKS && section.is_empty() {
                continue;
            }
            let length = u32::try_from(section.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice([U32::new(number), U32::new(length)].as_bytes());
            bytes.extend_from_slice(section);
        }
        bytes
    }

    /// `None` for bytes that are no such sections, each of them once.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut config, mut msix_table, mut quirks) = (None, None, None);
        let mut rest = bytes;
        while !rest.is_empty() {
            let ([number, length], after) = <[U32; 2]>::read_from_prefix(rest).ok()?;
            let length = usize::try_from(length.get()).ok()?;
            let (section, after) = after.split_at_checked(length)?;
            let place = match number.get() {
                CONFIG => &mut config,
                MSIX_TABLE => &mut msix_table,
                QUIRKS => &mut quirks,
                _ => return None,
            };
            if place.replace(section.to_vec()).is_some() {
                return None;
            }
            rest = after;
        }
        Some(Self {
            config: config?,
            msix_table: msix_table?,
            quirks: quirks.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(pairs: &[(&str, &str)]) -> Identity {
        let mut identity = Identity::default();
        for (name, value) in pairs {
            identity.push(name, *value);
        }
        identity
    }

    #[test]
    fn both_sides_are_named() {
        let ours = identity(&[
            ("device", "1234:1111"),
            ("BAR0", "64M"),
            (DRIVER_DATA, UNKNOWN),
        ]);
        let theirs = identity(&[
            ("device", "1234:1111"),
            ("BAR0", "32M"),
            (DRIVER_DATA, "x"),
            ("clique", "8"),
        ]);
        let found: Vec<_> = ours
            .differences(&theirs)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            [
                "BAR0: 32M at the source, 64M here",
                "clique: 8 at the source, none here"
            ]
        );
        assert!(ours.differences(&ours).is_empty());
        assert_eq!(theirs.differences(&ours).len(), 2);
    }

    #[test]
    fn only_driver_data_may_be_unknown() {
        let ours = identity(&[("device", "1234:1111"), ("BAR0", "64M"), (DRIVER_DATA, "x")]);
        let names = ours.0.iter().map(|(name, _)| name.as_str());
        let nothing = identity(&names.map(|name| (name, UNKNOWN)).collect::<Vec<_>>());
        for (here, source) in [(&ours, &nothing), (&nothing, &ours)] {
            let found = here.differences(source);
            let found: Vec<_> = found.iter().map(|known| known.name.as_str()).collect();
            assert_eq!(found, ["device", "BAR0"]);
        }
    }

    #[test]
    fn driver_data_that_both_sides_know_has_to_agree() {
        let with = |version| identity(&[("device", "1234:1111"), (DRIVER_DATA, version)]);
        let (ours, theirs) = (with("model 3"), with("model 2"));
        let found = ours.differences(&theirs);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["driver data: model 2 at the source, model 3 here"]);
        // None at all is not an unknown one.
        let without = identity(&[("device", "1234:1111")]);
        assert_eq!(ours.differences(&without).len(), 1);
        assert_eq!(without.differences(&ours).len(), 1);
    }

    #[test]
    fn lists_and_sections_read_back() {
        let ours = identity(&[("name", "wert\u{e4}"), ("", "")]);
        assert_eq!(Identity::decode(&ours.encode()), Some(ours));
        let state = GuestState {
            config: vec![1; 256],
            ..GuestState::default()
        };
        assert_eq!(GuestState::decode(&state.encode()), Some(state.clone()));
        let remembering = GuestState {
            quirks: vec![1, 2],
            ..state.clone()
        };
        let read_back = GuestState::decode(&remembering.encode());
        assert_eq!(read_back, Some(remembering));
        let twice = [state.encode(), state.encode()].concat();
        assert_eq!(GuestState::decode(&twice), None);
        assert_eq!(GuestState::decode(&[]), None);
    }

    #[test]
    fn a_list_of_more_than_anybody_has_is_none() {
        let list = |count: usize| Identity(vec![("n".to_owned(), "v".to_owned()); count]);
        assert!(Identity::decode(&list(256).encode()).is_some());
        assert_eq!(Identity::decode(&list(257).encode()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Identity::decode(&bytes);
            let _ = GuestState::decode(&bytes);
        }
    }
}
