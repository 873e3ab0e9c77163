/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a QEMU, or systemd, hands back as a store. The first two bytes say what memory it is, then come records
 * (records.h): bytes that stand in it, at a place that the operation names. If it is taken for a store, all that the
 * service does with one must hold.
 */
#include "host-service/service/store.h"
#include "tests/fuzz/records.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what))                                                                       \
			abort();                                                                   \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The label, the members, the first frames, and by fours. */
static off_t place(uint8_t operation)
{
	static const off_t pages[] = {0, 1, 511, 512};

	return pages[operation % 4] * (off_t)PF_PAGE_SIZE + (operation >> 2) * 8;
}

static int make_memory(uint8_t how, uint8_t size_bits, const uint8_t *data, size_t size)
{
	static const unsigned seals[] = {F_SEAL_SHRINK | F_SEAL_GROW,
		F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, F_SEAL_SHRINK, 0};
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	Record record;

	REQUIRE(fd >= 0 && ftruncate(fd, ((off_t)1 << size_bits % 46) + (how & 16 ? 1 : 0)) == 0);
	while (next_record(&data, &size, &record)) {
		off_t at = place(record.operation);
		struct stat status;

		REQUIRE(fstat(fd, &status) == 0);
		if (at + (off_t)record.size <= status.st_size)
			REQUIRE(pwrite(fd, record.bytes, record.size, at) == (ssize_t)record.size);
	}
	REQUIRE(fchmod(fd, how & 4 ? 0644 : 0600) == 0);
	REQUIRE(fcntl(fd, F_ADD_SEALS, seals[how & 3]) == 0);
	return fd;
}

static bool is_known(void *userdata, uint64_t process)
{
	return process % 2 == 0;
}

static void use_members(PfStore *store)
{
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	uint64_t pages = pf_store_n_pages(store);

	REQUIRE(pidfd >= 0);
	(void)pf_store_members_known(store, is_known, NULL);
	(void)pf_store_members_unsure(store);
	if (pf_store_add_member(store, pidfd, getpid()) >= 0)
		REQUIRE(pf_store_add_member(store, pidfd, getpid()) == 0);
	REQUIRE(pf_store_n_pages(store) <= pages + 1);
	close(pidfd);
}

static void use_frames(PfStore *store)
{
	PfFrame own = {pf_store_first_own(store)}, old = {PF_STORE_FIRST_FRAME};
	uint8_t page[PF_PAGE_SIZE] = {1}, again[PF_PAGE_SIZE];
	struct stat status;
	uint64_t freed_kib;
	int error;

	REQUIRE(fstat(pf_store_fd(store), &status) == 0);
	REQUIRE(own.v >= PF_STORE_FIRST_FRAME && pf_store_n_frames(store) == 0);
	REQUIRE(own.v <= (uint64_t)status.st_size / PF_PAGE_SIZE);
	if (own.v > old.v) {
		REQUIRE(pf_store_write(store, old, page) == -EEXIST);
		if (pf_store_read(store, old, again) == 0)
			pf_store_claim(store, old);
	}
	error = pf_store_write(store, own, page);
	REQUIRE(error == 0 || error == -ENOSPC);
	if (error == 0) {
		REQUIRE(pf_store_write(store, own, page) == -EEXIST);
		REQUIRE(pf_store_read(store, own, again) == 0 &&
			memcmp(page, again, sizeof page) == 0);
		pf_store_drop(store, own);
		REQUIRE(pf_store_read(store, own, again) == -ENOENT);
	}
	pf_store_start_sweep(store);
	while (pf_store_sweep(store, 0, &freed_kib))
		;
	REQUIRE(pf_store_allocated_kib(store) <= pf_store_n_pages(store) * (PF_PAGE_SIZE / 1024));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GError) error = NULL;
	PfStore *store;
	int fd, other;

	if (size < 2)
		return 0;
	fd = make_memory(data[0], data[1], data + 2, size - 2);
	other = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	store = pf_store_adopt(fd, &error);
	REQUIRE(!store == (error != NULL));
	if (store) {
		REQUIRE(pf_store_is(store, other) && !pf_store_is(store, STDERR_FILENO));
		REQUIRE(*pf_store_group(store) && memchr(pf_store_group(store), 0, 256));
		REQUIRE((fcntl(pf_store_readonly_fd(store), F_GETFL) & O_ACCMODE) == O_RDONLY);
		use_members(store);
		use_frames(store);
		pf_store_free(store);
	}
	close(other);
	return 0;
}
