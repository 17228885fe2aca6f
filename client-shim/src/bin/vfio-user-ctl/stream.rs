// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a stream goes or comes from: files, pipes, sockets, in waits that Ctrl-C ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags, fstat, fsync};
use rustix::io::{Errno, ioctl_fionbio};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::interrupt::Interrupt;

/// What a pipe with any room takes without waiting (`PIPE_BUF`), in bytes.
const PIECE: usize = 4096;

/// How often a FIFO is tried that nobody reads.
const LOOK: Duration = Duration::from_millis(10);

/// An open(2) that does not wait for the other end of a FIFO.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// One end of a stream. Reads and writes fail once the user wants it to end.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    interrupt: Interrupt,
    /// Bytes of the longest write.
    most: usize,
    /// What it will be once it is whole.
    file: Option<NewFile>,
}

impl Stream {
    pub fn new(fd: OwnedFd, interrupt: &Interrupt) -> io::Result<Self> {
        let mode = fstat(&fd)?.st_mode;
        let never_waits = FileType::from_raw_mode(mode) == FileType::RegularFile;
        Ok(Self {
            fd,
            interrupt: interrupt.clone(),
            most: if never_waits { usize::MAX } else { PIECE },
            file: None,
        })
    }

    /// A file, device or FIFO to read, and its size in bytes. A FIFO has something to read when this returns.
    pub fn open(path: &Path, interrupt: &Interrupt) -> io::Result<(Self, u64)> {
        let fifo = fs::metadata(path)?.file_type().is_fifo();
        let flags = if fifo { NONBLOCK } else { 0 };
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        if fifo {
            // Not ready before somebody has it for writing.
            if !interrupt.wait_for(&file, PollFlags::IN)? {
                return Err(interrupted());
            }
            ioctl_fionbio(&file, false)?;
        }
        let size = file.metadata()?.len();
        Ok((Self::new(file.into(), interrupt)?, size))
    }

    /// A file that is there, whole, once [`Self::keep`] returns; what was there before stays until then. Devices and
    /// FIFOs are written to as they are.
    pub fn create(path: &Path, interrupt: &Interrupt) -> io::Result<Self> {
        let before = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            before => Some(before?),
        };
        // A link stays one.
        let path = match &before {
            Some(before) if before.file_type().is_fifo() => {
                return Self::new(wait_for_reader(path, interrupt)?.into(), interrupt);
            }
            Some(before) if !before.is_file() => {
                return Self::new(File::create(path)?.into(), interrupt);
            }
            Some(_) => fs::canonicalize(path)?,
            None => end_of_links(path),
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create_new(&temporary)?;
        let new = NewFile { temporary, path };
        if let Some(before) = before {
            file.set_permissions(before.permissions())?;
        }
        Ok(Self {
            file: Some(new),
            ..Self::new(file.into(), interrupt)?
        })
    }

    /// The stream is complete: it is on disk when this returns, if it goes there.
    pub fn keep(mut self) -> io::Result<()> {
        match fsync(&self.fd) {
            // Nothing that could be on a disk, as a pipe.
            Err(Errno::INVAL | Errno::ROFS) => {}
            other => other?,
        }
        let Some(new) = self.file.take() else {
            return Ok(());
        };
        fs::rename(&new.temporary, &new.path)?;
        match new
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(folder) => File::open(folder)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    }

    fn wait(&self, what: PollFlags) -> Result<(), VolatileMemoryError> {
        match self.interrupt.wait_for(&self.fd, what) {
            Ok(true) => Ok(()),
            Ok(false) => Err(interrupted()),
            Err(error) => Err(error),
        }
        .map_err(VolatileMemoryError::IOError)
    }
}

impl WriteVolatile for Stream {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        data: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.wait(PollFlags::OUT)?;
        let part = data.subslice(0, data.len().min(self.most))?;
        self.fd.write_volatile(&part)
    }
}

impl ReadVolatile for Stream {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        room: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.wait(PollFlags::IN)?;
        self.fd.read_volatile(room)
    }
}

/// Where a file is to be made that a path leads to by links, if it does.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // No longer than the kernel would (path_resolution(7)), should they be made a circle meanwhile.
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&path) else {
            break;
        };
        path = path.with_file_name(link);
    }
    path
}

/// Opens a FIFO for writing once somebody has it for reading. Just opening it would wait through every signal.
fn wait_for_reader(path: &Path, interrupt: &Interrupt) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).custom_flags(NONBLOCK);
    while !interrupt.is_asked() {
        match options.open(path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => {
                interrupt.sleep(LOOK);
            }
            opened => {
                let file = opened?;
                ioctl_fionbio(&file, false)?;
                return Ok(file);
            }
        }
    }
    Err(interrupted())
}

/// Not the kind `Interrupted`, after which it would be tried again.
fn interrupted() -> io::Error {
    io::Error::other("Interrupted")
}

/// A file that is not what it is to be; removed, unless it was renamed.
#[derive(Debug)]
struct NewFile {
    temporary: PathBuf,
    path: PathBuf,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Fails where it was renamed.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    use rustix::fs::{CWD, Mode, mkfifoat};
    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn a_file_is_replaced_when_the_stream_is_kept_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, b"old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("file", &link).unwrap();
        for keep in [false, true] {
            let mut stream = Stream::create(&link, &Interrupt::default()).unwrap();
            let mut data = *b"new";
            stream
                .write_all_volatile(&VolatileSlice::from(&mut data[..]))
                .unwrap();
            assert_eq!(fs::read(&file).unwrap(), b"old");
            if keep {
                stream.keep().unwrap();
                assert_eq!(fs::read(&file).unwrap(), b"new");
            } else {
                drop(stream);
                assert_eq!(fs::read(&file).unwrap(), b"old");
            }
            assert!(link.is_symlink());
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
        // Links to what is not there yet.
        let (inner, new) = (folder.path().join("inner"), folder.path().join("inner/new"));
        fs::create_dir(&inner).unwrap();
        symlink("../link to a link", inner.join("first")).unwrap();
        symlink(&new, folder.path().join("link to a link")).unwrap();
        let stream = Stream::create(&inner.join("first"), &Interrupt::default()).unwrap();
        assert!(!new.exists());
        stream.keep().unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"");
        assert!(inner.join("first").is_symlink());
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 2);
        // Nowhere.
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        let error = Stream::create(&circle, &Interrupt::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(circle.is_symlink());
    }

    #[test]
    fn whatever_can_be_synced_is_and_the_rest_kept_all_the_same() {
        let interrupt = Interrupt::default();
        let null = Stream::create(Path::new("/dev/null"), &interrupt).unwrap();
        null.keep().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        Stream::new(writer.into(), &interrupt)
            .unwrap()
            .keep()
            .unwrap();
        drop(reader);
        // As a block device that fails: one that nothing can be done with.
        let flags = OFlags::PATH.bits().cast_signed();
        let mut options = File::options();
        let file = options.read(true).custom_flags(flags).open("/dev/null");
        let stream = Stream::new(file.unwrap().into(), &interrupt).unwrap();
        let error = stream.keep().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
    }

    #[test]
    fn the_ends_of_a_fifo_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let interrupt = Interrupt::default();
        let mut data = *b"data";
        let mut found = [0; 8];
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut sink = Stream::create(&fifo, &interrupt).unwrap();
                sink.write_all_volatile(&VolatileSlice::from(&mut data[..]))
                    .unwrap();
                sink.keep().unwrap();
            });
            let (mut source, _) = Stream::open(&fifo, &interrupt).unwrap();
            let mut read = || {
                let mut room = VolatileSlice::from(&mut found[..]);
                source.read_volatile(&mut room).unwrap()
            };
            assert_eq!((read(), read()), (4, 0));
        });
        assert_eq!(&found[..4], b"data");
    }
}
