# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Debian's stock kernel with its VFIO modules, and the mediated sample devices, which Debian does not ship, built from
# Debian's source package of that kernel against its headers. TREE/headers is what further modules are built with. Sourced
# by `prepare`.

readonly SAMPLES=(mtty mdpy mbochs)

# build_vfio_kernel TREE DEBS
build_vfio_kernel() {
    local tree=$1 debs=$2 release closure deb samples=$2/samples sample
    need_namespaces
    build_kernel "$tree" "$debs" linux-image-amd64 vfio_pci vfio_iommu_type1 mdev
    release=$(sed -nE 's/^linux-(image|binary)-([^=]*)=.*/\2/p' "$tree/packages" | head -n 1)

    closure=$(apt_closure "linux-headers-$release/$SUITE" | grep -E '^linux-(headers|kbuild)-[0-9]') ||
        unavailable "apt finds no kernel headers in $SUITE"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $closure || unavailable "the kernel's headers could not be downloaded"
    mkdir -p "$tree/headers"
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree/headers" --no-same-owner --exclude='./usr/share/*'
    done
    ln -s "linux-headers-$release" "$tree/headers/usr/src/kernel"
    source_package "$SUITE" "$debs/source"
    unpack_source "$debs/source" "$samples" samples/vfio-mdev
    mv "$samples"/samples/vfio-mdev/* "$samples/"
    printf 'obj-m := %s\n' "${SAMPLES[*]/%/.o}" >"$samples/Kbuild"
    rm -f "$samples/Makefile"
    cp -r "$tree/headers/." "$debs"
    external_modules "$debs" "$samples"
    for sample in "${SAMPLES[@]}"; do
        cp "$debs/module/$sample.ko" "$tree/modules/"
        printf '%s.ko\n' "$sample" >>"$tree/load-order"
    done
    rm -rf "$debs"
    printf '%s\n' "$closure" >>"$tree/packages"
}

# external_modules FOLDER SOURCE: builds the modules of SOURCE/Kbuild in FOLDER/module, with the kernel build system that lies
# in FOLDER/usr as Debian's packages lay it out; usr/src/kernel is the one to use. Nothing but FOLDER/module is written.
external_modules() {
    local folder=$1 toolchain
    toolchain=$(tree_of toolchain)
    cp -r "$2" "$folder/module"
    # Headers and kbuild name each other by their installed places, which is where the toolchain's root shows them.
    # shellcheck disable=SC2016
    in_toolchain "$toolchain" "$folder" sh -ec '
        mkdir -p /usr/src /usr/lib
        mount --bind usr/src /usr/src
        for kbuild in usr/lib/linux-kbuild-*; do
            [ -d "$kbuild" ] || continue
            mkdir -p "/$kbuild"
            mount --bind "$kbuild" "/$kbuild"
        done
        make -s -C /usr/src/kernel M=/build/module CONFIG_DEBUG_INFO_BTF_MODULES= modules
    ' >"$folder/build.log" 2>&1 || die "$2 does not build: $(tail -n 20 "$folder/build.log")"
}
