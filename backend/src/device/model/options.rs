// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be chosen of the model GPU on the command line:
//! `--model[=vram=SIZE,vram-file=PATH,config=FILE,igd=PATH,faults=LIST]`. `faults.rs` knows the faults.

use std::path::PathBuf;
use std::str::FromStr;

use super::faults::{Faults, FaultsError};
use super::vram;

/// The keys, as told to people.
const KEYS: &str = "vram=SIZE, vram-file=PATH, config=FILE, faults=FAULT+FAULT+...";

/// A model GPU, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Bytes of VRAM: a power of two from [`vram::MIN_SIZE`] to [`vram::MAX_SIZE`].
    pub vram_size: u64,
    /// The file to keep VRAM in; `None` for memory without a name. A comma cannot be part of it.
    pub vram_file: Option<PathBuf>,
    /// The file with its OpRegion, if it is to stand in the place of Intel graphics.
    pub igd: Option<PathBuf>,
    /// The file with the config space to serve instead of the software GPU's own (`dump/text.rs`).
    pub config: Option<PathBuf>,
    /// What goes wrong when it migrates.
    pub faults: Faults,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            vram_size: vram::DEFAULT_SIZE,
            vram_file: None,
            igd: None,
            config: None,
            faults: Faults::default(),
        }
    }
}

/// Why the text after `--model=` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Nobody knows this key.
    #[error("Unknown key {0:?} of the model GPU (known: {KEYS})")]
    UnknownKey(String),
    /// A key without `=` and value.
    #[error("Key {0:?} of the model GPU needs a value ({KEYS})")]
    NoValue(String),
    /// A key is there twice.
    #[error("Key {0:?} of the model GPU is given twice")]
    Twice(String),
    /// Not a size, or not one that VRAM can have.
    #[error("VRAM size {0:?}: must be a power of two from 1M to 16G (suffixes K, M, G)")]
    Size(String),
    /// A dump says itself how large its BARs are, and does not migrate.
    #[error("Key {0:?} of the model GPU does not go with config=FILE")]
    WithConfig(&'static str),
    /// A fault that is not one.
    #[error(transparent)]
    Faults(#[from] FaultsError),
}

impl FromStr for ModelOptions {
    type Err = OptionsError;

    /// Parses `key=value,...`; the empty text gives the defaults.
    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let (mut size, mut file, mut config, mut faults) = (None, None, None, None);
        let mut igd = None;
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if !["vram", "vram-file", "config", "faults", "igd"].contains(&key) {
                return Err(OptionsError::UnknownKey(key.to_owned()));
            }
            if value.is_empty() {
                return Err(OptionsError::NoValue(key.to_owned()));
            }
            let earlier = match key {
                "vram" => size.replace(parse_size(value)?).is_some(),
                "igd" => igd.replace(PathBuf::from(value)).is_some(),
                "config" => config.replace(PathBuf::from(value)).is_some(),
                "faults" => faults.replace(value.parse()?).is_some(),
                _ => file.replace(PathBuf::from(value)).is_some(),
            };
            if earlier {
                return Err(OptionsError::Twice(key.to_owned()));
            }
        }
        let superfluous = [("vram", size.is_some()), ("faults", faults.is_some())];
        if let Some((key, _)) = superfluous
            .iter()
            .find(|(_, given)| config.is_some() && *given)
        {
            return Err(OptionsError::WithConfig(key));
        }
        Ok(Self {
            vram_size: size.unwrap_or(vram::DEFAULT_SIZE),
            vram_file: file,
            igd,
            config,
            faults: faults.unwrap_or_default(),
        })
    }
}

fn parse_size(text: &str) -> Result<u64, OptionsError> {
    let valid =
        |size: &u64| size.is_power_of_two() && (vram::MIN_SIZE..=vram::MAX_SIZE).contains(size);
    let size = parse_bytes(text).filter(valid);
    size.ok_or_else(|| OptionsError::Size(text.to_owned()))
}

/// A number of bytes, with a suffix K, M or G or none.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let shift = match text.bytes().last() {
        Some(b'k' | b'K') => 10,
        Some(b'm' | b'M') => 20,
        Some(b'g' | b'G') => 30,
        _ => 0,
    };
    // The suffix is ASCII, so that the cut is at a character's end.
    let digits = text.get(..text.len().checked_sub(usize::from(shift > 0))?)?;
    // `parse` alone would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_options() {
        assert_eq!("".parse(), Ok(ModelOptions::default()));
        for (text, size) in [
            ("vram=1M", 1 << 20),
            ("vram=1024K", 1 << 20),
            ("vram=16g", 16 << 30),
            ("vram=67108864", 64 << 20),
        ] {
            let options: ModelOptions = text.parse().unwrap();
            assert_eq!(options.vram_size, size, "{text}");
            assert_eq!(options.vram_file, None);
        }
        let options: ModelOptions = "vram-file=/tmp/a=b,vram=2M".parse().unwrap();
        assert_eq!(options.vram_file, Some("/tmp/a=b".into()));
        assert_eq!(options.vram_size, 2 << 20);
        let options: ModelOptions = "faults=no-p2p+reinit@4K,vram=2M".parse().unwrap();
        assert!(options.faults.no_p2p);
        assert_eq!(options.faults.reinit, Some(4096));
    }

    #[test]
    fn a_dump_says_the_rest_itself() {
        let options: ModelOptions = "config=a/b,vram-file=v".parse().unwrap();
        assert_eq!(options.config, Some("a/b".into()));
        for (text, key) in [
            ("config=a,vram=1M", "vram"),
            ("faults=no-p2p,config=a", "faults"),
        ] {
            let error = text.parse::<ModelOptions>().unwrap_err();
            assert_eq!(error, OptionsError::WithConfig(key));
        }
    }

    #[test]
    fn bad_options_say_what_is_allowed() {
        let error = |text: &str| text.parse::<ModelOptions>().unwrap_err();
        for size in [
            "0",
            "3M",
            "512K",
            "32G",
            "1T",
            "M",
            "+1M",
            "-1M",
            "1.5G",
            "0x100000",
            "99999999999999999999",
            "18446744073709551615G",
            "ü",
        ] {
            let text = format!("vram={size}");
            assert_eq!(error(&text), OptionsError::Size(size.into()), "{text}");
        }
        let unknown = error("vran=1M");
        assert_eq!(unknown, OptionsError::UnknownKey("vran".into()));
        assert!(unknown.to_string().contains("vram-file=PATH"));
        assert_eq!(error("vram"), OptionsError::NoValue("vram".into()));
        assert_eq!(
            error("vram-file="),
            OptionsError::NoValue("vram-file".into())
        );
        assert_eq!(error("vram=1M,vram=2M"), OptionsError::Twice("vram".into()));
        assert_eq!(
            error("faults=no-p2p,faults=no-p2p"),
            OptionsError::Twice("faults".into())
        );
        assert_eq!(error("faults="), OptionsError::NoValue("faults".into()));
        let fault = error("faults=slow");
        assert!(matches!(fault, OptionsError::Faults(_)));
        assert!(fault.to_string().contains("known: no-precopy"), "{fault}");
        assert_eq!(error(","), OptionsError::UnknownKey(String::new()));
        assert_eq!(error("vram=1M,"), OptionsError::UnknownKey(String::new()));
    }
}
