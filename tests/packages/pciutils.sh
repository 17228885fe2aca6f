# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# lspci for guests: TREE/lspci/ holds the program, its dynamic linker, the libraries it needs and the names of vendors and
# devices, all in one folder. Sourced by `prepare`.

# build_pciutils TREE DEBS
build_pciutils() {
    local tree=$1 debs=$2 packages deb root=$2/root libraries linker library
    packages=$(apt_closure "pciutils/$SUITE") || unavailable "apt cannot resolve pciutils from $SUITE"
    # shellcheck disable=SC2086
    apt_fetch "$debs" $packages || unavailable "the packages of pciutils could not be downloaded"
    mkdir -p "$root" "$tree/lspci"
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --no-same-owner
    done
    libraries=$root/usr/lib/x86_64-linux-gnu
    linker=$libraries/ld-linux-x86-64.so.2
    cp -L "$linker" "$tree/lspci/ld.so"
    cp "$root/usr/bin/lspci" "$root/usr/share/misc/pci.ids" "$tree/lspci/"
    # `NAME => FILE (ADDRESS)` for each library, those of libraries included.
    while read -r library; do
        cp -L "$library" "$tree/lspci/"
    done < <("$linker" --library-path "$libraries" --list "$root/usr/bin/lspci" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }')
    rm -rf "$debs"
    printf '%s\n' "$packages" >"$tree/packages"
    "$tree/lspci/ld.so" --library-path "$tree/lspci" "$tree/lspci/lspci" --version >"$tree/check.log" 2>&1 ||
        die "the unpacked lspci does not work: $(cat "$tree/check.log")"
}
