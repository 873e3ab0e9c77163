/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What fuzz_vm.c takes in hand of the service's surroundings, by the linker (--wrap): the clocks, GLib's timers that are
 * not due at once, and whom a socket's peer is. The rest counts descriptors.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Every peer of a socket is this user. */
void vm_clock_init(uid_t peer);
/* No timer may be left. */
void vm_clock_deinit(void);

int64_t vm_clock_now_us(void);
/* Timers that are due then are dispatched by the next turns of the main loop. */
void vm_clock_pass(int64_t us);

/* The processor's time between any two looks at it. */
void vm_clock_set_cost(uint64_t us);

/* Descriptors of this process that are open. */
unsigned vm_clock_count_fds(void);
/* Waits until there are no more than n: some are closed by other threads. false: there still are. */
bool vm_clock_wait_for_fds(unsigned n);
