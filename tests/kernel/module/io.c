// SPDX-License-Identifier: GPL-2.0-only
/* Regions: what there is, reading, writing, mapping; the registers behind BAR2 and what they do. */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "vugtest.h"

/* Two areas, with a gap that only messages reach. */
static const struct vt_area vram_areas[] = { { 0, 0x400000 }, { 0x410000, 0x3f0000 } };

u32 vt_nr_regions(struct vt_dev *vt)
{
	if (vt->type->v1)
		return VT_EXTRA_REGION + 1;
	return vt->type->igd ? VT_EXTRA_REGION + 3 : VFIO_PCI_NUM_REGIONS;
}

static u64 region_size(struct vt_dev *vt, u32 index)
{
	switch (index) {
	case VFIO_PCI_CONFIG_REGION_INDEX:
		return VT_CONFIG_SIZE;
	case VFIO_PCI_BAR0_REGION_INDEX:
		return VT_VRAM_SIZE;
	case VFIO_PCI_BAR2_REGION_INDEX:
		return VT_BAR2_SIZE;
	}
	if (index < VT_EXTRA_REGION || index >= vt_nr_regions(vt))
		return 0;
	return vt->type->v1 ? vt->type->v1->region_size : vt_igd_region_size(index - VT_EXTRA_REGION);
}

static const struct vt_area *region_areas(struct vt_dev *vt, u32 index, u32 *count)
{
	*count = 0;
	if (index == VFIO_PCI_BAR0_REGION_INDEX) {
		*count = ARRAY_SIZE(vram_areas);
		return vram_areas;
	}
	if (index == VT_EXTRA_REGION && vt->type->v1) {
		*count = vt->type->v1->nr_areas;
		return vt->type->v1->areas;
	}
	return NULL;
}

static int add_areas(struct vfio_info_cap *caps, const struct vt_area *areas, u32 count)
{
	struct vfio_region_info_cap_sparse_mmap *cap;
	size_t size = struct_size(cap, areas, count);
	u32 i;
	int ret;

	cap = kzalloc(size, GFP_KERNEL);
	if (!cap)
		return -ENOMEM;
	cap->header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
	cap->header.version = 1;
	cap->nr_areas = count;
	for (i = 0; i < count; i++) {
		cap->areas[i].offset = areas[i].offset;
		cap->areas[i].size = areas[i].size;
	}
	ret = vfio_info_add_capability(caps, &cap->header, size);
	kfree(cap);
	return ret;
}

static int add_type(struct vt_dev *vt, struct vfio_info_cap *caps, u32 index)
{
	struct vfio_region_info_cap_type cap = {
		.header = { .id = VFIO_REGION_INFO_CAP_TYPE, .version = 1 },
	};

	if (vt->type->v1) {
		cap.type = VFIO_REGION_TYPE_MIGRATION_DEPRECATED;
		cap.subtype = VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED;
	} else {
		cap.type = VFIO_REGION_TYPE_PCI_VENDOR_TYPE | PCI_VENDOR_ID_INTEL;
		cap.subtype = vt_igd_region_subtype(index - VT_EXTRA_REGION);
	}
	return vfio_info_add_capability(caps, &cap.header, sizeof(cap));
}

int vt_region_info(struct vfio_device *vdev, struct vfio_region_info *info, struct vfio_info_cap *caps)
{
	struct vt_dev *vt = to_vt(vdev);
	const struct vt_area *areas;
	u32 index = info->index, count;
	int ret;

	if (index >= vt_nr_regions(vt))
		return -EINVAL;
	info->size = region_size(vt, index);
	info->offset = VT_INDEX_TO_OFFSET(index);
	info->flags = 0;
	if (!info->size)
		return 0;
	info->flags = VFIO_REGION_INFO_FLAG_READ;
	if (!vt->type->igd || index < VT_EXTRA_REGION)
		info->flags |= VFIO_REGION_INFO_FLAG_WRITE;
	if (index >= VT_EXTRA_REGION) {
		ret = add_type(vt, caps, index);
		if (ret)
			return ret;
	}
	areas = region_areas(vt, index, &count);
	if (!count)
		return 0;
	info->flags |= VFIO_REGION_INFO_FLAG_MMAP;
	return add_areas(caps, areas, count);
}

int vt_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	struct vt_dev *vt = to_vt(vdev);
	u64 pages = VT_OFFSET_MASK >> PAGE_SHIFT, offset = (vma->vm_pgoff & pages) << PAGE_SHIFT;
	u32 index = vma->vm_pgoff >> (VT_OFFSET_SHIFT - PAGE_SHIFT), count, i;
	u64 size = vma->vm_end - vma->vm_start;
	const struct vt_area *areas;

	if (index >= vt_nr_regions(vt) || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	areas = region_areas(vt, index, &count);
	for (i = 0; i < count; i++)
		if (offset >= areas[i].offset && offset - areas[i].offset + size <= areas[i].size)
			return remap_vmalloc_range(vma, index ? vt->v1.window : vt->vram, offset >> PAGE_SHIFT);
	return -EINVAL;
}

static u32 dma(struct vt_dev *vt, u32 command)
{
	u64 iova = (u64)vt->dma[1] << 32 | vt->dma[0];
	u32 offset = vt->dma[2], length = vt->dma[3];
	bool write = command == VT_DMA_TO_MEMORY;
	int ret;

	if (!(vt_command(vt) & PCI_COMMAND_MASTER))
		return EPERM;
	if ((!write && command != VT_DMA_FROM_MEMORY) || !length || offset > VT_VRAM_SIZE || length > VT_VRAM_SIZE - offset)
		return EINVAL;
	ret = vfio_dma_rw(&vt->vdev, iova, vt->vram + offset, length, write);
	if (!ret && write)
		vt_log_write(vt, iova, length);
	return -ret;
}

static u32 *plain_register(struct vt_dev *vt, u32 offset)
{
	if (offset >= VT_REG_SCRATCH && offset < VT_REG_SCRATCH + 4 * VT_NR_SCRATCH)
		return &vt->scratch[(offset - VT_REG_SCRATCH) / 4];
	if (offset >= VT_REG_DMA_IOVA_LOW && offset < VT_REG_DMA_COMMAND)
		return &vt->dma[(offset - VT_REG_DMA_IOVA_LOW) / 4];
	if (offset >= VT_MSIX_TABLE && offset < VT_MSIX_TABLE + 4 * VT_MSIX_TABLE_DWORDS)
		return &vt->msix_table[(offset - VT_MSIX_TABLE) / 4];
	return NULL;
}

static u32 read_register(struct vt_dev *vt, u32 offset)
{
	u32 *plain = plain_register(vt, offset);

	if (plain)
		return *plain;
	switch (offset) {
	case VT_REG_ID:
		return VT_ID;
	case VT_REG_RESETS:
		return atomic_read(&vt->resets);
	case VT_REG_IRQ_STATUS:
		return vt->irq_status;
	case VT_REG_DMA_RESULT:
		return vt->dma_result;
	default:
		return 0;
	}
}

static void write_register(struct vt_dev *vt, u32 offset, u32 value)
{
	u32 *plain = plain_register(vt, offset);

	if (plain) {
		*plain = value;
		return;
	}
	switch (offset) {
	case VT_REG_IRQ_RAISE:
		vt_irq_raise(vt, value);
		break;
	case VT_REG_IRQ_STATUS:
		if (value & 1) {
			vt->irq_status = 0;
			vt->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
		}
		break;
	case VT_REG_DMA_COMMAND:
		vt->dma_result = dma(vt, value);
		break;
	case VT_REG_SCRIBBLE:
		vt_scribble(vt, value);
		break;
	}
}

/* Narrower accesses are parts of a word; wider ones, several. */
static ssize_t bar2_read(struct vt_dev *vt, char __user *buf, size_t count, u32 offset)
{
	size_t done = 0;

	while (done < count) {
		u32 at = offset + done, within = at % 4;
		size_t part = min_t(size_t, 4 - within, count - done);
		__le32 word = cpu_to_le32(read_register(vt, at - within));

		if (copy_to_user(buf + done, (u8 *)&word + within, part))
			return -EFAULT;
		done += part;
	}
	return done;
}

static ssize_t bar2_write(struct vt_dev *vt, const char __user *buf, size_t count, u32 offset)
{
	size_t done = 0;

	while (done < count) {
		u32 at = offset + done, within = at % 4;
		size_t part = min_t(size_t, 4 - within, count - done);
		__le32 word = part < 4 ? cpu_to_le32(read_register(vt, at - within)) : 0;

		if (copy_from_user((u8 *)&word + within, buf + done, part))
			return -EFAULT;
		write_register(vt, at - within, le32_to_cpu(word));
		done += part;
	}
	return done;
}

/* As hardware does: nothing behind a BAR without memory decoding, and a note of who touches a stopped device. */
static int bar_accessible(struct vt_dev *vt)
{
	if (!vt->running)
		atomic_inc(&vt->stopped_accesses);
	return vt_command(vt) & PCI_COMMAND_MEMORY ? 0 : -EIO;
}

static ssize_t igd_read(u32 index, char __user *buf, size_t count, u32 offset)
{
	u8 *data = kmalloc(vt_igd_region_size(index), GFP_KERNEL);
	ssize_t ret = count;

	if (!data)
		return -ENOMEM;
	vt_igd_region_fill(index, data);
	if (copy_to_user(buf, data + offset, count))
		ret = -EFAULT;
	kfree(data);
	return ret;
}

/* The part of an access that lies in a region, or an errno. */
static ssize_t clip(struct vt_dev *vt, loff_t pos, size_t count, u32 *index, u32 *offset)
{
	u64 within = pos & VT_OFFSET_MASK, size;

	*index = VT_OFFSET_TO_INDEX(pos);
	if (*index >= vt_nr_regions(vt))
		return -EINVAL;
	size = region_size(vt, *index);
	if (within >= size)
		return -EINVAL;
	*offset = within;
	return min_t(u64, count, size - within);
}

static ssize_t read_locked(struct vt_dev *vt, char __user *buf, size_t count, u32 index, u32 offset)
{
	int ret;

	if (index == VFIO_PCI_CONFIG_REGION_INDEX)
		return copy_to_user(buf, vt->config + offset, count) ? -EFAULT : count;
	ret = bar_accessible(vt);
	if (ret)
		return ret;
	if (index == VFIO_PCI_BAR0_REGION_INDEX)
		return copy_to_user(buf, vt->vram + offset, count) ? -EFAULT : count;
	return bar2_read(vt, buf, count, offset);
}

ssize_t vt_read(struct vfio_device *vdev, char __user *buf, size_t count, loff_t *ppos)
{
	struct vt_dev *vt = to_vt(vdev);
	u32 index, offset;
	ssize_t ret;

	ret = clip(vt, *ppos, count, &index, &offset);
	if (ret <= 0)
		return ret;
	count = ret;
	if (index >= VT_EXTRA_REGION && vt->type->v1) {
		ret = vt_v1_read(vt, buf, count, offset);
	} else if (index >= VT_EXTRA_REGION) {
		ret = igd_read(index - VT_EXTRA_REGION, buf, count, offset);
	} else {
		mutex_lock(&vt->io_lock);
		ret = read_locked(vt, buf, count, index, offset);
		mutex_unlock(&vt->io_lock);
	}
	if (ret > 0)
		*ppos += ret;
	return ret;
}

static ssize_t write_locked(struct vt_dev *vt, const char __user *buf, size_t count, u32 index, u32 offset, bool *flr)
{
	u8 config[8];
	int ret;

	if (index == VFIO_PCI_CONFIG_REGION_INDEX) {
		count = min(count, sizeof(config));
		if (copy_from_user(config, buf, count))
			return -EFAULT;
		*flr = vt_config_write(vt, offset, config, count);
		return count;
	}
	ret = bar_accessible(vt);
	if (ret)
		return ret;
	if (index == VFIO_PCI_BAR0_REGION_INDEX)
		return copy_from_user(vt->vram + offset, buf, count) ? -EFAULT : count;
	return bar2_write(vt, buf, count, offset);
}

ssize_t vt_write(struct vfio_device *vdev, const char __user *buf, size_t count, loff_t *ppos)
{
	struct vt_dev *vt = to_vt(vdev);
	u32 index, offset;
	bool flr = false;
	ssize_t ret;

	ret = clip(vt, *ppos, count, &index, &offset);
	if (ret <= 0)
		return ret;
	count = ret;
	if (index >= VT_EXTRA_REGION && !vt->type->v1)
		return -EINVAL;
	if (index >= VT_EXTRA_REGION) {
		ret = vt_v1_write(vt, buf, count, offset);
	} else {
		mutex_lock(&vt->io_lock);
		ret = write_locked(vt, buf, count, index, offset, &flr);
		mutex_unlock(&vt->io_lock);
	}
	if (flr)
		vt_reset(vt);
	if (ret > 0)
		*ppos += ret;
	return ret;
}
