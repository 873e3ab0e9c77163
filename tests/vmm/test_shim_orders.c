/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The real shim in a toy VM, and a service that gives orders which make no sense. What can be answered is, with the
 * result that names it; what cannot ends the connection, and the shim comes back soon. Either way nothing of the VM's
 * memory changes, and what was fused before is revoked when the guest writes, with and without a service.
 */
#include "common/page.h"
#include "tests/vmm/fake_service.h"
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define FIRST        100u /* gfn of the fused pages */
#define N_FUSED      8u
#define SEED         5000u
#define SOON_MS      2000u /* the first pause is 100 ms; the machine may be slow */
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A VM whose first block is filled by seeds SEED.. and of which N_FUSED pages are fused. */
static int set_up(void **state)
{
	FakeService *fake = fake_service_new();

	fake_ok(fake, "fill 0 %u %u", FAKE_BLOCK_PAGES, SEED);
	fake_attach(fake);
	for (size_t i = 0; i < N_FUSED; i++)
		fake_publish(fake, SEED + FIRST + i);
	fake_fuse(fake, fake->blocks[0] + FIRST * PF_PAGE_SIZE, 0, N_FUSED);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_DONE, N_FUSED);
	*state = fake;
	return 0;
}

/* A VM whose shim has only said hello. */
static int set_up_new(void **state)
{
	FakeService *fake = fake_service_new();

	fake_ok(fake, "fill 0 %u %u", FAKE_BLOCK_PAGES, SEED);
	*state = fake;
	return 0;
}

static int tear_down(void **state)
{
	fake_service_free(*state);
	return 0;
}

static void expect_untouched(FakeService *fake, unsigned n_fused)
{
	fake_ok(fake, "check 0 %u %u", FAKE_BLOCK_PAGES, SEED);
	assert_int_equal(fake_n_file_pages(fake, 0, FAKE_BLOCK_PAGES), n_fused);
}

/* A write to a fused page is a revoke with the right bytes; then the page is what it was before. */
static void expect_revoke(FakeService *fake, unsigned i, unsigned n_fused)
{
	const char *before;
	unsigned old;

	before = fake_command(fake, "read %u 1000", FIRST + i);
	assert_int_equal(sscanf(before, "%u", &old), 1);
	fake_ok(fake, "write %u 1000 %u", FIRST + i, old ^ 0xff);
	assert_int_equal(fake_n_file_pages(fake, FIRST + i, 1), 0);
	fake_ok(fake, "write %u 1000 %u", FIRST + i, old);
	expect_untouched(fake, n_fused - 1);
}

/* The connection has ended: alone the shim revokes, and it is back soon and does what it is told. */
static void expect_end_and_return(FakeService *fake, const char *what)
{
	unsigned ms;

	if (!fake_has_ended(fake))
		fail_msg("%s: the connection goes on", what);
	expect_revoke(fake, 3, N_FUSED);
	ms = fake_accept(fake);
	if (ms > SOON_MS)
		fail_msg("%s: back after %u ms", what, ms);
	assert_int_equal(fake->hello.flags, PF_SHIM_HAS_USERFAULTFD | PF_SHIM_HAS_STORE);
	/* It may have been said before the revoke. */
	assert_in_range(fake->hello.fused_pages, N_FUSED - 1, N_FUSED);
	assert_int_equal(fake_n_listed(fake), N_FUSED - 1);
	fake_attach(fake);
	fake_fuse(fake, fake->blocks[0] + (FIRST + 3) * PF_PAGE_SIZE, 3, 1);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_DONE, 1);
	expect_untouched(fake, N_FUSED);
}

/* Answered by a result */

typedef struct RunCase {
	uint64_t hva, frame;
	uint32_t n_pages;
	PfShimResult result;
} RunCase;

static void expect_run_results(FakeService *fake, const RunCase *cases, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		fake_fuse(fake, cases[i].hva, cases[i].frame, cases[i].n_pages);
		fake_expect_results(fake, PF_SHIM_FUSED, cases[i].result, cases[i].n_pages);
	}
	expect_untouched(fake, N_FUSED);
}

/* The first address of a map of the VM whose line has this text. */
static uint64_t find_map(const FakeService *fake, const char *text)
{
	char path[64], line[512];
	uint64_t start = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", fake->vm);
	maps = fopen(path, "re");
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps) && !strstr(line, text))
		;
	assert_int_equal(sscanf(line, "%" SCNx64 "-", &start), 1);
	fclose(maps);
	return start;
}

static void test_fuse_outside_ram(void **state)
{
	FakeService *fake = *state;
	uint64_t block = fake->blocks[0], end = block + FAKE_BLOCK_PAGES * PF_PAGE_SIZE;
	const RunCase cases[] = {
		{0, 0, 1, PF_SHIM_NOT_RAM},
		{PF_PAGE_SIZE, 0, 8, PF_SHIM_NOT_RAM},
		{block - PF_PAGE_SIZE, 0, 1, PF_SHIM_NOT_RAM},
		{end, 0, 1, PF_SHIM_NOT_RAM},
		{block + 1, 0, 1, PF_SHIM_NOT_RAM},
		{block + 2048, 0, 1, PF_SHIM_NOT_RAM},
		{find_map(fake, "[heap]"), 0, 1, PF_SHIM_NOT_RAM},
		{find_map(fake, "[stack]"), 0, 1, PF_SHIM_NOT_RAM},
		{find_map(fake, "toy_vmm"), 0, 1, PF_SHIM_NOT_RAM},
		{find_map(fake, "[vdso]"), 0, 1, PF_SHIM_NOT_RAM},
		{UINT64_MAX, 0, 1, PF_SHIM_NOT_RAM},
		{UINT64_MAX - 4095, 0, 1, PF_SHIM_NOT_RAM},
		{UINT64_MAX - 4095, 0, 32, PF_SHIM_NOT_RAM},
		{UINT64_MAX - 8 * 4096 + 1, 0, 32, PF_SHIM_NOT_RAM},
		{1ull << 47, 0, 2, PF_SHIM_NOT_RAM},
		{1ull << 63, 0, 2, PF_SHIM_NOT_RAM},
	};

	expect_run_results(fake, cases, COUNT(cases));
	expect_revoke(fake, 0, N_FUSED);
}

static void expect_two(FakeService *fake, PfShimResult first, PfShimResult second)
{
	size_t size;
	const uint8_t *results = fake_receive(fake, PF_SHIM_FUSED, &size);

	assert_int_equal(size, 2);
	assert_int_equal(results[0], first);
	assert_int_equal(results[1], second);
}

/* Each page for itself: what is RAM is compared, the other is not touched. */
static void test_fuse_over_the_edge(void **state)
{
	FakeService *fake = *state;
	uint64_t block = fake->blocks[0], end = block + FAKE_BLOCK_PAGES * PF_PAGE_SIZE;

	fake_fuse(fake, block - PF_PAGE_SIZE, 0, 2);
	expect_two(fake, PF_SHIM_NOT_RAM, PF_SHIM_DIFFERENT);
	fake_fuse(fake, end - PF_PAGE_SIZE, 0, 2);
	expect_two(fake, PF_SHIM_DIFFERENT, PF_SHIM_NOT_RAM);
	expect_untouched(fake, N_FUSED);
}

static void test_fuse_to_bad_frames(void **state)
{
	FakeService *fake = *state;
	uint64_t page = fake->blocks[0] + 200 * PF_PAGE_SIZE,
		 fused = fake->blocks[0] + FIRST * PF_PAGE_SIZE, frames = 4096;
	const RunCase cases[] = {
		{page, frames, 1, PF_SHIM_NO_FRAME},
		{page, frames - 1, 2, PF_SHIM_NO_FRAME},
		{page, UINT64_MAX, 1, PF_SHIM_NO_FRAME},
		{page, UINT64_MAX - 7, 8, PF_SHIM_NO_FRAME},
		{page, UINT64_MAX - 7, 32, PF_SHIM_NO_FRAME},
		{page, 1ull << 52, 1, PF_SHIM_NO_FRAME},
		{page, 1ull << 63, 2, PF_SHIM_NO_FRAME},
		/* Frames that are there, but of other bytes; and a hole. */
		{page, 0, 8, PF_SHIM_DIFFERENT},
		{page, 1000, 2, PF_SHIM_DIFFERENT},
		/* Fused already, to this frame or another. */
		{fused, 0, N_FUSED, PF_SHIM_NOT_PRIVATE},
		{fused, 1, 1, PF_SHIM_NOT_PRIVATE},
	};

	expect_run_results(fake, cases, COUNT(cases));
	expect_revoke(fake, 0, N_FUSED);
}

static void test_capture_outside_ram(void **state)
{
	FakeService *fake = *state;
	uint64_t block = fake->blocks[0], end = block + FAKE_BLOCK_PAGES * PF_PAGE_SIZE;
	const PfShimCapture captures[] = {
		{0, 0, 0},
		{block - PF_PAGE_SIZE, 1, 0},
		{end, 2, 0},
		{block + 1, 3, 0},
		{find_map(fake, "[heap]"), 4, 0},
		{find_map(fake, "[stack]"), 5, 0},
		{UINT64_MAX, 6, 0},
		{UINT64_MAX - 4095, 255, 0},
	};
	const PfShimCapture good[] = {{block, 0, 0}, {end - PF_PAGE_SIZE, 255, 0}};

	fake_send(fake,
		&(FakePacket){.type = PF_SHIM_CAPTURE, .data = captures, .size = sizeof(captures)});
	fake_expect_results(fake, PF_SHIM_CAPTURED, PF_SHIM_NOT_RAM, COUNT(captures));
	fake_send(fake, &(FakePacket){.type = PF_SHIM_CAPTURE, .data = good, .size = sizeof(good)});
	fake_expect_results(fake, PF_SHIM_CAPTURED, PF_SHIM_DONE, COUNT(good));
	expect_untouched(fake, N_FUSED);
}

static void test_release_of_anything(void **state)
{
	FakeService *fake = *state;
	const PfShimRange none[] = {
		{0, 0},
		{0, 1},
		{UINT64_MAX - 4095, UINT64_MAX},
		{UINT64_MAX - 4095, 1},
		{1ull << 63, 1ull << 60},
		{fake->blocks[0], 0},
		{fake->blocks[0], FIRST},
		{fake->blocks[1], UINT64_MAX},
		{fake->blocks[0] + (FIRST + N_FUSED) * PF_PAGE_SIZE, 1},
	};
	const PfShimRange two = {fake->blocks[0] + FIRST * PF_PAGE_SIZE, 2};
	const PfShimRange all = {0, UINT64_MAX};
	/* The second block may lie above the first one, or below: then its range would have everything. */
	size_t n = fake->blocks[1] > fake->blocks[0] ? COUNT(none) : COUNT(none) - 2;

	fake_send(fake,
		&(FakePacket){.type = PF_SHIM_RELEASE, .data = none, .size = n * sizeof(none[0])});
	fake_receive(fake, PF_SHIM_RELEASED, NULL);
	expect_untouched(fake, N_FUSED);
	fake_send(fake, &(FakePacket){.type = PF_SHIM_RELEASE, .data = &two, .size = sizeof(two)});
	fake_receive(fake, PF_SHIM_RELEASED, NULL);
	expect_untouched(fake, N_FUSED - 2);
	fake_send(fake, &(FakePacket){.type = PF_SHIM_RELEASE, .data = &all, .size = sizeof(all)});
	fake_receive(fake, PF_SHIM_RELEASED, NULL);
	expect_untouched(fake, 0);
}

/* Ends the connection */

static const uint8_t zeros[PF_SHIM_MAX_MESSAGE];
static const PfShimStore a_store = {.group_id = "another"};

static void expect_ends(FakeService *fake, const FakePacket *packets, size_t n)
{
	unsigned n_fds = fake_n_fds(fake);

	for (size_t i = 0; i < n; i++) {
		fake_send(fake, &packets[i]);
		expect_end_and_return(fake, packets[i].what);
	}
	/* Descriptors that came with rubbish are closed. */
	assert_int_equal(fake_n_fds(fake), n_fds);
}

static void test_bad_headers(void **state)
{
	static const FakePacket packets[] = {
		{.what = "an unknown type", .type = 0},
		{.what = "an unknown type", .type = 8},
		{.what = "an unknown type", .type = 0xffff},
		{.what = "a message of the shim's", .type = PF_SHIM_HELLO, .padding = 56},
		{.what = "a message of the shim's", .type = PF_SHIM_LISTED, .padding = 8},
		{.what = "a wrong magic", .type = PF_SHIM_LIST, .magic = 0x31534651},
		{.what = "the magic in the other byte order",
			.type = PF_SHIM_LIST,
			.magic = 0x50465331},
		{.what = "a length that is too small", .type = PF_SHIM_LIST, .length_off = -1},
		{.what = "a length of 0", .type = PF_SHIM_LIST, .length_off = -24},
		{.what = "a length that is too large", .type = PF_SHIM_LIST, .length_off = 1},
		{.what = "half a header", .type = PF_SHIM_LIST, .cut = 12},
		{.what = "one byte", .type = PF_SHIM_LIST, .cut = 23},
		{.what = "a truncated packet", .type = PF_SHIM_FUSE, .padding = 24, .cut = 1},
		{.what = "more than the longest message, which says that it is not",
			.type = PF_SHIM_LIST,
			.padding = PF_SHIM_MAX_MESSAGE,
			.length_off = -(int)sizeof(PfShimHeader)},
		{.what = "more than the longest message",
			.type = PF_SHIM_RELEASE,
			.padding = PF_SHIM_MAX_MESSAGE},
	};

	expect_ends(*state, packets, COUNT(packets));
}

static void test_bad_descriptors(void **state)
{
	static const FakePacket packets[] = {
		{.what = "a descriptor that did not come", .type = PF_SHIM_ATTACH, .n_fds_off = 1},
		{.what = "a descriptor that is not counted",
			.type = PF_SHIM_ATTACH,
			.fds = {FAKE_DEVICE},
			.n_fds_off = -1},
		{.what = "65535 descriptors", .type = PF_SHIM_LIST, .n_fds_off = -1},
		{.what = "three descriptors",
			.type = PF_SHIM_ATTACH,
			.fds = {FAKE_DEVICE, FAKE_NULL, FAKE_NULL}},
		{.what = "three descriptors, two are counted",
			.type = PF_SHIM_ATTACH,
			.fds = {FAKE_DEVICE, FAKE_NULL, FAKE_NULL},
			.n_fds_off = -1},
		{.what = "a descriptor that is neither counted nor wanted",
			.type = PF_SHIM_LIST,
			.fds = {FAKE_NULL},
			.n_fds_off = -1},
		{.what = "two descriptors, one is counted",
			.type = PF_SHIM_ATTACH,
			.fds = {FAKE_DEVICE, FAKE_NULL},
			.n_fds_off = -1},
		{.what = "ATTACH with two descriptors",
			.type = PF_SHIM_ATTACH,
			.fds = {FAKE_DEVICE, FAKE_NULL}},
		{.what = "LIST with a descriptor", .type = PF_SHIM_LIST, .fds = {FAKE_NULL}},
		{.what = "RELEASE with a descriptor", .type = PF_SHIM_RELEASE, .fds = {FAKE_STORE}},
		{.what = "ATTACH without a descriptor", .type = PF_SHIM_ATTACH},
		{.what = "STAGING without a descriptor", .type = PF_SHIM_STAGING},
		{.what = "STORE without a descriptor",
			.type = PF_SHIM_STORE,
			.data = &a_store,
			.size = sizeof(a_store)},
	};

	expect_ends(*state, packets, COUNT(packets));
}

static void test_bad_stores(void **state)
{

/* NOLINTBEGIN(bugprone-macro-parentheses): an initializer */
#define STORE(text, fd)                                                                            \
	{                                                                                          \
		.what = text, .type = PF_SHIM_STORE, .data = &a_store, .size = sizeof(a_store),    \
		.fds = { fd }                                                                      \
	}
	/* NOLINTEND(bugprone-macro-parentheses) */
	static const FakePacket packets[] = {
		STORE("an unsealed store", FAKE_STORE_UNSEALED),
		STORE("a store that can be written", FAKE_STORE_WRITABLE),
		STORE("a file as the store", FAKE_FILE),
		STORE("a pipe as the store", FAKE_PIPE),
		STORE("/dev/null as the store", FAKE_NULL),
		STORE("another store while pages are fused", FAKE_OTHER_STORE),
		{.what = "STORE without its struct", .type = PF_SHIM_STORE, .fds = {FAKE_STORE}},
		{.what = "STORE with more than its struct",
			.type = PF_SHIM_STORE,
			.padding = sizeof(a_store) + 1,
			.fds = {FAKE_STORE}},
		{.what = "an unsealed staging memfd",
			.type = PF_SHIM_STAGING,
			.fds = {FAKE_STAGING_UNSEALED}},
		{.what = "a staging memfd that is too small",
			.type = PF_SHIM_STAGING,
			.fds = {FAKE_STAGING_SMALL}},
		{.what = "a file for staging", .type = PF_SHIM_STAGING, .fds = {FAKE_FILE}},
		{.what = "a pipe for staging", .type = PF_SHIM_STAGING, .fds = {FAKE_PIPE}},
	};
#undef STORE

	expect_ends(*state, packets, COUNT(packets));
}

/* Nothing is fused and no store is there: what is refused is refused for what it is. */
static void test_bad_first_store(void **state)
{
	static const FakeFd bad[] = {
		FAKE_STORE_UNSEALED, FAKE_STORE_WRITABLE, FAKE_FILE, FAKE_PIPE, FAKE_NULL};
	FakeService *fake = *state;

	for (size_t i = 0; i < COUNT(bad); i++) {
		fake_send(fake, &(FakePacket){.type = PF_SHIM_STORE,
					.data = &a_store,
					.size = sizeof(a_store),
					.fds = {bad[i]}});
		assert_true(fake_has_ended(fake));
		assert_true(fake_accept(fake) <= SOON_MS);
		assert_int_equal(fake->hello.flags, 0);
	}
	fake_attach(fake);
	fake_publish(fake, SEED);
	fake_fuse(fake, fake->blocks[0], 0, 1);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_DONE, 1);
	expect_untouched(fake, 1);
}

static void test_bad_orders(void **state)
{
	FakeService *fake = *state;
	const uint64_t page = fake->blocks[0] + 300 * PF_PAGE_SIZE;
	/* Each with a first one that is right: nothing of a message with rubbish is carried out. */
	const PfShimRun no_pages[] = {{page, 0, 1, 0}, {page, 0, 0, 0}},
			many[] = {{page, 0, 1, 0}, {page, 0, 33, 0}},
			all[] = {{page, 0, 1, 0}, {page, 0, UINT32_MAX, 0}},
			flags[] = {{page, 0, 1, 0}, {page, 0, 1, 0x80000000u}};
	const PfShimCapture far_slot[] = {{page, PF_SHIM_MAX_CAPTURE, 0}},
			    last_slot[] = {{page, UINT32_MAX, 0}};
	const PfShimRange unaligned[] = {{1, 1}};
	const FakePacket packets[] = {
		{"a run of no pages", PF_SHIM_FUSE, no_pages, sizeof(no_pages)},
		{"a run of 33 pages", PF_SHIM_FUSE, many, sizeof(many)},
		{"a run of all pages", PF_SHIM_FUSE, all, sizeof(all)},
		{"unknown flags of a run", PF_SHIM_FUSE, flags, sizeof(flags)},
		{"no runs", PF_SHIM_FUSE, NULL, 0},
		{"half a run", PF_SHIM_FUSE, no_pages, 12},
		{"a run and a half", PF_SHIM_FUSE, no_pages, 36},
		{"513 runs", PF_SHIM_FUSE, zeros, 513 * sizeof(PfShimRun)},
		{"no pages to capture", PF_SHIM_CAPTURE, NULL, 0},
		{"a slot behind the last", PF_SHIM_CAPTURE, far_slot, sizeof(far_slot)},
		{"the slot 2^32-1", PF_SHIM_CAPTURE, last_slot, sizeof(last_slot)},
		{"half a page to capture", PF_SHIM_CAPTURE, far_slot, 8},
		{"257 pages to capture", PF_SHIM_CAPTURE, zeros, 257 * sizeof(PfShimCapture)},
		{"half a range", PF_SHIM_RELEASE, zeros, 8},
		{"a range that begins inside a page", PF_SHIM_RELEASE, unaligned,
			sizeof(unaligned)},
	};

	expect_ends(fake, packets, COUNT(packets));
}

/* Before and during ATTACH */

static void test_orders_before_attach(void **state)
{
	FakeService *fake = *state;
	const PfShimCapture capture = {fake->blocks[0], 0, 0};

	fake_fuse(fake, fake->blocks[0], 0, 3);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_STOPPED, 3);
	fake_send(fake, &(FakePacket){.type = PF_SHIM_RELEASE});
	fake_receive(fake, PF_SHIM_RELEASED, NULL);
	assert_int_equal(fake_n_listed(fake), 0);
	fake_send(fake, &(FakePacket){.type = PF_SHIM_STAGING, .fds = {FAKE_STAGING}});
	fake_send(fake,
		&(FakePacket){.type = PF_SHIM_CAPTURE, .data = &capture, .size = sizeof(capture)});
	fake_expect_results(fake, PF_SHIM_CAPTURED, PF_SHIM_STOPPED, 1);
	/* The staging memfd belongs to the connection: in the next one there is none. */
	fake_send(fake, &(FakePacket){.type = 0});
	assert_true(fake_has_ended(fake));
	assert_true(fake_accept(fake) <= SOON_MS);
	assert_int_equal(fake->hello.flags, 0);
	fake_send(fake,
		&(FakePacket){.type = PF_SHIM_CAPTURE, .data = &capture, .size = sizeof(capture)});
	assert_true(fake_has_ended(fake));
	assert_true(fake_accept(fake) <= SOON_MS);
	/* ATTACH, but no store. */
	fake_send(fake, &(FakePacket){.type = PF_SHIM_ATTACH, .fds = {FAKE_DEVICE}});
	fake_receive(fake, PF_SHIM_READY, NULL);
	fake_fuse(fake, fake->blocks[0], 0, 3);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_NO_FRAME, 3);
	expect_untouched(fake, 0);
}

static void test_attach_with_a_foreign_descriptor(void **state)
{
	static const FakeFd foreign[] = {FAKE_NULL, FAKE_PIPE, FAKE_FILE, FAKE_STORE, FAKE_STAGING};
	FakeService *fake = *state;
	const PfShimReady *ready;

	for (size_t i = 0; i < COUNT(foreign); i++) {
		fake_send(fake, &(FakePacket){.type = PF_SHIM_ATTACH, .fds = {foreign[i]}});
		ready = fake_receive(fake, PF_SHIM_READY, NULL);
		assert_int_equal(ready->code, PF_SHIM_READY_FAILED);
		assert_int_equal(ready->error, ENOTTY);
		assert_int_equal(ready->missing_features, 0);
	}
	fake_fuse(fake, fake->blocks[0], 0, 1);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_STOPPED, 1);
	/* That was no harm: with the device it works. */
	fake_attach(fake);
	fake_publish(fake, SEED + 7);
	fake_fuse(fake, fake->blocks[0] + 7 * PF_PAGE_SIZE, 0, 1);
	fake_expect_results(fake, PF_SHIM_FUSED, PF_SHIM_DONE, 1);
	expect_untouched(fake, 1);
}

/* Nobody listens, for a while; then somebody who hangs up at once. The pause grows, but not beyond bounds. */
static void test_service_that_hangs_up(void **state)
{
	FakeService *fake = *state;

	for (int i = 0; i < 5; i++) {
		unsigned ms = fake_accept(fake);

		assert_true(ms <= SOON_MS * 4);
		assert_int_equal(fake->hello.fused_pages, N_FUSED - (i > 0));
		if (i == 0)
			expect_revoke(fake, 3, N_FUSED);
	}
	expect_untouched(fake, N_FUSED - 1);
}

int main(void)
{
#define TEST(test)     cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define TEST_NEW(test) cmocka_unit_test_setup_teardown(test, set_up_new, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_fuse_outside_ram),
		TEST(test_fuse_over_the_edge),
		TEST(test_fuse_to_bad_frames),
		TEST(test_capture_outside_ram),
		TEST(test_release_of_anything),
		TEST(test_bad_headers),
		TEST(test_bad_descriptors),
		TEST(test_bad_stores),
		TEST(test_bad_orders),
		TEST_NEW(test_bad_first_store),
		TEST_NEW(test_orders_before_attach),
		TEST_NEW(test_attach_with_a_foreign_descriptor),
		TEST(test_service_that_hangs_up),
	};
#undef TEST
#undef TEST_NEW

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
