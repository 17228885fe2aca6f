// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Generations of Intel graphics: what differs between them, by device id.

/// A generation of which the registers are known: 6 (Sandy Bridge, 2011) to 12 (Alder Lake, 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u8);

/// Upper bytes of device ids.
const UPPER: [(u8, &[u8]); 6] = [
    (6, &[0x01]),
    (7, &[0x04, 0x0a, 0x0c, 0x0d, 0x0f]),
    (8, &[0x16, 0x22]),
    (9, &[0x19, 0x31, 0x59, 0x3e, 0x87, 0x9b]),
    (11, &[0x8a, 0x45, 0x4e]),
    (12, &[0x9a, 0x4c, 0x46, 0xa7]),
];

/// A size of stolen memory that a generation cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--igd-gms {gms:#x}: generation {generation} of Intel graphics knows {allowed}")]
pub struct GmsError {
    /// What was asked for.
    pub gms: u8,
    /// Of the device.
    pub generation: u8,
    /// What there is.
    pub allowed: &'static str,
}

/// The register that holds where stolen memory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bdsm {
    /// Its offset in config space.
    pub at: u16,
    /// Its bytes.
    pub size: u16,
}

/// Before generation 11.
pub(super) const OLD_BDSM: Bdsm = Bdsm { at: 0x5c, size: 4 };
/// From generation 11 on.
pub(super) const NEW_BDSM: Bdsm = Bdsm { at: 0xc0, size: 8 };

impl Generation {
    /// That of a device id; `None` for parts that are not known.
    #[must_use]
    pub fn of(device_id: u16) -> Option<Self> {
        // Broxton and Apollo Lake lie among the ids of others.
        if device_id & 0x0ffe == 0x0a84 {
            return Some(Self(9));
        }
        let [_, upper] = device_id.to_le_bytes();
        let known = UPPER.iter().find(|(_, ids)| ids.contains(&upper));
        known.map(|&(generation, _)| Self(generation))
    }

    pub(super) fn bdsm(self) -> Bdsm {
        if self.0 < 11 { OLD_BDSM } else { NEW_BDSM }
    }

    /// GMCH with another size of stolen memory in it.
    pub(super) fn with_gms(self, gmch: u16, gms: u8) -> Result<u16, GmsError> {
        let error = |allowed| GmsError {
            gms,
            generation: self.0,
            allowed,
        };
        let (mask, shift) = if self.0 < 8 { (0x1f, 3) } else { (0xff, 8) };
        match (self.0, gms) {
            (..8, 0..=0x10) | (8.., 0..=0x40) | (9.., 0xf0..=0xfe) => {}
            (..8, _) => return Err(error("0 to 0x10")),
            (8, _) => return Err(error("0 to 0x40")),
            _ => return Err(error("0 to 0x40, and 0xf0 to 0xfe")),
        }
        Ok(gmch & !(mask << shift) | u16::from(gms) << shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_each_generation() {
        for (id, generation) in [
            (0x0102, 6),
            (0x0152, 6),
            (0x0412, 7),
            (0x0f31, 7),
            (0x0a16, 7),
            (0x0a84, 9),
            (0x1616, 8),
            (0x22b1, 8),
            (0x1912, 9),
            (0x5916, 9),
            (0x5a84, 9),
            (0x5a85, 9),
            (0x3e92, 9),
            (0x87c0, 9),
            (0x87ca, 9),
            (0x9bc8, 9),
            (0x8a52, 11),
            (0x4e61, 11),
            (0x9a49, 12),
            (0x4680, 12),
            (0xa780, 12),
        ] {
            assert_eq!(Generation::of(id), Some(Generation(generation)), "{id:#x}");
        }
        for unknown in [0x56a0, 0x2e32, 0x7d55, 0x1111] {
            assert_eq!(Generation::of(unknown), None, "{unknown:#x}");
        }
    }

    #[test]
    fn stolen_memory() {
        let generation = |n| Generation(n);
        assert_eq!(generation(6).with_gms(0xffff, 2), Ok(0xff17));
        assert_eq!(generation(8).with_gms(0x01c1, 0x40), Ok(0x40c1));
        assert_eq!(generation(9).with_gms(0x01c1, 0xfe), Ok(0xfec1));
        for (n, gms) in [
            (6, 0x11),
            (7, 0xff),
            (8, 0x41),
            (8, 0xf0),
            (9, 0x41),
            (12, 0xff),
        ] {
            let error = generation(n).with_gms(0, gms).unwrap_err();
            assert!(error.to_string().contains("knows 0 to"), "{error}");
        }
        assert_eq!(generation(9).bdsm(), Bdsm { at: 0x5c, size: 4 });
        assert_eq!(generation(11).bdsm(), Bdsm { at: 0xc0, size: 8 });
    }
}
