// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's VFIO in a guest: which kernel is the lane's choice. The guest boots once for each module here, and each
//! test is one of its checks (`tests/guest/vfio/`).

use std::sync::OnceLock;

use system_tests::{
    binaries,
    guest::{Guest, Report},
    lane, nested_qemu,
    vfio_machine::{self, vfio_guest},
};

/// Declares a boot of `$guest` with `$($check)*`, and a test for each.
macro_rules! boot {
    ($(#[$doc:meta])* $name:ident: $guest:expr; $($check:literal $test:ident)*) => {
        $(#[$doc])*
        mod $name {
            use super::*;

            #[track_caller]
            fn report() -> &'static Report {
                static REPORT: OnceLock<Report> = OnceLock::new();
                REPORT.get_or_init(|| {
                    let report = $guest.boot(&[$($check),*]).finish();
                    // The lane shows what it exercised.
                    report.print();
                    report
                })
            }

            $(
                #[test]
                #[ignore = "lane kernel-stock, kernel-own: needs QEMU and a kernel"]
                fn $test() {
                    report().assert_ok($check);
                }
            )*
        }
    };
}

/// The machine with our programs in it.
#[track_caller]
fn owner() -> Guest {
    vfio_guest(lane::vfio_kernel())
        .module("vugtest.ko", lane::test_module())
        .file("bin/vfio-user-gpu", binaries::static_backend())
        .file("bin/vfio-user-ctl", binaries::static_ctl())
}

boot! {
    /// What the backend stands on, without it.
    ground: owner();
    "vfio-devices" vfio_pci_takes_every_device_of_the_machine
    "vfio-listing" the_kernel_lists_regions_and_interrupts
    "vfio-dma" dma_goes_through_the_iommu_and_faults_outside_its_maps
    "vfio-mdev" mediated_devices_open_and_list_their_regions
    "vfio-interrupts" msi_msix_and_intx_reach_their_eventfds
    "vfio-reset" reset_and_flr_clear_a_device
    "vfio-token" a_virtual_function_needs_its_token
    "owner-model" the_static_backend_runs_there
}

boot! {
    /// The devices of our test module, without the backend.
    test_gpu: owner();
    "gpu-variants" every_type_of_test_gpu_opens_and_has_its_regions
    "gpu-interrupts" a_test_gpu_s_interrupts_reach_their_eventfds
    "gpu-igd" an_intel_gpu_shows_its_opregion_and_bridges
    "gpu-v2" test_gpus_migrate_with_every_set_of_states
    "gpu-v1" test_gpus_migrate_by_every_layout_of_the_old_region
    "gpu-faults" a_test_gpu_fails_as_it_is_told
    "gpu-logging" a_test_gpu_reports_the_pages_it_wrote
    "gpu-quiet" the_kernel_has_nothing_to_complain_about
}

boot! {
    /// Devices that migrate from one backend to another.
    migration: owner();
    "owner-v2" devices_migrate_with_every_set_of_states
    "owner-v1" devices_migrate_by_every_layout_of_the_old_region
    "owner-mtty" the_kernel_s_sample_serial_port_migrates
    "plain-mtty" and_does_with_a_client_of_the_bare_specification
    "owner-faults" a_driver_that_fails_or_lies_harms_nobody
    "owner-v1-faults" neither_does_one_with_the_old_region
    "owner-ctl" vfio_user_ctl_migrates_saves_and_loads_devices_of_the_kernel
    "owner-streams" a_stream_that_is_not_right_is_never_loaded
    "gpu-quiet" the_kernel_has_nothing_to_complain_about
}

boot! {
    /// What a client reads and writes.
    access: owner().size(2560, 2);
    "owner-devices" every_device_is_served_as_the_kernel_lists_it
    "owner-mdev" a_mediated_device_is_served
    "owner-config" config_space_is_composed
    "owner-trapped" bars_answer_by_message
    "owner-handed-over" bars_are_mapped_by_the_device_s_descriptor
    "owner-dma" dma_goes_both_ways_and_not_where_no_map_is
    "owner-not-mapped" guest_memory_stays_out_of_the_backend_where_the_kernel_can
    "owner-bus-master" nothing_moves_without_bus_mastering
    "owner-bad-maps" bad_maps_are_refused_with_their_errno
    "owner-info" vfio_user_ctl_describes_it
    "owner-speed" accesses_are_timed_beside_the_kernel_s
    "owner-map-speed" maps_are_timed_beside_the_kernel_s
}

boot! {
    /// What particular GPUs need.
    quirks: owner();
    "owner-igd" an_intel_gpu_s_regions_are_served_and_its_opregion_is_placed
    "owner-mirror" a_bar_shows_the_composed_config_space_and_doorbells_go_to_the_kernel
}

boot! {
    /// Which pages a device wrote.
    dirty: owner();
    "owner-dirty" written_pages_are_those_that_the_iommu_can_tell
    "owner-dirty-gpu" written_pages_of_a_device_that_tracks_itself_are_exact
    "owner-dirty-mdev" written_pages_of_a_mediated_device_are_its_driver_s_or_the_container_s
}

boot! {
    /// Interrupts at the client's eventfds.
    interrupts: owner();
    "owner-msi" msi_passes_a_sleeping_backend
    "owner-msix" msix_passes_a_sleeping_backend_vector_by_vector
    "owner-intx" intx_is_masked_by_its_arrival
    "owner-routes" a_client_without_pci_knowledge_gets_msix_by_the_guest_s_table
}

boot! {
    /// A VMM that nobody here wrote.
    vmm: nested_qemu::add_to(owner(), &binaries::guest_init());
    "owner-qemu" qemu_in_the_guest_uses_a_device_of_the_guest_s_kernel
}

boot! {
    /// Resets and ends.
    lifecycle: owner();
    "owner-resets" flr_and_reset_clear_the_device
    "owner-client-killed" a_client_killed_while_dma_runs_leaves_a_quiet_device
    "owner-backend-killed" a_killed_backend_is_replaced
    "owner-unplug" a_device_the_kernel_wants_back_is_released
}

boot! {
    /// Few rights.
    privileges: owner().file("bin/busybox", lane::busybox());
    "owner-launcher" descriptors_are_handed_to_an_ordinary_user
    "owner-user" root_is_given_up_for_good
    "owner-readme" the_readme_s_section_for_a_real_host_works_word_for_word
    "owner-memlock" a_map_past_memlock_is_refused_with_the_figures
}

boot! {
    /// What cannot be had.
    refusals: owner();
    "bad-no-such-device" no_such_device_is_named
    "bad-not-bound" a_device_of_another_driver_is_refused
    "bad-not-viable" a_group_that_is_not_viable_names_its_members
    "bad-busy" a_device_in_use_is_refused
    "bad-no-permission" a_missing_permission_names_the_file_and_its_mode
    "bad-vf-token" a_missing_vf_token_is_named
}

boot! {
    /// A machine without an IOMMU.
    bare: vfio_machine::bare_guest(lane::vfio_kernel())
        .file("bin/vfio-user-gpu", binaries::static_backend());
    "bad-no-iommu" a_missing_iommu_is_named
}
