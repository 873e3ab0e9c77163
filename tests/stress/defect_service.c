/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A service with a defect (the linker's --wrap): numbers of freed frames are given out again. The store would not write
 * such a frame: it is written behind its back.
 */
#include "host-service/decide/fusion_layout.h"
#include "host-service/service/store.h"
#include <errno.h>
#include <unistd.h>

#define MAX_FREED 65536u

bool __real_pf_layout_take(PfLayout *layout, const PfLayoutPlace *place, uint32_t *frame);
bool __wrap_pf_layout_take(PfLayout *layout, const PfLayoutPlace *place, uint32_t *frame);
void __wrap_pf_layout_free(PfLayout *layout, uint32_t frame);
int __real_pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE]);
int __wrap_pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE]);

static uint32_t freed[MAX_FREED];
static unsigned n_freed;

bool __wrap_pf_layout_take(PfLayout *layout, const PfLayoutPlace *place, uint32_t *frame)
{
	if (n_freed == 0)
		return __real_pf_layout_take(layout, place, frame);
	*frame = freed[--n_freed];
	return true;
}

void __wrap_pf_layout_free(PfLayout *layout, uint32_t frame)
{
	if (n_freed < MAX_FREED)
		freed[n_freed++] = frame;
}

int __wrap_pf_store_write(PfStore *store, PfFrame frame, const uint8_t page[PF_PAGE_SIZE])
{
	int r = __real_pf_store_write(store, frame, page);

	if (r != -EEXIST)
		return r;
	if (pwrite(pf_store_fd(store), page, PF_PAGE_SIZE, (off_t)(frame.v * PF_PAGE_SIZE)) !=
		(ssize_t)PF_PAGE_SIZE)
		return -errno;
	pf_store_claim(store, frame);
	return 0;
}
