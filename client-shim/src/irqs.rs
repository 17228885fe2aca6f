// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts: eventfds in, masks and triggers. Indexes are those of VFIO (`VFIO_PCI_INTX_IRQ_INDEX`, ...).

use std::os::fd::BorrowedFd;

use zerocopy::IntoBytes;

use crate::client::expect_empty;
use crate::info::size_u32;
use crate::protocol::Command;
use crate::protocol::deframer::MAX_FDS;
use crate::protocol::irq::{
    SET_ACTION_MASK, SET_ACTION_TRIGGER, SET_ACTION_UNMASK, SET_DATA_EVENTFD, SET_DATA_NONE,
    SetIrqs,
};
use crate::{Client, Error};

impl Client {
    /// Gives the vectors from `start` their eventfds, and takes away those of the `None` ones. One message
    /// per run of either, split by what the server takes.
    ///
    /// # Errors
    /// [`Error::Peer`] (vectors before the refused message stay armed), [`Error::InvalidArgument`] where the
    /// vectors pass 32 bits or the server takes no descriptors, and what a lost connection gives.
    pub fn arm(
        &self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), Error> {
        let most = usize::try_from(self.negotiated().max_msg_fds)
            .unwrap_or(MAX_FDS)
            .min(MAX_FDS);
        if most == 0 && eventfds.iter().any(Option::is_some) {
            return Err(Error::InvalidArgument("The server takes no descriptors"));
        }
        let whole = u32::try_from(eventfds.len())
            .ok()
            .and_then(|count| start.checked_add(count));
        if whole.is_none() {
            return Err(Error::InvalidArgument(
                "The vectors pass the end of 32 bits",
            ));
        }
        let mut at = start;
        for run in eventfds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let armed = run.first().is_some_and(Option::is_some);
            for chunk in run.chunks(if armed { most } else { run.len() }) {
                let fds: Vec<_> = chunk.iter().flatten().copied().collect();
                let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                self.set_irqs(
                    SET_DATA_EVENTFD | SET_ACTION_TRIGGER,
                    index,
                    at,
                    count,
                    &fds,
                )?;
                at = at.wrapping_add(count);
            }
        }
        Ok(())
    }

    /// Takes all eventfds of an index away and disables its interrupts.
    ///
    /// # Errors
    /// [`Error::Peer`] and what a lost connection gives.
    pub fn disable(&self, index: u32) -> Result<(), Error> {
        self.set_irqs(SET_DATA_NONE | SET_ACTION_TRIGGER, index, 0, 0, &[])
    }

    /// Masks `count` vectors from `start`.
    ///
    /// # Errors
    /// [`Error::Peer`], [`Error::InvalidArgument`] for no vectors, and what a lost connection gives.
    pub fn mask(&self, index: u32, start: u32, count: u32) -> Result<(), Error> {
        self.set_some(SET_ACTION_MASK, index, start, count)
    }

    /// Unmasks `count` vectors from `start`.
    ///
    /// # Errors
    /// As [`Self::mask`].
    pub fn unmask(&self, index: u32, start: u32, count: u32) -> Result<(), Error> {
        self.set_some(SET_ACTION_UNMASK, index, start, count)
    }

    /// Has the server signal `count` vectors from `start`, as a test of the way there.
    ///
    /// # Errors
    /// As [`Self::mask`].
    pub fn trigger(&self, index: u32, start: u32, count: u32) -> Result<(), Error> {
        self.set_some(SET_ACTION_TRIGGER, index, start, count)
    }

    /// Sets, or takes away, the eventfd whose signal unmasks a vector (`KVM_IRQFD_FLAG_RESAMPLE`).
    ///
    /// # Errors
    /// [`Error::Peer`], [`Error::InvalidArgument`] where the server takes no descriptors, and what a lost
    /// connection gives.
    pub fn set_unmask_eventfd(
        &self,
        index: u32,
        vector: u32,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        if eventfd.is_some() && self.negotiated().max_msg_fds == 0 {
            return Err(Error::InvalidArgument("The server takes no descriptors"));
        }
        let flags = SET_DATA_EVENTFD | SET_ACTION_UNMASK;
        self.set_irqs(flags, index, vector, 1, eventfd.as_slice())
    }

    fn set_some(&self, action: u32, index: u32, start: u32, count: u32) -> Result<(), Error> {
        if count == 0 {
            // To a server, triggering none is to disable all.
            return Err(Error::InvalidArgument("No vectors"));
        }
        self.set_irqs(SET_DATA_NONE | action, index, start, count, &[])
    }

    fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let request = SetIrqs {
            argsz: size_u32::<SetIrqs>(),
            flags,
            index,
            start,
            count,
        };
        let parts = [request.as_bytes()];
        self.call(Command::DeviceSetIrqs, &parts, fds, |body, _| {
            expect_empty(body)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::protocol::version::Capabilities;
    use crate::testing::{capabilities, client, word};

    /// Flags, index, start, count, descriptors of every SET_IRQS that `calls` makes.
    fn seen(max_msg_fds: u32, calls: impl FnOnce(&Client)) -> Vec<(u32, [u32; 3], usize)> {
        let capabilities = Capabilities {
            max_msg_fds: Some(max_msg_fds),
            ..capabilities()
        };
        let (client, server) = client(capabilities, |peer| {
            let mut seen = Vec::new();
            while let Some(request) = peer.next() {
                assert_eq!((request.body.len(), word(&request.body, 0)), (20, 20));
                let [flags, index, start, count] = [4, 8, 12, 16].map(|at| word(&request.body, at));
                seen.push((flags, [index, start, count], request.fds.len()));
                peer.reply(&request, &[], &[]);
            }
            seen
        });
        calls(&client);
        drop(client);
        server.join().unwrap()
    }

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn vectors_are_armed_in_runs_no_longer_than_the_server_takes() {
        let event = event();
        let some = Some(event.as_fd());
        let mut vectors = vec![some; 11];
        vectors[5] = None;
        vectors[6] = None;
        let arm = SET_DATA_EVENTFD | SET_ACTION_TRIGGER;
        assert_eq!(
            seen(4, |client| client.arm(2, 100, &vectors).unwrap()),
            [
                (arm, [2, 100, 4], 4),
                (arm, [2, 104, 1], 1),
                (arm, [2, 105, 2], 0),
                (arm, [2, 107, 4], 4),
            ]
        );
        assert_eq!(
            seen(1000, |client| client.arm(2, 0, &vec![some; 300]).unwrap()),
            [(arm, [2, 0, 253], 253), (arm, [2, 253, 47], 47)]
        );
    }

    #[test]
    fn what_cannot_be_sent_is_not() {
        let event = event();
        let some = Some(event.as_fd());
        let nothing = seen(4, |client| {
            client.arm(2, 7, &[]).unwrap();
            for refused in [
                client.arm(2, u32::MAX, &[some]),
                client.mask(0, 0, 0),
                client.trigger(0, 0, 0),
            ] {
                assert!(
                    matches!(refused, Err(Error::InvalidArgument(_))),
                    "{refused:?}"
                );
            }
        });
        assert_eq!(nothing, []);
        let no_fds = seen(0, |client| {
            assert!(client.arm(2, 0, &[some]).is_err());
            assert!(client.set_unmask_eventfd(0, 0, some).is_err());
            client.arm(2, 0, &[None, None]).unwrap();
        });
        assert_eq!(
            no_fds,
            [(SET_DATA_EVENTFD | SET_ACTION_TRIGGER, [2, 0, 2], 0)]
        );
    }

    #[test]
    fn every_call_has_its_flags() {
        let event = event();
        let calls = |client: &Client| {
            client.disable(1).unwrap();
            client.mask(0, 0, 1).unwrap();
            client.unmask(0, 0, 1).unwrap();
            client.trigger(2, 3, 2).unwrap();
            client
                .set_unmask_eventfd(0, 0, Some(event.as_fd()))
                .unwrap();
            client.set_unmask_eventfd(0, 0, None).unwrap();
        };
        assert_eq!(
            seen(1, calls),
            [
                (0x21, [1, 0, 0], 0),
                (0x09, [0, 0, 1], 0),
                (0x11, [0, 0, 1], 0),
                (0x21, [2, 3, 2], 0),
                (0x14, [0, 0, 1], 1),
                (0x14, [0, 0, 1], 0),
            ]
        );
    }
}
