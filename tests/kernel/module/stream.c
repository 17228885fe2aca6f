// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device's state as a stream of records, the same for migration v2 and v1:
 *
 *	0    4        8       16
 *	kind | length | where | length bytes
 *
 *	HEADER     first, and again when all begins anew: what the device is
 *	PAGE       a page of VRAM, at offset `where`; first every page, then those that changed since
 *	REGISTERS  struct vt_registers, once the device is stopped
 *	END        last; `where` is the number of records before it
 *
 * Changes are found by comparing VRAM with what was sent, so that it does not matter who made them and how.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "vugtest.h"

#define VERSION 1

enum { KIND_HEADER = 1, KIND_PAGE, KIND_REGISTERS, KIND_END };

struct record {
	__le32 kind;
	__le32 length;
	__le64 where;
} __packed;

struct header {
	u8 magic[8];
	__le32 version;
	__le32 vram_size;
	__le16 vendor;
	__le16 device;
	__le32 reserved;
} __packed;

#define RECORD(payload)		(sizeof(struct record) + (payload))
#define HEADER_RECORD		RECORD(sizeof(struct header))
#define PAGE_RECORD		RECORD(PAGE_SIZE)
#define LAST_RECORDS		(RECORD(sizeof(struct vt_registers)) + RECORD(0))

enum { PHASE_HEADER, PHASE_PAGES, PHASE_CHANGES, PHASE_REGISTERS, PHASE_END, PHASE_DONE };

static void put_header(struct vt_dev *vt, struct header *header)
{
	*header = (struct header){
		.magic = "VUGTEST",
		.version = cpu_to_le32(VERSION),
		.vram_size = cpu_to_le32(VT_VRAM_SIZE),
		.vendor = cpu_to_le16(vt_knob(vt, vendor)),
		.device = cpu_to_le16(vt_knob(vt, device)),
	};
}

static void put_registers(struct vt_dev *vt, struct vt_registers *registers)
{
	u32 i;

	mutex_lock(&vt->io_lock);
	for (i = 0; i < VT_NR_SCRATCH; i++)
		registers->scratch[i] = cpu_to_le32(vt->scratch[i]);
	registers->irq_status = cpu_to_le32(vt->irq_status);
	for (i = 0; i < ARRAY_SIZE(vt->dma); i++)
		registers->dma[i] = cpu_to_le32(vt->dma[i]);
	for (i = 0; i < VT_MSIX_TABLE_DWORDS; i++)
		registers->msix_table[i] = cpu_to_le32(vt->msix_table[i]);
	memcpy(registers->config, vt->config, sizeof(registers->config));
	mutex_unlock(&vt->io_lock);
}

static void take_registers(struct vt_dev *vt, const struct vt_registers *registers)
{
	u32 i;

	mutex_lock(&vt->io_lock);
	for (i = 0; i < VT_NR_SCRATCH; i++)
		vt->scratch[i] = le32_to_cpu(registers->scratch[i]);
	vt->irq_status = le32_to_cpu(registers->irq_status);
	for (i = 0; i < ARRAY_SIZE(vt->dma); i++)
		vt->dma[i] = le32_to_cpu(registers->dma[i]);
	for (i = 0; i < VT_MSIX_TABLE_DWORDS; i++)
		vt->msix_table[i] = le32_to_cpu(registers->msix_table[i]);
	vt_config_restore(vt, registers->config);
	mutex_unlock(&vt->io_lock);
}

int vt_saver_init(struct vt_saver *saver)
{
	memset(saver, 0, sizeof(*saver));
	saver->record = kvmalloc(PAGE_RECORD, GFP_KERNEL);
	saver->shadow = vmalloc(VT_VRAM_SIZE);
	if (saver->record && saver->shadow)
		return 0;
	vt_saver_free(saver);
	return -ENOMEM;
}

void vt_saver_free(struct vt_saver *saver)
{
	kvfree(saver->record);
	vfree(saver->shadow);
	memset(saver, 0, sizeof(*saver));
}

void vt_saver_restart(struct vt_saver *saver)
{
	saver->phase = PHASE_HEADER;
	saver->next = 0;
}

static void *add_record(struct vt_saver *saver, u32 kind, u64 where, u32 length)
{
	struct record *record = (struct record *)saver->record;

	record->kind = cpu_to_le32(kind);
	record->length = cpu_to_le32(length);
	record->where = cpu_to_le64(where);
	saver->at = 0;
	saver->length = RECORD(length);
	saver->records++;
	return record + 1;
}

static void add_page(struct vt_dev *vt, struct vt_saver *saver, u32 page)
{
	u64 offset = (u64)page * PAGE_SIZE;
	void *payload = add_record(saver, KIND_PAGE, offset, PAGE_SIZE);

	/* By way of the shadow: VRAM may change meanwhile, and what was sent is what counts. */
	memcpy(saver->shadow + offset, vt->vram + offset, PAGE_SIZE);
	memcpy(payload, saver->shadow + offset, PAGE_SIZE);
}

static bool changed(struct vt_dev *vt, struct vt_saver *saver, u32 page)
{
	u64 offset = (u64)page * PAGE_SIZE;

	return memcmp(vt->vram + offset, saver->shadow + offset, PAGE_SIZE);
}

static bool add_changed_page(struct vt_dev *vt, struct vt_saver *saver)
{
	u32 i, page;

	for (i = 0; i < VT_VRAM_PAGES; i++) {
		page = (saver->next + i) % VT_VRAM_PAGES;
		if (changed(vt, saver, page)) {
			add_page(vt, saver, page);
			saver->next = page + 1;
			return true;
		}
	}
	return false;
}

bool vt_saver_fill(struct vt_dev *vt, struct vt_saver *saver, bool stopped)
{
	if (saver->at < saver->length)
		return true;
	switch (saver->phase) {
	case PHASE_HEADER:
		put_header(vt, add_record(saver, KIND_HEADER, 0, sizeof(struct header)));
		saver->phase = PHASE_PAGES;
		return true;
	case PHASE_PAGES:
		if (saver->next < VT_VRAM_PAGES) {
			add_page(vt, saver, saver->next++);
			return true;
		}
		saver->phase = PHASE_CHANGES;
		fallthrough;
	case PHASE_CHANGES:
		if (add_changed_page(vt, saver))
			return true;
		if (!stopped)
			return false;
		put_registers(vt, add_record(saver, KIND_REGISTERS, 0, sizeof(struct vt_registers)));
		saver->phase = PHASE_END;
		return true;
	case PHASE_END:
		add_record(saver, KIND_END, saver->records, 0);
		saver->phase = PHASE_DONE;
		return true;
	default:
		return false;
	}
}

static u64 rest(struct vt_saver *saver)
{
	return saver->length - saver->at;
}

u64 vt_saver_initial(struct vt_saver *saver)
{
	if (saver->phase == PHASE_HEADER)
		return rest(saver) + HEADER_RECORD + VT_VRAM_PAGES * PAGE_RECORD;
	if (saver->phase == PHASE_PAGES)
		return rest(saver) + (VT_VRAM_PAGES - saver->next) * PAGE_RECORD;
	return 0;
}

u64 vt_saver_dirty(struct vt_dev *vt, struct vt_saver *saver)
{
	u64 bytes = saver->phase == PHASE_CHANGES ? rest(saver) : 0;
	u32 sent = saver->phase == PHASE_PAGES ? saver->next : 0;
	u32 page;

	if (saver->phase == PHASE_CHANGES)
		sent = VT_VRAM_PAGES;
	for (page = 0; page < sent; page++)
		if (changed(vt, saver, page))
			bytes += PAGE_RECORD;
	return bytes;
}

u64 vt_saver_final(struct vt_saver *saver)
{
	if (saver->phase < PHASE_END)
		return LAST_RECORDS;
	return rest(saver) + (saver->phase == PHASE_END ? RECORD(0) : 0);
}

u64 vt_saver_total(void)
{
	return HEADER_RECORD + VT_VRAM_PAGES * PAGE_RECORD + LAST_RECORDS;
}

int vt_loader_init(struct vt_dev *vt, struct vt_loader *loader)
{
	memset(loader, 0, sizeof(*loader));
	loader->record = kvmalloc(PAGE_RECORD, GFP_KERNEL);
	if (!loader->record)
		return -ENOMEM;
	/* Nothing of what was there may pass for loaded. */
	memset(vt->vram, 0, VT_VRAM_SIZE);
	return 0;
}

void vt_loader_free(struct vt_loader *loader)
{
	kvfree(loader->record);
	memset(loader, 0, sizeof(*loader));
}

/* The payload that a record of this kind must have here, or an errno. */
static int expected_length(struct vt_loader *loader, const struct record *record)
{
	u64 where = le64_to_cpu(record->where);

	switch (le32_to_cpu(record->kind)) {
	case KIND_HEADER:
		return loader->have_registers ? -EINVAL : sizeof(struct header);
	case KIND_PAGE:
		if (!loader->identified || loader->have_registers)
			return -EINVAL;
		return where % PAGE_SIZE || where >= VT_VRAM_SIZE ? -EINVAL : PAGE_SIZE;
	case KIND_REGISTERS:
		return !loader->identified || loader->have_registers ? -EINVAL : sizeof(struct vt_registers);
	case KIND_END:
		return !loader->have_registers || where != loader->records ? -EINVAL : 0;
	default:
		return -EINVAL;
	}
}

static int apply(struct vt_dev *vt, struct vt_loader *loader)
{
	const struct record *record = (const struct record *)loader->record;
	const void *payload = record + 1;
	struct header header;

	switch (le32_to_cpu(record->kind)) {
	case KIND_HEADER:
		put_header(vt, &header);
		if (memcmp(payload, &header, sizeof(header)))
			return -EINVAL;
		loader->identified = true;
		break;
	case KIND_PAGE:
		memcpy(vt->vram + le64_to_cpu(record->where), payload, PAGE_SIZE);
		break;
	case KIND_REGISTERS:
		memcpy(&loader->registers, payload, sizeof(loader->registers));
		loader->have_registers = true;
		break;
	case KIND_END:
		loader->complete = true;
	}
	loader->records++;
	return 0;
}

static int take(struct vt_dev *vt, struct vt_loader *loader, const u8 *data, size_t count)
{
	const struct record *record = (const struct record *)loader->record;
	size_t wanted, part;
	int length;

	while (count || loader->have >= sizeof(*record)) {
		/* Nothing comes after the end. */
		if (loader->complete)
			return -EINVAL;
		wanted = sizeof(*record);
		if (loader->have >= sizeof(*record)) {
			length = expected_length(loader, record);
			if (length < 0 || length != le32_to_cpu(record->length))
				return -EINVAL;
			wanted += length;
		}
		part = min(count, wanted - loader->have);
		memcpy(loader->record + loader->have, data, part);
		loader->have += part;
		loader->position += part;
		data += part;
		count -= part;
		if (loader->have < wanted)
			return 0;
		if (wanted == sizeof(*record) && record->length)
			continue;
		length = expected_length(loader, record);
		if (length < 0 || length != le32_to_cpu(record->length))
			return -EINVAL;
		length = apply(vt, loader);
		if (length)
			return length;
		loader->have = 0;
	}
	return 0;
}

/* Any segmentation; after an error nothing more is taken. */
int vt_loader_take(struct vt_dev *vt, struct vt_loader *loader, const u8 *data, size_t count)
{
	int ret;

	if (loader->broken)
		return -EINVAL;
	ret = take(vt, loader, data, count);
	loader->broken = ret;
	return ret;
}

int vt_loader_finish(struct vt_dev *vt, struct vt_loader *loader)
{
	if ((loader->broken || !loader->complete) && !vt_knob(vt, lax_resume))
		return -EINVAL;
	if (loader->have_registers)
		take_registers(vt, &loader->registers);
	return 0;
}
