// SPDX-License-Identifier: GPL-2.0-only
/* Migration v2: the data fd, read while saving and written while resuming, and its pre-copy sizes. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/overflow.h>
#include <linux/slab.h>

#include "vugtest.h"

/* How many bytes a transfer at `position` may have, or the error that was asked for there. */
static ssize_t limit(struct vt_dev *vt, size_t count, u64 position, s64 fail_at)
{
	s64 most = vt_knob(vt, max_transfer);

	if (fail_at >= 0) {
		if (position >= fail_at)
			return vt_injected(vt);
		count = min_t(u64, count, fail_at - position);
	}
	if (most > 0)
		count = min_t(u64, count, most);
	return min_t(size_t, count, MAX_RW_COUNT);
}

/* Waits as long as the knob says, without the lock. With the lock held afterwards; an error where the fd is over. */
static int begin(struct vt_stream *stream, bool write)
{
	s64 every;
	int ret;

	mutex_lock(&stream->lock);
	if (!stream->disabled) {
		s64 ms = write ? vt_knob(stream->vt, slow_write_ms) : vt_knob(stream->vt, slow_read_ms);

		mutex_unlock(&stream->lock);
		ret = vt_delay(ms);
		if (ret)
			return ret;
		mutex_lock(&stream->lock);
	}
	if (stream->disabled) {
		mutex_unlock(&stream->lock);
		return -ENODEV;
	}
	every = vt_knob(stream->vt, eagain_every);
	if (every > 0 && ++stream->reads % every == 0) {
		mutex_unlock(&stream->lock);
		return -EAGAIN;
	}
	return 0;
}

static ssize_t save_read(struct file *filp, char __user *buf, size_t count, loff_t *pos)
{
	struct vt_stream *stream = filp->private_data;
	struct vt_saver *saver = &stream->saver;
	struct vt_dev *vt;
	ssize_t ret, done = 0;

	if (pos)
		return -ESPIPE;
	ret = begin(stream, false);
	if (ret)
		return ret;
	vt = stream->vt;
	ret = limit(vt, count, saver->position, vt_knob(vt, fail_read_at));
	if (ret < 0)
		goto unlock;
	count = ret;
	while (done < count && vt_saver_fill(vt, saver, stream->stopped)) {
		size_t part = min(count - done, saver->length - saver->at);

		if (copy_to_user(buf + done, saver->record + saver->at, part)) {
			ret = -EFAULT;
			goto unlock;
		}
		saver->at += part;
		saver->position += part;
		done += part;
	}
	ret = done;
	if (!done && count && !stream->stopped && !vt_knob(vt, empty_read))
		ret = -ENOMSG;
unlock:
	mutex_unlock(&stream->lock);
	return ret;
}

static ssize_t resume_write(struct file *filp, const char __user *buf, size_t count, loff_t *pos)
{
	struct vt_stream *stream = filp->private_data;
	u8 *part;
	ssize_t ret, done = 0;

	if (pos)
		return -ESPIPE;
	ret = begin(stream, true);
	if (ret)
		return ret;
	part = kmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!part) {
		ret = -ENOMEM;
		goto unlock;
	}
	ret = limit(stream->vt, count, stream->loader.position, vt_knob(stream->vt, fail_write_at));
	if (ret < 0)
		goto free;
	count = ret;
	while (done < count) {
		size_t length = min(count - done, PAGE_SIZE);

		if (copy_from_user(part, buf + done, length)) {
			ret = -EFAULT;
			goto free;
		}
		ret = vt_loader_take(stream->vt, &stream->loader, part, length);
		if (ret)
			goto free;
		done += length;
	}
	ret = done;
free:
	kfree(part);
unlock:
	mutex_unlock(&stream->lock);
	return ret;
}

/* What every kernel must check; newer ones have it as a helper, which clears the flags of a user who opted in. */
static int check_precopy(struct vt_dev *vt, unsigned int cmd, unsigned long arg, struct vfio_precopy_info *info)
{
#ifdef VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
	return vfio_check_precopy_ioctl(&vt->vdev, cmd, arg, info);
#else
	const size_t minsz = offsetofend(struct vfio_precopy_info, dirty_bytes);

	if (cmd != VFIO_MIG_GET_PRECOPY_INFO)
		return -ENOTTY;
	if (copy_from_user(info, (void __user *)arg, minsz))
		return -EFAULT;
	return info->argsz < minsz ? -EINVAL : 0;
#endif
}

/* Starts all over where that was asked for and the user can be told. */
static void reinit(struct vt_dev *vt, struct vt_saver *saver, struct vfio_precopy_info *info)
{
#ifdef VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
	if (!vt->vdev.precopy_info_v2 || !vt_knob(vt, reinit))
		return;
	WRITE_ONCE(vt->knobs.reinit, 0);
	vt_saver_restart(saver);
	info->flags |= VFIO_PRECOPY_INFO_REINIT;
#endif
}

static long precopy_info(struct vt_stream *stream, struct vfio_precopy_info *info)
{
	struct vt_dev *vt = stream->vt;

	if (vt->mig_state != VFIO_DEVICE_STATE_PRE_COPY && vt->mig_state != VFIO_DEVICE_STATE_PRE_COPY_P2P)
		return -EINVAL;
	vt_scribble(vt, max_t(s64, vt_knob(vt, dirty_per_info), 0));
	reinit(vt, &stream->saver, info);
	info->initial_bytes = vt_garbage(vt, VT_GARBAGE_INITIAL) ? U64_MAX : vt_saver_initial(&stream->saver);
	info->dirty_bytes = vt_garbage(vt, VT_GARBAGE_DIRTY) ? U64_MAX : vt_saver_dirty(vt, &stream->saver);
	if (vt_garbage(vt, VT_GARBAGE_FLAGS))
		info->flags = U32_MAX;
	return 0;
}

static long save_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct vt_stream *stream = filp->private_data;
	struct vfio_precopy_info info = {};
	struct vt_dev *vt;
	long ret;

	/* The device cannot go away while its file holds the stream open: closing disables it first, under this lock. */
	mutex_lock(&stream->lock);
	vt = stream->disabled ? NULL : stream->vt;
	ret = vt ? check_precopy(vt, cmd, arg, &info) : -ENODEV;
	if (!ret)
		ret = precopy_info(stream, &info);
	mutex_unlock(&stream->lock);
	if (!ret && copy_to_user((void __user *)arg, &info, offsetofend(struct vfio_precopy_info, dirty_bytes)))
		ret = -EFAULT;
	return ret;
}

static int stream_release(struct inode *inode, struct file *filp)
{
	struct vt_stream *stream = filp->private_data;

	mutex_destroy(&stream->lock);
	kfree(stream);
	return 0;
}

static const struct file_operations save_fops = {
	.owner = THIS_MODULE,
	.read = save_read,
	.unlocked_ioctl = save_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = stream_release,
};

static const struct file_operations resume_fops = {
	.owner = THIS_MODULE,
	.write = resume_write,
	.release = stream_release,
};

struct vt_stream *vt_open_stream(struct vt_dev *vt, bool save)
{
	struct vt_stream *stream = kzalloc(sizeof(*stream), GFP_KERNEL_ACCOUNT);
	int ret;

	if (!stream)
		return ERR_PTR(-ENOMEM);
	ret = save ? vt_saver_init(&stream->saver) : vt_loader_init(vt, &stream->loader);
	if (ret)
		goto free;
	mutex_init(&stream->lock);
	stream->vt = vt;
	stream->filp = anon_inode_getfile(save ? "vugtest_saving" : "vugtest_resuming",
					  save ? &save_fops : &resume_fops, stream, save ? O_RDONLY : O_WRONLY);
	if (IS_ERR(stream->filp)) {
		ret = PTR_ERR(stream->filp);
		goto free_state;
	}
	stream_open(stream->filp->f_inode, stream->filp);
	get_file(stream->filp);
	return stream;

free_state:
	vt_saver_free(&stream->saver);
	vt_loader_free(&stream->loader);
free:
	kfree(stream);
	return ERR_PTR(ret);
}

void vt_close_stream(struct vt_stream **place)
{
	struct vt_stream *stream = *place;

	if (!stream)
		return;
	*place = NULL;
	mutex_lock(&stream->lock);
	stream->disabled = true;
	vt_saver_free(&stream->saver);
	vt_loader_free(&stream->loader);
	mutex_unlock(&stream->lock);
	fput(stream->filp);
}
