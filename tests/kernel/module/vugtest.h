/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vugtest: a mediated device that looks like a GPU and misbehaves on request. README.md says how it is used: types, registers,
 * knobs. This header is what its parts share.
 *
 *   main.c          types, opening, closing, reset
 *   knobs.c         the files in sysfs
 *   io.c            regions: sizes, capabilities, read, write, mmap; the registers of BAR2
 *   config.c        PCI config space, and the data of the IGD regions
 *   irq.c           eventfds
 *   stream.c        the device's state as records: saver and loader
 *   migration.c     migration v2: states
 *   data_fd.c       migration v2: the data fd
 *   migration_v1.c  migration v1: the region
 *   logging.c       DMA logging
 *
 * Locks, in the order in which they are taken: mig_lock (migration state), vt_stream.lock (one data fd), io_lock (registers,
 * config space, interrupts). VRAM has none: whoever maps it writes it at any time.
 */
#ifndef VUGTEST_H
#define VUGTEST_H

#include <linux/mdev.h>
#include <linux/mutex.h>
#include <linux/pci_ids.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/vfio.h>
#include <linux/xarray.h>

#define VT_NAME			"vugtest"

/* Regions that no PCI function has come after those that each may have. */
#define VT_EXTRA_REGION		VFIO_PCI_NUM_REGIONS
#define VT_MAX_REGIONS		(VFIO_PCI_NUM_REGIONS + 3)

/* A region's place in the device's file. */
#define VT_OFFSET_SHIFT		40
#define VT_INDEX_TO_OFFSET(i)	((u64)(i) << VT_OFFSET_SHIFT)
#define VT_OFFSET_TO_INDEX(o)	((u64)(o) >> VT_OFFSET_SHIFT)
#define VT_OFFSET_MASK		(BIT_ULL(VT_OFFSET_SHIFT) - 1)

#define VT_VRAM_SIZE		SZ_8M
#define VT_VRAM_PAGES		(VT_VRAM_SIZE / PAGE_SIZE)
#define VT_BAR2_SIZE		SZ_64K
#define VT_CONFIG_SIZE		4096
#define VT_VECTORS		4

/* Registers of BAR2, 32 bits wide. */
#define VT_REG_ID		0x00	/* ro: "VUGT" */
#define VT_REG_RESETS		0x08	/* ro: since the mdev was made */
#define VT_REG_SCRATCH		0x10	/* 16 of them, migrated */
#define VT_NR_SCRATCH		16
#define VT_REG_IRQ_RAISE	0x80	/* wo: the vector, 0 for INTx */
#define VT_REG_IRQ_STATUS	0x84	/* INTx is pending; 1 clears it */
#define VT_REG_DMA_IOVA_LOW	0x90
#define VT_REG_DMA_IOVA_HIGH	0x94
#define VT_REG_DMA_VRAM		0x98	/* offset in VRAM */
#define VT_REG_DMA_LENGTH	0x9c
#define VT_REG_DMA_COMMAND	0xa0	/* wo */
#define VT_DMA_TO_MEMORY	1
#define VT_DMA_FROM_MEMORY	2
#define VT_REG_DMA_RESULT	0xa4	/* ro: 0, or an errno */
#define VT_REG_SCRIBBLE		0xb0	/* wo: the device changes so many pages of VRAM */
#define VT_MSIX_TABLE		0x8000
#define VT_MSIX_PBA		0x9000
#define VT_MSIX_TABLE_DWORDS	(VT_VECTORS * 4)

#define VT_ID			0x54475556

struct vt_area {
	u32 offset;
	u32 size;
};

#define VT_MAX_AREAS		4

/* Where the v1 migration region has its data, and which parts of it can be mapped. */
struct vt_v1_layout {
	u32 region_size;
	u32 window_size;
	/* Used in turn, one for each transaction. */
	u32 data_offsets[4];
	u32 nr_data_offsets;
	struct vt_area areas[VT_MAX_AREAS];
	u32 nr_areas;
};

struct vt_type {
	struct mdev_type type;
	/* VFIO_MIGRATION_*, 0 for a device without migration v2. */
	u32 migration_flags;
	bool logging;
	bool igd;
	const struct vt_v1_layout *v1;
};

/* One for each file of the same name in the mdev's sysfs folder `vugtest`; README.md describes them. */
struct vt_knobs {
	s64 vendor;
	s64 device;
	s64 fail_errno;
	s64 fail_read_at;
	s64 fail_write_at;
	s64 fail_state;
	s64 fail_to_error;
	s64 lax_resume;
	s64 slow_state_ms;
	s64 slow_read_ms;
	s64 slow_write_ms;
	s64 max_transfer;
	s64 eagain_every;
	s64 empty_read;
	s64 garbage;
	s64 reinit;
	s64 dirty_per_info;
	s64 log_stride;
};

#define VT_GARBAGE_DATA_SIZE	BIT(0)
#define VT_GARBAGE_INITIAL	BIT(1)
#define VT_GARBAGE_DIRTY	BIT(2)
#define VT_GARBAGE_FLAGS	BIT(3)
#define VT_GARBAGE_V1_PENDING	BIT(4)
#define VT_GARBAGE_V1_SIZE	BIT(5)
#define VT_GARBAGE_V1_OFFSET	BIT(6)
#define VT_GARBAGE_V1_EMPTY	BIT(7)

/* What a migration takes along besides VRAM, in the form it has in the stream. */
struct vt_registers {
	__le32 scratch[VT_NR_SCRATCH];
	__le32 irq_status;
	__le32 dma[4];
	__le32 msix_table[VT_MSIX_TABLE_DWORDS];
	u8 config[256];
} __packed;

/* Gives the state out, record by record. */
struct vt_saver {
	u32 phase;
	/* The next page of VRAM to look at. */
	u32 next;
	u64 records;
	/* What was given out of VRAM so far. */
	u8 *shadow;
	u8 *record;
	size_t length;
	size_t at;
	/* Bytes given out. */
	u64 position;
};

/* Takes it in. */
struct vt_loader {
	u8 *record;
	size_t have;
	u64 records;
	bool identified;
	bool have_registers;
	bool complete;
	bool broken;
	struct vt_registers registers;
	/* Bytes taken. */
	u64 position;
};

struct vt_dev;

/* A data fd. */
struct vt_stream {
	struct file *filp;
	struct vt_dev *vt;
	struct mutex lock;
	/* No longer the device's. */
	bool disabled;
	/* STOP_COPY: what is not there now will never be. */
	bool stopped;
	u64 reads;
	struct vt_saver saver;
	struct vt_loader loader;
};

struct vt_v1 {
	u32 state;
	/* As large as the region, so that an offset is the same in both. */
	u8 *window;
	/* Saving: a transaction lies in the window. */
	bool filled;
	u64 filled_size;
	u64 filled_offset;
	u32 sequence;
	struct vt_saver saver;
	struct vt_loader loader;
};

struct vt_dev {
	struct vfio_device vdev;
	const struct vt_type *type;
	struct vt_knobs knobs;
	u8 *vram;

	struct mutex io_lock;
	u8 config[VT_CONFIG_SIZE];
	u8 writable[VT_CONFIG_SIZE];
	u32 scratch[VT_NR_SCRATCH];
	u32 irq_status;
	u32 dma[4];
	u32 dma_result;
	u32 msix_table[VT_MSIX_TABLE_DWORDS];
	struct eventfd_ctx *events[VFIO_PCI_NUM_IRQS][VT_VECTORS];
	u32 nr_events[VFIO_PCI_NUM_IRQS];
	bool intx_masked;

	atomic_t resets;
	atomic_t stopped_accesses;
	atomic_t refused_states;
	/* Makes every scribble a change. */
	atomic_t scribbles;

	struct mutex mig_lock;
	enum vfio_device_mig_state mig_state;
	struct vt_stream *saving;
	struct vt_stream *resuming;
	struct vt_v1 v1;
	/* The guest may use the device. */
	bool running;

	struct xarray dirty_iovas;
	bool logging;
};

static inline struct vt_dev *to_vt(struct vfio_device *vdev)
{
	return container_of(vdev, struct vt_dev, vdev);
}

#define vt_knob(vt, name) READ_ONCE((vt)->knobs.name)

static inline bool vt_garbage(struct vt_dev *vt, s64 bit)
{
	return vt_knob(vt, garbage) & bit;
}

/* The errno that injected failures have. */
static inline int vt_injected(struct vt_dev *vt)
{
	s64 error = vt_knob(vt, fail_errno);

	return error > 0 && error < MAX_ERRNO ? -(int)error : -EIO;
}

/* main.c */
int vt_delay(s64 ms);
void vt_reset(struct vt_dev *vt);
void vt_scribble(struct vt_dev *vt, u32 pages);

/* knobs.c */
extern const struct attribute_group *vt_device_groups[];

/* io.c */
ssize_t vt_read(struct vfio_device *vdev, char __user *buf, size_t count, loff_t *ppos);
ssize_t vt_write(struct vfio_device *vdev, const char __user *buf, size_t count, loff_t *ppos);
int vt_mmap(struct vfio_device *vdev, struct vm_area_struct *vma);
int vt_region_info(struct vfio_device *vdev, struct vfio_region_info *info, struct vfio_info_cap *caps);
u32 vt_nr_regions(struct vt_dev *vt);

/* config.c */
void vt_config_init(struct vt_dev *vt);
/* True when the guest asked for a function level reset. */
bool vt_config_write(struct vt_dev *vt, u32 offset, const u8 *data, u32 count);
void vt_config_restore(struct vt_dev *vt, const u8 *config);
u16 vt_command(struct vt_dev *vt);
bool vt_msix_enabled(struct vt_dev *vt);
u32 vt_igd_region_size(u32 index);
u32 vt_igd_region_subtype(u32 index);
void vt_igd_region_fill(u32 index, u8 *data);

/* irq.c; all but the first with io_lock held */
long vt_irq_ioctl(struct vt_dev *vt, unsigned int cmd, unsigned long arg);
void vt_irq_raise(struct vt_dev *vt, u32 vector);
void vt_irq_disable_all(struct vt_dev *vt);
void vt_irq_request(struct vt_dev *vt);

/* stream.c */
int vt_saver_init(struct vt_saver *saver);
void vt_saver_free(struct vt_saver *saver);
/* Puts bytes at record + at .. length; false when there is nothing (now, or, once stopped, any more). */
bool vt_saver_fill(struct vt_dev *vt, struct vt_saver *saver, bool stopped);
void vt_saver_restart(struct vt_saver *saver);
u64 vt_saver_initial(struct vt_saver *saver);
u64 vt_saver_dirty(struct vt_dev *vt, struct vt_saver *saver);
u64 vt_saver_final(struct vt_saver *saver);
/* The whole, for a device that is not being saved. */
u64 vt_saver_total(void);
int vt_loader_init(struct vt_dev *vt, struct vt_loader *loader);
void vt_loader_free(struct vt_loader *loader);
int vt_loader_take(struct vt_dev *vt, struct vt_loader *loader, const u8 *data, size_t count);
int vt_loader_finish(struct vt_dev *vt, struct vt_loader *loader);

/* migration.c */
extern const struct vfio_migration_ops vt_migration_ops;
/* With mig_lock held. */
void vt_end_migration(struct vt_dev *vt);

/* data_fd.c; with mig_lock held */
/* The device keeps one reference of the file, the caller gets another. */
struct vt_stream *vt_open_stream(struct vt_dev *vt, bool save);
void vt_close_stream(struct vt_stream **place);

/* migration_v1.c */
int vt_v1_init(struct vt_dev *vt);
void vt_v1_free(struct vt_dev *vt);
/* With mig_lock held. */
void vt_v1_end(struct vt_dev *vt);
ssize_t vt_v1_read(struct vt_dev *vt, char __user *buf, size_t count, u32 offset);
ssize_t vt_v1_write(struct vt_dev *vt, const char __user *buf, size_t count, u32 offset);
extern const struct vt_v1_layout vt_v1_trapped, vt_v1_mapped, vt_v1_across, vt_v1_sparse;

/* logging.c */
extern const struct vfio_log_ops vt_log_ops;
void vt_log_write(struct vt_dev *vt, u64 iova, u64 length);
void vt_log_end(struct vt_dev *vt);

#endif
