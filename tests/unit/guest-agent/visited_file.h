/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A temporary file with known contents, to be visited. Needs root: page frame numbers are not for others. */
#include "guest-agent/facts.h"
#include "guest-agent/find/visit.h"

typedef struct VisitedFile {
	char path[64];
	int fd;
	PfFile *file; /* what is known of it; of class cache, so all of it counts */
	PfVisitor *visitor;
	PfFacts facts;
	uint32_t pass;
	uint64_t n_hashed; /* in the last visit */
	unsigned n_steps;  /* of the last visit */
} VisitedFile;

/* A file of n_pages, all written, with version 1. 0, or -1 where it is impossible. */
int visited_file_open(VisitedFile *v, PfSource source, unsigned n_pages);
void visited_file_close(VisitedFile *v);

/* Each page is filled with its number; its first byte is the version. */
void visited_file_write(const VisitedFile *v, unsigned first, unsigned n, uint8_t version);

/* The state met it again, with another stamp: all digests are dropped. */
void visited_file_renew(VisitedFile *v);

/* A visit, in a pass of its own; what pf_visitor_visit() returned. */
int visited_file_visit(VisitedFile *v, PfWorker *worker);

/* Takes pages out of memory: only whole windows of what is written surely go. */
void visited_file_evict(const VisitedFile *v, unsigned first, unsigned n);
void visited_file_map_resident(const VisitedFile *v, uint8_t *resident, unsigned n);
unsigned visited_file_count_resident(const VisitedFile *v, unsigned n);

/* The page is known with the digest of that version, and is where it is mapped here. */
void visited_file_assert_page(const VisitedFile *v, unsigned number, uint8_t version);
