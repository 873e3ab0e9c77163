/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the agent reads of its kernel: the text of /proc/iomem, and that of the boot id. The first byte says which;
 * with the RAM it is also the page that is looked up in it.
 */
#include "guest-agent/facts.h"
#include <stdlib.h>
#include <string.h>

#define BOOT_ID 255

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void check_ram(const PfRam *ram, PfGfn page)
{
	PfRam other = *ram;
	bool inside = false;

	require(ram->n <= PF_SESSION_MAX_RAM_RANGES);
	for (size_t i = 0; i < ram->n; i++) {
		uint64_t first = ram->ranges[i].first.v, n = ram->ranges[i].n_pages;

		require(n > 0 && first + n > first && first + n <= UINT64_MAX / PF_PAGE_SIZE + 1);
		require(i == 0 || first > ram->ranges[i - 1].first.v + ram->ranges[i - 1].n_pages);
		require(pf_ram_contains(ram, (PfGfn){first}));
		inside |= page.v >= first && page.v < first + n;
	}
	require(pf_ram_contains(ram, page) == inside);
	require(pf_ram_equal(ram, &other));
	if (ram->n > 0)
		other.ranges[ram->n - 1].n_pages++;
	else
		other.n++;
	require(!pf_ram_equal(ram, &other));
}

static void parse_ram(const uint8_t *text, size_t size, PfGfn page)
{
	FILE *file = fmemopen((void *)text, size, "r");
	PfRam ram;

	require(file != NULL);
	pf_ram_parse(&ram, file);
	fclose(file);
	check_ram(&ram, page);
}

static void parse_boot_id(const uint8_t *bytes, size_t size)
{
	char *text = malloc(size + 1);
	uint8_t id[16];

	require(text != NULL);
	memcpy(text, bytes, size);
	text[size] = '\0';
	if (pf_boot_id_parse(text, id) == 0)
		require(strlen(text) == 36 || text[36] == '\n');
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	if (data[0] == BOOT_ID)
		parse_boot_id(data + 1, size - 1);
	else
		parse_ram(data + 1, size - 1, (PfGfn){data[0]});
	return 0;
}
