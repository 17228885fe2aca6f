// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sysfs says of a device: where it is, its driver, its IOMMU group and its character devices. Reads
//! only; the roots are parameters, so that a test can make its own machine.

use std::fs;
use std::path::{Path, PathBuf};

use super::open_error::OpenError;

/// Where the machine's tables are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// sysfs.
    pub sys: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
        }
    }
}

/// A device of an IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, such as `0000:01:00.1`.
    pub name: String,
    /// The driver that has it.
    pub driver: Option<String>,
}

/// How the kernel serves a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// By its own character device and iommufd.
    Cdev {
        /// `/dev/vfio/devices/vfioN`.
        cdev: PathBuf,
        /// `/dev/iommu`.
        iommu: PathBuf,
    },
    /// By its group and a container.
    Group {
        /// `/dev/vfio/N`.
        node: PathBuf,
        /// `/dev/vfio/vfio`.
        container: PathBuf,
    },
}

/// A device that a VFIO driver has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its name in sysfs: the PCI address, or the UUID of a mediated device.
    pub name: String,
    /// A mediated device: it pins guest memory as it needs it.
    pub mediated: bool,
    /// What kind of mediated device, such as `mtty-1`.
    pub mdev_type: Option<String>,
    pub driver: Option<String>,
    pub group: u32,
    pub members: Vec<Member>,
    pub route: Route,
}

impl Found {
    /// Whose migration data a device has: its driver, or where one driver has many kinds the kind; empty if not
    /// known.
    pub(super) fn data_owner(&self) -> String {
        let kind = self.mdev_type.as_ref().filter(|_| self.mediated);
        kind.or(self.driver.as_ref()).cloned().unwrap_or_default()
    }
}

impl Roots {
    /// Finds a device by PCI address (`0000:01:00.0`, `01:00.0`), UUID of a mediated device, or sysfs path.
    pub(super) fn find(&self, text: &str) -> Result<Found, OpenError> {
        let asked = self.path_of(text)?;
        let path = fs::canonicalize(&asked).map_err(|_| OpenError::NoSuchDevice {
            device: text.into(),
            path: asked,
        })?;
        let name = last(&path).ok_or_else(|| OpenError::Name(text.into()))?;
        let mediated = link(&path.join("subsystem")).as_deref() == Some("mdev");
        let mdev_type = link(&path.join("mdev_type"));
        let driver = link(&path.join("driver"));
        let cdev = self.cdev(&path);
        // Without an IOMMU vfio-pci takes no device, so this is the cause to name first.
        let group = path.join("iommu_group");
        let Some(number) = link(&group).and_then(|number| number.parse().ok()) else {
            return Err(OpenError::NoIommu { name });
        };
        let is_vfio = |driver: &String| driver.contains("vfio");
        let served = path.join("vfio-dev").is_dir() || driver.as_ref().is_some_and(is_vfio);
        if !mediated && !served {
            return Err(OpenError::NotBound { name, driver });
        }
        let members = members(&group.join("devices"));
        let route = match cdev.zip(Some(self.dev.join("iommu"))) {
            Some((cdev, iommu)) if iommu.exists() => Route::Cdev { cdev, iommu },
            _ => self.group_route(&name, number)?,
        };
        Ok(Found {
            name,
            mediated,
            mdev_type,
            driver,
            group: number,
            members,
            route,
        })
    }

    fn group_route(&self, name: &str, number: u32) -> Result<Route, OpenError> {
        let vfio = self.dev.join("vfio");
        let node = vfio.join(number.to_string());
        if !node.exists() && vfio.join(format!("noiommu-{number}")).exists() {
            return Err(OpenError::NoIommu { name: name.into() });
        }
        Ok(Route::Group {
            node,
            container: vfio.join("vfio"),
        })
    }

    /// Its character device, if the kernel has made one.
    fn cdev(&self, path: &Path) -> Option<PathBuf> {
        let mut entries = fs::read_dir(path.join("vfio-dev")).ok()?;
        let name = entries.find_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("vfio")?.parse::<u32>().ok()?;
            Some(name)
        })?;
        let cdev = self.dev.join("vfio/devices").join(name);
        cdev.exists().then_some(cdev)
    }

    fn path_of(&self, text: &str) -> Result<PathBuf, OpenError> {
        if text.contains('/') {
            return Ok(text.into());
        }
        if let Some(address) = pci_address(text) {
            return Ok(self.sys.join("bus/pci/devices").join(address));
        }
        if is_uuid(text) {
            return Ok(self.sys.join("bus/mdev/devices").join(text));
        }
        Err(OpenError::Name(text.into()))
    }
}

/// The full form of `[DDDD:]BB:DD.F`, if that is what it is.
fn pci_address(text: &str) -> Option<String> {
    let (rest, function) = text.rsplit_once('.')?;
    let mut parts: Vec<_> = rest.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0000");
    }
    let [domain, bus, device] = parts.as_slice() else {
        return None;
    };
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let valid = hex(domain, 4..=8)
        && hex(bus, 2..=2)
        && hex(device, 2..=2)
        && matches!(function.as_bytes(), [b'0'..=b'7']);
    valid.then(|| format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

/// Whether the text has the form of a UUID.
pub(super) fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// The last part of what a link points to.
fn link(path: &Path) -> Option<String> {
    last(&fs::read_link(path).ok()?)
}

fn last(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn members(devices: &Path) -> Vec<Member> {
    let entries = fs::read_dir(devices).into_iter().flatten();
    let mut members: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let driver = link(&entry.path().join("driver"));
            let name = entry.file_name().into_string().ok()?;
            Some(Member { name, driver })
        })
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const GPU: &str = "0000:01:00.0";
    const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

    /// A machine made of files.
    pub(crate) struct Machine {
        pub(crate) root: TempDir,
    }

    impl Machine {
        pub(crate) fn new() -> Self {
            let root = TempDir::new().unwrap();
            let machine = Self { root };
            for folder in [
                "sys/bus/pci/devices",
                "sys/bus/mdev/devices",
                "dev/vfio/devices",
            ] {
                fs::create_dir_all(machine.at(folder)).unwrap();
            }
            machine
        }

        pub(crate) fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        pub(crate) fn roots(&self) -> Roots {
            Roots {
                sys: self.at("sys"),
                dev: self.at("dev"),
            }
        }

        pub(crate) fn touch(&self, path: &str) {
            fs::write(self.at(path), "").unwrap();
        }

        pub(crate) fn device(
            &self,
            bus: &str,
            name: &str,
            driver: Option<&str>,
            group: Option<u32>,
        ) {
            let path = self.at(&format!("sys/devices/{bus}/{name}"));
            fs::create_dir_all(&path).unwrap();
            let by_bus = self.at(&format!("sys/bus/{bus}/devices/{name}"));
            symlink(&path, by_bus).unwrap();
            symlink(format!("/sys/bus/{bus}"), path.join("subsystem")).unwrap();
            if let Some(driver) = driver {
                symlink(
                    format!("/sys/bus/{bus}/drivers/{driver}"),
                    path.join("driver"),
                )
                .unwrap();
            }
            if let Some(group) = group {
                let group = self.at(&format!("sys/kernel/iommu_groups/{group}"));
                fs::create_dir_all(group.join("devices")).unwrap();
                symlink(&path, group.join("devices").join(name)).unwrap();
                symlink(&group, path.join("iommu_group")).unwrap();
            }
        }

        pub(crate) fn cdev(&self, name: &str, number: u32) {
            let folder = format!("sys/devices/pci/{name}/vfio-dev/vfio{number}");
            fs::create_dir_all(self.at(&folder)).unwrap();
        }
    }

    #[test]
    fn a_group_where_there_is_no_cdev() {
        let machine = Machine::new();
        machine.device("pci", GPU, Some("vfio-pci"), Some(7));
        machine.device("pci", "0000:01:00.1", Some("snd_hda_intel"), Some(7));
        for text in [
            GPU,
            "01:00.0",
            machine
                .at("sys/bus/pci/devices/0000:01:00.0")
                .to_str()
                .unwrap(),
        ] {
            let found = machine.roots().find(text).unwrap();
            assert_eq!((found.name.as_str(), found.group), (GPU, 7));
            assert_eq!(found.data_owner(), "vfio-pci");
            assert_eq!(found.members.len(), 2);
            assert_eq!(found.members[1].driver.as_deref(), Some("snd_hda_intel"));
            let node = machine.at("dev/vfio/7");
            let container = machine.at("dev/vfio/vfio");
            assert_eq!(found.route, Route::Group { node, container });
        }
    }

    #[test]
    fn a_cdev_is_taken_only_with_iommufd() {
        let machine = Machine::new();
        machine.device("pci", GPU, Some("xe-vfio-pci"), Some(7));
        machine.cdev(GPU, 3);
        let route = || machine.roots().find(GPU).unwrap().route;
        assert!(
            matches!(route(), Route::Group { .. }),
            "no node: stock kernels have none"
        );
        machine.touch("dev/vfio/devices/vfio3");
        assert!(matches!(route(), Route::Group { .. }), "no iommufd");
        machine.touch("dev/iommu");
        let cdev = machine.at("dev/vfio/devices/vfio3");
        let iommu = machine.at("dev/iommu");
        assert_eq!(route(), Route::Cdev { cdev, iommu });
    }

    #[test]
    fn mediated_devices_are_found_by_uuid() {
        let machine = Machine::new();
        machine.device("mdev", UUID, Some("vfio_mdev"), Some(9));
        let find = || machine.roots().find(UUID).unwrap();
        let found = find();
        assert!(found.mediated && found.group == 9);
        assert_eq!(found.data_owner(), "vfio_mdev");
        let types = "/sys/devices/virtual/mtty/mtty/mdev_supported_types";
        let kind = machine.at(&format!("sys/devices/mdev/{UUID}/mdev_type"));
        symlink(format!("{types}/mtty-1"), kind).unwrap();
        assert_eq!(find().data_owner(), "mtty-1");
    }

    #[test]
    fn what_is_in_the_way_is_named_with_what_to_do() {
        let machine = Machine::new();
        machine.device("pci", GPU, Some("nouveau"), Some(7));
        machine.device("pci", "0000:02:00.0", None, Some(8));
        machine.device("pci", "0000:03:00.0", Some("vfio-pci"), None);
        machine.device("pci", "0000:04:00.0", Some("vfio-pci"), Some(4));
        machine.touch("dev/vfio/noiommu-4");
        let text = |device| machine.roots().find(device).unwrap_err().to_string();
        let nouveau = text(GPU);
        assert!(
            nouveau.contains("driver nouveau") && nouveau.contains("driver_override"),
            "{nouveau}"
        );
        assert!(nouveau.contains("driver/unbind"), "{nouveau}");
        let free = text("0000:02:00.0");
        assert!(
            free.contains("no driver") && !free.contains("unbind"),
            "{free}"
        );
        for device in ["0000:03:00.0", "0000:04:00.0"] {
            let iommu = text(device);
            assert!(iommu.contains("intel_iommu=on"), "{iommu}");
        }
        assert!(
            text("05:00.0").contains("0000:05:00.0"),
            "{}",
            text("05:00.0")
        );
        assert!(text("gpu0").contains("PCI address"), "{}", text("gpu0"));
        for lines in [nouveau, free, text("gpu0")] {
            assert_eq!(lines.lines().count(), 1);
        }
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(pci_address("01:00.0").as_deref(), Some(GPU));
        assert_eq!(
            pci_address("10000:AB:1f.7").as_deref(),
            Some("10000:ab:1f.7")
        );
        for bad in [
            "",
            "01:00",
            "1:0.0",
            "01:00.8",
            "01:00.00",
            "0:01:00.0",
            "zz:00.0",
            "a:b:c:d.0",
        ] {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
        assert!(is_uuid(UUID) && !is_uuid("83b8f4f2509f382f3c1ee6bfe0fa1001"));
    }
}
