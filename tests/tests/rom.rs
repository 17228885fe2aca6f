// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The expansion ROM that a client gets: the device's, a file's, or none.

use std::fs;

use system_tests::backend::Backend;
use vfio_user_client::{Client, Options};

const ROM: u32 = 6;
const CONFIG: u32 = 7;
/// Where the PCI data structure is in the model's image, and where that names the device.
const DEVICE_ID: usize = 0x1c + 6;

fn client(backend: &Backend) -> Client {
    Client::connect(backend.socket(), Options::default()).expect("a client")
}

fn rom(client: &Client) -> Vec<u8> {
    let size = client.region_info(ROM).expect("the ROM").size;
    let mut bytes = vec![0; usize::try_from(size).expect("a size")];
    client.region_read(ROM, 0, &mut bytes).expect("REGION_READ");
    bytes
}

/// What the ROM BAR reads after all ones.
fn bar(client: &Client) -> u32 {
    let mut value = [0xff; 4];
    client.region_write(CONFIG, 0x30, &value).expect("the BAR");
    client
        .region_read(CONFIG, 0x30, &mut value)
        .expect("the BAR");
    u32::from_le_bytes(value)
}

fn sum(image: &[u8]) -> u8 {
    image.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn an_image_is_for_the_device_that_shows_it() {
    let backend = Backend::start_with(&[], &["--pci-device-id", "0x4711"]);
    let rom = rom(&client(&backend));
    assert_eq!(rom[DEVICE_ID..DEVICE_ID + 2], [0x11, 0x47]);
    assert_eq!(sum(&rom[..512]), 0, "its checksum is right again");
}

#[test]
fn a_file_and_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rom");
    let mut image = rom(&client(&Backend::start()));
    // A longer one, sum and length right, with something to be recognised by.
    image.resize(0x1800, 0);
    image[2] = 12;
    image[0x1c + 0x10] = 12;
    image[0x1000..0x1008].copy_from_slice(b"recognis");
    image[6] = image[6].wrapping_sub(sum(&image));
    fs::write(&path, &image).expect("a file");
    let name = path.to_str().expect("a plain name");
    let backend = Backend::start_with(&[], &["--rom", name]);
    let client = client(&backend);
    let shown = rom(&client);
    assert_eq!(shown.len(), 0x2000);
    assert!(shown[..0x1800] == image && shown[0x1800..].iter().all(|byte| *byte == 0xff));
    assert_eq!(bar(&client), 0xffff_e001);
    drop(client);

    let backend = Backend::start_with(&[], &["--rom", "off"]);
    let client = self::client(&backend);
    assert_eq!(client.region_info(ROM).expect("the ROM").size, 0);
    assert_eq!(bar(&client), 0);
}

#[test]
fn no_more_than_one_message_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rom");
    let mut image = rom(&client(&Backend::start()));
    image.resize(3 << 20, 0);
    fs::write(&path, &image).expect("a file");
    let name = path.to_str().expect("a plain name");
    let backend = Backend::start_with(&[], &["--rom", name]);
    let client = client(&backend);
    let max = client.negotiated().max_data_xfer_size;
    assert_eq!(
        client.region_info(ROM).expect("the ROM").size,
        u64::from(max)
    );
    assert_eq!(bar(&client), 0xffc0_0001, "what the file needs");
}
