/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Trust groups. Who has the flag shares with whoever has it too and is of the same group, by what the definition says,
 * and no page of memory is a frame of two groups'; by the kernel's word. A QEMU that lies about what it has reaches
 * neither another group's frames nor its numbers.
 */
#include "common/page.h"
#include "host-service/broker/domain_xml.h"
#include "tests/security/honest.h"
#include "tests/security/hostile.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define UNUSED ((uint64_t)1 << 21) /* a frame number that no group has come to */

static int set_up(void **state)
{
	*state = lab_new(false);
	return 0;
}

static int tear_down(void **state)
{
	lab_free(*state);
	return 0;
}

/* The matrix */

#define FLAG(attributes) "<pf:pagefusion xmlns:pf='" PF_DOMAIN_XMLNS "'" attributes "/>"

typedef struct Place {
	const char *name, *flag; /* in the definition's metadata */
	int group;               /* the VM shares with those of the same one; 0: with nobody */
} Place;

static const Place places[] = {
	{"off", "", 0},
	{"off-too", "", 0},
	{"plain", FLAG(""), 1},
	{"plain-too", FLAG(""), 1},
	{"one", FLAG(" group='one'"), 2},
	{"one-too", FLAG(" group='one'"), 2},
	{"two", FLAG(" group='two'"), 3},
	{"alone", FLAG(" group='One'"), 4},
};
static_assert(G_N_ELEMENTS(places) <= LAB_MAX_VMS, "room");

static void define(const Place *place, PfDomain *domain)
{
	g_autofree char *text = g_strdup_printf(
		"<domain type='kvm'><name>vm</name><metadata>%s</metadata></domain>", place->flag);
	g_autoptr(PfDomainXml) xml = pf_domain_xml_new(text, NULL);
	g_autofree char *group = NULL;

	assert_non_null(xml);
	group = pf_domain_xml_group(xml);
	assert_non_null(group);
	domain->enabled = pf_domain_xml_has_flag(xml);
	g_strlcpy(domain->group, group, sizeof(domain->group));
}

static void define_by_name(PfDomain *domain)
{
	for (size_t i = 0; i < G_N_ELEMENTS(places); i++)
		if (strcmp(places[i].name, domain->name) == 0)
			define(&places[i], domain);
}

static LabVm *start_place(Lab *lab, const Place *place)
{
	LabVm *vm = lab_start_vm(lab, place->name, "to be defined");

	lab_ok(vm, "fill %u %u %u", HONEST_FIRST, HONEST_PAGES, HONEST_SEED);
	lab_announce_changed(vm, define_by_name);
	if (place->group == 0)
		return vm;
	lab_wait_for_session(vm);
	honest_report(vm);
	return vm;
}

/* Every page of every VM, not only those that were hinted. */
static void expect_no_frame_in_common(LabVm *a, LabVm *b)
{
	g_autoptr(GHashTable) pfns = g_hash_table_new(NULL, NULL);

	for (uint64_t i = 0; i < LAB_LOW_PAGES + LAB_HIGH_PAGES; i++) {
		uint64_t gfn = i < LAB_LOW_PAGES ? i : LAB_HIGH + i - LAB_LOW_PAGES;

		g_hash_table_add(pfns, GSIZE_TO_POINTER(lab_file_pfn(a, gfn)));
	}
	g_hash_table_remove(pfns, NULL);
	for (uint64_t i = 0; i < LAB_LOW_PAGES + LAB_HIGH_PAGES; i++) {
		uint64_t gfn = i < LAB_LOW_PAGES ? i : LAB_HIGH + i - LAB_LOW_PAGES;

		if (g_hash_table_contains(pfns, GSIZE_TO_POINTER(lab_file_pfn(b, gfn))))
			fail_msg("%s and %s map one frame", a->name, b->name);
	}
}

static void test_matrix(void **state)
{
	Lab *lab = *state;
	LabVm *vms[G_N_ELEMENTS(places)];

	for (size_t i = 0; i < G_N_ELEMENTS(places); i++)
		vms[i] = start_place(lab, &places[i]);
	/* Whoever has no flag could be spoken with by now, if anybody did. */
	for (size_t i = 0; i < G_N_ELEMENTS(places); i++)
		if (places[i].group == 0 && strcmp(lab_command(vms[i], "session"), "yes") == 0)
			honest_report(vms[i]);
	/* Two groups of two. */
	honest_wait_for_shared(lab, 2 * HONEST_PAGES);
	lab_turn(lab, 300);
	assert_int_equal(honest_stats(lab).shared, 2 * HONEST_PAGES);
	for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
		if (places[i].group == 0 || places[i].group > 2)
			assert_int_equal(lab_count_file_pages(vms[i]), 0);
		for (size_t j = 0; j < i; j++)
			if (places[i].group != 0 && places[i].group == places[j].group)
				assert_true(honest_share(vms[i], vms[j]));
			else
				expect_no_frame_in_common(vms[i], vms[j]);
		honest_check(vms[i]);
	}
}

static bool has_no_frame(void *userdata)
{
	return lab_count_file_pages(userdata) == 0;
}

static void turn_off(PfDomain *domain)
{
	domain->enabled = FALSE;
}

/* Without its flag a VM shares nothing any more; of another group it is only when it is started anew. */
static void test_changed_while_it_runs(void **state)
{
	Lab *lab = *state;
	LabVm *a = honest_start(lab, "a", "one"), *b = honest_start(lab, "b", "one"),
	      *c = honest_start(lab, "c", "one");

	honest_report(a);
	honest_report(b);
	honest_report(c);
	honest_wait_for_shared(lab, 2 * HONEST_PAGES);
	g_strlcpy(b->group, "two", sizeof(b->group));
	lab_announce(b);
	lab_announce_changed(c, turn_off);
	assert_true(lab_wait(lab, has_no_frame, c));
	honest_wait_for_shared(lab, HONEST_PAGES);
	assert_true(honest_share(a, b));
	honest_check(c);
}

/* A store in the wrong hands */

static struct stat status_of(int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	return status;
}

static LabVm *start_hostile(
	Lab *lab, const char *name, const char *group, int returned, HostileShim *shim)
{
	LabVm *vm = lab_start_bare_vm(lab, name, group);

	lab_announce(vm);
	hostile_get_ready(vm, returned, shim);
	return vm;
}

/*
 * A QEMU of group one has given its store to one of group two. What it reads there is what group one's QEMU could have
 * told it anyway. It hands it to the service as its own: before its group has a store, and when it has one.
 */
static void test_store_of_another_group(void **state)
{
	Lab *lab = *state;
	LabVm *a = honest_start(lab, "a", "one"), *b = honest_start(lab, "b", "one"), *c, *d;
	HostileShim giver, first, second;
	uint64_t allocated;

	start_hostile(lab, "giver", "one", -1, &giver);
	honest_report(a);
	honest_report(b);
	honest_wait_for_shared(lab, HONEST_PAGES);
	allocated = (uint64_t)status_of(giver.store).st_blocks;
	/* hostile_get_ready() sees that it is told to release everything. */
	start_hostile(lab, "first", "two", giver.store, &first);
	start_hostile(lab, "second", "two", giver.store, &second);
	assert_int_equal(status_of(first.store).st_ino, status_of(second.store).st_ino);
	assert_int_not_equal(status_of(first.store).st_ino, status_of(giver.store).st_ino);
	/* Group two's frames are made in its own store. */
	c = honest_start(lab, "c", "two");
	d = honest_start(lab, "d", "two");
	honest_report(c);
	honest_report(d);
	honest_wait_for_shared(lab, 2 * HONEST_PAGES);
	assert_true(honest_share(c, d));
	expect_no_frame_in_common(a, c);
	assert_int_equal(status_of(giver.store).st_blocks, allocated);
	honest_check(a);
	honest_check(b);
	hostile_close(&giver);
	hostile_close(&first);
	hostile_close(&second);
}

/* Numbers of frames that it does not have */

static uint64_t first_frame(int store)
{
	off_t at = lseek(store, 512 * PF_PAGE_SIZE, SEEK_DATA);

	assert_true(at > 0);
	return (uint64_t)at >> PF_PAGE_SHIFT;
}

/* Two of group one share; a hostile one of group two is ready. Group one's frames are as they were, and so are numbers. */
typedef struct Pair {
	Lab *lab;
	LabVm *a, *b, *evil;
	HostileShim one, two;
	uint64_t frame; /* group one's first */
} Pair;

static Pair start_pair(Lab *lab)
{
	Pair pair = {
		.lab = lab, .a = honest_start(lab, "a", "one"), .b = honest_start(lab, "b", "one")};

	start_hostile(lab, "friend", "one", -1, &pair.one);
	honest_report(pair.a);
	honest_report(pair.b);
	honest_wait_for_shared(lab, HONEST_PAGES);
	pair.frame = first_frame(pair.one.store);
	pair.evil = start_hostile(lab, "evil", "two", -1, &pair.two);
	lab_wait_for_session(pair.evil);
	return pair;
}

static void end_pair(Pair *pair)
{
	assert_int_equal(honest_stats(pair->lab).shared, HONEST_PAGES);
	assert_int_equal(honest_stats(pair->lab).frames, HONEST_PAGES);
	assert_int_equal(honest_stats(pair->lab).freed, 0);
	assert_true(honest_share(pair->a, pair->b));
	honest_check(pair->a);
	honest_check(pair->b);
	hostile_close(&pair->one);
	hostile_close(&pair->two);
}

static void test_lost_frames_of_another_group(void **state)
{
	Pair pair = start_pair(*state);
	PfShimLost lost = {pair.evil->blocks[0] + HONEST_FIRST * PF_PAGE_SIZE, pair.frame, 1,
		PF_SHIM_LOST_REVOKED};

	assert_true(hostile_say(pair.two.fd, PF_SHIM_LOST, 0, &lost, sizeof(lost), -1, 0));
	hostile_expect_end(pair.lab, pair.two.fd, "frames of another group lost");
	end_pair(&pair);
}

/* It comes back with its own store and says that it maps these. Whatever is not its own it is told to release. */
static void expect_refused_list(Pair *pair, const PfShimRun *run)
{
	struct {
		PfShimListed listed;
		PfShimRun run;
	} list = {{0, 1}, *run};
	const PfShimReady ready = {.code = PF_SHIM_READY_OK};
	static HostileMessage message;
	const PfShimRange *refused = (const PfShimRange *)message.data;
	const PfShimStore store = {0};
	int fd = hostile_connect(pair->evil);
	uint64_t barrier;

	hostile_hello(fd, PF_SHIM_HAS_STORE, run->n_pages);
	assert_true(hostile_say(
		fd, PF_SHIM_STORE_RETURN, 0, &store, sizeof(store), pair->two.store, 1));
	hostile_expect(pair->lab, fd, PF_SHIM_ATTACH, &message);
	close(message.fd);
	hostile_say(fd, PF_SHIM_READY, message.header.id, &ready, sizeof(ready), -1, 0);
	hostile_expect(pair->lab, fd, PF_SHIM_LIST, &message);
	assert_true(hostile_say(fd, PF_SHIM_LISTED, message.header.id, &list, sizeof(list), -1, 0));
	hostile_expect(pair->lab, fd, PF_SHIM_RELEASE, &message);
	barrier = message.header.id;
	assert_true(hostile_say(fd, PF_SHIM_RELEASED, barrier, NULL, 0, -1, 0));
	hostile_expect(pair->lab, fd, PF_SHIM_RELEASE, &message);
	assert_int_equal(message.size, sizeof(*refused));
	assert_int_equal(refused->hva, run->hva);
	assert_int_equal(refused->n_pages, run->n_pages);
	assert_true(hostile_say(fd, PF_SHIM_RELEASED, message.header.id, NULL, 0, -1, 0));
	hostile_expect(pair->lab, fd, PF_SHIM_STAGING, &message);
	close(message.fd);
	close(fd);
}

static void test_listed_frames_of_another_group(void **state)
{
	Pair pair = start_pair(*state);
	uint64_t hva = pair.evil->blocks[0] + HONEST_FIRST * PF_PAGE_SIZE;
	/* Frames of group one, the label and the members of its own store, numbers that nobody has. */
	const PfShimRun runs[] = {{hva, pair.frame, HONEST_PAGES, 0}, {hva, 0, 2, 0},
		{hva, UNUSED, 3, 0},
		/* Addresses that are not its RAM's, or nobody's. */
		{pair.a->blocks[0], pair.frame, 1, 0}, {0, pair.frame, 1, 0},
		{1ull << 63, pair.frame, 1, 0}};

	for (size_t i = 0; i < G_N_ELEMENTS(runs); i++)
		expect_refused_list(&pair, &runs[i]);
	end_pair(&pair);
}

/* A hint asks for a group's frames by their digest; group two has none, so the one VM that it has shares with nobody. */
static void test_hints_of_another_groups_pages(void **state)
{
	Pair pair = start_pair(*state);
	LabVm *c = honest_start(pair.lab, "c", "two");

	honest_report(c);
	lab_turn(pair.lab, 500);
	assert_int_equal(lab_count_file_pages(c), 0);
	honest_check(c);
	end_pair(&pair);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_matrix),
		TEST(test_changed_while_it_runs),
		TEST(test_store_of_another_group),
		TEST(test_lost_frames_of_another_group),
		TEST(test_listed_frames_of_another_group),
		TEST(test_hints_of_another_groups_pages),
	};
#undef TEST

	if (access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this kernel has no /dev/userfaultfd\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
