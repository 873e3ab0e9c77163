/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VM is written down in the store before it is given it, and when it turns out to have it. */
#include "host-service/service/process_id.h"
#include "service_rig.h"
#include <sys/pidfd.h>

#include "store_forgery.h"

#define MEMBERS_AT    PF_PAGE_SIZE /* in a store */
#define MEMBERS_BYTES (511 * (size_t)PF_PAGE_SIZE)

/* Whether this process is the first member of the store. */
static void expect_member(int store)
{
	int process = pidfd_open(getpid(), 0);
	struct {
		uint32_t pid, reserved;
		uint64_t process;
	} member;
	uint64_t id;

	assert_int_equal(pf_process_id(process, &id), 0);
	close(process);
	assert_int_equal(pread(store, &member, sizeof member, MEMBERS_AT), sizeof member);
	assert_int_equal(member.pid, getpid());
	assert_true(member.process == id);
}

/* When a shim gets a store it is written in it already, for the next service to see. */
static void test_member_of_a_new_store(void **state)
{
	Rig *rig = *state;
	PfBrokerRequest device;
	int shim = converse(rig, ATTACHING, &device);
	Heard store;

	say_ready(shim, PF_SHIM_READY_OK);
	store = hear(shim);
	assert_int_equal(store.type, PF_SHIM_STORE);
	expect_member(store.fd);
	close(store.fd);
	close(shim);
}

static void test_member_of_a_returned_store(void **state)
{
	Rig *rig = *state;
	Forgery plan = forgery();
	int shim = converse(rig, RETURNING, NULL), store;

	strcpy(plan.label.group, "default");
	store = forge(&plan);
	return_store(shim, store);
	fake_broker_next(rig->fd, PF_BROKER_OPEN_USERFAULTFD);
	expect_member(store);
	close(store);
	close(shim);
}

/* Nobody has room in the table of this store, so nobody gets it, and who has it gives up what it maps. */
static void test_no_room_for_a_member(void **state)
{
	Rig *rig = *state;
	g_autofree uint32_t *members = g_malloc0(MEMBERS_BYTES);
	Forgery plan = forgery();
	int shim = converse(rig, RETURNING, NULL), store;

	for (size_t i = 0; i < MEMBERS_BYTES / sizeof *members; i += 4)
		members[i] = (uint32_t)getpid();
	strcpy(plan.label.group, "default");
	store = forge(&plan);
	assert_int_equal(pwrite(store, members, MEMBERS_BYTES, MEMBERS_AT), MEMBERS_BYTES);
	return_store(shim, store);
	close(store);
	release(shim);
	attach(rig, shim);
	say_ready(shim, PF_SHIM_READY_OK);
	wait_for_reason(rig, "there is no room for it in the store");
	expect_closed(shim);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_member_of_a_new_store),
		TEST(test_member_of_a_returned_store),
		TEST(test_no_room_for_a_member),
	};
#undef TEST

	return cmocka_run_group_tests(tests, NULL, NULL);
}
