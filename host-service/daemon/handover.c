/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process that executes a program keeps descriptors, and of what it knew only what it hands over. Arguments and
 * environment are seen by everybody, and limited; a memory file is neither. It is sealed, so that what was checked stays
 * as it is.
 *
 * Of the configuration the file's text is handed over, as the first process has read and accepted it: the file itself may
 * have changed since. What the command line has decided stands beside it, resolved.
 *
 * Only who starts the service writes this, and he could as well start anything else: the checks are for mistakes, and
 * for who tries out an option that is not his.
 */
#include "host-service/daemon/handover.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS    (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define MAX_SIZE ((off_t)8 << 20) /* the longest configuration, and all stores that systemd keeps */

/*
 * Starter; whether it logs more; user, group, limit of memory; wait after a revoke; the configuration's text, policy for
 * huge pages; descriptors of broker, front, shims' socket; stores' names and descriptors.
 */
#define FORMAT "(ibuutxsiiii@a(ayi))"
#define TYPE   "(ibuutxsiiiia(ayi))"

static GVariant *kept_stores(const PfServiceProcess *process)
{
	GVariantBuilder stores;

	g_variant_builder_init(&stores, G_VARIANT_TYPE("a(ayi)"));
	for (size_t i = 0; i < process->n_kept; i++)
		g_variant_builder_add(
			&stores, "(^ayi)", process->kept[i].name, process->kept[i].fd);
	return g_variant_builder_end(&stores);
}

static GVariant *describe(const PfServiceProcess *process)
{
	return g_variant_new(FORMAT, (gint32)getpid(), process->debug,
		(guint32)process->sandbox.uid, (guint32)process->sandbox.gid,
		process->sandbox.memory_limit, (gint64)process->fusion.revoke_delay_us,
		pf_config_text(process->config), (gint32)pf_config_thp(process->config),
		process->broker_fd, process->front_fd, process->shim_fd, kept_stores(process));
}

static gboolean write_all(int fd, const char *data, gsize size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return FALSE;
		data += n;
		size -= (gsize)n;
	}
	return TRUE;
}

int pf_handover_write(const PfServiceProcess *process, GError **error)
{
	g_autoptr(GVariant) content = g_variant_ref_sink(describe(process));
	int fd = memfd_create("pagefusiond-start", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && write_all(fd, g_variant_get_data(content), g_variant_get_size(content)) &&
		fcntl(fd, F_ADD_SEALS, SEALS) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
		"the service cannot be told what to do: %s", g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Reading */

static gboolean fail(const char *what, GError **error)
{
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
		"%s: this process is started by pagefusiond itself", what);
	return FALSE;
}

/* All of it, or NULL: it is no sealed file, or too large for what it should be. */
static GBytes *read_sealed(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	g_autofree char *data = NULL;
	struct stat status;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &status) < 0 ||
		status.st_size > MAX_SIZE)
		return NULL;
	data = g_malloc((gsize)status.st_size);
	if (pread(fd, data, (size_t)status.st_size, 0) != status.st_size)
		return NULL;
	return g_bytes_new_take(g_steal_pointer(&data), (gsize)status.st_size);
}

static GVariant *read_content(int fd)
{
	g_autoptr(GBytes) bytes = read_sealed(fd);
	g_autoptr(GVariant) content = NULL;

	if (!bytes)
		return NULL;
	content = g_variant_ref_sink(g_variant_new_from_bytes(G_VARIANT_TYPE(TYPE), bytes, FALSE));
	return g_variant_is_normal_form(content) ? g_steal_pointer(&content) : NULL;
}

static void clear_name(gpointer data)
{
	g_free(((PfKeptStore *)data)->name);
}

static GArray *read_stores(GVariant *stores)
{
	GArray *kept = g_array_new(FALSE, FALSE, sizeof(PfKeptStore));
	GVariantIter iter;
	PfKeptStore store;

	g_array_set_clear_func(kept, clear_name);
	g_variant_iter_init(&iter, stores);
	while (g_variant_iter_next(&iter, "(^ayi)", &store.name, &store.fd))
		g_array_append_val(kept, store);
	return kept;
}

/* Each is open; a program that this one executes gets none of them. */
static gboolean take_descriptors(const PfServiceProcess *process)
{
	const int fds[] = {process->broker_fd, process->front_fd, process->shim_fd};

	for (size_t i = 0; i < G_N_ELEMENTS(fds); i++)
		if (fcntl(fds[i], F_SETFD, FD_CLOEXEC) < 0)
			return FALSE;
	for (size_t i = 0; i < process->n_kept; i++)
		if (fcntl(process->kept[i].fd, F_SETFD, FD_CLOEXEC) < 0)
			return FALSE;
	return TRUE;
}

static gboolean take(PfHandover *handover, GVariant *content, GError **error)
{
	PfServiceProcess *process = &handover->process;
	g_autoptr(GVariant) stores = NULL;
	const char *text;
	gint32 thp;

	g_variant_get(content, "(ibuutx&siiii@a(ayi))", &handover->starter, &process->debug,
		&process->sandbox.uid, &process->sandbox.gid, &process->sandbox.memory_limit,
		&process->fusion.revoke_delay_us, &text, &thp, &process->broker_fd,
		&process->front_fd, &process->shim_fd, &stores);
	handover->kept = read_stores(stores);
	process->kept = (const PfKeptStore *)(void *)handover->kept->data;
	process->n_kept = handover->kept->len;
	if (process->sandbox.uid == 0 || process->sandbox.gid == 0 || thp <= PF_THP_DEFAULT ||
		thp > PF_THP_ALL)
		return fail("what was handed over is not possible", error);
	if (!take_descriptors(process))
		return fail("a descriptor that was handed over is not open", error);
	handover->config = pf_config_parse("the configuration", text, strlen(text), error);
	if (!handover->config)
		return FALSE;
	pf_config_set_thp(handover->config, (PfThp)thp);
	process->config = handover->config;
	return TRUE;
}

PfHandover *pf_handover_read(int fd, GError **error)
{
	g_autoptr(PfHandover) handover = g_new0(PfHandover, 1);
	g_autoptr(GVariant) content = read_content(fd);

	if (!content)
		fail("nothing was handed over", error);
	if (!content || !take(handover, content, error))
		return NULL; /* NOLINT(*unix.Malloc): g_autoptr frees handover */
	return g_steal_pointer(&handover);
}

void pf_handover_free(PfHandover *handover)
{
	g_clear_pointer(&handover->kept, g_array_unref);
	g_clear_pointer(&handover->config, pf_config_free);
	g_free(handover);
}
