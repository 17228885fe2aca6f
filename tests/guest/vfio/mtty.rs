// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's sample serial port (samples/vfio-mdev/mtty.c) as a guest's driver sets it up, and what of that must be there
//! after a migration: registers, which its driver moves, and config space, which only the backend does.

use system_tests::{pci, raw_client::RawClient};

use super::backend::CONFIG;
use crate::{Outcome, check_eq};

/// Its I/O BAR.
pub const PORTS: u32 = 0;
/// A register that only keeps what is written (UART_SCR).
pub const SCRATCH: u64 = 7;
/// Line control (UART_LCR).
const LINE: u64 = 3;
/// In it: the first two registers are the divisor (UART_LCR_DLAB).
const DIVISOR_LATCH: u8 = 0x80;
/// Modem control (UART_MCR).
const MODEM: u64 = 4;
/// Which interrupts are enabled (UART_IER), and the bits of it that are read.
const INTERRUPTS: u64 = 1;
const INTERRUPT_BITS: u8 = 0xf;
/// Decoding of I/O ports, the only bit that this device's command register has; always set in the device itself.
const COMMAND_IO: u16 = 1;
/// In a BAR: of I/O space.
const BAR_IO: u32 = 1;

/// What a guest sets up, and none of it is so at power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    bar: u32,
    interrupt_line: u8,
    line: u8,
    divisor: [u8; 2],
    modem: u8,
    interrupts: u8,
    scratch: u8,
}

impl Settings {
    /// Others for a `seed` and for its complement; none is 0 where the seed has bits in both halves.
    fn of(seed: u8) -> Self {
        Self {
            bar: 0xc000 | u32::from(seed) << 4,
            interrupt_line: seed.rotate_left(5),
            // The divisor is to be seen only while this is set, and is cleared when it is set again.
            line: DIVISOR_LATCH | seed >> 1,
            divisor: [seed.rotate_left(1), seed.rotate_left(3)],
            modem: seed.rotate_left(2),
            interrupts: seed & INTERRUPT_BITS,
            scratch: seed,
        }
    }
}

/// Sets up a port as the guest of `seed` does.
pub fn set_up(client: &mut RawClient, seed: u8) -> Outcome {
    let settings = Settings::of(seed);
    decode(client, true);
    client.write32(CONFIG, pci::BAR0.into(), settings.bar);
    let line = [settings.interrupt_line];
    client.write(CONFIG, pci::INTERRUPT_LINE.into(), &line);
    client.write(PORTS, LINE, &[0]);
    client.write(PORTS, INTERRUPTS, &[settings.interrupts]);
    client.write(PORTS, LINE, &[settings.line]);
    for (register, byte) in (0..).zip(settings.divisor) {
        client.write(PORTS, register, &[byte]);
    }
    client.write(PORTS, MODEM, &[settings.modem]);
    client.write(PORTS, SCRATCH, &[settings.scratch]);
    check_eq!(
        client.read::<1>(PORTS, SCRATCH),
        [seed],
        "the scratch register"
    );
    Ok(())
}

/// Turns decoding of its I/O ports on or off.
pub fn decode(client: &mut RawClient, on: bool) {
    let command = if on { COMMAND_IO } else { 0 };
    client.write(CONFIG, pci::COMMAND.into(), &command.to_le_bytes());
}

/// Whether a port is set up as by the guest of `seed`, and answers. Looks at all of it, and so leaves the latch closed.
pub fn check(client: &mut RawClient, seed: u8, what: &str) -> Outcome {
    let command = u16::from_le_bytes(client.read(CONFIG, pci::COMMAND.into()));
    check_eq!(command, COMMAND_IO, "{what}: command register");
    let bar = client.read32(CONFIG, pci::BAR0.into());
    let [interrupt_line] = client.read(CONFIG, pci::INTERRUPT_LINE.into());
    let mut register = |offset| client.read::<1>(PORTS, offset)[0];
    let (line, modem, scratch) = (register(LINE), register(MODEM), register(SCRATCH));
    let divisor = [register(0), register(1)];
    client.write(PORTS, LINE, &[line & !DIVISOR_LATCH]);
    let [interrupts] = client.read(PORTS, INTERRUPTS);
    let seen = Settings {
        bar: bar & !BAR_IO,
        interrupt_line,
        line,
        divisor,
        modem,
        interrupts,
        scratch,
    };
    check_eq!(seen, Settings::of(seed), "{what}");
    Ok(())
}
