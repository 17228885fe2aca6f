// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How errors and results reach people and programs.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

/// What an action may end with.
pub type Failure = Box<dyn Error + Send + Sync>;

/// An error and its causes in one line. What a server says is in some of them: characters that a terminal takes for
/// more than text are escaped.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String does not fail.
        let _ = write!(line, ": {cause}");
        source = cause.source();
    }
    let mut plain = String::with_capacity(line.len());
    for character in line.chars() {
        if character.is_control() || changes_direction(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Bidi_Control of Unicode (UAX #9): what follows may be shown in another order.
fn changes_direction(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Writes a line for people, on stderr. Not the macro, which panics where that is a pipe whose reader is gone.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Says what is wrong, or may be.
pub fn complain(what: &str) {
    say(&format!("vfio-user-ctl: {what}"));
}

/// Says why it failed.
pub fn fail(error: &dyn Error) -> ExitCode {
    complain(&chain(error));
    ExitCode::FAILURE
}

/// What programs are told of a failure.
pub fn failed(error: &dyn Error) -> serde_json::Value {
    serde_json::json!({ "ok": false, "error": chain(error) })
}

/// Prints a result. Whoever closed stdout wants no more of it.
pub fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("Cannot print: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Help goes out as it is; what is wrong with the arguments, as one line.
pub fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if !error.use_stderr() {
        return print(&text);
    }
    // The first paragraph says it; what follows is usage.
    let paragraph = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty());
    let line = paragraph.collect::<Vec<_>>().join(" ");
    let line = line.trim_start_matches("error: ");
    complain(&format!("{line} (--help lists the options)"));
    ExitCode::from(2)
}

/// A JSON object or array, indented, with its newline.
pub fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// A duration in milliseconds, to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Bytes as people say them: exact in the largest unit that divides them.
pub fn bytes(count: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let unit = (count.trailing_zeros() / 10).min(4);
    match usize::try_from(unit).ok().and_then(|unit| units.get(unit)) {
        Some(name) if count != 0 => format!("{}{name}", count >> (unit * 10)),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_exact() {
        let table = [
            (0, "0"),
            (1, "1"),
            (1023, "1023"),
            (4096, "4K"),
            (1 << 26, "64M"),
            (3 << 29, "1536M"),
            (1 << 34, "16G"),
            (1 << 62, "4194304T"),
            (4097, "4097"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn causes_are_chained_in_one_line() {
        let error = vfio_user_client::Error::Connect {
            path: "/run/gpu0.sock".into(),
            source: io::Error::from_raw_os_error(2),
        };
        let expected = "Cannot connect to /run/gpu0.sock: No such file or directory (os error 2)";
        assert_eq!(chain(&error), expected);
    }
}
