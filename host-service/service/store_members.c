/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An entry of the table is written before its process is sent the store, and taken out when the process has ended. So a
 * service that is killed between any two instructions leaves nobody out. An entry is written by one call and does not
 * cross a page, so it is whole or not there.
 *
 * A process is known by the inode of its pidfd, which is its own for as long as the host runs; the pid is how it is
 * found again. Where the kernel cannot tell processes apart (before pidfs), or does not answer, a member counts as
 * living as long as anybody has its number. That keeps frames too long, never too short.
 */
#include "host-service/service/store_members.h"
#include "common/page.h"
#include "host-service/service/process_id.h"

#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <poll.h>
#include <sys/pidfd.h>
#include <unistd.h>

/* Of this machine's byte order: it never leaves it. All zero: free. */
typedef struct Entry {
	uint32_t pid;
	uint32_t reserved;
	uint64_t process; /* pf_process_id() */
} Entry;
static_assert(sizeof(Entry) == 16 && PF_PAGE_SIZE % sizeof(Entry) == 0, "none crosses a page");

struct PfStoreMembers {
	int fd;
	off_t offset;
	guint room;      /* entries */
	GArray *entries; /* of Entry, up to the last that was ever written */
	guint n_unsure;  /* entries with no process */
};

PfStoreMembers *pf_store_members_new(int fd, off_t offset, size_t n_pages)
{
	PfStoreMembers *members = g_new0(PfStoreMembers, 1);

	members->fd = fd;
	members->offset = offset;
	members->room = (guint)(n_pages * PF_PAGE_SIZE / sizeof(Entry));
	members->entries = g_array_new(FALSE, TRUE, sizeof(Entry));
	return members;
}

void pf_store_members_free(PfStoreMembers *members)
{
	if (!members)
		return;
	g_array_unref(members->entries);
	g_free(members);
}

static Entry *entry_at(const PfStoreMembers *members, guint i)
{
	return &g_array_index(members->entries, Entry, i);
}

static bool is_free(const Entry *entry)
{
	return entry->pid == 0 && entry->process == 0;
}

static bool is_unsure(const Entry *entry)
{
	return !is_free(entry) && entry->process == 0;
}

static bool has_exited(int pidfd)
{
	struct pollfd process = {.fd = pidfd, .events = POLLIN};

	return poll(&process, 1, 0) > 0;
}

/* By what cannot be mistaken only. */
static bool is_gone(const Entry *entry)
{
	int pidfd = pidfd_open((pid_t)entry->pid, 0);
	uint64_t process = 0;
	bool gone;

	/* The number is nobody's, or (EINVAL or ENOENT) of a thread of somebody else's. */
	if (pidfd < 0)
		return errno == ESRCH || errno == EINVAL || errno == ENOENT;
	gone = has_exited(pidfd);
	if (entry->process != 0 && pf_process_id(pidfd, &process) == 0)
		gone |= process != 0 && process != entry->process;
	close(pidfd);
	return gone;
}

static int write_entry(const PfStoreMembers *members, guint i, const Entry *entry)
{
	ssize_t n;

	do
		n = pwrite(members->fd, entry, sizeof *entry,
			members->offset + (off_t)(i * sizeof *entry));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n == sizeof *entry ? 0 : -EIO;
}

/* If it cannot be written, the entry stays; it is looked at again the next time. */
static void take_out(PfStoreMembers *members, guint i)
{
	Entry *entry = entry_at(members, i);

	if (write_entry(members, i, &(Entry){0}) < 0)
		return;
	members->n_unsure -= is_unsure(entry);
	*entry = (Entry){0};
}

static void take_out_the_gone(PfStoreMembers *members)
{
	for (guint i = 0; i < members->entries->len; i++)
		if (!is_free(entry_at(members, i)) && is_gone(entry_at(members, i)))
			take_out(members, i);
}

static int read_page(PfStoreMembers *members, guint first)
{
	const guint per_page = PF_PAGE_SIZE / sizeof(Entry);
	Entry page[PF_PAGE_SIZE / sizeof(Entry)];
	ssize_t n = pread(
		members->fd, page, sizeof page, members->offset + (off_t)(first * sizeof(Entry)));

	if (n != sizeof page)
		return n < 0 ? -errno : -EIO;
	for (guint i = 0; i < per_page; i++) {
		if (is_free(&page[i]))
			continue;
		g_array_set_size(members->entries, first + i + 1);
		*entry_at(members, first + i) = page[i];
		members->n_unsure += is_unsure(&page[i]);
	}
	return 0;
}

int pf_store_members_load(PfStoreMembers *members)
{
	int r = 0;

	g_array_set_size(members->entries, 0);
	members->n_unsure = 0;
	for (guint i = 0; r == 0 && i < members->room; i += PF_PAGE_SIZE / sizeof(Entry))
		r = read_page(members, i);
	if (r == 0)
		take_out_the_gone(members);
	return r;
}

/* A free entry, or the room if there is none. */
static guint find_free(const PfStoreMembers *members)
{
	for (guint i = 0; i < members->entries->len; i++)
		if (is_free(entry_at(members, i)))
			return i;
	return members->entries->len;
}

static bool has(const PfStoreMembers *members, const Entry *wanted)
{
	for (guint i = 0; i < members->entries->len; i++) {
		const Entry *entry = entry_at(members, i);

		if (entry->pid == wanted->pid && entry->process == wanted->process)
			return true;
	}
	return false;
}

int pf_store_members_add(PfStoreMembers *members, pid_t pid, uint64_t process)
{
	Entry entry = {.pid = (uint32_t)pid, .process = process};
	guint place;
	int r;

	if (has(members, &entry))
		return 0;
	place = find_free(members);
	if (place == members->room) {
		take_out_the_gone(members);
		place = find_free(members);
	}
	if (place == members->room)
		return -ENOSPC;
	r = write_entry(members, place, &entry);
	if (r < 0)
		return r;
	if (place == members->entries->len)
		g_array_set_size(members->entries, place + 1);
	*entry_at(members, place) = entry;
	members->n_unsure += is_unsure(&entry);
	return 1;
}

bool pf_store_members_are_known(
	PfStoreMembers *members, bool (*is_known)(void *userdata, uint64_t process), void *userdata)
{
	for (guint i = 0; i < members->entries->len; i++) {
		const Entry *entry = entry_at(members, i);

		if (is_free(entry) || (entry->process != 0 && is_known(userdata, entry->process)))
			continue;
		if (is_gone(entry))
			take_out(members, i);
		else if (entry->process != 0)
			return false;
	}
	return true;
}

bool pf_store_members_has_unsure(const PfStoreMembers *members)
{
	return members->n_unsure > 0;
}

size_t pf_store_members_n_pages(const PfStoreMembers *members)
{
	return (members->entries->len * sizeof(Entry) + PF_PAGE_SIZE - 1) / PF_PAGE_SIZE;
}
