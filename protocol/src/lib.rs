// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vfio-user protocol, for servers and clients alike.
//!
//! | module | what |
//! |---|---|
//! | [`header`] | the 16-byte message header, commands, flags |
//! | [`codec`] | [`codec::Reader`], which cannot run past its end, and its errors |
//! | [`version`] | VERSION: capabilities and their negotiation |
//! | [`dma`], [`device`], [`irq`], [`region`], [`io_fds`], [`feature`], [`migration`] | the payloads, by subject |
//! | [`extension`] | what this project adds, valid only once negotiated |
//! | [`request`] | any request, decoded and checked for shape |
//! | [`deframer`] | bytes and descriptors in any fragmentation → messages; no I/O |
//! | [`transport`] | one recvmsg and one sendmsg per exchange over a UNIX socket |
//!
//! Layouts are those of the vfio-user specification (QEMU, `docs/interop/vfio-user.rst`). All integers are
//! host endian; offsets in tables count from the end of the header. Nothing here knows PCI or policy.
#![deny(unsafe_code)]

pub mod codec;
pub mod deframer;
pub mod device;
pub mod dma;
pub mod extension;
pub mod feature;
pub mod header;
pub mod io_fds;
pub mod irq;
pub mod migration;
pub mod region;
pub mod request;
pub mod transport;
pub mod version;

pub use codec::DecodeError;
pub use header::{Command, HEADER_SIZE, Header};
pub use request::Request;
