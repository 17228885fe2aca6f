// SPDX-License-Identifier: GPL-2.0-only
/* The mdev parent with its types, and the life of a device. */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "vugtest.h"

#define STOP_COPY	VFIO_MIGRATION_STOP_COPY
#define P2P		VFIO_MIGRATION_P2P
#define PRE_COPY	VFIO_MIGRATION_PRE_COPY

#define TYPE(name) .type = { .sysfs_name = name, .pretty_name = VT_NAME " " name }

static struct vt_type types[] = {
	{ TYPE("none") },
	{ TYPE("stop"), .migration_flags = STOP_COPY },
	{ TYPE("p2p"), .migration_flags = STOP_COPY | P2P },
	{ TYPE("precopy"), .migration_flags = STOP_COPY | PRE_COPY },
	{ TYPE("full"), .migration_flags = STOP_COPY | P2P | PRE_COPY },
	{ TYPE("log"), .migration_flags = STOP_COPY | P2P | PRE_COPY, .logging = true },
	{ TYPE("igd"), .migration_flags = STOP_COPY | P2P, .igd = true },
	{ TYPE("v1-trapped"), .v1 = &vt_v1_trapped },
	{ TYPE("v1-mapped"), .v1 = &vt_v1_mapped },
	{ TYPE("v1-across"), .v1 = &vt_v1_across },
	{ TYPE("v1-sparse"), .v1 = &vt_v1_sparse },
};

static struct mdev_type *mdev_types[ARRAY_SIZE(types)];

static ushort vendor = 0x1b36;
module_param(vendor, ushort, 0644);
MODULE_PARM_DESC(vendor, "PCI vendor id of new devices (those of type igd have Intel's)");

static ushort device = 0x0f9d;
module_param(device, ushort, 0644);
MODULE_PARM_DESC(device, "PCI device id of new devices");

/* Coffee Lake's, of generation 9. */
#define IGD_DEVICE 0x3e92

/* Sleeps; a signal ends it with EINTR. */
int vt_delay(s64 ms)
{
	if (ms <= 0)
		return 0;
	return msleep_interruptible(min_t(s64, ms, 60 * MSEC_PER_SEC)) ? -EINTR : 0;
}

/* The device changes so many pages of its memory, from the first on. */
void vt_scribble(struct vt_dev *vt, u32 pages)
{
	u32 page, value = atomic_inc_return(&vt->scribbles);

	for (page = 0; page < min_t(u32, pages, VT_VRAM_PAGES); page++)
		WRITE_ONCE(*(u32 *)(vt->vram + (u64)page * PAGE_SIZE), value);
}

static void power_on(struct vt_dev *vt)
{
	mutex_lock(&vt->mig_lock);
	vt_end_migration(vt);
	vt->mig_state = VFIO_DEVICE_STATE_RUNNING;
	vt->running = true;
	vt_v1_end(vt);
	mutex_lock(&vt->io_lock);
	vt_config_init(vt);
	memset(vt->scratch, 0, sizeof(vt->scratch));
	memset(vt->dma, 0, sizeof(vt->dma));
	memset(vt->msix_table, 0, sizeof(vt->msix_table));
	vt->irq_status = 0;
	vt->dma_result = 0;
	vt->intx_masked = false;
	memset(vt->vram, 0, VT_VRAM_SIZE);
	mutex_unlock(&vt->io_lock);
	mutex_unlock(&vt->mig_lock);
}

void vt_reset(struct vt_dev *vt)
{
	atomic_inc(&vt->resets);
	power_on(vt);
}

static int init_dev(struct vfio_device *vdev)
{
	struct vt_dev *vt = to_vt(vdev);
	struct mdev_device *mdev = to_mdev_device(vdev->dev);

	vt->type = container_of(mdev->type, struct vt_type, type);
	vt->knobs = (struct vt_knobs){
		.vendor = vt->type->igd ? PCI_VENDOR_ID_INTEL : vendor,
		.device = vt->type->igd ? IGD_DEVICE : device,
		.fail_errno = EIO,
		.fail_read_at = -1,
		.fail_write_at = -1,
		.fail_state = -1,
	};
	mutex_init(&vt->io_lock);
	mutex_init(&vt->mig_lock);
	xa_init(&vt->dirty_iovas);
	vt->vram = vmalloc_user(VT_VRAM_SIZE);
	if (!vt->vram)
		return -ENOMEM;
	if (vt_v1_init(vt)) {
		vfree(vt->vram);
		return -ENOMEM;
	}
	vdev->migration_flags = vt->type->migration_flags;
	if (vdev->migration_flags)
		vdev->mig_ops = &vt_migration_ops;
	if (vt->type->logging)
		vdev->log_ops = &vt_log_ops;
	return 0;
}

static void release_dev(struct vfio_device *vdev)
{
	struct vt_dev *vt = to_vt(vdev);

	vt_v1_free(vt);
	vfree(vt->vram);
	xa_destroy(&vt->dirty_iovas);
	mutex_destroy(&vt->mig_lock);
	mutex_destroy(&vt->io_lock);
}

static int open_device(struct vfio_device *vdev)
{
	power_on(to_vt(vdev));
	return 0;
}

static void close_device(struct vfio_device *vdev)
{
	struct vt_dev *vt = to_vt(vdev);

	power_on(vt);
	mutex_lock(&vt->io_lock);
	vt_irq_disable_all(vt);
	vt_log_end(vt);
	mutex_unlock(&vt->io_lock);
}

static void request(struct vfio_device *vdev, unsigned int count)
{
	vt_irq_request(to_vt(vdev));
}

static long device_info(struct vt_dev *vt, unsigned long arg)
{
	const size_t minsz = offsetofend(struct vfio_device_info, num_irqs);
	struct vfio_device_info info;

	if (copy_from_user(&info, (void __user *)arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
	info.num_regions = vt_nr_regions(vt);
	info.num_irqs = VFIO_PCI_NUM_IRQS;
	return copy_to_user((void __user *)arg, &info, minsz) ? -EFAULT : 0;
}

/* Newer kernels do this themselves, around a callback. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 19, 0)
static long region_info(struct vt_dev *vt, unsigned long arg)
{
	const size_t minsz = offsetofend(struct vfio_region_info, offset);
	struct vfio_region_info info = {};
	struct vfio_info_cap caps = {};
	long ret;

	if (copy_from_user(&info, (void __user *)arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	ret = vt_region_info(&vt->vdev, &info, &caps);
	if (ret)
		goto free;
	info.cap_offset = 0;
	if (caps.size) {
		info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
		if (info.argsz < sizeof(info) + caps.size) {
			info.argsz = sizeof(info) + caps.size;
		} else {
			vfio_info_cap_shift(&caps, sizeof(info));
			info.cap_offset = sizeof(info);
			if (copy_to_user((void __user *)arg + sizeof(info), caps.buf, caps.size))
				ret = -EFAULT;
		}
	}
	if (!ret && copy_to_user((void __user *)arg, &info, minsz))
		ret = -EFAULT;
free:
	kfree(caps.buf);
	return ret;
}
#endif

static long ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct vt_dev *vt = to_vt(vdev);

	switch (cmd) {
	case VFIO_DEVICE_GET_INFO:
		return device_info(vt, arg);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 19, 0)
	case VFIO_DEVICE_GET_REGION_INFO:
		return region_info(vt, arg);
#endif
	case VFIO_DEVICE_GET_IRQ_INFO:
	case VFIO_DEVICE_SET_IRQS:
		return vt_irq_ioctl(vt, cmd, arg);
	case VFIO_DEVICE_RESET:
		vt_reset(vt);
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct vfio_device_ops device_ops = {
	.name = VT_NAME,
	.init = init_dev,
	.release = release_dev,
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
	.open_device = open_device,
	.close_device = close_device,
	.read = vt_read,
	.write = vt_write,
	.ioctl = ioctl,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	.get_region_info_caps = vt_region_info,
#endif
	.mmap = vt_mmap,
	.request = request,
};

static int probe(struct mdev_device *mdev)
{
	struct vt_dev *vt = vfio_alloc_device(vt_dev, vdev, &mdev->dev, &device_ops);
	int ret;

	if (IS_ERR(vt))
		return PTR_ERR(vt);
	dev_set_drvdata(&mdev->dev, vt);
	ret = vfio_register_emulated_iommu_dev(&vt->vdev);
	if (ret)
		vfio_put_device(&vt->vdev);
	return ret;
}

static void remove(struct mdev_device *mdev)
{
	struct vt_dev *vt = dev_get_drvdata(&mdev->dev);

	vfio_unregister_group_dev(&vt->vdev);
	vfio_put_device(&vt->vdev);
}

static unsigned int get_available(struct mdev_type *type)
{
	return 64;
}

static struct mdev_driver driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.driver = {
		.name = VT_NAME,
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
		.dev_groups = vt_device_groups,
	},
	.probe = probe,
	.remove = remove,
	.get_available = get_available,
};

static const struct class parent_class = { .name = VT_NAME };
static struct mdev_parent parent;
static struct device *parent_device;

static int __init vugtest_init(void)
{
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(types); i++)
		mdev_types[i] = &types[i].type;
	ret = mdev_register_driver(&driver);
	if (ret)
		return ret;
	ret = class_register(&parent_class);
	if (ret)
		goto driver;
	parent_device = device_create(&parent_class, NULL, MKDEV(0, 0), NULL, VT_NAME);
	if (IS_ERR(parent_device)) {
		ret = PTR_ERR(parent_device);
		goto class;
	}
	ret = mdev_register_parent(&parent, parent_device, &driver, mdev_types, ARRAY_SIZE(mdev_types));
	if (!ret)
		return 0;
	device_unregister(parent_device);
class:
	class_unregister(&parent_class);
driver:
	mdev_unregister_driver(&driver);
	return ret;
}

static void __exit vugtest_exit(void)
{
	mdev_unregister_parent(&parent);
	device_unregister(parent_device);
	class_unregister(&parent_class);
	mdev_unregister_driver(&driver);
}

module_init(vugtest_init);
module_exit(vugtest_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A mediated device that looks like a GPU and misbehaves on request");
MODULE_AUTHOR("The vfio-user-gpu developers");
