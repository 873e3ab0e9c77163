/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * A VM is fused when its guest is located (guest.c) and its shim is ready. A shim that connects
 * says HELLO; everything that an earlier service fused is RELEASED first, so that what it has and
 * what fusion believes are the same from the start; then ATTACH with the userfaultfd device, and
 * after READY the STORE and the STAGING memfd. PfTalk says how far that is. A shim that breaks the
 * protocol or speaks out of turn is disconnected. It comes back by itself and goes through all of
 * this again; a reason that was logged already is not logged at each of its attempts.
 *
 * At most MAX_ORDERS are with the shim at once, one CAPTURE among them because captures share the
 * staging memfd.
 */
#include "host-service/vm.h"
#include "common/log.h"
#include "host-service/guest.h"
#include "host-service/host_features.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ORDERS     4
#define RELEASE_ID     1
#define DEVICE_RETRY_S 2

/* Which message of the conversation with the shim comes next. LOST and STATE come at any time. */
typedef enum PfTalk {
	TALK_HELLO,     /* HELLO */
	TALK_FOREIGN,   /* none: there is no version in common */
	TALK_RELEASING, /* RELEASED */
	TALK_DEVICE,    /* none: the broker is asked for the device */
	TALK_ATTACHING, /* READY, also after one that said no */
	TALK_READY,     /* answers to orders */
} PfTalk;

typedef struct Outstanding {
	uint64_t id; /* 0: a free place */
	PfOrderType type;
	uint32_t n_pages;
} Outstanding;

struct PfVm {
	int refs; /* one for the owner, one for each answer of the broker that is awaited */
	gboolean closed;
	const PfVmContext *context;
	char *name;
	PfStore *store;
	PfFusionVm *fusion;
	PfGuest *guest;

	PfShimLink *shim;
	guint shim_serial; /* counts shims: an answer meant for an earlier one is void */
	PfTalk talk;
	char *shim_reason;     /* why it is not ready; NULL: it is, or on its way */
	char *logged;          /* the newest reason that was logged, of any shim */
	gboolean logged_ready; /* ready was logged after it */
	gboolean logged_stop;  /* once: what has stopped in QEMU never starts again */
	guint device_source;
	PfShimState state;
	int staging;
	Outstanding orders[MAX_ORDERS];
	PfOrder *held; /* a capture that waits for the staging memfd, when has_held */
	gboolean has_held;
};

static void unref(PfVm *vm)
{
	if (--vm->refs > 0)
		return;
	g_free(vm->name);
	g_free(vm->shim_reason);
	g_free(vm->logged);
	g_free(vm->held);
	g_free(vm);
}

/* Takes the reason why the shim is not ready, and logs it when it is news. */
static void set_reason(PfVm *vm, PfLogLevel level, char *reason)
{
	gboolean news = g_strcmp0(reason, vm->logged) != 0;

	pf_log(news ? level : PF_LOG_DEBUG, "%s: %s", vm->name, reason);
	g_free(vm->shim_reason);
	vm->shim_reason = reason;
	if (!news)
		return;
	g_free(vm->logged);
	vm->logged = g_strdup(reason);
	vm->logged_ready = FALSE;
}

static void speaks_out_of_turn(PfVm *vm)
{
	pf_shim_link_close(vm->shim, "it spoke out of turn");
}

static void update_ready(PfVm *vm)
{
	pf_fusion_set_ready(vm->fusion, vm->talk == TALK_READY && pf_guest_located(vm->guest));
	vm->context->wanted(vm->context->userdata);
}

static void on_guest_changed(void *userdata)
{
	update_ready(userdata);
}

static void drop_shim(PfVm *vm)
{
	g_clear_pointer(&vm->shim, pf_shim_link_free);
	g_clear_handle_id(&vm->device_source, g_source_remove);
	vm->talk = TALK_HELLO;
	vm->shim_serial++;
	g_clear_pointer(&vm->shim_reason, g_free);
	vm->has_held = FALSE;
	memset(vm->orders, 0, sizeof vm->orders);
	memset(&vm->state, 0, sizeof vm->state);
	pf_fusion_shim_reset(vm->fusion);
	update_ready(vm);
}

static void on_guest_moved(void *userdata)
{
	PfVm *vm = userdata;

	if (vm->shim)
		pf_shim_link_close(vm->shim, "the guest's RAM has changed, all is released first");
}

static const PfGuestEvents guest_events = {on_guest_changed, on_guest_moved};

/* Orders */

static Outstanding *find_order(PfVm *vm, uint64_t id)
{
	for (size_t i = 0; i < MAX_ORDERS; i++)
		if (vm->orders[i].id == id)
			return &vm->orders[i];
	return NULL;
}

static gboolean capture_is_out(const PfVm *vm)
{
	for (size_t i = 0; i < MAX_ORDERS; i++)
		if (vm->orders[i].id != 0 && vm->orders[i].type == PF_ORDER_CAPTURE)
			return TRUE;
	return FALSE;
}

static void send_fuse(PfVm *vm, const PfOrder *order)
{
	static PfShimRun runs[PF_SHIM_MAX_RUNS];

	for (uint32_t i = 0; i < order->n_runs; i++) {
		const PfOrderRun *run = &order->runs[i];

		/* A page outside what is located has hva 0, which is no RAM: the shim says so. */
		runs[i] = (PfShimRun){pf_guest_hva(vm->guest, run->gfn, run->n_pages).v,
			run->frame.v, run->n_pages, 0};
	}
	pf_shim_link_send(
		vm->shim, PF_SHIM_FUSE, order->id, runs, order->n_runs * sizeof *runs, -1);
}

static void send_capture(PfVm *vm, const PfOrder *order)
{
	PfShimCapture pages[PF_SHIM_MAX_CAPTURE];
	uint32_t n = 0;

	for (uint32_t i = 0; i < order->n_runs; i++)
		for (uint32_t k = 0; k < order->runs[i].n_pages && n < PF_SHIM_MAX_CAPTURE;
			k++, n++)
			pages[n] = (PfShimCapture){
				pf_guest_hva(vm->guest, (PfGfn){order->runs[i].gfn.v + k}, 1).v, n,
				0};
	pf_shim_link_send(vm->shim, PF_SHIM_CAPTURE, order->id, pages, n * sizeof *pages, -1);
}

static void send_order(PfVm *vm, const PfOrder *order, Outstanding *place)
{
	*place = (Outstanding){order->id, order->type, order->n_pages};
	if (order->type == PF_ORDER_CAPTURE)
		send_capture(vm, order);
	else
		send_fuse(vm, order);
}

void pf_vm_pump(PfVm *vm)
{
	Outstanding *place;

	while (vm->talk == TALK_READY && (place = find_order(vm, 0))) {
		if (!vm->has_held &&
			!pf_fusion_next_order(vm->fusion, vm->held, g_get_monotonic_time()))
			return;
		vm->has_held = vm->held->type == PF_ORDER_CAPTURE && capture_is_out(vm);
		if (vm->has_held)
			return;
		send_order(vm, vm->held, place);
	}
}

/* Answers */

static void on_closed(void *userdata, const char *reason)
{
	PfVm *vm = userdata;

	drop_shim(vm);
	set_reason(vm, PF_LOG_WARNING, g_strdup_printf("the shim in QEMU is gone: %s", reason));
}

/* The order that an answer is for, and no other kind; its place is free then. FALSE: there is none,
 * the shim goes. */
static gboolean end_order(PfVm *vm, uint64_t id, PfOrderType type, uint32_t n_pages)
{
	Outstanding *order = id != 0 ? find_order(vm, id) : NULL;

	if (!order || order->type != type || order->n_pages != n_pages) {
		pf_shim_link_close(vm->shim, "it answered what was not asked");
		return FALSE;
	}
	*order = (Outstanding){0};
	return TRUE;
}

typedef struct Captured {
	PfStore *store;
	const uint8_t (*pages)[PF_PAGE_SIZE];
} Captured;

static bool publish(void *userdata, uint32_t page, PfFrame frame)
{
	const Captured *captured = userdata;
	int error = pf_store_write(captured->store, frame, captured->pages[page]);

	if (error)
		pf_warning("a frame cannot be written to the store: %s", g_strerror(-error));
	return error == 0;
}

static void on_captured(void *userdata, uint64_t id, const uint8_t *answer, uint32_t n_pages)
{
	static uint8_t pages[PF_SHIM_MAX_CAPTURE][PF_PAGE_SIZE];
	uint8_t results[PF_SHIM_MAX_CAPTURE];
	PfDigest digests[PF_SHIM_MAX_CAPTURE];
	PfVm *vm = userdata;
	Captured captured = {vm->store, pages};
	PfCapture capture = {results, digests, publish, &captured};

	if (!end_order(vm, id, PF_ORDER_CAPTURE, n_pages))
		return;
	/* Our copy is hashed, and our copy is published: what QEMU does to the staging memfd
	 * meanwhile is its own affair. */
	for (uint32_t i = 0; i < n_pages; i++) {
		results[i] = answer[i];
		if (results[i] != PF_SHIM_DONE)
			continue;
		if (pread(vm->staging, pages[i], PF_PAGE_SIZE, (off_t)(i * PF_PAGE_SIZE)) !=
				(ssize_t)PF_PAGE_SIZE ||
			pf_hasher_page(vm->context->hasher, pages[i], &digests[i]) != 0)
			results[i] = PF_SHIM_FAILED;
	}
	if (pf_fusion_captured(vm->fusion, id, n_pages, &capture, g_get_monotonic_time()) != 0)
		pf_shim_link_close(vm->shim, "it answered what was not asked");
	vm->context->wanted(vm->context->userdata);
}

static void on_fused(void *userdata, uint64_t id, const uint8_t *results, uint32_t n_pages)
{
	PfVm *vm = userdata;

	if (!end_order(vm, id, PF_ORDER_FUSE, n_pages))
		return;
	if (pf_fusion_fused(vm->fusion, id, n_pages, results, g_get_monotonic_time()) != 0)
		pf_shim_link_close(vm->shim, "it answered what was not asked");
	vm->context->wanted(vm->context->userdata);
}

static void on_lost(void *userdata, const PfShimLost *lost, size_t n)
{
	PfVm *vm = userdata;
	int64_t now = g_get_monotonic_time();

	/* Before READY it speaks of what an earlier service fused. */
	for (size_t i = 0; vm->talk == TALK_READY && i < n; i++) {
		for (uint32_t done = 0, count; done < lost[i].n_pages; done += count) {
			PfHva hva = {lost[i].hva + done * PF_PAGE_SIZE};
			uint32_t left = lost[i].n_pages - done;
			uint64_t in_range;
			PfGfn gfn;

			in_range = pf_guest_gfn(vm->guest, hva, &gfn);
			count = in_range < left ? (uint32_t)in_range : left;
			if (count == 0 ||
				pf_fusion_lost(vm->fusion, gfn, (PfFrame){lost[i].frame + done},
					count, lost[i].loss, now) != 0) {
				pf_shim_link_close(vm->shim, "it lost what it did not have");
				return;
			}
		}
	}
	vm->context->wanted(vm->context->userdata);
}

static void on_state(void *userdata, const PfShimState *state)
{
	PfVm *vm = userdata;

	if (state->stopped && !vm->logged_stop)
		pf_error("%s: the shim has stopped fusing: %s", vm->name,
			g_strerror(state->stopped_error));
	vm->logged_stop |= state->stopped != 0;
	vm->state = *state;
}

/* Getting ready */

static int make_staging(GError **error)
{
	int fd = memfd_create("pagefusion-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && ftruncate(fd, PF_SHIM_MAX_CAPTURE * PF_PAGE_SIZE) == 0 &&
		fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return fd;
	g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
		"no memfd to receive pages in: %s", g_strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static void begin_fusing(PfVm *vm)
{
	PfShimStore store = {0};

	memcpy(store.group_id, pf_store_id(vm->store), sizeof store.group_id);
	pf_shim_link_send(
		vm->shim, PF_SHIM_STORE, 0, &store, sizeof store, pf_store_readonly_fd(vm->store));
	pf_shim_link_send(vm->shim, PF_SHIM_STAGING, 0, NULL, 0, vm->staging);
	vm->talk = TALK_READY;
	pf_log(vm->logged_ready ? PF_LOG_DEBUG : PF_LOG_INFO, "%s: the shim is ready", vm->name);
	vm->logged_ready = TRUE;
	update_ready(vm);
}

static void on_ready(void *userdata, const PfShimReady *ready)
{
	g_autofree char *names = NULL;
	PfVm *vm = userdata;

	if (vm->talk != TALK_ATTACHING) {
		speaks_out_of_turn(vm);
		return;
	}
	g_clear_pointer(&vm->shim_reason, g_free);
	switch (ready->code) {
	case PF_SHIM_READY_OK:
		begin_fusing(vm);
		return;
	case PF_SHIM_READY_NO_BLOCKS:
		vm->shim_reason = g_strdup("QEMU has no RAM of private anonymous memory");
		return;
	case PF_SHIM_READY_NO_FEATURES:
		names = pf_host_feature_names(ready->missing_features);
		set_reason(vm, PF_LOG_ERROR, g_strdup_printf("the host's kernel lacks %s", names));
		return;
	default:
		set_reason(vm, PF_LOG_ERROR,
			g_strdup_printf("the shim cannot start: %s", g_strerror(ready->error)));
	}
}

static gboolean on_device_again(gpointer userdata);

/* A kernel without the device does not get one; any other error may pass. */
static void no_device(PfVm *vm, const GError *error)
{
	set_reason(vm, PF_LOG_ERROR, g_strdup(error->message));
	if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED))
		vm->device_source = g_timeout_add_seconds(DEVICE_RETRY_S, on_device_again, vm);
}

typedef struct Attach {
	PfVm *vm; /* a reference */
	guint serial;
} Attach;

static void on_device(GObject *source, GAsyncResult *result, gpointer userdata)
{
	g_autofree Attach *attach = userdata;
	PfVm *vm = attach->vm;
	g_autoptr(GError) error = NULL;
	int fd = pf_broker_open_userfaultfd_finish(result, &error);

	if (!vm->closed && attach->serial == vm->shim_serial) {
		if (fd >= 0) {
			g_clear_pointer(&vm->shim_reason, g_free);
			vm->talk = TALK_ATTACHING;
			pf_shim_link_send(vm->shim, PF_SHIM_ATTACH, 1, NULL, 0, fd);
		} else {
			no_device(vm, error);
		}
	}
	if (fd >= 0)
		close(fd);
	unref(vm);
}

static void ask_for_device(PfVm *vm)
{
	Attach *attach = g_new(Attach, 1);

	vm->refs++;
	*attach = (Attach){vm, vm->shim_serial};
	pf_broker_open_userfaultfd(vm->context->broker, on_device, attach);
}

static gboolean on_device_again(gpointer userdata)
{
	PfVm *vm = userdata;

	vm->device_source = 0;
	ask_for_device(vm);
	return G_SOURCE_REMOVE;
}

static void on_released(void *userdata, uint64_t id)
{
	PfVm *vm = userdata;

	if (vm->talk != TALK_RELEASING || id != RELEASE_ID) {
		speaks_out_of_turn(vm);
		return;
	}
	vm->talk = TALK_DEVICE;
	ask_for_device(vm);
}

static void on_hello(void *userdata, const PfShimHello *hello)
{
	PfVm *vm = userdata;

	if (vm->talk != TALK_HELLO) {
		speaks_out_of_turn(vm);
		return;
	}
	if (hello->version_oldest > PF_SHIM_VERSION || hello->version < PF_SHIM_VERSION) {
		/* It goes on revoking by itself; only fusing needs a version in common. */
		vm->talk = TALK_FOREIGN;
		set_reason(vm, PF_LOG_WARNING,
			g_strdup_printf(
				"the VM's shim speaks protocol %u to %u and this service %u: "
				"restart the VM to load the installed one",
				hello->version_oldest, hello->version, PF_SHIM_VERSION));
		return;
	}
	if (hello->page_size != PF_PAGE_SIZE) {
		pf_shim_link_close(vm->shim, "its page size is not ours");
		return;
	}
	if (hello->fused_pages > 0)
		pf_info("%s: %" G_GUINT64_FORMAT " pages of an earlier connection are released",
			vm->name, (guint64)hello->fused_pages);
	vm->talk = TALK_RELEASING;
	pf_shim_link_send(vm->shim, PF_SHIM_RELEASE, RELEASE_ID, NULL, 0, -1);
}

static const PfShimLinkEvents shim_events = {
	.hello = on_hello,
	.ready = on_ready,
	.captured = on_captured,
	.fused = on_fused,
	.released = on_released,
	.lost = on_lost,
	.state = on_state,
	.closed = on_closed,
};

void pf_vm_take_shim(PfVm *vm, PfShimLink *link)
{
	drop_shim(vm);
	if (pf_shim_link_uid(link) == 0) {
		/* Root could write to the store through /proc, and so into every VM of the group.
		 */
		set_reason(vm, PF_LOG_ERROR,
			g_strdup("QEMU runs as root: set user and group in /etc/libvirt/qemu.conf "
				 "to another user and start the VM again"));
		pf_shim_link_free(link);
		return;
	}
	vm->shim = link;
	pf_shim_link_start(link, &shim_events, vm);
}

/* The VM */

PfVm *pf_vm_new(const PfVmContext *context, const PfDomain *domain, PfStore *store, GError **error)
{
	int staging = make_staging(error);
	PfVm *vm;

	if (staging < 0)
		return NULL;
	vm = g_new0(PfVm, 1);
	vm->refs = 1;
	vm->context = context;
	vm->name = g_strdup(domain->name);
	vm->store = store;
	vm->held = g_new0(PfOrder, 1);
	vm->staging = staging;
	vm->fusion = pf_fusion_add_vm(context->fusion, domain->group, vm);
	vm->guest = pf_guest_new(context->broker, vm->fusion, domain, &guest_events, vm);
	pf_vm_update(vm, domain);
	return vm;
}

void pf_vm_free(PfVm *vm)
{
	if (!vm)
		return;
	vm->closed = TRUE;
	g_clear_pointer(&vm->shim, pf_shim_link_free);
	g_clear_handle_id(&vm->device_source, g_source_remove);
	g_clear_pointer(&vm->guest, pf_guest_free);
	pf_fusion_remove_vm(vm->fusion);
	vm->fusion = NULL;
	close(vm->staging);
	unref(vm);
}

void pf_vm_update(PfVm *vm, const PfDomain *domain)
{
	pf_guest_update(vm->guest, domain);
}

static const char *reason_of(const PfVm *vm)
{
	const char *reason = pf_guest_reason(vm->guest);

	if (vm->shim_reason)
		return vm->shim_reason;
	if (!vm->shim)
		return "the VM's QEMU has not connected: was it started before page fusion was "
		       "turned on?";
	if (vm->talk != TALK_READY)
		return "the shim is getting ready";
	if (vm->state.stopped)
		return "the shim has stopped fusing after an error (see the service's log); "
		       "restart the VM";
	if (reason)
		return reason;
	if (vm->state.maps_budget > 0 && vm->state.maps + 4 > vm->state.maps_budget)
		return "the maps of QEMU are used up: raise vm.max_map_count";
	return "";
}

void pf_vm_view(const PfVm *vm, PfVmView *view)
{
	view->reason = reason_of(vm);
	view->agent_version = pf_guest_agent_version(vm->guest);
	view->kernel = pf_guest_kernel(vm->guest);
	view->shim_connected = vm->shim != NULL;
	view->shim = vm->state;
	pf_fusion_vm_stats(vm->fusion, &view->stats);
}
