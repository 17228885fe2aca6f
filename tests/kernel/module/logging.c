// SPDX-License-Identifier: GPL-2.0-only
/* DMA logging: which pages of memory the device wrote. A kernel without iova_bitmap answers reports with EOPNOTSUPP. */
#include <linux/iova_bitmap.h>
#include <linux/version.h>

#include "vugtest.h"

#if IS_ENABLED(CONFIG_IOMMUFD_DRIVER)
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS("IOMMUFD");
#else
MODULE_IMPORT_NS(IOMMUFD);
#endif
#endif

static int log_start(struct vfio_device *vdev, struct rb_root_cached *ranges, u32 nnodes, u64 *page_size)
{
	struct vt_dev *vt = to_vt(vdev);
	int ret = 0;

	mutex_lock(&vt->io_lock);
	if (vt->logging)
		ret = -EINVAL;
	vt->logging = true;
	mutex_unlock(&vt->io_lock);
	*page_size = PAGE_SIZE;
	return ret;
}

static int log_stop(struct vfio_device *vdev)
{
	struct vt_dev *vt = to_vt(vdev);

	mutex_lock(&vt->io_lock);
	vt_log_end(vt);
	mutex_unlock(&vt->io_lock);
	return 0;
}

static void report_pattern(struct vt_dev *vt, unsigned long first, unsigned long last, struct iova_bitmap *dirty)
{
	s64 stride = vt_knob(vt, log_stride);
	unsigned long page;

	if (stride <= 0)
		return;
	for (page = roundup(first, stride); page <= last; page += stride)
		iova_bitmap_set(dirty, page << PAGE_SHIFT, PAGE_SIZE);
}

static int log_read_and_clear(struct vfio_device *vdev, unsigned long iova, unsigned long length,
			      struct iova_bitmap *dirty)
{
	struct vt_dev *vt = to_vt(vdev);
	unsigned long first = iova >> PAGE_SHIFT, last = (iova + length - 1) >> PAGE_SHIFT, page;
	void *entry;
	int ret = 0;

	mutex_lock(&vt->io_lock);
	if (vt->logging) {
		xa_for_each_range(&vt->dirty_iovas, page, entry, first, last) {
			iova_bitmap_set(dirty, page << PAGE_SHIFT, PAGE_SIZE);
			xa_erase(&vt->dirty_iovas, page);
		}
		report_pattern(vt, first, last, dirty);
	} else {
		ret = -EINVAL;
	}
	mutex_unlock(&vt->io_lock);
	return ret;
}

/* The device wrote memory; with io_lock held. */
void vt_log_write(struct vt_dev *vt, u64 iova, u64 length)
{
	unsigned long page;

	if (!vt->logging)
		return;
	for (page = iova >> PAGE_SHIFT; page <= (iova + length - 1) >> PAGE_SHIFT; page++)
		xa_store(&vt->dirty_iovas, page, xa_mk_value(1), GFP_KERNEL_ACCOUNT);
}

/* With io_lock held. */
void vt_log_end(struct vt_dev *vt)
{
	vt->logging = false;
	xa_destroy(&vt->dirty_iovas);
}

const struct vfio_log_ops vt_log_ops = {
	.log_start = log_start,
	.log_stop = log_stop,
	.log_read_and_clear = log_read_and_clear,
};
