// SPDX-License-Identifier: LGPL-2.1-or-later
/* A kernel that does not tell of processes is asked again; its events are the test's own. */
#include "guest-agent/find/watch.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define MINUTE 60000

int __wrap_pf_process_events_new(PfProcessEvents **events);
void __wrap_pf_process_events_free(PfProcessEvents *events);
int __wrap_pf_process_events_fd(const PfProcessEvents *events);
int __wrap_pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t max, uint64_t *n_ended, bool *lost);

static int result;       /* of what is done next */
static unsigned n_tried; /* to subscribe */

int __wrap_pf_process_events_new(PfProcessEvents **events)
{
	n_tried++;
	if (result == 0)
		*events = (PfProcessEvents *)&result;
	return result;
}

void __wrap_pf_process_events_free(PfProcessEvents *events)
{
}

int __wrap_pf_process_events_fd(const PfProcessEvents *events)
{
	return 5;
}

int __wrap_pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t max, uint64_t *n_ended, bool *lost)
{
	return result;
}

static void test_tried_again(void **state)
{
	PfWatch watch = {0};
	PfPace pace = {0};
	int64_t now = 1000, due;

	assert_int_equal(pf_watch_fd(&watch, now), -1);
	assert_int_equal(n_tried, 0);
	result = -ENOBUFS;
	pf_watch_begin(&watch);
	assert_int_equal(pf_watch_fd(&watch, now), -1);
	n_tried = 0;
	due = pf_watch_due_ms(&watch, now);
	assert_in_range(due, now + MINUTE, now + 10 * MINUTE);
	pf_watch_begin(&watch);
	assert_int_equal(pf_watch_fd(&watch, due - 1), -1);
	assert_int_equal(n_tried, 0);
	assert_int_equal(pf_watch_fd(&watch, due), -1);
	assert_int_equal(n_tried, 1);
	result = 0;
	now = pf_watch_due_ms(&watch, due);
	assert_true(now > due);
	assert_int_equal(pf_watch_fd(&watch, now), 5);
	/* One that breaks is as one that could not be had. */
	result = -ENOBUFS;
	pf_watch_take(&watch, &pace, now);
	n_tried = 0;
	assert_int_equal(pf_watch_fd(&watch, now), -1);
	assert_int_equal(n_tried, 0);
	result = 0;
	assert_int_equal(pf_watch_fd(&watch, pf_watch_due_ms(&watch, now)), 5);
	/* Nobody wants it any more. */
	pf_watch_end(&watch);
	n_tried = 0;
	assert_int_equal(pf_watch_fd(&watch, now + 100 * MINUTE), -1);
	assert_int_equal(n_tried, 0);
	assert_true(pf_watch_due_ms(&watch, now) == PF_PACE_NEVER);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tried_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
