// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on the kernel's VFIO: the bare interface first, then the backend that owns a device of it, driven by the
//! client library.

mod access;
mod backend;
mod bad_input;
mod dirty;
mod dma;
mod edu;
mod events;
mod gpu;
mod igb;
mod interrupts;
mod kernel;
mod lifecycle;
mod memory;
mod migration;
mod mtty;
mod pci;
mod places;
mod privileges;
mod probe;
mod quirks;
mod readme;
mod routes;
mod vmm;

pub use lifecycle::{HOLD_DMA, hold_dma};
pub use vmm::become_qemu;

use crate::Outcome;

/// The check of that name.
pub fn check(name: &str) -> Option<fn() -> Outcome> {
    Some(match name {
        "vfio-devices" => probe::devices,
        "vfio-listing" => probe::listing,
        "vfio-dma" => probe::dma,
        "vfio-mdev" => probe::mediated,
        "vfio-interrupts" => probe::interrupts,
        "vfio-reset" => probe::reset,
        "vfio-token" => probe::vf_token,
        "gpu-variants" => gpu::variants,
        "gpu-interrupts" => gpu::interrupts,
        "gpu-igd" => gpu::igd,
        "gpu-v2" => gpu::every_variant,
        "gpu-v1" => gpu::every_layout,
        "gpu-faults" => gpu::faults,
        "gpu-logging" => gpu::logging,
        "gpu-quiet" => gpu::quiet,
        "owner-v2" => gpu::owner_every_variant,
        "owner-v1" => gpu::owner_every_layout,
        "owner-mtty" => gpu::owner_mtty,
        "owner-faults" => gpu::owner_faults,
        "owner-streams" => gpu::owner_streams,
        "owner-v1-faults" => gpu::owner_v1_faults,
        "owner-ctl" => gpu::owner_tool,
        "owner-devices" => access::all_devices,
        "owner-igd" => quirks::igd,
        "owner-mirror" => quirks::mirror,
        "owner-mdev" => access::mediated,
        "owner-not-mapped" => dma::not_mapped,
        "owner-config" => access::config_space,
        "owner-trapped" => access::trapped,
        "owner-handed-over" => access::handed_over,
        "owner-dma" => dma::copy,
        "owner-dirty" => dirty::hardware,
        "owner-dirty-gpu" => dirty::device_itself,
        "owner-dirty-mdev" => dirty::mediated,
        "owner-bus-master" => dma::bus_master,
        "owner-bad-maps" => dma::bad_maps,
        "owner-msi" => interrupts::msi,
        "owner-msix" => interrupts::msix,
        "owner-intx" => interrupts::intx,
        "owner-routes" => routes::msix,
        "plain-mtty" => migration::mtty,
        "owner-resets" => lifecycle::resets,
        "owner-unplug" => lifecycle::unplug,
        "owner-client-killed" => lifecycle::client_killed,
        "owner-backend-killed" => lifecycle::backend_killed,
        "owner-model" => access::model,
        "owner-info" => access::info,
        "owner-map-speed" => dma::speed,
        "owner-speed" => access::speed,
        "owner-qemu" => vmm::qemu,
        "owner-readme" => readme::real_host,
        "owner-launcher" => privileges::launcher,
        "owner-user" => privileges::user,
        "owner-memlock" => privileges::memlock,
        "bad-no-such-device" => bad_input::no_such_device,
        "bad-not-bound" => bad_input::not_bound,
        "bad-not-viable" => bad_input::not_viable,
        "bad-busy" => bad_input::busy,
        "bad-no-permission" => bad_input::no_permission,
        "bad-vf-token" => bad_input::vf_token,
        "bad-no-iommu" => bad_input::no_iommu,
        _ => return None,
    })
}
