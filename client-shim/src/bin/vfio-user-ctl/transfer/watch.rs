// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Progress for people: a bar on a terminal, a line for each pass elsewhere, on stderr.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::timeline::{Pass, Sample};
use crate::report::say;
use crate::units::{moved_in, size, time};

/// Who is told.
#[derive(Debug)]
pub enum Watch {
    /// Nobody.
    Silent,
    /// A log.
    Lines,
    /// Eyes.
    Bar(ProgressBar),
}

impl Watch {
    /// What stderr is.
    pub fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}{msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self::Bar(bar)
    }

    pub fn sample(&self, sample: &Sample) {
        if let Self::Bar(bar) = self {
            bar.set_length(sample.moved.saturating_add(sample.remaining));
            bar.set_position(sample.moved);
        }
    }

    pub fn pass(&self, number: usize, pass: &Pass) {
        let expected = match pass.expected {
            Some(expected) => format!("expected downtime {}", time(expected)),
            None => "expected downtime not known yet".to_owned(),
        };
        match self {
            Self::Silent => {}
            Self::Lines => {
                let moved = moved_in(pass.bytes, pass.took);
                let left = size(pass.remaining);
                say(&format!("pass {number}: {moved}; {left} left, {expected}"));
            }
            Self::Bar(bar) => bar.set_message(format!(", pass {number}, {expected}")),
        }
    }

    pub fn switch_over(&self, remaining: u64) {
        match self {
            Self::Silent => {}
            Self::Lines => say(&format!("switch-over with {} left", size(remaining))),
            Self::Bar(bar) => bar.set_message(", switch-over"),
        }
    }

    /// So many bytes of a stream whose end is not known, or is `total`.
    pub fn stream(&self, moved: u64, total: Option<u64>) {
        if let Self::Bar(bar) = self {
            bar.set_length(total.unwrap_or(0).max(moved));
            bar.set_position(moved);
        }
    }

    /// Nothing more is drawn. The last line of a stream, for a log.
    pub fn end_stream(&self, what: &str, moved: u64, took: Duration) {
        self.end();
        if !matches!(self, Self::Silent) {
            say(&format!("{what}: {}", moved_in(moved, took)));
        }
    }

    /// Nothing more is drawn.
    pub fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
