/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/daemon/host_features.h"
#include "host-service/shim/kernel.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define WHAT_TO_DO "take Linux 6.8 or later (Debian 12: linux-image-amd64 from bookworm-backports)"

static const struct {
	guint64 feature;
	const char *name;
} features[] = {
	{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write protection"},
	{UFFD_FEATURE_EVENT_REMAP, "EVENT_REMAP"},
	{UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write protection of shared memory"},
	{UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED"},
	{UFFD_FEATURE_MOVE, "UFFDIO_MOVE"},
};

char *pf_host_feature_names(guint64 wanted)
{
	GString *names = g_string_new(NULL);

	for (gsize i = 0; i < G_N_ELEMENTS(features); i++)
		if (wanted & features[i].feature)
			g_string_append_printf(
				names, "%s%s", names->len > 0 ? ", " : "", features[i].name);
	return g_string_free(names, FALSE);
}

/* 0 or errno; the features that the kernel has in *available. */
static int probe(const char *path, guint64 *available)
{
	struct uffdio_api api = {.api = UFFD_API};
	int device = open(path, O_RDWR | O_CLOEXEC), fd, code = 0;

	if (device < 0)
		return errno;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		code = errno;
	*available = api.features;
	if (fd >= 0)
		close(fd);
	close(device);
	return code;
}

gboolean pf_host_features_check(const char *device, GError **error)
{
	g_autofree char *names = NULL;
	guint64 available = 0;
	int code = probe(device, &available);

	switch (code) {
	case 0:
		break;
	case EACCES:
	case EPERM:
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED,
			"%s cannot be opened (%s): run pagefusiond as root", device,
			g_strerror(code));
		return FALSE;
	case ENOENT:
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"this kernel has no %s: " WHAT_TO_DO, device);
		return FALSE;
	default:
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
			"userfaultfd does not work here (%s: %s): " WHAT_TO_DO, device,
			g_strerror(code));
		return FALSE;
	}
	if ((available & PF_UFFD_NEEDED_FEATURES) == PF_UFFD_NEEDED_FEATURES)
		return TRUE;
	names = pf_host_feature_names(PF_UFFD_NEEDED_FEATURES & ~available);
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
		"this kernel's userfaultfd lacks %s: " WHAT_TO_DO, names);
	return FALSE;
}
