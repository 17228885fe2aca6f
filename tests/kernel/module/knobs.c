// SPDX-License-Identifier: GPL-2.0-only
/* What the files in a device's sysfs folder do: knobs, counters, and two buttons. */
#include <linux/device.h>
#include <linux/kstrtox.h>
#include <linux/sysfs.h>

#include "vugtest.h"

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

/* What the kernel's headers have, whatever a user is then answered. */
static ssize_t precopy_flags_show(struct device *dev, struct device_attribute *attribute, char *buf)
{
#ifdef VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
	return sysfs_emit(buf, "1\n");
#else
	return sysfs_emit(buf, "0\n");
#endif
}
static DEVICE_ATTR_RO(precopy_flags);

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
	&dev_attr_precopy_flags.attr,
	&dev_attr_scribble.attr,
	&dev_attr_raise.attr,
	NULL,
};

static const struct attribute_group device_group = {
	.name = VT_NAME,
	.attrs = device_attributes,
};

const struct attribute_group *vt_device_groups[] = { &device_group, NULL };
