# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `quick`: everything that needs nothing but the toolchain. Sourced by `run`.

lane_quick() {
    cargo_tests --workspace
}
