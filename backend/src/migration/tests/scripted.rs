// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device of the tests that does what it is told, and a guest in front of it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState as State;
use vm_memory::VolatileSlice;

use super::super::{
    DataStream, Guest, GuestState, Identity, MigrationDriver, PrecopyInfo, Support, Taken, states,
};
use crate::device::{Device, Error, Mapping, Region, ResetCause};
use crate::interrupts::{Delivery, IrqConfig, IrqInfo, IrqRequest};
use crate::pci::{ConfigSpace, ConfigSpaceBuilder};

/// What the driver answers to one read.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Bytes(Vec<u8>),
    /// The end of a transaction of v1.
    Section(Vec<u8>),
    Errno(Errno),
    Zero,
    /// Claims more than there was room for.
    TooMuch,
}

#[derive(Debug)]
pub(super) struct Script {
    pub(super) support: Support,
    pub(super) state: State,
    pub(super) answers: VecDeque<Answer>,
    /// In order; the last one stays.
    pub(super) infos: VecDeque<Result<PrecopyInfo, Errno>>,
    pub(super) size: Result<u64, Errno>,
    /// Fails a change to this state once, leaving the device in the other.
    pub(super) fail_to: Option<(State, Errno, State)>,
    /// Once in this state, says so and returns when told to.
    pub(super) linger: Option<(State, Sender<()>, Receiver<()>)>,
    /// Once asked for the state, says so and answers when told to.
    pub(super) linger_asked: Option<(Sender<()>, Receiver<()>)>,
    /// What was written while resuming, and where transactions ended.
    pub(super) written: Vec<u8>,
    pub(super) transactions: Vec<usize>,
    pub(super) write_errors: VecDeque<Errno>,
    /// Bytes taken by one write at most.
    pub(super) gulp: usize,
    pub(super) arcs: Vec<State>,
    pub(super) loaded: bool,
    pub(super) resets: usize,
    pub(super) waits: usize,
}

/// The device.
#[derive(Clone, Debug)]
pub(super) struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Script {
            support: Support {
                p2p: true,
                pre_copy: true,
            },
            state: State::Running,
            answers: VecDeque::new(),
            infos: VecDeque::new(),
            size: Ok(0),
            fail_to: None,
            linger: None,
            linger_asked: None,
            written: Vec::new(),
            transactions: Vec::new(),
            write_errors: VecDeque::new(),
            gulp: usize::MAX,
            arcs: Vec::new(),
            loaded: false,
            resets: 0,
            waits: 0,
        })))
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    pub(super) fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script().answers.extend(answers);
    }
}

impl MigrationDriver for Scripted {
    fn support(&self) -> Support {
        self.script().support
    }

    fn data_version(&self) -> String {
        "scripted 1".to_owned()
    }

    fn state(&self) -> Result<State, Errno> {
        let mut script = self.script();
        let state = script.state;
        let linger = script.linger_asked.take();
        drop(script);
        if let Some((there, go_on)) = linger {
            there.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Ok(state)
    }

    fn set_state(&self, next: State) -> Result<Option<Box<dyn DataStream>>, Errno> {
        let mut script = self.script();
        let from = script.state;
        let way = states::way(from, next, script.support);
        assert_eq!(
            way,
            Ok(vec![next]),
            "{from} to {next} is no arc of the driver"
        );
        if let Some((_, errno, stays)) = script.fail_to.take_if(|fail| fail.0 == next) {
            script.state = stays;
            return Err(errno);
        }
        script.arcs.push(next);
        script.loaded |= from == State::Resuming;
        script.state = next;
        let linger = script.linger.take_if(|linger| linger.0 == next);
        drop(script);
        if let Some((_, there, go_on)) = linger {
            there.send(()).unwrap();
            go_on.recv().unwrap();
        }
        let opens = matches!(
            (from, next),
            (
                State::Running | State::RunningP2p,
                State::PreCopy | State::PreCopyP2p
            ) | (State::Stop, State::StopCopy | State::Resuming)
        );
        Ok(opens.then(|| Box::new(self.clone()) as _))
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        self.script().size
    }
}

impl DataStream for Scripted {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<Taken, Errno> {
        let mut script = self.script();
        let taken = |length, ends_transaction| {
            Ok(Taken {
                length,
                ends_transaction,
            })
        };
        let (mut bytes, section) = match script.answers.pop_front() {
            Some(Answer::Bytes(bytes)) => (bytes, false),
            Some(Answer::Section(bytes)) => (bytes, true),
            Some(Answer::Errno(errno)) => return Err(errno),
            Some(Answer::Zero) | None => return taken(0, false),
            Some(Answer::TooMuch) => return taken(into.len() + 1, false),
        };
        let length = bytes.len().min(into.len());
        into.copy_from(&bytes[..length]);
        let rest = bytes.split_off(length);
        let ends = rest.is_empty();
        if !ends {
            let answer = if section {
                Answer::Section
            } else {
                Answer::Bytes
            };
            script.answers.push_front(answer(rest));
        }
        taken(length, section && ends)
    }

    fn write(&mut self, from: &VolatileSlice<'_>, ends_transaction: bool) -> Result<usize, Errno> {
        let mut script = self.script();
        if let Some(errno) = script.write_errors.pop_front() {
            return Err(errno);
        }
        let length = from.len().min(script.gulp);
        let at = script.written.len();
        script.written.resize(at + length, 0);
        from.subslice(0, length)
            .unwrap()
            .copy_to(&mut script.written[at..]);
        if ends_transaction && length == from.len() {
            script.transactions.push(at + length);
        }
        Ok(length)
    }

    fn wait(&mut self) -> Result<(), Errno> {
        self.script().waits += 1;
        Ok(())
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let mut script = self.script();
        if script.infos.len() > 1 {
            script.infos.pop_front().unwrap()
        } else {
            script
                .infos
                .front()
                .copied()
                .unwrap_or(Ok(PrecopyInfo::default()))
        }
    }
}

impl Device for Scripted {
    fn name(&self) -> String {
        "scripted".to_owned()
    }
    fn config_space(&self) -> ConfigSpace {
        ConfigSpaceBuilder::new(Default::default()).build().unwrap()
    }
    fn migration(&self) -> Option<&dyn MigrationDriver> {
        Some(self)
    }
    fn resettable(&self) -> bool {
        true
    }
    fn region(&self, _: u32) -> Region {
        Region::default()
    }
    fn mapping(&self, _: u32) -> Result<Option<Mapping<'_>>, Error> {
        Ok(None)
    }
    fn read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }
    fn write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn irq(&self, _: u32) -> IrqInfo {
        IrqInfo::default()
    }
    fn set_irqs(&self, _: IrqRequest) -> Result<(), Error> {
        Ok(())
    }
    fn set_delivery(&self, _: Delivery) {}
    fn set_irq_config(&self, _: IrqConfig) {}
    fn set_vector_mask(&self, _: u32, _: u32, _: bool) {}
    fn vector_pending(&self, _: u32, _: u32) -> bool {
        false
    }
    fn interrupt_status(&self) -> bool {
        false
    }
    fn reset(&self, _: ResetCause) -> Result<(), Error> {
        let mut script = self.script();
        script.state = State::Running;
        script.resets += 1;
        Ok(())
    }
    fn release_irqs(&self) {}
}

/// What is in front of the device.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) migration: super::super::Migration,
    pub(super) device: Scripted,
    pub(super) identity: Identity,
    pub(super) state: GuestState,
    pub(super) loaded: Mutex<Option<GuestState>>,
    /// Fails a load.
    pub(super) refuses: bool,
    /// A reset comes between what the driver loads and what the guest set up.
    pub(super) reset_before_load: bool,
    /// What happens while it is saved.
    pub(super) while_saved: Mutex<Option<fn(&Front)>>,
}

impl Front {
    pub(super) fn new() -> Self {
        let device = Scripted::new();
        let mut identity = Identity::default();
        identity.push("device", "1234:5678");
        Self {
            migration: super::super::Migration::new(Arc::new(device.clone())),
            device,
            identity,
            state: GuestState {
                config: vec![0xc0; 256],
                msix_table: vec![1; 16],
                ..GuestState::default()
            },
            loaded: Mutex::new(None),
            refuses: false,
            reset_before_load: false,
            while_saved: Mutex::new(None),
        }
    }
}

impl Guest for Front {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }
    fn save(&self) -> Result<GuestState, String> {
        if let Some(also) = &mut *self.while_saved.lock().unwrap() {
            also(self);
        }
        Ok(self.state.clone())
    }
    fn check(&self, state: &GuestState) -> Result<(), String> {
        if state.config.len() == self.state.config.len() {
            Ok(())
        } else {
            Err("another size".to_owned())
        }
    }
    fn load(&self, state: &GuestState, still: &dyn Fn() -> bool) -> Result<bool, String> {
        if self.refuses {
            return Err("refused".to_owned());
        }
        if self.reset_before_load {
            Guest::reset(self)?;
        }
        if !still() {
            return Ok(false);
        }
        *self.loaded.lock().unwrap() = Some(state.clone());
        Ok(true)
    }
    fn reset(&self) -> Result<(), String> {
        let reset = || Device::reset(&self.device, ResetCause::Client);
        self.migration.reset(true, reset).map_err(|e| e.to_string())
    }
}
