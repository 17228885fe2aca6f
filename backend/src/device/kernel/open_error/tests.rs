// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an operator is told.

use super::*;
use crate::device::kernel::sysfs::Route;
use crate::device::kernel::sysfs::tests::Machine;

const GPU: &str = "0000:01:00.0";
const TOKEN: &str = "14D63F20-8445-11ea-8900-1f9ce7d5650d";

fn found(members: &[(&str, Option<&str>)]) -> Found {
    let members = members.iter().map(|(name, driver)| Member {
        name: (*name).into(),
        driver: driver.map(str::to_owned),
    });
    Found {
        name: GPU.into(),
        mediated: false,
        mdev_type: None,
        driver: Some("vfio-pci".into()),
        group: 7,
        members: members.collect(),
        route: Route::Group {
            node: "/dev/vfio/7".into(),
            container: "/dev/vfio/vfio".into(),
        },
    }
}

#[test]
fn a_group_that_is_not_viable_names_what_is_in_the_way() {
    let found = found(&[
        (GPU, Some("vfio-pci")),
        ("0000:00:01.0", Some("pcieport")),
        ("0000:01:00.1", Some("snd_hda_intel")),
        ("0000:01:00.2", None),
    ]);
    let text = not_viable(&found).to_string();
    assert!(
        text.contains("group 7") && text.contains("0000:01:00.1 (driver snd_hda_intel)"),
        "{text}"
    );
    assert!(
        !text.contains("pcieport") && !text.contains("01:00.2"),
        "{text}"
    );
}

#[test]
fn errnos_of_taking_the_device_are_explained() {
    let token: VfToken = TOKEN.parse().unwrap();
    let found = found(&[(GPU, Some("vfio-pci")), ("0000:01:00.1", Some("serial"))]);
    let explain = |token, errno| explain_device(&found, Path::new("/dev/vfio/7"), token, errno);
    let not_viable = explain(None, Errno::PERM).to_string();
    assert!(not_viable.contains("driver serial"), "{not_viable}");
    let missing = explain(None, Errno::ACCESS).to_string();
    assert!(missing.contains("--vf-token UUID"), "{missing}");
    assert!(matches!(
        explain(Some(&token), Errno::ACCESS),
        OpenError::WrongToken(_)
    ));
    assert!(matches!(
        explain(Some(&token), Errno::INVAL),
        OpenError::WrongToken(_)
    ));
    let busy = explain(None, Errno::BUSY).to_string();
    assert!(busy.contains("fuser -v /dev/vfio/7"), "{busy}");
    assert!(matches!(explain(None, Errno::INVAL), OpenError::Busy(_)));
    assert!(matches!(explain(None, Errno::IO), OpenError::Step { .. }));
}

#[test]
fn errnos_of_opening_a_file_name_it() {
    let machine = Machine::new();
    machine.touch("dev/vfio/7");
    let path = machine.at("dev/vfio/7");
    let text = explain_node(&path, Errno::ACCESS).to_string();
    assert!(text.contains("dev/vfio/7 (mode 6"), "{text}");
    assert!(text.contains("--user NAME"), "{text}");
    assert!(matches!(
        explain_node(&path, Errno::BUSY),
        OpenError::Busy(_)
    ));
    let gone = explain_node(Path::new("/dev/vfio/vfio"), Errno::NOENT).to_string();
    assert!(gone.contains("modprobe vfio_iommu_type1"), "{gone}");
}

#[test]
fn every_line_is_one_line() {
    let lines = [
        OpenError::UnsafeInterrupts,
        OpenError::MissingToken(GPU.into()),
        OpenError::NotAContainer(3),
        OpenError::NoIommu { name: GPU.into() },
    ];
    for line in lines {
        assert_eq!(line.to_string().lines().count(), 1);
    }
}
