/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a guest and a QEMU can make the service hold, seen through the whole service. */
#include "service_rig.h"
#include "host-service/service/listing.h"
#include "tests/vmm/toy_guest.h"
#include <signal.h>

#define RAM_PAGES  512u
#define N_MESSAGES 24u
#define N_RUNS     2500u /* in each */

static const ToyGuestRange ram[] = {{{0}, RAM_PAGES}};

typedef struct Lab {
	Rig *rig;
	ToyGuest *agent;
	char *channel;
	int shim;
} Lab;

/* Messages that were put into a listing. */
static unsigned n_added;

gboolean __wrap_pf_listing_add(PfListing *listing, const PfShimRun *runs, size_t n);
gboolean __real_pf_listing_add(PfListing *listing, const PfShimRun *runs, size_t n);
gboolean __wrap_pf_listing_add_lost(PfListing *listing, const PfShimLost *lost, size_t n);
gboolean __real_pf_listing_add_lost(PfListing *listing, const PfShimLost *lost, size_t n);

gboolean __wrap_pf_listing_add(PfListing *listing, const PfShimRun *runs, size_t n)
{
	assert_false(pf_listing_is_full(listing));
	n_added++;
	return __real_pf_listing_add(listing, runs, n);
}

gboolean __wrap_pf_listing_add_lost(PfListing *listing, const PfShimLost *lost, size_t n)
{
	assert_false(pf_listing_is_full(listing));
	n_added++;
	return __real_pf_listing_add_lost(listing, lost, n);
}

static int set_up_lab(void **state)
{
	Lab *lab = g_new0(Lab, 1);
	void *rig;

	signal(SIGPIPE, SIG_IGN);
	set_up(&rig);
	lab->rig = rig;
	lab->channel = g_build_filename(lab->rig->dir, "channel", NULL);
	lab->agent = toy_guest_new(lab->channel, ram, G_N_ELEMENTS(ram));
	assert_non_null(lab->agent);
	g_strlcpy(lab->rig->domain.channel, lab->channel, sizeof lab->rig->domain.channel);
	*state = lab;
	return 0;
}

static int set_up_little_memory(void **state)
{
	int result;

	rig_memory_limit = 1;
	result = set_up_lab(state);
	rig_memory_limit = 0;
	return result;
}

static int tear_down_lab(void **state)
{
	Lab *lab = *state;
	void *rig = lab->rig;

	g_unlink(lab->channel);
	tear_down(&rig);
	toy_guest_free(lab->agent);
	g_free(lab->channel);
	g_free(lab);
	return 0;
}

static gboolean is_asked(void *userdata)
{
	const Lab *lab = userdata;

	toy_guest_handle(lab->agent);
	return is_readable(&lab->rig->fd);
}

/* The broker is asked for it as soon as the VM is known. */
static void open_channel(Lab *lab)
{
	PfBrokerRequest request = fake_broker_next(lab->rig->fd, PF_BROKER_OPEN_CHANNEL);
	PfBrokerMessage answer = {.type = PF_BROKER_ANSWER, .error = -1, .n_hvas = 1};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	g_strlcpy(address.sun_path, lab->channel, sizeof address.sun_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
	fake_broker_answer(lab->rig->fd, &request, fd);
	turn_until(is_asked, lab);
	request = fake_broker_next(lab->rig->fd, PF_BROKER_TRANSLATE);
	answer.id = request.id;
	answer.body.hvas[0].v = 0x4000000;
	fake_broker_send(lab->rig->fd, &answer, -1);
}

static void add_over_quota(const PfVmView *view, void *userdata)
{
	*(uint64_t *)userdata = view->figures.stats.over_quota;
}

static gboolean all_are_refused(void *userdata)
{
	const Lab *lab = userdata;
	uint64_t n = 0;

	toy_guest_handle(lab->agent);
	return pf_service_visit_vm(lab->rig->service, "toy", add_over_quota, &n) && n == RAM_PAGES;
}

static void test_memory_limit(void **state)
{
	PfDigest digests[RAM_PAGES] = {0};
	Lab *lab = *state;

	fake_broker_domain(lab->rig->fd, &lab->rig->domain);
	wait_for_reason(lab->rig, "");
	open_channel(lab);
	assert_true(toy_guest_module(lab->agent, 1, "libtoy.so", RAM_PAGES));
	assert_true(toy_guest_hint(lab->agent, 1, 0, (PfGfn){0}, digests, RAM_PAGES));
	turn_until(all_are_refused, lab);
}

/* It has a store, and comes back with it; it is asked for its list when the guest is located. */
static int begin_list(Lab *lab)
{
	PfBrokerRequest device;
	char channel[sizeof lab->rig->domain.channel];
	Heard store;

	memcpy(channel, lab->rig->domain.channel, sizeof channel);
	lab->rig->domain.channel[0] = 0;
	lab->shim = converse(lab->rig, ATTACHING, &device);
	say_ready(lab->shim, PF_SHIM_READY_OK);
	store = hear(lab->shim);
	assert_int_equal(store.type, PF_SHIM_STORE);
	expect(lab->shim, PF_SHIM_STAGING);
	close(lab->shim);
	wait_for_reason(lab->rig, "it has closed the connection");
	lab->shim = converse(lab->rig, RETURNING, &device);
	return_store(lab->shim, store.fd);
	close(store.fd);
	attach(lab->rig, lab->shim);
	say_ready(lab->shim, PF_SHIM_READY_OK);
	memcpy(lab->rig->domain.channel, channel, sizeof channel);
	fake_broker_domain(lab->rig->fd, &lab->rig->domain);
	open_channel(lab);
	expect(lab->shim, PF_SHIM_LIST);
	return (int)expect(lab->shim, PF_SHIM_RELEASE).id;
}

static gboolean is_writable(void *userdata)
{
	struct pollfd socket = {.fd = *(const int *)userdata, .events = POLLOUT};

	return poll(&socket, 1, 0) > 0;
}

static void say_much(int shim, PfShimType type, uint64_t id, struct iovec head, const void *data)
{
	PfShimHeader header = {PF_SHIM_MAGIC, (uint16_t)type, 0,
		(uint32_t)(sizeof header + head.iov_len + N_RUNS * sizeof(PfShimRun)), 0, id};
	struct iovec parts[] = {
		{&header, sizeof header}, head, {(void *)data, N_RUNS * sizeof(PfShimRun)}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = G_N_ELEMENTS(parts)};

	turn_until(is_writable, &shim);
	assert_int_equal(sendmsg(shim, &message, MSG_NOSIGNAL), header.length);
}

/*
 * Pages that cannot be taken over, and losses among them: more than the service keeps of a list, so that it must not
 * read on before it has worked off some, and has to read on then.
 */
static void test_long_list(void **state)
{
	g_autofree PfShimRun *runs = g_new0(PfShimRun, N_RUNS);
	g_autofree PfShimLost *lost = g_new0(PfShimLost, N_RUNS);
	PfShimListed listed = {1, N_RUNS};
	Lab *lab = *state;
	uint64_t id = (uint64_t)begin_list(lab);

	for (uint32_t i = 0; i < N_RUNS; i++) {
		runs[i] = (PfShimRun){(i + 1) * 2 * PF_PAGE_SIZE, 512, 1, 0};
		lost[i] = (PfShimLost){runs[i].hva, 512, 1, PF_SHIM_LOST_REVOKED};
	}
	n_added = 0;
	for (uint32_t i = 0; i < N_MESSAGES; i++) {
		if (i % 4 == 3)
			say_much(lab->shim, PF_SHIM_LOST, 0, (struct iovec){NULL, 0}, lost);
		else
			say_much(lab->shim, PF_SHIM_LISTED, 2,
				(struct iovec){&listed, sizeof listed}, runs);
	}
	say(lab->shim, PF_SHIM_RELEASED, id, NULL, 0);
	release(lab->shim);
	assert_int_equal(n_added, N_MESSAGES);
	attach(lab->rig, lab->shim);
	close(lab->shim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_memory_limit, set_up_little_memory, tear_down_lab),
		cmocka_unit_test_setup_teardown(test_long_list, set_up_lab, tear_down_lab),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
