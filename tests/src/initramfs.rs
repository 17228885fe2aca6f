// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes an initial RAM file system: the "newc" cpio form, as the kernel documents it in
//! Documentation/driver-api/early-userspace/buffer-format.rst. Uncompressed, since nothing is gained on one machine.

/// An archive in the making. Folders must be added before what lies in them.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

/// File type and permission bits, as `stat` gives them.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// An empty file system with a console for its init.
    #[must_use]
    pub fn new() -> Self {
        let mut this = Self::default();
        // Not 0700, or unprivileged programs in the guest could open nothing at all.
        this.entry(".", FOLDER, (0, 0), &[]);
        this.folder("dev");
        this.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
        this
    }

    /// Adds a folder.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, (0, 0), &[]);
    }

    /// Adds a file that everybody may read and execute.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("files in an initramfs are below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        let fields = [
            self.entries, // inode: distinct, or the kernel takes files for hard links
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            size,
            0, // device that holds the file, major
            0, // and minor
            device.0,
            device.1,
            name_size,
            0, // checksum, unused in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents both end on a multiple of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_documented_layout() {
        let mut archive = Initramfs::new();
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = bytes
            .windows(5)
            .position(|window| window == b"init\0")
            .expect("the file's name");
        let header = &bytes[at - 110..at];
        assert_eq!(&header[..6], b"070701");
        assert_eq!(&header[14..22], b"000081ed", "a regular file, 0755");
        assert_eq!(&header[54..62], b"00000005", "its size");
        assert_eq!(
            &header[94..102],
            b"00000005",
            "its name's size, NUL included"
        );
        // The header is 110 bytes, so the name's end is padded to a multiple of 4 from the header's start.
        assert_eq!((at - 110) % 4, 0);
        let content = (at + 5).next_multiple_of(4);
        assert_eq!(&bytes[content..content + 5], b"hello");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn inodes_are_distinct() {
        let mut archive = Initramfs::new();
        archive.file("a", b"1");
        archive.file("b", b"2");
        let bytes = archive.finish();
        let mut inodes: Vec<_> = bytes
            .windows(14)
            .filter(|window| window.starts_with(b"070701"))
            .map(|window| window[6..].to_vec())
            .collect();
        let all = inodes.len();
        inodes.sort();
        inodes.dedup();
        assert_eq!((inodes.len(), all), (6, 6));
    }
}
