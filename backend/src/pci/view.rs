// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest shall see of a device, as the operator said: applied to the composed config space once, when
//! the function is made. Knows nothing of the command line's text beyond its numbers.

use std::path::PathBuf;

use super::clique::{Clique, CliqueError};
use super::registers::PCI_CAP_ID_VNDR;
use super::{ConfigSpace, IdentityOverrides, Policy, PolicyError};
use crate::quirks::igd::IgdView;

/// Where the expansion ROM comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RomView {
    /// The device, if it has a sound one.
    #[default]
    Device,
    /// This file.
    File(PathBuf),
    /// There is none.
    Off,
}

/// The operator's choices. The default shows the device as it is, without what no guest should drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestView {
    /// Ids and class to show instead of the device's own.
    pub identity: IdentityOverrides,
    /// Show ATS, PRI and PASID.
    pub ats: bool,
    /// What is shown of Intel graphics; applied by [`crate::quirks`].
    pub igd: IgdView,
    /// Where the expansion ROM comes from; seen to by [`crate::function`].
    pub rom: RomView,
    /// The NVIDIA GPUDirect P2P clique that the GPU is in.
    pub nvidia_clique: Option<Clique>,
}

/// Why the guest cannot be shown that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// It cannot be in an NVIDIA clique.
    #[error("NVIDIA GPUDirect clique refused")]
    Clique(#[from] CliqueError),
    /// A capability finds no place.
    #[error("Capabilities of the device")]
    Policy(#[from] PolicyError),
}

impl GuestView {
    /// Makes of `config` what the guest sees.
    ///
    /// # Errors
    /// [`ViewError`]; nothing is applied by halves, since the space that went in is gone.
    pub fn apply(&self, mut config: ConfigSpace) -> Result<ConfigSpace, ViewError> {
        self.identity.apply(&mut config);
        let mut policy = Policy::for_guests(self.ats);
        if let Some(clique) = self.nvidia_clique {
            // What the guest sees decides, overridden or not, since its driver sees nothing else.
            let place = Clique::place(&config)?;
            policy
                .insert
                .push((PCI_CAP_ID_VNDR, place, clique.registers()));
        }
        policy.apply(&mut config)?;
        Ok(config)
    }
}
