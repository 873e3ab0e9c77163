/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What root sees of a process from outside, in /proc. Whatever is not as it is to be ends the test. */
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A file of /proc/PID. */
char *inspect_read(pid_t pid, const char *name);

/* The rest of the line of /proc/PID/status that begins with "FIELD:", without the blanks around it. */
char *inspect_status(pid_t pid, const char *field);
uint64_t inspect_capabilities(pid_t pid, const char *set);

/* What the kernel has drawn for the program: the stack canary and the pointer guard are made of it. */
#define INSPECT_RANDOM 16
void inspect_random(pid_t pid, uint8_t random[INSPECT_RANDOM]);

/* Where the first mapping lies whose name ends so. */
uint64_t inspect_address(pid_t pid, const char *name);

/* All that pf_sandbox_enter() gives up. */
void inspect_is_sandboxed(pid_t pid, uid_t uid, gid_t gid, uint64_t memory_limit);

/* What pf_sandbox_keep_capabilities() leaves: these (bits), and nothing that is executed gets more. */
void inspect_has_only(pid_t pid, uint64_t capabilities);
