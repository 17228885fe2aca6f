// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state machine of migration: which arcs exist, and the way from one state to another.
//!
//! The table of `linux/vfio.h` (`enum vfio_device_mig_state`): a change is taken along the shortest way, and
//! the states that save (PRE_COPY, PRE_COPY_P2P, STOP_COPY) are only ever its beginning or its end. States
//! that the device lacks are stepped over. Pure: values in, values out.

use vfio_user_protocol::migration::MigrationState::{self as State, *};

use super::driver::Support;

/// Why a change of state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalChange {
    /// The device has failed.
    #[error("The device is in ERROR: only a reset leads out")]
    FromError,
    /// Nobody can ask for ERROR.
    #[error("ERROR cannot be asked for")]
    ToError,
    /// The device has no such state.
    #[error("The device has no {0}")]
    Missing(State),
    /// STOP_COPY does not lead back to pre-copy.
    #[error("{0} does not lead to {1}")]
    NoWay(State, State),
}

/// Whether a device has a state.
#[must_use]
pub fn exists(state: State, support: Support) -> bool {
    match state {
        Error | Stop | Running | StopCopy | Resuming => true,
        RunningP2p => support.p2p,
        PreCopy => support.pre_copy,
        PreCopyP2p => support.p2p && support.pre_copy,
    }
}

/// The next arc of the way between two states that exist and differ; `None` where there is none.
fn next(from: State, to: State, support: Support) -> Option<State> {
    let step = match (from, to) {
        (Error, _) | (_, Error) | (StopCopy, PreCopy | PreCopyP2p) => return None,
        (Stop, StopCopy | Resuming) => to,
        (Stop, _) => RunningP2p,
        (Running, PreCopy) => PreCopy,
        (Running, _) => RunningP2p,
        (PreCopy, PreCopyP2p | StopCopy) => PreCopyP2p,
        (PreCopy, _) => Running,
        (PreCopyP2p, PreCopy | StopCopy) => to,
        (PreCopyP2p, _) => RunningP2p,
        (StopCopy | Resuming, _) => Stop,
        (RunningP2p, Running | PreCopy) => Running,
        (RunningP2p, PreCopyP2p) => PreCopyP2p,
        (RunningP2p, _) => Stop,
    };
    if exists(step, support) {
        Some(step)
    } else {
        // A state the device lacks is where the way goes on from.
        next(step, to, support)
    }
}

/// The arcs from one state to another, in order; empty if they are the same.
///
/// # Errors
/// [`IllegalChange`]: nothing may be asked of the device.
pub fn way(from: State, to: State, support: Support) -> Result<Vec<State>, IllegalChange> {
    if from == Error {
        return Err(IllegalChange::FromError);
    }
    if to == Error {
        return Err(IllegalChange::ToError);
    }
    for state in [from, to] {
        if !exists(state, support) {
            return Err(IllegalChange::Missing(state));
        }
    }
    let mut arcs = Vec::new();
    let mut at = from;
    while at != to {
        at = next(at, to, support).ok_or(IllegalChange::NoWay(from, to))?;
        arcs.push(at);
    }
    Ok(arcs)
}

/// Whether data of the device is read in this state.
#[must_use]
pub fn saves(state: State) -> bool {
    matches!(state, PreCopy | PreCopyP2p | StopCopy)
}

/// Whether the device does nothing by itself in this state, so that its regions must be left alone: what
/// is written there would be lost, or is not there yet.
#[must_use]
pub fn closed(state: State) -> bool {
    matches!(state, StopCopy | Resuming | Error)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use super::*;

    const ALL: [Support; 4] = [
        Support {
            p2p: false,
            pre_copy: false,
        },
        Support {
            p2p: true,
            pre_copy: false,
        },
        Support {
            p2p: false,
            pre_copy: true,
        },
        Support {
            p2p: true,
            pre_copy: true,
        },
    ];

    /// The arcs that drivers implement, as published; those without P2P run straight.
    fn arcs(support: Support) -> Vec<(State, State)> {
        let with_p2p = [
            (Running, RunningP2p),
            (Running, PreCopy),
            (RunningP2p, Stop),
            (RunningP2p, Running),
            (RunningP2p, PreCopyP2p),
            (Stop, RunningP2p),
            (Stop, StopCopy),
            (Stop, Resuming),
            (StopCopy, Stop),
            (Resuming, Stop),
            (PreCopy, Running),
            (PreCopy, PreCopyP2p),
            (PreCopyP2p, RunningP2p),
            (PreCopyP2p, PreCopy),
            (PreCopyP2p, StopCopy),
        ];
        let straight = [(Running, Stop), (Stop, Running), (PreCopy, StopCopy)];
        let mut arcs = with_p2p.to_vec();
        if !support.p2p {
            arcs.extend(straight);
        }
        arcs.retain(|(from, to)| exists(*from, support) && exists(*to, support));
        arcs
    }

    /// The length of the shortest way whose inner states do not save, by search.
    fn shortest(from: State, to: State, arcs: &[(State, State)]) -> Option<usize> {
        let mut distance = HashMap::from([(from, 0)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                return distance.get(&at).copied();
            }
            if at != from && saves(at) {
                continue;
            }
            for (_, next) in arcs.iter().filter(|(a, _)| *a == at) {
                if !distance.contains_key(next) {
                    distance.insert(*next, distance[&at] + 1);
                    queue.push_back(*next);
                }
            }
        }
        None
    }

    #[test]
    fn every_way_is_legal_and_the_shortest() {
        for support in ALL {
            let arcs = arcs(support);
            for from in State::ALL {
                for to in State::ALL {
                    let found = way(from, to, support);
                    if from == Error {
                        assert_eq!(found, Err(IllegalChange::FromError));
                    } else if to == Error {
                        assert_eq!(found, Err(IllegalChange::ToError));
                    } else if !exists(from, support) || !exists(to, support) {
                        assert!(matches!(found, Err(IllegalChange::Missing(_))));
                    } else if from == StopCopy && matches!(to, PreCopy | PreCopyP2p) {
                        assert_eq!(found, Err(IllegalChange::NoWay(from, to)));
                    } else {
                        let found = found.unwrap();
                        let mut at = from;
                        for step in &found {
                            assert!(arcs.contains(&(at, *step)), "{at} to {step}, {support:?}");
                            at = *step;
                        }
                        assert_eq!(at, to);
                        let inner = found.split_last().map_or(&[][..], |(_, inner)| inner);
                        // PRE_COPY to STOP_COPY passes PRE_COPY_P2P within one session of saving.
                        let within = saves(from) && saves(to);
                        assert!(within || !inner.iter().any(|s| saves(*s)), "{from} {to}");
                        if !within {
                            let best = shortest(from, to, &arcs);
                            assert_eq!(Some(found.len()), best, "{from} to {to}, {support:?}");
                        }
                    }
                }
            }
        }
    }

    /// The next-hop table of the kernel's documentation, for a device with everything.
    #[test]
    fn the_published_table() {
        let columns = [
            Stop, Running, PreCopy, PreCopyP2p, StopCopy, Resuming, RunningP2p,
        ];
        let rows = [
            (
                Stop,
                [
                    Stop, RunningP2p, RunningP2p, RunningP2p, StopCopy, Resuming, RunningP2p,
                ],
            ),
            (
                Running,
                [
                    RunningP2p, Running, PreCopy, RunningP2p, RunningP2p, RunningP2p, RunningP2p,
                ],
            ),
            (
                PreCopy,
                [
                    Running, Running, PreCopy, PreCopyP2p, PreCopyP2p, Running, Running,
                ],
            ),
            (
                PreCopyP2p,
                [
                    RunningP2p, RunningP2p, PreCopy, PreCopyP2p, StopCopy, RunningP2p, RunningP2p,
                ],
            ),
            (StopCopy, [Stop, Stop, Error, Error, StopCopy, Stop, Stop]),
            (Resuming, [Stop, Stop, Stop, Stop, Stop, Resuming, Stop]),
            (
                RunningP2p,
                [Stop, Running, Running, PreCopyP2p, Stop, Stop, RunningP2p],
            ),
        ];
        let all = Support {
            p2p: true,
            pre_copy: true,
        };
        for (from, hops) in rows {
            for (to, hop) in columns.into_iter().zip(hops) {
                let first = way(from, to, all).map(|arcs| arcs.first().copied().unwrap_or(from));
                let expected = if hop == Error {
                    Err(IllegalChange::NoWay(from, to))
                } else {
                    Ok(hop)
                };
                assert_eq!(first, expected, "{from} to {to}");
            }
        }
    }
}
