/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Attempts through the descriptor, the service's process and the file; those through maps are in hostile_maps.c. */
#include "tests/security/hostile_attempts.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

static char rubbish[4096] = "a QEMU was here";

static int outcome(long result)
{
	return result < 0 ? errno : 0;
}

static int reopen(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);
	int code = outcome(fd);

	if (fd >= 0)
		close(fd);
	return code;
}

static int reopen_own(const HostileTarget *target, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", target->store);
	return reopen(path, flags);
}

static int reopen_rdwr(const HostileTarget *target)
{
	return reopen_own(target, O_RDWR);
}

static int reopen_wronly(const HostileTarget *target)
{
	return reopen_own(target, O_WRONLY);
}

static int reopen_trunc(const HostileTarget *target)
{
	return reopen_own(target, O_RDONLY | O_TRUNC);
}

static int reopen_services(const HostileTarget *target)
{
	return reopen(target->service_path, O_RDWR);
}

static pid_t service_pid(const HostileTarget *target)
{
	return atoi(target->service_path + strlen("/proc/"));
}

static int take_services(const HostileTarget *target)
{
	int process = pidfd_open(service_pid(target), 0);

	if (process < 0)
		return errno;
	return outcome(pidfd_getfd(process, atoi(strrchr(target->service_path, '/') + 1), 0));
}

static int trace_service(const HostileTarget *target)
{
	return outcome(ptrace(PTRACE_SEIZE, service_pid(target), NULL, NULL));
}

static int write_to_service(const HostileTarget *target)
{
	struct iovec here = {rubbish, 1}, there = {rubbish, 1};

	return outcome(process_vm_writev(service_pid(target), &here, 1, &there, 1, 0));
}

static int open_services_memory(const HostileTarget *target)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", service_pid(target));
	return reopen(path, O_RDWR);
}

static int allocate(const HostileTarget *target, int mode)
{
	return outcome(fallocate(target->store, mode, target->frame, (off_t)target->page_size));
}

static int fallocate_plain(const HostileTarget *target)
{
	return allocate(target, 0);
}

static int fallocate_punch(const HostileTarget *target)
{
	return allocate(target, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
}

static int fallocate_zero(const HostileTarget *target)
{
	return allocate(target, FALLOC_FL_ZERO_RANGE);
}

static int fallocate_collapse(const HostileTarget *target)
{
	return allocate(target, FALLOC_FL_COLLAPSE_RANGE);
}

static int ftruncate_less(const HostileTarget *target)
{
	return outcome(ftruncate(target->store, target->frame));
}

static int truncate_by_path(const HostileTarget *target)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", target->store);
	return outcome(truncate(path, target->frame));
}

static int write_here(const HostileTarget *target)
{
	if (lseek(target->store, target->frame, SEEK_SET) < 0)
		return errno;
	return outcome(write(target->store, rubbish, sizeof(rubbish)));
}

static int pwrite_frame(const HostileTarget *target)
{
	return outcome(pwrite(target->store, rubbish, sizeof(rubbish), target->frame));
}

static int pwritev_frame(const HostileTarget *target)
{
	struct iovec part = {rubbish, sizeof(rubbish)};

	return outcome(pwritev2(target->store, &part, 1, target->frame, 0));
}

static int source(void)
{
	int fd = memfd_create("source", MFD_CLOEXEC);

	if (fd >= 0 && (write(fd, rubbish, sizeof(rubbish)) < 0 || lseek(fd, 0, SEEK_SET) < 0)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int sendfile_to(const HostileTarget *target)
{
	int from = source(), code;

	if (lseek(target->store, target->frame, SEEK_SET) < 0)
		return errno;
	code = outcome(sendfile(target->store, from, NULL, sizeof(rubbish)));
	close(from);
	return code;
}

static int copy_file_range_to(const HostileTarget *target)
{
	off_t to = target->frame;
	int from = source();
	int code = outcome(copy_file_range(from, NULL, target->store, &to, sizeof(rubbish), 0));

	close(from);
	return code;
}

/* A pipe with something in it. */
static bool fill_pipe(int ends[2])
{
	return pipe2(ends, O_CLOEXEC) == 0 && write(ends[1], rubbish, sizeof(rubbish)) > 0;
}

static void close_both(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

static int splice_to(const HostileTarget *target)
{
	off_t to = target->frame;
	int ends[2], code;

	if (!fill_pipe(ends))
		return errno;
	code = outcome(splice(ends[0], NULL, target->store, &to, sizeof(rubbish), SPLICE_F_MOVE));
	close_both(ends);
	return code;
}

static int tee_to(const HostileTarget *target)
{
	int ends[2], code;

	if (!fill_pipe(ends))
		return errno;
	code = outcome(tee(ends[0], target->store, sizeof(rubbish), 0));
	close_both(ends);
	return code;
}

/* The frame's own page in a pipe, which the kernel may be made to write to: appending must not reach it. */
static int splice_and_append(const HostileTarget *target)
{
	off_t from = target->frame;
	int ends[2], code;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return errno;
	code = outcome(splice(target->store, &from, ends[1], NULL, 100, 0));
	if (code == 0)
		code = outcome(write(ends[1], rubbish, sizeof(rubbish)));
	close_both(ends);
	return code;
}

typedef struct Ring {
	int fd;
	char *rings;
	struct io_uring_sqe *entries;
	struct io_uring_params params;
} Ring;

static bool open_ring(Ring *ring)
{
	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, 1, &ring->params);
	if (ring->fd < 0)
		return false;
	ring->rings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
		IORING_OFF_SQ_RING);
	ring->entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		ring->fd, IORING_OFF_SQES);
	return ring->rings != MAP_FAILED && (void *)ring->entries != MAP_FAILED;
}

/* The errno of the one request. */
static int submit(Ring *ring, const struct io_uring_sqe *entry)
{
	const struct io_uring_cqe *done =
		(struct io_uring_cqe *)(ring->rings + ring->params.cq_off.cqes);
	uint32_t *array = (uint32_t *)(ring->rings + ring->params.sq_off.array);
	uint32_t *tail = (uint32_t *)(ring->rings + ring->params.sq_off.tail);

	ring->entries[0] = *entry;
	array[0] = 0;
	__atomic_store_n(tail, 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return errno;
	return done->res < 0 ? -done->res : 0;
}

static int ring_request(const struct io_uring_sqe *entry)
{
	Ring ring;
	int code = open_ring(&ring) ? submit(&ring, entry) : errno;

	close(ring.fd);
	return code;
}

static int ring_write(const HostileTarget *target)
{
	struct io_uring_sqe entry = {.opcode = IORING_OP_WRITE,
		.fd = target->store,
		.addr = (uintptr_t)rubbish,
		.len = sizeof(rubbish),
		.off = (uint64_t)target->frame};

	return ring_request(&entry);
}

static int ring_fallocate(const HostileTarget *target)
{
	struct io_uring_sqe entry = {.opcode = IORING_OP_FALLOCATE,
		.fd = target->store,
		.addr = target->page_size,
		.len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		.off = (uint64_t)target->frame};

	return ring_request(&entry);
}

/* It would keep the service from writing ever again. */
static int seal_write(const HostileTarget *target)
{
	return outcome(fcntl(target->store, F_ADD_SEALS, F_SEAL_WRITE));
}

static int seal_future_write(const HostileTarget *target)
{
	return outcome(fcntl(target->store, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
}

static int seal_seals(const HostileTarget *target)
{
	return outcome(fcntl(target->store, F_ADD_SEALS, F_SEAL_SEAL));
}

static int chmod_store(const HostileTarget *target)
{
	return outcome(fchmod(target->store, 0666));
}

static int chown_store(const HostileTarget *target)
{
	return outcome(fchown(target->store, geteuid(), (gid_t)-1));
}

static int set_xattr(const HostileTarget *target)
{
	return outcome(fsetxattr(target->store, "user.mine", "1", 1, 0));
}

static int set_times(const HostileTarget *target)
{
	return outcome(futimens(target->store, (const struct timespec[2]){{1, 0}, {1, 0}}));
}

static int lease(const HostileTarget *target)
{
	return outcome(fcntl(target->store, F_SETLEASE, F_WRLCK));
}

static int lock_for_writing(const HostileTarget *target)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return outcome(fcntl(target->store, F_OFD_SETLK, &lock));
}

static int link_by_descriptor(const HostileTarget *target)
{
	return outcome(
		linkat(target->store, "", AT_FDCWD, "/tmp/pagefusion-linked", AT_EMPTY_PATH));
}

static int link_by_path(const HostileTarget *target)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", target->store);
	return outcome(
		linkat(AT_FDCWD, path, AT_FDCWD, "/tmp/pagefusion-linked", AT_SYMLINK_FOLLOW));
}

static int set_flags(const HostileTarget *target)
{
	int flags = FS_IMMUTABLE_FL;

	return outcome(ioctl(target->store, FS_IOC_SETFLAGS, &flags));
}

static int set_attributes(const HostileTarget *target)
{
	struct fsxattr attributes = {.fsx_xflags = FS_XFLAG_APPEND};

	return outcome(ioctl(target->store, FS_IOC_FSSETXATTR, &attributes));
}

static int clone_to(const HostileTarget *target)
{
	int from = source();
	int code = outcome(ioctl(target->store, FICLONE, from));

	close(from);
	return code;
}

/* Neither a seal nor a mode of the descriptor's changes what it was opened for. */
static int set_descriptor_flags(const HostileTarget *target)
{
	if (fcntl(target->store, F_SETFL, O_RDWR | O_APPEND | O_DIRECT) < 0 && errno != EINVAL)
		return errno;
	return outcome(pwrite(target->store, rubbish, sizeof(rubbish), target->frame));
}

static int sync_and_drop(const HostileTarget *target)
{
	if (fsync(target->store) < 0 || sync_file_range(target->store, target->frame, 4096, 7) < 0)
		return errno;
	return posix_fadvise(
		target->store, target->frame, (off_t)target->page_size, POSIX_FADV_DONTNEED);
}

#define MAP_ATTEMPT(name) {#name, hostile_##name},

const HostileAttempt hostile_attempts[] = {
	HOSTILE_MAP_ATTEMPTS(MAP_ATTEMPT)
	/* clang-format off */
	{"reopen_rdwr", reopen_rdwr},
	/* clang-format on */
	{"reopen_wronly", reopen_wronly},
	{"reopen_trunc", reopen_trunc},
	{"reopen_services", reopen_services},
	{"take_services", take_services},
	{"trace_service", trace_service},
	{"write_to_service", write_to_service},
	{"open_services_memory", open_services_memory},
	{"fallocate", fallocate_plain},
	{"fallocate_punch", fallocate_punch},
	{"fallocate_zero", fallocate_zero},
	{"fallocate_collapse", fallocate_collapse},
	{"ftruncate", ftruncate_less},
	{"truncate", truncate_by_path},
	{"write", write_here},
	{"pwrite", pwrite_frame},
	{"pwritev", pwritev_frame},
	{"sendfile", sendfile_to},
	{"copy_file_range", copy_file_range_to},
	{"splice", splice_to},
	{"tee", tee_to},
	{"splice_and_append", splice_and_append},
	{"ring_write", ring_write},
	{"ring_fallocate", ring_fallocate},
	{"seal_write", seal_write},
	{"seal_future_write", seal_future_write},
	{"seal_seals", seal_seals},
	{"chmod", chmod_store},
	{"chown", chown_store},
	{"xattr", set_xattr},
	{"times", set_times},
	{"lease", lease},
	{"lock", lock_for_writing},
	{"link_by_descriptor", link_by_descriptor},
	{"link_by_path", link_by_path},
	{"set_flags", set_flags},
	{"set_attributes", set_attributes},
	{"clone", clone_to},
	{"set_descriptor_flags", set_descriptor_flags},
	{"sync_and_drop", sync_and_drop},
};
const size_t hostile_n_attempts = sizeof(hostile_attempts) / sizeof(hostile_attempts[0]);
