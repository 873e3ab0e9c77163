/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* One file (or block device, or the kernel's image) and its pages whose digests are known. No I/O. */
#include "common/page.h"
#include "guest-agent/find/ranges.h"
#include "proto/limits.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* No page: frame 0 holds no page of a file. */
#define PF_NO_GFN ((PfGfn){0})

/* Why a page is worth sharing; each class is a switch of the configuration. */
typedef enum PfPageClass {
	PF_CLASS_MAPPED,  /* r and rx mappings of files */
	PF_CLASS_CACHE,   /* resident page cache of system files that nobody maps */
	PF_CLASS_BUFFERS, /* page cache of block devices: metadata of file systems */
	PF_CLASS_KERNEL,  /* the kernel's code and read-only data */
	PF_N_CLASSES,
} PfPageClass;

/* Name of a class as configuration and status write it. */
const char *pf_page_class_name(PfPageClass class);

/* Whether the bytes of its pages change without notice: only two looks can tell which hold still. */
bool pf_page_class_is_volatile(PfPageClass class);

typedef enum PfSource { PF_SOURCE_FILE, PF_SOURCE_BLOCK_DEVICE, PF_SOURCE_KERNEL } PfSource;

typedef struct PfFileKey {
	PfSource source;
	dev_t device; /* of a file its file system's, of a block device its own, of the kernel 0 */
	ino_t inode;  /* 0 but for files */
} PfFileKey;

/* A file is the same as long as these do not change. Of other sources: times are 0. */
typedef struct PfFileStamp {
	int64_t size; /* bytes */
	struct timespec mtime, ctime;
} PfFileStamp;

/* Below 0, 0 or above 0: an order of them. */
int pf_file_key_compare(const PfFileKey *a, const PfFileKey *b);

bool pf_file_stamp_equal(const PfFileStamp *a, const PfFileStamp *b);

/* Where the host thinks that a page is. */
enum { PF_TOLD_NOTHING = 0, PF_TOLD_HERE, PF_TOLD_ELSEWHERE };

/* A page whose digest is known: 44 bytes, and there are 100,000 of them. */
typedef struct __attribute__((packed, aligned(4))) PfFilePage {
	uint64_t gfn : 40; /* where it was when it was looked at last, or 0: not resident */
	uint64_t told : 2;
	uint64_t steady : 1; /* its digest held still since the pass before, or cannot change */
	uint64_t since : 21; /* low bits of the pass that found this digest first */
	uint32_t file_page;
	PfDigest digest;
} PfFilePage;

_Static_assert(sizeof(PfFilePage) == 44, "a page costs what the agent's memory was planned for");

/* A page as a look found it. */
typedef struct PfObserved {
	PfGfn gfn; /* below 2^40 */
	uint32_t file_page;
	PfDigest digest;
} PfObserved;

typedef struct PfFile {
	PfFileKey key;
	PfFileStamp stamp;
	char *name; /* owned; as pf_text_clean() leaves it, at most PF_SESSION_MAX_NAME bytes */
	uint8_t *build_id;     /* owned */
	uint64_t n_pages;      /* its length, rounded up */
	uint64_t n_reportable; /* pages that the host is to know */

	PfFilePage *pages; /* ascending, owned */
	uint32_t n, capacity;
	uint32_t n_idle; /* of them not resident */

	uint32_t module_id;    /* valid when declared */
	bool declared;         /* the host has it under module_id */
	bool outdated;         /* it changed since: to be declared again */
	bool dirty;            /* the host was not told everything */
	uint8_t build_id_size; /* 0: none */
	uint8_t restlessness;  /* grows with its changes, up to 5 */
	uint8_t rest_due;      /* passes that have to see it unchanged before it is looked at */
	uint8_t rested;        /* passes that saw it unchanged since a change was forgotten */
	bool mapped_cut;       /* the pass that collected `mapped` was given up: some may lack */

	bool classes[PF_N_CLASSES];  /* that it is of */
	uint32_t seen[PF_N_CLASSES]; /* pass in which it was seen last */
	uid_t owner;                 /* when it was new or changed last */
	PfPageRanges mapped;         /* what processes map of it; normalised by pf_file_cover() */
	PfPageRange whole;           /* all its pages */
	int fd;                      /* while a pass of the mappings holds it open, or -1; owned */
} PfFile;

/* NULL without memory. */
PfFile *pf_file_new(const PfFileKey *key);
void pf_file_free(PfFile *file);

/*
 * The file is new or changed: its digests and its build-id are dropped, and if the host knows it, it is to be
 * declared again. 0, or -ENOMEM: then nothing changed. name need not be clean.
 */
int pf_file_renew(PfFile *file, const PfFileStamp *stamp, const char *name);

/* It was renewed because it changed: if that is not the first time lately, it becomes restless. */
void pf_file_stir(PfFile *file);

/* It was seen unchanged in one more pass. Whether it is restless no longer, as of now. */
bool pf_file_rest(PfFile *file);

/* Whether it has to rest before anything of it is looked at. */
bool pf_file_is_restless(const PfFile *file);

/* 0 or -ENOMEM. size is at most PF_SESSION_MAX_BUILD_ID. */
int pf_file_set_build_id(PfFile *file, const uint8_t *id, size_t size);

/* Whether the bytes of its pages change without its stamp, as those of volatile classes do: then all are hashed in
 * each pass, and those are reported whose digests held still between two. */
bool pf_file_is_volatile(const PfFile *file);

/* It is of a class, and was seen in this pass. */
void pf_file_join(PfFile *file, PfPageClass class, uint32_t pass);

/* It is of a class no longer; pf_file_trim() is left to do. */
void pf_file_leave(PfFile *file, PfPageClass class);

/* The class that it counts for, the first that it is of; PF_N_CLASSES: of none. */
PfPageClass pf_file_class(const PfFile *file);

/* What is to be looked at: all of it, or what is mapped where that is its only class, or nothing while it is restless.
 * The ranges are normalised and belong to the file, valid until it changes; *n of them. */
const PfPageRange *pf_file_cover(PfFile *file, size_t *n);

/* The page of that number with its digest, or NULL when the digest is not known. */
const PfFilePage *pf_file_find(const PfFile *file, uint64_t file_page);

/* Whether the host is to know the page. */
bool pf_file_page_reportable(const PfFilePage *page);

/* Whether the host has to hear of the page: that it is there, or that it is there no longer. */
bool pf_file_page_untold(const PfFilePage *page);

/*
 * The observed pages, ascending, are all that is resident of the pages [first, first + n_pages).
 * Digests of the others are kept. A page of a volatile file is steady when its digest is that of an
 * earlier pass, which is known from pf_file_join(). 0, or -ENOMEM: then nothing changed.
 */
int pf_file_commit(
	PfFile *file, uint64_t first, uint64_t n_pages, const PfObserved *observed, size_t n);

/* Pages outside of what is to be looked at are not reported any longer. */
void pf_file_trim(PfFile *file);

/* Drops the digests of pages that are not resident and of which the host has nothing to hear. */
void pf_file_forget_idle(PfFile *file);

/* The host knows nothing of it. */
void pf_file_forget_told(PfFile *file);

/* Gives back memory, when much of it is unused. */
void pf_file_shrink(PfFile *file);
