// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Processes of one mount namespace that have the same root see the same table, so it is read once for all of them and
 * kept for the pass, open, as poll() on it says when it has changed; an open table also keeps its namespace. A few are
 * kept at the same time, the oldest gives way.
 *
 * Any user can have namespaces with long tables that change all the time, and roots in those of others. So there is a
 * limit to how long a table may be and to how many are read in a pass, all in all and again for the same namespace;
 * what is above that is not known, and so left alone. And as a process can change its namespace and its root while
 * they are asked for, what it is in is asked again when the table has been read.
 */
#include "guest-agent/find/namespaces.h"
#include <fcntl.h>
#include <limits.h>
#include <linux/nsfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TABLES  8
#define MAX_MOUNTS  4096
#define MAX_READS   256 /* in a pass, of those that are anybody's */
#define MAX_CHANGES 8   /* of a table in a pass */

/* Where a process lives. */
typedef struct Home {
	int namespace; /* owned */
	ino_t inode;   /* of the namespace */
	char root[PATH_MAX];
} Home;

typedef struct Table {
	ino_t namespace;
	char *root;       /* of its processes; owned */
	PfMounts *mounts; /* owned; NULL: it cannot be had */
	bool by_root;
	unsigned n_changes;
} Table;

struct PfNamespaces {
	struct stat user; /* our user namespace; st_ino is 0 when not known */
	ino_t mount;      /* our mount namespace */
	Table tables[MAX_TABLES];
	size_t n, next;
	unsigned n_reads;
};

PfNamespaces *pf_namespaces_new(void)
{
	PfNamespaces *namespaces = calloc(1, sizeof(*namespaces));

	struct stat st;

	if (!namespaces)
		return NULL;
	if (stat("/proc/self/ns/user", &st) == 0)
		namespaces->user = st;
	if (stat("/proc/self/ns/mnt", &st) == 0)
		namespaces->mount = st.st_ino;
	return namespaces;
}

static void table_deinit(Table *table)
{
	pf_mounts_free(table->mounts);
	free(table->root);
	*table = (Table){0};
}

void pf_namespaces_forget(PfNamespaces *namespaces)
{
	for (size_t i = 0; i < namespaces->n; i++)
		table_deinit(&namespaces->tables[i]);
	namespaces->n = namespaces->next = 0;
	namespaces->n_reads = 0;
}

void pf_namespaces_free(PfNamespaces *namespaces)
{
	if (!namespaces)
		return;
	pf_namespaces_forget(namespaces);
	free(namespaces);
}

/* Whether a mount namespace belongs to our user namespace. */
static bool is_by_root(const PfNamespaces *namespaces, int namespace)
{
	int owner = ioctl(namespace, NS_GET_USERNS);
	struct stat st;
	bool same;

	if (owner < 0)
		return false;
	same = fstat(owner, &st) == 0 && namespaces->user.st_ino != 0 &&
	       st.st_ino == namespaces->user.st_ino && st.st_dev == namespaces->user.st_dev;
	close(owner);
	return same;
}

/* False when the process is gone; otherwise home->namespace is to be closed. */
static bool home_init(Home *home, pid_t pid)
{
	char path[40];
	struct stat st;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/root", (int)pid);
	n = readlink(path, home->root, sizeof(home->root) - 1);
	if (n <= 0)
		return false;
	home->root[n] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	home->namespace = open(path, O_RDONLY | O_CLOEXEC);
	if (home->namespace < 0)
		return false;
	home->inode = fstat(home->namespace, &st) == 0 ? st.st_ino : 0;
	return true;
}

static bool is_still(const Home *home, pid_t pid)
{
	Home now;
	bool same;

	if (!home_init(&now, pid))
		return false;
	same = now.inode == home->inode && strcmp(now.root, home->root) == 0;
	close(now.namespace);
	return same;
}

static Table *find_table(PfNamespaces *namespaces, const Home *home)
{
	for (size_t i = 0; i < namespaces->n; i++) {
		Table *table = &namespaces->tables[i];

		if (table->namespace == home->inode && strcmp(table->root, home->root) == 0)
			return table;
	}
	return NULL;
}

static void read_table(Table *table, const Home *home, pid_t pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)pid);
	if (pf_mounts_new_of(&table->mounts, path, MAX_MOUNTS) < 0) {
		table->mounts = NULL;
	} else if (!is_still(home, pid)) {
		pf_mounts_free(table->mounts);
		table->mounts = NULL;
	}
}

/* NULL without memory, or when enough were read. */
static Table *add_table(PfNamespaces *namespaces, pid_t pid, const Home *home)
{
	Table *table = &namespaces->tables[namespaces->next];
	bool by_root = is_by_root(namespaces, home->namespace);
	char *root;

	if (!by_root || strcmp(home->root, "/") != 0) {
		if (namespaces->n_reads >= MAX_READS)
			return NULL;
		namespaces->n_reads++;
	}
	root = strdup(home->root);
	if (!root)
		return NULL;
	table_deinit(table);
	namespaces->next = (namespaces->next + 1) % MAX_TABLES;
	if (namespaces->n < MAX_TABLES)
		namespaces->n++;
	*table = (Table){.namespace = home->inode, .root = root, .by_root = by_root};
	read_table(table, home, pid);
	return table;
}

/* False when it cannot be had as it is now. */
static bool is_current(Table *table)
{
	const PfMount *before;
	size_t n;

	if (!table->mounts)
		return false;
	before = pf_mounts_all(table->mounts, &n);
	if (pf_mounts_refresh(table->mounts) == 0) {
		if (pf_mounts_all(table->mounts, &n) == before)
			return true;
		if (++table->n_changes <= MAX_CHANGES)
			return true;
	}
	pf_mounts_free(table->mounts);
	table->mounts = NULL;
	return false;
}

const PfMounts *pf_namespaces_table(PfNamespaces *namespaces, pid_t pid, bool *by_root)
{
	Table *table = NULL;
	Home home;

	*by_root = false;
	if (!home_init(&home, pid))
		return NULL;
	if (home.inode != 0 && home.inode != namespaces->mount) {
		table = find_table(namespaces, &home);
		if (!table)
			table = add_table(namespaces, pid, &home);
	}
	close(home.namespace);
	if (!table || !is_current(table))
		return NULL;
	*by_root = table->by_root;
	return table->mounts;
}
