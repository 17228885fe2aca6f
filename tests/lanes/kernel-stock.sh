# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `kernel-stock`: VFIO of Debian's ordinary kernel in an emulated guest: groups and containers. Sourced by `run`.

lane_kernel_stock() { kernel_lane vfio-kernel; }

# kernel_lane COMPONENT: the tests in tests/tests/kernel/ with that kernel.
kernel_lane() {
    local only=()
    prepare "$1" qemu busybox || return
    local help
    if [ -n "${VFIO_USER_GPU_STATIC:-}" ]; then
        help=$("$VFIO_USER_GPU_STATIC" --help)
    else
        help=$(cargo run --quiet --package vfio-user-gpu -- --help)
    fi
    if [[ $help != *' --device '* ]]; then
        # Everything else has the backend own a device of the kernel's.
        only=(ground::)
        skip_lane "the backend has no --device; only the ground it will stand on is tested"
    fi
    QEMU_VFIO_USER=${QEMU_VFIO_USER:-${PREPARED[qemu]}/run} \
        VFIO_USER_GPU_QEMU_TREE=${PREPARED[qemu]} \
        VFIO_USER_GPU_BUSYBOX=${PREPARED[busybox]}/busybox \
        VFIO_USER_GPU_VFIO_KERNEL=${PREPARED[$1]} \
        cargo_tests --package system-tests --test kernel -- --ignored --nocapture "${only[@]}"
}
