// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who has the last word on a device whose client leaves: the session, which knows what is to become of it, or
//! the main loop, once it waits no longer. Whoever speaks first.

use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Session,
    MainLoop,
}

/// The last word on one session.
#[derive(Debug, Default)]
pub(super) struct Ending(OnceLock<Speaker>);

impl Ending {
    fn speak(&self, speaker: Speaker) -> bool {
        *self.0.get_or_init(|| speaker) == speaker
    }

    /// The main loop ends the session: nothing more of it is carried out, and the device is reset, even one that was
    /// to be kept. False if the session has settled that.
    pub(super) fn end(&self) -> bool {
        self.speak(Speaker::MainLoop)
    }

    /// Whether the main loop has ended the session.
    pub(super) fn is_over(&self) -> bool {
        self.0.get() == Some(&Speaker::MainLoop)
    }

    /// The session has settled what becomes of the device. False if the main loop has.
    pub(super) fn settle(&self) -> bool {
        self.speak(Speaker::Session)
    }
}
