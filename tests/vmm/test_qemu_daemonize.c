/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * libvirt never uses QEMU's -daemonize, other managers do. QEMU then forks after it was loaded and
 * before it makes its RAM: whatever the shim started before would be gone in the child. So two real
 * QEMUs are started that way, as an ordinary user, without libvirt. They do not run (-S): -device
 * loader puts the same bytes into the RAM of both, guests made of this test hint them, and a system
 * reset makes QEMU write them again, which is a write to fused pages. Their monitors tell where RAM
 * lies and save what is in it.
 *
 * The QEMUs are nobody's children once their parents have ended; this process adopts them, so that
 * it sees how they end.
 */
#include "common/digest.h"
#include "tests/vmm/lab.h"
#include "tests/vmm/toy_guest.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define N_PAGES 64u
#define SIZE    (N_PAGES * PF_PAGE_SIZE)
#define FIRST   0x100u /* gfn: at 1 MiB */

typedef struct Qemu {
	LabVm *vm;
	ToyGuest *guest;
	int monitor;
} Qemu;

static const ToyGuestRange ranges[] = {{{0}, LAB_LOW_PAGES}};
static uint8_t blob[SIZE];
static PfDigest digests[N_PAGES];
static char blob_path[96];

static void fill_blob(const Lab *lab)
{
	PfHasher *hasher = pf_hasher_new();
	uint64_t word = 1;

	for (size_t i = 0; i < SIZE; i += sizeof(word)) {
		word = word * 6364136223846793005u + 1442695040888963407u;
		memcpy(blob + i, &word, sizeof(word));
	}
	for (size_t i = 0; i < N_PAGES; i++)
		assert_int_equal(pf_hasher_page(hasher, blob + i * PF_PAGE_SIZE, &digests[i]), 0);
	pf_hasher_free(hasher);
	snprintf(blob_path, sizeof(blob_path), "%s/blob", lab_dir(lab));
	assert_true(g_file_set_contents_full(
		blob_path, (const char *)blob, SIZE, G_FILE_SET_CONTENTS_NONE, 0644, NULL));
}

/* What the monitor answers; events before that are skipped. g_free() it. */
static char *ask(Qemu *qemu, const char *request)
{
	g_autoptr(GString) line = g_string_new(NULL);
	char c;

	assert_int_equal(write(qemu->monitor, request, strlen(request)), (ssize_t)strlen(request));
	for (;;) {
		if (read(qemu->monitor, &c, 1) != 1)
			fail_msg("QEMU's monitor has gone after %s", request);
		if (c != '\n') {
			g_string_append_c(line, c);
		} else if (g_str_has_prefix(line->str, "{\"return\"")) {
			return g_strdup(line->str);
		} else if (g_str_has_prefix(line->str, "{\"error\"")) {
			fail_msg("%s gave %s", request, line->str);
		} else {
			g_string_truncate(line, 0);
		}
	}
}

static void tell(Qemu *qemu, const char *request)
{
	g_autofree char *answer = ask(qemu, request);

	assert_non_null(answer);
}

static int connect_monitor(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static pid_t read_pid(const char *path)
{
	g_autofree char *text = NULL;

	assert_true(g_file_get_contents(path, &text, NULL, NULL));
	return (pid_t)g_ascii_strtoll(text, NULL, 10);
}

/* Returns when QEMU's own process, the parent, has ended: the daemon is there then. */
static pid_t start_daemon(Lab *lab, const char *pid_path, const char *monitor_path)
{
	g_autofree char *loader = g_strdup_printf(
		"loader,file=%s,addr=0x%x,force-raw=on", blob_path, FIRST * (unsigned)PF_PAGE_SIZE);
	g_autofree char *qmp = g_strdup_printf("unix:%s,server=on,wait=off", monitor_path);
	const char *argv[] = {"qemu-system-x86_64", "-daemonize", "-S", "-nodefaults",
		"-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-m", "64",
		"-device", loader, "-qmp", qmp, "-pidfile", pid_path, NULL};
	pid_t parent = lab_spawn(lab, argv, STDIN_FILENO, STDOUT_FILENO);
	int status;

	assert_int_equal(waitpid(parent, &status, 0), parent);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return read_pid(pid_path);
}

static void start(Qemu *qemu, Lab *lab, const char *name)
{
	g_autofree char *pid_path = g_strdup_printf("%s/%s.pid", lab_dir(lab), name);
	g_autofree char *monitor_path = g_strdup_printf("%s/%s.qmp", lab_dir(lab), name);
	pid_t pid = start_daemon(lab, pid_path, monitor_path);
	g_autofree char *answer = NULL;
	const char *number;

	qemu->monitor = connect_monitor(monitor_path);
	tell(qemu, "{\"execute\": \"qmp_capabilities\"}\n");
	answer = ask(qemu, "{\"execute\": \"human-monitor-command\", \"arguments\": "
			   "{\"command-line\": \"gpa2hva 0\"}}\n");
	number = strstr(answer, " is 0x");
	assert_non_null(number);
	qemu->vm = lab_adopt_vm(
		lab, name, "default", pid, g_ascii_strtoull(number + strlen(" is "), NULL, 16));
	qemu->guest = toy_guest_new(qemu->vm->channel, ranges, G_N_ELEMENTS(ranges));
	assert_non_null(qemu->guest);
	lab_announce(qemu->vm);
}

static void hint(Qemu *qemu)
{
	assert_true(toy_guest_module(qemu->guest, 1, "libblob.so", N_PAGES));
	assert_true(toy_guest_hint(qemu->guest, 1, 0, (PfGfn){FIRST}, digests, N_PAGES));
}

static unsigned count_same(const LabVm *a, const LabVm *b)
{
	unsigned n = 0;

	for (unsigned i = 0; i < N_PAGES; i++) {
		uint64_t pfn = lab_file_pfn(a, FIRST + i);

		n += pfn != 0 && pfn == lab_file_pfn(b, FIRST + i);
	}
	return n;
}

static bool all_same(void *userdata)
{
	Qemu *qemus = userdata;

	toy_guest_handle(qemus[0].guest);
	toy_guest_handle(qemus[1].guest);
	return count_same(qemus[0].vm, qemus[1].vm) == N_PAGES;
}

static bool none_fused(void *userdata)
{
	return lab_count_file_pages(userdata) == 0;
}

/* As QEMU itself reads its guest's RAM. */
static void expect_blob(Qemu *qemu)
{
	g_autofree char *path =
		g_strdup_printf("%s/%s.saved", lab_dir(qemu->vm->lab), qemu->vm->name);
	g_autofree char *request =
		g_strdup_printf("{\"execute\": \"pmemsave\", \"arguments\": {\"val\": %" PRIu64
				", \"size\": %" PRIu64 ", \"filename\": \"%s\"}}\n",
			(uint64_t)FIRST * PF_PAGE_SIZE, (uint64_t)SIZE, path);
	g_autofree char *saved = NULL;
	gsize size;

	tell(qemu, request);
	assert_true(g_file_get_contents(path, &saved, &size, NULL));
	assert_int_equal(size, SIZE);
	assert_memory_equal(saved, blob, SIZE);
}

static void end(Qemu *qemu)
{
	int status;

	tell(qemu, "{\"execute\": \"quit\"}\n");
	assert_int_equal(waitpid(qemu->vm->pid, &status, 0), qemu->vm->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	qemu->vm->pid = 0;
	close(qemu->monitor);
	toy_guest_free(qemu->guest);
}

static void test_daemonize(void **state)
{
	Lab *lab = *state;
	Qemu qemus[2];

	fill_blob(lab);
	start(&qemus[0], lab, "a");
	start(&qemus[1], lab, "b");
	hint(&qemus[0]);
	hint(&qemus[1]);
	if (!lab_wait(lab, all_same, qemus))
		fail_msg(
			"%u of %u pages are shared", count_same(qemus[0].vm, qemus[1].vm), N_PAGES);
	expect_blob(&qemus[0]);
	expect_blob(&qemus[1]);

	tell(&qemus[0], "{\"execute\": \"system_reset\"}\n");
	assert_true(lab_wait(lab, none_fused, qemus[0].vm));
	expect_blob(&qemus[0]);
	assert_int_equal(lab_count_file_pages(qemus[1].vm), N_PAGES);
	expect_blob(&qemus[1]);
	print_message("two QEMUs made daemons: %u pages were shared, one wrote to them\n", N_PAGES);
	end(&qemus[0]);
	end(&qemus[1]);
}

static int set_up(void **state)
{
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		return -1;
	*state = lab_new(true);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_daemonize, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
