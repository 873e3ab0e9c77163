/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A toy VMM with the real shim inside, all of whose threads do to guest memory what they can.
 *
 * `stress_vmm CHANNEL NUMBER ROLE SHARED-FD KVM-FD FILE` makes its RAM, listens at CHANNEL for the host, and obeys
 * lines on its standard input, each answered by "ok" or "failed":
 *
 *   start    the threads
 *   fill     takes all maps
 *   drop     gives them back
 *   stop     the threads; answered when they have ended
 *   finish   releases everything, counts maps, and checks every byte
 *
 * It ends with its standard input. The main thread speaks for the guest and shows the shim's state.
 */
#include "host-service/shim/core.h"
#include "tests/stress/vmm.h"
#include <errno.h>
#include <execinfo.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SHOW_NS 50000000u

StressShared *shared;
StressVm *me;
unsigned vm_index;
StressRole role;
atomic_bool stopping;

static const ToyGuestRange ranges[] = {
	{{0}, STRESS_LOW_PAGES}, {{STRESS_HIGH_GFN}, STRESS_HIGH_PAGES}};
static int kvm;
static const char *direct_file;

static uint64_t show_state(bool recount)
{
	PfShimState state;

	pf_core_state(&state, recount);
	me->fused = state.fused_pages;
	me->revoked = state.revoked_pages;
	me->discarded = state.discarded_pages;
	me->written = state.written_pages;
	me->ways_out = state.ways_out;
	me->maps = state.maps;
	me->stopped = (unsigned)state.stopped_error;
	return state.maps;
}

static bool start(void)
{
	if (role == STRESS_ROLE_VCPU)
		vcpu_start(kvm);
	else
		writers_start();
	direct_start(direct_file);
	churn_start();
	me->maps_before = show_state(true);
	return true;
}

static bool stop(void)
{
	stopping = true;
	threads_join();
	show_state(true);
	return true;
}

static bool finish(void)
{
	pf_core_release((PfHva){0}, UINT64_MAX);
	me->maps_after = show_state(true);
	for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++)
		page_check(i);
	return true;
}

static bool obey(const char *line)
{
	if (strcmp(line, "start\n") == 0)
		return start();
	if (strcmp(line, "fill\n") == 0)
		return ballast_fill();
	if (strcmp(line, "stop\n") == 0)
		return stop();
	if (strcmp(line, "finish\n") == 0)
		return finish();
	if (strcmp(line, "drop\n") != 0)
		return false;
	ballast_drop();
	return true;
}

/* false: the standard input has ended. */
static bool serve_once(ToyGuest *guest, char *line, size_t size)
{
	struct pollfd events[] = {{STDIN_FILENO, POLLIN, 0}, {toy_guest_listener(guest), POLLIN, 0},
		{toy_guest_connection(guest), POLLIN, 0}};

	if (poll(events, 3, 3) <= 0)
		return true;
	if (events[1].revents || events[2].revents)
		toy_guest_handle(guest);
	/* The driver waits for each answer, so there is never more than one line to read. */
	if (events[0].revents) {
		if (!fgets(line, (int)size, stdin))
			return false;
		puts(obey(line) ? "ok" : "failed");
		fflush(stdout);
	}
	return true;
}

static void serve(ToyGuest *guest)
{
	StressRandom random = stress_random(shared->seed, vm_index, STRESS_MAX_THREADS);
	StressThread *shown = &me->threads[STRESS_MAX_THREADS - 1];
	uint64_t shown_ns = 0;
	char line[32];

	snprintf(shown->name, sizeof shown->name, "main");
	shown->tid = gettid();
	while (serve_once(guest, line, sizeof line)) {
		if (!stopping)
			reports_say(guest, &random);
		if (now_ns() - shown_ns > SHOW_NS) {
			show_state(false);
			shown_ns = now_ns();
		}
		beat(shown);
	}
}

/* Memory that went away under a thread's feet: says whose, and where, before the process ends by it. */
static void on_fault(int number, siginfo_t *info, void *context)
{
	char name[16] = "";
	void *frames[32];

	prctl(PR_GET_NAME, name);
	fprintf(stderr, "VM %u: thread %s got signal %d, code %d, at %p, page %d\n", vm_index, name,
		number, info->si_code, info->si_addr, page_of_address(info->si_addr));
	backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
	raise(number);
}

static void catch_faults(void)
{
	struct sigaction action = {
		.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER};
	void *frame;

	/* Loads what it needs. */
	backtrace(&frame, 1);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

int main(int argc, char **argv)
{
	ToyGuest *guest;
	int error;

	if (argc != 7) {
		fprintf(stderr, "stress_vmm is started by stress\n");
		return 2;
	}
	/* A service that is killed while the guest speaks. */
	signal(SIGPIPE, SIG_IGN);
	catch_faults();
	vm_index = (unsigned)atoi(argv[2]);
	role = (StressRole)atoi(argv[3]);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[4]), 0);
	kvm = atoi(argv[5]);
	direct_file = argv[6];
	if (shared == MAP_FAILED) {
		perror("stress_vmm");
		return 1;
	}
	me = &shared->vms[vm_index];
	guest = toy_guest_new(argv[1], ranges, sizeof ranges / sizeof ranges[0]);
	error = guest ? pages_map_blocks() : -errno;
	if (error) {
		fprintf(stderr, "stress_vmm: %s: %s\n", argv[1], strerror(-error));
		return 1;
	}
	puts("ok");
	fflush(stdout);
	serve(guest);
	toy_guest_free(guest);
	return 0;
}
