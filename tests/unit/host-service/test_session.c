/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Conversations: what the agent says is packed here and fed, what the sink hears is written into
 * one string, and what the host says is unpacked.
 */
#include "host-service/decide/session.h"
#include "common/frame.h"
#include "proto/agent.pb-c.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

typedef Pagefusion__AgentMessage AgentMessage;

static PfSession *session;
static GString *heard; /* by the sink */
static uint64_t last_id;

static uint64_t next_id(void *userdata)
{
	return ++last_id;
}

static void on_started(void *userdata, const PfGuestInfo *info)
{
	assert_true(g_utf8_validate(info->agent_version, -1, NULL));
	assert_true(g_utf8_validate(info->kernel, -1, NULL));
	g_string_append_printf(
		heard, "started '%s' '%s' %u", info->agent_version, info->kernel, info->page_size);
	for (size_t i = 0; i < info->n_ram; i++)
		g_string_append_printf(
			heard, " %" PRIu64 "+%" PRIu64, info->ram[i].first.v, info->ram[i].n_pages);
	g_string_append_c(heard, ';');
}

static void on_module(void *userdata, uint32_t id, const PfModuleInfo *info)
{
	g_string_append_printf(heard, "module %u build-id%zu '%s' %" PRIu64 ";", id,
		info->build_id ? info->build_id_size : 0, info->name, info->n_pages);
}

static void on_hints(void *userdata, uint32_t id, uint64_t file_page, PfGfn gfn, uint32_t n_pages,
	const PfDigest *digests)
{
	g_string_append_printf(heard, "hints %u:%" PRIu64 "+%u@%" PRIu64 " %02x%02x;", id,
		file_page, n_pages, gfn.v, digests[0].bytes[0], digests[n_pages - 1].bytes[31]);
}

static void on_withdrawn(void *userdata, uint32_t id, const PfFileRange *ranges, size_t n_ranges)
{
	g_string_append_printf(heard, "withdrawn %u:", id);
	for (size_t i = 0; i < n_ranges; i++)
		g_string_append_printf(heard, "%s%" PRIu64 "+%" PRIu64, i > 0 ? "," : "",
			ranges[i].first_page, ranges[i].n_pages);
	g_string_append_c(heard, ';');
}

static void on_reported(void *userdata, uint64_t n_modules, uint64_t n_pages)
{
	g_string_append_printf(heard, "reported %" PRIu64 " %" PRIu64 ";", n_modules, n_pages);
}

static const PfSessionSink sink = {
	.started = on_started,
	.module = on_module,
	.hints = on_hints,
	.withdrawn = on_withdrawn,
	.reported = on_reported,
};

static int make_session(void **state)
{
	last_id = 0;
	heard = g_string_new(NULL);
	session = pf_session_new(&sink, NULL, next_id);
	return 0;
}

static int free_session(void **state)
{
	pf_session_free(session);
	g_string_free(heard, TRUE);
	return 0;
}

/* What the sink heard since the last call. */
#define assert_heard(text)                                                                         \
	do {                                                                                       \
		assert_string_equal(heard->str, text);                                             \
		g_string_truncate(heard, 0);                                                       \
	} while (0)

static void append_frame(GByteArray *bytes, const uint8_t *payload, size_t size)
{
	uint8_t header[PF_FRAME_HEADER_SIZE];

	assert_int_equal(pf_frame_write_header(header, payload, size), PF_FRAME_OK);
	g_byte_array_append(bytes, header, sizeof(header));
	g_byte_array_append(bytes, payload, (guint)size);
}

static void append_message(GByteArray *bytes, const AgentMessage *message)
{
	size_t size = pagefusion__agent_message__get_packed_size(message);
	g_autofree uint8_t *payload = g_malloc(size);

	pagefusion__agent_message__pack(message, payload);
	append_frame(bytes, payload, size);
}

static int feed(const AgentMessage *message)
{
	g_autoptr(GByteArray) bytes = g_byte_array_new();

	append_message(bytes, message);
	return pf_session_feed(session, bytes->data, bytes->len);
}

static void say(AgentMessage *message)
{
	message->session_id = last_id;
	assert_int_equal(feed(message), PF_SESSION_OK);
}

static const Pagefusion__RamRange range_a = {
	.base = PROTOBUF_C_MESSAGE_INIT(&pagefusion__ram_range__descriptor),
	.first_gfn = 1,
	.n_pages = 159,
};
static const Pagefusion__RamRange range_b = {
	.base = PROTOBUF_C_MESSAGE_INIT(&pagefusion__ram_range__descriptor),
	.first_gfn = 256,
	.n_pages = 1000,
};
static uint8_t boot_id[17];

typedef struct Hello {
	AgentMessage message;
	Pagefusion__AgentHello hello;
	Pagefusion__RamRange *ram[100];
} Hello;

static Hello *valid_hello(void)
{
	static Hello h;

	h = (Hello){
		.message = PAGEFUSION__AGENT_MESSAGE__INIT,
		.hello = PAGEFUSION__AGENT_HELLO__INIT,
		.ram = {(Pagefusion__RamRange *)&range_a, (Pagefusion__RamRange *)&range_b},
	};
	h.message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HELLO;
	h.message.hello = &h.hello;
	h.hello.protocol = 1;
	h.hello.boot_id = (ProtobufCBinaryData){16, boot_id};
	h.hello.agent_version = (char *)"0.1.0";
	h.hello.kernel = (char *)"6.1.0";
	h.hello.page_size = 4096;
	h.hello.ram = h.ram;
	h.hello.n_ram = 2;
	return &h;
}

#define VALID_STARTED "started '0.1.0' '6.1.0' 4096 1+159 256+1000;"

static void say_module(uint32_t id, size_t build_id_size, const char *name, uint64_t n_pages)
{
	static uint8_t build_id[100];
	AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Module module = PAGEFUSION__MODULE__INIT;

	module.id = id;
	module.build_id = (ProtobufCBinaryData){build_id_size, build_id};
	module.name = (char *)name;
	module.n_pages = n_pages;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_MODULE;
	message.module = &module;
	say(&message);
}

static void say_hint(uint32_t id, uint64_t file_page, uint64_t gfn, size_t digest_bytes)
{
	AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Hints hints = PAGEFUSION__HINTS__INIT;
	Pagefusion__Run run = PAGEFUSION__RUN__INIT, *runs[] = {&run};
	g_autofree uint8_t *digests = g_malloc0(digest_bytes + 1);

	digests[0] = 0xd0;
	if (digest_bytes > 0)
		digests[digest_bytes - 1] = 0x0d;
	run.file_page = file_page;
	run.gfn = gfn;
	run.digests = (ProtobufCBinaryData){digest_bytes, digests};
	hints.module_id = id;
	hints.n_runs = 1;
	hints.runs = runs;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HINTS;
	message.hints = &hints;
	say(&message);
}

static void say_withdrawn_ranges(uint32_t id, const PfFileRange *what, size_t n)
{
	AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Withdrawn withdrawn = PAGEFUSION__WITHDRAWN__INIT;
	Pagefusion__PageRange ranges[2], *pointers[] = {&ranges[0], &ranges[1]};

	for (size_t i = 0; i < n; i++) {
		pagefusion__page_range__init(&ranges[i]);
		ranges[i].first_page = what[i].first_page;
		ranges[i].n_pages = what[i].n_pages;
	}
	withdrawn.module_id = id;
	withdrawn.n_pages = n;
	withdrawn.pages = pointers;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
	message.withdrawn = &withdrawn;
	say(&message);
}

static void say_withdrawn(uint32_t id, size_t n, uint64_t first_page, uint64_t n_pages)
{
	say_withdrawn_ranges(id, &(PfFileRange){first_page, n_pages}, n);
}

static const AgentMessage *report_end(uint64_t session_id)
{
	static AgentMessage message;
	static Pagefusion__ReportEnd end;

	message = (AgentMessage)PAGEFUSION__AGENT_MESSAGE__INIT;
	end = (Pagefusion__ReportEnd)PAGEFUSION__REPORT_END__INIT;
	end.n_modules = 1;
	end.n_pages = 2;
	message.session_id = session_id;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END;
	message.report_end = &end;
	return &message;
}

static const AgentMessage *knock(void)
{
	static AgentMessage message;
	static Pagefusion__Knock body;

	message = (AgentMessage)PAGEFUSION__AGENT_MESSAGE__INIT;
	body = (Pagefusion__Knock)PAGEFUSION__KNOCK__INIT;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &body;
	return &message;
}

static PfSessionCounters counters(void)
{
	PfSessionCounters c;

	pf_session_get_counters(session, &c);
	return c;
}

/* Takes all output and writes it as text. */
static char *answers(void)
{
	static char text[1024];
	const uint8_t *data;
	size_t size;

	text[0] = '\0';
	while (data = pf_session_output(session, &size), size > 0) {
		Pagefusion__HostMessage *message = pagefusion__host_message__unpack(
			NULL, size - PF_FRAME_HEADER_SIZE, data + PF_FRAME_HEADER_SIZE);
		size_t used = strlen(text);

		assert_non_null(message);
		if (message->body_case == PAGEFUSION__HOST_MESSAGE__BODY_HELLO)
			g_snprintf(text + used, sizeof(text) - used, "hello %" PRIu64 " p%u w%u;",
				message->hello->session_id, message->hello->protocol,
				message->hello->window);
		else
			g_snprintf(text + used, sizeof(text) - used, "ack %" PRIu64 " %" PRIu64 ";",
				message->ack->session_id, message->ack->frames);
		pagefusion__host_message__free_unpacked(message, NULL);
		pf_session_sent(session, size);
	}
	return text;
}

static void start_session(void)
{
	assert_string_equal(answers(), "hello 1 p1 w8;");
	say(&valid_hello()->message);
	assert_heard(VALID_STARTED);
	assert_string_equal(answers(), "ack 1 1;");
}

static void test_a_whole_report(void **state)
{
	start_session();
	say_module(7, 20, "libc.so.6", 480);
	say_hint(7, 10, 300, 3 * 32);
	say_withdrawn(7, 1, 11, 2);
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	assert_heard("module 7 build-id20 'libc.so.6' 480;"
		     "hints 7:10+3@300 d00d;withdrawn 7:11+2;reported 1 2;");
	assert_string_equal(answers(), "ack 1 5;");
	assert_string_equal(answers(), "");
	assert_int_equal(counters().frames, 5);
	assert_int_equal(counters().dropped, 0);
	assert_int_equal(counters().skipped_bytes, 0);
}

/* The examples of proto/PROTOCOL.md. */
static void test_documented_bytes(void **state)
{
	static const uint8_t hello[] = {0x50, 0x46, 0x47, 0x31, 0x0f, 0x00, 0x00, 0x00, 0xb5, 0x42,
		0x79, 0xd1, 0x0a, 0x0d, 0x09, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x10,
		0x01, 0x18, 0x08};
	static const uint8_t ack[] = {0x50, 0x46, 0x47, 0x31, 0x0d, 0x00, 0x00, 0x00, 0x1c, 0x56,
		0x35, 0x90, 0x12, 0x0b, 0x09, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x10,
		0x03};
	static const uint8_t knock_frame[] = {
		0x50, 0x46, 0x47, 0x31, 0x02, 0x00, 0x00, 0x00, 0x26, 0x1d, 0x26, 0x94, 0x12, 0x00};
	const uint8_t *data;
	size_t size;

	last_id = 0xefcdab8967452300;
	assert_int_equal(pf_session_feed(session, knock_frame, sizeof(knock_frame)), PF_SESSION_OK);
	assert_int_equal(counters().frames, 1);
	assert_int_equal(counters().dropped, 0);
	pf_session_open(session);
	data = pf_session_output(session, &size);
	assert_int_equal(size, sizeof(hello));
	assert_memory_equal(data, hello, size);
	pf_session_sent(session, size);
	for (int i = 0; i < 3; i++)
		assert_int_equal(feed(report_end(last_id)), PF_SESSION_OK);
	data = pf_session_output(session, &size);
	assert_int_equal(size, sizeof(ack));
	assert_memory_equal(data, ack, size);
}

static void test_hello_comes_first(void **state)
{
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	say_module(1, 20, "a", 1);
	assert_heard("");
	assert_int_equal(counters().dropped, 2);
	say(&valid_hello()->message);
	say(&valid_hello()->message);
	assert_heard(VALID_STARTED);
	assert_int_equal(counters().dropped, 3);
}

static void test_other_sessions_are_not_heard(void **state)
{
	start_session();
	assert_int_equal(feed(report_end(0)), PF_SESSION_OK);
	assert_int_equal(feed(report_end(2)), PF_SESSION_OK);
	assert_heard("");
	assert_string_equal(answers(), "");
	assert_int_equal(counters().dropped, 2);
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	assert_string_equal(answers(), "ack 1 2;");
}

typedef void (*Spoil)(Hello *h);

static void spoil_boot_id_short(Hello *h)
{
	h->hello.boot_id.len = 15;
}

static void spoil_boot_id_long(Hello *h)
{
	h->hello.boot_id.len = 17;
}

static void spoil_no_ram(Hello *h)
{
	h->hello.n_ram = 0;
}

static void spoil_order(Hello *h)
{
	h->ram[0] = (Pagefusion__RamRange *)&range_b;
	h->ram[1] = (Pagefusion__RamRange *)&range_a;
}

static void spoil_overlap(Hello *h)
{
	h->ram[1] = (Pagefusion__RamRange *)&range_a;
}

static void second_range(Hello *h, uint64_t first, uint64_t n)
{
	static Pagefusion__RamRange range;

	range = range_b;
	range.first_gfn = first;
	range.n_pages = n;
	h->ram[1] = &range;
}

static void spoil_empty_range(Hello *h)
{
	second_range(h, 300, 0);
}

static void spoil_overflow(Hello *h)
{
	second_range(h, 300, UINT64_MAX - 100);
}

static void spoil_too_high(Hello *h)
{
	second_range(h, 300, (1ull << 40) - 299);
}

static void spoil_many_ranges(Hello *h)
{
	static Pagefusion__RamRange ranges[65];

	for (size_t i = 0; i < 65; i++) {
		ranges[i] = range_a;
		ranges[i].first_gfn = 1000 * i;
		h->ram[i] = &ranges[i];
	}
	h->hello.n_ram = 65;
}

static void test_false_hellos(void **state)
{
	static const Spoil spoils[] = {spoil_boot_id_short, spoil_boot_id_long, spoil_no_ram,
		spoil_order, spoil_overlap, spoil_empty_range, spoil_overflow, spoil_too_high,
		spoil_many_ranges};
	Hello *h;

	for (size_t i = 0; i < G_N_ELEMENTS(spoils); i++) {
		h = valid_hello();
		spoils[i](h);
		say(&h->message);
		assert_heard("");
		assert_int_equal(counters().dropped, i + 1);
	}
	h = valid_hello();
	second_range(h, 160, (1ull << 40) - 160);
	say(&h->message);
	assert_heard("started '0.1.0' '6.1.0' 4096 1+159 160+1099511627616;");
}

static void test_most_ranges(void **state)
{
	Hello *h = valid_hello();

	spoil_many_ranges(h);
	h->hello.n_ram = 64;
	say(&h->message);
	assert_non_null(strstr(heard->str, " 63000+159;"));
}

static void assert_mute(Hello *h, const char *started)
{
	say(&h->message);
	assert_heard(started);
	say_module(7, 20, "libc.so.6", 480);
	assert_heard("");
	assert_int_equal(counters().dropped, 1);
	assert_string_equal(answers(), "hello 1 p1 w8;ack 1 2;");
}

static void test_other_page_size(void **state)
{
	Hello *h = valid_hello();

	h->hello.page_size = 65536;
	assert_mute(h, "started '0.1.0' '6.1.0' 65536 1+159 256+1000;");
}

static void test_older_protocol(void **state)
{
	Hello *h = valid_hello();

	h->hello.protocol = 0;
	assert_mute(h, "started '0.1.0' '6.1.0' 4096 1+159 256+1000;");
}

static void test_text_is_cleaned(void **state)
{
	Hello *h = valid_hello();
	g_autofree char *long_name = g_strnfill(300, 'x'), *cut = g_strnfill(254, 'x');
	g_autofree char *expected = NULL;

	h->hello.agent_version = (char *)"1\x1b[2J\xff";
	h->hello.kernel = (char *)"\xc2\x9b\xe2\x80\xae"
				  "6";
	say(&h->message);
	assert_heard("started '1\xef\xbf\xbd[2J\xef\xbf\xbd'"
		     " '\xef\xbf\xbd\xef\xbf\xbd"
		     "6' 4096 1+159 256+1000;");
	memcpy(long_name + 254, "\xc3\xa9", 2); /* does not fit as a whole */
	say_module(1, 0, long_name, 5);
	expected = g_strdup_printf("module 1 build-id0 '%s' 5;", cut);
	assert_heard(expected);
}

static void test_modules(void **state)
{
	start_session();
	say_module(PF_SESSION_MAX_MODULES, 20, "a", 1);
	say_module(UINT32_MAX, 20, "a", 1);
	say_module(1, 65, "a", 1);
	say_module(1, 20, "a", 0);
	say_module(1, 20, "a", PF_SESSION_MAX_MODULE_PAGES + 1);
	say_module(1, 0, "", 1);
	assert_heard("");
	assert_int_equal(counters().dropped, 6);
	say_module(PF_SESSION_MAX_MODULES - 1, 64, "", PF_SESSION_MAX_MODULE_PAGES);
	assert_heard("module 65535 build-id64 '' 268435456;");
	say_hint(1, 0, 300, 32);
	assert_heard("");
	assert_int_equal(counters().refused_hints, 1);
}

static void test_hints_outside_ram(void **state)
{
	static const struct {
		uint64_t gfn;
		size_t n_pages;
		gboolean inside;
	} cases[] = {
		{0, 1, FALSE},
		{0, 2, FALSE},
		{1, 1, TRUE},
		{1, 159, TRUE},
		{1, 160, FALSE},
		{159, 1, TRUE},
		{159, 2, FALSE},
		{160, 1, FALSE},
		{255, 2, FALSE},
		{256, 400, TRUE},
		{1255, 1, TRUE},
		{1256, 1, FALSE},
		{1ull << 40, 1, FALSE},
		{UINT64_MAX, 2, FALSE},
	};
	uint64_t refused = 0;

	start_session();
	say_module(1, 20, "a", 10000);
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_string_truncate(heard, 0);
		say_hint(1, 5, cases[i].gfn, cases[i].n_pages * 32);
		assert_string_not_equal(answers(), "");
		assert_int_equal(heard->len > 0, cases[i].inside);
		refused += cases[i].inside ? 0 : cases[i].n_pages;
		assert_int_equal(counters().refused_hints, refused);
	}
}

static void test_hints_outside_module(void **state)
{
	start_session();
	say_module(1, 20, "a", 10);
	g_string_truncate(heard, 0);
	say_hint(1, 8, 300, 3 * 32);
	say_hint(1, 10, 300, 32);
	say_hint(1, UINT64_MAX, 300, 2 * 32);
	say_hint(2, 0, 300, 32);
	say_hint(65536, 0, 300, 32);
	assert_heard("");
	assert_int_equal(counters().refused_hints, 8);
	say_hint(1, 0, 300, 0);
	say_hint(1, 0, 300, 33);
	say_hint(1, 0, 300, 63);
	assert_heard("");
	assert_int_equal(counters().refused_hints, 11);
	say_hint(1, 8, 300, 2 * 32);
	assert_heard("hints 1:8+2@300 d00d;");
	assert_int_equal(counters().dropped, 0);
}

static void test_withdrawn(void **state)
{
	start_session();
	say_module(1, 20, "a", 10);
	g_string_truncate(heard, 0);
	say_withdrawn(1, 1, 9, 2);
	say_withdrawn(1, 1, 0, 0);
	say_withdrawn(1, 1, UINT64_MAX, 2);
	say_withdrawn(2, 1, 0, 1);
	assert_heard("");
	assert_int_equal(counters().dropped, 4);
	/* Overlapping, or not ascending: many of them would cost the host more than the guest. */
	say_withdrawn_ranges(1, (PfFileRange[]){{0, 3}, {2, 3}}, 2);
	say_withdrawn_ranges(1, (PfFileRange[]){{5, 3}, {0, 3}}, 2);
	assert_heard("");
	assert_int_equal(counters().dropped, 6);
	say_withdrawn_ranges(1, (PfFileRange[]){{0, 3}, {3, 1}}, 2);
	assert_heard("withdrawn 1:0+3,3+1;");
	say_withdrawn(1, 1, 0, 10);
	say_withdrawn(1, 0, 0, 0);
	assert_heard("withdrawn 1:0+10;withdrawn 1:0+10;");
	say_withdrawn(1, 0, 0, 0);
	say_hint(1, 0, 300, 32);
	assert_heard("");
	assert_int_equal(counters().dropped, 7);
	assert_int_equal(counters().refused_hints, 1);
}

static void test_knock_starts_anew(void **state)
{
	start_session();
	say_module(1, 20, "a", 10);
	g_string_truncate(heard, 0);
	assert_int_equal(feed(knock()), PF_SESSION_OK);
	assert_int_equal(feed(knock()), PF_SESSION_OK);
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	assert_string_equal(answers(), "hello 2 p1 w8;");
	say(&valid_hello()->message);
	assert_heard(VALID_STARTED);
	assert_string_equal(answers(), "ack 2 1;");
	say_hint(1, 0, 300, 32);
	assert_heard("");
	assert_int_equal(counters().refused_hints, 1);
}

/* A hello of which a part was sent may have met an agent that is no more. */
static void test_knock_during_hello(void **state)
{
	size_t size;

	pf_session_output(session, &size);
	pf_session_sent(session, 5);
	assert_int_equal(feed(knock()), PF_SESSION_OK);
	pf_session_output(session, &size);
	pf_session_sent(session, size);
	assert_string_equal(answers(), "hello 2 p1 w8;");
}

static void test_open_forgets(void **state)
{
	g_autoptr(GByteArray) bytes = g_byte_array_new();
	size_t size;

	start_session();
	append_message(bytes, report_end(1));
	assert_int_equal(pf_session_feed(session, bytes->data, bytes->len), PF_SESSION_OK);
	pf_session_output(session, &size);
	pf_session_sent(session, 1);
	assert_int_equal(pf_session_feed(session, bytes->data, 20), PF_SESSION_OK);
	pf_session_open(session);
	assert_string_equal(answers(), "hello 2 p1 w8;");
	g_string_truncate(heard, 0);
	assert_int_equal(
		pf_session_feed(session, bytes->data + 20, bytes->len - 20), PF_SESSION_OK);
	assert_int_equal(counters().skipped_bytes, bytes->len - 20);
	assert_int_equal(counters().dropped, 0);
	say(&valid_hello()->message);
	assert_heard(VALID_STARTED);
	assert_string_equal(answers(), "ack 2 1;");
}

/* The guest rebooted after a part of a large frame: nothing but knocks follows. */
static void test_knock_behind_torn_frame(void **state)
{
	g_autofree uint8_t *payload = g_malloc0(1000000);
	g_autoptr(GByteArray) bytes = g_byte_array_new();

	start_session();
	append_frame(bytes, payload, 1000000);
	g_byte_array_set_size(bytes, 100000);
	append_message(bytes, knock());
	for (size_t i = 0; i < bytes->len; i += 997)
		assert_int_equal(
			pf_session_feed(session, bytes->data + i, MIN(997, bytes->len - i)),
			PF_SESSION_OK);
	assert_string_equal(answers(), "hello 2 p1 w8;");
	assert_int_equal(counters().skipped_bytes, 100000);
	say(&valid_hello()->message);
	assert_heard(VALID_STARTED);
}

static void test_acks_come_together(void **state)
{
	const uint8_t *data;
	uint8_t first;
	size_t size;

	start_session();
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	data = pf_session_output(session, &size);
	assert_true(size > 0);
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
	data = pf_session_output(session, &size);
	first = data[0];
	assert_int_equal(first, 'P');
	assert_string_equal(answers(), "ack 1 4;");
}

static void test_flood(void **state)
{
	int r = PF_SESSION_OK;
	int n = 0;

	start_session();
	while (r == PF_SESSION_OK && n < 100) {
		r = feed(report_end(1));
		n++;
	}
	assert_int_equal(r, PF_SESSION_E_FLOOD);
	assert_int_equal(n, 2 * PF_SESSION_WINDOW_FRAMES + 1);
	pf_session_open(session);
	assert_string_equal(answers(), "hello 2 p1 w8;");
	assert_int_equal(feed(report_end(2)), PF_SESSION_OK);
}

static void test_drained_acks_are_no_flood(void **state)
{
	start_session();
	for (int i = 0; i < 100; i++) {
		for (int k = 0; k < PF_SESSION_WINDOW_FRAMES; k++)
			assert_int_equal(feed(report_end(1)), PF_SESSION_OK);
		assert_string_not_equal(answers(), "");
	}
	assert_int_equal(counters().frames, 801);
}

static void test_no_message(void **state)
{
	static const uint8_t rubbish[] = {0xff, 0xff, 0xff, 0xff};
	g_autoptr(GByteArray) bytes = g_byte_array_new();

	start_session();
	append_frame(bytes, rubbish, sizeof(rubbish));
	g_byte_array_append(bytes, rubbish, sizeof(rubbish));
	assert_int_equal(pf_session_feed(session, bytes->data, bytes->len), PF_SESSION_OK);
	assert_int_equal(counters().dropped, 1);
	assert_int_equal(counters().skipped_bytes, 4);
	assert_string_equal(answers(), "");
}

/* A message of 600 kB that would take 24 MB when decoded. */
static void test_message_that_explodes(void **state)
{
	enum { N_RUNS = 300000 };
	g_autofree uint8_t *payload = g_malloc0(2 * N_RUNS + 16);
	g_autoptr(GByteArray) bytes = g_byte_array_new();
	size_t size = 0;

	start_session();
	payload[size++] = 1 << 3 | 1;
	payload[size] = 1;
	size += 8;
	payload[size++] = 5 << 3 | 2;
	for (uint32_t length = 2 * N_RUNS; length > 0; length >>= 7)
		payload[size++] = (uint8_t)((length & 0x7f) | (length > 0x7f ? 0x80 : 0));
	for (size_t i = 0; i < N_RUNS; i++, size += 2)
		payload[size] = 2 << 3 | 2;
	append_frame(bytes, payload, size);
	assert_int_equal(pf_session_feed(session, bytes->data, bytes->len), PF_SESSION_OK);
	assert_int_equal(counters().dropped, 1);
	assert_int_equal(counters().refused_hints, 0);
}

int main(void)
{
#define SESSION_TEST(test) cmocka_unit_test_setup_teardown(test, make_session, free_session)
	const struct CMUnitTest tests[] = {
		SESSION_TEST(test_a_whole_report),
		SESSION_TEST(test_documented_bytes),
		SESSION_TEST(test_hello_comes_first),
		SESSION_TEST(test_other_sessions_are_not_heard),
		SESSION_TEST(test_false_hellos),
		SESSION_TEST(test_most_ranges),
		SESSION_TEST(test_other_page_size),
		SESSION_TEST(test_older_protocol),
		SESSION_TEST(test_text_is_cleaned),
		SESSION_TEST(test_modules),
		SESSION_TEST(test_hints_outside_ram),
		SESSION_TEST(test_hints_outside_module),
		SESSION_TEST(test_withdrawn),
		SESSION_TEST(test_knock_starts_anew),
		SESSION_TEST(test_knock_during_hello),
		SESSION_TEST(test_open_forgets),
		SESSION_TEST(test_knock_behind_torn_frame),
		SESSION_TEST(test_acks_come_together),
		SESSION_TEST(test_flood),
		SESSION_TEST(test_drained_acks_are_no_flood),
		SESSION_TEST(test_no_message),
		SESSION_TEST(test_message_that_explodes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
