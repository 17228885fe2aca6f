# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Kernel trees: TREE/vmlinuz, TREE/modules/*.ko (uncompressed) and TREE/load-order, the file names of the modules in an
# order in which they can be loaded. Only what a test loads is kept. Sourced by `prepare`.

build_cloud_kernel() { build_kernel "$1" "$2" linux-image-cloud-amd64 uio_pci_generic; }
build_stock_kernel() { build_kernel "$1" "$2" linux-image-amd64 bochs; }

# build_kernel TREE DEBS METAPACKAGE MODULE...: the kernel that METAPACKAGE stands for today, with MODULE... and all they
# depend on.
build_kernel() {
    local tree=$1 debs=$2 metapackage=$3 closure deb
    shift 3
    closure=$(apt_closure "$metapackage/$SUITE") || unavailable "apt cannot resolve $metapackage from $SUITE"
    # linux-image holds it all; newer packaging divides it into linux-binary and linux-modules.
    closure=$(grep -E '^linux-(image|binary|modules)[a-z-]*-[0-9]' <<<"$closure") ||
        die "$metapackage stands for no kernel package"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $closure || unavailable "the packages of $metapackage could not be downloaded"
    xz_program "$debs/xz"
    # One uncompressed archive, since the modules are taken out one by one as their dependencies become known.
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" >"$deb.tar"
        rm "$deb"
        tar -tf "$deb.tar" | sed "s|^|$deb.tar |" >>"$debs/files"
    done
    take_file '/vmlinuz[^/]*$' >"$tree/vmlinuz"
    take_file '/modules\.builtin$' >"$debs/builtin"
    collect_modules "$tree" "$debs" "$@"
    rm -rf "$debs"
    printf '%s\n' "$closure" >"$tree/packages"
}

# collect_modules TREE DEBS MODULE...: takes MODULE... and all they depend on into TREE, from the archives that
# DEBS/files lists; DEBS/builtin lists what needs no module.
collect_modules() {
    local tree=$1 debs=$2 module
    shift 2
    mkdir -p "$tree/modules"
    : >"$tree/load-order"
    for module in "$@"; do add_module "$module"; done
}

# take_file REGEX: the content of the one packaged file whose name matches.
take_file() {
    local archive name
    read -r archive name < <(grep -E -- "$1" "$debs/files") || die "no packaged file matches $1"
    tar -xOf "$archive" "$name"
}

# add_module NAME: NAME's dependencies first (depth first, each once), then NAME. The kernel writes - and _ alike.
add_module() {
    local name=${1//-/_} needs need
    local pattern="/${name//_/[-_]}\.ko"
    ! grep -qx "$name.ko" "$tree/load-order" || return 0
    ! grep -qE "$pattern\$" "$debs/builtin" || return 0
    take_file "$pattern(\.xz)?\$" >"$debs/module"
    if grep -qE "$pattern\.xz\$" "$debs/files"; then
        "${XZ[@]}" -dc <"$debs/module" >"$tree/modules/$name.ko"
    else
        mv "$debs/module" "$tree/modules/$name.ko"
    fi
    # .modinfo is a run of NUL-terminated KEY=VALUE strings.
    needs=$(tr '\0' '\n' <"$tree/modules/$name.ko" | sed -n 's/^depends=//p')
    for need in ${needs//,/ }; do add_module "$need"; done
    printf '%s.ko\n' "$name" >>"$tree/load-order"
}

# xz_program DIR: sets XZ to a command; where the machine has none, to one unpacked from its package.
xz_program() {
    XZ=(xz)
    ! command -v xz >/dev/null || return 0
    local deb
    # shellcheck disable=SC2046
    apt_fetch "$1" $(apt_closure "xz-utils/$SUITE") || unavailable "xz-utils could not be downloaded"
    for deb in "$1"/*.deb; do dpkg-deb -x "$deb" "$1"; done
    rm "$1"/*.deb
    local libraries=$1/usr/lib/x86_64-linux-gnu
    XZ=("$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$1/usr/bin/xz")
}
