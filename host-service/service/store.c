/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memfd gets its full, sparse size at once and is sealed against shrinking, so that a VM which
 * maps a frame can never meet SIGBUS, and against growing, so that nothing lies behind the frames
 * that we count. Neither seal forbids filling or punching holes.
 *
 * A frame is *used* as soon as it is whole, and for ever; it is *live* until it is dropped. A write that fails
 * half-way leaves a hole again, and its frame never was.
 *
 * The label (frame 0) tells the next service what these two sets would: all frame numbers from the mark on were never
 * used. The mark is raised, in steps, before the first frame behind it is written. So a service that is killed between
 * any two instructions has published nothing behind the mark, at the price of at most a step of numbers. Its eight
 * bytes lie in one page and are written by one call, which no signal can halve.
 *
 * The pages between the label and the first frame are the table of members (store_members.c).
 *
 * Who may come back with a store? Anybody with anything: the kernel is asked in an order in which no answer can be made
 * to wait or to lie. Seals exist for memory files only, so whoever has them is no FUSE file, and fstat() is safe. Its
 * owner is the user of whoever made it, and no other user can open it for writing: then its bytes are ours too, unless
 * it is a staging memfd, which has one more seal. A reader can still make a hole into a page, of zeros, by touching it:
 * that is why what is not live is given back by a walk over what is really there, the sweep. It gives back whole
 * stretches between live frames, and not each page that was touched, for a page costs as much as a long stretch. A sweep
 * only goes forward, so it ends whatever is touched behind it or before it.
 */
#include "host-service/service/store.h"
#include "common/log.h"
#include "host-service/service/frame_set.h"
#include "host-service/service/process_id.h"
#include "host-service/service/store_members.h"
#include "host-service/wire/received_fds.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define MAX_SIZE_BYTES ((off_t)1 << 44)
#define MIN_SIZE_BYTES ((off_t)1 << 32)
#define MEMFD_GROUP    200 /* bytes of the group's name, of the 249 that memfd_create() takes */
#define GROUP_SIZE     256
#define ID_SIZE        16
#define MARK_STEP      512u
#define SWEEP_PAGES    2048u /* in one call of the kernel: one or two milliseconds if all are there */
#define PAGE_KIB       (PF_PAGE_SIZE / 1024)
#define LABEL_MAGIC    0x0065726f74736670ull /* "pfstore" */
#define LABEL_VERSION  2u                    /* 1 had no members */
#define SHMEM_ENABLED  "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
/* Where the sysctl vm.memfd_noexec is set, every memfd has this one too. */
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

/* linux/mman.h from 6.5 on */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
typedef struct CachestatRange {
	uint64_t offset, length;
} CachestatRange;
typedef struct Cachestat {
	uint64_t n_cached, n_dirty, n_writeback, n_evicted, n_recently_evicted;
} Cachestat;

/* Of this machine's byte order: it never leaves it. */
typedef struct Label {
	uint64_t magic;
	uint32_t version;
	uint32_t reserved;
	uint64_t mark; /* frame numbers from here on were never used; a multiple of MARK_STEP */
	uint8_t id[ID_SIZE];
	char group[GROUP_SIZE];
} Label;
static_assert(sizeof(Label) == 296, "read by other versions");
static_assert(sizeof(Label) <= PF_PAGE_SIZE, "one page");
static_assert(PF_STORE_FIRST_FRAME % MARK_STEP == 0, "the first mark");

#define MEMBER_PAGES (PF_STORE_FIRST_FRAME - 1) /* all between the label and the first frame */

struct PfStore {
	Label label; /* as it is written */
	int fd, readonly_fd;
	uint64_t room;      /* frames, with the label */
	uint64_t first_own; /* all below count as used */
	uint64_t n_live;
	uint64_t swept_to;  /* below it and below first_own there is nothing but what is live */
	uint64_t sweep_at;  /* the sweep's next page; 0: there is no sweep */
	uint64_t swept_kib; /* by it */
	PfFrameSet *live;
	PfFrameSet *used;        /* by this service */
	PfStoreMembers *members; /* NULL until fd is there */
};

static PfStore *store_alloc(void)
{
	PfStore *store = g_new0(PfStore, 1);

	store->fd = store->readonly_fd = -1;
	store->live = pf_frame_set_new();
	store->used = pf_frame_set_new();
	return store;
}

void pf_store_free(PfStore *store)
{
	if (!store)
		return;
	pf_store_members_free(store->members);
	if (store->fd >= 0)
		close(store->fd);
	if (store->readonly_fd >= 0)
		close(store->readonly_fd);
	pf_frame_set_free(store->live);
	pf_frame_set_free(store->used);
	g_free(store);
}

static int reopen(int fd, int flags)
{
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
	int opened = open(path, flags | O_CLOEXEC);

	return opened < 0 ? -errno : opened;
}

static int write_bytes(int fd, off_t offset, const void *bytes, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n =
			pwrite(fd, (const char *)bytes + done, size - done, offset + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int punch(const PfStore *store, uint64_t first_frame, uint64_t n_frames)
{
	if (fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		    (off_t)(first_frame << PF_PAGE_SHIFT), (off_t)(n_frames << PF_PAGE_SHIFT)) == 0)
		return 0;
	pf_warning("cannot give memory of the store back: %m");
	return -errno;
}

/* A new store */

static bool is_group_name(const char *name)
{
	size_t length = strnlen(name, GROUP_SIZE);

	return length > 0 && length < GROUP_SIZE && g_utf8_validate(name, (gssize)length, NULL);
}

static int create_memfd(const char *group)
{
	g_autofree char *group_name = g_strndup(group, MEMFD_GROUP);
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
	store->room = (uint64_t)size >> PF_PAGE_SHIFT;
	return 0;
}

static int make_memfd(PfStore *store, const char *group)
{
	Label *label = &store->label;
	int r;

	if (!is_group_name(group))
		return -EINVAL;
	*label = (Label){
		.magic = LABEL_MAGIC, .version = LABEL_VERSION, .mark = PF_STORE_FIRST_FRAME};
	g_strlcpy(label->group, group, GROUP_SIZE);
	if (getrandom(label->id, ID_SIZE, 0) != ID_SIZE)
		return -EIO;
	store->fd = create_memfd(group);
	if (store->fd < 0)
		return -errno;
	r = reserve_size(store);
	if (r == 0)
		r = write_bytes(store->fd, 0, label, sizeof *label);
	if (r < 0)
		return r;
	if (fchmod(store->fd, 0600) < 0 || fcntl(store->fd, F_ADD_SEALS, SEALS) < 0)
		return -errno;
	store->first_own = label->mark;
	store->members = pf_store_members_new(store->fd, PF_PAGE_SIZE, MEMBER_PAGES);
	store->readonly_fd = reopen(store->fd, O_RDONLY);
	return store->readonly_fd < 0 ? store->readonly_fd : 0;
}

void pf_store_warn_of_huge_frames(void)
{
	g_autofree char *setting = NULL;

	if (g_file_get_contents(SHMEM_ENABLED, &setting, NULL, NULL) &&
		(strstr(setting, "[always]") || strstr(setting, "[within_size]") ||
			strstr(setting, "[force]")))
		pf_warning("a shared page of 4 KiB will take 2 MiB of memory, because %s is %s; "
			   "write \"never\" or \"advise\" to it",
			SHMEM_ENABLED, g_strchomp(setting));
}

PfStore *pf_store_new(const char *group, GError **error)
{
	PfStore *store = store_alloc();
	int r = make_memfd(store, group);

	if (r < 0) {
		g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-r),
			"cannot make the store of trust group %s: %s", group, g_strerror(-r));
		pf_store_free(store);
		return NULL;
	}
	return store;
}

/* A store of an earlier service */

/* Touches no file system: it is safe with whatever a stranger sent. */
static bool has_seals(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & ~F_SEAL_EXEC) == SEALS;
}

static bool is_store_size(off_t size)
{
	return size >= MIN_SIZE_BYTES && size <= MAX_SIZE_BYTES && (size & (size - 1)) == 0;
}

static bool is_label(const Label *label, uint64_t room)
{
	return label->magic == LABEL_MAGIC && label->version == LABEL_VERSION &&
	       is_group_name(label->group) && label->mark >= PF_STORE_FIRST_FRAME &&
	       label->mark <= room && label->mark % MARK_STEP == 0;
}

/* NULL, or why not. fd stays the caller's. */
static const char *take_over(PfStore *store, int fd)
{
	struct stat status;

	if (!has_seals(fd))
		return "it is no memory with the seals of a store";
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_uid != geteuid())
		return "another user has made it";
	if ((status.st_mode & 07777) != 0600)
		return "others may open it";
	if (!is_store_size(status.st_size))
		return "it has not the size of a store";
	store->room = (uint64_t)status.st_size >> PF_PAGE_SHIFT;
	store->fd = reopen(fd, O_RDWR);
	if (store->fd < 0)
		return "it cannot be opened for writing";
	store->readonly_fd = reopen(fd, O_RDONLY);
	if (store->readonly_fd < 0)
		return "it cannot be opened for reading";
	if (pread(store->fd, &store->label, sizeof store->label, 0) != sizeof store->label ||
		!is_label(&store->label, store->room))
		return "it has no label that this version can read";
	store->first_own = store->label.mark;
	store->members = pf_store_members_new(store->fd, PF_PAGE_SIZE, MEMBER_PAGES);
	if (pf_store_members_load(store->members) < 0)
		return "its members cannot be read";
	return NULL;
}

PfStore *pf_store_adopt(int fd, GError **error)
{
	PfStore *store = store_alloc();
	const char *why = take_over(store, fd);

	if (!why) {
		close(fd);
		return store;
	}
	pf_received_fds_close_later(fd);
	g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL, "no store of ours: %s", why);
	pf_store_free(store);
	return NULL;
}

bool pf_store_is(const PfStore *store, int fd)
{
	struct stat ours, theirs;

	return has_seals(fd) && fstat(fd, &theirs) == 0 && fstat(store->fd, &ours) == 0 &&
	       ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

const char *pf_store_group(const PfStore *store)
{
	return store->label.group;
}

const uint8_t *pf_store_id(const PfStore *store)
{
	return store->label.id;
}

int pf_store_readonly_fd(const PfStore *store)
{
	return store->readonly_fd;
}

int pf_store_fd(const PfStore *store)
{
	return store->fd;
}

uint64_t pf_store_first_own(const PfStore *store)
{
	return store->first_own;
}

/* Members */

int pf_store_add_member(PfStore *store, int pidfd, pid_t pid)
{
	uint64_t process;

	if (pf_process_id(pidfd, &process) < 0)
		process = 0;
	return pf_store_members_add(store->members, pid, process);
}

bool pf_store_members_known(
	PfStore *store, bool (*is_known)(void *userdata, uint64_t process), void *userdata)
{
	return pf_store_members_are_known(store->members, is_known, userdata);
}

bool pf_store_members_unsure(const PfStore *store)
{
	return pf_store_members_has_unsure(store->members);
}

/* Frames */

static void set_live(PfStore *store, PfFrame frame)
{
	pf_frame_set_add(store->live, frame);
	pf_frame_set_add(store->used, frame);
	store->n_live++;
}

/* Of an earlier service, and neither claimed nor given back. */
static bool is_unclaimed(const PfStore *store, PfFrame frame)
{
	return frame.v >= PF_STORE_FIRST_FRAME && frame.v < store->first_own &&
	       frame.v >= store->swept_to && !pf_frame_set_has(store->used, frame);
}

static int raise_mark(PfStore *store, uint64_t frame)
{
	uint64_t mark = (frame / MARK_STEP + 1) * MARK_STEP;
	int r = write_bytes(store->fd, offsetof(Label, mark), &mark, sizeof mark);

	if (r == 0)
		store->label.mark = mark;
	return r;
}

int pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE])
{
	int r = 0;

	if (frame.v < PF_STORE_FIRST_FRAME)
		return -EINVAL;
	if (frame.v >= store->room)
		return -ENOSPC;
	if (frame.v < store->first_own || pf_frame_set_has(store->used, frame))
		return -EEXIST;
	if (frame.v >= store->label.mark)
		r = raise_mark(store, frame.v);
	if (r < 0)
		return r;
	r = write_bytes(store->fd, (off_t)(frame.v << PF_PAGE_SHIFT), page, PF_PAGE_SIZE);
	if (r < 0) {
		/* Nobody has been told of this frame; what is left of it is at worst memory. */
		punch(store, frame.v, 1);
		return r;
	}
	set_live(store, frame);
	return 0;
}

int pf_store_read(const PfStore *store, PfFrame frame, uint8_t page[PF_PAGE_SIZE])
{
	off_t offset = (off_t)(frame.v << PF_PAGE_SHIFT);
	ssize_t n;

	if (!pf_frame_set_has(store->live, frame) && !is_unclaimed(store, frame))
		return -ENOENT;
	/* Reading a hole would give zeros, and cost a page. */
	if (lseek(store->fd, offset, SEEK_DATA) != offset)
		return -ENOENT;
	n = pread(store->fd, page, PF_PAGE_SIZE, offset);
	if (n < 0)
		return -errno;
	return n == PF_PAGE_SIZE ? 0 : -EIO;
}

void pf_store_claim(PfStore *store, PfFrame frame)
{
	if (pf_frame_set_has(store->live, frame))
		return;
	assert(is_unclaimed(store, frame));
	set_live(store, frame);
}

void pf_store_drop(PfStore *store, PfFrame frame)
{
	assert(pf_frame_set_has(store->live, frame));
	pf_frame_set_remove(store->live, frame);
	store->n_live--;
	punch(store, frame.v, 1);
}

/* Behind the label and the members, who may become more at any time. */
static uint64_t first_swept(const PfStore *store)
{
	return pf_store_n_pages(store) - store->n_live;
}

void pf_store_start_sweep(PfStore *store)
{
	store->sweep_at = first_swept(store);
	store->swept_kib = 0;
}

bool pf_store_is_sweeping(const PfStore *store)
{
	return store->sweep_at != 0;
}

/* From the next page on that is there. false: there is none. */
static bool sweep_stretch(PfStore *store)
{
	uint64_t at = MAX(store->sweep_at, first_swept(store)), n;
	off_t data = lseek(store->fd, (off_t)(at << PF_PAGE_SHIFT), SEEK_DATA);

	if (data < 0)
		return false;
	at = (uint64_t)data >> PF_PAGE_SHIFT;
	n = pf_frame_set_stretch(store->live, (PfFrame){at}, MIN(SWEEP_PAGES, store->room - at));
	if (!pf_frame_set_has(store->live, (PfFrame){at}))
		punch(store, at, n);
	store->sweep_at = at + n;
	store->swept_to = MAX(store->swept_to, store->sweep_at);
	return true;
}

bool pf_store_sweep(PfStore *store, int64_t max_us, uint64_t *freed_kib)
{
	uint64_t before_kib = pf_store_allocated_kib(store), after_kib;
	int64_t end_us = g_get_monotonic_time() + max_us;
	bool more = store->sweep_at != 0;

	while (more) {
		more = sweep_stretch(store);
		if (g_get_monotonic_time() >= end_us)
			break;
	}
	if (!more && store->sweep_at != 0) {
		store->sweep_at = 0;
		store->swept_to = store->room;
	}
	after_kib = pf_store_allocated_kib(store);
	/* Somebody may have touched more meanwhile. */
	store->swept_kib += before_kib > after_kib ? before_kib - after_kib : 0;
	*freed_kib = store->swept_kib;
	return more;
}

uint64_t pf_store_n_frames(const PfStore *store)
{
	return store->n_live;
}

uint64_t pf_store_n_pages(const PfStore *store)
{
	return store->n_live + 1 + pf_store_members_n_pages(store->members);
}

uint64_t pf_store_allocated_kib(const PfStore *store)
{
	struct stat status;

	if (fstat(store->fd, &status) < 0)
		return 0;
	return (uint64_t)status.st_blocks / 2;
}

uint64_t pf_store_swapped_kib(const PfStore *store)
{
	CachestatRange all = {0, 0};
	Cachestat pages;
	struct sysinfo host;

	/* The count looks at every page, some ten milliseconds for a GiB: not for nothing. */
	if (sysinfo(&host) == 0 && host.freeswap == host.totalswap)
		return 0;
	/* What was evicted from memory that has no file is in swap. */
	if (syscall(SYS_cachestat, store->fd, &all, &pages, 0) < 0)
		return 0;
	return pages.n_evicted * PAGE_KIB;
}
