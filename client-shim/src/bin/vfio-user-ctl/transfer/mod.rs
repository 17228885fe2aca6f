// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device from one backend to another, live: passes until what is left fits into the limit, then the switch-over.
//!
//! `convergence` says when that is, `pace` is the link between them, `timeline` what happened, `watch` who is told, `picture` the report.

pub mod convergence;
mod pace;
pub mod picture;
pub mod timeline;
pub mod watch;

use std::time::{Duration, Instant};

use vfio_user_client::migration::{Chunk, Loader, Migration, Pending, Saver};

use crate::interrupt::Interrupt;
use crate::report::{Failure, chain, complain};
use crate::units::{milliseconds_up, rate, size, time};
use convergence::{Convergence, Decision, Needs};
use pace::Pace;
use timeline::{Pass, Timeline};
use watch::Watch;

/// Beyond what a pass had to move at its start; more is another pass, whatever the device says.
const MORE: u64 = 64 << 20;
/// Between passes that found nothing: what a guest does comes in bursts, and a stall is told by several passes.
const REST: Duration = Duration::from_millis(50);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes a second; as fast as it goes without.
    pub bandwidth: Option<u64>,
    pub limit: Duration,
    /// The limit was asked for: without a prediction it is not risked.
    pub strict: bool,
    pub interrupt: Interrupt,
}

/// How it ended, if nothing failed. Unless done, the source runs and the destination is reset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Done,
    /// It will not converge.
    Stalled(Needs),
    Interrupted,
}

/// An error, and where.
#[derive(Debug, thiserror::Error)]
#[error("{side}")]
struct At {
    side: &'static str,
    source: vfio_user_client::Error,
}

fn source(source: vfio_user_client::Error) -> At {
    let side = "Source";
    At { side, source }
}

fn destination(source: vfio_user_client::Error) -> At {
    let side = "Destination";
    At { side, source }
}

/// Whoever uses the device meanwhile.
pub trait Guest {
    /// A pass is over, and it goes on.
    fn pass_ended(&mut self, number: usize, pass: &Pass) {
        let _ = (number, pass);
    }

    /// The device is about to stop: nothing uses it any more when this returns.
    fn stop(&mut self) -> Result<(), Failure>;
}

/// Nobody.
#[derive(Debug)]
pub struct NoGuest;

impl Guest for NoGuest {
    fn stop(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// One migration under way.
struct Transfer<'a> {
    saver: Saver,
    loader: Loader,
    pace: Option<Pace>,
    convergence: Convergence,
    plan: &'a Plan,
    timeline: &'a mut Timeline,
    watch: &'a Watch,
}

/// What a stretch of moving ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stretch {
    /// Nothing for now, or all that it was to be.
    Idle,
    End,
    Interrupted,
}

/// Migrates. A failure of any kind leaves the source running and the destination reset; once the destination runs
/// there is none.
pub fn run(
    from: &Migration,
    to: &Migration,
    plan: &Plan,
    timeline: &mut Timeline,
    watch: &Watch,
    guest: &mut dyn Guest,
) -> Result<End, Failure> {
    let pre_copy = from.support().pre_copy;
    // Dropped on any way out of here, they cancel.
    let saver = from.save(pre_copy).map_err(source)?;
    let loader = to.load().map_err(destination)?;
    let mut transfer = Transfer {
        saver,
        loader,
        pace: plan
            .bandwidth
            .map(|bandwidth| Pace::new(bandwidth, Instant::now())),
        convergence: Convergence::new(plan.limit, plan.bandwidth, plan.strict),
        plan,
        timeline,
        watch,
    };
    let pending = match transfer.converge(pre_copy, guest)? {
        Ok(pending) => pending,
        Err(end) => {
            transfer.saver.cancel().map_err(source)?;
            transfer.loader.cancel().map_err(destination)?;
            return Ok(end);
        }
    };
    guest.stop()?;
    transfer.watch.switch_over(pending.total());
    transfer.switch_over()
}

impl Transfer<'_> {
    /// Passes until it is time to switch over; what is then left, or why not.
    fn converge(
        &mut self,
        pre_copy: bool,
        guest: &mut dyn Guest,
    ) -> Result<Result<Pending, End>, Failure> {
        let mut pending = self.saver.pending(true).map_err(source)?;
        loop {
            let start = Instant::now();
            let before = self.timeline.moved;
            let most = pending.precopy().saturating_add(MORE);
            if self.stretch(most)? == Stretch::Interrupted {
                return Ok(Err(End::Interrupted));
            }
            let (bytes, took) = (self.timeline.moved - before, start.elapsed());
            self.convergence.moved(bytes, took);
            // Before the question, which begins another pass.
            let ready = !pre_copy || self.loader.ready().map_err(destination)?;
            pending = self.saver.pending(true).map_err(source)?;
            let decision = self.convergence.pass_ended(&pending, ready);
            let expected = self.convergence.expected(&pending);
            self.timeline.expected = expected;
            let sample = self.timeline.sample(pending.total(), expected);
            self.watch.sample(&sample);
            let pass = Pass {
                at: sample.at,
                bytes,
                took,
                remaining: pending.total(),
                expected,
            };
            self.timeline.passes.push(pass);
            self.watch.pass(self.timeline.passes.len(), &pass);
            match decision {
                Decision::SwitchOver => return Ok(Ok(pending)),
                Decision::Stalled(needs) => return Ok(Err(End::Stalled(needs))),
                Decision::GoOn => guest.pass_ended(self.timeline.passes.len(), &pass),
            }
            if bytes == 0 && pre_copy {
                self.plan.interrupt.sleep(REST);
            }
        }
    }

    /// Stops the device and moves the rest.
    fn switch_over(mut self) -> Result<End, Failure> {
        let start = Instant::now();
        self.timeline.switched_over = Some(self.timeline.now());
        self.saver.switch_over().map_err(source)?;
        match self.stretch(u64::MAX)? {
            Stretch::End => {}
            Stretch::Idle => return Err("The source's stream stops before its end".into()),
            Stretch::Interrupted => {
                self.saver.cancel().map_err(source)?;
                self.loader.cancel().map_err(destination)?;
                return Ok(End::Interrupted);
            }
        }
        // The source first goes once the destination is there.
        self.loader.finish(true).map_err(destination)?;
        self.timeline.downtime = Some(start.elapsed());
        self.timeline.ended = Some(self.timeline.now());
        self.timeline.sample(0, Some(Duration::ZERO));
        if let Err(error) = self.saver.finish() {
            // It does not run, and the destination does: that is what was asked for.
            complain(&format!("{}; it stands still", chain(&source(error))));
        }
        Ok(End::Done)
    }

    /// Moves until there is nothing for now, or `most` bytes.
    fn stretch(&mut self, most: u64) -> Result<Stretch, Failure> {
        let mut moved: u64 = 0;
        loop {
            if self.plan.interrupt.is_asked() {
                return Ok(Stretch::Interrupted);
            }
            let length = match self.saver.chunk().map_err(source)? {
                Chunk::Data(data) => {
                    self.loader.load_volatile(&data).map_err(destination)?;
                    u64::try_from(data.len())?
                }
                Chunk::Idle => return Ok(Stretch::Idle),
                Chunk::End => return Ok(Stretch::End),
            };
            self.timeline.moved += length;
            moved = moved.saturating_add(length);
            if let Some(pace) = &mut self.pace {
                self.plan.interrupt.sleep(pace.send(length, Instant::now()));
            }
            if self.timeline.is_due() {
                let pending = self.saver.pending(false).map_err(source)?;
                let expected = self.convergence.expected(&pending);
                let sample = self.timeline.sample(pending.total(), expected);
                self.watch.sample(&sample);
            }
            if moved > most {
                return Ok(Stretch::Idle);
            }
        }
    }
}

/// Why it does not converge and what would help, in one line.
pub fn explain(needs: &Needs, plan: &Plan) -> String {
    let remaining = size(needs.remaining);
    if needs.not_ready {
        return format!(
            "It will not converge: {remaining} remain, and the destination never had all of the initial data. \
             The source runs on"
        );
    }
    if needs.unknown {
        return "The device does not say how much a stop-copy takes, so no --downtime-limit can be kept; without one \
                it migrates. The source runs on"
            .to_owned();
    }
    let Some(limit) = needs.limit else {
        return format!(
            "It cannot be said how long the remaining {remaining} take: too little was moved to measure the \
             bandwidth; give --bandwidth. The source runs on"
        );
    };
    let bandwidth = match needs.bandwidth {
        None => String::new(),
        Some(bandwidth) => format!(", or a bandwidth of {}", at_least(bandwidth)),
    };
    format!(
        "It will not converge: {remaining} remain, which take {}; needs a limit of at least {} ms at this bandwidth \
         instead of {} ms{bandwidth}. The source runs on",
        time(limit),
        milliseconds_up(limit),
        milliseconds_up(plan.limit),
    )
}

/// A bandwidth that is enough when it is given as it is shown.
fn at_least(bandwidth: u64) -> String {
    let kilobits = bandwidth.div_ceil(125);
    if kilobits < 100_000 {
        return format!("{kilobits}Kbit");
    }
    format!("{}Mbit ({}/s)", kilobits.div_ceil(1000), size(bandwidth))
}

/// What it came to, for people.
pub fn summary(timeline: &Timeline, plan: &Plan) -> String {
    let took = timeline.ended.unwrap_or_default();
    let (moved, speed) = (size(timeline.moved), rate(timeline.throughput()));
    let expected = match timeline.expected {
        Some(expected) => time(expected),
        None => "not known".to_owned(),
    };
    let passes = timeline.passes.len();
    let plural = if passes == 1 { "" } else { "es" };
    format!(
        "migrated: {moved} in {passes} pass{plural} and the stop-copy, {}, {speed}\n\
         downtime: {}, expected {expected}, limit {}\n",
        time(took),
        time(timeline.downtime.unwrap_or_default()),
        time(plan.limit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            bandwidth: Some(950_000_000 / 8),
            limit: Duration::from_millis(2500),
            strict: true,
            interrupt: Interrupt::default(),
        }
    }

    #[test]
    fn what_would_help_is_said_so_that_it_does() {
        let needs = Needs {
            remaining: 309_000_000,
            limit: Some(Duration::from_micros(2_602_106)),
            bandwidth: Some(123_600_000),
            not_ready: false,
            unknown: false,
        };
        let text = explain(&needs, &plan());
        assert_eq!(
            text,
            "It will not converge: 295 MiB remain, which take 2.60 s; needs a limit of at least 2603 ms at this \
             bandwidth instead of 2500 ms, or a bandwidth of 989Mbit (118 MiB/s). The source runs on"
        );
        assert!(crate::units::bandwidth("989Mbit").unwrap() >= 123_600_000);
        let slow = at_least(1000);
        assert_eq!(crate::units::bandwidth(&slow), Ok(1000), "{slow}");
        for needs in [
            Needs {
                limit: None,
                ..needs
            },
            Needs {
                not_ready: true,
                ..needs
            },
            Needs {
                bandwidth: None,
                ..needs
            },
        ] {
            let text = explain(&needs, &plan());
            assert!(text.contains("295 MiB") && !text.contains('\n'), "{text}");
        }
        let unknown = Needs {
            unknown: true,
            ..needs
        };
        assert!(explain(&unknown, &plan()).contains("does not say"));
    }
}
