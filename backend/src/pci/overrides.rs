// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ids and class that the guest sees instead of the device's own, within the limits that QEMU has for the same.

use super::{ConfigSpace, registers::*};

/// What to show instead; `None` leaves the device's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityOverrides {
    /// Vendor.
    pub vendor_id: Option<VendorId>,
    /// Device.
    pub device_id: Option<Id>,
    /// Vendor of the board.
    pub subsystem_vendor_id: Option<Id>,
    /// Board.
    pub subsystem_id: Option<Id>,
    /// Base class, subclass and programming interface.
    pub class: Option<ClassCode>,
}

/// Why a number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be {min:#x} to {max:#x}, in hexadecimal (0x10de) or decimal")]
pub struct NumberError {
    min: u32,
    max: u32,
}

/// Declares a number that is parsed and kept inside its range.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(u32);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NumberError;

            fn from_str(text: &str) -> Result<Self, NumberError> {
                parse(text, $max).map(Self)
            }
        }
    };
}

number! {
    /// A vendor id; 0xffff is no device.
    VendorId, 0xfffe
}
number! {
    /// A device or subsystem id.
    Id, 0xffff
}
number! {
    /// A class code of 24 bits: 0x030000 is a VGA controller, 0x030200 a 3D controller.
    ClassCode, 0xff_ffff
}

/// A number up to `max`, in hexadecimal after `0x`, else in decimal.
fn parse(text: &str, max: u32) -> Result<u32, NumberError> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = hexadecimal.map_or((text, 10), |digits| (digits, 16));
    // The standard parser would take a sign.
    let plain = !digits.starts_with(['+', '-']);
    let number = u32::from_str_radix(digits, radix).ok();
    let number = number.filter(|number| plain && *number <= max);
    number.ok_or(NumberError { min: 0, max })
}

impl IdentityOverrides {
    /// Puts them in place of what the device says.
    pub(super) fn apply(&self, config: &mut ConfigSpace) {
        let words = [
            (PCI_VENDOR_ID, self.vendor_id.map(VendorId::get)),
            (PCI_DEVICE_ID, self.device_id.map(Id::get)),
            (
                PCI_SUBSYSTEM_VENDOR_ID,
                self.subsystem_vendor_id.map(Id::get),
            ),
            (PCI_SUBSYSTEM_ID, self.subsystem_id.map(Id::get)),
        ];
        for (at, word) in words {
            if let Some([low, high, ..]) = word.map(u32::to_le_bytes) {
                config.compose_bytes(at, &[low, high]);
            }
        }
        if let Some([a, b, c, _]) = self.class.map(|class| class.get().to_le_bytes()) {
            config.compose_bytes(PCI_CLASS_PROG, &[a, b, c]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{ConfigSpaceBuilder, DeviceSizes, Identity};

    #[test]
    fn numbers_are_hexadecimal_or_decimal_and_in_range() {
        let get = |text: &str| text.parse::<VendorId>().map(VendorId::get);
        assert_eq!(get("0x10de"), Ok(0x10de));
        assert_eq!(get("0X10DE"), Ok(0x10de));
        assert_eq!(get("4318"), Ok(0x10de));
        assert_eq!(get("0"), Ok(0));
        assert_eq!(get("0xfffe"), Ok(0xfffe));
        assert_eq!("65535".parse::<Id>().map(Id::get), Ok(0xffff));
        let class = "0xffffff".parse::<ClassCode>().map(ClassCode::get);
        assert_eq!(class, Ok(0xff_ffff));
        for bad in [
            "",
            "0x",
            "10de",
            "0xffff",
            "65535",
            "-1",
            "+1",
            "0x+1",
            " 1",
            "1 ",
            "1e3",
            "99999999999",
        ] {
            assert!(get(bad).is_err(), "{bad:?}");
        }
        assert!("0x10000".parse::<Id>().is_err());
        assert!("0x1000000".parse::<ClassCode>().is_err());
        let error = get("0xffff").unwrap_err().to_string();
        assert!(error.contains("0x0 to 0xfffe"), "{error}");
    }

    #[test]
    fn what_is_overridden_is_ours_and_the_rest_the_devices() {
        let overrides = IdentityOverrides {
            vendor_id: Some(VendorId(0x10de)),
            subsystem_id: Some(Id(0x1234)),
            class: Some(ClassCode(0x03_0200)),
            ..IdentityOverrides::default()
        };
        let own = Identity {
            vendor_id: 0x8086,
            device_id: 0x1912,
            revision: 6,
            class_code: 0x03_0000,
            subsystem_vendor_id: 0x1028,
            subsystem_id: 0x0001,
        };
        let wanted = Identity {
            vendor_id: 0x10de,
            subsystem_id: 0x1234,
            class_code: 0x03_0200,
            ..own
        };
        let mut built = ConfigSpaceBuilder::new(own).build().unwrap();
        let mut live = ConfigSpace::from_device(built.bytes(), &DeviceSizes::default()).unwrap();
        let hardware = built.bytes().to_vec();
        for config in [&mut built, &mut live] {
            overrides.apply(config);
            assert_eq!(config.identity(), wanted);
            config.reset();
            config.refresh(&hardware);
            assert_eq!(config.identity(), wanted, "after a reset");
        }
        let mut read = hardware;
        live.compose_over(0, &mut read).unwrap();
        assert_eq!(read[..4], [0xde, 0x10, 0x12, 0x19]);
        assert_eq!(read[8..12], [6, 0, 2, 3]);
    }
}
