// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What guests see of GPUs: each fixture's configuration space, composed by the backend, decoded by `lspci` in a Linux
//! guest; and eight GPUs in two cliques.

mod cliques;
mod fixtures;
mod machine;
mod table;
