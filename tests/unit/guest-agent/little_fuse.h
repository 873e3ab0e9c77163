/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A file system whose server is this process and does as it is told: it can keep silent. It has one file, each page
 * of which is filled with its number. Needs root and a mount namespace of one's own (little_fuse_enter()).
 */
#include <stdint.h>

typedef struct LittleFuse LittleFuse;

/* Nothing that is mounted from here on outlives this process, or is seen by others. */
void little_fuse_enter(void);

LittleFuse *little_fuse_new(unsigned n_pages);

/* Ends the server: what waits for it gets an error. */
void little_fuse_free(LittleFuse *fuse);

const char *little_fuse_directory(const LittleFuse *fuse);
const char *little_fuse_file(const LittleFuse *fuse); /* the path of the file */

/* From now on requests of that kind (FUSE_OPEN...; 0 for none) are not answered; the worker's clock hears of each. */
void little_fuse_hold(LittleFuse *fuse, uint32_t opcode);

/* Answers the last request that was not. */
void little_fuse_release(LittleFuse *fuse);

/* From now on the file cannot be read: EIO. */
void little_fuse_fail(LittleFuse *fuse);

/* Requests that the server has read. */
unsigned little_fuse_requests(LittleFuse *fuse);
