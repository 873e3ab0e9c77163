/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Some pages of a file, mapped so that nobody notices that they are looked at. */
#include <stddef.h>
#include <stdint.h>

typedef struct PfWindow {
	const uint8_t *bytes;
	size_t n_pages;
} PfWindow;

/*
 * Maps pages of a file, which is open for reading. resident has n_pages bytes, whose lowest bits say which pages
 * are in memory: no others may be touched, and these only by pf_guard_copy(). 0 or -errno.
 */
int pf_window_open(PfWindow *window, int fd, uint64_t first, size_t n_pages, uint8_t *resident);
void pf_window_close(PfWindow *window);
