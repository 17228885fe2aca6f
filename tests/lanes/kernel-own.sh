# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Lane `kernel-own`: VFIO of a recent kernel with our own configuration (tests/kernel/config) in an emulated guest: a file
# for each device, and iommufd. Sourced by `run`, after kernel-stock.sh.

lane_kernel_own() { kernel_lane own-kernel own-module; }
