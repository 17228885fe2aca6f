# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `qemu`: the tests in tests/tests/qemu_*.rs. QEMU_VFIO_USER=PROGRAM takes that QEMU instead of Debian's. Sourced
# by `run`.

lane_qemu() {
    local components=(cloud-kernel stock-kernel pciutils)
    [ -n "${QEMU_VFIO_USER:-}" ] || components+=(qemu)
    prepare "${components[@]}" || return
    local qemu=${QEMU_VFIO_USER:-${PREPARED[qemu]:-}/run}
    # Read whole before it is searched: grep leaving early would kill QEMU.
    local devices
    devices=$("$qemu" -device help 2>&1)
    if [[ $devices != *'"vfio-user-pci"'* ]]; then
        skip_lane "QEMU_VFIO_USER=$qemu does not run, or has no vfio-user-pci"
        return
    fi
    QEMU_VFIO_USER=$qemu \
        VFIO_USER_GPU_CLOUD_KERNEL=${PREPARED[cloud-kernel]} \
        VFIO_USER_GPU_STOCK_KERNEL=${PREPARED[stock-kernel]} \
        VFIO_USER_GPU_PCIUTILS=${PREPARED[pciutils]} \
        cargo_tests --package system-tests --test 'qemu_*' -- --ignored
}
