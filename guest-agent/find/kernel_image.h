/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The kernel's own code and read-only data: /proc/iomem says where, /proc/kcore what is there. */
#include "guest-agent/facts.h"
#include "guest-agent/find/found.h"

typedef struct PfKernelImage PfKernelImage;

/* 0 and an image; -errno with *impossible set to a text to show (lockdown, no /proc/kcore). */
int pf_kernel_image_new(PfKernelImage **image, const char **impossible);

/* The same with other files in the place of /proc/iomem, /proc/kcore and /sys/kernel/notes. */
int pf_kernel_image_new_from(PfKernelImage **image, const char *iomem, const char *kcore,
	const char *notes, const char **impossible);
void pf_kernel_image_free(PfKernelImage *image);

/* Key, stamp and name for pf_state_see(); fd is -1. The build-id: its size, 0 for none. */
void pf_kernel_image_describe(const PfKernelImage *image, PfFound *found);
size_t pf_kernel_image_build_id(const PfKernelImage *image, uint8_t id[PF_SESSION_MAX_BUILD_ID]);

/* As pf_visitor_visit(). */
int pf_kernel_image_visit(
	PfKernelImage *image, PfFile *file, const PfRam *ram, PfStep step, void *userdata);
