// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * udev links /dev/virtio-ports/NAME to the port's device. Where mdev or nothing makes device
 * nodes, sysfs says which /dev/vport* has the name (devtmpfs has made that itself).
 */
#include "guest-agent/tell/port.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINK  "/dev/virtio-ports/" PF_PORT_NAME
#define PORTS "/sys/class/virtio-ports"

/* Whether the port that sysfs calls by that device name is ours. */
static bool is_ours(const char *root, const char *device)
{
	char path[PATH_MAX], name[sizeof(PF_PORT_NAME) + 1] = "";
	FILE *file;

	snprintf(path, sizeof(path), "%s" PORTS "/%s/name", root, device);
	file = fopen(path, "re");
	if (!file)
		return false;
	if (!fgets(name, sizeof(name), file))
		name[0] = '\0';
	fclose(file);
	return strcmp(name, PF_PORT_NAME "\n") == 0 || strcmp(name, PF_PORT_NAME) == 0;
}

static bool exists(char *path, size_t size, const char *root, const char *what, const char *name)
{
	int n = snprintf(path, size, "%s%s%s", root, what, name);

	return n >= 0 && (size_t)n < size && access(path, F_OK) == 0;
}

static int find_in_sysfs(const char *root, char *path, size_t size)
{
	char ports[PATH_MAX];
	struct dirent *item;
	bool found = false;
	DIR *directory;

	snprintf(ports, sizeof(ports), "%s" PORTS, root);
	directory = opendir(ports);
	if (!directory)
		return -ENOENT;
	while (!found && (item = readdir(directory))) {
		if (strncmp(item->d_name, "vport", 5) == 0 && is_ours(root, item->d_name))
			found = exists(path, size, root, "/dev/", item->d_name);
	}
	closedir(directory);
	return found ? 0 : -ENOENT;
}

int pf_port_find_under(const char *root, char *path, size_t size)
{
	return exists(path, size, root, LINK, "") ? 0 : find_in_sysfs(root, path, size);
}

int pf_port_find(char *path, size_t size)
{
	return pf_port_find_under("", path, size);
}
