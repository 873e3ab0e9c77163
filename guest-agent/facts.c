// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * RAM is what /proc/iomem calls "System RAM" on its top level; the kernel's own image and reserved
 * stretches are indented below it and belong to it. What a driver added, such as virtio-mem, is
 * indented below its device, and the driver's name stands behind it. Ranges need not begin or end
 * with a page: they are cut inwards. A reader without CAP_SYS_ADMIN sees zeros for all addresses,
 * which leaves no range at all.
 */
#include "guest-agent/facts.h"
#include "common/log.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static void add_range(PfRam *ram, uint64_t first, uint64_t end)
{
	PfGuestRange *last = ram->n > 0 ? &ram->ranges[ram->n - 1] : NULL;

	if (first >= end || (last && first < last->first.v + last->n_pages))
		return;
	if (last && first == last->first.v + last->n_pages) {
		last->n_pages += end - first;
	} else if (ram->n < PF_SESSION_MAX_RAM_RANGES) {
		ram->ranges[ram->n++] = (PfGuestRange){{first}, end - first};
	} else {
		pf_warning("more than %d ranges of RAM: pages above are not reported",
			PF_SESSION_MAX_RAM_RANGES);
	}
}

static bool is_ram(const char *name, bool top_level)
{
	static const char by_driver[] = "System RAM (";

	return (top_level && strcmp(name, "System RAM\n") == 0) ||
	       strncmp(name, by_driver, strlen(by_driver)) == 0;
}

void pf_ram_parse(PfRam *ram, FILE *iomem)
{
	char line[256];

	*ram = (PfRam){0};
	while (fgets(line, sizeof(line), iomem)) {
		uint64_t first, last;
		int name = 0;

		if (sscanf(line, "%16" SCNx64 "-%16" SCNx64 " : %n", &first, &last, &name) != 2 ||
			name == 0 || !is_ram(line + name, line[0] != ' ') || last == UINT64_MAX)
			continue;
		add_range(ram, first / PF_PAGE_SIZE + (first % PF_PAGE_SIZE != 0),
			(last + 1) / PF_PAGE_SIZE);
	}
}

bool pf_ram_equal(const PfRam *a, const PfRam *b)
{
	if (a->n != b->n)
		return false;
	for (size_t i = 0; i < a->n; i++) {
		if (a->ranges[i].first.v != b->ranges[i].first.v ||
			a->ranges[i].n_pages != b->ranges[i].n_pages)
			return false;
	}
	return true;
}

bool pf_ram_contains(const PfRam *ram, PfGfn gfn)
{
	for (size_t i = 0; i < ram->n; i++) {
		if (gfn.v >= ram->ranges[i].first.v &&
			gfn.v - ram->ranges[i].first.v < ram->ranges[i].n_pages)
			return true;
	}
	return false;
}

int pf_facts_read_ram(PfRam *ram)
{
	FILE *iomem = fopen("/proc/iomem", "re");
	PfRam now;

	if (!iomem)
		return -errno;
	pf_ram_parse(&now, iomem);
	fclose(iomem);
	if (now.n == 0)
		return -EPERM;
	*ram = now;
	return 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int pf_boot_id_parse(const char *text, uint8_t id[16])
{
	for (size_t i = 0; i < 16; i++) {
		int high, low;

		if (i == 4 || i == 6 || i == 8 || i == 10) {
			if (*text++ != '-')
				return -EINVAL;
		}
		high = hex_digit(text[0]);
		low = high < 0 ? -1 : hex_digit(text[1]);
		if (low < 0)
			return -EINVAL;
		id[i] = (uint8_t)(high << 4 | low);
		text += 2;
	}
	return *text == '\0' || *text == '\n' ? 0 : -EINVAL;
}

static int read_boot_id(PfFacts *facts)
{
	FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
	char *line;

	if (!file)
		return -errno;
	line = fgets(facts->boot_id_text, sizeof(facts->boot_id_text), file);
	fclose(file);
	return line ? pf_boot_id_parse(facts->boot_id_text, facts->boot_id) : -EIO;
}

int pf_facts_read(PfFacts *facts)
{
	struct utsname names;
	int r;

	*facts = (PfFacts){0};
	if (sysconf(_SC_PAGESIZE) != (long)PF_PAGE_SIZE)
		return -ENOTSUP;
	r = read_boot_id(facts);
	if (r < 0)
		return r;
	if (uname(&names) < 0)
		return -errno;
	snprintf(facts->kernel, sizeof(facts->kernel), "%.64s", names.release);
	return pf_facts_read_ram(&facts->ram);
}
