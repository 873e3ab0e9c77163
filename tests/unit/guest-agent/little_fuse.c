// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The server is a process of its own, which ends with the test whatever way that ends. It must: who waits for an answer
 * to a request that the server has read cannot even be killed, and a server in the same process could not end then
 * either.
 */
#include "little_fuse.h"
#include "common/page.h"
#include "worker_clock.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define FILE_NODE 2
#define FILE_NAME "file"
#define MAX_READ  (64 * 1024)

/* Shared by the test and its server. */
struct LittleFuse {
	char directory[64], file[80];
	unsigned n_pages;
	pid_t server;
	int release; /* eventfd */
	atomic_bool ready, failing;
	atomic_uint held, n_requests;

	/* The server's. */
	int device;
	_Alignas(struct fuse_in_header) char request[MAX_READ + 4096];
	char bytes[MAX_READ];
	struct {
		struct fuse_in_header header;
		struct fuse_open_in body;
	} kept; /* the last request that was not answered, with what FUSE_OPEN has beside it */
};

void little_fuse_enter(void)
{
	assert_int_equal(unshare(CLONE_NEWNS), 0);
	assert_int_equal(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
}

static void answer(LittleFuse *fuse, uint64_t unique, int error, const void *bytes, size_t size)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof(header) + size), .error = error, .unique = unique};
	struct iovec parts[] = {{&header, sizeof(header)}, {(void *)bytes, size}};

	/* The request may have been given up. */
	(void)!writev(fuse->device, parts, 2);
}

static struct fuse_attr attributes(const LittleFuse *fuse, uint64_t node)
{
	struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = PF_PAGE_SIZE};

	attr.mode = node == FILE_NODE ? S_IFREG | 0644 : S_IFDIR | 0755;
	attr.size = node == FILE_NODE ? fuse->n_pages * PF_PAGE_SIZE : 0;
	return attr;
}

static void answer_lookup(LittleFuse *fuse, uint64_t unique, const char *name)
{
	struct fuse_entry_out entry = {.nodeid = FILE_NODE, .attr = attributes(fuse, FILE_NODE)};

	if (strcmp(name, FILE_NAME) == 0)
		answer(fuse, unique, 0, &entry, sizeof(entry));
	else
		answer(fuse, unique, -ENOENT, NULL, 0);
}

static void answer_read(LittleFuse *fuse, uint64_t unique, const struct fuse_read_in *in)
{
	uint64_t end = fuse->n_pages * PF_PAGE_SIZE, n = in->offset < end ? end - in->offset : 0;

	if (atomic_load(&fuse->failing)) {
		answer(fuse, unique, -EIO, NULL, 0);
		return;
	}
	n = n < in->size ? n : in->size;
	for (uint64_t i = 0; i < n; i++)
		fuse->bytes[i] = (char)((in->offset + i) / PF_PAGE_SIZE);
	answer(fuse, unique, 0, fuse->bytes, n);
}

static void serve_one(LittleFuse *fuse, const struct fuse_in_header *in)
{
	const void *body = in + 1;
	struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = PF_PAGE_SIZE};
	struct fuse_attr_out attr = {.attr = attributes(fuse, in->nodeid)};
	struct fuse_open_out opened = {.open_flags = FOPEN_KEEP_CACHE};
	struct fuse_statfs_out fs = {.st = {.bsize = PF_PAGE_SIZE, .namelen = 255}};

	atomic_fetch_add(&fuse->n_requests, 1);
	if (in->opcode == atomic_load(&fuse->held)) {
		memcpy(&fuse->kept, in, sizeof(fuse->kept));
		worker_clock_stuck();
		return;
	}
	switch (in->opcode) {
	case FUSE_INIT:
		answer(fuse, in->unique, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		answer_lookup(fuse, in->unique, body);
		break;
	case FUSE_GETATTR:
		answer(fuse, in->unique, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		answer(fuse, in->unique, 0, &opened, sizeof(opened));
		break;
	case FUSE_STATFS:
		answer(fuse, in->unique, 0, &fs, sizeof(fs));
		break;
	case FUSE_READ:
		answer_read(fuse, in->unique, body);
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_ACCESS:
		answer(fuse, in->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break; /* want no answer */
	default:
		answer(fuse, in->unique, -ENOSYS, NULL, 0);
		break;
	}
}

/* False when the file system is gone. */
static bool serve_next(LittleFuse *fuse)
{
	ssize_t n = read(fuse->device, fuse->request, sizeof(fuse->request) - 1);

	if (n < 0)
		return errno == EINTR || errno == ENOENT || errno == EAGAIN;
	fuse->request[n] = '\0';
	serve_one(fuse, (const struct fuse_in_header *)fuse->request);
	return true;
}

static bool open_device(LittleFuse *fuse)
{
	char options[96];

	fuse->device = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0",
		fuse->device);
	return fuse->device >= 0 &&
	       mount("pagefusion-test", fuse->directory, "fuse", 0, options) == 0;
}

static void serve(LittleFuse *fuse)
{
	uint64_t n;

	if (!open_device(fuse))
		return;
	for (atomic_store(&fuse->ready, true);;) {
		struct pollfd fds[] = {{fuse->device, POLLIN, 0}, {fuse->release, POLLIN, 0}};

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return;
		if (fds[1].revents && read(fuse->release, &n, sizeof(n)) == sizeof(n))
			serve_one(fuse, &fuse->kept.header);
		if (fds[0].revents && !serve_next(fuse))
			return;
	}
}

/* The server knows of nothing that the test has open: a descriptor that it kept would have to be closed by it. */
static void become_server(LittleFuse *fuse, pid_t test)
{
	for (int fd = 3; fd < 256; fd++) {
		if (fd != fuse->release)
			close(fd);
	}
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == test)
		serve(fuse);
	_exit(0);
}

LittleFuse *little_fuse_new(unsigned n_pages)
{
	LittleFuse *fuse = mmap(
		NULL, sizeof(*fuse), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t test = getpid(), server;

	assert_ptr_not_equal(fuse, MAP_FAILED);
	fuse->n_pages = n_pages;
	strcpy(fuse->directory, "/var/tmp/pagefusion-fuse-XXXXXX");
	assert_non_null(mkdtemp(fuse->directory));
	snprintf(fuse->file, sizeof(fuse->file), "%s/%s", fuse->directory, FILE_NAME);
	fuse->release = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_true(fuse->release >= 0);
	/* What the child gets from fork() is not for the memory that both see. */
	server = fork();
	assert_true(server >= 0);
	if (server == 0)
		become_server(fuse, test);
	fuse->server = server;
	while (!atomic_load(&fuse->ready)) {
		assert_int_equal(waitpid(fuse->server, NULL, WNOHANG), 0);
		usleep(1000);
	}
	return fuse;
}

void little_fuse_free(LittleFuse *fuse)
{
	kill(fuse->server, SIGKILL);
	waitpid(fuse->server, NULL, 0);
	umount2(fuse->directory, MNT_DETACH);
	close(fuse->release);
	rmdir(fuse->directory);
	munmap(fuse, sizeof(*fuse));
}

const char *little_fuse_directory(const LittleFuse *fuse)
{
	return fuse->directory;
}

const char *little_fuse_file(const LittleFuse *fuse)
{
	return fuse->file;
}

void little_fuse_hold(LittleFuse *fuse, uint32_t opcode)
{
	atomic_store(&fuse->held, opcode);
}

void little_fuse_release(LittleFuse *fuse)
{
	little_fuse_hold(fuse, 0);
	assert_int_equal(eventfd_write(fuse->release, 1), 0);
}

void little_fuse_fail(LittleFuse *fuse)
{
	atomic_store(&fuse->failing, true);
}

unsigned little_fuse_requests(LittleFuse *fuse)
{
	return atomic_load(&fuse->n_requests);
}
