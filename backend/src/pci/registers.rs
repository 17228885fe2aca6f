// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Offsets and bits of configuration space, under the names that `linux/pci_regs.h` made familiar.
//!
//! Offsets in the header are absolute, those of a capability count from its start. Sources: PCI
//! Local Bus 3.0 chapter 6, PCI Power Management 1.2, PCI Express Base 6.0 chapter 7.

// Sizes

/// Bytes in a conventional configuration space.
pub const PCI_CFG_SPACE_SIZE: u16 = 256;
/// Bytes in a PCI Express configuration space.
pub const PCI_CFG_SPACE_EXP_SIZE: u16 = 4096;
/// Bytes in the header; capabilities come after it.
pub const PCI_STD_HEADER_SIZEOF: u16 = 0x40;
/// Where the extended capability list starts.
pub const PCI_EXT_CAP_START: u16 = 0x100;

// Type 0 header

/// Vendor id, 2 bytes.
pub const PCI_VENDOR_ID: u16 = 0x00;
/// Device id, 2 bytes.
pub const PCI_DEVICE_ID: u16 = 0x02;
/// Command, 2 bytes.
pub const PCI_COMMAND: u16 = 0x04;
/// Respond to I/O space accesses.
pub const PCI_COMMAND_IO: u16 = 1 << 0;
/// Respond to memory space accesses.
pub const PCI_COMMAND_MEMORY: u16 = 1 << 1;
/// May issue requests: DMA and message interrupts.
pub const PCI_COMMAND_MASTER: u16 = 1 << 2;
/// Parity error response.
pub const PCI_COMMAND_PARITY: u16 = 1 << 6;
/// Report errors to the root complex.
pub const PCI_COMMAND_SERR: u16 = 1 << 8;
/// May not assert INTx.
pub const PCI_COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status, 2 bytes.
pub const PCI_STATUS: u16 = 0x06;
/// An INTx interrupt is pending, whether or not INTx is disabled.
pub const PCI_STATUS_INTERRUPT: u16 = 1 << 3;
/// There is a capability list.
pub const PCI_STATUS_CAP_LIST: u16 = 1 << 4;
/// Master data parity error (RW1C).
pub const PCI_STATUS_PARITY: u16 = 1 << 8;
/// Signalled target abort (RW1C).
pub const PCI_STATUS_SIG_TARGET_ABORT: u16 = 1 << 11;
/// Received target abort (RW1C).
pub const PCI_STATUS_REC_TARGET_ABORT: u16 = 1 << 12;
/// Received master abort (RW1C).
pub const PCI_STATUS_REC_MASTER_ABORT: u16 = 1 << 13;
/// Signalled system error (RW1C).
pub const PCI_STATUS_SIG_SYSTEM_ERROR: u16 = 1 << 14;
/// Detected parity error (RW1C).
pub const PCI_STATUS_DETECTED_PARITY: u16 = 1 << 15;
/// Revision, 1 byte.
pub const PCI_REVISION_ID: u16 = 0x08;
/// Class code: programming interface, then subclass, then base class.
pub const PCI_CLASS_PROG: u16 = 0x09;
/// Cache line size, 1 byte; scratch for software on PCI Express.
pub const PCI_CACHE_LINE_SIZE: u16 = 0x0c;
/// Header type, 1 byte; 0 here.
pub const PCI_HEADER_TYPE: u16 = 0x0e;
/// In [`PCI_HEADER_TYPE`]: the device has several functions.
pub const PCI_HEADER_TYPE_MULTI_FUNCTION: u8 = 0x80;
/// First of six BARs of 4 bytes.
pub const PCI_BASE_ADDRESS_0: u16 = 0x10;
/// The BAR is in I/O space.
pub const PCI_BASE_ADDRESS_SPACE_IO: u32 = 1 << 0;
/// The memory BAR takes this dword and the next.
pub const PCI_BASE_ADDRESS_MEM_TYPE_64: u32 = 2 << 1;
/// The memory BAR is prefetchable.
pub const PCI_BASE_ADDRESS_MEM_PREFETCH: u32 = 1 << 3;
/// Subsystem vendor id, 2 bytes.
pub const PCI_SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem id, 2 bytes.
pub const PCI_SUBSYSTEM_ID: u16 = 0x2e;
/// Expansion ROM base address, 4 bytes.
pub const PCI_ROM_ADDRESS: u16 = 0x30;
/// Decode the expansion ROM.
pub const PCI_ROM_ADDRESS_ENABLE: u32 = 1 << 0;
/// Offset of the first capability, 1 byte.
pub const PCI_CAPABILITY_LIST: u16 = 0x34;
/// Interrupt line, 1 byte; scratch for software.
pub const PCI_INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 1 byte: 0 none, 1 INTA to 4 INTD.
pub const PCI_INTERRUPT_PIN: u16 = 0x3d;

// Capability identifiers

/// Power management.
pub const PCI_CAP_ID_PM: u8 = 0x01;
/// Accelerated graphics port.
pub const PCI_CAP_ID_AGP: u8 = 0x02;
/// Vital product data.
pub const PCI_CAP_ID_VPD: u8 = 0x03;
/// Message signalled interrupts.
pub const PCI_CAP_ID_MSI: u8 = 0x05;
/// Vendor specific.
pub const PCI_CAP_ID_VNDR: u8 = 0x09;
/// Subsystem ids of a bridge.
pub const PCI_CAP_ID_SSVID: u8 = 0x0d;
/// PCI Express.
pub const PCI_CAP_ID_EXP: u8 = 0x10;
/// MSI-X.
pub const PCI_CAP_ID_MSIX: u8 = 0x11;
/// Advanced Features of conventional PCI.
pub const PCI_CAP_ID_AF: u8 = 0x13;
/// No capability: holds a place in the extended list.
pub const PCI_EXT_CAP_ID_NULL: u16 = 0x0000;
/// Advanced error reporting.
pub const PCI_EXT_CAP_ID_ERR: u16 = 0x0001;
/// Device serial number.
pub const PCI_EXT_CAP_ID_DSN: u16 = 0x0003;
/// Vendor specific (VSEC).
pub const PCI_EXT_CAP_ID_VNDR: u16 = 0x000b;
/// Alternative routing ids: more than 8 functions.
pub const PCI_EXT_CAP_ID_ARI: u16 = 0x000e;
/// Address translation services.
pub const PCI_EXT_CAP_ID_ATS: u16 = 0x000f;
/// Single root I/O virtualization.
pub const PCI_EXT_CAP_ID_SRIOV: u16 = 0x0010;
/// Multi root I/O virtualization.
pub const PCI_EXT_CAP_ID_MRIOV: u16 = 0x0011;
/// Page requests.
pub const PCI_EXT_CAP_ID_PRI: u16 = 0x0013;
/// Resizable BARs.
pub const PCI_EXT_CAP_ID_REBAR: u16 = 0x0015;
/// Process address space ids.
pub const PCI_EXT_CAP_ID_PASID: u16 = 0x001b;
/// Designated vendor specific.
pub const PCI_EXT_CAP_ID_DVSEC: u16 = 0x0023;
/// Resizable BARs of virtual functions.
pub const PCI_EXT_CAP_ID_VF_REBAR: u16 = 0x0024;

// Power management

/// Capabilities, 2 bytes.
pub const PCI_PM_PMC: u16 = 2;
/// There is a D1, in the upper byte of the capabilities.
pub const PCI_PM_PMC_D1: u8 = 1 << 1;
/// There is a D2.
pub const PCI_PM_PMC_D2: u8 = 1 << 2;
/// Control and status (PMCSR), 2 bytes.
pub const PCI_PM_CTRL: u16 = 4;
/// Power state: 0 is D0, 3 is D3hot.
pub const PCI_PM_CTRL_STATE_MASK: u16 = 3;
/// Going from D3hot to D0 keeps the state.
pub const PCI_PM_CTRL_NO_SOFT_RESET: u16 = 1 << 3;
/// Bytes in the capability.
pub const PCI_PM_SIZEOF: u16 = 8;

// MSI

/// Message control, 2 bytes.
pub const PCI_MSI_FLAGS: u16 = 2;
/// MSI is enabled.
pub const PCI_MSI_FLAGS_ENABLE: u16 = 1 << 0;
/// Vectors the function wants, as a power of two.
pub const PCI_MSI_FLAGS_QMASK: u16 = 0x000e;
/// Vectors that software granted, as a power of two.
pub const PCI_MSI_FLAGS_QSIZE: u16 = 0x0070;
/// The address has 64 bits.
pub const PCI_MSI_FLAGS_64BIT: u16 = 1 << 7;
/// There are mask and pending registers.
pub const PCI_MSI_FLAGS_MASKBIT: u16 = 1 << 8;
/// Message address, 4 bytes.
pub const PCI_MSI_ADDRESS_LO: u16 = 4;
/// Upper half of a 64-bit address, 4 bytes.
pub const PCI_MSI_ADDRESS_HI: u16 = 8;
/// Message data with a 32-bit address, 2 bytes.
pub const PCI_MSI_DATA_32: u16 = 8;
/// Message data with a 64-bit address, 2 bytes.
pub const PCI_MSI_DATA_64: u16 = 12;
/// Mask bits with a 32-bit address, 4 bytes; pending bits follow.
pub const PCI_MSI_MASK_32: u16 = 12;
/// Mask bits with a 64-bit address, 4 bytes; pending bits follow.
pub const PCI_MSI_MASK_64: u16 = 16;

// MSI-X

/// Message control, 2 bytes.
pub const PCI_MSIX_FLAGS: u16 = 2;
/// Vectors in the table, minus one.
pub const PCI_MSIX_FLAGS_QSIZE: u16 = 0x07ff;
/// All vectors are masked.
pub const PCI_MSIX_FLAGS_MASKALL: u16 = 1 << 14;
/// MSI-X is enabled.
pub const PCI_MSIX_FLAGS_ENABLE: u16 = 1 << 15;
/// Offset of the table, 4 bytes, with its BAR in the low bits.
pub const PCI_MSIX_TABLE: u16 = 4;
/// Offset of the pending bits, 4 bytes, with their BAR in the low bits.
pub const PCI_MSIX_PBA: u16 = 8;
/// The BAR in [`PCI_MSIX_TABLE`] and [`PCI_MSIX_PBA`].
pub const PCI_MSIX_BIR: u32 = 7;
/// Bytes in the capability.
pub const PCI_CAP_MSIX_SIZEOF: u16 = 12;

// PCI Express, version 2

/// Capabilities, 2 bytes.
pub const PCI_EXP_FLAGS: u16 = 0x02;
/// What kind of function it is, in the flags.
pub const PCI_EXP_FLAGS_TYPE: u16 = 0x00f0;
/// In the processor or chipset, without a link.
pub const PCI_EXP_TYPE_RC_END: u16 = 0x9;
/// Device capabilities, 4 bytes.
pub const PCI_EXP_DEVCAP: u16 = 0x04;
/// 8-bit tags.
pub const PCI_EXP_DEVCAP_EXT_TAG: u32 = 1 << 5;
/// Role-based error reporting; always set since PCIe 1.1.
pub const PCI_EXP_DEVCAP_RBER: u32 = 1 << 15;
/// Function level reset.
pub const PCI_EXP_DEVCAP_FLR: u32 = 1 << 28;
/// Device control, 2 bytes.
pub const PCI_EXP_DEVCTL: u16 = 0x08;
/// Max payload size.
pub const PCI_EXP_DEVCTL_PAYLOAD: u16 = 0x00e0;
/// Initiate function level reset.
pub const PCI_EXP_DEVCTL_BCR_FLR: u16 = 1 << 15;
/// Device status, 2 bytes.
pub const PCI_EXP_DEVSTA: u16 = 0x0a;
/// Link capabilities, 4 bytes.
pub const PCI_EXP_LNKCAP: u16 = 0x0c;
/// Link control, 2 bytes.
pub const PCI_EXP_LNKCTL: u16 = 0x10;
/// Link status, 2 bytes.
pub const PCI_EXP_LNKSTA: u16 = 0x12;
/// Device capabilities 2, 4 bytes.
pub const PCI_EXP_DEVCAP2: u16 = 0x24;
/// Device control 2, 2 bytes.
pub const PCI_EXP_DEVCTL2: u16 = 0x28;
/// Link capabilities 2, 4 bytes.
pub const PCI_EXP_LNKCAP2: u16 = 0x2c;
/// Link control 2, 2 bytes.
pub const PCI_EXP_LNKCTL2: u16 = 0x30;
/// Bytes in the capability, slot registers included.
pub const PCI_EXP_SIZEOF_V2: u16 = 0x3c;

// Advanced features

/// What there is, 1 byte.
pub const PCI_AF_CAP: u16 = 3;
/// Function level reset.
pub const PCI_AF_CAP_FLR: u8 = 1 << 1;
/// Control, 1 byte.
pub const PCI_AF_CTRL: u16 = 4;
/// Initiate function level reset.
pub const PCI_AF_CTRL_FLR: u8 = 1 << 0;
/// Bytes in the capability.
pub const PCI_AF_SIZEOF: u16 = 6;

// Advanced error reporting

/// Uncorrectable errors seen, 4 bytes (RW1C, sticky).
pub const PCI_ERR_UNCOR_STATUS: u16 = 0x04;
/// Uncorrectable errors not reported, 4 bytes (sticky).
pub const PCI_ERR_UNCOR_MASK: u16 = 0x08;
/// Uncorrectable errors that are fatal, 4 bytes (sticky).
pub const PCI_ERR_UNCOR_SEVER: u16 = 0x0c;
/// Correctable errors seen, 4 bytes (RW1C, sticky).
pub const PCI_ERR_COR_STATUS: u16 = 0x10;
/// Correctable errors not reported, 4 bytes (sticky).
pub const PCI_ERR_COR_MASK: u16 = 0x14;
/// Capabilities and control, 4 bytes.
pub const PCI_ERR_CAP: u16 = 0x18;
/// Header of the first failed request, 16 bytes (sticky).
pub const PCI_ERR_HEADER_LOG: u16 = 0x1c;
/// Bytes in the capability of an endpoint without prefix log.
pub const PCI_ERR_SIZEOF_ENDPOINT: u16 = 0x2c;

// Single root I/O virtualization

/// Bytes in the capability.
pub const PCI_EXT_CAP_SRIOV_SIZEOF: u16 = 0x40;

// Resizable BARs: pairs of registers, one for each BAR

/// Sizes that the BAR can have, 4 bytes: bit n is 2^(n + 16) bytes, from n = 4.
pub const PCI_REBAR_CAP: u16 = 4;
/// Control, 4 bytes.
pub const PCI_REBAR_CTRL: u16 = 8;
/// In [`PCI_REBAR_CTRL`]: the BAR.
pub const PCI_REBAR_CTRL_BAR_IDX: u32 = 0x7;
/// In the first [`PCI_REBAR_CTRL`]: how many BARs.
pub const PCI_REBAR_CTRL_NBAR: u32 = 0xe0;
/// Where [`PCI_REBAR_CTRL_NBAR`] begins.
pub const PCI_REBAR_CTRL_NBAR_SHIFT: u32 = 5;
/// In [`PCI_REBAR_CTRL`]: the size, 2^(n + 20) bytes.
pub const PCI_REBAR_CTRL_BAR_SIZE: u32 = 0x3f00;
/// Where [`PCI_REBAR_CTRL_BAR_SIZE`] begins.
pub const PCI_REBAR_CTRL_BAR_SHIFT: u32 = 8;
