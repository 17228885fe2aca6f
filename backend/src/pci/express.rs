// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI Express capability of an endpoint, version 2. Slot and root registers stay zero.

use super::{CapabilityError, Register, RegisterBlock, registers::*};

/// Speed of a PCI Express link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSpeed {
    /// 2.5 GT/s.
    Gen1 = 1,
    /// 5 GT/s.
    Gen2,
    /// 8 GT/s.
    Gen3,
    /// 16 GT/s.
    Gen4,
    /// 32 GT/s.
    Gen5,
    /// 64 GT/s.
    Gen6,
}

/// The PCI Express capability of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Largest payload supported, in bytes: a power of two, 128 to 4096.
    pub max_payload: u16,
    /// Speed the link supports and runs at.
    pub link_speed: LinkSpeed,
    /// Lanes the link has and uses: 1, 2, 4, 8, 12, 16 or 32.
    pub link_width: u8,
    /// Offers function level reset.
    pub function_level_reset: bool,
}

impl Default for Express {
    /// A plausible GPU slot: x16 at 16 GT/s, 256-byte payload, function level reset.
    fn default() -> Self {
        Self {
            max_payload: 256,
            link_speed: LinkSpeed::Gen4,
            link_width: 16,
            function_level_reset: true,
        }
    }
}

impl Express {
    pub(super) fn registers(&self) -> Result<RegisterBlock, CapabilityError> {
        // Encodings by position: payload 128 << n.
        let payload = (0..=5_u32)
            .find(|n| 128_u32 << n == u32::from(self.max_payload))
            .ok_or(CapabilityError::MaxPayload(self.max_payload))?;
        if !matches!(self.link_width, 1 | 2 | 4 | 8 | 12 | 16 | 32) {
            return Err(CapabilityError::LinkWidth(self.link_width));
        }
        const VERSION_2_ENDPOINT: u16 = 2;
        // No limit on the exit latencies this endpoint accepts: it claims no power saving states.
        const LATENCIES: u32 = 7 << 6 | 7 << 9;
        const ASPM_OPTIONALITY: u32 = 1 << 22;
        const SLOT_CLOCK: u16 = 1 << 12;
        // Error reporting, relaxed ordering, extended tags, no snoop, read request size.
        const DEVCTL_WRITABLE: u32 = 0x791f;
        // Relaxed ordering and no snoop allowed, read requests of 512 bytes.
        const DEVCTL_RESET: u16 = 0x2810;
        // ASPM, read completion boundary, common clock, extended synch, autonomous width disable.
        const LNKCTL_WRITABLE: u32 = 0x02cb;
        // Target speed, enter compliance, autonomous speed disable.
        const LNKCTL2_WRITABLE: u32 = 0x003f;
        // All completion timeout ranges, and disabling it.
        const COMPLETION_TIMEOUT: u32 = 0x1f;

        let speed = self.link_speed as u16;
        let link = speed | u16::from(self.link_width) << 4;
        let speeds_up_to = ((1_u32 << speed) - 1) << 1;
        let payload_bits = u32::from(PCI_EXP_DEVCTL_PAYLOAD);
        let (devcap_flr, devctl_flr) = if self.function_level_reset {
            (PCI_EXP_DEVCAP_FLR, PCI_EXP_DEVCTL_BCR_FLR)
        } else {
            (0, 0)
        };
        Ok(RegisterBlock::new(
            PCI_EXP_SIZEOF_V2.into(),
            &[
                Register::word(PCI_EXP_FLAGS, VERSION_2_ENDPOINT),
                Register::dword(
                    PCI_EXP_DEVCAP,
                    payload | PCI_EXP_DEVCAP_EXT_TAG | LATENCIES | PCI_EXP_DEVCAP_RBER | devcap_flr,
                ),
                Register::word(PCI_EXP_DEVCTL, DEVCTL_RESET)
                    .writable(DEVCTL_WRITABLE | payload_bits)
                    .sticky(payload_bits)
                    .initiates_flr(devctl_flr.into()),
                Register::word(PCI_EXP_DEVSTA, 0).write_one_to_clear(0x000f),
                Register::dword(PCI_EXP_LNKCAP, u32::from(link) | ASPM_OPTIONALITY),
                Register::word(PCI_EXP_LNKCTL, 0)
                    .writable(LNKCTL_WRITABLE)
                    .sticky(LNKCTL_WRITABLE),
                Register::word(PCI_EXP_LNKSTA, link | SLOT_CLOCK),
                Register::dword(PCI_EXP_DEVCAP2, COMPLETION_TIMEOUT),
                Register::word(PCI_EXP_DEVCTL2, 0).writable(COMPLETION_TIMEOUT),
                Register::dword(PCI_EXP_LNKCAP2, speeds_up_to),
                Register::word(PCI_EXP_LNKCTL2, speed)
                    .writable(LNKCTL2_WRITABLE)
                    .sticky(LNKCTL2_WRITABLE),
            ],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(express: Express) -> Vec<u8> {
        let rules = express.registers().unwrap().into_rules();
        rules.iter().map(|rule| rule.reset).collect()
    }

    #[test]
    fn express_encodes_payload_speed_and_width() {
        let bytes = reset(Express::default());
        assert_eq!(bytes[4] & 7, 1, "256 bytes");
        assert_eq!(bytes[7] & 0x10, 0x10, "FLR");
        assert_eq!((bytes[0x0c], bytes[0x0d]), (0x04, 0x01), "x16 at 16 GT/s");
        assert_eq!(bytes[0x2c], 0x1e, "2.5 to 16 GT/s");
        let plain = Express {
            function_level_reset: false,
            ..Express::default()
        };
        assert_eq!(reset(plain)[7] & 0x10, 0);
        for (express, expected) in [
            (
                Express {
                    max_payload: 192,
                    ..plain
                },
                CapabilityError::MaxPayload(192),
            ),
            (
                Express {
                    link_width: 3,
                    ..plain
                },
                CapabilityError::LinkWidth(3),
            ),
        ] {
            assert_eq!(express.registers(), Err(expected));
        }
    }
}
