// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel graphics, as a client without any device code finds them: their registers, and the regions of their host.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use serde_json::Value;
use system_tests::backend::Backend;
use system_tests::binaries;
use system_tests::opregion;
use tempfile::TempDir;
use vfio_user_client::protocol::device::RegionCapability;
use vfio_user_client::{Access, Client, Options};

const CONFIG: u32 = 7;
const OPREGION: u32 = 9;
const INTEL: u32 = 0x8000_8086;

struct Rig {
    backend: Backend,
    folder: TempDir,
}

impl Rig {
    fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("opregion");
        fs::write(&path, opregion::of_host()).expect("a file");
        let model = format!("igd={}", path.display());
        let backend = Backend::start_with(&[&model], arguments);
        Self { backend, folder }
    }

    fn client(&self) -> Client {
        Client::connect(self.backend.socket(), Options::default()).expect("a client")
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binaries::ctl());
        command
            .arg("info")
            .args(arguments)
            .arg(self.backend.socket());
        command.output().expect("vfio-user-ctl runs")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn read<const N: usize>(client: &Client, region: u32, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let done = client.region_read(region, offset, &mut bytes);
    done.expect("REGION_READ");
    bytes
}

#[test]
fn the_hosts_addresses_are_not_the_guests() {
    let rig = Rig::new(&["--igd-gms", "0x40"]);
    let client = rig.client();
    assert_eq!(read(&client, CONFIG, 0), [0x86, 0x80, 0x92, 0x3e]);
    client.region_write(CONFIG, 4, &[6, 0]).expect("COMMAND");
    for (register, bar0, value) in [
        (0xfc, None, 0_u32),
        (0x5c, Some(0x10_80c0), 0),
        (0x50, Some(0x10_8040), 0x40c1),
    ] {
        assert_eq!(read(&client, CONFIG, register), value.to_le_bytes());
        if let Some(at) = bar0 {
            let seen = read::<4>(&client, 0, at);
            assert_eq!(seen[..2], value.to_le_bytes()[..2], "{at:#x}");
        }
    }
    let base = 0xbc00_0000_u32.to_le_bytes();
    client.region_write(0, 0x10_80c0, &base).expect("BAR0");
    assert_eq!(read(&client, CONFIG, 0x5c), base);
    // The page is not mapped, and everything else is.
    let areas = client.region_info(0).expect("BAR0").mappable_areas();
    let areas: Vec<_> = areas
        .iter()
        .map(|a| (a.offset, a.offset + a.size))
        .collect();
    assert_eq!(areas, [(0, 0x10_8000), (0x10_9000, 64 << 20)]);
}

#[test]
fn the_regions_of_the_host() {
    let rig = Rig::new(&[]);
    let client = rig.client();
    assert_eq!(client.device_info().expect("info").num_regions, 12);
    for (index, subtype, size) in [(9, 1, opregion::SIZE), (10, 2, 256), (11, 3, 256)] {
        let info = client.region_info(index).expect("a region");
        assert_eq!(
            (info.size, info.readable, info.writable),
            (size as u64, true, false)
        );
        let kind = RegionCapability::Type {
            region_type: INTEL,
            subtype,
        };
        assert_eq!(info.capabilities, [kind]);
        client
            .region_write(index, 0, &[0; 4])
            .expect_err("read-only");
    }
    assert!(client.region_info(12).is_err());
    let mut bytes = vec![0; opregion::SIZE];
    client
        .region_read(OPREGION, 0, &mut bytes)
        .expect("OpRegion");
    assert!(bytes == opregion::of_guest(), "something else is served");
    let (fd, offset) = client
        .region_info(OPREGION)
        .expect("OpRegion")
        .mapping
        .expect("a file");
    assert_eq!(offset, 0);
    let map = |protection| {
        // SAFETY: the kernel chooses a free range, and nothing is accessed.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                opregion::SIZE,
                protection,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
    };
    assert!(map(ProtFlags::READ).is_ok());
    assert!(
        map(ProtFlags::READ | ProtFlags::WRITE).is_err(),
        "others rely on it"
    );
    let mut file = fs::File::from(fd);
    assert!(std::io::Write::write(&mut file, &[0]).is_err());
    assert!(file.set_len(0).is_err());
}

#[test]
fn a_guest_that_asks_for_many_copies_fills_no_log() {
    const ASLS: u64 = 0xfc;
    let rig = Rig::new(&["--igd-opregion", "copy"]);
    let client = rig.client();
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&memory, 1 << 20).expect("room");
    let backing = Some((memory.as_fd(), 0));
    client
        .dma_map(0x10_0000, 1 << 20, Access::ReadWrite, backing)
        .expect("a map");
    let ask = |address: u32| {
        client
            .region_write(CONFIG, ASLS, &address.to_le_bytes())
            .expect("ASLS");
        let mut copy = vec![0; opregion::SIZE];
        let file = fs::File::from(memory.try_clone().expect("a descriptor"));
        let at = u64::from(address) - 0x10_0000;
        file.read_exact_at(&mut copy, at).expect("guest memory");
        assert!(copy == opregion::of_guest(), "no copy at {address:#x}");
        file.write_all_at(&vec![0; opregion::SIZE], at)
            .expect("guest memory");
    };
    for _ in 0..100 {
        ask(0x10_0000);
    }
    for round in 0..500 {
        ask(0x11_0000 + round % 2 * 0x1_0000);
    }
    // What was said before has been read then.
    rig.backend.wait_for_log("bytes copied to 0x110000,", 1);
    drop(client);
    let _next = rig.backend.attach();
    let report = rig.backend.report();
    let same = report.matches("bytes copied to 0x100000,").count();
    assert_eq!(same, 1, "{report}");
    // One a second is written. (In 250 seconds this fails for another reason.)
    let lines = report.matches("bytes copied to").count();
    assert!(lines < 250, "{lines} lines");
}

#[test]
fn without_an_opregion() {
    let rig = Rig::new(&["--igd-opregion", "off"]);
    assert_eq!(rig.client().device_info().expect("info").num_regions, 9);
    let output = rig.ctl(&["--dump", "opregion", "x"]);
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && line.lines().count() == 1,
        "{line}"
    );
    assert!(line.contains("no OpRegion"), "{line}");
}

#[test]
fn people_can_have_it_in_a_file() {
    let rig = Rig::new(&[]);
    let path = rig.file("dumped");
    let name = path.to_str().expect("a plain name");
    let output = rig.ctl(&["--json", "--dump", "opregion", name]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{report:#}");
    assert!(fs::read(&path).expect("a file") == opregion::of_guest());
    assert_eq!(report["regions"][9]["name"], "OpRegion", "{report:#}");
    let output = rig.ctl(&["--dump", "lpc-bridge", name]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\t10: Host bridge config space: "), "{text}");
    assert_eq!(
        fs::read(&path).expect("a file")[..4],
        [0x86, 0x80, 0x06, 0xa3]
    );

    for arguments in [
        &["--dump", "vbios", name][..],
        &["--dump", "opregion"],
        &["--dump", "opregion", "/nonexistent/file"],
    ] {
        let output = rig.ctl(arguments);
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}
