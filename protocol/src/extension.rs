// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What this project adds to the protocol, under the capability `x_vfio_user_gpu`.
//!
//! The client offers `"x_vfio_user_gpu": {"version": 1, "features": [...]}`; the server answers the
//! subset it grants, and only then is a feature's command valid. Numbers start at 0x8000. What concerns
//! migration is in [`migration`].
//!
//! ## `describe` (no command)
//!
//! The server's answer holds `"device": {"name": "value", ...}` beside the features: what it serves, how it
//! got it, which policies apply. For people; nothing is to be decided by it.
//!
//! ## `irq_routes` (command 0x8000, server to client, on the twin socket)
//!
//! Tells where the guest wants each MSI or MSI-X vector delivered, so that a client without PCI code can
//! set its irqfd routes. Sent while the guest's write is being handled; the write is answered only after
//! the client's (header-only) reply, so a route is never late. A device that was kept from an earlier client
//! may have routes already: they are told right after the reply to VERSION.
//!
//! ```text
//!  0        4        8        12       16
//!  +--------+--------+--------+--------+----------------------+-----
//!  | argsz  | index  | start  | count  | count x IrqRoute     | ...
//!  +--------+--------+--------+--------+----------------------+-----
//! ```

pub mod migration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::codec::{DecodeError, Reader, check_length, wire_u32};

/// The version of the extension spoken here.
pub const VERSION: u64 = 1;
/// The capability key.
pub const KEY: &str = "x_vfio_user_gpu";
/// The feature that [`IrqRoutes`] belongs to. Needs the twin socket.
pub const IRQ_ROUTES: &str = "irq_routes";

/// The feature by which the server says in VERSION what it serves: names and values, for people.
pub const DESCRIBE: &str = "describe";

/// The guest enabled this vector; without it the other fields mean nothing.
pub const ROUTE_ENABLED: u32 = 1 << 0;
/// The guest masked it; the server holds its events back and keeps its pending bit.
pub const ROUTE_MASKED: u32 = 1 << 1;

/// The fixed part of IRQ_ROUTES.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqRoutes {
    /// Bytes of this structure and the routes after it.
    pub argsz: u32,
    /// The interrupt index: MSI (1) or MSI-X (2).
    pub index: u32,
    /// The first vector told of.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Where one vector goes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqRoute {
    /// The message address.
    pub address: u64,
    /// The message data.
    pub data: u32,
    /// [`ROUTE_ENABLED`], [`ROUTE_MASKED`].
    pub flags: u32,
}

impl IrqRoutes {
    /// The fixed part for `count` routes from `start`.
    #[must_use]
    pub fn new(index: u32, start: u32, count: usize) -> Self {
        let argsz = size_of::<Self>().saturating_add(count.saturating_mul(size_of::<IrqRoute>()));
        Self {
            argsz: wire_u32(argsz),
            index,
            start,
            count: wire_u32(count),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`DecodeError`] if the routes are not as many as announced.
    pub fn decode(body: &[u8]) -> Result<(Self, Vec<IrqRoute>), DecodeError> {
        let mut reader = Reader::new(body);
        let fixed: Self = reader.take("irq_routes")?;
        let size = u64::from(fixed.count) * size_of::<IrqRoute>() as u64;
        check_length("irq_routes.count", size, reader.rest().len())?;
        let mut routes = Vec::with_capacity(reader.rest().len() / size_of::<IrqRoute>());
        while !reader.rest().is_empty() {
            routes.push(reader.take("irq_route")?);
        }
        Ok((fixed, routes))
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn routes_round_trip() {
        let routes = [
            IrqRoute {
                address: 0xfee0_1004,
                data: 0x41,
                flags: ROUTE_ENABLED,
            },
            IrqRoute {
                address: 0xfee0_2004,
                data: 0x42,
                flags: ROUTE_ENABLED | ROUTE_MASKED,
            },
        ];
        let fixed = IrqRoutes::new(2, 3, routes.len());
        assert_eq!(fixed.argsz, 48);
        let bytes = [fixed.as_bytes(), routes.as_bytes()].concat();
        assert_eq!(IrqRoutes::decode(&bytes), Ok((fixed, routes.to_vec())));
        assert!(IrqRoutes::decode(&bytes[..47]).is_err());
        assert!(IrqRoutes::decode(&bytes[..15]).is_err());
    }
}
