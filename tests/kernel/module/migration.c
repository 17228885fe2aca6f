// SPDX-License-Identifier: GPL-2.0-only
/* Migration v2: the arcs of the state machine. */
#include <linux/file.h>
#include <linux/fs.h>

#include "vugtest.h"

void vt_end_migration(struct vt_dev *vt)
{
	vt_close_stream(&vt->saving);
	vt_close_stream(&vt->resuming);
}

static struct file *start_saving(struct vt_dev *vt, bool stopped)
{
	struct vt_stream *stream = vt_open_stream(vt, true);

	if (IS_ERR(stream))
		return ERR_CAST(stream);
	stream->stopped = stopped;
	vt->saving = stream;
	return stream->filp;
}

static struct file *start_resuming(struct vt_dev *vt)
{
	struct vt_stream *stream = vt_open_stream(vt, false);

	if (IS_ERR(stream))
		return ERR_CAST(stream);
	vt->resuming = stream;
	return stream->filp;
}

static int finish_resuming(struct vt_dev *vt)
{
	struct vt_stream *stream = vt->resuming;
	int ret;

	mutex_lock(&stream->lock);
	ret = vt_loader_finish(vt, &stream->loader);
	mutex_unlock(&stream->lock);
	if (!ret)
		vt_close_stream(&vt->resuming);
	return ret;
}

/* One arc, whose ends vfio_mig_get_next_state() chose. */
static struct file *step(struct vt_dev *vt, enum vfio_device_mig_state next)
{
	enum vfio_device_mig_state now = vt->mig_state;
	int ret;

	switch (next) {
	case VFIO_DEVICE_STATE_PRE_COPY:
	case VFIO_DEVICE_STATE_PRE_COPY_P2P:
		if (!vt->saving)
			return start_saving(vt, false);
		return NULL;
	case VFIO_DEVICE_STATE_STOP_COPY:
		if (!vt->saving)
			return start_saving(vt, true);
		mutex_lock(&vt->saving->lock);
		vt->saving->stopped = true;
		mutex_unlock(&vt->saving->lock);
		return NULL;
	case VFIO_DEVICE_STATE_RESUMING:
		return start_resuming(vt);
	case VFIO_DEVICE_STATE_RUNNING:
	case VFIO_DEVICE_STATE_RUNNING_P2P:
		vt_close_stream(&vt->saving);
		return NULL;
	case VFIO_DEVICE_STATE_STOP:
		if (now == VFIO_DEVICE_STATE_RESUMING) {
			ret = finish_resuming(vt);
			return ret ? ERR_PTR(ret) : NULL;
		}
		vt_close_stream(&vt->saving);
		return NULL;
	default:
		return ERR_PTR(-EINVAL);
	}
}

static void entered(struct vt_dev *vt, enum vfio_device_mig_state state)
{
	vt->mig_state = state;
	vt->running = state == VFIO_DEVICE_STATE_RUNNING || state == VFIO_DEVICE_STATE_RUNNING_P2P ||
		      state == VFIO_DEVICE_STATE_PRE_COPY || state == VFIO_DEVICE_STATE_PRE_COPY_P2P;
}

static struct file *injected_failure(struct vt_dev *vt)
{
	if (vt_knob(vt, fail_to_error)) {
		vt_end_migration(vt);
		entered(vt, VFIO_DEVICE_STATE_ERROR);
	}
	return ERR_PTR(vt_injected(vt));
}

static struct file *walk(struct vt_dev *vt, enum vfio_device_mig_state wanted)
{
	enum vfio_device_mig_state next;
	struct file *filp = NULL;
	int ret;

	while (vt->mig_state != wanted) {
		/* Only the last arc can open a stream. */
		if (WARN_ON(filp)) {
			fput(filp);
			return ERR_PTR(-EINVAL);
		}
		/* The kernel's function warns of a driver that asks it in ERROR. */
		ret = vt->mig_state == VFIO_DEVICE_STATE_ERROR ? -EINVAL :
			vfio_mig_get_next_state(&vt->vdev, vt->mig_state, wanted, &next);
		if (ret) {
			atomic_inc(&vt->refused_states);
			return ERR_PTR(ret);
		}
		if (vt_knob(vt, fail_state) == next)
			return injected_failure(vt);
		filp = step(vt, next);
		if (IS_ERR(filp))
			return filp;
		entered(vt, next);
	}
	return filp;
}

static struct file *set_state(struct vfio_device *vdev, enum vfio_device_mig_state wanted)
{
	struct vt_dev *vt = to_vt(vdev);
	struct file *filp;
	int ret;

	mutex_lock(&vt->mig_lock);
	ret = vt_delay(vt_knob(vt, slow_state_ms));
	filp = ret ? ERR_PTR(ret) : walk(vt, wanted);
	mutex_unlock(&vt->mig_lock);
	return filp;
}

static int get_state(struct vfio_device *vdev, enum vfio_device_mig_state *state)
{
	struct vt_dev *vt = to_vt(vdev);

	mutex_lock(&vt->mig_lock);
	*state = vt->mig_state;
	mutex_unlock(&vt->mig_lock);
	return 0;
}

static int get_data_size(struct vfio_device *vdev, unsigned long *length)
{
	struct vt_dev *vt = to_vt(vdev);
	struct vt_stream *stream;

	mutex_lock(&vt->mig_lock);
	stream = vt->saving;
	if (stream) {
		mutex_lock(&stream->lock);
		*length = vt_saver_initial(&stream->saver) + vt_saver_dirty(vt, &stream->saver) +
			  vt_saver_final(&stream->saver);
		mutex_unlock(&stream->lock);
	} else {
		*length = vt_saver_total();
	}
	mutex_unlock(&vt->mig_lock);
	if (vt_garbage(vt, VT_GARBAGE_DATA_SIZE))
		*length = ULONG_MAX;
	return 0;
}

const struct vfio_migration_ops vt_migration_ops = {
	.migration_set_state = set_state,
	.migration_get_state = get_state,
	.migration_get_data_size = get_data_size,
};
