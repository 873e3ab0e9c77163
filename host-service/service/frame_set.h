/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* A set of frame numbers, which come in dense ranges that may lie far apart. */
#include "common/page.h"

typedef struct PfFrameSet PfFrameSet;

PfFrameSet *pf_frame_set_new(void);
void pf_frame_set_free(PfFrameSet *set);

bool pf_frame_set_has(const PfFrameSet *set, PfFrame frame);
void pf_frame_set_add(PfFrameSet *set, PfFrame frame);
void pf_frame_set_remove(PfFrameSet *set, PfFrame frame);

/* How many frames from `first` on, max_frames (not 0) at most, are all in the set, or all not, as `first` is. */
uint64_t pf_frame_set_stretch(const PfFrameSet *set, PfFrame first, uint64_t max_frames);
