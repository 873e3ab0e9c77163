/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A store that comes back to a later service, and all that is none. */
#include "host-service/service/store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "store_forgery.h"
#include "store_sweep.h"

#define LABEL_KIB 4

static const uint8_t *filled_page(uint8_t fill)
{
	static uint8_t page[PF_PAGE_SIZE];

	memset(page, fill, sizeof(page));
	return page;
}

static void write_frame(PfStore *store, uint64_t frame, uint8_t fill)
{
	assert_int_equal(pf_store_write(store, (PfFrame){frame}, filled_page(fill)), 0);
}

static void assert_frame_is(const PfStore *store, uint64_t frame, uint8_t fill)
{
	uint8_t page[PF_PAGE_SIZE];

	assert_int_equal(pf_store_read(store, (PfFrame){frame}, page), 0);
	assert_memory_equal(page, filled_page(fill), sizeof page);
}

static void assert_no_frame(const PfStore *store, uint64_t frame)
{
	uint8_t page[PF_PAGE_SIZE];

	assert_int_equal(pf_store_read(store, (PfFrame){frame}, page), -ENOENT);
}

static PfStore *adopt(int fd)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_adopt(fd, &error);

	assert_null(error);
	assert_non_null(store);
	return store;
}

/* The service ends; what is left of its store is what a VM has. */
static PfStore *next_service(PfStore *store)
{
	int fd = dup(pf_store_readonly_fd(store));

	pf_store_free(store);
	return adopt(fd);
}

static PfStore *new_store(const char *group)
{
	PfStore *store = pf_store_new(group, NULL);

	assert_non_null(store);
	return store;
}

static void test_adopt(void **unused)
{
	PfStore *store = new_store("default");
	uint8_t id[16];

	memcpy(id, pf_store_id(store), sizeof id);
	write_frame(store, 520, 0x11);
	write_frame(store, 5000, 0x22);
	write_frame(store, 5001, 0x33);
	pf_store_drop(store, (PfFrame){5001});
	store = next_service(store);

	assert_string_equal(pf_store_group(store), "default");
	assert_memory_equal(pf_store_id(store), id, sizeof id);
	assert_int_equal(fcntl(pf_store_fd(store), F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(fcntl(pf_store_readonly_fd(store), F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(pf_store_first_own(store), 5120);
	assert_int_equal(pf_store_n_frames(store), 0);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 8);
	assert_frame_is(store, 520, 0x11);
	assert_frame_is(store, 5000, 0x22);
	assert_no_frame(store, 5001);
	assert_no_frame(store, 521);
	pf_store_free(store);
}

static void test_numbers_are_used_once(void **unused)
{
	static const uint64_t used[] = {512, 520, 521, 5119};
	PfStore *store = new_store("default");

	write_frame(store, 520, 0x11);
	write_frame(store, 5000, 0x22);
	for (int service = 0; service < 3; service++) {
		store = next_service(store);
		assert_int_equal(pf_store_first_own(store), 5120);
		for (size_t i = 0; i < G_N_ELEMENTS(used); i++)
			assert_int_equal(
				pf_store_write(store, (PfFrame){used[i]}, filled_page(0x99)),
				-EEXIST);
		assert_frame_is(store, 520, 0x11);
	}
	write_frame(store, 5120, 0x33);
	store = next_service(store);
	assert_int_equal(pf_store_first_own(store), 5632);
	assert_frame_is(store, 5120, 0x33);
	pf_store_free(store);
}

static void test_last_number(void **unused)
{
	PfStore *store = new_store("default");

	write_frame(store, (1ull << 32) - 1, 0x11);
	store = next_service(store);
	assert_int_equal(pf_store_first_own(store), 1ull << 32);
	assert_frame_is(store, (1ull << 32) - 1, 0x11);
	assert_int_equal(pf_store_write(store, (PfFrame){1ull << 32}, filled_page(1)), -ENOSPC);
	pf_store_free(store);
}

static void test_claim_and_sweep(void **unused)
{
	PfStore *store = new_store("default");

	for (uint64_t frame = 600; frame < 608; frame++)
		write_frame(store, frame, (uint8_t)frame);
	store = next_service(store);
	pf_store_claim(store, (PfFrame){601});
	pf_store_claim(store, (PfFrame){601});
	pf_store_claim(store, (PfFrame){605});
	assert_int_equal(pf_store_n_frames(store), 2);
	write_frame(store, 1024, 0x44);
	pf_store_claim(store, (PfFrame){1024});
	assert_int_equal(pf_store_n_frames(store), 3);

	assert_int_equal(sweep(store), 4 * 6);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * 3);
	assert_frame_is(store, 601, (uint8_t)601);
	assert_frame_is(store, 605, (uint8_t)605);
	assert_frame_is(store, 1024, 0x44);
	assert_no_frame(store, 600);
	pf_store_drop(store, (PfFrame){605});
	assert_int_equal(pf_store_n_frames(store), 2);
	assert_no_frame(store, 605);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 4 * 2);
	assert_int_equal(pf_store_write(store, (PfFrame){605}, filled_page(1)), -EEXIST);
	/* The label has stood all that. */
	store = next_service(store);
	assert_int_equal(pf_store_first_own(store), 1536);
	pf_store_free(store);
}

/* What was given back is gone, even if somebody touches the hole and so makes a page of zeros there. */
static void test_touched_is_not_back(void **unused)
{
	PfStore *store = new_store("default");
	volatile const uint8_t *map;

	for (uint64_t frame = 600; frame < 603; frame++)
		write_frame(store, frame, 0x11);
	store = next_service(store);
	pf_store_claim(store, (PfFrame){600});
	pf_store_claim(store, (PfFrame){601});
	pf_store_drop(store, (PfFrame){601});
	sweep(store);
	map = mmap(NULL, 3 * PF_PAGE_SIZE, PROT_READ, MAP_PRIVATE, pf_store_readonly_fd(store),
		600 * PF_PAGE_SIZE);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(map[PF_PAGE_SIZE] | map[2 * PF_PAGE_SIZE], 0);
	assert_int_equal(pf_store_allocated_kib(store), LABEL_KIB + 12);
	assert_frame_is(store, 600, 0x11);
	assert_no_frame(store, 601);
	assert_no_frame(store, 602);
	munmap((void *)map, 3 * PF_PAGE_SIZE);
	pf_store_free(store);
}

/* The kernel takes the mark, which lies before the limit, and refuses the frame. */
static void test_mark_comes_first(void **unused)
{
	PfStore *store = new_store("default"), *next;
	struct rlimit before, limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	limit = before;
	limit.rlim_cur = PF_PAGE_SIZE;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){7000}, filled_page(0x55)), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	next = adopt(dup(pf_store_readonly_fd(store)));
	assert_int_equal(pf_store_first_own(next), 7168);
	pf_store_free(next);
	pf_store_free(store);
}

/* No mark, no frame: here the kernel refuses both. */
static void test_mark_fails(void **unused)
{
	PfStore *store = new_store("default");
	struct rlimit before, limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	limit = before;
	limit.rlim_cur = 1;
	signal(SIGXFSZ, SIG_IGN);
	write_frame(store, 600, 0x66);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(pf_store_write(store, (PfFrame){1024}, filled_page(0x55)), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(pf_store_n_frames(store), 1);
	write_frame(store, 1024, 0x77);
	store = next_service(store);
	assert_int_equal(pf_store_first_own(store), 1536);
	assert_frame_is(store, 1024, 0x77);
	pf_store_free(store);
}

/* A service that publishes frame after frame, each further on than the last, until it is killed. */
static void publish(int store_fd, int published, unsigned seed)
{
	PfStore *store = pf_store_adopt(store_fd, NULL);
	uint64_t frame = store ? pf_store_first_own(store) : 0;

	while (store && pf_store_write(store, (PfFrame){frame}, filled_page((uint8_t)frame)) == 0 &&
		write(published, &frame, sizeof frame) == sizeof frame)
		frame += 1 + (unsigned)rand_r(&seed) % 700;
	_exit(1);
}

/* Returns the last number that it has published. */
static uint64_t one_killed_service(int store_fd, unsigned seed)
{
	uint64_t frame = 0, next;
	int ends[2], status;
	pid_t service;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	service = fork();
	assert_true(service >= 0);
	if (service == 0)
		publish(dup(store_fd), ends[1], seed);
	close(ends[1]);
	for (unsigned n = 0; n < 1 + seed * 13; n++)
		assert_int_equal(read(ends[0], &frame, sizeof frame), sizeof frame);
	kill(service, SIGKILL);
	assert_int_equal(waitpid(service, &status, 0), service);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	while (read(ends[0], &next, sizeof next) == sizeof next)
		frame = next;
	close(ends[0]);
	return frame;
}

static void test_killed(void **unused)
{
	PfStore *store = new_store("default");
	uint64_t last;

	for (unsigned seed = 0; seed < 30; seed++) {
		last = one_killed_service(pf_store_readonly_fd(store), seed);
		store = next_service(store);
		assert_true(pf_store_first_own(store) > last);
		assert_true(pf_store_first_own(store) - last <= 2048);
		assert_frame_is(store, last, (uint8_t)last);
	}
	pf_store_free(store);
}

/* What strangers send */

static int make_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int make_eventfd(void)
{
	return eventfd(0, EFD_CLOEXEC);
}

static int make_pipe(void)
{
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	close(ends[0]);
	return ends[1];
}

static int make_null(void)
{
	return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int make_directory(void)
{
	return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int make_file_in(const char *directory)
{
	int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static int make_disk_file(void)
{
	return make_file_in("/var/tmp");
}

static int make_tmpfs_file(void)
{
	Forgery plan = forgery();
	int fd = make_file_in("/dev/shm");

	assert_int_equal(ftruncate(fd, plan.size), 0);
	assert_int_equal(pwrite(fd, &plan.label, sizeof plan.label, 0), sizeof plan.label);
	return fd;
}

static int make_path(void)
{
	Forgery plan = forgery();
	int fd = forge(&plan), path_fd;
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

	path_fd = open(path, O_PATH | O_CLOEXEC);
	close(fd);
	return path_fd;
}

/* As orders.c makes it; QEMU writes to it what it likes. */
static int make_staging(void)
{
	Forgery plan = forgery();

	plan.seals |= F_SEAL_SEAL;
	return forge(&plan);
}

#define FORGE(name, change)                                                                        \
	static int make_##name(void)                                                               \
	{                                                                                          \
		Forgery plan = forgery();                                                          \
		change;                                                                            \
		return forge(&plan);                                                               \
	}
FORGE(perfect, plan.label.reserved = 0)
FORGE(noexec, plan.seals |= 0x20)
FORGE(small, plan.size = (off_t)1 << 32)
FORGE(unsealed, plan.seals = 0)
FORGE(growable, plan.seals = F_SEAL_SHRINK)
FORGE(shrinkable, plan.seals = F_SEAL_GROW)
FORGE(unwritable, plan.seals |= F_SEAL_FUTURE_WRITE)
FORGE(strangers, plan.owner = 12345)
FORGE(public, plan.mode = 0666)
FORGE(group_readable, plan.mode = 0640)
FORGE(setuid, plan.mode = 04600)
FORGE(tiny, plan.size = 100)
FORGE(too_small, plan.size = (off_t)1 << 31)
FORGE(too_big, plan.size = (off_t)1 << 45)
FORGE(odd_size, plan.size -= (off_t)PF_PAGE_SIZE)
FORGE(no_label, memset(&plan.label, 0, sizeof plan.label))
FORGE(wrong_magic, plan.label.magic[7] = 1)
FORGE(newer, plan.label.version = 3)
FORGE(older, plan.label.version = 1)
FORGE(no_group, plan.label.group[0] = 0)
FORGE(endless_group, memset(plan.label.group, 'g', sizeof plan.label.group))
FORGE(bad_group, plan.label.group[3] = (char)0xff)
FORGE(mark_before_first, plan.label.mark = 0)
FORGE(mark_odd, plan.label.mark = 1025)
FORGE(mark_behind, plan.label.mark = (1ull << 32) + 512)
FORGE(mark_huge, plan.label.mark = 0ull - 512)

typedef struct Stranger {
	const char *name;
	int (*make)(void);
	const char *why;  /* part of it; NULL: it is adopted */
	gboolean memory;  /* sealed memory: its status may be asked for */
	gboolean as_root; /* only root can make it */
} Stranger;

#define SEALS "no memory with the seals"
#define LABEL "no label"
static const Stranger strangers[] = {
	{"a perfect forgery of our own", make_perfect, NULL, TRUE},
	{"the same with vm.memfd_noexec", make_noexec, NULL, TRUE},
	{"of a kernel with smaller files", make_small, NULL, TRUE},
	{"a socket", make_socket, SEALS},
	{"an eventfd", make_eventfd, SEALS},
	{"a pipe", make_pipe, SEALS},
	{"/dev/null", make_null, SEALS},
	{"a directory", make_directory, SEALS},
	{"a file on disk", make_disk_file, SEALS},
	{"a file on a tmpfs", make_tmpfs_file, SEALS},
	{"a path", make_path, SEALS},
	{"a staging memfd", make_staging, SEALS},
	{"without seals", make_unsealed, SEALS},
	{"one that can grow", make_growable, SEALS},
	{"one that can shrink", make_shrinkable, SEALS},
	{"one that cannot be written", make_unwritable, SEALS},
	{"another user's", make_strangers, "another user", TRUE, TRUE},
	{"one that all may open", make_public, "others may open", TRUE},
	{"one that a group may open", make_group_readable, "others may open", TRUE},
	{"setuid", make_setuid, "others may open", TRUE},
	{"too small for a label", make_tiny, "size", TRUE},
	{"too small", make_too_small, "size", TRUE},
	{"too big", make_too_big, "size", TRUE},
	{"a page short", make_odd_size, "size", TRUE},
	{"without a label", make_no_label, LABEL, TRUE},
	{"with another magic", make_wrong_magic, LABEL, TRUE},
	{"of a newer version", make_newer, LABEL, TRUE},
	{"of an older version", make_older, LABEL, TRUE},
	{"without a group", make_no_group, LABEL, TRUE},
	{"with an endless group", make_endless_group, LABEL, TRUE},
	{"with a group that is no text", make_bad_group, LABEL, TRUE},
	{"with its mark at the start", make_mark_before_first, LABEL, TRUE},
	{"with an odd mark", make_mark_odd, LABEL, TRUE},
	{"with its mark behind the end", make_mark_behind, LABEL, TRUE},
	{"with a mark that overflows", make_mark_huge, LABEL, TRUE},
};

static void assert_adopts(const Stranger *stranger, int fd)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_store_adopt(fd, &error);

	if (!stranger->why && !store)
		fail_msg("%s: %s", stranger->name, error->message);
	if (stranger->why && store)
		fail_msg("%s: adopted", stranger->name);
	if (stranger->why && !strstr(error->message, stranger->why))
		fail_msg("%s: wrong reason: %s", stranger->name, error->message);
	if (store) {
		assert_string_equal(pf_store_group(store), FORGED_GROUP);
		assert_int_equal(pf_store_first_own(store), 1024);
	}
	pf_store_free(store);
}

static void test_strangers(void **unused)
{
	PfStore *store = new_store("default");

	for (size_t i = 0; i < G_N_ELEMENTS(strangers); i++) {
		int fd;

		if (strangers[i].as_root && geteuid() != 0)
			continue;
		fd = strangers[i].make();
		assert_true(fd >= 0);
		assert_false(pf_store_is(store, fd));
		assert_adopts(&strangers[i], fd);
	}
	pf_store_free(store);
}

/* Whoever asks for a file's status is killed. */
static void forbid_status(void)
{
#define FORBID(call)                                                                               \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 1),                                         \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		FORBID(SYS_fstat),
		FORBID(SYS_newfstatat),
		FORBID(SYS_statx),
		FORBID(SYS_pread64),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {G_N_ELEMENTS(filter), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		_exit(2);
}

/* In a process of its own, under the filter: neither may ask this descriptor's file system anything. */
static int status_under_filter(const PfStore *store, int fd)
{
	int status = -1;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		forbid_status();
		_exit(pf_store_is(store, fd) || pf_store_adopt(fd, NULL));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

/* As a file of a FUSE would: it may take for ever to answer. */
static void test_strangers_are_asked_nothing(void **unused)
{
	PfStore *store = new_store("default");
	int status;

	for (size_t i = 0; i < G_N_ELEMENTS(strangers); i++) {
		int fd;

		if (strangers[i].memory)
			continue;
		fd = strangers[i].make();
		status = status_under_filter(store, fd);
		close(fd);
		if (status != 0)
			fail_msg("%s: status %x", strangers[i].name, status);
	}
	/* The filter bites: here they have to ask. */
	status = status_under_filter(store, pf_store_readonly_fd(store));
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	pf_store_free(store);
}

static void test_is(void **unused)
{
	PfStore *store = new_store("default"), *other = new_store("default"), *again;
	int copy = dup(pf_store_readonly_fd(store));

	assert_true(pf_store_is(store, pf_store_readonly_fd(store)));
	assert_true(pf_store_is(store, pf_store_fd(store)));
	assert_true(pf_store_is(store, copy));
	assert_false(pf_store_is(store, pf_store_readonly_fd(other)));
	assert_false(pf_store_is(other, copy));
	assert_false(pf_store_is(store, -1));
	again = adopt(copy);
	assert_true(pf_store_is(again, pf_store_readonly_fd(store)));
	/* It was consumed. */
	assert_int_equal(fcntl(copy, F_GETFD), -1);
	pf_store_free(again);
	pf_store_free(other);
	pf_store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_adopt),
		cmocka_unit_test(test_numbers_are_used_once),
		cmocka_unit_test(test_last_number),
		cmocka_unit_test(test_claim_and_sweep),
		cmocka_unit_test(test_touched_is_not_back),
		cmocka_unit_test(test_mark_comes_first),
		cmocka_unit_test(test_mark_fails),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_is),
		cmocka_unit_test(test_strangers_are_asked_nothing),
		cmocka_unit_test(test_strangers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
