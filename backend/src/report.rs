// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors for people: one line with the whole chain of causes.

use std::error::Error;
use std::fmt::Write;

/// The error and its causes, joined by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}
