// SPDX-License-Identifier: GPL-2.0-only
/* Interrupts: INTx, four MSI-X vectors, and the kernel's request to let the device go, each an eventfd. */
#include <linux/eventfd.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "vugtest.h"

static u32 vector_count(u32 index)
{
	switch (index) {
	case VFIO_PCI_INTX_IRQ_INDEX:
	case VFIO_PCI_REQ_IRQ_INDEX:
		return 1;
	case VFIO_PCI_MSIX_IRQ_INDEX:
		return VT_VECTORS;
	default:
		return 0;
	}
}

static void signal(struct vt_dev *vt, u32 index, u32 vector)
{
	if (vt->events[index][vector])
		eventfd_signal(vt->events[index][vector]);
}

static void signal_intx(struct vt_dev *vt)
{
	if (vt->intx_masked || vt_command(vt) & PCI_COMMAND_INTX_DISABLE)
		return;
	/* Stays masked until the user says otherwise. */
	if (vt->events[VFIO_PCI_INTX_IRQ_INDEX][0])
		vt->intx_masked = true;
	signal(vt, VFIO_PCI_INTX_IRQ_INDEX, 0);
}

void vt_irq_raise(struct vt_dev *vt, u32 vector)
{
	if (vt_msix_enabled(vt) || vt->nr_events[VFIO_PCI_MSIX_IRQ_INDEX]) {
		if (vector < VT_VECTORS)
			signal(vt, VFIO_PCI_MSIX_IRQ_INDEX, vector);
		return;
	}
	vt->irq_status = 1;
	vt->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
	signal_intx(vt);
}

void vt_irq_request(struct vt_dev *vt)
{
	mutex_lock(&vt->io_lock);
	signal(vt, VFIO_PCI_REQ_IRQ_INDEX, 0);
	mutex_unlock(&vt->io_lock);
}

static void disable(struct vt_dev *vt, u32 index)
{
	u32 i;

	for (i = 0; i < VT_VECTORS; i++) {
		if (vt->events[index][i])
			eventfd_ctx_put(vt->events[index][i]);
		vt->events[index][i] = NULL;
	}
	vt->nr_events[index] = 0;
	if (index == VFIO_PCI_INTX_IRQ_INDEX)
		vt->intx_masked = false;
}

void vt_irq_disable_all(struct vt_dev *vt)
{
	u32 index;

	for (index = 0; index < VFIO_PCI_NUM_IRQS; index++)
		disable(vt, index);
}

static int set_event(struct vt_dev *vt, u32 index, u32 vector, s32 fd)
{
	struct eventfd_ctx *event = NULL;

	if (fd >= 0) {
		event = eventfd_ctx_fdget(fd);
		if (IS_ERR(event))
			return PTR_ERR(event);
	}
	if (vt->events[index][vector])
		eventfd_ctx_put(vt->events[index][vector]);
	vt->events[index][vector] = event;
	return 0;
}

static int set_trigger(struct vt_dev *vt, const struct vfio_irq_set *set, const void *data)
{
	u32 index = set->index, end = set->start + set->count, i;
	int ret;

	if (set->flags & VFIO_IRQ_SET_DATA_NONE && !set->count) {
		disable(vt, index);
		return 0;
	}
	if (!(set->flags & VFIO_IRQ_SET_DATA_EVENTFD)) {
		for (i = set->start; i < end; i++)
			if (!data || ((const u8 *)data)[i - set->start])
				signal(vt, index, i);
		return 0;
	}
	/* NORESIZE: the first call says how many there are. */
	if (vt->nr_events[index] && end > vt->nr_events[index])
		return -EINVAL;
	for (i = set->start; i < end; i++) {
		ret = set_event(vt, index, i, ((const s32 *)data)[i - set->start]);
		if (ret)
			return ret;
	}
	vt->nr_events[index] = max(vt->nr_events[index], end);
	if (index == VFIO_PCI_INTX_IRQ_INDEX && vt->irq_status)
		signal_intx(vt);
	return 0;
}

static int set_mask(struct vt_dev *vt, const struct vfio_irq_set *set, const void *data, bool masked)
{
	if (set->index != VFIO_PCI_INTX_IRQ_INDEX || set->flags & VFIO_IRQ_SET_DATA_EVENTFD || !set->count)
		return -EINVAL;
	if (data && !*(const u8 *)data)
		return 0;
	vt->intx_masked = masked;
	if (!masked && vt->irq_status)
		signal_intx(vt);
	return 0;
}

static long set_irqs(struct vt_dev *vt, unsigned long arg)
{
	const size_t minsz = offsetofend(struct vfio_irq_set, count);
	struct vfio_irq_set set;
	size_t size = 0;
	void *data = NULL;
	long ret;

	if (copy_from_user(&set, (void __user *)arg, minsz))
		return -EFAULT;
	if (set.index >= VFIO_PCI_NUM_IRQS)
		return -EINVAL;
	ret = vfio_set_irqs_validate_and_prepare(&set, vector_count(set.index), VFIO_PCI_NUM_IRQS, &size);
	if (ret)
		return ret;
	if (size) {
		data = memdup_user((void __user *)(arg + minsz), size);
		if (IS_ERR(data))
			return PTR_ERR(data);
	}
	mutex_lock(&vt->io_lock);
	switch (set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
	case VFIO_IRQ_SET_ACTION_TRIGGER:
		ret = set_trigger(vt, &set, data);
		break;
	case VFIO_IRQ_SET_ACTION_MASK:
		ret = set_mask(vt, &set, data, true);
		break;
	case VFIO_IRQ_SET_ACTION_UNMASK:
		ret = set_mask(vt, &set, data, false);
		break;
	default:
		ret = -EINVAL;
	}
	mutex_unlock(&vt->io_lock);
	kfree(data);
	return ret;
}

static long irq_info(unsigned long arg)
{
	const size_t minsz = offsetofend(struct vfio_irq_info, count);
	struct vfio_irq_info info;

	if (copy_from_user(&info, (void __user *)arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz || info.index >= VFIO_PCI_NUM_IRQS)
		return -EINVAL;
	info.count = vector_count(info.index);
	info.flags = VFIO_IRQ_INFO_EVENTFD;
	if (info.index == VFIO_PCI_INTX_IRQ_INDEX)
		info.flags |= VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
	else
		info.flags |= VFIO_IRQ_INFO_NORESIZE;
	return copy_to_user((void __user *)arg, &info, minsz) ? -EFAULT : 0;
}

long vt_irq_ioctl(struct vt_dev *vt, unsigned int cmd, unsigned long arg)
{
	return cmd == VFIO_DEVICE_SET_IRQS ? set_irqs(vt, arg) : irq_info(arg);
}
