/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the broker takes for a request, and its clients for a message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/wire/broker_protocol.h"

#define UUID "2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c01"

static PfBrokerRequest new_request(PfBrokerRequestType type, const char *vm)
{
	PfBrokerRequest request = {.magic = PF_BROKER_MAGIC, .type = type, .id = 1};

	g_strlcpy(request.vm, vm, sizeof(request.vm));
	if (type == PF_BROKER_TRANSLATE) {
		request.n_ranges = 1;
		request.ranges[0] = (PfGuestRange){{1}, 1};
	}
	if (type == PF_BROKER_MODIFY)
		request.changes = PF_VM_SET_ENABLED;
	return request;
}

static bool check(const PfBrokerRequest *request)
{
	return pf_broker_check_request(request, sizeof(*request), 0);
}

static void test_uuid(void **state)
{
	assert_true(pf_broker_is_uuid(UUID));
	assert_true(pf_broker_is_uuid("2F6A1C1E-8A0F-4C5F-9D1B-0A5F3A4D7C01"));
	assert_false(pf_broker_is_uuid(""));
	assert_false(pf_broker_is_uuid(UUID "0"));
	assert_false(pf_broker_is_uuid("2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c0"));
	assert_false(pf_broker_is_uuid("2f6a1c1e08a0f-4c5f-9d1b-0a5f3a4d7c01"));
	assert_false(pf_broker_is_uuid("2f6a1c1e-8a0f-4c5f-9d1b-0a5f3a4d7c0g"));
}

static void test_good_requests(void **state)
{
	PfBrokerRequest userfaultfd = new_request(PF_BROKER_OPEN_USERFAULTFD, UUID);
	PfBrokerRequest channel = new_request(PF_BROKER_OPEN_CHANNEL, UUID);
	PfBrokerRequest translate = new_request(PF_BROKER_TRANSLATE, UUID);
	PfBrokerRequest modify = new_request(PF_BROKER_MODIFY, "Gäste-VM 1");
	PfBrokerRequest insert = new_request(PF_BROKER_INSERT_ADDITIONS, "Gäste-VM 1");
	PfBrokerRequest eject = new_request(PF_BROKER_EJECT_ADDITIONS, UUID);

	assert_true(check(&insert));
	assert_true(check(&eject));
	eject.force = 1;
	assert_true(check(&eject));
	assert_true(check(&userfaultfd));
	assert_true(check(&channel));
	assert_true(check(&translate));
	assert_true(check(&modify));
	modify.changes = PF_VM_SET_GROUP;
	g_strlcpy(modify.group, "tenant-1", sizeof(modify.group));
	assert_true(check(&modify));
	modify.group[0] = 0;
	modify.enabled = 1;
	modify.changes = PF_VM_SET_ENABLED | PF_VM_SET_THP;
	for (modify.thp = PF_THP_DEFAULT; modify.thp <= PF_THP_ALL; modify.thp++)
		assert_true(check(&modify));
	translate.ranges[0] = (PfGuestRange){{PF_GFN_END - 1}, 1};
	assert_true(check(&translate));
}

static void test_wrong_envelopes(void **state)
{
	PfBrokerRequest good = new_request(PF_BROKER_OPEN_USERFAULTFD, UUID), bad;

	assert_false(pf_broker_check_request(&good, sizeof(good) - 1, 0));
	assert_false(pf_broker_check_request(&good, sizeof(good) + 1, 0));
	assert_false(pf_broker_check_request(&good, sizeof(good), 1));
	bad = good;
	bad.magic++;
	assert_false(check(&bad));
	bad = good;
	bad.id = 0;
	assert_false(check(&bad));
	for (uint32_t type = 0; type < 256; type++) {
		bad.id = 1;
		bad.type = type;
		assert_int_equal(check(&bad), type == PF_BROKER_OPEN_USERFAULTFD ||
						      type == PF_BROKER_OPEN_CHANNEL ||
						      type == PF_BROKER_INSERT_ADDITIONS ||
						      type == PF_BROKER_EJECT_ADDITIONS);
	}
}

static void test_wrong_names(void **state)
{
	PfBrokerRequest modify = new_request(PF_BROKER_MODIFY, "a\033b");
	PfBrokerRequest channel = new_request(PF_BROKER_OPEN_CHANNEL, "name");
	PfBrokerRequest userfaultfd = new_request(PF_BROKER_OPEN_USERFAULTFD, "");

	assert_false(check(&modify));
	modify = new_request(PF_BROKER_MODIFY, "\xc3");
	assert_false(check(&modify));
	modify = new_request(PF_BROKER_MODIFY, "");
	assert_false(check(&modify));
	modify = new_request(PF_BROKER_MODIFY, "a");
	assert_true(check(&modify));
	memset(modify.vm, 'a', sizeof(modify.vm));
	assert_false(check(&modify));
	assert_false(check(&channel));
	assert_false(check(&userfaultfd));
}

static void test_wrong_changes(void **state)
{
	static const struct {
		uint32_t changes, enabled, thp;
	} wrong[] = {
		{0, 0, 0},
		{PF_VM_SET_ENABLED, 2, 0},
		{PF_VM_SET_ENABLED, 1, PF_THP_ALL},
		{PF_VM_SET_THP, 1, PF_THP_ALL},
		{PF_VM_SET_THP, 0, PF_THP_ALL + 1},
		{PF_VM_SET_THP, 0, UINT32_MAX},
		{PF_VM_SET_ENABLED | PF_VM_SET_THP | 8, 1, PF_THP_ALL},
		{UINT32_MAX, 0, 0},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		PfBrokerRequest modify = new_request(PF_BROKER_MODIFY, "a");

		assert_true(check(&modify));
		modify.changes = wrong[i].changes;
		modify.enabled = wrong[i].enabled;
		modify.thp = wrong[i].thp;
		assert_false(check(&modify));
	}
}

static void test_wrong_groups(void **state)
{
	static const char *const wrong[] = {"", "-a", "a b", "a/b", "..", "gr\xc3\xbcn"};
	PfBrokerRequest modify = new_request(PF_BROKER_MODIFY, "a");

	modify.changes = PF_VM_SET_GROUP;
	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		g_strlcpy(modify.group, wrong[i], sizeof(modify.group));
		assert_false(check(&modify));
	}
	memset(modify.group, 'a', sizeof(modify.group));
	assert_false(check(&modify));
	modify.group[PF_GROUP_NAME_MAX] = 0;
	assert_true(check(&modify));
	/* It is not to be changed. */
	modify.changes = PF_VM_SET_ENABLED;
	assert_false(check(&modify));
}

static void test_wrong_additions(void **state)
{
	PfBrokerRequest insert = new_request(PF_BROKER_INSERT_ADDITIONS, "a");
	PfBrokerRequest eject = new_request(PF_BROKER_EJECT_ADDITIONS, "a");

	insert.force = 1;
	assert_false(check(&insert));
	insert = new_request(PF_BROKER_INSERT_ADDITIONS, "");
	assert_false(check(&insert));
	eject.force = 2;
	assert_false(check(&eject));
	eject = new_request(PF_BROKER_EJECT_ADDITIONS, "a\nb");
	assert_false(check(&eject));
}

static void test_who_may_ask(void **state)
{
	for (uint32_t type = PF_BROKER_OPEN_USERFAULTFD; type <= PF_BROKER_EJECT_ADDITIONS;
		type++) {
		assert_int_equal(
			pf_broker_may_ask(PF_BROKER_CLIENT_SERVICE, type), type < PF_BROKER_MODIFY);
		assert_int_equal(
			pf_broker_may_ask(PF_BROKER_CLIENT_FRONT, type), type >= PF_BROKER_MODIFY);
	}
}

static void test_wrong_ranges(void **state)
{
	static const PfGuestRange wrong[] = {
		{{0}, 0},
		{{PF_GFN_END}, 1},
		{{1}, PF_GFN_END},
		{{UINT64_MAX}, 1},
		{{UINT64_MAX}, UINT64_MAX},
		{{0}, UINT64_MAX},
	};
	PfBrokerRequest request = new_request(PF_BROKER_TRANSLATE, UUID);

	request.n_ranges = 2;
	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		request.ranges[1] = wrong[i];
		assert_false(check(&request));
	}
	request.n_ranges = 0;
	assert_false(check(&request));
	request.n_ranges = PF_SESSION_MAX_RAM_RANGES + 1;
	assert_false(check(&request));
}

static void test_messages(void **state)
{
	PfBrokerMessage message = {.magic = PF_BROKER_MAGIC, .type = PF_BROKER_DOMAIN};
	PfDomain *domain = &message.body.domain;

	assert_false(pf_broker_check_message(&message, sizeof(message)));
	g_strlcpy(domain->uuid, UUID, sizeof(domain->uuid));
	assert_true(pf_broker_check_message(&message, sizeof(message)));
	assert_false(pf_broker_check_message(&message, sizeof(message) - 1));
	memset(domain->group, 'a', sizeof(domain->group));
	assert_false(pf_broker_check_message(&message, sizeof(message)));
	domain->group[1] = 0;
	domain->thp = (PfThp)(PF_THP_ALL + 1);
	assert_false(pf_broker_check_message(&message, sizeof(message)));
	domain->thp = PF_THP_ALL;
	assert_true(pf_broker_check_message(&message, sizeof(message)));
	domain->pid = -1;
	assert_false(pf_broker_check_message(&message, sizeof(message)));

	message.type = PF_BROKER_ANSWER;
	assert_false(pf_broker_check_message(&message, sizeof(message)));
	message.id = 1;
	assert_true(pf_broker_check_message(&message, sizeof(message)));
	message.n_hvas = PF_SESSION_MAX_RAM_RANGES + 1;
	assert_false(pf_broker_check_message(&message, sizeof(message)));
	message.n_hvas = 0;
	memset(message.text, 'a', sizeof(message.text));
	assert_false(pf_broker_check_message(&message, sizeof(message)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_uuid),
		cmocka_unit_test(test_good_requests),
		cmocka_unit_test(test_wrong_envelopes),
		cmocka_unit_test(test_wrong_names),
		cmocka_unit_test(test_wrong_changes),
		cmocka_unit_test(test_wrong_groups),
		cmocka_unit_test(test_wrong_additions),
		cmocka_unit_test(test_who_may_ask),
		cmocka_unit_test(test_wrong_ranges),
		cmocka_unit_test(test_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
