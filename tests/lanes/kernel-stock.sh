# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `kernel-stock`: VFIO of Debian's ordinary kernel in an emulated guest: groups and containers. Sourced by `run`.

lane_kernel_stock() { kernel_lane vfio-kernel stock-module; }

# kernel_lane KERNEL MODULE: the tests in tests/tests/kernel/ with that kernel, and our test module built for it.
kernel_lane() {
    prepare "$1" "$2" qemu busybox || return
    QEMU_VFIO_USER=${QEMU_VFIO_USER:-${PREPARED[qemu]}/run} \
        VFIO_USER_GPU_QEMU_TREE=${PREPARED[qemu]} \
        VFIO_USER_GPU_BUSYBOX=${PREPARED[busybox]}/busybox \
        VFIO_USER_GPU_VFIO_KERNEL=${PREPARED[$1]} \
        VFIO_USER_GPU_TEST_MODULE=${PREPARED[$2]}/vugtest.ko \
        cargo_tests --package system-tests --test kernel -- --ignored --nocapture
}
