// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening as far as a machine without VFIO goes.

use std::os::fd::IntoRawFd;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::device::kernel::sysfs::tests::Machine;

const GPU: &str = "0000:01:00.0";
const TOKEN: &str = "14D63F20-8445-11ea-8900-1f9ce7d5650d";

#[test]
fn tokens_are_uuids() {
    let token: VfToken = TOKEN.parse().unwrap();
    assert_eq!(token.bytes[..4], [0x14, 0xd6, 0x3f, 0x20]);
    let name = device_name(GPU, Some(&token)).unwrap();
    assert_eq!(
        name.to_str().unwrap(),
        "0000:01:00.0 vf_token=14d63f20-8445-11ea-8900-1f9ce7d5650d"
    );
    assert_eq!(device_name(GPU, None).unwrap().to_str().unwrap(), GPU);
    for bad in [
        "",
        "14d63f20",
        "14d63f20-8445-11ea-8900-1f9ce7d5650",
        "ü4d63f20-8445-11ea-8900-1f9ce7d5650d",
    ] {
        assert!(bad.parse::<VfToken>().is_err(), "{bad}");
    }
}

#[test]
fn opening_goes_as_far_as_the_machine_does() {
    let machine = Machine::new();
    machine.device("pci", GPU, Some("vfio-pci"), Some(7));
    let open = || open(&machine.roots(), GPU, None).unwrap_err();
    assert!(matches!(
        open(),
        OpenError::File {
            errno: Errno::NOENT,
            ..
        }
    ));
    machine.touch("dev/vfio/vfio");
    let text = open().to_string();
    assert!(
        text.starts_with("VFIO_GET_API_VERSION for 0000:01:00.0"),
        "{text}"
    );
    machine.cdev(GPU, 0);
    machine.touch("dev/vfio/devices/vfio0");
    machine.touch("dev/iommu");
    let text = open().to_string();
    assert!(text.starts_with("Taking the device"), "{text}");
}

#[test]
fn descriptors_of_another_kind_are_refused() {
    let other = || {
        memfd_create("other", MemfdFlags::CLOEXEC)
            .unwrap()
            .into_raw_fd()
    };
    let container = other();
    let error = adopt(other(), Companion::Container(container)).unwrap_err();
    assert!(matches!(error, OpenError::NotAContainer(number) if number == container));
    let error = adopt(other(), Companion::Iommufd(other())).unwrap_err();
    assert!(matches!(
        error,
        OpenError::NotADevice {
            errno: Errno::NOTTY,
            ..
        }
    ));
    for closed in [-1, 1_000_000] {
        let error = adopt(closed, Companion::Iommufd(closed)).unwrap_err();
        assert!(matches!(error, OpenError::Descriptor { .. }));
    }
}
