/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who was ever given a store: what a later service finds of it, with real processes. */
#include "host-service/service/process_id.h"
#include "host-service/service/store.h"

#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "store_forgery.h"
#include "store_sweep.h"

#define TABLE     PF_PAGE_SIZE /* where it begins */
#define N_ENTRIES (511 * PF_PAGE_SIZE / 16)

/* An entry of the table as version 2 of the label has it. */
typedef struct ForgedMember {
	uint32_t pid, reserved;
	uint64_t process;
} ForgedMember;

/* Stands in for the C library's: a kernel before pidfs, or one that does not say. */
static enum { PIDFS, NO_PIDFS, NO_ANSWER } kernel;

int fstatfs(int fd, struct statfs *fs)
{
	static typeof(&fstatfs) real;

	if (kernel == NO_ANSWER) {
		errno = EIO;
		return -1;
	}
	*(void **)&real = dlsym(RTLD_NEXT, "fstatfs64");
	if (real(fd, fs) < 0)
		return -1;
	if (kernel == NO_PIDFS)
		fs->f_type = 0x09041934;
	return 0;
}

typedef struct Child {
	pid_t pid;
	int process; /* its pidfd */
	uint64_t id;
} Child;

static Child start_child(void)
{
	Child child = {.pid = fork()};

	if (child.pid == 0) {
		/* Also where the test fails. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	child.process = pidfd_open(child.pid, 0);
	assert_true(child.process >= 0);
	assert_int_equal(pf_process_id(child.process, &child.id), 0);
	return child;
}

/* It has exited, and nobody has waited for it. */
static void kill_child(const Child *child)
{
	siginfo_t info;

	assert_int_equal(kill(child->pid, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOWAIT), 0);
}

static void end_child(Child *child)
{
	kill(child->pid, SIGKILL);
	assert_int_equal(waitpid(child->pid, NULL, 0), child->pid);
	close(child->process);
}

static PfStore *new_store(void)
{
	PfStore *store = pf_store_new("test", NULL);

	assert_non_null(store);
	return store;
}

/* As the next service gets it; the store itself goes. */
static PfStore *pass_on(PfStore *store)
{
	int fd = dup(pf_store_fd(store));

	pf_store_free(store);
	store = pf_store_adopt(fd, NULL);
	assert_non_null(store);
	return store;
}

typedef struct Asked {
	uint64_t known; /* the one that is known; 0: none */
	unsigned n, n_others;
} Asked;

static bool is_known(void *userdata, uint64_t process)
{
	Asked *asked = userdata;

	asked->n++;
	asked->n_others += process != asked->known;
	return process == asked->known;
}

static void expect(PfStore *store, uint64_t known, bool result, unsigned n_asked)
{
	Asked asked = {.known = known};

	assert_int_equal(pf_store_members_known(store, is_known, &asked), result);
	assert_int_equal(asked.n, n_asked);
}

static void test_process_ids(void **state)
{
	Child child = start_child();
	int self = pidfd_open(getpid(), 0), again = pidfd_open(child.pid, 0);
	uint64_t id;

	if (child.id == 0) {
		end_child(&child);
		skip();
	}
	assert_int_equal(pf_process_id(again, &id), 0);
	assert_true(id == child.id);
	assert_int_equal(pf_process_id(self, &id), 0);
	assert_true(id != 0 && id != child.id);
	assert_int_equal(pf_process_id(-1, &id), -EBADF);
	close(self);
	close(again);
	end_child(&child);
}

static void test_members_are_passed_on(void **state)
{
	PfStore *store = new_store();
	Child a = start_child(), b = start_child();

	expect(store, 0, true, 0);
	assert_int_equal(pf_store_add_member(store, a.process, a.pid), 1);
	assert_int_equal(pf_store_add_member(store, a.process, a.pid), 0);
	expect(store, a.id, true, 1);
	expect(store, 0, false, 1);
	store = pass_on(store);
	expect(store, a.id, true, 1);
	expect(store, 0, false, 1);
	assert_false(pf_store_members_unsure(store));
	assert_int_equal(pf_store_add_member(store, a.process, a.pid), 0);
	assert_int_equal(pf_store_add_member(store, b.process, b.pid), 1);
	expect(store, a.id, false, 2);
	store = pass_on(store);
	expect(store, a.id, false, 2);
	end_child(&b);
	expect(store, a.id, true, 2);
	/* It is forgotten, for the next service too. */
	expect(store, a.id, true, 1);
	store = pass_on(store);
	expect(store, a.id, true, 1);
	pf_store_free(store);
	end_child(&a);
}

/* It cannot map anything any more, whoever has still to wait for it. */
static void test_exited(void **state)
{
	PfStore *store = new_store();
	Child a = start_child();

	pf_store_add_member(store, a.process, a.pid);
	kill_child(&a);
	expect(store, 0, true, 1);
	expect(store, 0, true, 0);
	end_child(&a);
	a = start_child();
	pf_store_add_member(store, a.process, a.pid);
	kill_child(&a);
	store = pass_on(store);
	expect(store, 0, true, 0);
	pf_store_free(store);
	end_child(&a);
}

static PfStore *adopt_forged(const ForgedMember *members, size_t n, off_t where)
{
	Forgery plan = forgery();
	int fd = forge(&plan);
	PfStore *store;

	assert_int_equal(
		pwrite(fd, members, n * sizeof *members, TABLE + where), n * sizeof *members);
	store = pf_store_adopt(fd, NULL);
	assert_non_null(store);
	return store;
}

/* The number is another process's by now. */
static void test_number_was_used_again(void **state)
{
	Child a = start_child();
	ForgedMember member = {(uint32_t)a.pid, 0, a.id + 1};
	PfStore *store;

	if (a.id == 0) {
		end_child(&a);
		skip();
	}
	store = adopt_forged(&member, 1, 0);
	expect(store, 0, true, 0);
	pf_store_free(store);
	/* No answer is not "no". */
	kernel = NO_ANSWER;
	store = adopt_forged(&member, 1, 0);
	expect(store, 0, false, 1);
	kernel = PIDFS;
	expect(store, 0, true, 1);
	pf_store_free(store);
	/* In the last place of the table. */
	member.process = a.id;
	store = adopt_forged(&member, 1, (N_ENTRIES - 1) * sizeof member);
	expect(store, 0, false, 1);
	pf_store_free(store);
	end_child(&a);
}

/* Absurd numbers: nobody has them. */
static void test_no_process(void **state)
{
	const ForgedMember members[] = {
		{UINT32_MAX, 0, 1}, {INT32_MAX, 0, 1}, {0, 0, 1}, {UINT32_MAX, 0, 0}};
	PfStore *store = adopt_forged(members, G_N_ELEMENTS(members), 0);

	expect(store, 0, true, 0);
	assert_false(pf_store_members_unsure(store));
	pf_store_free(store);
}

static void check_unsure(void)
{
	PfStore *store = new_store();
	Child a = start_child(), b;

	assert_int_equal(pf_store_add_member(store, a.process, a.pid), 1);
	assert_int_equal(pf_store_add_member(store, a.process, a.pid), 0);
	assert_true(pf_store_members_unsure(store));
	expect(store, 0, true, 0);
	store = pass_on(store);
	assert_true(pf_store_members_unsure(store));
	kernel = PIDFS;
	b = start_child();
	assert_int_equal(pf_store_add_member(store, b.process, b.pid), 1);
	expect(store, b.id, true, b.id != 0);
	assert_true(pf_store_members_unsure(store));
	end_child(&a);
	expect(store, b.id, true, b.id != 0);
	assert_int_equal(pf_store_members_unsure(store), b.id == 0);
	pf_store_free(store);
	end_child(&b);
}

static void test_without_pidfs(void **state)
{
	kernel = NO_PIDFS;
	check_unsure();
}

static void fill_table(ForgedMember *members, uint32_t pid)
{
	for (size_t i = 0; i < N_ENTRIES; i++)
		members[i] = (ForgedMember){.pid = pid};
}

static void test_full_table(void **state)
{
	g_autofree ForgedMember *members = g_new(ForgedMember, N_ENTRIES);
	Child a = start_child(), b = start_child();
	PfStore *store;

	fill_table(members, (uint32_t)a.pid);
	store = adopt_forged(members, N_ENTRIES, 0);
	assert_int_equal(pf_store_add_member(store, b.process, b.pid), -ENOSPC);
	assert_int_equal(pf_store_n_pages(store), 512);
	expect(store, 0, true, 0);
	/* The places of those who have ended are free. */
	end_child(&a);
	assert_int_equal(pf_store_add_member(store, b.process, b.pid), 1);
	expect(store, b.id, true, b.id != 0);
	assert_int_equal(pf_store_n_pages(store), 512);
	/* Who comes next finds a short table, and gives back the rest. */
	store = pass_on(store);
	assert_int_equal(pf_store_n_pages(store), 2);
	assert_int_equal(sweep(store), 510 * 4);
	expect(store, 0, b.id == 0, b.id != 0);
	pf_store_free(store);
	end_child(&b);
}

static void test_sweep_spares_them(void **state)
{
	const uint8_t page[PF_PAGE_SIZE] = {1};
	PfStore *store = new_store();
	Child a = start_child();
	uint8_t byte;

	pf_store_add_member(store, a.process, a.pid);
	assert_int_equal(pf_store_write(store, (PfFrame){PF_STORE_FIRST_FRAME}, page), 0);
	assert_int_equal(pf_store_allocated_kib(store), 4 * pf_store_n_pages(store));
	assert_int_equal(pf_store_n_pages(store), 3);
	assert_int_equal(sweep(store), 0);
	store = pass_on(store);
	assert_int_equal(sweep(store), 4);
	expect(store, 0, false, 1);
	store = pass_on(store);
	expect(store, 0, false, 1);
	/* What somebody has touched behind the table goes. */
	assert_int_equal(pwrite(pf_store_fd(store), "", 1, 100 * PF_PAGE_SIZE), 1);
	assert_int_equal(sweep(store), 4);
	assert_int_equal(pread(pf_store_fd(store), &byte, 1, TABLE), 1);
	assert_int_equal(pf_store_allocated_kib(store), 8);
	pf_store_free(store);
	end_child(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_process_ids),
		cmocka_unit_test(test_members_are_passed_on),
		cmocka_unit_test(test_exited),
		cmocka_unit_test(test_number_was_used_again),
		cmocka_unit_test(test_no_process),
		cmocka_unit_test(test_without_pidfs),
		cmocka_unit_test(test_full_table),
		cmocka_unit_test(test_sweep_spares_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
