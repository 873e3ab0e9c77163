/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process that treats memory as QEMU does, with a guest that does nothing by itself. `toy_vmm
 * CHANNEL` listens at CHANNEL for the host, lays out two RAM blocks, and obeys lines on standard
 * input; each is answered by one line:
 *
 *   where                       the two blocks' addresses
 *   fill GFN N SEED             contents by seed, SEED for the first page, SEED+1 for the next...
 *   check GFN N SEED            "ok", or "bad GFN" for the first page that differs
 *   zero GFN N                  "ok", or "bad GFN" for the first page that is not zeros
 *   write GFN OFFSET VALUE      one byte
 *   read GFN OFFSET             one byte
 *   discard GFN N               MADV_DONTNEED
 *   maps                        lines of /proc/self/maps
 *   fork                        a child that has no RAM and ends at once; its exit status
 *   preload                     what LD_PRELOAD is now
 *   session                     "yes" when the host has opened one
 *   module ID NAME N
 *   hint ID FILE_PAGE GFN N     with the digests of what is there
 *   lie ID FILE_PAGE GFN N      with digests of something else; GFN need not be RAM
 *   rubbish                     bytes on the channel that are no frame
 *   flood KIND N                answered at once; then the guest floods its channel (toy_flood.h)
 *   shim KIND                   for a VMM that has no shim: one of its own (toy_shim.h)
 *   asked                       how many orders that one has got
 *   connect self|child          a connection to the shims' socket, made by this process or by a child of it that
 *                               goes on; its descriptor, that the test takes from here
 *   channel                     the descriptor of the channel's connection
 *   exit
 */
#include "common/digest.h"
#include "tests/vmm/toy_flood.h"
#include "tests/vmm/toy_guest.h"
#include "tests/vmm/toy_shim.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_BLOCKS    2u
#define HUGE_PAGE   (2ul << 20)
#define MAX_DIGESTS 4096u

static const ToyGuestRange ranges[N_BLOCKS] = {{{0}, 1024}, {{0x100000}, 512}};
static uint8_t *blocks[N_BLOCKS];
static ToyGuest *guest;
static PfHasher *hasher;

static uint8_t *map_block(size_t size)
{
	size_t reserve = size + HUGE_PAGE + PF_PAGE_SIZE;
	uint8_t *area =
		mmap(NULL, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *start = (uint8_t *)(((uintptr_t)area + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	if (area == MAP_FAILED || mmap(start, size, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
					  -1, 0) == MAP_FAILED)
		return NULL;
	if (start > area)
		munmap(area, (size_t)(start - area));
	munmap(start + size + PF_PAGE_SIZE,
		(size_t)(area + reserve - (start + size + PF_PAGE_SIZE)));
	madvise(start, size, MADV_MERGEABLE);
	madvise(start, size, MADV_DONTDUMP);
	madvise(start, size, MADV_HUGEPAGE);
	return madvise(start, size, MADV_DONTFORK) == 0 ? start : NULL;
}

/* Where n pages from gfn on lie, or NULL. */
static uint8_t *pages_at(uint64_t gfn, uint64_t n)
{
	for (size_t i = 0; i < N_BLOCKS; i++)
		if (gfn >= ranges[i].first.v && n <= ranges[i].n_pages &&
			gfn - ranges[i].first.v <= ranges[i].n_pages - n)
			return blocks[i] + (gfn - ranges[i].first.v) * PF_PAGE_SIZE;
	return NULL;
}

static uint64_t word_of(uint64_t seed, size_t i)
{
	return seed * 0x9e3779b97f4a7c15ull + i;
}

static void fill_page(uint64_t *page, uint64_t seed)
{
	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*page); i++)
		page[i] = word_of(seed, i);
}

static bool page_holds(const uint64_t *page, uint64_t seed)
{
	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*page); i++)
		if (page[i] != word_of(seed, i))
			return false;
	return true;
}

static bool page_is_zero(const uint64_t *page)
{
	for (size_t i = 0; i < PF_PAGE_SIZE / sizeof(*page); i++)
		if (page[i] != 0)
			return false;
	return true;
}

static void answer(bool good)
{
	puts(good ? "ok" : "failed");
}

static void fill(uint64_t gfn, uint64_t n, uint64_t seed)
{
	uint8_t *pages = pages_at(gfn, n);

	for (uint64_t i = 0; pages && i < n; i++)
		fill_page((uint64_t *)(pages + i * PF_PAGE_SIZE), seed + i);
	answer(pages != NULL);
}

static void check(uint64_t gfn, uint64_t n, uint64_t seed, bool zero)
{
	uint8_t *pages = pages_at(gfn, n);

	for (uint64_t i = 0; pages && i < n; i++) {
		const uint64_t *page = (const uint64_t *)(pages + i * PF_PAGE_SIZE);

		if (zero ? !page_is_zero(page) : !page_holds(page, seed + i)) {
			printf("bad %" PRIu64 "\n", gfn + i);
			return;
		}
	}
	answer(pages != NULL);
}

static void discard(uint64_t gfn, uint64_t n)
{
	uint8_t *pages = pages_at(gfn, n);

	answer(pages && madvise(pages, n * PF_PAGE_SIZE, MADV_DONTNEED) == 0);
}

static void count_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	int n = 0, c;

	while (maps && (c = getc(maps)) != EOF)
		n += c == '\n';
	if (maps)
		fclose(maps);
	printf("%d\n", n);
}

static void fork_child(void)
{
	int status = -1;
	pid_t child = fork();

	if (child == 0) {
		void *page = mmap(NULL, PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		bool good = page != MAP_FAILED && madvise(page, PF_PAGE_SIZE, MADV_DONTFORK) == 0 &&
			    munmap(page, PF_PAGE_SIZE) == 0;

		/* The blocks are not there: nothing of the library may think that they are. */
		good = good && mmap(blocks[0], PF_PAGE_SIZE, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == blocks[0];
		_exit(good ? 0 : 1);
	}
	if (child > 0)
		waitpid(child, &status, 0);
	printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

static void hint(uint32_t module, uint64_t file_page, uint64_t gfn, uint64_t n)
{
	static PfDigest digests[MAX_DIGESTS];
	uint8_t *pages = n <= MAX_DIGESTS ? pages_at(gfn, n) : NULL;
	bool good = pages != NULL;

	for (uint64_t i = 0; good && i < n; i++)
		good = pf_hasher_page(hasher, pages + i * PF_PAGE_SIZE, &digests[i]) == 0;
	answer(good && toy_guest_hint(guest, module, file_page, (PfGfn){gfn}, digests, n));
}

/* The digests depend on file_page alone, so that two guests can tell the same lie. */
static void lie(uint32_t module, uint64_t file_page, uint64_t gfn, uint64_t n)
{
	static PfDigest digests[MAX_DIGESTS];
	uint64_t page[PF_PAGE_SIZE / sizeof(uint64_t)];
	bool good = n <= MAX_DIGESTS;

	for (uint64_t i = 0; good && i < n; i++) {
		fill_page(page, 0x11e50000 + file_page + i);
		good = pf_hasher_page(hasher, page, &digests[i]) == 0;
	}
	answer(good && toy_guest_hint(guest, module, file_page, (PfGfn){gfn}, digests, n));
}

static void rubbish(void)
{
	uint8_t data[5000];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 37 + i / 256);
	memcpy(data + 100, "PFG1\xff\xff\xff\xff", 8);
	memcpy(data + 4900, "PFG1\x10\x00\x00\x00", 8);
	answer(toy_guest_send_raw(guest, data, sizeof(data)));
}

static void flood(const char *kind, uint64_t n)
{
	answer(true);
	fflush(stdout);
	toy_flood(guest, kind, n);
}

static void poke(uint64_t gfn, uint64_t offset, uint64_t value)
{
	uint8_t *page = offset < PF_PAGE_SIZE ? pages_at(gfn, 1) : NULL;

	if (page)
		*(volatile uint8_t *)(page + offset) = (uint8_t)value;
	answer(page != NULL);
}

static void peek(uint64_t gfn, uint64_t offset)
{
	uint8_t *page = offset < PF_PAGE_SIZE ? pages_at(gfn, 1) : NULL;

	if (page)
		printf("%u\n", *(volatile uint8_t *)(page + offset));
	else
		answer(false);
}

/* false: the line was "exit", or none of those above. */
static bool obey(const char *line)
{
	const char *preload = getenv("LD_PRELOAD");
	char verb[16], name[64];
	uint64_t a[4] = {0};
	int n = sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, verb, &a[0],
		&a[1], &a[2], &a[3]);

	if (n == 1 && strcmp(verb, "where") == 0)
		printf("%" PRIu64 " %" PRIu64 "\n", (uint64_t)(uintptr_t)blocks[0],
			(uint64_t)(uintptr_t)blocks[1]);
	else if (n == 4 && strcmp(verb, "fill") == 0)
		fill(a[0], a[1], a[2]);
	else if (n == 4 && strcmp(verb, "check") == 0)
		check(a[0], a[1], a[2], false);
	else if (n == 3 && strcmp(verb, "zero") == 0)
		check(a[0], a[1], 0, true);
	else if (n == 4 && strcmp(verb, "write") == 0)
		poke(a[0], a[1], a[2]);
	else if (n == 3 && strcmp(verb, "read") == 0)
		peek(a[0], a[1]);
	else if (n == 3 && strcmp(verb, "discard") == 0)
		discard(a[0], a[1]);
	else if (n == 1 && strcmp(verb, "maps") == 0)
		count_maps();
	else if (n == 1 && strcmp(verb, "fork") == 0)
		fork_child();
	else if (n == 1 && strcmp(verb, "preload") == 0)
		printf("[%s]\n", preload ? preload : "");
	else if (n == 1 && strcmp(verb, "session") == 0)
		puts(toy_guest_has_session(guest) ? "yes" : "no");
	else if (sscanf(line, "module %" SCNu64 " %63s %" SCNu64, &a[0], name, &a[1]) == 3)
		answer(toy_guest_module(guest, (uint32_t)a[0], name, a[1]));
	else if (n == 5 && strcmp(verb, "hint") == 0)
		hint((uint32_t)a[0], a[1], a[2], a[3]);
	else if (n == 5 && strcmp(verb, "lie") == 0)
		lie((uint32_t)a[0], a[1], a[2], a[3]);
	else if (n == 1 && strcmp(verb, "rubbish") == 0)
		rubbish();
	else if (sscanf(line, "flood %63s %" SCNu64, name, &a[0]) == 2)
		flood(name, a[0]);
	else if (sscanf(line, "shim %63s", name) == 1)
		answer(toy_shim_start(name));
	else if (n == 1 && strcmp(verb, "asked") == 0)
		printf("%u\n", toy_shim_orders());
	else if (sscanf(line, "connect %63s", name) == 1)
		printf("%d\n", toy_shim_connect(strcmp(name, "child") == 0));
	else if (n == 1 && strcmp(verb, "channel") == 0)
		printf("%d\n", toy_guest_connection(guest));
	else
		return false;
	return true;
}

static void serve(void)
{
	char line[256];

	for (;;) {
		struct pollfd events[] = {{STDIN_FILENO, POLLIN, 0},
			{toy_guest_listener(guest), POLLIN, 0},
			{toy_guest_connection(guest), POLLIN, 0}};

		if (poll(events, 3, -1) < 0)
			continue;
		if (events[1].revents || events[2].revents)
			toy_guest_handle(guest);
		/* The test waits for each answer, so there is never more than one line to read. */
		if (events[0].revents && (!fgets(line, sizeof(line), stdin) || !obey(line)))
			return;
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "toy_vmm CHANNEL\n");
		return 2;
	}
	hasher = pf_hasher_new();
	guest = toy_guest_new(argv[1], ranges, N_BLOCKS);
	if (!hasher || !guest) {
		fprintf(stderr, "toy_vmm: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	for (size_t i = 0; i < N_BLOCKS; i++) {
		blocks[i] = map_block(ranges[i].n_pages * PF_PAGE_SIZE);
		if (!blocks[i]) {
			perror("toy_vmm: RAM");
			return 1;
		}
	}
	puts("ready");
	fflush(stdout);
	serve();
	toy_guest_free(guest);
	pf_hasher_free(hasher);
	return 0;
}
