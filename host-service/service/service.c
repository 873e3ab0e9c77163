/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * The broker says which domains there are. One that runs has a PfVm if its flag is on, or if its shim has connected:
 * a VM that was refused or switched off while it runs may share memory still, which has to be released. It is gone
 * when its process is, whatever libvirt says.
 *
 * Whoever may have made orders possible calls wanted(); then one idle callback pumps all VMs that
 * have some, after everything that is readable was read, so that orders are long. Behind them frames that nobody
 * needs any more are given back. What else a store may hold (frames of an earlier service that nobody has claimed,
 * holes that a QEMU has touched) is looked for now and then, and not before every shim has had time to come back.
 *
 * Frames of an earlier service can go when it is known of every process that was ever given their store what it maps. The
 * store says which these are, its members: it does not matter what libvirt knows, or who else knocks at the shims' socket.
 * A member is known when it is a VM here, of whatever trust group by now, whose shim was heard of: a shim holds one store,
 * and has named or released all that it maps of it. Nobody becomes a member but through us and when it is known, so a group
 * that is complete stays complete. Where the kernel could not tell processes apart, everybody has to be known whom libvirt
 * or the socket knows of, over all groups.
 */
#include "host-service/service/service.h"
#include "common/log.h"
#include "host-service/service/shim_listener.h"
#include "host-service/service/vm.h"
#include <glib-unix.h>
#include <string.h>

#define FREE_A_TURN   1024 /* frames */
#define SWEEP_S       10
#define QUIET_US      (SWEEP_S * G_USEC_PER_SEC)
#define SWEEP_TURN_US 2000 /* without a pause */
#define SWEEP_SLACK_KIB                                                                            \
	1024 /* beside the frames, in a store of ours: it costs less than looking for it */
static_assert(SWEEP_S * 1000 >= 2 * PF_SHIM_RETRY_MAX_MS, "shims have had time to come back");

typedef struct Domain {
	PfDomain domain;
	PfVm *vm;      /* NULL unless it runs, and has the flag or a shim */
	char *trouble; /* why there is none all the same; NULL: there is, or need not be */
} Domain;

/* libvirt says that it does not run any more, and its process is there still. */
typedef struct Ending {
	PfService *service;
	PfVm *vm;
	guint source;
} Ending;

struct PfService {
	PfBroker *broker;
	PfFusion *fusion;
	PfVmContext context;
	PfGroups *groups;
	PfPressure *pressure;
	gboolean is_under_pressure;
	GHashTable *domains;   /* uuid (in the value) -> Domain */
	GHashTable *processes; /* pf_vm_process_id() (owned) -> PfVm, also those that are ending */
	GQueue ending;         /* of Ending */
	PfShimListener *shims;
	guint pump_source, tick_source, sweep_source, turn_source;
	gint64 sweep_end_us; /* of this turn */
	gboolean sweeps;     /* there is more to do behind it */
	gboolean had_time;   /* every shim that was there at the start has had time to come back */
	gboolean connected, was_connected;
	char *reason;
	void (*closed)(void *userdata);
	void *userdata;
};

/* Orders */

/*
 * Frames of an earlier service would be made a second time if orders began before all that share them have said so.
 * But not for ever: a VM may be there whose shim never comes.
 */
static gboolean may_order(const PfService *service, const PfVm *vm)
{
	const PfStore *store = pf_group_peek_store(pf_vm_group(vm));

	return service->had_time || !store || pf_store_first_own(store) == PF_STORE_FIRST_FRAME ||
	       pf_fusion_is_complete(service->fusion, pf_vm_group_name(vm));
}

static void pump_one(PfFusionVm *fusion_vm, void *userdata)
{
	PfVm *vm = pf_fusion_vm_userdata(fusion_vm);

	if (may_order(userdata, vm))
		pf_vm_pump(vm);
}

static gboolean on_tick(gpointer userdata);

static void arm_tick(PfService *service)
{
	gint64 due = pf_fusion_next_tick_us(service->fusion), wait;

	g_clear_handle_id(&service->tick_source, g_source_remove);
	if (due < 0)
		return;
	wait = MAX(0, due - g_get_monotonic_time());
	service->tick_source = g_timeout_add((guint)MIN(wait / 1000 + 1, 60000), on_tick, service);
}

static void on_wanted(void *userdata);

static void on_freed(void *userdata, const char *group, PfFrame frame)
{
	PfService *service = userdata;

	pf_store_drop(pf_group_peek_store(pf_groups_find(service->groups, group)), frame);
}

/* Which groups are complete */

static void free_vm(PfService *service, PfVm *vm)
{
	uint64_t process = vm ? pf_vm_process_id(vm) : 0;

	if (g_hash_table_lookup(service->processes, &process) == vm)
		g_hash_table_remove(service->processes, &process);
	pf_vm_free(vm);
}

static bool is_known(void *userdata, uint64_t process)
{
	const PfService *service = userdata;
	const PfVm *vm = g_hash_table_lookup(service->processes, &process);

	return vm && pf_vm_is_known(vm);
}

/*
 * Whether every process that may share memory has its VM here, by all that is known without the stores' members. A shim that
 * nobody knows may be of a VM that libvirt has forgotten; it knocks again within SWEEP_S.
 */
static gboolean knows_everybody(const PfService *service)
{
	gboolean all =
		service->was_connected && pf_shim_listener_is_quiet(service->shims, QUIET_US);
	GHashTableIter iter;
	Domain *domain;

	g_hash_table_iter_init(&iter, service->domains);
	while (all && g_hash_table_iter_next(&iter, NULL, (gpointer *)&domain))
		all = domain->vm || !domain->domain.active || !domain->domain.has_shim;
	return all && pf_fusion_knows_all(service->fusion);
}

static void update_group(void *userdata, const char *group, PfStore *store)
{
	PfService *service = userdata;
	gboolean complete;

	if (pf_fusion_is_complete(service->fusion, group) && !pf_store_members_unsure(store))
		return;
	complete = pf_store_members_known(store, is_known, service);
	if (pf_store_members_unsure(store))
		complete = complete && knows_everybody(service);
	pf_fusion_set_complete(service->fusion, group, complete);
}

static gboolean on_pump(gpointer userdata)
{
	PfService *service = userdata;

	service->pump_source = 0;
	pf_groups_foreach_store(service->groups, update_group, service);
	pf_fusion_foreach_pending(service->fusion, pump_one, service);
	if (!pf_fusion_free_unused(service->fusion, FREE_A_TURN, on_freed, service))
		on_wanted(service);
	arm_tick(service);
	return G_SOURCE_REMOVE;
}

static void on_wanted(void *userdata)
{
	PfService *service = userdata;

	if (!service->pump_source)
		service->pump_source = g_idle_add(on_pump, service);
}

static gboolean on_tick(gpointer userdata)
{
	PfService *service = userdata;

	service->tick_source = 0;
	pf_fusion_tick(service->fusion, g_get_monotonic_time());
	on_wanted(service);
	return G_SOURCE_REMOVE;
}

static void on_pressure(void *userdata, gboolean pressure)
{
	PfService *service = userdata;

	service->is_under_pressure = pressure;
	pf_fusion_set_pressure(service->fusion, pressure);
	on_wanted(service);
}

/* Until every VM of an earlier service's store was heard, what looks unused may be mapped. */
static gboolean may_sweep(const PfService *service, const char *group, const PfStore *store)
{
	return pf_store_first_own(store) == PF_STORE_FIRST_FRAME ||
	       pf_fusion_is_complete(service->fusion, group);
}

/* A store with more in it than frames in use. */
static void start_sweep(void *userdata, const char *group, PfStore *store)
{
	const PfService *service = userdata;
	uint64_t kib = pf_store_n_pages(store) * (PF_PAGE_SIZE / 1024);

	if (pf_store_first_own(store) == PF_STORE_FIRST_FRAME)
		kib += SWEEP_SLACK_KIB;
	if (may_sweep(service, group, store) && pf_store_allocated_kib(store) > kib)
		pf_store_start_sweep(store);
}

static void sweep_store(void *userdata, const char *group, PfStore *store)
{
	PfService *service = userdata;
	int64_t left_us = service->sweep_end_us - g_get_monotonic_time();
	uint64_t freed_kib = 0;

	if (!pf_store_is_sweeping(store) || !may_sweep(service, group, store))
		return;
	if (left_us <= 0 || pf_store_sweep(store, left_us, &freed_kib))
		service->sweeps = TRUE;
	else if (freed_kib > 0)
		pf_info("trust group %s: %" G_GUINT64_FORMAT
			" KiB that nobody used went back to the host",
			group, (guint64)freed_kib);
}

static gboolean on_sweep_turn(gpointer userdata);

/* What VMs have touched there they are not charged for: so it may take a tenth of the time, and nobody waits for it. */
static void sweep_turn(PfService *service)
{
	int64_t start_us = g_get_monotonic_time(), pause_us;

	service->sweeps = FALSE;
	service->sweep_end_us = start_us + SWEEP_TURN_US;
	pf_groups_foreach_store(service->groups, sweep_store, service);
	pause_us = 9 * (g_get_monotonic_time() - start_us);
	if (service->sweeps)
		service->turn_source = g_timeout_add_full(
			G_PRIORITY_LOW, (guint)(pause_us / 1000 + 1), on_sweep_turn, service, NULL);
}

static gboolean on_sweep_turn(gpointer userdata)
{
	PfService *service = userdata;

	service->turn_source = 0;
	if (service->connected)
		sweep_turn(service);
	return G_SOURCE_REMOVE;
}

static void ask_again(const PfService *service)
{
	gint64 now_us = g_get_monotonic_time();
	GHashTableIter iter;
	Domain *domain;

	g_hash_table_iter_init(&iter, service->domains);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&domain))
		if (domain->vm)
			pf_vm_ask_again(domain->vm, now_us);
}

static gboolean on_sweep(gpointer userdata)
{
	PfService *service = userdata;

	service->had_time = TRUE;
	ask_again(service);
	pf_groups_foreach_store(service->groups, update_group, service);
	on_wanted(service);
	if (!service->connected)
		return G_SOURCE_CONTINUE;
	pf_groups_drop_unused(service->groups);
	/* The stores that have not had their turn yet come first. */
	if (service->turn_source == 0) {
		pf_groups_foreach_store(service->groups, start_sweep, service);
		sweep_turn(service);
	}
	return G_SOURCE_CONTINUE;
}

/* Domains */

static Domain *find_by_pid(PfService *service, gint64 pid)
{
	GHashTableIter iter;
	Domain *domain;

	/* So the kernel calls a peer whose process id it cannot tell. */
	if (pid <= 0)
		return NULL;
	g_hash_table_iter_init(&iter, service->domains);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&domain))
		if (domain->domain.active && domain->domain.pid == pid)
			return domain;
	return NULL;
}

static void free_domain(gpointer data)
{
	Domain *domain = data;

	g_free(domain->trouble);
	g_free(domain);
}

static void free_ending(gpointer data)
{
	Ending *ending = data;

	g_source_remove(ending->source);
	free_vm(ending->service, ending->vm);
	g_free(ending);
}

static gboolean on_ended(gint fd, GIOCondition condition, gpointer userdata)
{
	Ending *ending = userdata;
	PfService *service = ending->service;

	g_queue_remove(&service->ending, ending);
	free_ending(ending);
	on_wanted(service);
	return G_SOURCE_CONTINUE;
}

/* What libvirt says is not enough to take its pages for gone: only with its process they are. */
static void drop_vm(PfService *service, Domain *domain)
{
	PfVm *vm = g_steal_pointer(&domain->vm);
	PfDomain gone = domain->domain;
	Ending *ending;

	if (!vm)
		return;
	pf_info("%s: not fused any more", domain->domain.name);
	if (pf_vm_has_ended(vm)) {
		free_vm(service, vm);
		return;
	}
	gone.enabled = FALSE;
	gone.channel[0] = 0;
	pf_vm_update(vm, &gone);
	ending = g_new(Ending, 1);
	*ending =
		(Ending){service, vm, g_unix_fd_add(pf_vm_process(vm), G_IO_IN, on_ended, ending)};
	g_queue_push_tail(&service->ending, ending);
}

/* The ending VM that is this process, or NULL. */
static GList *find_ending(PfService *service, gint64 pid)
{
	for (GList *item = service->ending.head; item; item = item->next) {
		const Ending *ending = item->data;

		if (pf_vm_pid(ending->vm) == pid && !pf_vm_has_ended(ending->vm))
			return item;
	}
	return NULL;
}

/* It runs after all. */
static PfVm *take_back(PfService *service, gint64 pid)
{
	GList *item = find_ending(service, pid);
	Ending *ending = item ? item->data : NULL;
	PfVm *vm;

	if (!ending)
		return NULL;
	g_queue_delete_link(&service->ending, item);
	g_source_remove(ending->source);
	vm = ending->vm;
	g_free(ending);
	return vm;
}

/* It is tried again at the domain's next event. */
static void set_trouble(Domain *domain, const char *reason)
{
	if (g_strcmp0(domain->trouble, reason) != 0)
		pf_error("%s: %s", domain->domain.name, reason);
	g_free(domain->trouble);
	domain->trouble = g_strdup(reason);
}

static void add_process(PfService *service, PfVm *vm)
{
	uint64_t process = pf_vm_process_id(vm);

	if (process != 0)
		g_hash_table_replace(service->processes, g_memdup2(&process, sizeof process), vm);
}

static void make_vm(PfService *service, Domain *domain)
{
	g_autoptr(GError) error = NULL;

	domain->vm = take_back(service, domain->domain.pid);
	if (domain->vm) {
		pf_vm_update(domain->vm, &domain->domain);
		return;
	}
	domain->vm = pf_vm_new(&service->context, &domain->domain, &error);
	if (error) {
		set_trouble(domain, error->message);
		return;
	}
	add_process(service, domain->vm);
	g_clear_pointer(&domain->trouble, g_free);
	pf_info("%s: trust group %s", domain->domain.name, domain->domain.group);
}

/* The VM whose QEMU this process is, or NULL: none that is known yet. */
static PfVm *find_vm(void *userdata, pid_t pid)
{
	PfService *service = userdata;
	Domain *domain = find_by_pid(service, pid);
	GList *item = domain ? NULL : find_ending(service, pid);

	if (item)
		return ((Ending *)item->data)->vm;
	if (domain && !domain->vm)
		make_vm(service, domain);
	return domain && domain->vm && !pf_vm_has_ended(domain->vm) ? domain->vm : NULL;
}

/* The reason of a domain that would be fused otherwise; empty: none. */
static const char *warned_refusal(const PfDomain *domain)
{
	return domain->active && domain->enabled ? domain->refusal : "";
}

static gboolean is_fusable(const PfDomain *domain)
{
	return domain->active && domain->enabled && domain->refusal[0] == 0;
}

static Domain *add_domain(PfService *service, const char *uuid)
{
	Domain *domain = g_new0(Domain, 1);

	g_strlcpy(domain->domain.uuid, uuid, sizeof domain->domain.uuid);
	g_hash_table_insert(service->domains, domain->domain.uuid, domain);
	return domain;
}

/* A running VM stays what it began as: its trust group, and its process while libvirt does not know it. */
static void take_news(Domain *domain, const PfDomain *news)
{
	domain->domain = *news;
	if (!domain->vm)
		return;
	domain->domain.pid = pf_vm_pid(domain->vm);
	g_strlcpy(domain->domain.group, pf_vm_group_name(domain->vm), sizeof domain->domain.group);
}

static void on_domain_changed(void *userdata, const PfDomain *news)
{
	PfService *service = userdata;
	Domain *domain = g_hash_table_lookup(service->domains, news->uuid);

	if (!domain)
		domain = add_domain(service, news->uuid);
	if (!news->active || (news->pid > 0 && domain->domain.pid != news->pid))
		drop_vm(service, domain);
	if (warned_refusal(news)[0] &&
		strcmp(warned_refusal(news), warned_refusal(&domain->domain)) != 0)
		pf_warning("%s: not fused: %s", news->name, news->refusal);
	take_news(domain, news);
	if (!is_fusable(news))
		g_clear_pointer(&domain->trouble, g_free);
	if (domain->vm)
		pf_vm_update(domain->vm, &domain->domain);
	else if (news->active && (news->enabled || news->has_shim) && news->pid > 0)
		make_vm(service, domain);
	pf_shim_listener_match(service->shims);
	on_wanted(service);
}

static void on_domain_gone(void *userdata, const char *uuid)
{
	PfService *service = userdata;
	Domain *domain = g_hash_table_lookup(service->domains, uuid);

	if (!domain)
		return;
	drop_vm(service, domain);
	g_hash_table_remove(service->domains, uuid);
	on_wanted(service);
}

static void on_libvirt_changed(void *userdata, gboolean connected, const char *reason)
{
	PfService *service = userdata;

	/* All domains have been said by now. Shims that were there before us get time to come back. */
	if (connected && !service->was_connected)
		service->sweep_source = g_timeout_add_seconds(SWEEP_S, on_sweep, service);
	service->was_connected |= connected;
	if (connected)
		pf_info("connected to libvirt");
	else
		pf_warning("%s", reason);
	service->connected = connected;
	g_free(service->reason);
	service->reason = g_strdup(reason);
	on_wanted(service);
}

static void on_broker_closed(void *userdata)
{
	PfService *service = userdata;

	service->closed(service->userdata);
}

static const PfBrokerEvents broker_events = {
	on_domain_changed, on_domain_gone, on_libvirt_changed, on_broker_closed};

/* The service */

PfService *pf_service_new(const PfServiceConfig *config, int broker_fd,
	void (*closed)(void *userdata), void *userdata)
{
	PfService *service = g_new0(PfService, 1);

	service->closed = closed;
	service->userdata = userdata;
	service->reason = g_strdup("libvirt was not reached yet");
	service->domains = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, free_domain);
	service->processes = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	service->groups = pf_groups_new(config->keeper, config->kept, config->n_kept);
	g_queue_init(&service->ending);
	service->fusion = pf_fusion_new(&config->fusion);
	pf_fusion_set_memory_limit(service->fusion, config->memory_limit);
	service->broker = pf_broker_new(broker_fd, &broker_events, service);
	service->context = (PfVmContext){service->broker, service->fusion, service->groups,
		config->hasher, config->config, config->answer_ms, on_wanted, service};
	service->shims =
		pf_shim_listener_new(config->shim_fd, PF_SHIM_LISTENER_WAIT_MS, find_vm, service);
	service->pressure = pf_pressure_new(config->pressure, on_pressure, service);
	return service;
}

void pf_service_free(PfService *service)
{
	GHashTableIter iter;
	Domain *domain;

	if (!service)
		return;
	g_clear_pointer(&service->shims, pf_shim_listener_free);
	g_hash_table_iter_init(&iter, service->domains);
	while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&domain))
		free_vm(service, g_steal_pointer(&domain->vm));
	g_queue_clear_full(&service->ending, free_ending);
	/* Answers that are still awaited come later, as errors, when the service is gone: they find
	 * their VMs closed and ask nothing else of it. */
	g_clear_pointer(&service->broker, pf_broker_free);
	g_clear_handle_id(&service->pump_source, g_source_remove);
	g_clear_handle_id(&service->tick_source, g_source_remove);
	g_clear_handle_id(&service->sweep_source, g_source_remove);
	g_clear_handle_id(&service->turn_source, g_source_remove);
	g_clear_pointer(&service->pressure, pf_pressure_free);
	g_clear_pointer(&service->domains, g_hash_table_unref);
	g_clear_pointer(&service->processes, g_hash_table_unref);
	g_clear_pointer(&service->groups, pf_groups_free);
	g_clear_pointer(&service->fusion, pf_fusion_free);
	g_free(service->reason);
	g_free(service);
}

static void visit_domain(const PfService *service, const Domain *domain,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	PfVmView view = {
		.domain = &domain->domain, .reason = "", .agent_version = "", .kernel = ""};

	view.figures.thp = pf_vm_thp(service->context.config, &domain->domain);
	if (domain->vm)
		pf_vm_view(domain->vm, &view);
	else if (domain->trouble)
		view.reason = domain->trouble;
	else if (is_fusable(&domain->domain))
		view.reason = "libvirt does not say yet which process the VM is";
	else
		view.reason = warned_refusal(&domain->domain);
	visit(&view, userdata);
}

static int by_name(gconstpointer a, gconstpointer b)
{
	const Domain *left = a, *right = b;
	int order = strcmp(left->domain.name, right->domain.name);

	return order ? order : strcmp(left->domain.uuid, right->domain.uuid);
}

void pf_service_foreach_vm(
	PfService *service, void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	g_autoptr(GList) domains = g_list_sort(g_hash_table_get_values(service->domains), by_name);

	for (GList *item = domains; item; item = item->next)
		visit_domain(service, item->data, visit, userdata);
}

gboolean pf_service_visit_vm(PfService *service, const char *name_or_uuid,
	void (*visit)(const PfVmView *vm, void *userdata), void *userdata)
{
	g_autofree char *uuid = g_ascii_strdown(name_or_uuid, -1);
	const Domain *found = g_hash_table_lookup(service->domains, uuid);
	GHashTableIter iter;
	Domain *domain;

	g_hash_table_iter_init(&iter, service->domains);
	while (!found && g_hash_table_iter_next(&iter, NULL, (gpointer *)&domain))
		if (strcmp(domain->domain.name, name_or_uuid) == 0)
			found = domain;
	if (found)
		visit_domain(service, found, visit, userdata);
	return found != NULL;
}

void pf_service_host_view(PfService *service, PfHostView *view)
{
	*view = (PfHostView){.pressure = service->is_under_pressure};
	pf_fusion_stats(service->fusion, &view->stats);
	pf_groups_memory(service->groups, &view->store_allocated_kib, &view->store_swapped_kib);
}

gboolean pf_service_libvirt_connected(PfService *service, const char **reason)
{
	if (reason)
		*reason = service->reason;
	return service->connected;
}
