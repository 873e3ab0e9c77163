/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The VM's RAM, made as QEMU makes it, and what each page must hold. A page is taken by whoever works on it, so that
 * the truth about it is never in doubt; whether it is fused meanwhile is the shim's affair.
 */
#include "tests/stress/vmm.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (2ul << 20)
#define MAX_TOLD  8u
#define N_WORDS   (PF_PAGE_SIZE / sizeof(uint64_t))

Page pages[STRESS_PAGES];
static uint8_t *blocks[2];

int pages_map_block(uint8_t *start, size_t size, int fixed)
{
	if (mmap(start, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0) != start)
		return -errno;
	madvise(start, size, MADV_MERGEABLE);
	madvise(start, size, MADV_DONTDUMP);
	madvise(start, size, MADV_HUGEPAGE);
	madvise(start, size, MADV_DONTFORK);
	return 0;
}

static uint8_t *reserve(size_t size)
{
	uint8_t *area = mmap(NULL, size + HUGE_PAGE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *start = (uint8_t *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	return area == MAP_FAILED ? NULL : start;
}

unsigned page_salt_at_first(unsigned i)
{
	if (i >= STRESS_RUN && i < STRESS_DIRECT)
		return STRESS_RUN_SALT + (i - STRESS_RUN) % STRESS_RUN_SALTS;
	if (i >= STRESS_DIRECT && i < STRESS_HIGH)
		return STRESS_DIRECT_SALT + i % STRESS_DIRECT_SALTS;
	return i % STRESS_RING_SALTS;
}

int pages_map_blocks(void)
{
	const size_t sizes[2] = {STRESS_LOW_PAGES * PF_PAGE_SIZE, STRESS_HIGH_PAGES * PF_PAGE_SIZE};

	for (unsigned i = 0; i < 2; i++) {
		int error;

		blocks[i] = reserve(sizes[i]);
		error = blocks[i] ? pages_map_block(blocks[i], sizes[i], MAP_FIXED) : -errno;
		if (error)
			return error;
		me->blocks[i] = (uintptr_t)blocks[i];
	}
	for (unsigned i = STRESS_RING; i < STRESS_PAGES; i++)
		page_fill(i, page_salt_at_first(i), 0);
	return 0;
}

uint8_t *page_address(unsigned i)
{
	return i < STRESS_HIGH ? blocks[0] + i * PF_PAGE_SIZE
			       : blocks[1] + (i - STRESS_HIGH) * PF_PAGE_SIZE;
}

uint64_t page_gfn(unsigned i)
{
	return i < STRESS_HIGH ? i : STRESS_HIGH_GFN + i - STRESS_HIGH;
}

int page_of_address(const void *address)
{
	uintptr_t at = (uintptr_t)address, low = (uintptr_t)blocks[0], high = (uintptr_t)blocks[1];

	if (at >= low && at < low + STRESS_LOW_PAGES * PF_PAGE_SIZE)
		return (int)((at - low) / PF_PAGE_SIZE);
	if (at >= high && at < high + STRESS_HIGH_PAGES * PF_PAGE_SIZE)
		return (int)(STRESS_HIGH + (at - high) / PF_PAGE_SIZE);
	return -1;
}

unsigned page_state(unsigned i)
{
	return is_vcpu_page(i) ? vcpu_state(i) : pages[i].state;
}

bool page_take(unsigned i)
{
	return !atomic_exchange(&pages[i].taken, true);
}

void page_take_wait(unsigned i)
{
	while (!page_take(i))
		sleep_us(100);
}

void page_give(unsigned i)
{
	pages[i].taken = false;
}

static void set_state(unsigned i, unsigned state)
{
	if (is_vcpu_page(i))
		vcpu_set_state(i, state);
	else
		pages[i].state = (uint8_t)state;
	pages[i].dirty = true;
}

void page_fill(unsigned i, unsigned salt, unsigned state)
{
	stress_fill(page_address(i), salt, state);
	pages[i].salt = (uint16_t)salt;
	set_state(i, state);
}

void page_wrong(unsigned i, bool lost_write, const char *format, ...)
{
	static atomic_uint told;
	char text[128];
	va_list arguments;

	atomic_fetch_add(lost_write ? &me->lost_writes : &me->wrong_bytes, 1);
	if (atomic_fetch_add(&told, 1) >= MAX_TOLD)
		return;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	fprintf(stderr, "VM %u: page %u, salt %u, state %u: %s%s\n", vm_index, i, pages[i].salt,
		page_state(i), text, lost_write ? ": a write was lost" : "");
}

/* Whether the page is what it was some steps ago. */
static bool is_older(unsigned i, const uint64_t *bytes)
{
	uint64_t expected[N_WORDS];

	for (unsigned back = 1; back < STRESS_STATES; back++) {
		stress_fill(expected, pages[i].salt,
			(page_state(i) + STRESS_STATES - back) % STRESS_STATES);
		if (memcmp(bytes, expected, PF_PAGE_SIZE) == 0)
			return true;
	}
	return false;
}

static bool is_zero(const uint64_t *words)
{
	for (unsigned k = 0; k < N_WORDS; k++)
		if (words[k] != 0)
			return false;
	return true;
}

void page_check(unsigned i)
{
	uint64_t expected[N_WORDS], found[N_WORDS];
	unsigned first = 0;

	stress_fill(expected, pages[i].salt, page_state(i));
	if (memcmp(page_address(i), expected, PF_PAGE_SIZE) == 0)
		return;
	memcpy(found, page_address(i), PF_PAGE_SIZE);
	while (first + 1 < N_WORDS && found[first] == expected[first])
		first++;
	page_wrong(i, is_older(i, found), "word %u is %#llx and not %#llx%s", first,
		(unsigned long long)found[first], (unsigned long long)expected[first],
		is_zero(found) ? ", all are zeros" : "");
	memcpy(page_address(i), expected, PF_PAGE_SIZE);
	pages[i].dirty = true;
}

static void note_stall(uint64_t ns, bool disturbed)
{
	atomic_ullong *max = disturbed ? &me->stall_disturbed_max_ns : &me->stall_max_ns;
	unsigned long long old = *max;

	if (!disturbed)
		atomic_fetch_add(&me->stalls[stress_bucket(ns)], 1);
	while (ns > old && !atomic_compare_exchange_weak(max, &old, ns))
		;
}

void page_visit(unsigned i, unsigned state)
{
	uint8_t *page = page_address(i);
	bool disturbed = me->disturbed > 0;
	uint64_t begun = now_ns(), ns;

	page_check(i);
	for (unsigned word = 0; word < STRESS_WORDS; word++) {
		uint16_t value = stress_word_value(word, state);

		if (value != stress_word_value(word, pages[i].state))
			*stress_word(page, word) = value;
	}
	ns = now_ns() - begun;
	if (ns >= STRESS_STALL_FROM_NS)
		note_stall(ns, disturbed || me->disturbed > 0);
	set_state(i, state);
	atomic_fetch_add_explicit(&me->visits, 1, memory_order_relaxed);
}
