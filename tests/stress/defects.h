/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* What the linker puts in front of the shim's functions (__wrap_), and behind that the functions (__real_). */
#include "host-service/shim/core_internal.h"

void __real_pf_core_fuse(const PfShimRun *run, uint8_t *results);
void __wrap_pf_core_fuse(const PfShimRun *run, uint8_t *results);
void __real_pf_core_note_lost(const PfRamBlock *block, size_t page, size_t n, PfShimLoss loss);
void __wrap_pf_core_note_lost(const PfRamBlock *block, size_t page, size_t n, PfShimLoss loss);
int __real_pf_core_pagemap(const char *start, size_t n, uint64_t *entries);
int __wrap_pf_core_pagemap(const char *start, size_t n, uint64_t *entries);
int __real_pf_core_madvise(void *start, size_t length_bytes, int advice);
int __wrap_pf_core_madvise(void *start, size_t length_bytes, int advice);
int __real_pf_core_munmap(void *start, size_t length_bytes);
int __wrap_pf_core_munmap(void *start, size_t length_bytes);
int __real_pf_sys_madvise(void *start, size_t length, int advice);
int __wrap_pf_sys_madvise(void *start, size_t length, int advice);
int __real_pf_uffd_move(int uffd, void *dst, const void *src, size_t length, size_t *moved);
int __wrap_pf_uffd_move(int uffd, void *dst, const void *src, size_t length, size_t *moved);
int __real_pf_uffd_protect(int uffd, void *start, size_t length, uint64_t mode);
int __wrap_pf_uffd_protect(int uffd, void *start, size_t length, uint64_t mode);
