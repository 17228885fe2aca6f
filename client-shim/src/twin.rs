// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The twin socket: a thread that answers what the server asks of the client.
//!
//! It ends with the client. If the twin connection fails first, the client is disconnected: a server that
//! cannot reach guest memory or tell interrupt routes is no use to a guest that waits for both.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::protocol::deframer::Frame;
use crate::protocol::dma::DmaAccess;
use crate::protocol::extension::{IrqRoute, IrqRoutes};
use crate::protocol::header::MessageType;
use crate::protocol::transport::{Receiver, Sender};
use crate::protocol::{Command, Header, Request};

/// What the server asks of a VMM. Called from one thread of the client's own, one at a time.
///
/// A thread of the VMM may at the same time wait in a call on the client whose reply the server gives only
/// after this one: a callback must not call into the client, nor wait for a thread that does. An error is
/// passed on by its errno (EIO if it has none).
pub trait Callbacks: Send + Sync {
    /// Fills `data` from guest memory at `iova`.
    ///
    /// # Errors
    /// EFAULT where there is no such memory. The default: ENOSYS.
    fn dma_read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        let _ = (iova, data);
        Err(Errno::NOSYS.into())
    }

    /// Writes `data` to guest memory at `iova`.
    ///
    /// # Errors
    /// As [`Self::dma_read`].
    fn dma_write(&self, iova: u64, data: &[u8]) -> io::Result<()> {
        let _ = (iova, data);
        Err(Errno::NOSYS.into())
    }

    /// The guest set these routes for the vectors from `start` of an interrupt index; its write is answered
    /// once this returns.
    ///
    /// # Errors
    /// What prevents that messages go there. The default: ENOSYS.
    fn irq_routes(&self, index: u32, start: u32, routes: &[IrqRoute]) -> io::Result<()> {
        let _ = (index, start, routes);
        Err(Errno::NOSYS.into())
    }
}

/// The thread, for as long as the client is there.
#[derive(Debug)]
pub(crate) struct Twin {
    sender: Sender,
    thread: Option<JoinHandle<()>>,
}

impl Twin {
    /// Serves at most `limit` bytes of data per request; routes only if `routes` were negotiated.
    pub(crate) fn start(
        (receiver, sender): (Receiver, Sender),
        main: Sender,
        callbacks: Arc<dyn Callbacks>,
        limit: u32,
        routes: bool,
    ) -> io::Result<Self> {
        // The other end of this socket was the server's to configure.
        sender.stream().set_nonblocking(false)?;
        let service = Service {
            receiver,
            sender: sender.clone(),
            main,
            answers: Answers {
                callbacks,
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
                routes,
                data: Vec::new(),
            },
        };
        let name = "vfio-user-twin".to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || service.run())?;
        Ok(Self {
            sender,
            thread: Some(thread),
        })
    }

    pub(crate) fn disconnect(&self) {
        // Fails only if the socket is already shut down.
        let _ = self.sender.stream().shutdown(Shutdown::Both);
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.disconnect();
        if let Some(thread) = self.thread.take() {
            // A callback may have owned the client; its thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                // A panic of a callback was reported by its own thread.
                let _ = thread.join();
            }
        }
    }
}

struct Service {
    receiver: Receiver,
    sender: Sender,
    main: Sender,
    answers: Answers,
}

impl Service {
    fn run(mut self) {
        while let Ok(Some(frame)) = self.receiver.receive() {
            let (header, answer) = match frame {
                Frame::TooLong(header) => (header, Err(Errno::TOOBIG)),
                // Descriptors are not part of any request here, and closed.
                Frame::Message { header, body, .. } => (header, self.answers.answer(&header, body)),
            };
            if header.message_type() != MessageType::Command {
                break;
            }
            if header.wants_no_reply() {
                continue;
            }
            let sent = match answer {
                Ok((fixed, data)) => {
                    let fixed = fixed.as_ref().map_or(&[][..], |fixed| fixed.as_bytes());
                    let reply = header.reply(fixed.len() + data.len());
                    self.sender.send(&reply, &[fixed, data], &[])
                }
                Err(errno) => {
                    let errno = errno.raw_os_error().unsigned_abs();
                    self.sender.send(&header.error_reply(errno), &[], &[])
                }
            };
            if sent.is_err() {
                break;
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Also when a callback panicked: nobody would answer the server any more.
        let _ = self.main.stream().shutdown(Shutdown::Both);
        let _ = self.sender.stream().shutdown(Shutdown::Both);
    }
}

struct Answers {
    callbacks: Arc<dyn Callbacks>,
    limit: usize,
    routes: bool,
    /// Reused; no longer than `limit`.
    data: Vec<u8>,
}

impl Answers {
    /// The fixed part and the data of the reply.
    fn answer(
        &mut self,
        header: &Header,
        body: &[u8],
    ) -> Result<(Option<DmaAccess>, &[u8]), Errno> {
        if header.message_type() != MessageType::Command {
            return Err(Errno::INVAL);
        }
        if header.command == u16::from(Command::IrqRoutes) && self.routes {
            let (fixed, routes) = IrqRoutes::decode(body).map_err(|_| Errno::INVAL)?;
            let told = self.callbacks.irq_routes(fixed.index, fixed.start, &routes);
            return told.map(|()| (None, &[][..])).map_err(errno_of);
        }
        if ![Command::DmaRead, Command::DmaWrite]
            .map(u16::from)
            .contains(&header.command)
        {
            return Err(Errno::NOSYS);
        }
        match Request::decode(header.command, body).map_err(|_| Errno::INVAL)? {
            Request::DmaRead(access) => {
                let count = usize::try_from(access.count).unwrap_or(usize::MAX);
                if count > self.limit {
                    return Err(Errno::TOOBIG);
                }
                self.data.resize(count, 0);
                self.callbacks
                    .dma_read(access.address, &mut self.data)
                    .map_err(errno_of)?;
                Ok((Some(access), &self.data))
            }
            Request::DmaWrite(_, data) if data.len() > self.limit => Err(Errno::TOOBIG),
            Request::DmaWrite(access, data) => {
                self.callbacks
                    .dma_write(access.address, data)
                    .map_err(errno_of)?;
                Ok((Some(access), &[]))
            }
            _ => Err(Errno::NOSYS),
        }
    }
}

fn errno_of(error: io::Error) -> Errno {
    match error.raw_os_error() {
        Some(errno @ 1..=4095) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;
    use crate::protocol::extension::{self, ROUTE_ENABLED};
    use crate::protocol::version::{Capabilities, Extension, TwinSocket};
    use crate::testing::{Message, Peer, capabilities, try_client};
    use crate::{Client, Error, Options};

    /// 64 bytes of guest memory at 0x1000; routes are noted.
    struct Guest {
        memory: Mutex<[u8; 64]>,
        routes: Mutex<Vec<(u32, u32, Vec<IrqRoute>)>>,
    }

    impl Guest {
        fn range(iova: u64, count: usize) -> io::Result<std::ops::Range<usize>> {
            let start = usize::try_from(iova.wrapping_sub(0x1000)).unwrap();
            let end = start.checked_add(count).filter(|&end| end <= 64);
            Ok(start..end.ok_or(Errno::FAULT)?)
        }
    }

    impl Callbacks for Guest {
        fn dma_read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
            assert_ne!(iova, 0xdead, "on purpose");
            let range = Self::range(iova, data.len())?;
            data.copy_from_slice(&self.memory.lock().unwrap()[range]);
            Ok(())
        }

        fn dma_write(&self, iova: u64, data: &[u8]) -> io::Result<()> {
            let range = Self::range(iova, data.len())?;
            self.memory.lock().unwrap()[range].copy_from_slice(data);
            Ok(())
        }

        fn irq_routes(&self, index: u32, start: u32, routes: &[IrqRoute]) -> io::Result<()> {
            self.routes
                .lock()
                .unwrap()
                .push((index, start, routes.to_vec()));
            if index == 9 {
                return Err(io::Error::other("no errno"));
            }
            Ok(())
        }
    }

    /// A client whose server asks what `script` says on the twin socket, while a reset waits for its reply.
    fn asked<T: Send + 'static>(
        features: &[&str],
        script: impl FnOnce(&mut Peer) -> T + Send + 'static,
    ) -> (T, Arc<Guest>, Result<(), Error>) {
        let guest = Arc::new(Guest {
            memory: Mutex::new([0; 64]),
            routes: Mutex::default(),
        });
        let options = Options {
            callbacks: Some(guest.clone()),
            irq_routes: true,
            ..Options::default()
        };
        let capabilities = Capabilities {
            twin_socket: Some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            extension: Some(Extension {
                version: 1,
                features: features.iter().copied().map(str::to_owned).collect(),
            }),
            ..capabilities()
        };
        let (client, server) = try_client(options, move |peer| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            peer.negotiate(&capabilities, &[theirs.as_fd()]);
            drop(theirs);
            let mut twin = Peer::new(ours);
            let reset = peer.expect(Command::DeviceReset);
            let result = script(&mut twin);
            // Refused where the script made the client hang up.
            let _ = peer.sender.send(&reset.header.reply(0), &[], &[]);
            assert!(peer.next().is_none() && twin.next().is_none());
            result
        });
        let client: Client = client.unwrap();
        let reset = client.reset();
        drop(client);
        (server.join().unwrap(), guest, reset)
    }

    fn ask(twin: &mut Peer, command: u16, parts: &[&[u8]]) -> Message {
        let mut header = Header::request(5, Command::DmaRead, parts.concat().len());
        header.command = command;
        twin.sender.send(&header, parts, &[]).unwrap();
        let reply = twin.next().unwrap();
        assert_eq!((reply.header.id, reply.header.command), (5, command));
        assert_eq!(reply.header.message_type(), MessageType::Reply);
        reply
    }

    fn access(address: u64, count: u64) -> DmaAccess {
        DmaAccess { address, count }
    }

    #[test]
    fn guest_memory_is_read_and_written_while_a_call_waits() {
        let ((), guest, reset) = asked(&[], |twin| {
            let written = ask(twin, 12, &[access(0x1008, 4).as_bytes(), b"data"]);
            assert_eq!(written.body, access(0x1008, 4).as_bytes());
            let read = ask(twin, 11, &[access(0x1006, 6).as_bytes()]);
            assert_eq!(&read.body[16..], b"\0\0data");
            let fewer = ask(twin, 11, &[access(0x1008, 2).as_bytes()]);
            assert_eq!(&fewer.body[16..], b"da");
        });
        reset.unwrap();
        assert_eq!(&guest.memory.lock().unwrap()[8..12], b"data");
    }

    #[test]
    fn what_cannot_be_done_gets_an_errno() {
        let (errnos, _, reset) = asked(&[], |twin| {
            let long = vec![0; (1 << 20) + 17];
            [
                ask(twin, 11, &[access(0x1030, 17).as_bytes()]),
                ask(twin, 11, &[access(0x1000, u64::MAX).as_bytes()]),
                ask(twin, 11, &[access(0x1000, (1 << 20) + 1).as_bytes()]),
                ask(twin, 11, &[&[0; 15]]),
                ask(twin, 12, &[access(0x1000, 5).as_bytes(), b"four"]),
                ask(twin, 12, &[&long]),
                ask(twin, 9, &[&[0; 16]]),
                ask(twin, 0x8000, &[IrqRoutes::new(2, 0, 0).as_bytes()]),
                ask(twin, 999, &[]),
            ]
            .map(|reply| {
                assert!(reply.body.is_empty());
                reply.header.error().unwrap()
            })
        });
        reset.unwrap();
        assert_eq!(errnos, [14, 7, 7, 22, 22, 7, 38, 38, 38]);
    }

    #[test]
    fn routes_are_told_once_negotiated() {
        let route = IrqRoute {
            address: 0xfee0_0000,
            data: 0x31,
            flags: ROUTE_ENABLED,
        };
        let (errnos, guest, reset) = asked(&[extension::IRQ_ROUTES], move |twin| {
            let fixed = |index, count| IrqRoutes::new(index, 3, count);
            [
                ask(twin, 0x8000, &[fixed(2, 1).as_bytes(), route.as_bytes()]),
                ask(twin, 0x8000, &[fixed(9, 1).as_bytes(), route.as_bytes()]),
                ask(twin, 0x8000, &[fixed(2, 2).as_bytes(), route.as_bytes()]),
            ]
            .map(|reply| reply.header.error())
        });
        reset.unwrap();
        assert_eq!(errnos, [None, Some(5), Some(22)]);
        let told = guest.routes.lock().unwrap();
        assert_eq!(*told, [(2, 3, vec![route]), (9, 3, vec![route])]);
    }

    #[test]
    fn a_twin_that_fails_takes_the_client_with_it() {
        type Failure = fn(&mut Peer);
        let failures: [Failure; 4] = [
            |twin| twin.sender.stream().shutdown(Shutdown::Both).unwrap(),
            |twin| twin.sender.send(&Header::default(), &[], &[]).unwrap(),
            |twin| {
                let header = Header::request(1, Command::DmaRead, 0).reply(0);
                twin.sender.send(&header, &[], &[]).unwrap();
            },
            |twin| {
                let header = Header::request(1, Command::DmaRead, 16);
                twin.sender
                    .send(&header, &[access(0xdead, 4).as_bytes()], &[])
                    .unwrap();
            },
        ];
        for failure in failures {
            let ((), _, reset) = asked(&[], move |twin| {
                failure(twin);
                assert!(twin.next().is_none());
            });
            // The reply may still have been on its way.
            assert!(
                matches!(reset, Ok(()) | Err(Error::Disconnected)),
                "{reset:?}"
            );
        }
    }

    #[test]
    fn a_callback_may_own_the_client() {
        struct Owner(Mutex<Option<Client>>, mpsc::Sender<()>);
        impl Callbacks for Owner {
            fn dma_read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                drop(self.0.lock().unwrap().take());
                self.1.send(()).unwrap();
                Ok(())
            }
        }
        let (sender, dropped) = mpsc::channel();
        let owner = Arc::new(Owner(Mutex::new(None), sender));
        let options = Options {
            callbacks: Some(owner.clone()),
            ..Options::default()
        };
        let (go, wait) = mpsc::channel();
        let (client, server) = try_client(options, move |peer| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let twin_socket = Some(TwinSocket {
                supported: true,
                fd_index: None,
            });
            let capabilities = Capabilities {
                twin_socket,
                ..capabilities()
            };
            peer.negotiate(&capabilities, &[theirs.as_fd()]);
            drop(theirs);
            wait.recv().unwrap();
            let header = Header::request(1, Command::DmaRead, 16);
            let mut twin = Peer::new(ours);
            twin.sender
                .send(&header, &[access(0, 4).as_bytes()], &[])
                .unwrap();
            assert!(twin.next().is_none());
        });
        *owner.0.lock().unwrap() = Some(client.unwrap());
        go.send(()).unwrap();
        dropped.recv().unwrap();
        server.join().unwrap();
    }
}
