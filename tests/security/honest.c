/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tests/security/honest.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

LabVm *honest_start(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = lab_start_vm(lab, name, group);

	lab_ok(vm, "fill %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED);
	lab_announce(vm);
	lab_wait_for_session(vm);
	return vm;
}

void honest_report(LabVm *vm)
{
	lab_ok(vm, "module 1 libtoy.so %u", HONEST_PAGES);
	lab_ok(vm, "hint 1 0 %u %u", HONEST_FIRST, HONEST_PAGES);
}

void honest_check(LabVm *vm)
{
	lab_ok(vm, "check %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED);
}

bool honest_share(LabVm *a, LabVm *b)
{
	for (unsigned i = 0; i < HONEST_PAGES; i++)
		if (lab_file_pfn(a, HONEST_FIRST + i) == 0 ||
			lab_file_pfn(a, HONEST_FIRST + i) != lab_file_pfn(b, HONEST_FIRST + i))
			return false;
	return true;
}

PfFusionStats honest_stats(Lab *lab)
{
	PfHostView view;

	pf_service_host_view(lab_service(lab), &view);
	return view.stats;
}

typedef struct Wanted {
	Lab *lab;
	uint64_t shared;
} Wanted;

static bool shares(void *userdata)
{
	const Wanted *wanted = userdata;

	return honest_stats(wanted->lab).shared == wanted->shared;
}

void honest_wait_for_shared(Lab *lab, uint64_t n_pages)
{
	Wanted wanted = {lab, n_pages};

	if (!lab_wait(lab, shares, &wanted))
		fail_msg("%" G_GUINT64_FORMAT " pages are shared and not %" G_GUINT64_FORMAT,
			(guint64)honest_stats(lab).shared, (guint64)n_pages);
}

void honest_expect_two_share(Lab *lab)
{
	LabVm *a = honest_start(lab, "a", "default"), *b = honest_start(lab, "b", "default");

	honest_report(a);
	honest_report(b);
	honest_wait_for_shared(lab, HONEST_PAGES);
	honest_check(a);
	honest_check(b);
}
