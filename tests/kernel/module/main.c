// SPDX-License-Identifier: GPL-2.0-only
/* The mdev parent with its types, the life of a device, and the knobs. */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "vugtest.h"

#define NAME "vugtest"

#define STOP_COPY	VFIO_MIGRATION_STOP_COPY
#define P2P		VFIO_MIGRATION_P2P
#define PRE_COPY	VFIO_MIGRATION_PRE_COPY

#define TYPE(name) .type = { .sysfs_name = name, .pretty_name = NAME " " name }

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
	.name = NAME,
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

static struct vt_dev *of_device(struct device *dev)
{
	return dev_get_drvdata(dev);
}

struct knob {
	struct device_attribute attribute;
	size_t offset;
};

static s64 *knob_value(struct device *dev, struct device_attribute *attribute)
{
	return (void *)&of_device(dev)->knobs + container_of(attribute, struct knob, attribute)->offset;
}

static ssize_t knob_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
	return sysfs_emit(buf, "%lld\n", READ_ONCE(*knob_value(dev, attribute)));
}

static ssize_t knob_store(struct device *dev, struct device_attribute *attribute, const char *buf, size_t count)
{
	s64 value;
	int ret = kstrtos64(buf, 0, &value);

	if (ret)
		return ret;
	WRITE_ONCE(*knob_value(dev, attribute), value);
	return count;
}

#define KNOB(name) \
	static struct knob knob_##name = { __ATTR(name, 0644, knob_show, knob_store), offsetof(struct vt_knobs, name) }

KNOB(vendor);
KNOB(device);
KNOB(fail_errno);
KNOB(fail_read_at);
KNOB(fail_write_at);
KNOB(fail_state);
KNOB(fail_to_error);
KNOB(lax_resume);
KNOB(slow_state_ms);
KNOB(slow_read_ms);
KNOB(slow_write_ms);
KNOB(max_transfer);
KNOB(eagain_every);
KNOB(empty_read);
KNOB(garbage);
KNOB(reinit);
KNOB(dirty_per_info);
KNOB(log_stride);

static ssize_t state_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
	struct vt_dev *vt = of_device(dev);

	return sysfs_emit(buf, "%u\n", vt->type->v1 ? READ_ONCE(vt->v1.state) : READ_ONCE(vt->mig_state));
}
static DEVICE_ATTR_RO(state);

static ssize_t resets_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&of_device(dev)->resets));
}
static DEVICE_ATTR_RO(resets);

static ssize_t stopped_accesses_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&of_device(dev)->stopped_accesses));
}
static DEVICE_ATTR_RO(stopped_accesses);

static ssize_t refused_states_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&of_device(dev)->refused_states));
}
static DEVICE_ATTR_RO(refused_states);

static ssize_t scribble_store(struct device *dev, struct device_attribute *attribute, const char *buf, size_t count)
{
	u32 pages;
	int ret = kstrtou32(buf, 0, &pages);

	if (ret)
		return ret;
	vt_scribble(of_device(dev), pages);
	return count;
}
static DEVICE_ATTR_WO(scribble);

static ssize_t raise_store(struct device *dev, struct device_attribute *attribute, const char *buf, size_t count)
{
	struct vt_dev *vt = of_device(dev);
	u32 vector;
	int ret = kstrtou32(buf, 0, &vector);

	if (ret)
		return ret;
	mutex_lock(&vt->io_lock);
	vt_irq_raise(vt, vector);
	mutex_unlock(&vt->io_lock);
	return count;
}
static DEVICE_ATTR_WO(raise);

static struct attribute *device_attributes[] = {
	&knob_vendor.attribute.attr,
	&knob_device.attribute.attr,
	&knob_fail_errno.attribute.attr,
	&knob_fail_read_at.attribute.attr,
	&knob_fail_write_at.attribute.attr,
	&knob_fail_state.attribute.attr,
	&knob_fail_to_error.attribute.attr,
	&knob_lax_resume.attribute.attr,
	&knob_slow_state_ms.attribute.attr,
	&knob_slow_read_ms.attribute.attr,
	&knob_slow_write_ms.attribute.attr,
	&knob_max_transfer.attribute.attr,
	&knob_eagain_every.attribute.attr,
	&knob_empty_read.attribute.attr,
	&knob_garbage.attribute.attr,
	&knob_reinit.attribute.attr,
	&knob_dirty_per_info.attribute.attr,
	&knob_log_stride.attribute.attr,
	&dev_attr_state.attr,
	&dev_attr_resets.attr,
	&dev_attr_stopped_accesses.attr,
	&dev_attr_refused_states.attr,
	&dev_attr_scribble.attr,
	&dev_attr_raise.attr,
	NULL,
};

static const struct attribute_group device_group = {
	.name = NAME,
	.attrs = device_attributes,
};

static const struct attribute_group *device_groups[] = { &device_group, NULL };

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
	struct vt_dev *vt = of_device(&mdev->dev);

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
		.name = NAME,
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
		.dev_groups = device_groups,
	},
	.probe = probe,
	.remove = remove,
	.get_available = get_available,
};

static const struct class parent_class = { .name = NAME };
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
	parent_device = device_create(&parent_class, NULL, MKDEV(0, 0), NULL, NAME);
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
