# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The QEMU tree: QEMU from Debian backports beside the C library and all else it was linked with, so that the host's
# own libraries do not matter. Sourced by `prepare`.

# What a test never opens: documentation, translations, character sets, debug and other boards' firmware.
readonly QEMU_EXCLUDE=(
    './usr/share/doc/*' './usr/share/man/*' './usr/share/locale/*' './usr/share/info/*' './usr/share/lintian/*'
    './usr/share/bash-completion/*' './usr/share/i18n/*' './usr/lib/x86_64-linux-gnu/gconv/*' './usr/share/perl*'
    './usr/lib/x86_64-linux-gnu/perl*' './var/*' './etc/*'
)

# build_qemu TREE DEBS
build_qemu() {
    local tree=$1 debs=$2 package deb args=()
    local packages
    packages=$(apt_closure "qemu-system-x86/$BACKPORTS" "qemu-system-common/$BACKPORTS" "qemu-system-data/$BACKPORTS" \
        "seabios/$BACKPORTS") || unavailable "apt cannot resolve qemu-system-x86 from $BACKPORTS"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $packages || unavailable "the QEMU packages could not be downloaded"
    for pattern in "${QEMU_EXCLUDE[@]}"; do args+=("--exclude=$pattern"); done
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree" --no-same-owner "${args[@]}"
    done
    rm -rf "$debs"
    printf '%s\n' "$packages" >"$tree/packages"
    write_qemu_wrapper "$tree"
    check_qemu "$tree/run" || die "the unpacked QEMU does not work: $(cat "$tree/check.log")"
}

# The tree is found from the wrapper's own place, since it is built in one folder and then renamed.
write_qemu_wrapper() {
    cat >"$1/run" <<'WRAPPER'
#!/bin/sh
# Starts the QEMU of this tree with the tree's own dynamic linker, libraries, modules and firmware.
tree=$(cd "$(dirname "$0")" && pwd)
libraries=$tree/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$libraries/qemu"
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    --argv0 qemu-system-x86_64 "$tree/usr/bin/qemu-system-x86_64" \
    -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -L "$tree/usr/lib/ipxe/qemu" "$@"
WRAPPER
    chmod +x "$1/run"
}

# check_qemu PROGRAM: it starts and knows vfio-user-pci.
check_qemu() {
    local log=${2:-$(dirname "$1")/check.log}
    "$1" --version >"$log" 2>&1 && "$1" -device help >>"$log" 2>&1 && grep -q '"vfio-user-pci"' "$log"
}
