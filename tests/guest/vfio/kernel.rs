// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's own VFIO interface, by bare ioctls (linux/vfio.h, linux/iommufd.h): what the backend stands on, looked
//! at without it, and what a launcher opens to hand over.

use std::{
    error::Error,
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use super::{events::Event, pci::Function};

const SET_IOMMU: u64 = 0x3b66;
const GROUP_GET_STATUS: u64 = 0x3b67;
const GROUP_SET_CONTAINER: u64 = 0x3b68;
const GROUP_GET_DEVICE_FD: u64 = 0x3b6a;
const DEVICE_GET_INFO: u64 = 0x3b6b;
const DEVICE_GET_REGION_INFO: u64 = 0x3b6c;
const DEVICE_GET_IRQ_INFO: u64 = 0x3b6d;
const DEVICE_SET_IRQS: u64 = 0x3b6e;
const DEVICE_RESET: u64 = 0x3b6f;
const IOMMU_MAP_DMA: u64 = 0x3b71;
const DEVICE_FEATURE: u64 = 0x3b75;
const DEVICE_BIND_IOMMUFD: u64 = 0x3b76;
const DEVICE_ATTACH_IOMMUFD_PT: u64 = 0x3b77;
const IOMMU_IOAS_ALLOC: u64 = 0x3b81;
const IOMMU_IOAS_MAP: u64 = 0x3b85;

const TYPE1V2_IOMMU: u64 = 3;
const GROUP_VIABLE: u32 = 1;
const MAP_READ_WRITE: u32 = 3;
/// `IOMMU_IOAS_MAP_FIXED_IOVA | WRITEABLE | READABLE`.
const IOAS_MAP_FIXED_READ_WRITE: u32 = 7;
/// `VFIO_IRQ_SET_DATA_NONE`, `_DATA_EVENTFD`, `_ACTION_UNMASK`, `_ACTION_TRIGGER`.
const IRQ_NONE: u32 = 1;
const IRQ_EVENTFD: u32 = 4;
const IRQ_UNMASK: u32 = 0x10;
const IRQ_TRIGGER: u32 = 0x20;
/// `VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`.
const FEATURE_SET_VF_TOKEN: u32 = 1 << 17;

/// Declares the structures of ioctls: `u32` and `u64` fields without padding.
macro_rules! structures {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name { $(pub $field: $kind),* }
    )*};
}

structures! {
    GroupStatus { argsz: u32, flags: u32 }
    DeviceInfo { argsz: u32, flags: u32, num_regions: u32, num_irqs: u32, cap_offset: u32, pad: u32 }
    RegionInfo { argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64 }
    IrqInfo { argsz: u32, flags: u32, index: u32, count: u32 }
    Type1Map { argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64 }
    BindIommufd { argsz: u32, flags: u32, iommufd: i32, out_devid: u32, token: u64 }
    AttachPt { argsz: u32, flags: u32, pt_id: u32, pasid: u32 }
    IoasAlloc { size: u32, flags: u32, out_ioas_id: u32 }
    IoasMap { size: u32, flags: u32, ioas_id: u32, reserved: u32, user_va: u64, length: u64, iova: u64 }
    SetVfToken { argsz: u32, flags: u32, token: [u8; 16] }
}

/// How a device was opened.
pub enum Iommu {
    /// Through its group.
    Container {
        /// The container, with the group in it and an IOMMU model chosen.
        container: OwnedFd,
        /// Keeps the group in the container.
        _group: OwnedFd,
    },
    /// Through its own file.
    Iommufd {
        /// `/dev/iommu`.
        iommufd: OwnedFd,
        /// Its address space, once [`OpenDevice::attach`] made one.
        ioas: u32,
    },
}

/// An open VFIO device.
pub struct OpenDevice {
    /// Its descriptor.
    pub device: File,
    /// What its DMA goes through.
    pub iommu: Iommu,
}

impl OpenDevice {
    /// Opens `function` through its group; `token` where a VF needs one.
    pub fn by_group(function: &Function, token: Option<&str>) -> Result<Self, Box<dyn Error>> {
        let container: OwnedFd = read_write("/dev/vfio/vfio")?.into();
        let group: OwnedFd = read_write(&function.group_file()?.to_string_lossy())?.into();
        let mut status = GroupStatus {
            argsz: size_of_u32::<GroupStatus>(),
            flags: 0,
        };
        ioctl(&group, GROUP_GET_STATUS, &mut status)?;
        if status.flags & GROUP_VIABLE == 0 {
            return Err(format!("group {} is not viable", function.group()?).into());
        }
        let mut number = container.as_raw_fd();
        ioctl(&group, GROUP_SET_CONTAINER, &mut number)?;
        ioctl_value(&container, SET_IOMMU, TYPE1V2_IOMMU)?;
        let name = match token {
            Some(token) => format!("{} vf_token={token}", function.address()),
            None => function.address(),
        };
        let name = CString::new(name)?;
        // SAFETY: the kernel reads the string, which ends in NUL and lives until the call is over.
        let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
        if fd < 0 {
            return Err(failed(GROUP_GET_DEVICE_FD).into());
        }
        // SAFETY: a new descriptor of this process, which nothing else owns.
        let device = unsafe { File::from_raw_fd(fd) };
        Ok(Self {
            device,
            iommu: Iommu::Container {
                container,
                _group: group,
            },
        })
    }

    /// Opens `function` through its own file; it belongs to nobody until [`Self::attach`].
    pub fn by_cdev(function: &Function) -> Result<Self, Box<dyn Error>> {
        let file = function
            .cdev_file()?
            .ok_or("this kernel has no VFIO character devices")?;
        let device = read_write(&file.to_string_lossy())?;
        let iommufd = read_write("/dev/iommu")?.into();
        Ok(Self {
            device,
            iommu: Iommu::Iommufd { iommufd, ioas: 0 },
        })
    }

    /// The newest way this kernel has, complete.
    pub fn open(function: &Function) -> Result<Self, Box<dyn Error>> {
        if function.cdev_file()?.is_none() {
            return Self::by_group(function, None);
        }
        let mut device = Self::by_cdev(function)?;
        device.attach()?;
        Ok(device)
    }

    /// Binds a device of [`Self::by_cdev`] to its IOMMU descriptor and gives it an address space.
    pub fn attach(&mut self) -> Result<(), Box<dyn Error>> {
        let Iommu::Iommufd { iommufd, ioas } = &mut self.iommu else {
            return Ok(());
        };
        // Without a token; the field came later than the request, hence not the whole structure.
        let argsz = size_of_u32::<BindIommufd>() - size_of_u32::<u64>();
        let mut bind = BindIommufd {
            argsz,
            iommufd: iommufd.as_raw_fd(),
            ..BindIommufd::default()
        };
        ioctl(&self.device, DEVICE_BIND_IOMMUFD, &mut bind)?;
        let mut alloc = IoasAlloc {
            size: size_of_u32::<IoasAlloc>(),
            ..IoasAlloc::default()
        };
        ioctl(iommufd, IOMMU_IOAS_ALLOC, &mut alloc)?;
        let argsz = size_of_u32::<AttachPt>() - size_of_u32::<u32>();
        let mut attach = AttachPt {
            argsz,
            pt_id: alloc.out_ioas_id,
            ..AttachPt::default()
        };
        ioctl(&self.device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach)?;
        *ioas = alloc.out_ioas_id;
        Ok(())
    }

    /// What the device is.
    pub fn info(&self) -> Result<DeviceInfo, Box<dyn Error>> {
        let mut info = DeviceInfo {
            argsz: size_of_u32::<DeviceInfo>(),
            ..DeviceInfo::default()
        };
        ioctl(&self.device, DEVICE_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// One region; none where the kernel says there is no such index.
    pub fn region(&self, index: u32) -> Result<Option<RegionInfo>, Box<dyn Error>> {
        let argsz = size_of_u32::<RegionInfo>();
        let mut info = RegionInfo {
            argsz,
            index,
            ..RegionInfo::default()
        };
        match ioctl(&self.device, DEVICE_GET_REGION_INFO, &mut info) {
            Ok(()) => Ok(Some(info)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// One interrupt index; none where the kernel says there is no such.
    pub fn irq(&self, index: u32) -> Result<Option<IrqInfo>, Box<dyn Error>> {
        let mut info = IrqInfo {
            argsz: size_of_u32::<IrqInfo>(),
            index,
            ..IrqInfo::default()
        };
        match ioctl(&self.device, DEVICE_GET_IRQ_INFO, &mut info) {
            Ok(()) => Ok(Some(info)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads from a region.
    pub fn read<const N: usize>(
        &self,
        region: u32,
        offset: u64,
    ) -> Result<[u8; N], Box<dyn Error>> {
        let info = self.region(region)?.ok_or("no such region")?;
        let mut bytes = [0; N];
        self.device
            .read_exact_at(&mut bytes, info.offset + offset)?;
        Ok(bytes)
    }

    /// Writes to a region.
    pub fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        let info = self.region(region)?.ok_or("no such region")?;
        Ok(self.device.write_all_at(bytes, info.offset + offset)?)
    }

    /// Lets the device reach `size` bytes of this process at `vaddr` under the address `iova`.
    pub fn map(&self, iova: u64, vaddr: u64, size: u64) -> Result<(), Box<dyn Error>> {
        match &self.iommu {
            Iommu::Container { container, .. } => {
                let argsz = size_of_u32::<Type1Map>();
                let mut map = Type1Map {
                    argsz,
                    flags: MAP_READ_WRITE,
                    vaddr,
                    iova,
                    size,
                };
                ioctl(container, IOMMU_MAP_DMA, &mut map)?;
            }
            Iommu::Iommufd { iommufd, ioas } => {
                let mut map = IoasMap {
                    size: size_of_u32::<IoasMap>(),
                    flags: IOAS_MAP_FIXED_READ_WRITE,
                    ioas_id: *ioas,
                    reserved: 0,
                    user_va: vaddr,
                    length: size,
                    iova,
                };
                ioctl(iommufd, IOMMU_IOAS_MAP, &mut map)?;
            }
        }
        Ok(())
    }

    /// Gives the vectors from `start` their eventfds.
    pub fn arm(&self, index: u32, start: u32, events: &[&Event]) -> Result<(), Box<dyn Error>> {
        let fds = events.iter().map(|event| event.fd().as_raw_fd());
        let fds: Vec<_> = fds.map(i32::cast_unsigned).collect();
        self.set_irqs(
            IRQ_EVENTFD | IRQ_TRIGGER,
            index,
            start,
            u32::try_from(events.len())?,
            &fds,
        )
    }

    /// Takes an index's eventfds away.
    pub fn disable(&self, index: u32) -> Result<(), Box<dyn Error>> {
        self.set_irqs(IRQ_NONE | IRQ_TRIGGER, index, 0, 0, &[])
    }

    /// Unmasks the first vector.
    pub fn unmask(&self, index: u32) -> Result<(), Box<dyn Error>> {
        self.set_irqs(IRQ_NONE | IRQ_UNMASK, index, 0, 1, &[])
    }

    fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u32],
    ) -> Result<(), Box<dyn Error>> {
        const HEADER: usize = 5;
        let argsz = u32::try_from((HEADER + data.len()) * size_of::<u32>())?;
        let mut request = [0; 16];
        request[..HEADER].copy_from_slice(&[argsz, flags, index, start, count]);
        request[HEADER..HEADER + data.len()].copy_from_slice(data);
        Ok(ioctl(&self.device, DEVICE_SET_IRQS, &mut request)?)
    }

    /// Resets the device.
    pub fn reset(&self) -> Result<(), Box<dyn Error>> {
        Ok(ioctl_value(&self.device, DEVICE_RESET, 0)?)
    }

    /// Sets the token that users of this function's VFs must know.
    pub fn set_vf_token(&self, token: [u8; 16]) -> Result<(), Box<dyn Error>> {
        let argsz = size_of_u32::<SetVfToken>();
        let mut set = SetVfToken {
            argsz,
            flags: FEATURE_SET_VF_TOKEN,
            token,
        };
        Ok(ioctl(&self.device, DEVICE_FEATURE, &mut set)?)
    }
}

fn read_write(path: &str) -> Result<File, Box<dyn Error>> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(|error| format!("{path}: {error}").into())
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("ioctl structures are small")
}

fn failed(request: u64) -> io::Error {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Kept as it is: callers tell this one apart.
        Some(libc::EINVAL) | None => error,
        Some(_) => io::Error::new(error.kind(), format!("ioctl {request:#x}: {error}")),
    }
}

/// An ioctl whose argument is a structure.
fn ioctl<T>(fd: &impl AsRawFd, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: the request's own structure, whose size (where the kernel may go by it) is in its first field; it is
    // borrowed exclusively for the call. IOAS_MAP's address is that of memory the caller keeps.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(failed(request)),
        _ => Ok(()),
    }
}

/// An ioctl whose argument is a number.
fn ioctl_value(fd: &impl AsRawFd, request: u64, value: u64) -> io::Result<()> {
    // SAFETY: the kernel takes the number as it is.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, value) } {
        -1 => Err(failed(request)),
        _ => Ok(()),
    }
}
