/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/service/vm_private.h"
#include "host-service/service/process_id.h"
#include <errno.h>
#include <poll.h>
#include <sys/pidfd.h>
#include <unistd.h>

void pf_vm_unref(PfVm *vm)
{
	if (--vm->refs > 0)
		return;
	g_free(vm->name);
	g_free(vm->group_name);
	g_free(vm->refusal);
	g_free(vm->shim_reason);
	g_free(vm->logged);
	g_free(vm->reason);
	g_free(vm);
}

static void on_guest_changed(void *userdata)
{
	pf_vm_shim_guest_changed(userdata);
}

static void on_guest_moved(void *userdata)
{
	pf_vm_shim_guest_moved(userdata);
}

static const PfGuestEvents guest_events = {on_guest_changed, on_guest_moved};

/* By this the process is known from then on, whatever becomes of its number. */
static int open_process(const PfDomain *domain, GError **error)
{
	int fd = pidfd_open((pid_t)domain->pid, 0);

	if (fd < 0)
		g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
			"QEMU's process cannot be watched: %s", g_strerror(errno));
	return fd;
}

PfVm *pf_vm_new(const PfVmContext *context, const PfDomain *domain, GError **error)
{
	int process = open_process(domain, error), staging;
	PfVm *vm;

	if (process < 0)
		return NULL;
	staging = pf_orders_make_staging(error);
	if (staging < 0) {
		close(process);
		return NULL;
	}
	vm = g_new0(PfVm, 1);
	vm->refs = 1;
	vm->context = context;
	vm->process = process;
	if (pf_process_id(process, &vm->process_id) < 0)
		vm->process_id = 0;
	vm->pid = domain->pid;
	vm->name = g_strdup(domain->name);
	vm->group_name = g_strdup(domain->group);
	vm->fusion = pf_fusion_add_vm(context->fusion, domain->group, vm);
	pf_quota_init(&vm->quota, pf_config_policy(context->config, domain->group),
		g_get_monotonic_time());
	pf_log_limit_init(&vm->log, vm->name, g_get_monotonic_time());
	vm->guest = pf_guest_new(
		context->broker, vm->fusion, domain, &vm->quota, &vm->log, &guest_events, vm);
	vm->group = pf_groups_join(context->groups, domain->group);
	vm->orders = pf_orders_new(vm->fusion, vm->guest, context->hasher, &vm->log, staging);
	pf_vm_adopt_store(vm);
	pf_vm_update(vm, domain);
	return vm;
}

gboolean pf_vm_has_ended(const PfVm *vm)
{
	struct pollfd process = {.fd = vm->process, .events = POLLIN};

	return poll(&process, 1, 0) > 0;
}

int pf_vm_process(const PfVm *vm)
{
	return vm->process;
}

gint64 pf_vm_pid(const PfVm *vm)
{
	return vm->pid;
}

uint64_t pf_vm_process_id(const PfVm *vm)
{
	return vm->process_id;
}

gboolean pf_vm_is_known(const PfVm *vm)
{
	return pf_fusion_vm_is_known(vm->fusion);
}

void pf_vm_free(PfVm *vm)
{
	if (!vm)
		return;
	vm->closed = TRUE;
	pf_vm_shim_free(vm);
	pf_vm_patience_free(vm);
	g_clear_pointer(&vm->orders, pf_orders_free);
	g_clear_pointer(&vm->guest, pf_guest_free);
	pf_fusion_remove_vm(vm->fusion);
	vm->fusion = NULL;
	if (pf_vm_has_ended(vm))
		pf_group_leave(vm->group);
	else
		pf_group_forsake(vm->group);
	close(vm->process);
	pf_vm_unref(vm);
}

static char *refusal_of(const PfDomain *domain)
{
	if (!domain->enabled)
		return g_strdup("page fusion was turned off for it while it runs");
	return domain->refusal[0] ? g_strdup(domain->refusal) : NULL;
}

void pf_vm_update(PfVm *vm, const PfDomain *domain)
{
	g_autofree char *refusal = refusal_of(domain);
	PfDomain allowed = *domain;

	/* Its hints would count for others of its group. */
	if (refusal) {
		allowed.channel[0] = 0;
		pf_fusion_session_started(vm->fusion);
	}
	if (vm->shim && (!refusal != !vm->refusal))
		pf_shim_link_close(vm->shim, refusal ? "the VM is not to be fused any more"
						     : "the VM may be fused again");
	g_free(vm->refusal);
	vm->refusal = g_steal_pointer(&refusal);
	vm->thp = pf_vm_thp(vm->context->config, domain);
	pf_fusion_set_thp(vm->fusion, vm->thp);
	pf_fusion_set_policy(vm->fusion, pf_config_policy(vm->context->config, vm->group_name),
		domain->memory_pages);
	pf_guest_update(vm->guest, &allowed);
	vm->context->wanted(vm->context->userdata);
}

void pf_vm_pump(PfVm *vm)
{
	if (vm->talk != TALK_READY)
		return;
	pf_orders_pump(vm->orders, vm->shim);
	pf_vm_expect_answers(vm);
}

PfThp pf_vm_thp(const PfConfig *config, const PfDomain *domain)
{
	return domain->thp == PF_THP_DEFAULT ? pf_config_policy(config, domain->group)->thp
					     : domain->thp;
}

PfGroup *pf_vm_group(const PfVm *vm)
{
	return vm->group;
}

const char *pf_vm_group_name(const PfVm *vm)
{
	return vm->group_name;
}

static char *reason_for_maps(const PfVm *vm)
{
	const PfShimState *state = &vm->state;

	if (state->maps_budget == 0 || state->maps <= state->maps_budget / 2)
		return NULL;
	if (state->maps + 4 > state->maps_budget)
		return g_strdup_printf("the maps of QEMU are used up (%" G_GUINT64_FORMAT
				       " of %" G_GUINT64_FORMAT
				       "), nothing more is fused: raise vm.max_map_count",
			(guint64)state->maps, (guint64)state->maps_budget);
	return g_strdup_printf("the maps of QEMU become scarce (%" G_GUINT64_FORMAT
			       " of %" G_GUINT64_FORMAT
			       "), only long runs are fused: raise vm.max_map_count",
		(guint64)state->maps, (guint64)state->maps_budget);
}

static char *reason_for_quota(const PfVm *vm)
{
	static const struct {
		const char *asked, *keys;
	} quotas[] = {
		[PF_QUOTA_CANDIDATES] = {"names more pages that are not shared",
			"candidates-percent"},
		[PF_QUOTA_FRAMES] = {"could give more pages to share", "frames-percent"},
		[PF_QUOTA_INDEX] = {"needs more of the service's memory",
			"index-memory-percent (or memory-limit, for all VMs together)"},
	};
	PfFusionVmStats stats;

	pf_fusion_vm_stats(vm->fusion, &stats);
	if (stats.quota == PF_QUOTA_NONE)
		return NULL;
	return g_strdup_printf(
		"its guest %s than its trust group, %s, allows: raise %s in pagefusiond.conf",
		quotas[stats.quota].asked, vm->group_name, quotas[stats.quota].keys);
}

static char *reason_of(const PfVm *vm)
{
	const char *reason = pf_guest_reason(vm->guest);
	const char *exceeded = pf_quota_exceeded(&vm->quota, g_get_monotonic_time());
	char *maps;

	if (vm->refusal)
		return g_strdup(vm->refusal);
	if (vm->shim_reason)
		return g_strdup(vm->shim_reason);
	if (!vm->shim)
		return g_strdup(
			"the VM's QEMU has not connected: was it started before page fusion "
			"was turned on?");
	if (vm->talk != TALK_READY && vm->talk != TALK_LOCATING)
		return g_strdup("the shim is getting ready");
	if (vm->state.stopped)
		return g_strdup(
			"the shim has stopped fusing after an error (see the service's log); "
			"restart the VM");
	if (vm->state.aside)
		return g_strdup(
			"QEMU uses userfaultfd itself (a snapshot or a migration): fusing goes "
			"on when it has finished");
	if (reason)
		return g_strdup(reason);
	if (exceeded)
		return g_strdup_printf("its guest or its QEMU asks for more than its trust group "
				       "allows and is slowed: %s",
			exceeded);
	maps = reason_for_maps(vm);
	return maps ? maps : reason_for_quota(vm);
}

void pf_vm_view(PfVm *vm, PfVmView *view)
{
	g_free(vm->reason);
	vm->reason = reason_of(vm);
	view->reason = vm->reason ? vm->reason : "";
	view->agent_version = pf_guest_agent_version(vm->guest);
	view->kernel = pf_guest_kernel(vm->guest);
	view->figures = (PfVmFigures){.shim_connected = vm->shim != NULL,
		.thp = vm->thp,
		.shim = vm->state,
		.paused_ms = vm->quota.paused_us / 1000};
	view->figures.additions = pf_guest_additions(vm->guest, &view->figures.additions_since);
	pf_fusion_vm_stats(vm->fusion, &view->figures.stats);
}
