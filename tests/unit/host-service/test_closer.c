/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors that take their time to close: who sent them cannot hold up what others have sent. */
#include "host-service/wire/closer.h"
#include "lingering_socket.h"
#include "slow_file.h"

#define WAIT_US     (5 * G_USEC_PER_SEC)
#define N_LINGERING 40
#define MANY        1000

static void expect_pending(const PfCloser *closer, guint n)
{
	gint64 end = g_get_monotonic_time() + WAIT_US;

	while (pf_closer_n_pending(closer) != n)
		if (g_get_monotonic_time() > end)
			fail_msg("%u are not closed yet, and not %u", pf_closer_n_pending(closer),
				n);
		else
			g_usleep(100);
}

static int lingers_for_ever(int *peer)
{
	int fd = lingering_socket(peer);

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 1000000},
				 sizeof(struct linger)),
		0);
	return fd;
}

/* One after the other, each would take eleven days. */
static void linger(PfCloser *closer)
{
	int peers[N_LINGERING];

	for (unsigned i = 0; i < N_LINGERING; i++)
		pf_closer_close(closer, lingers_for_ever(&peers[i]));
	expect_pending(closer, 0);
	for (unsigned i = 0; i < N_LINGERING; i++)
		end_lingering(peers[i]);
}

static void test_lingering(void **unused)
{
	PfCloser *closer = pf_closer_new();

	linger(closer);
	pf_closer_free(closer);
}

static void test_lingering_for_all(void **unused)
{
	linger(NULL);
}

static void test_none(void **unused)
{
	pf_closer_close(NULL, -1);
	assert_int_equal(pf_closer_n_pending(NULL), 0);
	pf_closer_free(NULL);
}

/* What cannot be interrupted holds up one sender, who is counted, and nobody else. */
static void test_stuck(void **unused)
{
	PfCloser *closer = pf_closer_new(), *other = pf_closer_new();
	SlowFile file;

	if (!slow_file_open(&file))
		skip();
	pf_closer_close(closer, file.fd);
	for (unsigned i = 0; i < MANY; i++) {
		pf_closer_close(closer, dup(STDERR_FILENO));
		pf_closer_close(other, dup(STDERR_FILENO));
		pf_closer_close(NULL, dup(STDERR_FILENO));
	}
	expect_pending(other, 0);
	expect_pending(NULL, 0);
	linger(other);
	assert_int_equal(pf_closer_n_pending(closer), MANY + 1);
	slow_file_let(&file);
	expect_pending(closer, 0);
	pf_closer_free(closer);
	pf_closer_free(other);
	slow_file_end(&file);
}

/* What was to be closed is closed although its sender is gone. */
static void test_freed(void **unused)
{
	PfCloser *closer = pf_closer_new();
	SlowFile file;
	int pipes[2];
	char byte;

	if (!slow_file_open(&file))
		skip();
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	pf_closer_close(closer, file.fd);
	pf_closer_close(closer, pipes[1]);
	pf_closer_free(closer);
	slow_file_let(&file);
	/* The end of the pipe. */
	assert_int_equal(read(pipes[0], &byte, 1), 0);
	close(pipes[0]);
	slow_file_end(&file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_none),
		cmocka_unit_test(test_lingering),
		cmocka_unit_test(test_lingering_for_all),
		cmocka_unit_test(test_stuck),
		cmocka_unit_test(test_freed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
