# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `kernel-stock`: VFIO of Debian's ordinary kernel in an emulated guest: groups and containers. Sourced by `run`.

lane_kernel_stock() { kernel_lane vfio-kernel; }

# kernel_lane COMPONENT: the tests in tests/tests/kernel/ with that kernel.
kernel_lane() {
    prepare "$1" qemu busybox || return
    QEMU_VFIO_USER=${QEMU_VFIO_USER:-${PREPARED[qemu]}/run} \
        VFIO_USER_GPU_QEMU_TREE=${PREPARED[qemu]} \
        VFIO_USER_GPU_BUSYBOX=${PREPARED[busybox]}/busybox \
        VFIO_USER_GPU_VFIO_KERNEL=${PREPARED[$1]} \
        cargo_tests --package system-tests --test kernel -- --ignored --nocapture
}
