// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_GET_IRQ_INFO (7) and DEVICE_SET_IRQS (8).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// IRQ info: eventfds can be armed.
pub const INFO_EVENTFD: u32 = 1 << 0;
/// IRQ info: vectors can be masked.
pub const INFO_MASKABLE: u32 = 1 << 1;
/// IRQ info: firing masks the vector.
pub const INFO_AUTOMASKED: u32 = 1 << 2;
/// IRQ info: vectors can only be armed as a whole set.
pub const INFO_NORESIZE: u32 = 1 << 3;

/// SET_IRQS: no data; the action is for the whole range.
pub const SET_DATA_NONE: u32 = 1 << 0;
/// SET_IRQS: one byte per vector says whether it is meant.
pub const SET_DATA_BOOL: u32 = 1 << 1;
/// SET_IRQS: one descriptor per vector, or none to take them away.
pub const SET_DATA_EVENTFD: u32 = 1 << 2;
/// SET_IRQS: mask.
pub const SET_ACTION_MASK: u32 = 1 << 3;
/// SET_IRQS: unmask.
pub const SET_ACTION_UNMASK: u32 = 1 << 4;
/// SET_IRQS: trigger, or arm with eventfds.
pub const SET_ACTION_TRIGGER: u32 = 1 << 5;
/// All kinds of data.
pub const SET_DATA_MASK: u32 = SET_DATA_NONE | SET_DATA_BOOL | SET_DATA_EVENTFD;
/// All actions.
pub const SET_ACTION_MASK_ALL: u32 = SET_ACTION_MASK | SET_ACTION_UNMASK | SET_ACTION_TRIGGER;

/// Request and reply of DEVICE_GET_IRQ_INFO.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`INFO_EVENTFD`] and the others; 0 in a request.
    pub flags: u32,
    /// The interrupt index asked for.
    pub index: u32,
    /// How many interrupts it has; 0 in a request.
    pub count: u32,
}

/// The fixed part of DEVICE_SET_IRQS; one byte per vector follows with [`SET_DATA_BOOL`]. The reply is a
/// header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SetIrqs {
    /// Bytes of this structure and the data after it.
    pub argsz: u32,
    /// One kind of data, one action.
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// The first vector.
    pub start: u32,
    /// How many; 0 takes the whole index away.
    pub count: u32,
}
