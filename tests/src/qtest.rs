// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's qtest protocol: a machine without a running processor, whose memory and ports the test reads and writes.
//!
//! One line per request and one `OK ...` line back (QEMU, `system/qtest.c`). `IRQ raise N` and `IRQ lower N` lines come at any
//! time once an interrupt controller is intercepted; they are set aside and asked for by [`Qtest::irq_level`] and
//! [`Qtest::irq_raises`].

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use crate::PATIENCE;

/// A connection to QEMU's qtest server.
#[derive(Debug)]
pub struct Qtest {
    stream: BufReader<UnixStream>,
    lines: BTreeMap<u32, Line>,
}

/// What is known of one input of the intercepted interrupt controller.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    level: bool,
    raises: u32,
}

/// Declares an access function with the request's name.
macro_rules! access {
    (read $($name:ident: $space:ty => $value:ty, $what:literal;)*) => {$(
        #[doc = $what]
        ///
        /// # Panics
        /// When QEMU refuses or is gone.
        #[track_caller]
        pub fn $name(&mut self, address: $space) -> $value {
            let request = format!("{} {address:#x}", stringify!($name));
            let value = parse_number(&request, &self.request(&request));
            <$value>::try_from(value)
                .unwrap_or_else(|_| panic!("`{request}` gave {value:#x}, too wide for its access"))
        }
    )*};
    (write $($name:ident: $space:ty => $value:ty, $what:literal;)*) => {$(
        #[doc = $what]
        ///
        /// # Panics
        /// When QEMU refuses or is gone.
        #[track_caller]
        pub fn $name(&mut self, address: $space, value: $value) {
            self.request(&format!("{} {address:#x} {value:#x}", stringify!($name)));
        }
    )*};
}

impl Qtest {
    /// Speaks qtest over a connected stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes a timeout");
        Self {
            stream: BufReader::new(stream),
            lines: BTreeMap::new(),
        }
    }

    access! { read
        readb: u64 => u8, "Reads one byte of physical memory.";
        readw: u64 => u16, "Reads 16 bits of physical memory.";
        readl: u64 => u32, "Reads 32 bits of physical memory.";
        readq: u64 => u64, "Reads 64 bits of physical memory.";
        inb: u16 => u8, "Reads a byte from an I/O port.";
        inw: u16 => u16, "Reads 16 bits from an I/O port.";
        inl: u16 => u32, "Reads 32 bits from an I/O port.";
    }

    access! { write
        writeb: u64 => u8, "Writes one byte of physical memory.";
        writew: u64 => u16, "Writes 16 bits of physical memory.";
        writel: u64 => u32, "Writes 32 bits of physical memory.";
        writeq: u64 => u64, "Writes 64 bits of physical memory.";
        outb: u16 => u8, "Writes a byte to an I/O port.";
        outw: u16 => u16, "Writes 16 bits to an I/O port.";
        outl: u16 => u32, "Writes 32 bits to an I/O port.";
    }

    /// Reads `length` bytes of physical memory.
    ///
    /// # Panics
    /// When QEMU refuses or is gone.
    #[track_caller]
    pub fn read(&mut self, address: u64, length: usize) -> Vec<u8> {
        let request = format!("read {address:#x} {length:#x}");
        let reply = self.request(&request);
        let bytes = parse_hex(&reply);
        match bytes {
            Some(bytes) if bytes.len() == length => bytes,
            _ => panic!("`{request}` gave `{reply}`"),
        }
    }

    /// Writes `bytes` to physical memory.
    ///
    /// # Panics
    /// When QEMU refuses or is gone.
    #[track_caller]
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let mut request = format!("write {address:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            request.push_str(&format!("{byte:02x}"));
        }
        self.request(&request);
    }

    /// Sets `length` bytes of physical memory to `value`.
    ///
    /// # Panics
    /// When QEMU refuses or is gone.
    #[track_caller]
    pub fn memset(&mut self, address: u64, length: usize, value: u8) {
        self.request(&format!("memset {address:#x} {length:#x} {value:#x}"));
    }

    /// Diverts the inputs of the interrupt controller at `path` to this connection.
    ///
    /// # Panics
    /// When there is none there.
    #[track_caller]
    pub fn intercept_irqs(&mut self, path: &str) {
        self.request(&format!("irq_intercept_in {path}"));
    }

    /// Lets virtual time pass, for devices that work by timers.
    ///
    /// # Panics
    /// When QEMU refuses or is gone.
    #[track_caller]
    pub fn clock_step(&mut self, nanoseconds: u64) {
        self.request(&format!("clock_step {nanoseconds}"));
    }

    /// The level of the intercepted input `line`, as of the last reply.
    #[must_use]
    pub fn irq_level(&self, line: u32) -> bool {
        self.lines.get(&line).is_some_and(|line| line.level)
    }

    /// How often the intercepted input `line` rose.
    #[must_use]
    pub fn irq_raises(&self, line: u32) -> u32 {
        self.lines.get(&line).map_or(0, |line| line.raises)
    }

    /// The intercepted inputs that are high, as of the last reply.
    #[must_use]
    pub fn irqs_high(&self) -> Vec<u32> {
        let high = self.lines.iter().filter(|(_, line)| line.level);
        high.map(|(number, _)| *number).collect()
    }

    /// Repeats `probe` until it gives a value: for what happens behind QEMU's back (a DMA that ends, an interrupt on
    /// its way). Every probe is at least one exchange with QEMU, so this does not spin on the test's side alone.
    ///
    /// # Panics
    /// After [`PATIENCE`], with `what` it waited for.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, mut probe: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = probe(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        }
    }

    /// Sends one line and returns what follows `OK` in its reply.
    #[track_caller]
    fn request(&mut self, request: &str) -> String {
        let mut line = String::with_capacity(request.len() + 1);
        line.push_str(request);
        line.push('\n');
        if let Err(error) = self.stream.get_mut().write_all(line.as_bytes()) {
            panic!("QEMU does not take `{}`: {error}", shorten(request));
        }
        loop {
            let mut reply = String::new();
            match self.stream.read_line(&mut reply) {
                Ok(0) => panic!("QEMU hung up on `{}`", shorten(request)),
                Ok(_) => {}
                Err(error) => panic!("no reply to `{}`: {error}", shorten(request)),
            }
            let reply = reply.trim_end();
            if let Some(change) = reply.strip_prefix("IRQ ") {
                self.note_irq(change);
            } else if let Some(value) = reply.strip_prefix("OK") {
                return value.trim_start().to_owned();
            } else {
                panic!("`{}` was refused: {reply}", shorten(request));
            }
        }
    }

    fn note_irq(&mut self, change: &str) {
        let (raised, number) = match change.split_once(' ') {
            Some(("raise", number)) => (true, number),
            Some(("lower", number)) => (false, number),
            _ => return,
        };
        let Ok(number) = number.parse() else { return };
        let line: &mut Line = self.lines.entry(number).or_default();
        line.raises += u32::from(raised && !line.level);
        line.level = raised;
    }
}

/// A request of a size that fits a message.
fn shorten(request: &str) -> String {
    request.chars().take(80).collect()
}

#[track_caller]
fn parse_number(request: &str, reply: &str) -> u64 {
    let digits = reply.strip_prefix("0x").unwrap_or(reply);
    u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("`{request}` gave `{reply}`"))
}

fn parse_hex(reply: &str) -> Option<Vec<u8>> {
    let digits = reply.strip_prefix("0x")?;
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Read, thread};

    use super::*;

    /// A peer that answers with `script` whatever it is asked.
    fn scripted(script: &'static str) -> Qtest {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        thread::spawn(move || {
            let _ = theirs.write_all(script.as_bytes());
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        Qtest::new(ours)
    }

    #[test]
    fn interrupt_lines_between_replies_are_set_aside() {
        let mut qtest = scripted("IRQ raise 20\nOK 0x0012\nIRQ lower 20\nIRQ raise 21\nOK 0x01\n");
        assert_eq!(qtest.inl(0xcfc), 0x12);
        assert!(qtest.irq_level(20));
        assert_eq!(qtest.inl(0xcfc), 1);
        assert_eq!(qtest.irqs_high(), [21]);
        assert_eq!(qtest.irq_raises(20), 1);
    }

    #[test]
    fn memory_is_hexadecimal() {
        assert_eq!(scripted("OK 0x00ff10\n").read(0, 3), [0, 255, 16]);
    }

    #[test]
    #[should_panic(expected = "too wide")]
    fn a_value_wider_than_its_access_is_not_cut() {
        scripted("OK 0x100\n").readb(0);
    }

    #[test]
    #[should_panic(expected = "was refused: FAIL Unknown command")]
    fn a_refusal_ends_the_test() {
        scripted("FAIL Unknown command 'readb'\n").readb(0);
    }
}
