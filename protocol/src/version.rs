// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VERSION (1): versions, capabilities in JSON, and their negotiation.
//!
//! Request and reply are `u16 major, u16 minor` and then, optionally, JSON ended by a NUL:
//! `{"capabilities": {...}}`. Every key is optional, unknown keys are ignored, and a reply holds only keys
//! that were offered.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::codec::{DecodeError, Reader};
use crate::extension;

/// The major version spoken here.
pub const MAJOR: u16 = 0;
/// The highest minor version spoken here.
pub const MINOR: u16 = 0;

/// What the specification assumes of a peer that does not say (bytes).
pub const DEFAULT_MAX_DATA_XFER_SIZE: u64 = 1024 * 1024;
/// What the specification assumes of a peer that does not say.
pub const DEFAULT_MAX_MSG_FDS: u32 = 1;
/// What the specification assumes of a peer that does not say.
pub const DEFAULT_MAX_DMA_MAPS: u32 = 65535;
/// What the specification assumes of a peer that does not say: 4 KiB only.
pub const DEFAULT_PGSIZES: u64 = 4096;

/// More descriptors than this per message no implementation takes (the kernel's limit is 253).
const MAX_MSG_FDS_LIMIT: u64 = 1024;
/// Longer JSON than this is refused before it is parsed.
const MAX_JSON: usize = 16 * 1024;

/// The fixed part of VERSION.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Version {
    /// Incompatible versions differ here.
    pub major: u16,
    /// A reply's is not above the request's.
    pub minor: u16,
}

/// The capability object `twin_socket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinSocket {
    /// Server-to-client requests go over a second socket.
    pub supported: bool,
    /// In a reply: which of the descriptors that come with it is the client's end.
    pub fd_index: Option<u32>,
}

/// The capability object `x_vfio_user_gpu`: see [`extension`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// [`extension::VERSION`].
    pub version: u64,
    /// What is offered, or granted.
    pub features: Vec<String>,
    /// With [`extension::DESCRIBE`]: what the server says of its device.
    pub device: BTreeMap<String, String>,
}

/// What one side says of itself. `None` is a key that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors it can receive in one message.
    pub max_msg_fds: Option<u32>,
    /// Largest count of a data transfer, in bytes.
    pub max_data_xfer_size: Option<u64>,
    /// How many DMA maps may exist at a time.
    pub max_dma_maps: Option<u32>,
    /// OR of the page sizes of DMA maps, in bytes.
    pub pgsizes: Option<u64>,
    /// The second socket.
    pub twin_socket: Option<TwinSocket>,
    /// REGION_WRITE_MULTI is understood.
    pub write_multiple: Option<bool>,
    /// This project's extension.
    pub extension: Option<Extension>,
}

fn bad(field: &'static str, problem: impl Into<String>) -> DecodeError {
    DecodeError::Json {
        field,
        problem: problem.into(),
    }
}

fn number(
    object: &Map<String, Value>,
    field: &'static str,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, DecodeError> {
    let Some(value) = object.get(field) else {
        return Ok(None);
    };
    match value.as_u64() {
        Some(number) if allowed.contains(&number) => Ok(Some(number)),
        _ => Err(bad(
            field,
            format!(
                "{value} is not a number from {} to {}",
                allowed.start(),
                allowed.end()
            ),
        )),
    }
}

fn small_number(
    object: &Map<String, Value>,
    field: &'static str,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Option<u32>, DecodeError> {
    let number = number(object, field, allowed)?;
    Ok(number.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
}

fn boolean(object: &Map<String, Value>, field: &'static str) -> Result<Option<bool>, DecodeError> {
    match object.get(field) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(bad(field, format!("{other} is not true or false"))),
    }
}

fn object<'a>(
    parent: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'a Map<String, Value>>, DecodeError> {
    match parent.get(field) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(bad(field, "not an object")),
    }
}

impl Capabilities {
    /// Reads the JSON after the fixed part; nothing there is no capabilities.
    ///
    /// # Errors
    /// [`DecodeError::Json`] for a missing NUL, text that is not JSON, wrong types and values out of range.
    pub fn decode(json: &[u8]) -> Result<Self, DecodeError> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        if json.len() > MAX_JSON {
            return Err(bad("text", format!("longer than {MAX_JSON} bytes")));
        }
        let Some((&0, text)) = json.split_last() else {
            return Err(bad("text", "no NUL at the end"));
        };
        let root: Value =
            serde_json::from_slice(text).map_err(|error| bad("text", error.to_string()))?;
        let Value::Object(root) = root else {
            return Err(bad("text", "not an object"));
        };
        let Some(keys) = object(&root, "capabilities")? else {
            return Ok(Self::default());
        };
        let twin_socket = match object(keys, "twin_socket")? {
            None => None,
            Some(twin) => Some(TwinSocket {
                supported: boolean(twin, "supported")?.unwrap_or(false),
                fd_index: small_number(twin, "fd_index", 0..=MAX_MSG_FDS_LIMIT)?,
            }),
        };
        let extension = match object(keys, extension::KEY)? {
            None => None,
            Some(extension) => Some(Extension {
                version: number(extension, "version", 0..=u64::MAX)?.unwrap_or(0),
                features: match extension.get("features") {
                    None => Vec::new(),
                    Some(Value::Array(list)) => list
                        .iter()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect(),
                    Some(_) => return Err(bad("features", "not an array")),
                },
                device: object(extension, "device")?.map_or_else(BTreeMap::new, |device| {
                    let text = |(key, value): (&String, &Value)| {
                        Some((key.clone(), value.as_str()?.to_owned()))
                    };
                    device.iter().filter_map(text).collect()
                }),
            }),
        };
        Ok(Self {
            max_msg_fds: small_number(keys, "max_msg_fds", 0..=MAX_MSG_FDS_LIMIT)?,
            max_data_xfer_size: number(keys, "max_data_xfer_size", 1..=u64::MAX)?,
            max_dma_maps: small_number(keys, "max_dma_maps", 0..=u32::MAX.into())?,
            pgsizes: number(keys, "pgsizes", 1..=u64::MAX)?,
            twin_socket,
            write_multiple: boolean(keys, "write_multiple")?,
            extension,
        })
    }

    /// The payload of a VERSION message, compact and NUL-terminated. (QEMU takes no longer reply than its
    /// own request.)
    #[must_use]
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut keys = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                keys.insert(key.to_owned(), value);
            }
        };
        put("max_msg_fds", self.max_msg_fds.map(Value::from));
        put(
            "max_data_xfer_size",
            self.max_data_xfer_size.map(Value::from),
        );
        put("max_dma_maps", self.max_dma_maps.map(Value::from));
        put("pgsizes", self.pgsizes.map(Value::from));
        let twin = self.twin_socket.map(|twin| match twin.fd_index {
            None => json!({ "supported": twin.supported }),
            Some(index) => json!({ "supported": twin.supported, "fd_index": index }),
        });
        put("twin_socket", twin);
        put("write_multiple", self.write_multiple.map(Value::from));
        let extension = self.extension.as_ref();
        let extension = extension.map(|extension| {
            let Extension {
                version,
                features,
                device,
            } = extension;
            if device.is_empty() {
                json!({ "version": version, "features": features })
            } else {
                json!({ "version": version, "features": features, "device": device })
            }
        });
        put(extension::KEY, extension);
        let mut payload = version.as_bytes().to_vec();
        payload.extend_from_slice(json!({ "capabilities": keys }).to_string().as_bytes());
        payload.push(0);
        payload
    }

    /// The reply to an offer: for each key that was offered, what both sides can do. The twin socket's
    /// descriptor is the reply's only one.
    ///
    /// # Errors
    /// [`DecodeError::BadValue`] where no page size is common to both.
    pub fn answer(&self, offer: &Self) -> Result<Self, DecodeError> {
        let pgsizes = match (offer.pgsizes, self.pgsizes.unwrap_or(DEFAULT_PGSIZES)) {
            (None, _) => None,
            (Some(offered), ours) if offered & ours == 0 => {
                return Err(DecodeError::BadValue {
                    field: "pgsizes",
                    value: offered,
                });
            }
            (Some(offered), ours) => Some(offered & ours),
        };
        let can_receive_twin = offer.max_msg_fds.unwrap_or(DEFAULT_MAX_MSG_FDS) > 0;
        let twin_socket = offer.twin_socket.filter(|twin| twin.supported).map(|_| {
            let supported = can_receive_twin && self.twin_socket.is_some_and(|t| t.supported);
            TwinSocket {
                supported,
                fd_index: supported.then_some(0),
            }
        });
        let twin = twin_socket.is_some_and(|twin| twin.supported);
        let extension = offer.extension.as_ref().zip(self.extension.as_ref());
        let extension =
            extension
                .filter(|(theirs, _)| theirs.version >= 1)
                .map(|(theirs, ours)| {
                    let known = |name: &&String| {
                        ours.features.contains(name)
                            && (twin || name.as_str() != extension::IRQ_ROUTES)
                    };
                    Extension {
                        version: extension::VERSION,
                        features: theirs.features.iter().filter(known).cloned().collect(),
                        device: BTreeMap::new(),
                    }
                });
        Ok(Self {
            max_msg_fds: offer.max_msg_fds.and(self.max_msg_fds),
            max_data_xfer_size: offer.max_data_xfer_size.and(self.max_data_xfer_size),
            max_dma_maps: offer
                .max_dma_maps
                .and_then(|theirs| self.max_dma_maps.map(|ours| ours.min(theirs.max(1)))),
            pgsizes,
            twin_socket,
            write_multiple: offer.write_multiple.and(self.write_multiple),
            extension,
        })
    }

    /// Refuses an answer that holds what was not offered.
    ///
    /// # Errors
    /// [`DecodeError::Json`] naming the key.
    pub fn check_answer(&self, answer: &Self) -> Result<(), DecodeError> {
        let unasked = |field| Err(bad(field, "in the answer, though not offered"));
        if answer.twin_socket.is_some_and(|twin| twin.supported)
            && !self.twin_socket.is_some_and(|twin| twin.supported)
        {
            return unasked("twin_socket");
        }
        if let Some(granted) = &answer.extension {
            let offered = self
                .extension
                .as_ref()
                .map_or(&[][..], |e| e.features.as_slice());
            if self.extension.is_none() || granted.features.iter().any(|f| !offered.contains(f)) {
                return unasked(extension::KEY);
            }
        }
        Ok(())
    }

    /// Whether a feature of the extension was offered or granted.
    #[must_use]
    pub fn has_feature(&self, name: &str) -> bool {
        self.extension
            .as_ref()
            .is_some_and(|e| e.features.iter().any(|f| f == name))
    }
}

/// Reads a VERSION payload, request or reply.
///
/// # Errors
/// [`DecodeError`] for a short payload or bad JSON.
pub fn decode(body: &[u8]) -> Result<(Version, Capabilities), DecodeError> {
    let mut reader = Reader::new(body);
    let version = reader.take("version")?;
    Ok((version, Capabilities::decode(reader.rest())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Capabilities {
        Capabilities {
            max_msg_fds: Some(16),
            max_data_xfer_size: Some(1 << 20),
            max_dma_maps: Some(65535),
            pgsizes: Some(4096),
            twin_socket: Some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            write_multiple: Some(true),
            extension: Some(Extension {
                version: 1,
                features: vec![extension::IRQ_ROUTES.into(), extension::DESCRIBE.into()],
                device: BTreeMap::new(),
            }),
        }
    }

    /// What QEMU 11.1.3 sends.
    const QEMU: &str = r#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;

    fn parse(text: &str) -> Result<Capabilities, DecodeError> {
        Capabilities::decode(&[text.as_bytes(), b"\0"].concat())
    }

    #[test]
    fn the_answer_to_qemu_is_no_longer_than_its_request() {
        assert_eq!(QEMU.len(), 193);
        let offer = parse(QEMU).unwrap();
        let answer = ours().answer(&offer).unwrap();
        let payload = answer.encode(Version::default());
        assert!(payload.len() <= 4 + QEMU.len() + 1, "{}", payload.len());
        assert_eq!(answer.twin_socket, None);
        assert_eq!(answer.extension, None);
        assert_eq!(decode(&payload).unwrap(), (Version::default(), answer));
    }

    #[test]
    fn an_answer_holds_only_what_was_offered() {
        for text in [
            "{}",
            r#"{"capabilities":{}}"#,
            r#"{"capabilities":{"unknown":[1]}}"#,
        ] {
            assert_eq!(
                ours().answer(&parse(text).unwrap()),
                Ok(Capabilities::default()),
                "{text}"
            );
        }
        assert_eq!(Capabilities::decode(b""), Ok(Capabilities::default()));
    }

    #[test]
    fn twin_socket_and_extension_are_granted_together() {
        let text = r#"{"capabilities":{"twin_socket":{"supported":true},
            "x_vfio_user_gpu":{"version":1,"features":["irq_routes","later"]}}}"#;
        let offer = parse(text).unwrap();
        let answer = ours().answer(&offer).unwrap();
        assert_eq!(
            answer.twin_socket,
            Some(TwinSocket {
                supported: true,
                fd_index: Some(0)
            })
        );
        assert!(answer.has_feature(extension::IRQ_ROUTES));
        assert!(!answer.has_feature("later"));
        offer.check_answer(&answer).unwrap();

        let without = Capabilities {
            twin_socket: None,
            ..offer.clone()
        };
        assert!(
            !ours()
                .answer(&without)
                .unwrap()
                .has_feature(extension::IRQ_ROUTES)
        );
        assert!(Capabilities::default().check_answer(&answer).is_err());

        let blind = Capabilities {
            max_msg_fds: Some(0),
            ..offer
        };
        let answer = ours().answer(&blind).unwrap();
        assert!(
            !answer.twin_socket.unwrap().supported,
            "nowhere to put the descriptor"
        );
    }

    #[test]
    fn a_description_survives() {
        let text = r#"{"capabilities":{"x_vfio_user_gpu":{"version":1,"features":["describe"]}}}"#;
        let mut answer = ours().answer(&parse(text).unwrap()).unwrap();
        assert!(answer.has_feature(extension::DESCRIBE));
        let device = [("driver", "vfio-pci"), ("name", "0000:01:00.0")];
        let device = device.map(|(key, value)| (key.to_owned(), value.to_owned()));
        answer.extension.as_mut().unwrap().device = device.into();
        let payload = answer.encode(Version::default());
        assert_eq!(decode(&payload).unwrap().1, answer);
    }

    #[test]
    fn bad_json_names_the_key() {
        let table = [
            ("{", "text"),
            ("\"", "text"),
            ("[]", "text"),
            (r#"{"capabilities":"23"}"#, "capabilities"),
            (r#"{"capabilities":{"max_msg_fds":"foo"}}"#, "max_msg_fds"),
            (r#"{"capabilities":{"max_msg_fds":-1}}"#, "max_msg_fds"),
            (r#"{"capabilities":{"max_msg_fds":1025}}"#, "max_msg_fds"),
            (
                r#"{"capabilities":{"max_data_xfer_size":0}}"#,
                "max_data_xfer_size",
            ),
            (
                r#"{"capabilities":{"max_data_xfer_size":-1}}"#,
                "max_data_xfer_size",
            ),
            (
                r#"{"capabilities":{"max_data_xfer_size":1.5}}"#,
                "max_data_xfer_size",
            ),
            (r#"{"capabilities":{"pgsizes":0}}"#, "pgsizes"),
            (r#"{"capabilities":{"twin_socket":true}}"#, "twin_socket"),
            (
                r#"{"capabilities":{"twin_socket":{"supported":1}}}"#,
                "supported",
            ),
            (r#"{"capabilities":{"write_multiple":1}}"#, "write_multiple"),
            (
                r#"{"capabilities":{"x_vfio_user_gpu":{"features":1}}}"#,
                "features",
            ),
        ];
        for (text, key) in table {
            match parse(text) {
                Err(DecodeError::Json { field, .. }) => assert_eq!(field, key, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(Capabilities::decode(b"{}").is_err(), "no NUL");
        assert!(
            parse(&format!("{{}}{}", " ".repeat(MAX_JSON))).is_err(),
            "too long"
        );
        let deep = "[".repeat(10_000);
        assert!(parse(&deep).is_err(), "deep");
    }

    #[test]
    fn no_common_page_size_is_an_error() {
        let offer = parse(r#"{"capabilities":{"pgsizes":65536}}"#).unwrap();
        assert!(ours().answer(&offer).is_err());
    }
}
