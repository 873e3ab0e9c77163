/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Toy VMs that hold the same module, and what the service says of it and the kernel of their frames. */
#include "proto/shim_protocol.h"
#include "tests/vmm/lab.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#define N     64u  /* pages of the module that all VMs hold */
#define FIRST 100u /* their gfn */
#define SEED  5000u

typedef struct Wanted {
	Lab *lab;
	LabVm *a, *b;
	uint64_t shared;
} Wanted;

static inline PfFusionStats host_stats(Lab *lab)
{
	PfHostView view;

	pf_service_host_view(lab_service(lab), &view);
	return view.stats;
}

static inline void copy_view(const PfVmView *view, void *userdata)
{
	*(PfVmView *)userdata = *view;
}

/* The pointers in it must not be used. */
static inline PfVmView vm_view(LabVm *vm)
{
	PfVmView view = {0};

	assert_true(pf_service_visit_vm(lab_service(vm->lab), vm->name, copy_view, &view));
	return view;
}

static inline bool shares(void *userdata)
{
	Wanted *wanted = userdata;

	return host_stats(wanted->lab).shared == wanted->shared;
}

static inline void wait_for_shared(Lab *lab, uint64_t shared)
{
	Wanted wanted = {.lab = lab, .shared = shared};

	if (!lab_wait(lab, shares, &wanted))
		fail_msg("%" G_GUINT64_FORMAT " pages are shared and not %" G_GUINT64_FORMAT,
			(guint64)host_stats(lab).shared, (guint64)shared);
}

static inline LabVm *start(Lab *lab, const char *name, const char *group)
{
	LabVm *vm = lab_start_vm(lab, name, group);

	lab_ok(vm, "fill %u %u %u", FIRST, N, SEED);
	lab_announce(vm);
	lab_wait_for_session(vm);
	return vm;
}

static inline void report(LabVm *vm)
{
	lab_ok(vm, "module 1 libtoy.so %u", N);
	lab_ok(vm, "hint 1 0 %u %u", FIRST, N);
}

static inline void expect_same_frames(LabVm *a, LabVm *b, bool same)
{
	for (unsigned i = 0; i < N; i++) {
		uint64_t pfn = lab_file_pfn(a, FIRST + i);

		assert_true(pfn != 0);
		if (same)
			assert_true(pfn == lab_file_pfn(b, FIRST + i));
		else
			assert_true(pfn != lab_file_pfn(b, FIRST + i));
	}
}

static inline int set_up(void **state)
{
	*state = lab_new(false);
	return 0;
}

static inline int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

/* A connection to the shims' socket that says what a shim says. */
static inline int connect_as_shim(Lab *lab, const void *data, size_t size)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(address.sun_path, lab_shim_socket(lab));
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(send(fd, data, size, MSG_NOSIGNAL), size);
	return fd;
}

/* Frames by the kernel's count, without the store's label and the one page of members. */
static inline uint64_t frames_in_memory(Lab *lab)
{
	PfHostView view;

	pf_service_host_view(lab_service(lab), &view);
	return view.store_allocated_kib / (PF_PAGE_SIZE / 1024) - 2;
}

static inline bool has_frames(void *userdata)
{
	Wanted *wanted = userdata;

	return frames_in_memory(wanted->lab) == wanted->shared &&
	       host_stats(wanted->lab).frames == wanted->shared;
}

static inline void wait_for_frames(Lab *lab, uint64_t n)
{
	Wanted wanted = {.lab = lab, .shared = n};

	if (!lab_wait(lab, has_frames, &wanted))
		fail_msg("%" G_GUINT64_FORMAT " frames, %" G_GUINT64_FORMAT
			 " in memory, and not %" G_GUINT64_FORMAT,
			(guint64)host_stats(lab).frames, (guint64)frames_in_memory(lab),
			(guint64)n);
}

static inline bool shares_nothing(void *userdata)
{
	Wanted *wanted = userdata;

	return lab_count_file_pages(wanted->a) == 0;
}
