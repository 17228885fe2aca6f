// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors for people: one line with the whole chain of causes.

use std::error::Error;
use std::fmt::Write;

/// The error and its causes, joined by colons. Control characters, which only a path or a peer's text can
/// bring in, are escaped: it stays one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Cannot listen on a\nb")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow_in_one_line() {
        let error = Outer(io::Error::other("no \u{1b}[1m ‹such› folder"));
        assert_eq!(
            chain(&error),
            r"Cannot listen on a\nb: no \u{1b}[1m ‹such› folder"
        );
    }
}
