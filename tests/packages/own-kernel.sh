# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A kernel of our own configuration (tests/kernel/config), built from Debian's newest source package. The build takes
# ten minutes or so; it happens once for each change of that configuration or of this file. TREE/headers is what modules are built with. Sourced by
# `prepare`.

# build_own_kernel TREE DEBS
build_own_kernel() {
    local tree=$1 debs=$2 toolchain build package
    need_namespaces
    toolchain=$(tree_of toolchain)
    mkdir -p "$debs"
    build=$debs/build
    source_package "$BACKPORTS" "$debs/source"
    package=$(cat "$debs/source/package")
    unpack_source "$debs/source" "$build"
    rm -rf "$debs/source"
    cp "$here/../kernel/config" "$build/fragment"
    say "building the kernel of $package; this takes some minutes"
    in_toolchain "$toolchain" "$build" sh -ec '
        make -s tinyconfig
        scripts/kconfig/merge_config.sh -m .config fragment
        make -s olddefconfig
    ' >"$debs/build.log" 2>&1 || die "the kernel cannot be configured: $(tail -n 20 "$debs/build.log")"
    check_config "$build"
    # shellcheck disable=SC2016
    in_toolchain "$toolchain" "$build" sh -ec 'exec nice -n 19 make -s -j"$(nproc)" bzImage modules' \
        >"$debs/build.log" 2>&1 || die "the kernel does not build: $(tail -n 20 "$debs/build.log")"
    cp "$build/arch/x86/boot/bzImage" "$tree/vmlinuz"
    cp "$build/.config" "$tree/config"
    cp "$build/modules.builtin" "$debs/builtin"
    (cd "$build" && find . -name '*.ko') >"$debs/built"
    tar -cf "$debs/modules.tar" -C "$build" -T "$debs/built"
    sed "s|^|$debs/modules.tar |" "$debs/built" >"$debs/files"
    collect_modules "$tree" "$debs" mtty mdpy mbochs
    keep_headers "$build" "$tree/headers/usr/src/kernel"
    rm -rf "$debs"
    printf '%s\n' "$package" >"$tree/packages"
}

# keep_headers BUILD TO: the parts of a kernel's build folder that modules outside it are built with.
keep_headers() {
    mkdir -p "$2"
    (
        cd "$1"
        find Makefile Kbuild .config Module.symvers include scripts arch/x86/Makefile* arch/x86/include \
            tools/objtool/objtool ! -type d ! -name '*.o' ! -name '*.a' -print0 2>/dev/null || true
    ) >"$2.files"
    tar -c -C "$1" --null -T "$2.files" | tar -x -C "$2"
    rm "$2.files"
}

# check_config BUILD: every line of the fragment holds in the final configuration.
check_config() {
    local line missing=()
    while read -r line; do
        case $line in
            CONFIG_*) grep -qxF "$line" "$1/.config" || missing+=("$line") ;;
            '# CONFIG_'*) ! grep -q "^${line:2:${#line}-13}=" "$1/.config" || missing+=("$line") ;;
        esac
    done <"$1/fragment"
    [ "${#missing[@]}" -eq 0 ] || die "the kernel's configuration did not take: ${missing[*]}"
}

# source_package SUITE DIR: downloads the newest linux-source of SUITE; DIR/package is its name and version.
source_package() {
    local package
    package=$(apt_closure "linux-source/$1" | grep '^linux-source-[0-9]') || unavailable "apt finds no linux-source in $1"
    apt_fetch "$2" "$package" || unavailable "$package could not be downloaded"
    printf '%s\n' "$package" >"$2/package"
}

# unpack_source DIR TO [MEMBER...]: the kernel's source tree, or those parts of it, from the package in DIR.
unpack_source() {
    local dir=$1 to=$2 name
    shift 2
    name=$(sed 's/=.*//' "$dir/package")
    mkdir -p "$to"
    xz_program "$dir/xz"
    dpkg-deb --fsys-tarfile "$dir"/linux-source-*.deb | tar -xO "./usr/src/$name.tar.xz" | "${XZ[@]}" -dc |
        tar -x -C "$to" --no-same-owner --strip-components=1 "${@/#/$name/}"
}
