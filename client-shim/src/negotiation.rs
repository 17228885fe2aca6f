// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VERSION from the client's side: what is offered, what was granted.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;
use crate::protocol::version::{
    self, Capabilities, DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_DMA_MAPS, DEFAULT_MAX_MSG_FDS,
    DEFAULT_PGSIZES, Extension, MAJOR, MINOR, TwinSocket, Version,
};
use crate::protocol::{Command, DecodeError, extension};
use crate::{Callbacks, Error};

/// Less than this is not worth a message, and is not offered.
const MIN_DATA_XFER_SIZE: u32 = 4096;

/// `SCM_MAX_FD`: more the kernel does not pass in one message.
const KERNEL_MAX_FDS: u32 = 253;

/// What a client offers, and how long it waits.
#[derive(Clone)]
pub struct Options {
    /// Largest data transfer in bytes, either way; at least 4096.
    pub max_data_xfer_size: u32,
    /// Descriptors taken in one message.
    pub max_msg_fds: u32,
    /// DMA maps wanted at a time.
    pub max_dma_maps: u32,
    /// OR of the page sizes of DMA maps, in bytes.
    pub pgsizes: u64,
    /// Longest wait to be let in, for a reply (if its beginning is there by then, as long again for more of it), and
    /// for room to send; then the connection is over. `None` (the default) waits for ever, as a reset may take its
    /// time. Migration's channel ends by itself; what the main socket is then asked of the migration has no limit.
    pub timeout: Option<Duration>,
    /// Serves what the server asks; with it the twin socket is offered.
    pub callbacks: Option<Arc<dyn Callbacks>>,
    /// Offer `irq_routes` (needs `callbacks`): the server tells where the guest wants its interrupts.
    pub irq_routes: bool,
    /// Offer `describe`: the server says what it serves.
    pub describe: bool,
    /// Offer `explain`: errors carry the server's words.
    pub explain: bool,
    /// What to offer for migration.
    pub migration: MigrationFeatures,
}

/// What goes beyond the specification in migration; offered, then granted. The default is what the specification has, and
/// no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationFeatures {
    /// `precopy_info`: how much of pre-copy is left.
    pub precopy_info: bool,
    /// `pending`: all sizes in one sanitized query.
    pub pending: bool,
    /// `mig_channel`: a socket of its own, so that no access of the guest waits for a save.
    pub channel: bool,
    /// `mig_shm`: data through shared memory.
    pub shared_memory: bool,
    /// `mig_p2p`: the P2P states.
    pub p2p: bool,
}

impl MigrationFeatures {
    /// Everything.
    pub const ALL: Self = Self {
        precopy_info: true,
        pending: true,
        channel: true,
        shared_memory: true,
        p2p: true,
    };

    /// The features by name, each with whether it is in.
    #[must_use]
    pub fn names(self) -> [(&'static str, bool); 5] {
        [
            (extension::migration::PRECOPY_INFO, self.precopy_info),
            (extension::migration::PENDING, self.pending),
            (extension::migration::MIG_CHANNEL, self.channel),
            (extension::migration::MIG_SHM, self.shared_memory),
            (extension::migration::MIG_P2P, self.p2p),
        ]
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_data_xfer_size: 1 << 20,
            max_msg_fds: 16,
            max_dma_maps: DEFAULT_MAX_DMA_MAPS,
            pgsizes: DEFAULT_PGSIZES,
            timeout: None,
            callbacks: None,
            irq_routes: false,
            describe: false,
            explain: false,
            migration: MigrationFeatures::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("offer", &self.offer())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What both sides agreed on. Where the server did not say, what the specification assumes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// Largest data transfer of one message, in bytes; calls split by it.
    pub max_data_xfer_size: u32,
    /// Descriptors the server takes in one message; calls split by it.
    pub max_msg_fds: u32,
    /// How many DMA maps may exist at a time.
    pub max_dma_maps: u32,
    /// OR of the page sizes of DMA maps, in bytes.
    pub pgsizes: u64,
    /// REGION_WRITE_MULTI may be sent.
    pub write_multiple: bool,
    /// The server asks on the twin socket.
    pub twin_socket: bool,
    /// The server tells interrupt routes.
    pub irq_routes: bool,
    /// The server says why it refuses something.
    pub explain: bool,
    /// What the server grants for migration.
    pub migration: MigrationFeatures,
    /// What the server says of its device, for people; empty without `describe`.
    pub device: BTreeMap<String, String>,
}

impl Options {
    /// Bytes of data in one message that this side takes.
    pub(crate) fn transfer_limit(&self) -> u32 {
        self.max_data_xfer_size.max(MIN_DATA_XFER_SIZE)
    }

    fn extension(&self) -> Option<Extension> {
        let wanted = [
            (
                extension::IRQ_ROUTES,
                self.irq_routes && self.callbacks.is_some(),
            ),
            (extension::DESCRIBE, self.describe),
            (extension::migration::EXPLAIN, self.explain),
        ];
        let wanted = wanted.into_iter().chain(self.migration.names());
        let wanted = wanted.filter(|(_, wanted)| *wanted);
        let features: Vec<_> = wanted.map(|(name, _)| name.to_owned()).collect();
        (!features.is_empty()).then(|| Extension {
            version: extension::VERSION,
            features,
            ..Extension::default()
        })
    }

    fn offer(&self) -> Capabilities {
        let twin = self.callbacks.is_some();
        Capabilities {
            max_msg_fds: Some(self.max_msg_fds.min(KERNEL_MAX_FDS)),
            max_data_xfer_size: Some(self.transfer_limit().into()),
            max_dma_maps: Some(self.max_dma_maps),
            pgsizes: Some(self.pgsizes),
            twin_socket: twin.then_some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            write_multiple: Some(true),
            extension: self.extension(),
        }
    }
}

/// Negotiates; also gives the client's end of the twin socket, if there is one.
pub(crate) fn negotiate(
    connection: &mut Connection,
    options: &Options,
) -> Result<(Negotiated, Option<OwnedFd>), Error> {
    let offer = options.offer();
    let ours = Version {
        major: MAJOR,
        minor: MINOR,
    };
    let (theirs, answer, fds) = connection.call(
        Command::Version,
        &[&offer.encode(ours)],
        &[],
        |body, fds| {
            let (version, answer) = version::decode(body)?;
            offer.check_answer(&answer)?;
            Ok((version, answer, fds))
        },
    )?;
    if theirs.major != MAJOR || theirs.minor > MINOR {
        return Err(Error::Version {
            major: theirs.major,
            minor: theirs.minor,
        });
    }
    let twin = match answer.twin_socket.filter(|twin| twin.supported) {
        None => None,
        Some(twin) => Some(twin_end(twin, fds).map_err(|source| Error::Reply {
            command: Command::Version,
            source,
        })?),
    };
    let limit = answer
        .max_data_xfer_size
        .unwrap_or(DEFAULT_MAX_DATA_XFER_SIZE);
    let negotiated = Negotiated {
        max_data_xfer_size: u32::try_from(limit)
            .unwrap_or(u32::MAX)
            .min(options.transfer_limit()),
        max_msg_fds: answer.max_msg_fds.unwrap_or(DEFAULT_MAX_MSG_FDS),
        max_dma_maps: answer.max_dma_maps.unwrap_or(DEFAULT_MAX_DMA_MAPS),
        pgsizes: answer.pgsizes.unwrap_or(DEFAULT_PGSIZES),
        write_multiple: answer.write_multiple.unwrap_or(false),
        twin_socket: twin.is_some(),
        irq_routes: twin.is_some() && answer.has_feature(extension::IRQ_ROUTES),
        explain: answer.has_feature(extension::migration::EXPLAIN),
        migration: MigrationFeatures {
            precopy_info: answer.has_feature(extension::migration::PRECOPY_INFO),
            pending: answer.has_feature(extension::migration::PENDING),
            channel: answer.has_feature(extension::migration::MIG_CHANNEL),
            shared_memory: answer.has_feature(extension::migration::MIG_SHM),
            p2p: answer.has_feature(extension::migration::MIG_P2P),
        },
        device: answer
            .extension
            .map_or_else(BTreeMap::new, |extension| extension.device),
    };
    Ok((negotiated, twin))
}

/// The descriptor the answer points at; the others are closed.
fn twin_end(twin: TwinSocket, fds: Vec<OwnedFd>) -> Result<OwnedFd, DecodeError> {
    let index = twin.fd_index.unwrap_or(0);
    let found = fds.len();
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    fds.into_iter().nth(at).ok_or(DecodeError::Descriptors {
        expected: at.saturating_add(1),
        found,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::Client;
    use crate::testing::try_client;

    struct Nothing;
    impl Callbacks for Nothing {}

    fn with_callbacks(irq_routes: bool) -> Options {
        Options {
            callbacks: Some(Arc::new(Nothing)),
            irq_routes,
            ..Options::default()
        }
    }

    /// A client that gets `version` and `json` as the answer to its offer, with so many descriptors.
    fn answered(
        options: Options,
        version: [u16; 2],
        json: &str,
        fds: usize,
    ) -> Result<Client, Error> {
        use zerocopy::IntoBytes;
        let body = [version.as_bytes(), json.as_bytes(), b"\0"].concat();
        let (client, server) = try_client(options, move |peer| {
            let request = peer.expect(Command::Version);
            let (twin, _) = UnixStream::pair().unwrap();
            peer.reply(&request, &body, &vec![twin.as_fd(); fds]);
        });
        server.join().unwrap();
        client
    }

    fn negotiated(json: &str) -> Negotiated {
        answered(Options::default(), [0, 0], json, 0)
            .unwrap()
            .negotiated()
            .clone()
    }

    #[test]
    fn the_offer_has_everything_a_server_may_want_to_know() {
        let (client, server) = try_client(with_callbacks(true), |peer| {
            let request = peer.expect(Command::Version);
            peer.reply(&request, &[0; 4], &[]);
            request.body
        });
        client.unwrap();
        let (version, offer) = version::decode(&server.join().unwrap()).unwrap();
        assert_eq!(version, Version::default());
        assert_eq!(offer, with_callbacks(true).offer());
        assert!(offer.has_feature(extension::IRQ_ROUTES));
        let plain = Options {
            irq_routes: true,
            max_data_xfer_size: 0,
            ..Options::default()
        };
        assert_eq!(
            (plain.offer().twin_socket, plain.offer().extension),
            (None, None)
        );
        assert_eq!(plain.offer().max_data_xfer_size, Some(4096));
    }

    #[test]
    fn silence_means_what_the_specification_says() {
        let expected = Negotiated {
            max_data_xfer_size: 1 << 20,
            max_msg_fds: 1,
            max_dma_maps: 65535,
            pgsizes: 4096,
            write_multiple: false,
            twin_socket: false,
            irq_routes: false,
            explain: false,
            migration: MigrationFeatures::default(),
            device: BTreeMap::new(),
        };
        assert_eq!(negotiated("{}"), expected);
    }

    #[test]
    fn features_of_migration_are_granted_one_by_one() {
        let options = Options {
            explain: true,
            migration: MigrationFeatures::ALL,
            ..Options::default()
        };
        let granted = r#"{"capabilities":{"x_vfio_user_gpu":{"version":1,"features":
            ["mig_channel","pending","explain"]}}}"#;
        let client = answered(options, [0, 0], granted, 0).unwrap();
        let expected = MigrationFeatures {
            channel: true,
            pending: true,
            ..MigrationFeatures::default()
        };
        assert_eq!(client.negotiated().migration, expected);
        assert!(client.negotiated().explain);
        let unasked = answered(Options::default(), [0, 0], granted, 0);
        assert!(unasked.is_err());
    }

    #[test]
    fn a_server_s_sizes_do_not_pass_our_own() {
        let found = negotiated(
            r#"{"capabilities":{"max_data_xfer_size":18446744073709551615,"max_msg_fds":8,
                "max_dma_maps":7,"pgsizes":2101248,"write_multiple":true}}"#,
        );
        assert_eq!(found.max_data_xfer_size, 1 << 20);
        assert_eq!((found.max_msg_fds, found.max_dma_maps), (8, 7));
        assert_eq!((found.pgsizes, found.write_multiple), (2101248, true));
    }

    #[test]
    fn the_twin_socket_comes_by_its_index() {
        let twin = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":1}}}"#;
        let client = answered(with_callbacks(true), [0, 0], twin, 2).unwrap();
        assert!(client.negotiated().twin_socket && !client.negotiated().irq_routes);
        for (json, fds) in [
            (twin, 1),
            (twin, 0),
            (&twin.replace(r#","fd_index":1"#, "")[..], 0),
        ] {
            let error = answered(with_callbacks(false), [0, 0], json, fds).unwrap_err();
            assert!(matches!(error, Error::Reply { .. }), "{error:?}");
        }
    }

    #[test]
    fn what_was_not_offered_is_not_taken() {
        let twin = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#;
        let error = answered(Options::default(), [0, 0], twin, 1).unwrap_err();
        assert!(matches!(error, Error::Reply { .. }), "{error:?}");
        for version in [[1, 0], [0, 1]] {
            let error = answered(Options::default(), version, "{}", 0).unwrap_err();
            assert!(matches!(error, Error::Version { .. }), "{error:?}");
        }
        let (client, server) = try_client(Options::default(), |peer| {
            let request = peer.expect(Command::Version);
            peer.sender
                .send(&request.header.error_reply(22), &[], &[])
                .unwrap();
        });
        assert_eq!(client.unwrap_err().errno(), 22);
        server.join().unwrap();
    }
}
