/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The budget of maps (VMAs). They are counted now and then; in between the count is an estimate
 * from above, because every piece that is fused and every page that is revoked may cost two.
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

uint64_t pf_core_count_maps(void)
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

void pf_core_set_maps(uint64_t maps)
{
	pf_core.maps = maps;
	pf_core.maps_limit = read_number("/proc/sys/vm/max_map_count", 65530);
	pf_core.maps_budget = pf_core.maps_limit / 4 * 3;
	pf_core.maps_reserved = pf_core.maps_limit / 16;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The estimate has reached a limit: counts anew, but not again and again while maps are really used
 * up. */
static void recount_maps(void)
{
	static uint64_t counted_ms;

	if (pf_core.maps_limit != 0 && now_ms() - counted_ms < 200)
		return;
	pf_core_set_maps(pf_core_count_maps());
	counted_ms = now_ms();
}

bool pf_core_may_add_maps(unsigned n)
{
	if (pf_core.maps + n > pf_core.maps_budget)
		recount_maps();
	return pf_core.maps + n <= pf_core.maps_budget;
}

bool pf_core_may_revoke_maps(void)
{
	if (pf_core.maps + pf_core.maps_reserved > pf_core.maps_limit)
		recount_maps();
	return pf_core.maps + pf_core.maps_reserved <= pf_core.maps_limit;
}

void pf_core_added_maps(unsigned n)
{
	pf_core.maps += n;
}
