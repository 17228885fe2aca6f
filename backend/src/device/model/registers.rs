// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR4: the register map of the model GPU's engine. This is the place that defines it.
//!
//! Little endian. A register takes naturally aligned accesses of its own width; one of 8 bytes also takes
//! two of 4. Everything else reads as 0 and is ignored when written.
//!
//! ```text
//!  offset  name           width  access
//!  0x0000  ID             u32    RO    0x55504756, "VGPU" in memory order
//!  0x0004  VERSION        u32    RO    0x00010000
//!  0x0008  CAPS           u32    RO    31:16 vectors | 1 fill | 0 copy
//!  0x000c  SCRATCH        u32    RW
//!  0x0010  VRAM_SIZE      u64    RO    bytes
//!  0x0020  SRC            u64    RW    VRAM offset or guest IOVA, see COMMAND
//!  0x0028  DST            u64    RW    VRAM offset or guest IOVA
//!  0x0030  LEN            u64    RW    bytes
//!  0x0038  FILL           u32    RW    pattern, repeated little endian from DST on
//!  0x003c  COMMAND        u32    RW
//!            31      24 23            16 15    9   8   7  6    5        4     3         0
//!           ├──────────┼────────────────┼───────┼─────┼─────┼────────┼────────┼───────────┤
//!           │ ignored  │ vector of event│ ignor.│event│ ign.│DST VRAM│SRC VRAM│ operation │
//!           └──────────┴────────────────┴───────┴─────┴─────┴────────┴────────┴───────────┘
//!            operation: 1 copy, 2 fill; event: raise one on completion
//!  0x0040  DOORBELL       u32    WO    any value starts the command, as SRC to COMMAND stand now
//!  0x0044  STATUS         u32    RO    15:8 error code | 2 ERROR | 1 DONE | 0 BUSY
//!  0x0048  COMPLETED      u64    RO    bytes moved by the last command, so far
//!  0x0050  FAULT_ADDRESS  u64    RO    IOVA of a DMA fault, offset of lost VRAM
//!  0x0058  FENCE          u32    RO    commands finished since reset, also failed ones; wraps
//!  0x0060  INT_STATUS     u32    RW1C  bit n: an event on vector n
//!  0x0064  INT_ENABLE     u32    RW    bit n: vector n interrupts
//!  0x0068  INT_RAISE      u32    WO    events on these vectors, as if the device had them
//!  0x2000  MSI-X table, 8 entries      served in front of the device
//!  0x3000  MSI-X pending bits          served in front of the device
//! ```
//!
//! A command that cannot start finishes at once, with an error. A doorbell while BUSY starts nothing and
//! sets ERROR and code 5 beside BUSY; the command that runs goes on, counts alone in FENCE, and leaves
//! that error standing unless it has one of its own. The next doorbell that is heard clears it.
//!
//! An event sets its bit of INT_STATUS, and sends its message (MSI, MSI-X) if the bit of INT_ENABLE is set
//! then; enabling it later sends none. INTx is asserted while INT_STATUS & INT_ENABLE is not 0. Bits of
//! vectors that do not exist read as 0.
//!
//! A device that is stopped to migrate starts no chunk of a command and sends no interrupt. A command that was
//! under way stays BUSY and goes on where it was, at the destination as at a source that runs again.
//!
//! Copies between ranges of one memory that overlap give unspecified contents where DST lies above SRC:
//! they go from the lowest address up, in pieces. Everything resets to 0 but the constants.

use super::command::{Command, Failure};

/// Bytes of BAR4.
pub const BAR_SIZE: u64 = 0x4000;
/// Interrupt vectors, MSI and MSI-X alike.
pub const VECTORS: u16 = 8;
/// Where the MSI-X table is in BAR4.
pub const MSIX_TABLE: u32 = 0x2000;
/// Where the MSI-X pending bits are in BAR4.
pub const MSIX_PBA: u32 = 0x3000;

/// Value of ID.
pub const ID_VALUE: u32 = u32::from_le_bytes(*b"VGPU");
/// Value of VERSION.
pub const VERSION_VALUE: u32 = 0x0001_0000;
/// Value of CAPS.
pub const CAPS_VALUE: u32 = caps::COPY | caps::FILL | ((VECTORS as u32) << caps::VECTORS_SHIFT);

pub(super) const VECTOR_BITS: u32 = (1 << VECTORS) - 1;

/// Offsets of the registers in BAR4, in bytes.
pub mod offset {
    #![allow(missing_docs, reason = "the drawing above describes each")]

    pub const ID: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const CAPS: u64 = 0x008;
    pub const SCRATCH: u64 = 0x00c;
    pub const VRAM_SIZE: u64 = 0x010;
    pub const SRC: u64 = 0x020;
    pub const DST: u64 = 0x028;
    pub const LEN: u64 = 0x030;
    pub const FILL: u64 = 0x038;
    pub const COMMAND: u64 = 0x03c;
    pub const DOORBELL: u64 = 0x040;
    pub const STATUS: u64 = 0x044;
    pub const COMPLETED: u64 = 0x048;
    pub const FAULT_ADDRESS: u64 = 0x050;
    pub const FENCE: u64 = 0x058;
    pub const INT_STATUS: u64 = 0x060;
    pub const INT_ENABLE: u64 = 0x064;
    pub const INT_RAISE: u64 = 0x068;
}

/// Bits of CAPS.
pub mod caps {
    /// The engine copies.
    pub const COPY: u32 = 1 << 0;
    /// The engine fills.
    pub const FILL: u32 = 1 << 1;
    /// Where the number of vectors begins.
    pub const VECTORS_SHIFT: u32 = 16;
}

/// Bits of COMMAND.
pub mod command {
    /// The operation.
    pub const OPERATION: u32 = 0xf;
    /// Operation: copy LEN bytes from SRC to DST.
    pub const COPY: u32 = 1;
    /// Operation: fill LEN bytes at DST.
    pub const FILL: u32 = 2;
    /// SRC is an offset in VRAM, not a guest IOVA.
    pub const SRC_VRAM: u32 = 1 << 4;
    /// DST is an offset in VRAM, not a guest IOVA.
    pub const DST_VRAM: u32 = 1 << 5;
    /// Raise an event on completion.
    pub const EVENT: u32 = 1 << 8;
    /// Where the vector of the event begins.
    pub const VECTOR_SHIFT: u32 = 16;
    /// The vector of the event, shifted down.
    pub const VECTOR: u32 = 0xff;
}

/// Bits of STATUS.
pub mod status {
    /// A command runs.
    pub const BUSY: u32 = 1 << 0;
    /// The last command finished.
    pub const DONE: u32 = 1 << 1;
    /// It failed, or a doorbell was refused.
    pub const ERROR: u32 = 1 << 2;
    /// Where the error code begins.
    pub const CODE_SHIFT: u32 = 8;
    /// The error code, shifted down; see [`super::ErrorCode`].
    pub const CODE: u32 = 0xff;
}

/// Error codes of STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCode {
    /// The operation or the vector does not exist.
    BadCommand = 1,
    /// A range is not inside VRAM, or the file behind VRAM was truncated.
    OutsideVram = 2,
    /// Guest memory could not be accessed at FAULT_ADDRESS.
    DmaFault = 3,
    /// The command needs guest memory and bus mastering is off.
    BusMasterOff = 4,
    /// The doorbell was rung while a command ran.
    DoorbellWhileBusy = 5,
}

/// What the caller must see to after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Start the command.
    Doorbell,
    /// The interrupt registers changed; these vectors are to send their messages.
    Interrupts {
        /// One bit a vector.
        messages: u32,
    },
}

/// The registers: plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    vram_size: u64,
    pub(super) scratch: u32,
    pub(super) src: u64,
    pub(super) dst: u64,
    pub(super) len: u64,
    pub(super) fill: u32,
    pub(super) command: u32,
    pub(super) status: u32,
    pub(super) completed: u64,
    pub(super) fault_address: u64,
    pub(super) fence: u32,
    pub(super) int_status: u32,
    pub(super) int_enable: u32,
}

impl Registers {
    /// The power-on state of a device with this much VRAM.
    #[must_use]
    pub fn new(vram_size: u64) -> Self {
        Self {
            vram_size,
            ..Self::default()
        }
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        *self = Self::new(self.vram_size);
    }

    /// Reads any range.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            *data = self.word(offset).to_le_bytes();
        } else if let Ok(data) = <&mut [u8; 8]>::try_from(&mut *data) {
            *data = self.wide(offset).unwrap_or(0).to_le_bytes();
        } else {
            data.fill(0);
        }
    }

    fn word(&self, offset: u64) -> u32 {
        match offset {
            offset::ID => ID_VALUE,
            offset::VERSION => VERSION_VALUE,
            offset::CAPS => CAPS_VALUE,
            offset::SCRATCH => self.scratch,
            offset::FILL => self.fill,
            offset::COMMAND => self.command,
            offset::STATUS => self.status,
            offset::FENCE => self.fence,
            offset::INT_STATUS => self.int_status,
            offset::INT_ENABLE => self.int_enable,
            _ => {
                let [low, high] = halves(self.wide(offset & !7).unwrap_or(0));
                match offset % 8 {
                    0 => low,
                    4 => high,
                    _ => 0,
                }
            }
        }
    }

    fn wide(&self, offset: u64) -> Option<u64> {
        Some(match offset {
            offset::VRAM_SIZE => self.vram_size,
            offset::SRC => self.src,
            offset::DST => self.dst,
            offset::LEN => self.len,
            offset::COMPLETED => self.completed,
            offset::FAULT_ADDRESS => self.fault_address,
            _ => return None,
        })
    }

    fn wide_mut(&mut self, offset: u64) -> Option<&mut u64> {
        Some(match offset {
            offset::SRC => &mut self.src,
            offset::DST => &mut self.dst,
            offset::LEN => &mut self.len,
            _ => return None,
        })
    }

    /// Writes any range.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Ok(data) = <[u8; 4]>::try_from(data) {
            return self.write_word(offset, u32::from_le_bytes(data));
        }
        if let (Ok(data), Some(register)) = (<[u8; 8]>::try_from(data), self.wide_mut(offset)) {
            *register = u64::from_le_bytes(data);
        }
        Effect::None
    }

    fn write_word(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            offset::SCRATCH => self.scratch = value,
            offset::FILL => self.fill = value,
            offset::COMMAND => self.command = value,
            offset::DOORBELL => return Effect::Doorbell,
            offset::INT_STATUS => {
                self.int_status &= !value;
                return Effect::Interrupts { messages: 0 };
            }
            offset::INT_ENABLE => {
                self.int_enable = value & VECTOR_BITS;
                return Effect::Interrupts { messages: 0 };
            }
            offset::INT_RAISE => {
                let messages = self.raise(value);
                return Effect::Interrupts { messages };
            }
            _ => {
                if let Some(register) = self.wide_mut(offset & !7) {
                    let [low, high] = halves(*register);
                    *register = match offset % 8 {
                        0 => join(value, high),
                        4 => join(low, value),
                        _ => *register,
                    };
                }
            }
        }
        Effect::None
    }

    /// Events on these vectors; those that are to send a message.
    fn raise(&mut self, vectors: u32) -> u32 {
        let vectors = vectors & VECTOR_BITS;
        self.int_status |= vectors;
        vectors & self.int_enable
    }

    /// Whether INTx is asserted.
    #[must_use]
    pub fn level(&self) -> bool {
        self.int_status & self.int_enable != 0
    }

    /// Takes note of a doorbell: the command to run, if there is one and it may start.
    ///
    /// # Errors
    /// The vectors that are to send a message because the command is finished already.
    pub fn doorbell(&mut self, bus_master: bool) -> Result<Command, u32> {
        if self.status & status::BUSY != 0 {
            self.set_error(ErrorCode::DoorbellWhileBusy);
            return Err(0);
        }
        self.completed = 0;
        self.fault_address = 0;
        self.status = status::BUSY;
        let (event, command) = Command::decode(self, self.vram_size);
        match command {
            Ok(command) if command.needs_bus_master() && !bus_master => {
                Err(self.finish(event, Err(Failure::new(ErrorCode::BusMasterOff))))
            }
            Ok(command) => Ok(command),
            Err(failure) => Err(self.finish(event, Err(failure))),
        }
    }

    /// Takes note of how far the command is.
    pub fn progress(&mut self, completed: u64) {
        self.completed = completed;
    }

    /// Takes note of the end of the command; the vectors that are to send a message.
    pub fn finish(&mut self, event: Option<u32>, result: Result<(), Failure>) -> u32 {
        self.status = (self.status & !status::BUSY) | status::DONE;
        if let Err(failure) = result {
            self.set_error(failure.code);
            self.fault_address = failure.address;
        }
        self.fence = self.fence.wrapping_add(1);
        event
            .and_then(|vector| 1_u32.checked_shl(vector))
            .map_or(0, |bit| self.raise(bit))
    }

    fn set_error(&mut self, code: ErrorCode) {
        let keep = self.status & (status::BUSY | status::DONE);
        self.status = keep | status::ERROR | (u32::from(code as u8) << status::CODE_SHIFT);
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

fn join(low: u32, high: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read4(registers: &Registers, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read8(registers: &Registers, offset: u64) -> u64 {
        let mut data = [0xee; 8];
        registers.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write4(registers: &mut Registers, offset: u64, value: u32) -> Effect {
        registers.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn constants() {
        let registers = Registers::new(1 << 32);
        let mut id = [0; 4];
        registers.read(offset::ID, &mut id);
        assert_eq!(&id, b"VGPU");
        assert_eq!(read4(&registers, 0), 0x5550_4756);
        assert_eq!(read4(&registers, 4), 0x0001_0000);
        assert_eq!(read4(&registers, 8), 0x0008_0003);
        assert_eq!(read8(&registers, 0x10), 1 << 32);
        assert_eq!(read4(&registers, 0x14), 1);
    }

    #[test]
    fn wide_registers_take_one_or_two_accesses() {
        let mut registers = Registers::new(0);
        for offset in [offset::SRC, offset::DST, offset::LEN] {
            registers.write(offset, &0x1122_3344_5566_7788_u64.to_le_bytes());
            assert_eq!(read4(&registers, offset), 0x5566_7788);
            assert_eq!(read4(&registers, offset + 4), 0x1122_3344);
            write4(&mut registers, offset, 1);
            write4(&mut registers, offset + 4, 2);
            assert_eq!(read8(&registers, offset), 0x2_0000_0001);
        }
    }

    #[test]
    fn other_accesses_read_zero_and_do_nothing() {
        let mut registers = Registers::new(1 << 20);
        write4(&mut registers, offset::SCRATCH, 0xdead_beef);
        let before = registers.clone();
        for (offset, len) in [
            (offset::SCRATCH, 1),
            (offset::SCRATCH, 2),
            (offset::SCRATCH + 1, 4),
            (offset::CAPS, 8),
            (offset::FILL, 8),
            (offset::SRC + 4, 8),
            (offset::SRC + 2, 4),
            (offset::SRC, 16),
            (offset::DOORBELL, 2),
            (u64::MAX, 4),
            (u64::MAX - 7, 8),
            (0x1000, 4),
            (0, 0),
        ] {
            let mut data = vec![0xee; len];
            registers.read(offset, &mut data);
            assert_eq!(data, vec![0; len], "{offset:#x} {len}");
            assert_eq!(registers.write(offset, &vec![0xff; len]), Effect::None);
            assert_eq!(registers, before, "{offset:#x} {len}");
        }
        for offset in [offset::ID, offset::STATUS, offset::VRAM_SIZE, offset::FENCE] {
            assert_eq!(write4(&mut registers, offset, u32::MAX), Effect::None);
            assert_eq!(registers, before);
        }
    }

    #[test]
    fn events_interrupt_while_enabled() {
        let mut registers = Registers::new(0);
        let messages = |messages| Effect::Interrupts { messages };
        assert_eq!(
            write4(&mut registers, offset::INT_RAISE, 0xffff_ff05),
            messages(0)
        );
        assert_eq!(read4(&registers, offset::INT_STATUS), 5, "8 vectors");
        assert!(!registers.level());
        assert_eq!(
            write4(&mut registers, offset::INT_ENABLE, u32::MAX),
            messages(0)
        );
        assert_eq!(read4(&registers, offset::INT_ENABLE), 0xff);
        assert!(registers.level());
        assert_eq!(write4(&mut registers, offset::INT_RAISE, 6), messages(6));
        write4(&mut registers, offset::INT_STATUS, 5);
        assert_eq!(read4(&registers, offset::INT_STATUS), 2);
        write4(&mut registers, offset::INT_STATUS, 2);
        assert!(!registers.level());
    }

    #[test]
    fn a_doorbell_while_busy_is_told_and_does_not_count() {
        let mut registers = Registers::new(1 << 20);
        write4(
            &mut registers,
            offset::COMMAND,
            command::FILL | command::DST_VRAM,
        );
        registers.doorbell(false).unwrap();
        assert_eq!(read4(&registers, offset::STATUS), status::BUSY);
        assert_eq!(registers.doorbell(false), Err(0));
        assert_eq!(read4(&registers, offset::STATUS), 0x505);
        registers.finish(None, Ok(()));
        assert_eq!(read4(&registers, offset::STATUS), 0x506);
        assert_eq!(read4(&registers, offset::FENCE), 1);
        registers.doorbell(false).unwrap();
        registers.finish(None, Ok(()));
        assert_eq!(read4(&registers, offset::STATUS), status::DONE);
        registers.reset();
        assert_eq!(registers, Registers::new(1 << 20));
    }

    #[test]
    fn a_command_that_cannot_start_finishes_at_once_with_its_event() {
        let mut registers = Registers::new(1 << 20);
        write4(&mut registers, offset::INT_ENABLE, 0xff);
        for (command, messages, code) in [
            (command::EVENT | (3 << 16) | 7, 8, ErrorCode::BadCommand),
            (
                command::EVENT | (8 << 16) | command::FILL | command::DST_VRAM,
                0,
                ErrorCode::BadCommand,
            ),
            (command::EVENT | command::FILL, 1, ErrorCode::BusMasterOff),
        ] {
            write4(&mut registers, offset::COMMAND, command);
            assert_eq!(registers.doorbell(false), Err(messages));
            let expected = (u32::from(code as u8) << 8) | status::DONE | status::ERROR;
            assert_eq!(read4(&registers, offset::STATUS), expected);
        }
        assert_eq!(read4(&registers, offset::FENCE), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_panics_and_constants_stay(
            writes in prop::collection::vec(
                (prop_oneof![0_u64..0x80, any::<u64>()], prop::collection::vec(any::<u8>(), 0..12)),
                0..40,
            )
        ) {
            let mut registers = Registers::new(1 << 26);
            for (offset, data) in writes {
                if registers.write(offset, &data) == Effect::Doorbell
                    && let Ok(command) = registers.doorbell(true)
                {
                    registers.finish(command.event, Ok(()));
                }
                let mut back = data;
                registers.read(offset, &mut back);
                prop_assert_eq!(read4(&registers, offset::ID), ID_VALUE);
                prop_assert_eq!(read8(&registers, offset::VRAM_SIZE), 1 << 26);
                prop_assert_eq!(read4(&registers, offset::INT_STATUS) & !VECTOR_BITS, 0);
            }
        }
    }
}
