# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Debian's stock kernel with its VFIO modules, and the mediated sample devices, which Debian does not ship, built from
# Debian's source package of that kernel against its headers. Sourced by `prepare`.

readonly SAMPLES=(mtty mdpy mbochs)

# build_vfio_kernel TREE DEBS
build_vfio_kernel() {
    local tree=$1 debs=$2 toolchain release headers closure deb kbuild=$2/samples sample
    need_namespaces
    toolchain=$(tree_of toolchain)
    build_kernel "$tree" "$debs" linux-image-amd64 vfio_pci vfio_iommu_type1 mdev
    release=$(sed -nE 's/^linux-(image|binary)-([^=]*)=.*/\2/p' "$tree/packages" | head -n 1)

    closure=$(apt_closure "linux-headers-$release/$SUITE" | grep -E '^linux-(headers|kbuild)-[0-9]') ||
        unavailable "apt finds no kernel headers in $SUITE"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $closure || unavailable "the kernel's headers could not be downloaded"
    for deb in "$debs"/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$debs" --no-same-owner; done
    headers=$debs/usr/src
    # Headers and kbuild name each other by their installed places, which is where the toolchain's root shows them.
    source_package "$SUITE" "$debs/source"
    unpack_source "$debs/source" "$kbuild" samples/vfio-mdev
    mv "$kbuild"/samples/vfio-mdev/* "$kbuild/"
    printf 'obj-m := %s\n' "${SAMPLES[*]/%/.o}" >"$kbuild/Kbuild"
    rm -f "$kbuild/Makefile"
    # shellcheck disable=SC2016
    in_toolchain "$toolchain" "$debs" sh -ec '
        mkdir -p /usr/src /usr/lib
        mount --bind usr/src /usr/src
        for kbuild in usr/lib/linux-kbuild-*; do
            mkdir -p "/$kbuild"
            mount --bind "$kbuild" "/$kbuild"
        done
        make -s -C "/usr/src/linux-headers-$1" M=/build/samples CONFIG_DEBUG_INFO_BTF_MODULES= modules
    ' sh "$release" >"$debs/build.log" 2>&1 || die "the sample devices do not build: $(tail -n 20 "$debs/build.log")"
    for sample in "${SAMPLES[@]}"; do
        cp "$kbuild/$sample.ko" "$tree/modules/"
        printf '%s.ko\n' "$sample" >>"$tree/load-order"
    done
    rm -rf "$debs"
    printf '%s\n' "$closure" >>"$tree/packages"
}
