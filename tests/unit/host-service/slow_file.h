/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A file of a FUSE of the test's own: to close it waits until the test lets it, whatever signal comes. It is served by a
 * process of its own that ends with the test: else a test that fails could not end.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/fuse.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct SlowFile {
	char path[32];
	int device, fd;
	pid_t server;
	int let[2]; /* a pipe: its end lets all go */
} SlowFile;

static inline void slow_file_answer(
	const SlowFile *file, uint64_t id, int error, const void *data, size_t size)
{
	struct fuse_out_header header = {(uint32_t)(sizeof(header) + size), error, id};
	struct iovec parts[] = {{&header, sizeof(header)}, {(void *)data, size}};

	(void)!writev(file->device, parts, size > 0 ? 2 : 1);
}

static inline void slow_file_answer_attributes(const SlowFile *file, uint64_t id)
{
	const struct fuse_attr_out out = {
		.attr = {.ino = FUSE_ROOT_ID, .mode = S_IFREG | 0600, .nlink = 1}};

	slow_file_answer(file, id, 0, &out, sizeof(out));
}

static inline void slow_file_wait(const SlowFile *file)
{
	char byte;

	(void)!read(file->let[0], &byte, 1);
}

static inline void slow_file_serve(const SlowFile *file)
{
	static union {
		struct fuse_in_header header;
		char bytes[1 << 17];
	} request;
	const struct fuse_init_out init = {
		.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096};
	const struct fuse_open_out opened = {.fh = 1};

	while (read(file->device, &request, sizeof(request)) > 0) {
		uint64_t id = request.header.unique;

		switch (request.header.opcode) {
		case FUSE_INIT:
			slow_file_answer(file, id, 0, &init, sizeof(init));
			break;
		case FUSE_GETATTR:
			slow_file_answer_attributes(file, id);
			break;
		case FUSE_OPEN:
			slow_file_answer(file, id, 0, &opened, sizeof(opened));
			break;
		case FUSE_FLUSH:
			slow_file_wait(file);
			slow_file_answer(file, id, 0, NULL, 0);
			break;
		case FUSE_INTERRUPT:
		case FUSE_FORGET:
			break;
		default:
			slow_file_answer(file, id, -ENOSYS, NULL, 0);
		}
	}
}

/* false: not here. */
static inline bool slow_file_open(SlowFile *file)
{
	g_autofree char *options = NULL;
	int fd;

	*file = (SlowFile){.path = "/tmp/pf-slow-XXXXXX"};
	fd = g_mkstemp(file->path);
	assert_true(fd >= 0);
	close(fd);
	file->device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	options = g_strdup_printf("fd=%d,rootmode=100600,user_id=0,group_id=0", file->device);
	if (file->device < 0 ||
		mount("pf-slow", file->path, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
		g_unlink(file->path);
		return false;
	}
	assert_int_equal(pipe2(file->let, O_CLOEXEC), 0);
	file->server = fork();
	assert_true(file->server >= 0);
	if (file->server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(file->let[1]);
		slow_file_serve(file);
		_exit(0);
	}
	close(file->let[0]);
	close(file->device);
	file->fd = open(file->path, O_RDWR | O_CLOEXEC);
	assert_true(file->fd >= 0);
	return true;
}

/* It can be closed from now on. */
static inline void slow_file_let(SlowFile *file)
{
	close(file->let[1]);
}

static inline void slow_file_end(SlowFile *file)
{
	assert_int_equal(umount2(file->path, MNT_DETACH), 0);
	assert_int_equal(waitpid(file->server, NULL, 0), file->server);
	g_unlink(file->path);
}
