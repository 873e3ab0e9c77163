/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * No QEMU can write to a frame. Two VMs with the real shim share pages; the QEMU of a third one of their trust group,
 * which has what the service really sent it, tries everything in hostile_attempts.c and hostile_maps.c: as itself, by a
 * child, as root of a user namespace, and as another process of another user that was handed the descriptors. Each ends
 * as the table says, and after each the frames, the store's size, mode, owner and seals are what they were, by the
 * store itself and by what the other VMs read. Done with the service in this process, which is root, and as the program
 * with a user of its own.
 */
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include "tests/security/hostile_attempts.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define STORE_FD  10 /* in the hostile program */
#define DEVICE_FD 11
#define OTHER_UID 65533
#define HOLES     4096u
/* Beside the frames: what the service does not look for, the label and the table of members. */
#define SLACK_KIB (1024 + 8)

/* Where one kernel says this and another one that, or a setting decides. */
typedef struct Expected {
	const char *name;
	int codes[3];
} Expected;

static const Expected expected[] = {
	{"map_shared", {EACCES}},
	{"mprotect_shared", {EACCES}},
	{"mremap_and_mprotect", {EACCES}},
	{"madvise_remove_shared", {EACCES}},
	{"madvise_remove_private", {EACCES}},
	{"madvise_hwpoison", {EPERM, EINVAL}}, /* EINVAL: a kernel that knows nothing of it */
	{"madvise_soft_offline", {EPERM, EINVAL}},
	{"madvise_free", {EINVAL}},
	{"madvise_populate_write", {EINVAL, EFAULT}},
	{"madvise_pageout", {0}},
	{"madvise_collapse", {0, EINVAL, EAGAIN}}, /* as the kernel is set */
	{"mbind_and_move", {0, ENOSYS}},
	{"private_write", {0}},
	{"private_write_and_dontneed", {0}},
	{"private_mergeable", {0, EINVAL}},
	{"mem_file_shared", {EIO}},
	{"mem_file_private", {0, EIO}}, /* EIO: proc_mem.force_override=never */
	{"process_vm_writev", {EFAULT}},
	{"vmsplice_gift", {0}},
	{"read_into_shared", {EFAULT}},
	{"remap_file_pages", {EINVAL}},
	{"userfault_shared", {EPERM}},
	{"userfault_shared_minor", {EPERM}},
	{"userfault_copy", {0}},
	{"userfault_zeropage", {0}},
	{"userfault_continue", {0, EINVAL, EFAULT}},
	{"userfault_move", {EINVAL}},
	{"userfault_writeprotect", {0}},
	{"reopen_rdwr", {EACCES}},
	{"reopen_wronly", {EACCES}},
	{"reopen_trunc", {EACCES}},
	{"reopen_services", {EACCES}},
	{"take_services", {EPERM}},
	{"trace_service", {EPERM}},
	{"write_to_service", {EPERM}},
	{"open_services_memory", {EACCES}},
	{"fallocate", {EBADF}},
	{"fallocate_punch", {EBADF}},
	{"fallocate_zero", {EBADF, EOPNOTSUPP}},
	{"fallocate_collapse", {EBADF, EOPNOTSUPP}},
	{"ftruncate", {EINVAL}},
	{"truncate", {EACCES}},
	{"write", {EBADF}},
	{"pwrite", {EBADF}},
	{"pwritev", {EBADF}},
	{"sendfile", {EBADF}},
	{"copy_file_range", {EBADF}},
	{"splice", {EBADF}},
	{"tee", {EBADF}},
	{"splice_and_append", {0}},
	{"ring_write", {EBADF, EPERM, ENOSYS}}, /* EPERM: kernel.io_uring_disabled */
	{"ring_fallocate", {EBADF, EPERM, ENOSYS}},
	{"seal_write", {EPERM}},
	{"seal_future_write", {EPERM}},
	{"seal_seals", {EPERM}},
	{"chmod", {EPERM}},
	{"chown", {EPERM}},
	{"xattr", {EACCES, EPERM, EOPNOTSUPP}},
	{"times", {EPERM}},
	{"lease", {EACCES}},
	{"lock", {EBADF}},
	{"link_by_descriptor", {ENOENT}},
	{"link_by_path", {EXDEV, EPERM}},
	{"set_flags", {EPERM, ENOTTY, EACCES}},
	{"set_attributes", {EPERM, ENOTTY, EACCES}},
	{"clone", {EBADF, EXDEV, EOPNOTSUPP}},
	{"set_descriptor_flags", {EBADF}},
	{"sync_and_drop", {0}},
};

typedef struct Program {
	pid_t pid;
	FILE *to, *from;
} Program;

typedef struct Rig {
	Lab *lab;
	LabVm *a, *b;
	HostileShim hostile;
	char service_path[64];
	char *digest;
	struct stat status;
} Rig;

/* What must not change */

/* Of all frames. The store is this program's through what the hostile VM got, read-only as it is. */
static char *digest_frames(const Rig *rig)
{
	g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
	off_t at = lseek(rig->hostile.store, HOSTILE_FIRST_FRAME * 4096, SEEK_DATA);
	guchar page[4096];

	assert_true(at >= 0);
	for (unsigned i = 0; i < HONEST_PAGES; i++) {
		assert_int_equal(
			pread(rig->hostile.store, page, sizeof(page), at + i * 4096), sizeof(page));
		g_checksum_update(sum, page, sizeof(page));
	}
	return g_strdup(g_checksum_get_string(sum));
}

static void expect_unchanged(const Rig *rig, const char *what)
{
	g_autofree char *digest = digest_frames(rig);
	struct stat status;

	if (strcmp(digest, rig->digest) != 0)
		fail_msg("%s: the frames have changed", what);
	assert_int_equal(fstat(rig->hostile.store, &status), 0);
	if (status.st_size != rig->status.st_size || status.st_mode != rig->status.st_mode ||
		status.st_uid != rig->status.st_uid || status.st_nlink != rig->status.st_nlink ||
		fcntl(rig->hostile.store, F_GET_SEALS) != (F_SEAL_SHRINK | F_SEAL_GROW))
		fail_msg("%s: the store is not what it was", what);
	for (unsigned i = 0; i < 2; i++) {
		LabVm *vm = i ? rig->b : rig->a;

		if (strcmp(lab_command(
				   vm, "check %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED),
			    "ok") != 0)
			fail_msg("%s: %s reads other bytes", what, vm->name);
	}
}

/* The rig */

static bool are_fused(void *userdata)
{
	const Rig *rig = userdata;

	return honest_share(rig->a, rig->b);
}

/* Whether this is a descriptor of the store that can write: /proc/PID/fd/HONEST_PAGES. */
static bool is_writable_store(const Rig *rig, const char *path)
{
	g_autofree char *dir = g_path_get_dirname(path), *process = g_path_get_dirname(dir),
			*number = g_path_get_basename(path), *text = NULL;
	g_autofree char *info = g_build_filename(process, "fdinfo", number, NULL);
	struct stat status;
	const char *flags;

	if (stat(path, &status) < 0 || status.st_ino != rig->status.st_ino ||
		status.st_dev != rig->status.st_dev ||
		!g_file_get_contents(info, &text, NULL, NULL))
		return false;
	flags = strstr(text, "flags:");
	return flags && (strtoul(flags + strlen("flags:"), NULL, 8) & O_ACCMODE) == O_RDWR;
}

static bool find_in_process(Rig *rig, const char *pid)
{
	g_autofree char *path = g_strdup_printf("/proc/%s/fd", pid);
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *fd = g_build_filename(path, name, NULL);

		if (!is_writable_store(rig, fd))
			continue;
		g_strlcpy(rig->service_path, fd, sizeof(rig->service_path));
		return true;
	}
	return false;
}

/* Some process must have the store open for writing: the service. */
static void find_service(Rig *rig)
{
	g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
	const char *name;

	while ((name = g_dir_read_name(dir)))
		if (g_ascii_isdigit(name[0]) && find_in_process(rig, name))
			return;
	fail_msg("nobody has the store open for writing");
}

static int set_up_rig(void **state, bool own_process)
{
	Rig *rig = g_new0(Rig, 1);
	LabVm *hostile;

	*state = rig;
	rig->lab = lab_new(own_process);
	rig->a = honest_start(rig->lab, "a", "default");
	rig->b = honest_start(rig->lab, "b", "default");
	hostile = lab_start_bare_vm(rig->lab, "hostile", "default");
	lab_announce(hostile);
	hostile_get_ready(hostile, -1, &rig->hostile);
	honest_report(rig->a);
	honest_report(rig->b);
	assert_true(lab_wait(rig->lab, are_fused, rig));
	assert_int_equal(fstat(rig->hostile.store, &rig->status), 0);
	rig->digest = digest_frames(rig);
	find_service(rig);
	return 0;
}

static int set_up(void **state)
{
	return set_up_rig(state, false);
}

static int set_up_process(void **state)
{
	return set_up_rig(state, true);
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	hostile_close(&rig->hostile);
	lab_free(rig->lab);
	g_free(rig->digest);
	g_free(rig);
	return 0;
}

/* The program */

__attribute__((noreturn)) static void become_program(const Rig *rig, uid_t uid, int in, int out)
{
	if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
		dup2(rig->hostile.store, STORE_FD) < 0 ||
		dup2(rig->hostile.device, DEVICE_FD) < 0 || setgroups(0, NULL) < 0 ||
		setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
		_exit(126);
	execl(PF_TEST_HOSTILE_VMM, "hostile_vmm", G_STRINGIFY(STORE_FD), G_STRINGIFY(DEVICE_FD),
		rig->service_path, NULL);
	_exit(127);
}

static Program start_program(const Rig *rig, uid_t uid)
{
	Program program;
	int to[2], from[2];
	char line[16];

	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	program.pid = fork();
	assert_true(program.pid >= 0);
	if (program.pid == 0)
		become_program(rig, uid, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	program.to = fdopen(to[1], "w");
	program.from = fdopen(from[0], "r");
	assert_non_null(fgets(line, sizeof(line), program.from));
	assert_string_equal(line, "ready\n");
	return program;
}

static void end_program(Program *program)
{
	int status;

	fclose(program->to);
	assert_int_equal(waitpid(program->pid, &status, 0), program->pid);
	assert_int_equal(status, 0);
	fclose(program->from);
}

/* No answer of the service's is needed for it. */
static int attempt(Program *program, const char *how, const char *name)
{
	char line[16];

	fprintf(program->to, "%s%s\n", how, name);
	fflush(program->to);
	if (!fgets(line, sizeof(line), program->from))
		fail_msg("%s%s has ended the program", how, name);
	return atoi(line);
}

static bool is_one_of(int code, const int codes[3])
{
	/* 0 is the first one or none. */
	return code == codes[0] || (code != 0 && (code == codes[1] || code == codes[2]));
}

static void attempt_all(const Rig *rig, Program *program, const char *how)
{
	unsigned n_others = 0;

	for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
		const char *name = expected[i].name;
		int code = attempt(program, how, name);

		if (!is_one_of(code, expected[i].codes))
			print_error("%s%s: %s, not %s\n", how, name, g_strerror(code),
				g_strerror(expected[i].codes[0]));
		n_others += !is_one_of(code, expected[i].codes);
		expect_unchanged(rig, name);
	}
	assert_int_equal(n_others, 0);
}

static void check_attempts(Rig *rig, uid_t uid, const char *how)
{
	Program program = start_program(rig, uid);

	attempt_all(rig, &program, how);
	end_program(&program);
	expect_unchanged(rig, "the end of the hostile process");
}

static void test_qemu(void **state)
{
	check_attempts(*state, LAB_VM_UID, "");
}

static void test_its_child(void **state)
{
	check_attempts(*state, LAB_VM_UID, "child ");
}

static void test_root_of_a_namespace(void **state)
{
	check_attempts(*state, LAB_VM_UID, "root ");
}

/* It was handed the descriptors. */
static void test_another_user(void **state)
{
	check_attempts(*state, OTHER_UID, "");
}

/* What the service has sent, the program with a user of its own. */
static void test_descriptor(void **state)
{
	const Rig *rig = *state;

	assert_int_equal(fcntl(rig->hostile.store, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(rig->status.st_mode & 07777, 0600);
	assert_int_equal(rig->status.st_uid, LAB_SERVICE_UID);
	assert_int_equal(fcntl(rig->hostile.store, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW);
}

/* None of hostile_attempts.c is left out of the table. */
static void test_table(void **state)
{
	assert_int_equal(G_N_ELEMENTS(expected), hostile_n_attempts);
	for (size_t i = 0; i < hostile_n_attempts; i++)
		assert_string_equal(expected[i].name, hostile_attempts[i].name);
}

static PfHostView host_view(const Rig *rig)
{
	PfHostView view;

	pf_service_host_view(lab_service(rig->lab), &view);
	return view;
}

static bool has_given_back(void *userdata)
{
	const Rig *rig = userdata;

	return host_view(rig).store_allocated_kib <= HONEST_PAGES * 4 + SLACK_KIB;
}

static bool has_revoked(void *userdata)
{
	return host_view(userdata).stats.revoked == 1;
}

static bool has_revoked_all(void *userdata)
{
	return host_view(userdata).stats.revoked == HONEST_PAGES;
}

/*
 * Reading a hole makes a page of it. It costs the group memory until the service has noticed. Frames are counted by what
 * they are, not by what the store takes. The pages lie apart, so that one turn of the service does not find them all.
 */
static void test_holes(void **state)
{
	const size_t size = HOLES * 64UL * 4096;
	Rig *rig = *state;
	guchar byte;
	char *holes = mmap(NULL, size, PROT_READ, MAP_SHARED, rig->hostile.store, (off_t)1 << 31);

	assert_ptr_not_equal(holes, MAP_FAILED);
	for (unsigned i = 0; i < HOLES; i++) {
		byte = *(volatile guchar *)(holes + i * (size / HOLES));
		assert_int_equal(byte, 0);
	}
	assert_true(host_view(rig).store_allocated_kib >= HOLES * 4);
	assert_int_equal(host_view(rig).stats.frames, HONEST_PAGES);
	assert_true(lab_wait(rig->lab, has_given_back, rig));
	assert_int_equal(host_view(rig).stats.frames, HONEST_PAGES);
	expect_unchanged(rig, "touching holes");
	munmap(holes, size);
}

/*
 * Whoever can read the store can have a huge page made of frames and holes. The kernel puts other pages under the VMs'
 * maps then: a write to any of them is seen all the same, and the holes go back.
 */
static void test_collapse(void **state)
{
	Rig *rig = *state;
	Program program = start_program(rig, LAB_VM_UID);
	int code = attempt(&program, "", "madvise_collapse");

	end_program(&program);
	/* Otherwise the kernel does not do it, as it is set. */
	if (code == 0)
		assert_true(host_view(rig).store_allocated_kib >= 2048);
	expect_unchanged(rig, "the collapse");
	assert_true(lab_wait(rig->lab, has_given_back, rig));
	expect_unchanged(rig, "the end of the huge page");
	lab_ok(rig->a, "fill %u %u 1", HONEST_FIRST, HONEST_PAGES);
	assert_true(lab_wait(rig->lab, has_revoked_all, rig));
	honest_check(rig->b);
	lab_ok(rig->a, "check %u %u 1", HONEST_FIRST, HONEST_PAGES);
}

/* After all that the other VMs' pages are still what the service thinks they are: a write is noticed. */
static void test_revoked_afterwards(void **state)
{
	Rig *rig = *state;

	check_attempts(rig, LAB_VM_UID, "");
	assert_int_equal(host_view(rig).stats.shared, HONEST_PAGES);
	lab_ok(rig->a, "write %u 7 77", HONEST_FIRST);
	assert_true(lab_wait(rig->lab, has_revoked, rig));
	assert_int_equal(lab_file_pfn(rig->a, HONEST_FIRST), 0);
	honest_check(rig->b);
	lab_ok(rig->a, "check %u %u %u", HONEST_FIRST + 1, HONEST_PAGES - 1, HONEST_SEED + 1);
}

int main(void)
{
#define HERE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define PROGRAM(test)                                                                              \
	{                                                                                          \
#test " (the program)", test, set_up_process, tear_down, NULL                      \
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		PROGRAM(test_descriptor),
		PROGRAM(test_qemu),
		PROGRAM(test_its_child),
		PROGRAM(test_root_of_a_namespace),
		PROGRAM(test_another_user),
		HERE(test_qemu),
		HERE(test_root_of_a_namespace),
		HERE(test_revoked_afterwards),
		HERE(test_holes),
		HERE(test_collapse),
	};
#undef HERE
#undef PROGRAM

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
