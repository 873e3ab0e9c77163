/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Finds the virtio-serial port, also where no udev makes links. */
#include <stddef.h>

#define PF_PORT_NAME "org.pagefusion.agent.0"

/* Path of the port: of udev's link, or else of the device that sysfs names. 0 or -ENOENT. */
int pf_port_find(char *path, size_t size);

/* The same where / is that directory, for tests; "" is the real one. */
int pf_port_find_under(const char *root, char *path, size_t size);
