// SPDX-License-Identifier: LGPL-2.1-or-later
#include "guest-agent/tell/host_message.h"
#include "proto/agent.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static PfHostMessage parse_hello(uint64_t session_id, uint32_t protocol, uint32_t window)
{
	Pagefusion__HostMessage message = PAGEFUSION__HOST_MESSAGE__INIT;
	Pagefusion__HostHello hello = PAGEFUSION__HOST_HELLO__INIT;
	PfHostMessage parsed;
	uint8_t bytes[64];

	hello.session_id = session_id;
	hello.protocol = protocol;
	hello.window = window;
	message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	pf_host_message_parse(bytes, pagefusion__host_message__pack(&message, bytes), &parsed);
	return parsed;
}

static void test_hello(void **state)
{
	PfHostMessage message = parse_hello(42, 1, 8);

	assert_int_equal(message.kind, PF_HOST_MESSAGE_HELLO);
	assert_int_equal(message.session_id, 42);
	assert_int_equal(message.window, 8);
	assert_int_equal(parse_hello(42, 9, UINT32_MAX).window, PF_HOST_MAX_WINDOW);
	assert_int_equal(parse_hello(0, 1, 8).kind, PF_HOST_MESSAGE_INVALID);
	assert_int_equal(parse_hello(42, 0, 8).kind, PF_HOST_MESSAGE_INVALID);
	assert_int_equal(parse_hello(42, 1, 0).kind, PF_HOST_MESSAGE_INVALID);
}

static void test_ack(void **state)
{
	Pagefusion__HostMessage message = PAGEFUSION__HOST_MESSAGE__INIT;
	Pagefusion__Ack ack = PAGEFUSION__ACK__INIT;
	PfHostMessage parsed;
	uint8_t bytes[64];

	ack.session_id = 42;
	ack.frames = 7;
	message.body_case = PAGEFUSION__HOST_MESSAGE__BODY_ACK;
	message.ack = &ack;
	pf_host_message_parse(bytes, pagefusion__host_message__pack(&message, bytes), &parsed);
	assert_int_equal(parsed.kind, PF_HOST_MESSAGE_ACK);
	assert_int_equal(parsed.session_id, 42);
	assert_int_equal(parsed.frames, 7);
	ack.session_id = 0;
	pf_host_message_parse(bytes, pagefusion__host_message__pack(&message, bytes), &parsed);
	assert_int_equal(parsed.kind, PF_HOST_MESSAGE_INVALID);
}

static void test_rubbish(void **state)
{
	static const uint8_t rubbish[] = {0xff, 0xff, 0xff, 0xff, 0xff};
	PfHostMessage parsed;

	pf_host_message_parse(rubbish, sizeof(rubbish), &parsed);
	assert_int_equal(parsed.kind, PF_HOST_MESSAGE_INVALID);
	pf_host_message_parse(NULL, 0, &parsed);
	assert_int_equal(parsed.kind, PF_HOST_MESSAGE_INVALID);
}

/* Unknown fields are copied by protobuf-c: that many need more memory than a message of the host
 * may. */
static void test_memory_limit(void **state)
{
	static uint8_t fields[64 * 1024];
	PfHostMessage parsed;

	for (size_t i = 0; i < sizeof(fields); i += 2)
		fields[i] = 0x78; /* field 15, varint 0 */
	pf_host_message_parse(fields, sizeof(fields), &parsed);
	assert_int_equal(parsed.kind, PF_HOST_MESSAGE_INVALID);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hello),
		cmocka_unit_test(test_ack),
		cmocka_unit_test(test_rubbish),
		cmocka_unit_test(test_memory_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
