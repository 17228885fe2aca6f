// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ladder of resets: which of them the device has, in the order they are tried.
//!
//! 1. `VFIO_DEVICE_RESET` (function level, or what the kernel finds), unless all that stands behind it is
//!    a power cycle of the function, which forgets less;
//! 2. a hot reset of the bus, when every function it hits is ours;
//!    (where the kernel has neither, AMD's Bonaire and Hawaii come first, with a reset of their own);
//! 3. the function's way through D3hot, when that loses its state (No_Soft_Reset is 0).
//!
//! A reset must end a migration too, and the interface of migration knows one that does, `VFIO_DEVICE_RESET`:
//! it is tried on devices that migrate even where the driver does not announce it (mtty). One after which the
//! device is not running has not held.

mod radeon;

use std::os::fd::{AsFd, OwnedFd};

use log::debug;
use rustix::io::Errno;

use super::vfio::{RegionDetail, Vfio};
use crate::pci::Capabilities;
use crate::pci::registers::{
    PCI_AF_CAP, PCI_AF_CAP_FLR, PCI_CAP_ID_AF, PCI_CAP_ID_EXP, PCI_CAP_ID_PM, PCI_EXP_DEVCAP,
    PCI_EXP_DEVCAP_FLR, PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET,
};

/// Tries of a reset that somebody else's work on the device keeps from starting.
const TRIES: usize = 3;

/// One kind of reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    /// `VFIO_DEVICE_RESET`.
    Function,
    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    Hot,
    /// That of a chip which no bus resets; where BAR5 is in the descriptor.
    Radeon(u64),
    /// D3hot and back, by the PMCSR at this config offset.
    Power(u16),
}

/// A VFIO group that this process holds.
#[derive(Debug)]
pub struct Group {
    /// Its number.
    pub id: u32,
    /// Its descriptor: proof of ownership.
    pub fd: OwnedFd,
}

/// The resets of one device.
#[derive(Debug)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
}

impl Ladder {
    /// Finds out what there is. `function` is whether `VFIO_DEVICE_RESET` is worth trying; `config` is the
    /// device's config space, not trusted; `bar5` may hold a chip's own reset.
    pub(super) fn new(
        vfio: &Vfio,
        function: bool,
        config: &[u8],
        bar5: &RegionDetail,
        group: Option<&Group>,
    ) -> Self {
        let hot = match vfio.hot_reset_info() {
            Ok(info) => {
                debug!("A hot reset would hit {:?}", info.dependents);
                info.is_ours(group.map(|group| group.id))
            }
            Err(_) => false,
        };
        let power = power_reset(config);
        let mut rungs = Vec::new();
        if !function && radeon::is_one(config, bar5) {
            rungs.push(Rung::Radeon(bar5.offset));
        }
        // Nothing but a power cycle may stand behind VFIO_DEVICE_RESET then.
        let weak = power.is_some() && !has_flr(config);
        if function && !weak {
            rungs.push(Rung::Function);
        }
        if hot {
            rungs.push(Rung::Hot);
        }
        if function && weak {
            rungs.push(Rung::Function);
        }
        rungs.extend(power.map(Rung::Power));
        Self { rungs }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rungs.is_empty()
    }

    /// Takes the first rung that holds. `config` writes to config space; `check` says whether the device runs.
    pub(super) fn reset(
        &self,
        vfio: &Vfio,
        group: Option<&Group>,
        mut config: impl FnMut(u64, &[u8]) -> Result<(), Errno>,
        check: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut last = Errno::NOTTY;
        for rung in &self.rungs {
            let done = match *rung {
                Rung::Function => retried(|| vfio.reset()),
                Rung::Hot => {
                    let groups: Vec<_> = group.iter().map(|group| group.fd.as_fd()).collect();
                    retried(|| vfio.hot_reset(&groups))
                }
                Rung::Radeon(bar5) => radeon::reset(&mut radeon::ByVfio {
                    vfio,
                    bar5,
                    config: &mut config,
                }),
                Rung::Power(at) => config(at.into(), &[3]).and_then(|()| config(at.into(), &[0])),
            };
            match done.and_then(|()| check()) {
                Ok(()) => return Ok(()),
                Err(errno) => {
                    debug!("{rung:?} reset of the device: {errno}");
                    last = errno;
                }
            }
        }
        Err(last)
    }
}

/// The kernel does not wait for whoever holds the device's lock.
fn retried(mut reset: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut done = reset();
    for _ in 1..TRIES {
        if done != Err(Errno::AGAIN) {
            break;
        }
        std::thread::yield_now();
        done = reset();
    }
    done
}

fn find(config: &[u8], wanted: u8) -> Option<u16> {
    Capabilities::new(config).find_map(|(id, at)| (id == wanted).then_some(at))
}

fn bytes<const N: usize>(config: &[u8], at: u16) -> Option<[u8; N]> {
    config.get(usize::from(at)..)?.first_chunk().copied()
}

fn has_flr(config: &[u8]) -> bool {
    let express = find(config, PCI_CAP_ID_EXP)
        .and_then(|at| bytes(config, at + PCI_EXP_DEVCAP))
        .is_some_and(|caps| u32::from_le_bytes(caps) & PCI_EXP_DEVCAP_FLR != 0);
    let advanced = find(config, PCI_CAP_ID_AF)
        .and_then(|at| bytes(config, at + PCI_AF_CAP))
        .is_some_and(|[caps]| caps & PCI_AF_CAP_FLR != 0);
    express || advanced
}

/// Where the PMCSR of a function is that loses its state in D3hot.
fn power_reset(config: &[u8]) -> Option<u16> {
    let at = find(config, PCI_CAP_ID_PM)? + PCI_PM_CTRL;
    let control = u16::from_le_bytes(bytes(config, at)?);
    (control & PCI_PM_CTRL_NO_SOFT_RESET == 0).then_some(at)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::device::kernel::fake::{Asked, Fake, Script};
    use crate::device::kernel::file::Request;

    const DEV_ID: u32 = 1;
    const OWNED: u32 = 2;

    fn row(id: u32) -> [u8; 8] {
        let [a, b, c, d] = id.to_ne_bytes();
        [a, b, c, d, 0, 0, 1, 0]
    }

    fn group(id: u32) -> Group {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Group { id, fd }
    }

    /// Config space with a power management and an express capability.
    fn config(soft_reset: bool, flr: bool) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[1, 0x50]);
        config[0x44] = if soft_reset { 0 } else { 8 };
        config[0x50] = 0x10;
        config[0x57] = if flr { 0x10 } else { 0 };
        config
    }

    fn ladder(
        function: bool,
        config: &[u8],
        hot: Option<(u32, Vec<[u8; 8]>)>,
        group: Option<&Group>,
    ) -> (Arc<Fake>, Vfio, Ladder) {
        let fake = Arc::new(Fake::new(Script {
            hot_reset: hot,
            ..Script::default()
        }));
        let vfio = Vfio::new(Arc::clone(&fake) as _);
        let ladder = Ladder::new(&vfio, function, config, &RegionDetail::default(), group);
        (fake, vfio, ladder)
    }

    fn rungs(
        function: bool,
        config: &[u8],
        hot: Option<(u32, Vec<[u8; 8]>)>,
        group: Option<&Group>,
    ) -> Vec<Rung> {
        ladder(function, config, hot, group).2.rungs
    }

    #[test]
    fn the_strongest_reset_comes_first() {
        use Rung::{Function, Hot, Power};
        let ours = group(7);
        let alone = || Some((0, vec![row(7), row(7)]));
        assert_eq!(
            rungs(true, &config(true, true), alone(), Some(&ours)),
            [Function, Hot, Power(0x44)]
        );
        assert_eq!(
            rungs(true, &config(true, false), alone(), Some(&ours)),
            [Hot, Function, Power(0x44)],
            "only a power cycle stands behind it"
        );
        assert_eq!(rungs(true, &config(false, false), None, None), [Function]);
        assert_eq!(
            rungs(false, &config(true, false), None, None),
            [Power(0x44)]
        );
        assert_eq!(rungs(false, &config(false, false), None, None), []);
    }

    #[test]
    fn a_hot_reset_needs_every_function() {
        let none = config(false, false);
        let ours = group(7);
        let hot = |info, group| rungs(false, &none, Some(info), group) == [Rung::Hot];
        assert!(
            !hot((0, vec![row(7), row(8)]), Some(&ours)),
            "another group"
        );
        assert!(!hot((0, vec![row(7)]), None), "no group descriptor");
        assert!(!hot((0, vec![]), Some(&ours)));
        assert!(hot((DEV_ID | OWNED, vec![row(0), row(3)]), None));
        assert!(!hot((DEV_ID, vec![row(3)]), None), "not owned");
        assert!(!hot((DEV_ID | OWNED, vec![row(u32::MAX)]), None));
    }

    /// A device that does not migrate.
    fn runs() -> Result<(), Errno> {
        Ok(())
    }

    #[test]
    fn a_rung_after_which_the_device_does_not_run_has_not_held() {
        let ours = group(7);
        let hot = Some((0, vec![row(7)]));
        let (fake, vfio, ladder) = ladder(true, &config(false, false), hot, Some(&ours));
        let reset = |runs_after: usize| {
            let check = || match fake.script().asked.len() >= runs_after {
                true => Ok(()),
                false => Err(Errno::IO),
            };
            let done = ladder.reset(&vfio, Some(&ours), |_, _| Ok(()), check);
            (done, fake.take_asked())
        };
        assert_eq!(reset(1), (Ok(()), vec![Asked::Reset]));
        let both = vec![Asked::Reset, Asked::HotReset(1)];
        assert_eq!(reset(2), (Ok(()), both.clone()));
        assert_eq!(reset(3), (Err(Errno::IO), both));
    }

    #[test]
    fn a_rung_that_breaks_is_followed_by_the_next() {
        let ours = group(7);
        let hot = Some((0, vec![row(7)]));
        let (fake, vfio, ladder) = ladder(true, &config(true, true), hot, Some(&ours));
        let mut written = Vec::new();
        let mut config = |at: u64, data: &[u8]| {
            written.push((at, data.to_vec()));
            Ok(())
        };
        fake.script().fail = vec![(Request::Reset, Errno::IO)];
        ladder.reset(&vfio, Some(&ours), &mut config, runs).unwrap();
        assert_eq!(fake.take_asked(), [Asked::HotReset(1)]);
        fake.script().fail = vec![
            (Request::Reset, Errno::IO),
            (Request::HotReset, Errno::PERM),
        ];
        ladder.reset(&vfio, Some(&ours), &mut config, runs).unwrap();
        assert_eq!(written, [(0x44, vec![3]), (0x44, vec![0])]);
        fake.script().fail = vec![(Request::Reset, Errno::AGAIN); 2];
        ladder
            .reset(&vfio, Some(&ours), |_, _| Ok(()), runs)
            .unwrap();
        assert_eq!(fake.take_asked(), [Asked::Reset], "tried again");
    }

    #[test]
    fn a_chip_that_no_bus_resets() {
        let mut config = config(false, false);
        config[..4].copy_from_slice(&[0x02, 0x10, 0xb0, 0x67]);
        let script = Script {
            regions: [(5, (3, vec![0; 0x8000], vec![]))].into(),
            ..Script::default()
        };
        let fake = Arc::new(Fake::new(script));
        let vfio = Vfio::new(Arc::clone(&fake) as _);
        let bar5 = vfio.region(5).unwrap();
        let new = |function| Ladder::new(&vfio, function, &config, &bar5, None).rungs;
        assert_eq!(new(true), [Rung::Function], "the kernel knows better");
        assert_eq!(new(false), [Rung::Radeon(5 << 40)]);
        // This one's controller does not run.
        let ladder = Ladder::new(&vfio, false, &config, &bar5, None);
        let mut written = Vec::new();
        let config = |at: u64, data: &[u8]| {
            written.push((at, data.to_vec()));
            Ok(())
        };
        let done = ladder.reset(&vfio, None, config, || Ok(()));
        assert_eq!(done, Err(Errno::INVAL));
        assert_eq!(written, [(4, vec![2, 0]), (4, vec![0, 0])]);
        let index = |at: u32| Asked::Write(5, 0x200, at.to_le_bytes().to_vec());
        assert_eq!(fake.take_asked(), [index(0x8000_0004), index(0x8000_0370)]);
    }

    #[test]
    fn without_a_rung_there_is_no_reset() {
        let (_, vfio, ladder) = ladder(false, &[0; 256], None, None);
        assert!(ladder.is_empty());
        let done = ladder.reset(&vfio, None, |_, _| Ok(()), runs);
        assert_eq!(done, Err(Errno::NOTTY));
    }
}
