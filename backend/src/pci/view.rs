// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest shall see of a device, as the operator said: applied to the composed config space once, when
//! the function is made. Knows nothing of the command line's text beyond its numbers.

use super::{ConfigSpace, IdentityOverrides};
use crate::quirks::igd::IgdView;

/// The operator's choices. The default shows the device as it is, without what no guest should drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestView {
    /// Ids and class to show instead of the device's own.
    pub identity: IdentityOverrides,
    /// Show ATS, PRI and PASID.
    pub ats: bool,
    /// What is shown of Intel graphics; applied by [`crate::quirks`].
    pub igd: IgdView,
}

/// Why the guest cannot be shown that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {}

impl GuestView {
    /// Makes of `config` what the guest sees.
    ///
    /// # Errors
    /// [`ViewError`]; nothing is applied by halves, since the space that went in is gone.
    pub fn apply(&self, mut config: ConfigSpace) -> Result<ConfigSpace, ViewError> {
        self.identity.apply(&mut config);
        Ok(config)
    }
}
