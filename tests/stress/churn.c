/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What QEMU does to its memory beside the guest: discards (balloon), unplugged and plugged memory, children. Discarded
 * pages must be zeros, and then are filled again as they were first, all in a stretch, so that runs come together.
 */
#include "host-service/shim/core.h"
#include "tests/stress/vmm.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_STRETCH 40u

static bool is_zero(const uint8_t *page)
{
	static const uint8_t zeros[PF_PAGE_SIZE];

	return memcmp(page, zeros, PF_PAGE_SIZE) == 0;
}

static void refill(unsigned i)
{
	pages[i].renew = false;
	page_fill(i, page_salt_at_first(i), 0);
}

/* Takes a page that may be discarded. */
static bool take(unsigned i)
{
	if (!page_take(i))
		return false;
	if (!pages[i].pinned)
		return true;
	page_give(i);
	return false;
}

/* Pages that are taken and lie one after the other. */
static void discard_taken(unsigned first, unsigned n)
{
	if (madvise(page_address(first), n * PF_PAGE_SIZE, MADV_DONTNEED) < 0)
		/* Only where there is neither a map nor memory: nothing has changed then. */
		return;
	for (unsigned i = first; i < first + n; i++) {
		if (!is_zero(page_address(i)))
			page_wrong(i, false, "discarded and not zeros");
		refill(i);
	}
	atomic_fetch_add(&me->discards, n);
}

static void discard(unsigned first, unsigned n)
{
	bool is_vcpu = is_vcpu_page(first);
	unsigned taken = 0;

	if (is_vcpu)
		vcpu_lock();
	while (taken < n && first + taken < STRESS_PAGES && first + taken != STRESS_VCPU_END &&
		first + taken != STRESS_HIGH && take(first + taken))
		taken++;
	if (taken > 0)
		discard_taken(first, taken);
	for (unsigned i = first; i < first + taken; i++)
		page_give(i);
	if (is_vcpu)
		vcpu_unlock();
}

static void discard_somewhere(StressRandom *random)
{
	discard(STRESS_RING + stress_below(random, STRESS_PAGES - STRESS_RING),
		1 + stress_below(random, MAX_STRETCH));
}

/* Pages that the shim will never fuse again as they are, in stretches. */
static void renew(void)
{
	for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++) {
		unsigned n = 0;

		while (i + n < STRESS_PAGES && pages[i + n].renew)
			n++;
		if (n > 0)
			discard(i, n);
		i += n;
	}
}

/*
 * Not while memory is short: our pages are shared with the child then, and where the kernel writes to one by itself (the
 * restartable sequences of a thread) and gets no page, it ends the process.
 */
static void make_child(StressRandom *random)
{
	bool executes = stress_below(random, 2) == 0;
	pid_t child = -1;

	me->children++;
	if (me->disturbed == 0)
		child = fork();

	if (child == 0) {
		if (executes)
			execl("/bin/true", "true", NULL);
		_exit(0);
	}
	if (child > 0) {
		waitpid(child, NULL, 0);
		me->forks++;
	}
	me->children--;
}

/* Unplugs the high block: by giving up its addresses, or by putting something else there. And plugs it again. */
static void replug(StressThread *thread, StressRandom *random)
{
	const size_t size = STRESS_HIGH_PAGES * PF_PAGE_SIZE;
	uint8_t *start = page_address(STRESS_HIGH);
	bool gives_up = stress_below(random, 2) == 0;

	for (unsigned i = STRESS_HIGH; i < STRESS_PAGES; i++)
		page_take_wait(i);
	/* While there are no maps all of these fail; and somebody else may be where nothing is, for a moment. */
	while (gives_up ? munmap(start, size) < 0
			: mmap(start, size, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
				  0) == MAP_FAILED)
		sleep_us(500);
	sleep_us(stress_below(random, 5000));
	while (pages_map_block(start, size, gives_up ? MAP_FIXED_NOREPLACE : MAP_FIXED) != 0)
		sleep_us(500);
	for (unsigned i = STRESS_HIGH; i < STRESS_PAGES; i++) {
		if (!is_zero(page_address(i)))
			page_wrong(i, false, "plugged and not zeros");
		refill(i);
		page_give(i);
	}
	beat(thread);
	atomic_fetch_add(&me->plugs, 1);
}

/* As the service orders it, which it hardly ever does: of a few pages, seldom of everything. */
static void release(StressRandom *random)
{
	unsigned first = STRESS_RING + stress_below(random, STRESS_PAGES - STRESS_RING);
	bool all = stress_below(random, 16) == 0;

	pf_core_release((PfHva){all ? 0 : (uintptr_t)page_address(first)},
		all ? UINT64_MAX : 1 + stress_below(random, 64));
	for (unsigned i = all ? STRESS_RING : first; i < STRESS_PAGES && (all || i < first + 64);
		i++)
		pages[i].dirty = true;
	me->releases++;
}

/* As when QEMU uses a userfaultfd itself for a moment. */
static void step_aside(StressRandom *random)
{
	PfShimState state;

	pf_core_step_aside();
	sleep_us(stress_below(random, 10000));
	pf_core_state(&state, false);
	if (state.fused_pages > 0)
		page_wrong(0, false, "something is fused while the shim is aside");
	pf_core_come_back();
	for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++)
		pages[i].dirty = true;
	me->asides++;
}

/* Pages that nobody writes to are seen here. */
static void check_some(StressRandom *random)
{
	for (unsigned n = 8; n > 0; n--) {
		unsigned i = STRESS_RING + stress_below(random, STRESS_PAGES - STRESS_RING);

		if (is_vcpu_page(i) || !page_take(i))
			continue;
		page_check(i);
		page_give(i);
	}
}

static void churn(StressThread *thread, StressRandom *random)
{
	while (!stopping) {
		unsigned what = stress_below(random, 32);

		if (what < 16)
			discard_somewhere(random);
		else if (what < 21)
			renew();
		else if (what < 25)
			make_child(random);
		else if (what < 28)
			release(random);
		else if (role == STRESS_ROLE_LIAR && what < 31)
			replug(thread, random);
		else if (role == STRESS_ROLE_LIAR)
			step_aside(random);
		check_some(random);
		beat(thread);
		sleep_us(stress_below(random, 60000));
	}
}

void churn_start(void)
{
	thread_start("churn", churn);
}
