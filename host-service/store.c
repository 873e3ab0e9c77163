/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memfd gets its full, sparse size at once and is sealed against shrinking, so that a VM which
 * maps a frame can never meet SIGBUS, and against growing, so that nothing lies behind the frames
 * that we count. Neither seal forbids filling or punching holes.
 *
 * Which frames were written is kept in bitmaps of 32768 frames (128 MiB of store), made as they are
 * needed: frame numbers come in dense ranges, one a module, that may lie far apart. A bit is set
 * when a frame is whole. A write that fails half-way leaves a hole again, and its frame never was.
 */
#include "host-service/store.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SIZE_BYTES ((off_t)1 << 44)
#define MIN_SIZE_BYTES ((off_t)1 << 32)
#define CHUNK_SHIFT    15
#define CHUNK_BYTES    ((1u << CHUNK_SHIFT) / 8)
#define MAX_GROUP_NAME 200 /* of the 249 bytes that memfd_create() takes */
#define ID_SIZE        16
#define SHMEM_ENABLED  "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

struct PfStore {
	uint8_t id[ID_SIZE];
	int fd, readonly_fd;
	uint64_t n_frames;  /* that there is room for */
	GHashTable *chunks; /* frame number >> CHUNK_SHIFT to its bitmap; both owned */
};

static int create_memfd(const char *group)
{
	g_autofree char *group_name = g_strndup(group, MAX_GROUP_NAME);
	g_autofree char *name = NULL;

	g_strcanon(group_name, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-_.", '_');
	name = g_strconcat("pagefusion-", group_name, NULL);
	return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

static int reserve_size(PfStore *store)
{
	off_t size = MAX_SIZE_BYTES;

	while (ftruncate(store->fd, size) < 0) {
		if ((errno != EFBIG && errno != EINVAL) || size <= MIN_SIZE_BYTES)
			return -errno;
		size /= 2;
	}
	store->n_frames = (uint64_t)size >> PF_PAGE_SHIFT;
	return 0;
}

static int open_store(PfStore *store, const char *group)
{
	g_autofree char *path = NULL;
	int r;

	if (getrandom(store->id, ID_SIZE, 0) != ID_SIZE)
		return -EIO;
	store->fd = create_memfd(group);
	if (store->fd < 0)
		return -errno;
	r = reserve_size(store);
	if (r < 0)
		return r;
	if (fchmod(store->fd, 0600) < 0 ||
		fcntl(store->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		return -errno;
	path = g_strdup_printf("/proc/self/fd/%d", store->fd);
	store->readonly_fd = open(path, O_RDONLY | O_CLOEXEC);
	return store->readonly_fd < 0 ? -errno : 0;
}

static void warn_of_huge_frames(void)
{
	static gsize warned;
	g_autofree char *setting = NULL;

	if (!g_once_init_enter(&warned))
		return;
	if (g_file_get_contents(SHMEM_ENABLED, &setting, NULL, NULL) &&
		(strstr(setting, "[always]") || strstr(setting, "[within_size]") ||
			strstr(setting, "[force]")))
		pf_warning("a shared page of 4 KiB will take 2 MiB of memory, because %s is %s; "
			   "write \"never\" or \"advise\" to it",
			SHMEM_ENABLED, g_strchomp(setting));
	g_once_init_leave(&warned, 1);
}

PfStore *pf_store_new(const char *group, GError **error)
{
	PfStore *store = g_new0(PfStore, 1);
	int r;

	store->fd = store->readonly_fd = -1;
	store->chunks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	r = open_store(store, group);
	if (r < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
			"cannot make the store of trust group %s: %s", group, g_strerror(-r));
		pf_store_free(store);
		return NULL;
	}
	warn_of_huge_frames();
	return store;
}

void pf_store_free(PfStore *store)
{
	if (!store)
		return;
	if (store->fd >= 0)
		close(store->fd);
	if (store->readonly_fd >= 0)
		close(store->readonly_fd);
	g_hash_table_unref(store->chunks);
	g_free(store);
}

const uint8_t *pf_store_id(const PfStore *store)
{
	return store->id;
}

int pf_store_readonly_fd(const PfStore *store)
{
	return store->readonly_fd;
}

/* The bitmap that has the frame's bit, made when it is not there yet. */
static uint8_t *chunk_of(PfStore *store, PfFrame frame)
{
	gint64 number = (gint64)(frame.v >> CHUNK_SHIFT);
	uint8_t *chunk = g_hash_table_lookup(store->chunks, &number);

	if (!chunk) {
		chunk = g_malloc0(CHUNK_BYTES);
		g_hash_table_insert(store->chunks, g_memdup2(&number, sizeof(number)), chunk);
	}
	return chunk;
}

static int write_page(int fd, off_t offset, const uint8_t page[PF_PAGE_SIZE])
{
	size_t done = 0;

	while (done < PF_PAGE_SIZE) {
		ssize_t n = pwrite(fd, page + done, PF_PAGE_SIZE - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE])
{
	off_t offset = (off_t)(frame.v << PF_PAGE_SHIFT);
	uint8_t *byte;
	uint8_t bit = (uint8_t)(1u << (frame.v & 7));
	int r;

	if (frame.v >= store->n_frames)
		return -ENOSPC;
	byte = chunk_of(store, frame) + ((frame.v >> 3) & (CHUNK_BYTES - 1));
	if (*byte & bit)
		return -EEXIST;
	r = write_page(store->fd, offset, page);
	if (r < 0) {
		/* Nobody has been told of this frame; what is left of it is at worst memory. */
		if (fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
			    PF_PAGE_SIZE) < 0)
			pf_warning("cannot free a half-written page of the store: %m");
		return r;
	}
	*byte |= bit;
	return 0;
}

uint64_t pf_store_allocated_kib(const PfStore *store)
{
	struct stat status;

	if (fstat(store->fd, &status) < 0)
		return 0;
	return (uint64_t)status.st_blocks / 2;
}
