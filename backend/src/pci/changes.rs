// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a configuration write asks the caller to do. The values themselves are read back by the
//! typed getters.

use std::ops::{BitOr, BitOrAssign};

/// A set of subjects that a write changed. A write that leaves every value as it was changes
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes(u8);

impl Changes {
    /// Nothing to do.
    pub const NONE: Self = Self(0);
    /// A bit of the Command register changed: decoding, bus mastering or INTx disable.
    pub const COMMAND: Self = Self(1 << 0);
    /// Initiate Function Level Reset was written as 1, whether or not anything else changed.
    pub const FLR: Self = Self(1 << 1);
    /// The function entered another power state.
    pub const POWER_STATE: Self = Self(1 << 2);
    /// MSI enable, vector count, address, data or mask changed.
    pub const MSI: Self = Self(1 << 3);
    /// MSI-X enable or function mask changed.
    pub const MSIX: Self = Self(1 << 4);
    /// The address in a BAR changed. Bytes change one at a time: act only while decoding is
    /// enabled.
    pub const BARS: Self = Self(1 << 5);
    /// Address or enable of the expansion ROM changed.
    pub const ROM: Self = Self(1 << 6);

    /// Is there anything to do at all?
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// Are all of `other` in this set?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// See [`Self::COMMAND`].
    pub const fn command(self) -> bool {
        self.contains(Self::COMMAND)
    }

    /// See [`Self::FLR`].
    pub const fn flr(self) -> bool {
        self.contains(Self::FLR)
    }

    /// See [`Self::POWER_STATE`].
    pub const fn power_state(self) -> bool {
        self.contains(Self::POWER_STATE)
    }

    /// See [`Self::MSI`].
    pub const fn msi(self) -> bool {
        self.contains(Self::MSI)
    }

    /// See [`Self::MSIX`].
    pub const fn msix(self) -> bool {
        self.contains(Self::MSIX)
    }

    /// See [`Self::BARS`].
    pub const fn bars(self) -> bool {
        self.contains(Self::BARS)
    }

    /// See [`Self::ROM`].
    pub const fn rom(self) -> bool {
        self.contains(Self::ROM)
    }
}

impl BitOr for Changes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
