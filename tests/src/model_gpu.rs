// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model GPU from outside: what a driver writer would take from its documentation. Written down here a second time
//! on purpose, so that a change of the backend's own map that breaks drivers breaks a test.

/// PCI vendor ID.
pub const VENDOR: u16 = 0x1234;
/// PCI device ID.
pub const DEVICE: u16 = 0x1111;
/// Subsystem vendor ID.
pub const SUBSYSTEM_VENDOR: u16 = 0x1af4;
/// Subsystem ID.
pub const SUBSYSTEM: u16 = 0x1100;
/// Class code: display controller, other.
pub const CLASS: u32 = 0x03_8000;
/// Revision ID.
pub const REVISION: u8 = 2;
/// Size of the VRAM (BAR0) unless told otherwise, in bytes.
pub const VRAM_SIZE: u64 = 64 << 20;
/// Size of the Bochs display interface (BAR2), in bytes.
pub const DISPLAY_SIZE: u64 = 4 << 10;
/// Size of the engine's registers (BAR4), in bytes.
pub const ENGINE_SIZE: u64 = 16 << 10;
/// MSI-X vectors.
pub const VECTORS: u16 = 8;
/// Place of the MSI-X table in BAR4.
pub const MSIX_TABLE: u64 = 0x2000;
/// Place of the MSI-X pending bits in BAR4.
pub const MSIX_PBA: u64 = 0x3000;

/// Registers of BAR4, by offset.
pub mod engine {
    /// RO, 32 bits: [`ID_VALUE`].
    pub const ID: u64 = 0x000;
    /// RO, 32 bits: [`VERSION_VALUE`].
    pub const VERSION: u64 = 0x004;
    /// RO, 32 bits: bit 0 copy, bit 1 fill, bits 31:16 number of vectors.
    pub const CAPS: u64 = 0x008;
    /// RW, 32 bits, no effect.
    pub const SCRATCH: u64 = 0x00c;
    /// RO, 64 bits: bytes of VRAM.
    pub const VRAM_SIZE: u64 = 0x010;
    /// RW, 64 bits: source address.
    pub const SRC: u64 = 0x020;
    /// RW, 64 bits: destination address.
    pub const DST: u64 = 0x028;
    /// RW, 64 bits: bytes to move.
    pub const LEN: u64 = 0x030;
    /// RW, 32 bits: fill pattern.
    pub const FILL: u64 = 0x038;
    /// RW, 32 bits: see the `COMMAND_` values.
    pub const COMMAND: u64 = 0x03c;
    /// WO, 32 bits: any write starts the command.
    pub const DOORBELL: u64 = 0x040;
    /// RO, 32 bits: see the `STATUS_` values.
    pub const STATUS: u64 = 0x044;
    /// RO, 64 bits: bytes moved by the last command.
    pub const COMPLETED: u64 = 0x048;
    /// RO, 64 bits: address of the last fault.
    pub const FAULT_ADDRESS: u64 = 0x050;
    /// RO, 32 bits: commands finished since reset.
    pub const FENCE: u64 = 0x058;
    /// RW1C, 32 bits: bit n = the event of vector n is pending.
    pub const INT_STATUS: u64 = 0x060;
    /// RW, 32 bits: the events that interrupt.
    pub const INT_ENABLE: u64 = 0x064;
    /// WO, 32 bits: raises events as the device would.
    pub const INT_RAISE: u64 = 0x068;

    /// What [`ID`] reads: "VGPU" in memory order.
    pub const ID_VALUE: u32 = 0x5550_4756;
    /// What [`VERSION`] reads.
    pub const VERSION_VALUE: u32 = 0x0001_0000;

    /// Copy [`SRC`] to [`DST`].
    pub const COMMAND_COPY: u32 = 1;
    /// Fill [`DST`] with [`FILL`].
    pub const COMMAND_FILL: u32 = 2;
    /// [`SRC`] is an offset in VRAM, not a guest address.
    pub const COMMAND_SRC_VRAM: u32 = 1 << 4;
    /// [`DST`] is an offset in VRAM, not a guest address.
    pub const COMMAND_DST_VRAM: u32 = 1 << 5;
    /// Raise an event on completion.
    pub const COMMAND_EVENT: u32 = 1 << 8;
    /// Position of the completion event's vector.
    pub const COMMAND_VECTOR_SHIFT: u32 = 16;

    /// A command runs.
    pub const STATUS_BUSY: u32 = 1 << 0;
    /// The last command is done.
    pub const STATUS_DONE: u32 = 1 << 1;
    /// The last command failed; bits 15:8 say why.
    pub const STATUS_ERROR: u32 = 1 << 2;

    /// The error code of a [`STATUS`] value.
    #[must_use]
    pub const fn error_code(status: u32) -> u32 {
        status >> 8 & 0xff
    }
    /// Error code: outside VRAM.
    pub const ERROR_VRAM_RANGE: u32 = 2;
    /// Error code: a guest address that is not mapped.
    pub const ERROR_DMA_FAULT: u32 = 3;
    /// Error code: bus mastering is off.
    pub const ERROR_BUS_MASTER: u32 = 4;
}

/// The Bochs display interface in BAR2: 16-bit registers, two bytes apart, and where they start.
pub mod dispi {
    /// Offset of register 0 in BAR2.
    pub const BASE: u64 = 0x500;
    /// Interface version.
    pub const ID: u64 = 0;
    /// Horizontal resolution in pixels.
    pub const XRES: u64 = 1;
    /// Vertical resolution in pixels.
    pub const YRES: u64 = 2;
    /// Bits per pixel.
    pub const BPP: u64 = 3;
    /// Bit 0: the display is on.
    pub const ENABLE: u64 = 4;
    /// Pixels per line in memory.
    pub const VIRT_WIDTH: u64 = 6;
    /// First column shown.
    pub const X_OFFSET: u64 = 8;
    /// First line shown.
    pub const Y_OFFSET: u64 = 9;
}
