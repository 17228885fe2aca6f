// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults of migration on demand, for tests of VMMs: `--model=faults=FAULT+FAULT+...`. Parsing only.

use std::str::FromStr;
use std::time::Duration;

use vfio_user_protocol::migration::MigrationState;

use super::options::parse_bytes;

/// What to say of all of them.
pub const FAULTS: &str = "no-precopy, no-p2p, zero-in-precopy, garbage-sizes, moving-sizes, slow-state=MS, \
    slow-save=MS, read-error@BYTES, write-error@BYTES, state-error=STATE, broken=STATE, reinit@BYTES, \
    state-size=SIZE, dirty-rate=BYTES/S";

/// The faults that a model GPU has; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// There is no pre-copy.
    pub no_precopy: bool,
    /// There are no P2P states.
    pub no_p2p: bool,
    /// A read in pre-copy that finds nothing gives 0 bytes instead of ENOMSG.
    pub zero_in_precopy: bool,
    /// Sizes are 2^64 - 1, or negative as unsigned.
    pub garbage_sizes: bool,
    /// No two answers about sizes are alike.
    pub moving_sizes: bool,
    /// Each change of state takes this long more.
    pub slow_state: Option<Duration>,
    /// Each read of data takes this long more.
    pub slow_save: Option<Duration>,
    /// Reading fails once this many bytes were given.
    pub read_error: Option<u64>,
    /// Writing fails once this many bytes were taken.
    pub write_error: Option<u64>,
    /// The first change to this state fails and changes nothing.
    pub state_error: Option<MigrationState>,
    /// A change to this state leads to ERROR.
    pub broken: Option<MigrationState>,
    /// Once this many bytes of pre-copy were given there is new initial data.
    pub reinit: Option<u64>,
    /// Bytes of further state that only a stopped device gives.
    pub state_size: u64,
    /// Bytes of VRAM that the device itself changes in a second.
    pub dirty_rate: Option<u64>,
}

/// Why a fault is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    /// Nobody knows this fault.
    #[error("Unknown fault {0:?} of the model GPU (known: {FAULTS})")]
    Unknown(String),
    /// The value is not what it needs, or there is one too many or none.
    #[error("Fault {fault:?} of the model GPU: {needs}")]
    Value {
        /// The fault as it was given.
        fault: String,
        /// What would be right.
        needs: &'static str,
    },
    /// A fault is there twice.
    #[error("Fault {0:?} of the model GPU is given twice")]
    Twice(String),
}

const FLAG: &str = "takes no value";
const BYTES: &str = "needs a number of bytes (suffixes K, M, G)";
const TIME: &str = "needs a time up to one hour, such as 50ms or 2s";
const STATE: &str =
    "needs one of stop, running, stop_copy, resuming, running_p2p, pre_copy, pre_copy_p2p";

impl FromStr for Faults {
    type Err = FaultsError;

    /// Parses faults joined by `+`.
    fn from_str(text: &str) -> Result<Self, FaultsError> {
        let mut faults = Self::default();
        for part in text.split('+') {
            faults.add(part)?;
        }
        Ok(faults)
    }
}

impl Faults {
    fn add(&mut self, part: &str) -> Result<(), FaultsError> {
        let (name, separator, value) = match part.find(['=', '@']) {
            Some(at) => (&part[..at], &part[at..=at], &part[at + 1..]),
            None => (part, "", ""),
        };
        let bad = |needs| FaultsError::Value {
            fault: part.to_owned(),
            needs,
        };
        let value_after = |wanted: &str, needs| match separator == wanted {
            true => Ok(value),
            false => Err(bad(needs)),
        };
        let flag = || value_after("", FLAG).map(|_| true);
        let bytes = |sign| {
            let value = value_after(sign, BYTES)?;
            parse_bytes(value).ok_or_else(|| bad(BYTES))
        };
        let time = || value_after("=", TIME).and_then(|v| parse_time(v).ok_or_else(|| bad(TIME)));
        let state =
            || value_after("=", STATE).and_then(|v| parse_state(v).ok_or_else(|| bad(STATE)));
        let twice = match name {
            "no-precopy" => std::mem::replace(&mut self.no_precopy, flag()?),
            "no-p2p" => std::mem::replace(&mut self.no_p2p, flag()?),
            "zero-in-precopy" => std::mem::replace(&mut self.zero_in_precopy, flag()?),
            "garbage-sizes" => std::mem::replace(&mut self.garbage_sizes, flag()?),
            "moving-sizes" => std::mem::replace(&mut self.moving_sizes, flag()?),
            "slow-state" => self.slow_state.replace(time()?).is_some(),
            "slow-save" => self.slow_save.replace(time()?).is_some(),
            "read-error" => self.read_error.replace(bytes("@")?).is_some(),
            "write-error" => self.write_error.replace(bytes("@")?).is_some(),
            "state-error" => self.state_error.replace(state()?).is_some(),
            "broken" => self.broken.replace(state()?).is_some(),
            "reinit" => self.reinit.replace(bytes("@")?).is_some(),
            "state-size" => std::mem::replace(&mut self.state_size, bytes("=")?) != 0,
            "dirty-rate" => self.dirty_rate.replace(bytes("=")?).is_some(),
            _ => return Err(FaultsError::Unknown(part.to_owned())),
        };
        if twice {
            return Err(FaultsError::Twice(name.to_owned()));
        }
        Ok(())
    }
}

/// Milliseconds, or what its suffix says.
fn parse_time(text: &str) -> Option<Duration> {
    const HOUR: u64 = 3_600_000;
    let (digits, unit) = if let Some(digits) = text.strip_suffix("ms") {
        (digits, 1)
    } else if let Some(digits) = text.strip_suffix('s') {
        (digits, 1000)
    } else {
        (text, 1)
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let milliseconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (milliseconds <= HOUR).then(|| Duration::from_millis(milliseconds))
}

/// A state that can be asked for, by its name.
fn parse_state(text: &str) -> Option<MigrationState> {
    let wanted = text.replace('-', "_");
    MigrationState::ALL.into_iter().find(|state| {
        *state != MigrationState::Error && state.to_string().eq_ignore_ascii_case(&wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault() {
        let parse = |text: &str| text.parse::<Faults>().unwrap();
        let none = Faults::default;
        #[rustfmt::skip]
        let table = [
            ("no-precopy", Faults { no_precopy: true, ..none() }),
            ("no-p2p", Faults { no_p2p: true, ..none() }),
            ("zero-in-precopy", Faults { zero_in_precopy: true, ..none() }),
            ("garbage-sizes", Faults { garbage_sizes: true, ..none() }),
            ("moving-sizes", Faults { moving_sizes: true, ..none() }),
            ("slow-state=20", Faults { slow_state: Some(Duration::from_millis(20)), ..none() }),
            ("slow-save=50ms", Faults { slow_save: Some(Duration::from_millis(50)), ..none() }),
            ("slow-save=3600s", Faults { slow_save: Some(Duration::from_secs(3600)), ..none() }),
            ("read-error@4096", Faults { read_error: Some(4096), ..none() }),
            ("write-error@1M", Faults { write_error: Some(1 << 20), ..none() }),
            ("read-error@0", Faults { read_error: Some(0), ..none() }),
            ("state-error=STOP_COPY", Faults { state_error: Some(MigrationState::StopCopy), ..none() }),
            ("broken=pre-copy-p2p", Faults { broken: Some(MigrationState::PreCopyP2p), ..none() }),
            ("reinit@64k", Faults { reinit: Some(64 << 10), ..none() }),
            ("state-size=1956M", Faults { state_size: 1956 << 20, ..none() }),
            ("dirty-rate=1G", Faults { dirty_rate: Some(1 << 30), ..none() }),
            ("no-p2p+reinit@1+no-precopy", Faults { no_p2p: true, no_precopy: true, reinit: Some(1), ..none() }),
        ];
        for (text, faults) in table {
            assert_eq!(parse(text), faults, "{text}");
        }
        for fault in FAULTS.split(", ") {
            let example = fault
                .replace("MS", "1")
                .replace("BYTES/S", "1")
                .replace("BYTES", "1")
                .replace("SIZE", "1")
                .replace("STATE", "stop");
            assert_ne!(parse(&example), none(), "{example} is known");
        }
    }

    #[test]
    fn bad_faults_say_what_is_allowed() {
        let error = |text: &str| text.parse::<Faults>().unwrap_err();
        for unknown in ["", "slow", "no-precopy ", "+no-p2p", "no-p2p+", "=1"] {
            let error = error(unknown);
            assert!(matches!(error, FaultsError::Unknown(_)), "{unknown:?}");
            assert!(error.to_string().contains("dirty-rate=BYTES/S"));
        }
        for (fault, needs) in [
            ("no-p2p=1", FLAG),
            ("no-p2p@", FLAG),
            ("slow-save", TIME),
            ("slow-save=", TIME),
            ("slow-save@5", TIME),
            ("slow-save=-5ms", TIME),
            ("slow-state=5m", TIME),
            ("slow-state=3601s", TIME),
            ("slow-state=18446744073709551615s", TIME),
            ("read-error", BYTES),
            ("read-error=5", BYTES),
            ("read-error@", BYTES),
            ("write-error@1T", BYTES),
            ("reinit@-5", BYTES),
            ("state-size=99999999999G", BYTES),
            ("state-size@1", BYTES),
            ("dirty-rate=ü", BYTES),
            ("broken=error", STATE),
            ("broken=", STATE),
            ("state-error=7", STATE),
        ] {
            let fault = fault.to_owned();
            assert_eq!(error(&fault), FaultsError::Value { fault, needs });
        }
        for name in ["no-p2p", "reinit@1", "slow-save=0", "state-size=1"] {
            let twice = error(&format!("{name}+no-precopy+{name}"));
            assert!(matches!(twice, FaultsError::Twice(_)), "{name}");
        }
    }
}
