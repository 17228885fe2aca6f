// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration in the scripted kernel: features 1, 2, 9, 12 and data descriptors, with drivers as they are.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_DEVICE_FEATURE_SET;
use vm_memory::VolatileSlice;

use super::{set_word, word};
use crate::device::kernel::file::DataFile;

/// A driver with migration v2.
#[derive(Debug)]
pub(crate) struct Migrating {
    /// Feature 1.
    pub flags: u64,
    /// Feature 2. The state is a number, since drivers may give any.
    pub state: u32,
    /// What a SET of a state gives instead: its errno, and the state that the device is in then.
    pub refused: HashMap<u32, (Errno, u32)>,
    /// States whose SET opens a data descriptor.
    pub opens: Vec<u32>,
    /// Feature 9.
    pub size: Result<u64, Errno>,
    /// Feature 12.
    pub flags_wanted: Result<(), Errno>,
    /// States that were set, whatever came of it.
    pub set: Vec<u32>,
    /// How often feature 12 was set.
    pub opted: usize,
    pub data: Data,
}

/// A data descriptor, shared with the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Data(Arc<Mutex<DataScript>>);

/// What it does.
#[derive(Debug, Default)]
pub(crate) struct DataScript {
    /// Each read in its turn; then 0.
    pub reads: VecDeque<Result<Vec<u8>, Errno>>,
    /// How much each write takes; then all.
    pub writes: VecDeque<Result<usize, Errno>>,
    pub written: Vec<u8>,
    /// GET_PRECOPY_INFO: flags to be set, initial, dirty. Then EINVAL.
    pub precopy: VecDeque<Result<(u32, u64, u64), Errno>>,
    /// A driver that claims to have moved so many bytes more than it was asked to.
    pub claims: usize,
    /// How often it was polled.
    pub waits: usize,
    pub closed: bool,
}

impl Migrating {
    pub(crate) fn new(flags: u64) -> Self {
        Self {
            flags,
            state: 2,
            refused: HashMap::new(),
            opens: vec![3, 4, 6],
            size: Ok(0),
            flags_wanted: Ok(()),
            set: Vec::new(),
            opted: 0,
            data: Data::default(),
        }
    }

    /// DEVICE_FEATURE but for SET of the state.
    pub(super) fn feature(&mut self, argument: &mut [u8]) -> Result<u32, Errno> {
        let flags = word(argument, 1);
        let value = match flags & 0xffff {
            1 => self.flags,
            2 => {
                assert_eq!(flags & VFIO_DEVICE_FEATURE_SET, 0);
                u64::from(self.state) | 0xffff_ffff << 32
            }
            9 => self.size?,
            12 => {
                self.opted += 1;
                return self.flags_wanted.map(|()| 0);
            }
            _ => return Err(Errno::NOTTY),
        };
        argument[8..16].copy_from_slice(&value.to_ne_bytes());
        Ok(0)
    }

    /// SET of the state. The kernel leaves the wanted one in the argument, whatever came of it.
    pub(super) fn set_state(&mut self, argument: &mut [u8]) -> Result<Option<Data>, Errno> {
        let wanted = word(argument, 2);
        self.set.push(wanted);
        set_word(argument, 3, u32::MAX);
        if let Some((errno, now)) = self.refused.get(&wanted) {
            self.state = *now;
            return Err(*errno);
        }
        let continues = wanted == 3 && matches!(self.state, 6 | 7);
        self.state = wanted;
        let opens = self.opens.contains(&wanted) && !continues;
        Ok(opens.then(|| self.data.clone()))
    }
}

impl Data {
    pub(crate) fn script(&self) -> MutexGuard<'_, DataScript> {
        self.0.lock().unwrap()
    }
}

/// What the code under test holds.
#[derive(Debug)]
pub(super) struct FakeData(pub Data);

impl DataFile for FakeData {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<usize, Errno> {
        let mut script = self.0.script();
        let mut data = script.reads.pop_front().unwrap_or(Ok(Vec::new()))?;
        if data.len() > into.len() {
            let rest = data.split_off(into.len());
            script.reads.push_front(Ok(rest));
        }
        into.copy_from(&data);
        Ok(data.len() + script.claims)
    }

    fn write(&mut self, from: &VolatileSlice<'_>) -> Result<usize, Errno> {
        let mut script = self.0.script();
        let count = script.writes.pop_front().unwrap_or(Ok(from.len()))?;
        let mut data = vec![0; count.min(from.len())];
        from.copy_to(&mut data);
        script.written.extend(data);
        Ok(count + script.claims)
    }

    fn wait(&mut self, _patience: Duration) -> Result<(), Errno> {
        self.0.script().waits += 1;
        Ok(())
    }

    /// As the kernel does, with the caller's flags where there are none of its own.
    fn precopy_info(&mut self, argument: &mut [u8]) -> Result<(), Errno> {
        assert_eq!(argument.len(), 24);
        let answer = self.0.script().precopy.pop_front();
        let (flags, initial, dirty) = answer.unwrap_or(Err(Errno::INVAL))?;
        let echoed = word(argument, 1);
        set_word(argument, 1, echoed | flags);
        argument[8..16].copy_from_slice(&initial.to_ne_bytes());
        argument[16..24].copy_from_slice(&dirty.to_ne_bytes());
        Ok(())
    }
}

impl Drop for FakeData {
    fn drop(&mut self) {
        self.0.script().closed = true;
    }
}
