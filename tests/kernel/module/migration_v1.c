// SPDX-License-Identifier: GPL-2.0-only
/*
 * Migration v1: a region with 32 bytes of registers, each accessible at its own width only, and a window for data, in which
 * one transaction lies at a time:
 *
 *	0       4          8          16
 *	magic | sequence | length   | length bytes of the stream of stream.c
 *
 * so that a user who joins or divides transactions, or changes their order, is told so (EINVAL, and the error state).
 */
#include <linux/string.h>
#include <linux/unaligned.h>
#include <linux/vmalloc.h>

#include "vugtest.h"

/* struct vfio_device_migration_info */
#define REG_STATE		0
#define REG_RESERVED		4
#define REG_PENDING		8
#define REG_DATA_OFFSET		16
#define REG_DATA_SIZE		24
#define REGISTERS_SIZE		32

/* A bit that the interface reserves: a user must write back what it read. */
#define RESERVED_STATE		BIT(8)

#define TRANSACTION_MAGIC	0x56475654
#define TRANSACTION_HEADER	16

/* No mmap at all, and data where no page begins. */
const struct vt_v1_layout vt_v1_trapped = {
	.region_size = 0x41000,
	.window_size = 0x40000,
	.data_offsets = { 0x28, 0x838 },
	.nr_data_offsets = 2,
};

/* Data wholly in an area that can be mapped. */
const struct vt_v1_layout vt_v1_mapped = {
	.region_size = 0x41000,
	.window_size = 0x40000,
	.data_offsets = { 0x1000 },
	.nr_data_offsets = 1,
	.areas = { { 0x1000, 0x40000 } },
	.nr_areas = 1,
};

/* Data that begins where it can be mapped, and goes on where it cannot. */
const struct vt_v1_layout vt_v1_across = {
	.region_size = 0x41000,
	.window_size = 0x3e000,
	.data_offsets = { 0x1000, 0x3000 },
	.nr_data_offsets = 2,
	.areas = { { 0x1000, 0x10000 } },
	.nr_areas = 1,
};

/* Areas in no order, with gaps; data begins in one, in another, in a gap, or after the last. */
const struct vt_v1_layout vt_v1_sparse = {
	.region_size = 0x81000,
	.window_size = 0x30000,
	.data_offsets = { 0x1000, 0x11000, 0x20000, 0x48000 },
	.nr_data_offsets = 4,
	.areas = { { 0x30000, 0x8000 }, { 0x1000, 0x4000 }, { 0x40000, 0x4000 }, { 0x10000, 0x8000 } },
	.nr_areas = 4,
};

int vt_v1_init(struct vt_dev *vt)
{
	if (!vt->type->v1)
		return 0;
	vt->v1.window = vmalloc_user(vt->type->v1->region_size);
	return vt->v1.window ? 0 : -ENOMEM;
}

void vt_v1_free(struct vt_dev *vt)
{
	vfree(vt->v1.window);
}

static void set_state(struct vt_dev *vt, u32 state)
{
	vt->v1.state = state;
	vt->running = state & VFIO_DEVICE_STATE_V1_RUNNING;
}

void vt_v1_end(struct vt_dev *vt)
{
	struct vt_v1 *v1 = &vt->v1;

	if (!vt->type->v1)
		return;
	vt_saver_free(&v1->saver);
	vt_loader_free(&v1->loader);
	v1->filled = false;
	v1->sequence = 0;
	set_state(vt, RESERVED_STATE | VFIO_DEVICE_STATE_V1_RUNNING);
}

static int fail(struct vt_dev *vt, int error)
{
	vt_saver_free(&vt->v1.saver);
	vt_loader_free(&vt->v1.loader);
	set_state(vt, VFIO_DEVICE_STATE_SET_ERROR(vt->v1.state));
	return error;
}

static int begin_transfer(struct vt_dev *vt, u32 old, u32 new)
{
	vt->v1.sequence = 0;
	vt->v1.filled = false;
	if (new & VFIO_DEVICE_STATE_V1_RESUMING)
		return old & VFIO_DEVICE_STATE_V1_SAVING ? -EINVAL : vt_loader_init(vt, &vt->v1.loader);
	return vt_saver_init(&vt->v1.saver);
}

static int write_state(struct vt_dev *vt, u32 new)
{
	const u32 transfer = VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING;
	u32 old = vt->v1.state;
	int ret;

	ret = vt_delay(vt_knob(vt, slow_state_ms));
	if (ret)
		return ret;
	if ((old ^ new) & ~VFIO_DEVICE_STATE_MASK || !VFIO_DEVICE_STATE_VALID(new) || VFIO_DEVICE_STATE_IS_ERROR(old)) {
		atomic_inc(&vt->refused_states);
		return -EINVAL;
	}
	if (vt_knob(vt, fail_state) == (new & VFIO_DEVICE_STATE_MASK))
		return vt_knob(vt, fail_to_error) ? fail(vt, vt_injected(vt)) : vt_injected(vt);
	if (old == new)
		return 0;
	if (old & ~new & VFIO_DEVICE_STATE_V1_RESUMING) {
		ret = vt_loader_finish(vt, &vt->v1.loader);
		if (ret)
			return fail(vt, ret);
	}
	if (new & ~old & transfer) {
		ret = begin_transfer(vt, old, new);
		if (ret)
			return ret;
	}
	if (old & ~new & transfer) {
		vt->v1.filled = false;
		if (!(new & VFIO_DEVICE_STATE_V1_SAVING))
			vt_saver_free(&vt->v1.saver);
		if (!(new & VFIO_DEVICE_STATE_V1_RESUMING))
			vt_loader_free(&vt->v1.loader);
	}
	set_state(vt, new);
	return 0;
}

static bool saving(struct vt_dev *vt)
{
	return (vt->v1.state & VFIO_DEVICE_STATE_MASK & ~VFIO_DEVICE_STATE_V1_RUNNING) == VFIO_DEVICE_STATE_V1_SAVING;
}

static u32 current_offset(struct vt_dev *vt)
{
	const struct vt_v1_layout *layout = vt->type->v1;

	return layout->data_offsets[vt->v1.sequence % layout->nr_data_offsets];
}

/* Also says that the last transaction was taken. */
static u64 read_pending(struct vt_dev *vt)
{
	struct vt_v1 *v1 = &vt->v1;
	u64 bytes;

	if (!saving(vt))
		return 0;
	if (v1->filled) {
		v1->filled = false;
		v1->sequence++;
	}
	if (vt_garbage(vt, VT_GARBAGE_V1_PENDING))
		return U64_MAX;
	bytes = vt_saver_initial(&v1->saver) + vt_saver_dirty(vt, &v1->saver);
	if (!vt->running)
		bytes += vt_saver_final(&v1->saver);
	return vt_garbage(vt, VT_GARBAGE_V1_EMPTY) ? bytes + 1 : bytes;
}

/* Puts a transaction into the window, unless one is there. */
static int fill(struct vt_dev *vt)
{
	struct vt_v1 *v1 = &vt->v1;
	struct vt_saver *saver = &v1->saver;
	u32 offset = current_offset(vt);
	u64 size = TRANSACTION_HEADER, most = vt->type->v1->window_size;
	s64 fail_at = vt_knob(vt, fail_read_at), limit = vt_knob(vt, max_transfer);
	int ret;

	if (v1->filled || vt_garbage(vt, VT_GARBAGE_V1_EMPTY))
		return 0;
	ret = vt_delay(vt_knob(vt, slow_read_ms));
	if (ret)
		return ret;
	if (fail_at >= 0 && saver->position >= fail_at)
		return vt_injected(vt);
	if (fail_at >= 0)
		most = min_t(u64, most, TRANSACTION_HEADER + fail_at - saver->position);
	if (limit > 0)
		most = min_t(u64, most, TRANSACTION_HEADER + limit);
	while (size < most && vt_saver_fill(vt, saver, !vt->running)) {
		u64 part = min_t(u64, most - size, saver->length - saver->at);

		memcpy(v1->window + offset + size, saver->record + saver->at, part);
		saver->at += part;
		saver->position += part;
		size += part;
	}
	if (size == TRANSACTION_HEADER)
		return 0;
	put_unaligned_le32(TRANSACTION_MAGIC, v1->window + offset);
	put_unaligned_le32(v1->sequence, v1->window + offset + 4);
	put_unaligned_le64(size - TRANSACTION_HEADER, v1->window + offset + 8);
	v1->filled = true;
	v1->filled_size = size;
	v1->filled_offset = offset;
	return 0;
}

static int read_data_offset(struct vt_dev *vt, u64 *value)
{
	int ret;

	if (VFIO_DEVICE_STATE_IS_ERROR(vt->v1.state))
		return -EIO;
	if (saving(vt)) {
		ret = fill(vt);
		if (ret)
			return ret;
	}
	*value = current_offset(vt);
	if (vt_garbage(vt, VT_GARBAGE_V1_OFFSET))
		*value = vt->type->v1->region_size + PAGE_SIZE;
	return 0;
}

static u64 read_data_size(struct vt_dev *vt)
{
	if (vt_garbage(vt, VT_GARBAGE_V1_SIZE))
		return vt->type->v1->region_size;
	return vt->v1.filled ? vt->v1.filled_size : 0;
}

/* The user put a transaction of this size into the window. */
static int write_data_size(struct vt_dev *vt, u64 size)
{
	struct vt_v1 *v1 = &vt->v1;
	const u8 *data = v1->window + current_offset(vt);
	s64 fail_at = vt_knob(vt, fail_write_at);
	int ret;

	if ((v1->state & VFIO_DEVICE_STATE_MASK) != VFIO_DEVICE_STATE_V1_RESUMING)
		return -EINVAL;
	ret = vt_delay(vt_knob(vt, slow_write_ms));
	if (ret)
		return ret;
	if (fail_at >= 0 && v1->loader.position + size - TRANSACTION_HEADER > fail_at)
		ret = vt_injected(vt);
	else if (size <= TRANSACTION_HEADER || size > vt->type->v1->window_size ||
		 get_unaligned_le32(data) != TRANSACTION_MAGIC || get_unaligned_le32(data + 4) != v1->sequence ||
		 get_unaligned_le64(data + 8) != size - TRANSACTION_HEADER)
		ret = -EINVAL;
	else
		ret = vt_loader_take(vt, &v1->loader, data + TRANSACTION_HEADER, size - TRANSACTION_HEADER);
	if (ret)
		v1->loader.broken = true;
	v1->sequence++;
	return ret;
}

static bool is_register(u32 offset, size_t count)
{
	return offset < REG_PENDING ? count == 4 && offset % 4 == 0 : count == 8 && offset % 8 == 0;
}

static int read_register(struct vt_dev *vt, u32 offset, u64 *value)
{
	switch (offset) {
	case REG_STATE:
		*value = vt->v1.state;
		return 0;
	case REG_PENDING:
		*value = read_pending(vt);
		return 0;
	case REG_DATA_OFFSET:
		return read_data_offset(vt, value);
	case REG_DATA_SIZE:
		*value = read_data_size(vt);
		return 0;
	default:
		*value = 0;
		return 0;
	}
}

static int write_register(struct vt_dev *vt, u32 offset, u64 value)
{
	switch (offset) {
	case REG_STATE:
		return write_state(vt, value);
	case REG_RESERVED:
		return 0;
	case REG_DATA_SIZE:
		return write_data_size(vt, value);
	default:
		return -EINVAL;
	}
}

ssize_t vt_v1_read(struct vt_dev *vt, char __user *buf, size_t count, u32 offset)
{
	__le64 raw;
	u64 value;
	int ret;

	if (offset >= REGISTERS_SIZE)
		return copy_to_user(buf, vt->v1.window + offset, count) ? -EFAULT : count;
	if (!is_register(offset, count))
		return -EINVAL;
	mutex_lock(&vt->mig_lock);
	ret = read_register(vt, offset, &value);
	mutex_unlock(&vt->mig_lock);
	if (ret)
		return ret;
	raw = cpu_to_le64(value);
	return copy_to_user(buf, &raw, count) ? -EFAULT : count;
}

ssize_t vt_v1_write(struct vt_dev *vt, const char __user *buf, size_t count, u32 offset)
{
	__le64 raw = 0;
	int ret;

	if (offset >= REGISTERS_SIZE)
		return copy_from_user(vt->v1.window + offset, buf, count) ? -EFAULT : count;
	if (!is_register(offset, count))
		return -EINVAL;
	if (copy_from_user(&raw, buf, count))
		return -EFAULT;
	mutex_lock(&vt->mig_lock);
	ret = write_register(vt, offset, le64_to_cpu(raw));
	mutex_unlock(&vt->mig_lock);
	return ret ? ret : count;
}
