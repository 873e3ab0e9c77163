// SPDX-License-Identifier: LGPL-2.1-or-later
/* Lines of /proc/PID/maps, and the cleaning of the names in them. */
#include "guest-agent/find/maps.h"
#include "common/page.h"
#include "common/text.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_entry(const PfMapsEntry *entry, const char *line, size_t size)
{
	char name[256];

	if (entry->start >= entry->end || entry->start % PF_PAGE_SIZE ||
		entry->end % PF_PAGE_SIZE ||
		entry->offset + (entry->end - entry->start) < entry->offset)
		abort();
	if (entry->path < line || entry->path + strlen(entry->path) > line + size)
		abort();
	if (pf_maps_wanted(entry) && (entry->path[0] != '/' || entry->writable))
		abort();
	pf_text_clean(name, sizeof(name), pf_maps_name(entry));
	for (const char *c = name; *c; c++) {
		if ((unsigned char)*c < 0x20)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *line = malloc(size + 1);
	PfMapsEntry entry;

	if (!line)
		return 0;
	if (size > 0)
		memcpy(line, data, size);
	line[size] = '\0';
	if (pf_maps_parse(line, &entry) == PF_MAPS_OK)
		check_entry(&entry, line, size);
	free(line);
	return 0;
}
