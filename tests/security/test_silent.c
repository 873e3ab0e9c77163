/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A shim that never answers: the other VMs of its group are fused all the same. */
#include "tests/vmm/lab.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define ANSWER_MS 1500u
#define N         64u  /* pages of the module that all VMs hold */
#define FIRST     100u /* their gfn */
#define SEED      5000u

typedef struct Wanted {
	Lab *lab;
	LabVm *vm;
	uint64_t n;
	const char *reason; /* a part of it */
	bool found;
} Wanted;

static int set_up(void **state)
{
	*state = lab_new_impatient(ANSWER_MS);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

static void report(LabVm *vm)
{
	lab_ok(vm, "fill %u %u %u", FIRST, N, SEED);
	lab_announce(vm);
	lab_wait_for_session(vm);
	lab_ok(vm, "module 1 libtoy.so %u", N);
	lab_ok(vm, "hint 1 0 %u %u", FIRST, N);
}

static bool shares(void *userdata)
{
	const Wanted *wanted = userdata;
	PfHostView view;

	pf_service_host_view(lab_service(wanted->lab), &view);
	return view.stats.shared == wanted->n;
}

static void match_reason(const PfVmView *view, void *userdata)
{
	Wanted *wanted = userdata;

	wanted->found = strstr(view->reason, wanted->reason) != NULL;
}

static bool has_reason(void *userdata)
{
	Wanted *wanted = userdata;

	pf_service_visit_vm(lab_service(wanted->lab), wanted->vm->name, match_reason, wanted);
	return wanted->found;
}

static bool is_asked(void *userdata)
{
	return strcmp(lab_command(userdata, "asked"), "0") != 0;
}

/* Only this one can give a page for the frames, and it is asked. */
static LabVm *start_useless(Lab *lab, const char *kind)
{
	LabVm *silent = lab_start_bare_vm(lab, "silent", "default"),
	      *helpless = lab_start_bare_vm(lab, "helpless", "default");

	lab_ok(silent, "shim %s", kind);
	report(silent);
	report(helpless);
	if (!lab_wait(lab, is_asked, silent))
		fail_msg("the shim was not asked for anything");
	return silent;
}

static void check_others(Lab *lab, const char *kind)
{
	LabVm *silent = start_useless(lab, kind), *a = lab_start_vm(lab, "a", "default"),
	      *b = lab_start_vm(lab, "b", "default");
	Wanted wanted = {lab, silent, N, "it does not answer", false};

	report(a);
	report(b);
	assert_false(shares(&wanted));
	if (!lab_wait(lab, shares, &wanted))
		fail_msg("the others wait for ever for a shim that does not answer");
	for (unsigned i = 0; i < N; i++)
		assert_true(lab_file_pfn(a, FIRST + i) != 0 &&
			    lab_file_pfn(a, FIRST + i) == lab_file_pfn(b, FIRST + i));
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
	lab_ok(b, "check %u %u %u", FIRST, N, SEED);
	assert_int_equal(lab_count_file_pages(silent), 0);
	/* And it is known why it is not fused. */
	assert_true(lab_wait(lab, has_reason, &wanted));
}

static void test_silent(void **state)
{
	check_others(*state, "silent");
}

/* It says much, so that there is always something unread of it, and never an answer. */
static void test_talkative(void **state)
{
	check_others(*state, "flood");
}

/* It comes and goes as fast as it can. */
static void test_one_that_comes_and_goes(void **state)
{
	Lab *lab = *state;
	LabVm *a = lab_start_vm(lab, "a", "default"), *b = lab_start_vm(lab, "b", "default"),
	      *restless = lab_start_bare_vm(lab, "restless", "default");
	Wanted wanted = {lab, restless, N, "connects again and again", false};

	lab_ok(restless, "shim comes");
	report(restless);
	assert_true(lab_wait(lab, has_reason, &wanted));
	report(a);
	report(b);
	if (!lab_wait(lab, shares, &wanted))
		fail_msg("the others are not fused");
	lab_ok(a, "check %u %u %u", FIRST, N, SEED);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_silent),
		TEST(test_talkative),
		TEST(test_one_that_comes_and_goes),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
