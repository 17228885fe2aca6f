// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU attaches to the backend and the test stands in the processor's place: every access is one we make, and every
//! interrupt and every byte of DMA is seen where it arrives.

mod access;
mod dma;
mod identity;
mod interrupts;
mod lifecycle;
mod rig;
