# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A shell and its usual commands in one static program, TREE/busybox, for guests. Sourced by `prepare`.

# build_busybox TREE DEBS
build_busybox() {
    local tree=$1 debs=$2 package
    package=$(apt_closure "busybox-static/$SUITE" | grep '^busybox-static=') || unavailable "apt finds no busybox-static"
    apt_fetch "$debs" "$package" || unavailable "$package could not be downloaded"
    dpkg-deb -x "$debs"/*.deb "$debs"
    cp "$debs/usr/bin/busybox" "$tree/busybox"
    rm -rf "$debs"
    printf '%s\n' "$package" >"$tree/packages"
}
