# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A compiler and what kernels are built with, as a small Debian root: the machine's own tools and C library do not
# matter. Commands run in it by chroot inside a mount namespace, which needs root or unprivileged user namespaces. Sourced by
# `prepare`.

readonly TOOLCHAIN=(
    gcc make flex bison bc libelf-dev libssl-dev zlib1g-dev libc6-dev linux-libc-dev perl-base xz-utils kmod
    base-files bash dash coreutils findutils diffutils sed grep gawk tar gzip mount
)

# build_toolchain TREE DEBS
build_toolchain() {
    local tree=$1 debs=$2 packages deb
    need_namespaces
    packages=$(apt_closure "${TOOLCHAIN[@]/%//$SUITE}") || unavailable "apt cannot resolve a compiler from $SUITE"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $packages || unavailable "the compiler's packages could not be downloaded"
    for deb in "$debs"/*.deb; do
        # The archives' own folders are given away to root only, which an unpacking user may not be.
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree" --no-same-owner --keep-directory-symlink \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
    done
    rm -rf "$debs"
    # What the packages would link when they are configured.
    ln -sf gawk "$tree/usr/bin/awk"
    mkdir -p "$tree"/{dev,proc,tmp,build}
    printf '%s\n' "$packages" >"$tree/packages"
    in_toolchain "$tree" "$tree/tmp" gcc --version >/dev/null
}

# The command that starts another with a mount namespace of its own.
mount_namespace() {
    printf '%s\n' unshare --mount
    [ "$(id -u)" -eq 0 ] || printf '%s\n' --map-root-user
}

# Whether in_toolchain can work here.
need_namespaces() {
    command -v unshare >/dev/null || unavailable "this machine has no unshare (package util-linux)"
    # shellcheck disable=SC2046
    $(mount_namespace) true 2>/dev/null ||
        unavailable "building a kernel takes root with CAP_SYS_ADMIN, or unprivileged user namespaces"
}

# in_toolchain TREE FOLDER COMMAND...: runs COMMAND with TREE as its root and FOLDER, at /build, as its working folder.
in_toolchain() {
    local tree=$1 folder=$2
    shift 2
    # shellcheck disable=SC2016,SC2046
    $(mount_namespace) /bin/sh -ec '
        tree=$1 folder=$2
        shift 2
        mount --rbind /dev "$tree/dev"
        mount --rbind /proc "$tree/proc"
        mount --bind "$folder" "$tree/build"
        exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LC_ALL=C \
            sh -ec "cd /build && exec \"\$@\"" sh "$@"
    ' sh "$tree" "$folder" "$@"
}
