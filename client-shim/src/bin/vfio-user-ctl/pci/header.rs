// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The type 0 header (PCI Local Bus Specification 3.0, 6.1).

use super::space::ConfigSpace;
use super::{field, signs};

/// What a BAR register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the next BAR register too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// One BAR register, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The number of its first register.
    pub index: u32,
    /// Its type bits.
    pub kind: BarKind,
    /// Where the guest placed it.
    pub address: u64,
}

/// The header's fields.
#[derive(Clone, Debug)]
pub struct Header {
    /// Who made the device, which it is.
    pub vendor: u16,
    /// See `vendor`.
    pub device: u16,
    /// Who sells it, and as what.
    pub subsystem_vendor: u16,
    /// See `subsystem_vendor`.
    pub subsystem: u16,
    /// Base class, subclass, interface.
    pub class: u32,
    /// See [`class_name`].
    pub class_name: &'static str,
    /// Revision.
    pub revision: u8,
    /// COMMAND, bit by bit.
    pub control: String,
    /// STATUS, bit by bit.
    pub status: String,
    /// 1 to 4 for INTA to INTD, 0 for none.
    pub interrupt_pin: u8,
    /// What firmware wrote.
    pub interrupt_line: u8,
    /// Every BAR register as its type bits read; whether there is a BAR is for its region to say.
    pub bars: Vec<Bar>,
    /// ROM address and enable bit.
    pub rom: u32,
}

impl Header {
    pub fn decode(space: &ConfigSpace) -> Self {
        let class = space.u32(0x08) >> 8;
        Self {
            vendor: space.u16(0x00),
            device: space.u16(0x02),
            subsystem_vendor: space.u16(0x2c),
            subsystem: space.u16(0x2e),
            class,
            class_name: class_name(class),
            revision: space.u8(0x08),
            control: control(space.word(0x04)),
            status: status(space.word(0x06)),
            interrupt_pin: space.u8(0x3d),
            interrupt_line: space.u8(0x3c),
            bars: bars(space),
            rom: space.u32(0x30),
        }
    }

    /// The pin's letter, if it is one.
    pub fn pin_letter(&self) -> Option<char> {
        match self.interrupt_pin {
            pin @ 1..=4 => Some(char::from(b'A' + pin - 1)),
            _ => None,
        }
    }
}

fn bars(space: &ConfigSpace) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut registers = (0_u32..6).zip((0x10..).step_by(4));
    while let Some((index, at)) = registers.next() {
        let low = space.u32(at);
        let prefetchable = low & 8 != 0;
        let (kind, address) = match low & 7 {
            bits if bits & 1 == 1 => (BarKind::Io, u64::from(low & !3)),
            4 => {
                let high = registers.next().map_or(0, |(_, at)| space.u32(at));
                let address = u64::from(high) << 32 | u64::from(low & !0xf);
                (BarKind::Memory64 { prefetchable }, address)
            }
            _ => (BarKind::Memory32 { prefetchable }, u64::from(low & !0xf)),
        };
        bars.push(Bar {
            index,
            kind,
            address,
        });
    }
    bars
}

fn control(command: u32) -> String {
    signs(
        command,
        &[
            ("I/O", 0),
            ("Mem", 1),
            ("BusMaster", 2),
            ("SpecCycle", 3),
            ("MemWINV", 4),
            ("VGASnoop", 5),
            ("ParErr", 6),
            ("Stepping", 7),
            ("SERR", 8),
            ("FastB2B", 9),
            ("DisINTx", 10),
        ],
    )
}

fn status(status: u32) -> String {
    let first = [
        ("Cap", 4),
        ("66MHz", 5),
        ("UDF", 6),
        ("FastB2B", 7),
        ("ParErr", 8),
    ];
    let last = [
        (">TAbort", 11),
        ("<TAbort", 12),
        ("<MAbort", 13),
        (">SERR", 14),
        ("<PERR", 15),
        ("INTx", 3),
    ];
    let speed = match field(status, 9, 2) {
        0 => "fast",
        1 => "medium",
        2 => "slow",
        _ => "??",
    };
    format!(
        "{} DEVSEL={speed} {}",
        signs(status, &first),
        signs(status, &last)
    )
}

/// Names of the classes a vfio-user device is likely to have.
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xff) {
        (0x01, 0x00) => "SCSI storage controller",
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x08) => "Non-Volatile memory controller",
        (0x01, _) => "Mass storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, _) => "Network controller",
        (0x03, 0x00) => "VGA compatible controller",
        (0x03, 0x01) => "XGA compatible controller",
        (0x03, 0x02) => "3D controller",
        (0x03, _) => "Display controller",
        (0x04, 0x03) => "Audio device",
        (0x04, _) => "Multimedia controller",
        (0x05, _) => "Memory controller",
        (0x06, _) => "Bridge",
        (0x07, _) => "Communication controller",
        (0x08, _) => "Generic system peripheral",
        (0x0c, 0x03) => "USB controller",
        (0x0c, _) => "Serial bus controller",
        (0x10, _) => "Encryption controller",
        (0x12, _) => "Processing accelerators",
        (0x00 | 0xff, _) => "Unclassified device",
        _ => "Device of another class",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_controller_is_told_as_one() {
        let mut bytes = vec![0; 256];
        bytes[..0x10].copy_from_slice(&[
            0x34, 0x12, 0x11, 0x11, 0x06, 0x04, 0x18, 0x00, 2, 0, 0x80, 3, 0, 0, 0, 0,
        ]);
        bytes[0x10..0x18].copy_from_slice(&[0x0c, 0, 0, 0xe0, 1, 0, 0, 0]);
        bytes[0x18..0x1c].copy_from_slice(&[0, 0, 0, 0xfe]);
        bytes[0x1c] = 1;
        bytes[0x3d] = 1;
        let header = Header::decode(&ConfigSpace::new(bytes));
        assert_eq!(
            (header.vendor, header.device, header.class),
            (0x1234, 0x1111, 0x03_8000)
        );
        assert_eq!(
            (header.class_name, header.revision),
            ("Display controller", 2)
        );
        assert!(
            header.control.starts_with("I/O- Mem+ BusMaster+"),
            "{}",
            header.control
        );
        assert!(header.control.ends_with("DisINTx+"));
        assert!(header.status.starts_with("Cap+ 66MHz-") && header.status.ends_with("INTx+"));
        assert_eq!(header.pin_letter(), Some('A'));
        let kinds: Vec<_> = header
            .bars
            .iter()
            .map(|bar| (bar.index, bar.kind))
            .collect();
        let prefetchable = true;
        assert_eq!(kinds[0], (0, BarKind::Memory64 { prefetchable }));
        assert_eq!(header.bars[0].address, 0x1_e000_0000);
        let prefetchable = false;
        assert_eq!(kinds[1], (2, BarKind::Memory32 { prefetchable }));
        assert_eq!(kinds[2], (3, BarKind::Io));
        assert_eq!(kinds.len(), 5);
    }
}
