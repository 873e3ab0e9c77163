/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the service's process reads is what the front has written; anything else is refused. */
#include "host-service/daemon/handover.h"
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define SEALS  (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define N_FDS  5
#define TEXT   "[defaults]\nthp=preserve\nhints-per-second=5000\n[group x]\nthp=all\n# \xc3\xa9\n"
#define HOURS2 (INT64_C(7200) * 1000000)

typedef struct Rig {
	int fds[N_FDS]; /* inheritable */
	PfKeptStore kept[2];
	PfConfig *config;
	PfServiceProcess process;
} Rig;

static int set_up(void **state)
{
	Rig *rig = g_new0(Rig, 1);

	for (int i = 0; i < N_FDS; i++) {
		rig->fds[i] = fcntl(STDERR_FILENO, F_DUPFD, 60 + i);
		assert_true(rig->fds[i] >= 0);
	}
	rig->kept[0] = (PfKeptStore){(char *)"store-default", rig->fds[3]};
	rig->kept[1] = (PfKeptStore){(char *)"store-\xff", rig->fds[4]};
	rig->config = pf_config_parse("test", TEXT, strlen(TEXT), NULL);
	assert_non_null(rig->config);
	rig->process = (PfServiceProcess){
		.config = rig->config,
		.debug = TRUE,
		.fusion = {.revoke_delay_us = HOURS2},
		.sandbox = {.uid = 4000000001,
			.gid = 4000000002,
			.memory_limit = UINT64_C(5) << 40},
		.broker_fd = rig->fds[0],
		.front_fd = rig->fds[1],
		.shim_fd = rig->fds[2],
		.kept = rig->kept,
		.n_kept = 2,
	};
	*state = rig;
	return 0;
}

static int tear_down(void **state)
{
	Rig *rig = *state;

	for (int i = 0; i < N_FDS; i++)
		close(rig->fds[i]);
	pf_config_free(rig->config);
	g_free(rig);
	return 0;
}

static PfHandover *pass(const PfServiceProcess *process)
{
	g_autoptr(GError) error = NULL;
	int fd = pf_handover_write(process, &error);
	PfHandover *handover;

	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	handover = pf_handover_read(fd, &error);
	if (!handover)
		fail_msg("%s", error->message);
	close(fd);
	return handover;
}

static void test_all_of_it(void **state)
{
	const Rig *rig = *state;
	g_autoptr(PfHandover) handover = pass(&rig->process);
	const PfServiceProcess *process = &handover->process;

	assert_int_equal(handover->starter, getpid());
	assert_true(process->debug);
	assert_true(process->fusion.revoke_delay_us == HOURS2);
	assert_true(process->sandbox.uid == 4000000001 && process->sandbox.gid == 4000000002);
	assert_true(process->sandbox.memory_limit == UINT64_C(5) << 40);
	assert_int_equal(process->broker_fd, rig->fds[0]);
	assert_int_equal(process->front_fd, rig->fds[1]);
	assert_int_equal(process->shim_fd, rig->fds[2]);
	assert_int_equal(process->n_kept, 2);
	for (int i = 0; i < 2; i++) {
		assert_string_equal(process->kept[i].name, rig->kept[i].name);
		assert_int_equal(process->kept[i].fd, rig->kept[i].fd);
	}
	for (int i = 0; i < N_FDS; i++)
		assert_int_equal(fcntl(rig->fds[i], F_GETFD), FD_CLOEXEC);
}

static void test_configuration(void **state)
{
	Rig *rig = *state;
	g_autoptr(PfHandover) handover = NULL;

	/* What the command line says is not in the file. */
	pf_config_set_thp(rig->config, PF_THP_BALANCED);
	handover = pass(&rig->process);
	assert_int_equal(pf_config_policy(handover->process.config, "y")->thp, PF_THP_BALANCED);
	assert_int_equal(pf_config_policy(handover->process.config, "x")->thp, PF_THP_ALL);
	assert_int_equal(pf_config_policy(handover->process.config, "x")->hints_per_s, 5000);
}

static void test_no_configuration_and_no_store(void **state)
{
	Rig *rig = *state;
	g_autoptr(PfConfig) config = pf_config_new();
	g_autoptr(PfHandover) handover = NULL;

	rig->process.config = config;
	rig->process.debug = FALSE;
	rig->process.n_kept = 0;
	handover = pass(&rig->process);
	assert_false(handover->process.debug);
	assert_int_equal(handover->process.n_kept, 0);
	assert_memory_equal(pf_config_policy(handover->process.config, "x"),
		pf_config_policy(config, "x"), sizeof(PfPolicy));
}

/* Consumes fd. */
static void expect_refusal(int fd, const char *message)
{
	g_autoptr(GError) error = NULL;

	assert_true(fd >= 0);
	assert_null(pf_handover_read(fd, &error));
	assert_non_null(error);
	if (!strstr(error->message, message))
		fail_msg("\"%s\" does not say \"%s\"", error->message, message);
	close(fd);
}

static int sealed(const void *bytes, size_t size, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_int_equal(write(fd, bytes, size), size);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void test_wrong_file(void **state)
{
	const Rig *rig = *state;
	char bytes[4096];
	ssize_t size;
	int pair[2], fd = pf_handover_write(&rig->process, NULL);

	size = pread(fd, bytes, sizeof bytes, 0);
	assert_true(size > 0 && size < (ssize_t)sizeof bytes);
	close(fd);
	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	close(pair[1]);
	expect_refusal(pair[0], "nothing was handed over");
	expect_refusal(open("/dev/null", O_RDONLY | O_CLOEXEC), "nothing was handed over");
	expect_refusal(sealed("", 0, SEALS), "nothing was handed over");
	for (ssize_t length = 1; length < size; length++)
		expect_refusal(sealed(bytes, (size_t)length, SEALS), "nothing was handed over");
	/* All that it takes, but for one seal. */
	expect_refusal(
		sealed(bytes, (size_t)size, SEALS & ~F_SEAL_WRITE), "nothing was handed over");
	fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	expect_refusal(fd, "nothing was handed over");
}

static void test_wrong_content(void **state)
{
	Rig *rig = *state;
	PfServiceProcess wrong = rig->process;

	wrong.sandbox.uid = 0;
	expect_refusal(pf_handover_write(&wrong, NULL), "not possible");
	wrong = rig->process;
	wrong.sandbox.gid = 0;
	expect_refusal(pf_handover_write(&wrong, NULL), "not possible");
	pf_config_set_thp(rig->config, (PfThp)(PF_THP_ALL + 1));
	expect_refusal(pf_handover_write(&rig->process, NULL), "not possible");
}

/* Each of them in turn. */
static void test_closed_descriptor(void **state)
{
	Rig *rig = *state;

	for (int i = 0; i < N_FDS; i++) {
		int fd = pf_handover_write(&rig->process, NULL);

		close(rig->fds[i]);
		expect_refusal(fd, "a descriptor that was handed over is not open");
		assert_int_equal(fcntl(STDERR_FILENO, F_DUPFD, rig->fds[i]), rig->fds[i]);
	}
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_all_of_it),
		TEST(test_configuration),
		TEST(test_no_configuration_and_no_store),
		TEST(test_wrong_file),
		TEST(test_wrong_content),
		TEST(test_closed_descriptor),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
