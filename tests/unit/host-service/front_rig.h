/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A front with a keeper that notes what it is told, and the other end of its socket. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "host-service/front/front.h"
#include "host-service/wire/front_protocol.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE_S 15 /* more than a query has */

#define STORE_A "store-0123456789abcdef0123456789abcdef"
#define STORE_B "store-fedcba9876543210fedcba9876543210"

typedef struct Rig {
	int there; /* -1: somebody else's */
	PfFront *here;
	unsigned ended;
	GPtrArray *said; /* to the keeper: "keep NAME INODE" and "drop NAME" */
} Rig;

static inline void on_front_end(void *userdata)
{
	((Rig *)userdata)->ended++;
}

static inline void note_keep(void *userdata, const char *name, int fd)
{
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	g_ptr_array_add(((Rig *)userdata)->said,
		g_strdup_printf("keep %s %lu", name, (unsigned long)status.st_ino));
}

static inline void note_drop(void *userdata, const char *name)
{
	g_ptr_array_add(((Rig *)userdata)->said, g_strdup_printf("drop %s", name));
}

static inline void rig_init(Rig *rig)
{
	const PfGroupsKeeper keeper = {note_keep, note_drop, rig};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	*rig = (Rig){.there = fds[1], .said = g_ptr_array_new_with_free_func(g_free)};
	rig->here = pf_front_new(fds[0], &keeper, on_front_end, rig);
}

static inline void rig_deinit(Rig *rig)
{
	pf_front_free(rig->here);
	if (rig->there >= 0)
		close(rig->there);
	g_ptr_array_unref(rig->said);
	while (g_main_context_iteration(NULL, FALSE))
		;
}

static inline void assert_said(const Rig *rig, guint i, const char *expected)
{
	assert_true(i < rig->said->len);
	assert_string_equal(g_ptr_array_index(rig->said, i), expected);
}

static inline void store_result(GObject *source, GAsyncResult *result, void *userdata)
{
	*(GAsyncResult **)userdata = g_object_ref(result);
}

static inline gboolean set_late(gpointer late)
{
	*(gboolean *)late = TRUE;
	return G_SOURCE_CONTINUE;
}

/* Lets the main loop run until the condition holds. */
#define RUN_UNTIL(condition)                                                                       \
	do {                                                                                       \
		gboolean late = FALSE;                                                             \
		guint timeout = g_timeout_add_seconds(PATIENCE_S, set_late, &late);                \
                                                                                                   \
		while (!(condition) && !late)                                                      \
			g_main_context_iteration(NULL, TRUE);                                      \
		g_source_remove(timeout);                                                          \
		assert_true(condition);                                                            \
	} while (0)

/* NULL with error set. */
static inline PfFrontAnswer *finish(GAsyncResult **result, GError **error)
{
	PfFrontAnswer *answer;

	RUN_UNTIL(*result);
	answer = pf_front_query_finish(*result, error);
	g_clear_object(result);
	return answer;
}

static inline void assert_fails(GAsyncResult **result, GIOErrorEnum code, const char *says)
{
	g_autoptr(GError) error = NULL;

	assert_null(finish(result, &error));
	assert_true(g_error_matches(error, G_IO_ERROR, (int)code));
	assert_non_null(strstr(error->message, says));
}

/* A memfd of a page, sealed with these. */
static inline int sealed_memory(int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}
