// SPDX-License-Identifier: GPL-2.0-only
/* PCI config space as a table of values and a table of writable bits, and what an Intel GPU's host shows beside it. */
#include <linux/string.h>
#include <linux/unaligned.h>

#include "vugtest.h"

#define CAP_PM			0x40
#define CAP_MSIX		0x70
#define CAP_EXPRESS		0x80
#define EXT_CAP_SERIAL		0x100

/* Intel graphics, generation 9 and before. */
#define IGD_GMCH		0x50
#define IGD_BDSM		0x5c
#define IGD_ASLS		0xfc

#define OPREGION_SIZE		SZ_8K
#define OPREGION_VERSION	0x16
#define OPREGION_MAILBOXES	0x58
#define OPREGION_RVDA		0x3ba
#define OPREGION_RVDS		0x3c2
/* The part after it, with the video BIOS table. */
#define OPREGION_VBT_SIZE	0x1800

static void put(struct vt_dev *vt, u32 offset, u32 size, u32 value, u32 writable)
{
	u32 i;

	for (i = 0; i < size; i++) {
		vt->config[offset + i] = value >> (8 * i);
		vt->writable[offset + i] = writable >> (8 * i);
	}
}

static void put_igd(struct vt_dev *vt)
{
	put(vt, IGD_GMCH, 2, 0x01c1, 0);
	put(vt, IGD_BDSM, 4, 0x7b800001, 0);
	put(vt, IGD_ASLS, 4, 0x7a5e0018, ~0);
}

/* Power-on. */
void vt_config_init(struct vt_dev *vt)
{
	memset(vt->config, 0, sizeof(vt->config));
	memset(vt->writable, 0, sizeof(vt->writable));
	put(vt, PCI_VENDOR_ID, 2, vt_knob(vt, vendor), 0);
	put(vt, PCI_DEVICE_ID, 2, vt_knob(vt, device), 0);
	put(vt, PCI_COMMAND, 2, 0,
	    PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
	put(vt, PCI_STATUS, 2, PCI_STATUS_CAP_LIST, 0);
	/* Revision 1; a 3D controller, or VGA as Intel's are. */
	put(vt, PCI_CLASS_REVISION, 4, vt->type->igd ? 0x03000001 : 0x03020001, 0);
	put(vt, PCI_CACHE_LINE_SIZE, 1, 0, 0xff);
	put(vt, PCI_BASE_ADDRESS_0, 4, PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH, ~(VT_VRAM_SIZE - 1));
	put(vt, PCI_BASE_ADDRESS_1, 4, 0, ~0);
	put(vt, PCI_BASE_ADDRESS_2, 4, 0, ~(VT_BAR2_SIZE - 1));
	put(vt, PCI_SUBSYSTEM_VENDOR_ID, 4, 0x11001af4, 0);
	put(vt, PCI_CAPABILITY_LIST, 1, CAP_PM, 0);
	put(vt, PCI_INTERRUPT_LINE, 1, 0, 0xff);
	put(vt, PCI_INTERRUPT_PIN, 1, 1, 0);

	put(vt, CAP_PM, 2, CAP_MSIX << 8 | PCI_CAP_ID_PM, 0);
	put(vt, CAP_PM + PCI_PM_PMC, 2, 3, 0);
	put(vt, CAP_PM + PCI_PM_CTRL, 2, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_CTRL_STATE_MASK);

	put(vt, CAP_MSIX, 2, CAP_EXPRESS << 8 | PCI_CAP_ID_MSIX, 0);
	put(vt, CAP_MSIX + PCI_MSIX_FLAGS, 2, VT_VECTORS - 1, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	put(vt, CAP_MSIX + PCI_MSIX_TABLE, 4, VT_MSIX_TABLE | 2, 0);
	put(vt, CAP_MSIX + PCI_MSIX_PBA, 4, VT_MSIX_PBA | 2, 0);

	put(vt, CAP_EXPRESS, 2, PCI_CAP_ID_EXP, 0);
	put(vt, CAP_EXPRESS + PCI_EXP_FLAGS, 2, 2, 0);
	put(vt, CAP_EXPRESS + PCI_EXP_DEVCAP, 4, PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR | 1, 0);
	put(vt, CAP_EXPRESS + PCI_EXP_DEVCTL, 2, 0x2810, 0x7fff);
	/* 8 GT/s, 16 lanes. */
	put(vt, CAP_EXPRESS + PCI_EXP_LNKCAP, 4, 0x103, 0);
	put(vt, CAP_EXPRESS + PCI_EXP_LNKSTA, 2, 0x103, 0);
	put(vt, CAP_EXPRESS + PCI_EXP_LNKCTL2, 2, 3, 0);

	put(vt, EXT_CAP_SERIAL, 4, 1 << 16 | PCI_EXT_CAP_ID_DSN, 0);
	put(vt, EXT_CAP_SERIAL + 4, 4, 0x56554754, 0);
	put(vt, EXT_CAP_SERIAL + 8, 4, 0x00000001, 0);

	if (vt->type->igd)
		put_igd(vt);
}

bool vt_config_write(struct vt_dev *vt, u32 offset, const u8 *data, u32 count)
{
	const u32 flr = CAP_EXPRESS + PCI_EXP_DEVCTL + 1;
	u32 i;

	for (i = 0; i < count; i++) {
		u8 mask = vt->writable[offset + i];

		vt->config[offset + i] = (vt->config[offset + i] & ~mask) | (data[i] & mask);
	}
	return offset <= flr && flr - offset < count && data[flr - offset] & PCI_EXP_DEVCTL_BCR_FLR >> 8;
}

/* The writable bits of another's. */
void vt_config_restore(struct vt_dev *vt, const u8 *config)
{
	vt_config_write(vt, 0, config, PCI_CFG_SPACE_SIZE);
}

u16 vt_command(struct vt_dev *vt)
{
	return get_unaligned_le16(vt->config + PCI_COMMAND);
}

bool vt_msix_enabled(struct vt_dev *vt)
{
	return get_unaligned_le16(vt->config + CAP_MSIX + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE;
}

/* index: 0 the OpRegion, 1 the host bridge's config space, 2 that of the LPC bridge. */
u32 vt_igd_region_size(u32 index)
{
	return index ? PCI_CFG_SPACE_SIZE : OPREGION_SIZE + OPREGION_VBT_SIZE;
}

u32 vt_igd_region_subtype(u32 index)
{
	return VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION + index;
}

static void fill_opregion(u8 *data)
{
	u32 i;

	/* Recognisable wherever one looks. */
	for (i = 0; i < OPREGION_SIZE + OPREGION_VBT_SIZE; i += 4)
		put_unaligned_le32(0x0b000000 | i, data + i);
	memcpy(data, "IntelGraphicsMem", 16);
	put_unaligned_le32(OPREGION_SIZE / SZ_1K, data + 16);
	put_unaligned_le16(0x0201, data + OPREGION_VERSION);
	put_unaligned_le32(0x1f, data + OPREGION_MAILBOXES);
	/* From 2.1 on relative to the OpRegion's start. */
	put_unaligned_le64(OPREGION_SIZE, data + OPREGION_RVDA);
	put_unaligned_le32(OPREGION_VBT_SIZE, data + OPREGION_RVDS);
	memcpy(data + OPREGION_SIZE, "$VBT VUGTEST        ", 20);
}

void vt_igd_region_fill(u32 index, u8 *data)
{
	if (!index) {
		fill_opregion(data);
		return;
	}
	memset(data, 0, PCI_CFG_SPACE_SIZE);
	put_unaligned_le16(0x8086, data + PCI_VENDOR_ID);
	put_unaligned_le16(index == 1 ? 0x3ec2 : 0xa306, data + PCI_DEVICE_ID);
	put_unaligned_le32(index == 1 ? 0x0600000a : 0x06010010, data + PCI_CLASS_REVISION);
	put_unaligned_le16(0x8086, data + PCI_SUBSYSTEM_VENDOR_ID);
	put_unaligned_le16(index, data + PCI_SUBSYSTEM_ID);
}
