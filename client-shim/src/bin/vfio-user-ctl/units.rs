// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sizes, rates and times, as people write and read them. Pure.

use std::time::Duration;

/// A bandwidth in bytes a second: a number, with K, M, G or T (1024) for bytes, or Kbit, Mbit or Gbit (1000) for
/// bits; `/s` may follow.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    let expected = || {
        format!(
            "{text} is no bandwidth; expected are bytes a second as 500M or 1.5G, or bits as 950Mbit"
        )
    };
    let rate = text.strip_suffix("/s").unwrap_or(text);
    let digits = rate
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rate.len());
    let (number, unit) = rate.split_at(digits);
    let scale = match unit {
        "" | "B" => 1.0,
        "K" | "KiB" => 1024.0,
        "M" | "MiB" => 1024.0 * 1024.0,
        "G" | "GiB" => 1024.0 * 1024.0 * 1024.0,
        "T" | "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "bit" => 0.125,
        "Kbit" | "kbit" => 125.0,
        "Mbit" => 125_000.0,
        "Gbit" => 125_000_000.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    match whole((number * scale).round()) {
        0 => Err(format!("{text} is less than a byte a second")),
        rate => Ok(rate),
    }
}

/// Three digits that matter, in the largest unit that leaves one before the point.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = float(bytes);
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        return format!("{bytes} {name}");
    }
    format!("{} {name}", three_digits(value))
}

/// Bytes a second in bytes and in bits.
pub fn rate(bytes_per_second: f64) -> String {
    let bytes = size(whole(bytes_per_second));
    let megabits = three_digits(bytes_per_second / 125_000.0);
    format!("{bytes}/s ({megabits} Mbit/s)")
}

/// So many bytes, their time, and what that makes a second.
pub fn moved_in(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let speed = if seconds > 0.0 {
        float(bytes) / seconds
    } else {
        0.0
    };
    format!("{} in {}, {}", size(bytes), time(took), rate(speed))
}

/// A time, to three digits.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if duration.is_zero() {
        "0 s".to_owned()
    } else if seconds >= 1.0 {
        format!("{} s", three_digits(seconds))
    } else if seconds >= 0.001 {
        format!("{} ms", three_digits(seconds * 1e3))
    } else {
        format!("{} us", three_digits(seconds * 1e6))
    }
}

/// Whole milliseconds, rounded up: as a limit it is enough.
pub fn milliseconds_up(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000)
}

fn three_digits(value: f64) -> String {
    let places = match value {
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.places$}")
}

/// For showing and dividing; what is lost is below what is shown.
#[expect(clippy::cast_precision_loss, reason = "shown to three digits")]
pub fn float(value: u64) -> f64 {
    value as f64
}

/// Saturates, and takes what is no number for 0, as `as` does.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturation is wanted"
)]
pub fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_read_in_bytes_and_bits() {
        for (text, expected) in [
            ("1", 1),
            ("1000/s", 1000),
            ("4K", 4096),
            ("500M", 500 << 20),
            ("1.5G", 3 << 29),
            ("1G/s", 1 << 30),
            ("2GiB/s", 2 << 30),
            ("950Mbit", 118_750_000),
            ("950Mbit/s", 118_750_000),
            ("10Gbit", 1_250_000_000),
            ("8bit", 1),
        ] {
            assert_eq!(bandwidth(text), Ok(expected), "{text}");
        }
        for text in [
            "", "M", "-1", "0", "0.1", "1bit", "1,5G", "1..5G", "nan", "inf", "1Q", "1 G", "1Mb",
            "1e9",
        ] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
        assert_eq!(bandwidth("99999999999999999999T"), Ok(u64::MAX));
    }

    #[test]
    fn sizes_and_times_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1 << 20, "1.00 MiB"),
            (309_000_000, "295 MiB"),
            ((1 << 30) * 191 / 100, "1.91 GiB"),
            (u64::MAX >> 1, "8.00 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (micros, text) in [
            (0, "0 s"),
            (31, "31.0 us"),
            (1_500, "1.50 ms"),
            (99_990, "100 ms"),
            (2_602_105, "2.60 s"),
            (4_000_000_000, "4000 s"),
        ] {
            assert_eq!(time(Duration::from_micros(micros)), text);
        }
        assert_eq!(rate(118_750_000.0), "113 MiB/s (950 Mbit/s)");
        assert_eq!(rate(f64::NAN), "0 B/s (NaN Mbit/s)");
        let half = Duration::from_millis(500);
        assert_eq!(
            moved_in(1 << 20, half),
            "1.00 MiB in 500 ms, 2.00 MiB/s (16.8 Mbit/s)"
        );
        assert!(moved_in(1, Duration::ZERO).ends_with(", 0 B/s (0.00 Mbit/s)"));
        assert_eq!(milliseconds_up(Duration::from_micros(1_000)), 1);
        assert_eq!(milliseconds_up(Duration::from_micros(1_001)), 2);
    }
}
