/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * What takes part in the service's life as an attacker has taken it over is what it has open: the sockets of the front
 * and of the broker, those of shims and guests, the stores. Everything else is taken away, several times over, each
 * layer as if the others were not there. In order, because each step needs rights that a later one takes:
 *
 * 1. Namespaces of its own. The network one has not even a loopback that is up; sockets by path are found through a
 *    mount, and abstract ones belong to a network. There is none for process ids: the service knows QEMU processes by
 *    what the kernel says of a peer (SO_PEERCRED, SO_PEERPIDFD) and by the ids that the broker names, and both would be
 *    0 or of nobody in a namespace of its own. What it could do to processes by their ids is forbidden one by one.
 * 2. A root that is empty and read-only. In it /proc, and there nothing but the process itself: a store gets its
 *    read-only descriptor by being opened once more through /proc/self/fd. It is mounted read-only too, which does not
 *    concern the stores behind the links but does /proc/self/mem, through which code could be written.
 * 3. Limits. RLIMIT_DATA counts what a process may write in its own address space; frames are written with pwrite() to
 *    memory files and are in nobody's. A limit of file sizes would hit the stores, so there is none.
 * 4. The user, with no supplementary groups and no capability in any set. Changing it makes the kernel forget about
 *    the signal that we get when the parent dies.
 * 5. The filter of system calls (sandbox_filter.c), which forbids steps 1 to 4, and is last for that reason.
 */
#include "host-service/daemon/sandbox.h"
#include "host-service/daemon/process.h"
#include "host-service/daemon/sandbox_filter.h"
#include <cap-ng.h>
#include <errno.h>
#include <gio/gio.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
#define BARE       (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define MAX_THREADS                                                                                \
	64 /* of the user: those that close descriptors, GLib's, and of a service that is just dying */
#define MIN_MEMORY    (G_GUINT64_CONSTANT(512) << 20)
#define NEW_ROOT      "/proc" /* which is certainly there */
#define NEEDS_ROOT    "start pagefusiond as root"
#define NEEDS_ADMIN   NEEDS_ROOT " with CAP_SYS_ADMIN, which a container has to be given"
#define NEEDS_SETPCAP NEEDS_ROOT " with CAP_SETUID, CAP_SETGID and CAP_SETPCAP"
#define NEEDS_SECCOMP "use a kernel with CONFIG_SECCOMP_FILTER"

/* One line: what, why, what to do. */
static gboolean fail(const char *what, int code, const char *advice, GError **error)
{
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(code), "%s: %s: %s", what,
		g_strerror(code), advice);
	return FALSE;
}

/* Users and sizes */

gboolean pf_sandbox_find_user(const char *user, uid_t *uid, gid_t *gid, GError **error)
{
	guint64 number;
	gboolean is_number =
		g_ascii_string_to_unsigned(user, 10, 0, G_MAXUINT32 - 1, &number, NULL);
	const struct passwd *entry = is_number ? getpwuid((uid_t)number) : getpwnam(user);

	if (!entry && !is_number) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
			"there is no user '%s' for the service: make it (useradd --system "
			"--user-group --no-create-home --shell /usr/sbin/nologin %s), or name "
			"another",
			user, user);
		return FALSE;
	}
	*uid = entry ? entry->pw_uid : (uid_t)number;
	*gid = entry ? entry->pw_gid : (gid_t)number;
	if (*uid != 0 && *gid != 0)
		return TRUE;
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
		"the service cannot run as '%s', who is root or in root's group: name a user that "
		"has no other purpose",
		user);
	return FALSE;
}

guint64 pf_sandbox_default_memory(void)
{
	struct sysinfo host;

	if (sysinfo(&host) < 0)
		return MIN_MEMORY;
	return MAX(MIN_MEMORY, (guint64)host.totalram * host.mem_unit / 8);
}

/* Places */

static gboolean unshare_all(GError **error)
{
	if (unshare(NAMESPACES) < 0)
		return fail(
			"the service cannot have namespaces of its own", errno, NEEDS_ADMIN, error);
	/* Nothing of what is mounted here is to be seen elsewhere. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return fail("the service cannot have mounts of its own", errno, NEEDS_ADMIN, error);
	return TRUE;
}

static gboolean make_root(GError **error)
{
	/* Its root directory, and the one for /proc. */
	if (mount("tmpfs", NEW_ROOT, "tmpfs", BARE, "mode=0555,size=4k,nr_inodes=2") < 0 ||
		mkdir(NEW_ROOT "/proc", 0555) < 0)
		return fail("the service cannot have an empty root", errno, NEEDS_ADMIN, error);
	if (mount("proc", NEW_ROOT "/proc", "proc", BARE | MS_RDONLY,
		    "subset=pid,hidepid=invisible") < 0)
		return fail(
			"the service cannot have a /proc of its own", errno, NEEDS_ADMIN, error);
	return TRUE;
}

static gboolean change_root(GError **error)
{
	/* The old root ends up above the new one, so that no directory is needed for it. */
	if (chdir(NEW_ROOT) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
		umount2(".", MNT_DETACH) < 0 || chdir("/") < 0 ||
		mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | BARE, NULL) < 0)
		return fail(
			"the service cannot change to its empty root", errno, NEEDS_ADMIN, error);
	return TRUE;
}

/* Limits */

static gboolean set_limits(guint64 memory_limit, GError **error)
{
	const struct {
		__rlimit_resource_t resource;
		rlim_t limit;
	} limits[] = {
		{RLIMIT_CORE, 0},
		{RLIMIT_DATA, memory_limit},
		{RLIMIT_MEMLOCK, 0},
		{RLIMIT_MSGQUEUE, 0},
		{RLIMIT_NPROC, MAX_THREADS},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(limits); i++) {
		struct rlimit now;

		if (getrlimit(limits[i].resource, &now) < 0)
			return fail("a limit cannot be read", errno, NEEDS_ROOT, error);
		now.rlim_max = MIN(now.rlim_max, limits[i].limit);
		now.rlim_cur = now.rlim_max;
		if (setrlimit(limits[i].resource, &now) < 0)
			return fail("the service cannot be limited", errno, NEEDS_ROOT, error);
	}
	return TRUE;
}

/* Rights */

static gboolean change_user(uid_t uid, gid_t gid, GError **error)
{
	if (capng_change_id((int)uid, (int)gid,
		    CAPNG_DROP_SUPP_GRP | CAPNG_CLEAR_BOUNDING | CAPNG_CLEAR_AMBIENT) < 0)
		return fail("the service cannot change to its own user", errno ? errno : EPERM,
			NEEDS_SETPCAP, error);
	return TRUE;
}

static gboolean seal_process(GError **error)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail("what is executed cannot be kept from getting more rights", errno,
			NEEDS_SECCOMP, error);
	return TRUE;
}

static gboolean hide_memory(GError **error)
{
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return fail("the service's memory cannot be hidden", errno, NEEDS_ROOT, error);
	return TRUE;
}

static gboolean filter_calls(GError **error)
{
	int r = pf_sandbox_load_filter();

	if (r < 0)
		return fail(
			"the service's system calls cannot be filtered", -r, NEEDS_SECCOMP, error);
	return TRUE;
}

gboolean pf_sandbox_enter(const PfSandbox *sandbox, GError **error)
{
	/* First, because the library reads in /proc how many there are. */
	capng_clear(CAPNG_SELECT_ALL);
	if (!unshare_all(error) || !make_root(error) || !change_root(error) ||
		!set_limits(sandbox->memory_limit, error) ||
		!change_user(sandbox->uid, sandbox->gid, error) || !hide_memory(error) ||
		!seal_process(error))
		return FALSE;
	pf_process_die_with_parent();
	return filter_calls(error);
}

/* The other processes */

gboolean pf_sandbox_keep_capabilities(const int *capabilities, GError **error)
{
	gboolean may_bound;
	uint64_t held = 0;

	if (capng_get_caps_process() < 0)
		return fail("capabilities cannot be read", EIO, "mount /proc", error);
	may_bound = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP);
	/* What we do not have cannot be kept; whoever needs it will say so. */
	for (const int *c = capabilities; *c >= 0; c++)
		if (capng_have_capability(CAPNG_PERMITTED, (unsigned)*c))
			held |= UINT64_C(1) << *c;
	capng_clear(CAPNG_SELECT_ALL);
	for (unsigned c = 0; c < 64; c++)
		if (held >> c & 1)
			capng_update(CAPNG_ADD,
				CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_BOUNDING_SET, c);
	/* Without CAP_SETPCAP the bounding set stays: then it is no-new-privs alone that bounds. */
	if (capng_apply(may_bound ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS) < 0)
		return fail("capabilities cannot be given up", errno ? errno : EPERM, NEEDS_SETPCAP,
			error);
	return seal_process(error);
}
