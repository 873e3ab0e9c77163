/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* One line of /proc/PID/maps. */
#include <stdbool.h>
#include <stdint.h>

enum {
	PF_MAPS_OK = 0,
	PF_MAPS_E_SYNTAX, /* no line that the kernel would write */
};

typedef struct PfMapsEntry {
	uint64_t start, end; /* bytes, page aligned, start < end */
	uint64_t offset;     /* in the file, bytes, page aligned; offset + (end - start) does not
				overflow */
	bool readable, writable, executable, shared;
	uint32_t major, minor;
	uint64_t inode;
	const char *path; /* inside the line, unescaped, without " (deleted)"; empty where there is
			     none */
} PfMapsEntry;

/* Parses a line, with or without its newline, and unescapes its path in place. PF_MAPS_OK or
 * PF_MAPS_E_SYNTAX. */
int pf_maps_parse(char *line, PfMapsEntry *entry);

/* Whether this can be a read-only or executable mapping of a regular file; what it really is,
 * fstat() must tell. */
bool pf_maps_wanted(const PfMapsEntry *entry);

/* The last component of the entry's path, inside the path. */
const char *pf_maps_name(const PfMapsEntry *entry);
