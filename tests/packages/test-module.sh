# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Our own test module (tests/kernel/module), built for the kernel of each kernel lane: TREE/vugtest.ko. Seconds, and again only
# when its source or that kernel changes. Sourced by `prepare`.

readonly TEST_MODULE=vugtest
readonly TEST_MODULE_SOURCE=../kernel/module

build_stock_module() { build_test_module "$1" "$2" vfio-kernel; }
build_own_module() { build_test_module "$1" "$2" own-kernel; }

# build_test_module TREE DEBS KERNEL
build_test_module() {
    local tree=$1 debs=$2 kernel
    need_namespaces
    kernel=$(tree_of "$3")
    mkdir -p "$debs"
    cp -r "$kernel/headers/." "$debs"
    external_modules "$debs" "$here/$TEST_MODULE_SOURCE"
    cp "$debs/module/$TEST_MODULE.ko" "$tree/"
    rm -rf "$debs"
}
