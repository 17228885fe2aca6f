// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_SET_IRQS: checked against what the device offers and put in its own words. Pure.

use std::os::fd::OwnedFd;

use vfio_user_protocol::irq::{
    SET_ACTION_MASK, SET_ACTION_MASK_ALL, SET_ACTION_TRIGGER, SET_ACTION_UNMASK, SET_DATA_BOOL,
    SET_DATA_EVENTFD, SET_DATA_MASK, SET_DATA_NONE, SetIrqs,
};

use super::screen::is_socket;
use crate::interrupts::{INDEXES, INTX, IrqInfo, IrqRequest, Vectors};

/// Why a request is refused; always EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IrqError {
    /// There is no such interrupt index.
    #[error("Interrupt index {0} does not exist")]
    Index(u32),
    /// Not exactly one action and one kind of data.
    #[error("Flags {0:#x} do not name one action and one kind of data")]
    Flags(u32),
    /// Vectors beyond what the index has.
    #[error("Vectors {start}+{count} are beyond the {available} of the index")]
    Range {
        /// The first asked for.
        start: u32,
        /// How many.
        count: u32,
        /// How many there are.
        available: u32,
    },
    /// Taking the whole index away takes start 0, no data and the trigger action.
    #[error("Count 0 with start {start} and flags {flags:#x}")]
    Empty {
        /// The first vector asked for.
        start: u32,
        /// The flags.
        flags: u32,
    },
    /// The index cannot be masked, or not in this way.
    #[error("Interrupt index {0} cannot be masked this way")]
    Mask(u32),
    /// A socket is no eventfd.
    #[error("A socket was passed as an eventfd")]
    Socket,
    /// Descriptors that do not fit the request.
    #[error("{found} descriptors where {expected} are expected")]
    Descriptors {
        /// How many fit.
        expected: u32,
        /// How many came.
        found: usize,
    },
}

/// Checks a request against `info`, what the device offers at its index.
///
/// # Errors
/// [`IrqError`].
pub(super) fn translate(
    set: &SetIrqs,
    data: &[u8],
    fds: Vec<OwnedFd>,
    info: IrqInfo,
) -> Result<IrqRequest, IrqError> {
    let SetIrqs {
        flags,
        index,
        start,
        count,
        ..
    } = *set;
    if index >= INDEXES {
        return Err(IrqError::Index(index));
    }
    let kind = flags & SET_DATA_MASK;
    let action = flags & SET_ACTION_MASK_ALL;
    if kind.count_ones() != 1 || action.count_ones() != 1 {
        return Err(IrqError::Flags(flags));
    }
    let end = start.checked_add(count);
    if start >= info.count || end.is_none_or(|end| end > info.count) {
        return Err(IrqError::Range {
            start,
            count,
            available: info.count,
        });
    }
    if kind != SET_DATA_EVENTFD && !fds.is_empty() {
        return Err(IrqError::Descriptors {
            expected: 0,
            found: fds.len(),
        });
    }
    if count == 0 {
        let disable = start == 0 && flags == SET_DATA_NONE | SET_ACTION_TRIGGER;
        return if disable {
            Ok(IrqRequest::Disable { index })
        } else {
            Err(IrqError::Empty { start, flags })
        };
    }
    if action != SET_ACTION_TRIGGER && !info.maskable {
        return Err(IrqError::Mask(index));
    }
    if kind == SET_DATA_EVENTFD {
        // One that is kept might be the client's own end, which then never closes.
        if fds.iter().any(is_socket) {
            return Err(IrqError::Socket);
        }
        let eventfds = eventfds(count, fds)?;
        return match action {
            SET_ACTION_TRIGGER => Ok(IrqRequest::SetEventfds {
                index,
                start,
                eventfds,
            }),
            // What KVM's resample eventfd is for; the kernel takes it for INTx only.
            SET_ACTION_UNMASK if index == INTX => Ok(IrqRequest::UnmaskEventfd {
                eventfd: eventfds.into_iter().next().flatten(),
            }),
            _ => Err(IrqError::Mask(index)),
        };
    }
    let vectors = if kind == SET_DATA_BOOL {
        Vectors::Flags {
            start,
            flags: data.iter().map(|&byte| byte != 0).collect(),
        }
    } else {
        Vectors::Range { start, count }
    };
    Ok(match action {
        SET_ACTION_MASK => IrqRequest::Mask { index, vectors },
        SET_ACTION_UNMASK => IrqRequest::Unmask { index, vectors },
        _ => IrqRequest::Trigger { index, vectors },
    })
}

/// One for each vector, or none at all to take them away.
fn eventfds(count: u32, fds: Vec<OwnedFd>) -> Result<Vec<Option<OwnedFd>>, IrqError> {
    let found = fds.len();
    if found == 0 {
        return Ok((0..count).map(|_| None).collect());
    }
    if u32::try_from(found) != Ok(count) {
        return Err(IrqError::Descriptors {
            expected: count,
            found,
        });
    }
    Ok(fds.into_iter().map(Some).collect())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const MSIX: IrqInfo = IrqInfo {
        count: 2048,
        maskable: true,
        automasked: false,
        noresize: false,
    };
    const ERR: IrqInfo = IrqInfo {
        count: 1,
        maskable: false,
        automasked: false,
        noresize: true,
    };

    const NONE: u32 = SET_DATA_NONE;
    const BOOL: u32 = SET_DATA_BOOL;
    const EVENTFD: u32 = SET_DATA_EVENTFD;
    const MASK: u32 = SET_ACTION_MASK;
    const UNMASK: u32 = SET_ACTION_UNMASK;
    const TRIGGER: u32 = SET_ACTION_TRIGGER;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect()
    }

    fn check(
        index: u32,
        flags: u32,
        (start, count): (u32, u32),
        data: &[u8],
        fd_count: usize,
    ) -> Result<IrqRequest, IrqError> {
        let set = SetIrqs {
            argsz: 20,
            flags,
            index,
            start,
            count,
        };
        let info = if index == 2 { MSIX } else { ERR };
        translate(&set, data, fds(fd_count), info)
    }

    #[test]
    fn refusals() {
        let range = |start, count, available| IrqError::Range {
            start,
            count,
            available,
        };
        let fds = |expected, found| IrqError::Descriptors { expected, found };
        let table = [
            (check(5, NONE | TRIGGER, (0, 1), &[], 0), IrqError::Index(5)),
            (
                check(2, NONE | MASK | UNMASK, (0, 1), &[], 0),
                IrqError::Flags(0x19),
            ),
            (
                check(2, NONE | BOOL | TRIGGER, (0, 1), &[], 0),
                IrqError::Flags(0x23),
            ),
            (check(2, NONE, (0, 1), &[], 0), IrqError::Flags(1)),
            (
                check(2, NONE | MASK, (2047, 2), &[], 0),
                range(2047, 2, 2048),
            ),
            (
                check(2, EVENTFD | TRIGGER, (2049, 1), &[], 1),
                range(2049, 1, 2048),
            ),
            (
                check(2, NONE | TRIGGER, (284, u32::MAX), &[], 0),
                range(284, u32::MAX, 2048),
            ),
            (check(3, NONE | MASK, (0, 1), &[], 0), IrqError::Mask(3)),
            (check(4, NONE | TRIGGER, (0, 2), &[], 0), range(0, 2, 1)),
            (
                check(2, NONE | TRIGGER, (1, 0), &[], 0),
                IrqError::Empty {
                    start: 1,
                    flags: 0x21,
                },
            ),
            (
                check(2, NONE | MASK, (0, 0), &[], 0),
                IrqError::Empty { start: 0, flags: 9 },
            ),
            (
                check(2, BOOL | TRIGGER, (0, 0), &[], 0),
                IrqError::Empty {
                    start: 0,
                    flags: 0x22,
                },
            ),
            (check(2, BOOL | TRIGGER, (0, 1), &[1], 1), fds(0, 1)),
            (check(2, NONE | TRIGGER, (0, 1), &[], 1), fds(0, 1)),
            (check(2, EVENTFD | TRIGGER, (0, 2), &[], 1), fds(2, 1)),
            (check(2, EVENTFD | MASK, (0, 1), &[], 1), IrqError::Mask(2)),
            (
                check(2, EVENTFD | UNMASK, (0, 1), &[], 1),
                IrqError::Mask(2),
            ),
        ];
        for (at, (got, want)) in table.into_iter().enumerate() {
            assert_eq!(got.unwrap_err(), want, "case {at}");
        }
        let none = SetIrqs {
            argsz: 20,
            flags: NONE | TRIGGER,
            index: 1,
            start: 0,
            count: 0,
        };
        let absent = translate(&none, &[], Vec::new(), IrqInfo::default());
        assert_eq!(absent.unwrap_err(), range(0, 0, 0));
    }

    #[test]
    fn what_is_meant() {
        use IrqRequest::*;
        let request = check(2, EVENTFD | TRIGGER, (16, 2), &[], 2).unwrap();
        assert!(
            matches!(&request, SetEventfds { index: 2, start: 16, eventfds }
                if eventfds.len() == 2 && eventfds.iter().all(Option::is_some)),
            "{request:?}"
        );
        let request = check(2, EVENTFD | TRIGGER, (4, 3), &[], 0).unwrap();
        assert!(
            matches!(&request, SetEventfds { start: 4, eventfds, .. }
                if eventfds.len() == 3 && eventfds.iter().all(Option::is_none)),
            "{request:?}"
        );
        assert!(matches!(
            check(4, NONE | TRIGGER, (0, 0), &[], 0),
            Ok(Disable { index: 4 })
        ));
        let vectors = Vectors::Flags {
            start: 4,
            flags: vec![false, true],
        };
        match check(2, BOOL | TRIGGER, (4, 2), &[0, 1], 0) {
            Ok(Trigger {
                index: 2,
                vectors: got,
            }) => assert_eq!(got, vectors),
            other => panic!("{other:?}"),
        }
        let intx = IrqInfo {
            count: 1,
            maskable: true,
            automasked: true,
            noresize: false,
        };
        let set = SetIrqs {
            argsz: 20,
            flags: EVENTFD | UNMASK,
            index: INTX,
            start: 0,
            count: 1,
        };
        let request = translate(&set, &[], fds(1), intx).unwrap();
        assert!(
            matches!(request, UnmaskEventfd { eventfd: Some(_) }),
            "{request:?}"
        );
    }
}
