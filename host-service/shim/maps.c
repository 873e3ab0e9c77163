/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The budget of maps (VMAs).
 *
 * The kernel allows a process vm.max_map_count of them, the limit L. Fusing keeps to the budget B = 3/4 L; revokes and
 * discards, which may not fail, go on to 15/16 L, and the rest is QEMU's. A piece (consecutive pages with consecutive
 * frames) costs the same two maps whatever its length, so as the budget fills only longer ones are taken. With M maps,
 * those that the piece may add counted in, it is fused when it has at least
 *
 *	1 page where M <= 1/2 B, 2 where M <= 3/4 B, 4 where M <= 7/8 B, 8 where M <= B
 *
 * pages, what is fused beside it counted in where it becomes one piece with that.
 *
 * M is counted now and then. In between it is an estimate from above: a piece that is fused and a page that is revoked
 * may each have added two. When a limit comes near it is counted anew, but not before a fifth of a second has passed
 * or the estimate may be wrong by a sixteenth of B. L is read again with it, and also when it was not for half a
 * second: it may have been lowered.
 *
 * What holds: fusing never takes the process beyond B maps; it has more only by what revokes, discards and QEMU itself
 * add, or when L is lowered. Each border between two maps in guest RAM is an end of a piece, at the same place as
 * before or at a new one, and where everything is private again the border may stay (two VMAs with different anon_vmas
 * do not merge). So with P the pieces that there were at different places, where taking pages from the middle of a
 * piece makes two of it,
 *
 *	maps_after_release <= maps_before + 2 * P
 *
 * and as a rule only what was taken from a middle leaves its two maps behind: released from its left edge, a piece
 * merges with its neighbours again.
 */
#include "host-service/shim/core_internal.h"
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t read_number(const char *path, uint64_t otherwise)
{
	char text[32];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return otherwise;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return otherwise;
	text[n] = 0;
	return strtoull(text, NULL, 10);
}

/* How full the budget may be, in eighths, for a piece of at least so many pages. */
static const struct Tier {
	unsigned eighths;
	unsigned n_pages;
} tiers[] = {{4, 1}, {6, 2}, {7, 4}, {8, 8}};

/* What one piece may add: two to stay, and two more while it is frozen. */
#define MAPS_A_PIECE 4u

#define RECOUNT_MS    200u
#define READ_LIMIT_MS 500u

static uint64_t counted PF_GUARDED, counted_ms PF_GUARDED, limit_read_ms PF_GUARDED;

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t count_maps(void)
{
	char data[8192];
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	uint64_t maps = 0;
	ssize_t n;

	if (fd < 0)
		return UINT64_MAX / 2;
	while ((n = read(fd, data, sizeof data)) > 0)
		for (ssize_t i = 0; i < n; i++)
			maps += data[i] == '\n';
	close(fd);
	return maps;
}

PF_NEEDS_LOCK static void set_maps(uint64_t maps)
{
	pf_core.maps = counted = maps;
	counted_ms = now_ms();
}

PF_NEEDS_LOCK static void read_limit(void)
{
	pf_core.maps_limit = read_number("/proc/sys/vm/max_map_count", 65530);
	pf_core.maps_budget = pf_core.maps_limit / 4 * 3;
	pf_core.maps_reserved = pf_core.maps_limit / 16;
	limit_read_ms = now_ms();
}

void pf_core_recount_maps(void)
{
	uint64_t added, maps;

	pf_core_lock();
	added = pf_core.maps_added;
	pf_core_unlock();
	maps = count_maps();
	pf_core_lock();
	/* What came in the meantime may have been counted or not. */
	set_maps(maps + (pf_core.maps_added - added));
	read_limit();
	pf_core_unlock();
}

/* Not again and again while maps are really used up. */
PF_NEEDS_LOCK static void recount_if_due(void)
{
	if (pf_core.maps_limit != 0 && now_ms() - counted_ms < RECOUNT_MS &&
		pf_core.maps - counted < pf_core.maps_budget / 16)
		return;
	set_maps(count_maps());
	read_limit();
}

PF_NEEDS_LOCK static void read_limit_if_due(void)
{
	if (pf_core.maps_limit == 0)
		recount_if_due();
	else if (now_ms() - limit_read_ms >= READ_LIMIT_MS)
		read_limit();
}

/* Of how many pages a piece must be at least that adds so many maps. */
PF_NEEDS_LOCK static size_t least_pages(uint64_t n_maps)
{
	for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++)
		if (pf_core.maps + n_maps <= pf_core.maps_budget / 8 * tiers[i].eighths)
			return tiers[i].n_pages;
	return SIZE_MAX;
}

bool pf_core_may_fuse(size_t n_pages, bool frozen)
{
	if (!frozen) {
		read_limit_if_due();
		/* Each of its pages may become a piece of its own, and then there is no time to count. */
		if (least_pages(MAPS_A_PIECE * n_pages) > 1)
			recount_if_due();
	}
	return n_pages >= least_pages(MAPS_A_PIECE);
}

bool pf_core_may_revoke_maps(void)
{
	read_limit_if_due();
	if (pf_core.maps + pf_core.maps_reserved > pf_core.maps_limit)
		recount_if_due();
	return pf_core.maps + pf_core.maps_reserved <= pf_core.maps_limit;
}

void pf_core_added_maps(unsigned n)
{
	pf_core.maps += n;
	pf_core.maps_added += n;
}
