/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of domains. An event from libvirt says only which domain to look at again: it goes on
 * the list of stale ones, and a timer reads them all from libvirt outside the callback. So it does
 * not matter in which order events come, how many there are of one domain, or what else happened to
 * it meanwhile; a domain that libvirt does not know any more is gone. The service hears of a domain
 * only when something that it can see changed.
 *
 * A domain that runs but whose pid file is not there yet, or that vanished while it was read, is
 * looked at again a few times. A guest may open and close its port as often as it likes: a VM is looked
 * at once in PORT_MS for that, however many events there are, and a few times more behind the last one,
 * because libvirt tells of it before it has noted it. After libvirt was away, both the known domains and the listed ones
 * are stale; when all of them have been read once, the service hears that libvirt is there.
 */
#include "host-service/broker/broker_domains.h"
#include "common/log.h"
#include "host-service/broker/qemu_process.h"
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define RETRY_MS    200
#define MAX_RETRIES 25
#define PORT_MS     1000
#define PORT_LOOKS  5
#define XFS_MAGIC   0x58465342 /* not in linux/magic.h of every distribution */

typedef struct Known {
	PfDomain domain; /* as last emitted */
	PfDeviceAllowance devices;
} Known;

struct PfBrokerDomains {
	void (*emit)(void *userdata, PfBrokerMessage *event);
	void *userdata;
	virConnectPtr connection; /* a reference, NULL while libvirt is away */
	GHashTable *known;        /* uuid to Known, owned */
	GHashTable *stale;        /* uuid to number of tries so far */
	int timer;
	GHashTable *ports; /* uuid to number of looks to come, as a port was opened or closed */
	int port_timer;
	int port_callback; /* registered with the connection, -1: none */
	bool announce;     /* the first pass over a new connection's domains is still to come */
	GArray *callbacks; /* of int: registered with the connection */
};

const char *pf_broker_domains_state_name(int state)
{
	static const char *const names[] = {
		[VIR_DOMAIN_NOSTATE] = "no state",
		[VIR_DOMAIN_RUNNING] = "running",
		[VIR_DOMAIN_BLOCKED] = "idle",
		[VIR_DOMAIN_PAUSED] = "paused",
		[VIR_DOMAIN_SHUTDOWN] = "in shutdown",
		[VIR_DOMAIN_SHUTOFF] = "shut off",
		[VIR_DOMAIN_CRASHED] = "crashed",
		[VIR_DOMAIN_PMSUSPENDED] = "pmsuspended",
	};

	return state >= 0 && state < (int)G_N_ELEMENTS(names) ? names[state] : "no state";
}

/* Whether O_DIRECT reads from this file pin guest pages, so that the shim notices them. */
static gboolean direct_io_is_safe(const char *path)
{
	struct stat status;
	struct statfs fs;

	/* A file that is not there is not read either; QEMU will not start with it. */
	if (stat(path, &status) < 0 || S_ISBLK(status.st_mode) || statfs(path, &fs) < 0)
		return TRUE;
	return fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_MAGIC ||
	       fs.f_type == BTRFS_SUPER_MAGIC;
}

char *pf_broker_domains_refusal(const PfDomainXml *xml)
{
	const char *sentence = pf_domain_xml_refusal(xml);
	g_autoptr(GPtrArray) files = NULL;

	if (sentence)
		return g_strdup(sentence);
	files = pf_domain_xml_direct_files(xml);
	for (guint i = 0; i < files->len; i++) {
		const PfDomainDirectFile *file = g_ptr_array_index(files, i);

		if (!direct_io_is_safe(file->path))
			return g_strdup_printf(
				"<disk> %s has cache='none' or 'directsync' on a file system "
				"other than ext4, xfs and btrfs: use cache='writeback'",
				file->target);
	}
	return NULL;
}

/* Copies text; FALSE when it has no room, and then nothing is copied. */
static gboolean put_text(char *to, size_t room, const char *text)
{
	if (strlen(text) >= room)
		return FALSE;
	g_strlcpy(to, text, room);
	return TRUE;
}

static void fill_from_xml(const PfDomainXml *xml, PfDomain *domain)
{
	g_autofree char *refusal = pf_broker_domains_refusal(xml);
	g_autofree char *channel = domain->active ? pf_domain_xml_channel(xml) : NULL;
	g_autofree char *group = pf_domain_xml_group(xml);

	domain->has_shim = domain->active && pf_domain_xml_has_shim(xml);
	domain->enabled = pf_domain_xml_has_flag(xml) && (!domain->active || domain->has_shim);
	if (refusal)
		g_strlcpy(domain->refusal, refusal, sizeof(domain->refusal));
	if (channel)
		put_text(domain->channel, sizeof(domain->channel), channel);
	if (group)
		g_strlcpy(domain->group, group, sizeof(domain->group));
	domain->port_open = domain->active && pf_domain_xml_port_is_open(xml);
	domain->thp = pf_domain_xml_thp(xml);
	if (domain->active && pf_domain_xml_is_qemu(xml))
		domain->pid = pf_qemu_pid(PF_QEMU_PID_DIR, domain->name, domain->uuid);
}

/*
 * FALSE: it vanished or changed meanwhile, or libvirt did. *incomplete: there should be a pid, but
 * is none yet. The definition alone says whether the domain runs (then it is the live one, with an
 * id), so that all of it is from the same moment.
 */
static gboolean read_domain(virDomainPtr handle, PfDomain *domain, gboolean *incomplete)
{
	g_autoptr(PfDomainXml) xml = NULL;
	g_autoptr(GError) error = NULL;
	virDomainInfo info;
	char *text = virDomainGetXMLDesc(handle, 0);

	if (!text || virDomainGetInfo(handle, &info) < 0) {
		free(text);
		return FALSE;
	}
	g_strlcpy(domain->name, virDomainGetName(handle), sizeof(domain->name));
	g_strlcpy(domain->state, pf_broker_domains_state_name(info.state), sizeof(domain->state));
	domain->memory_pages = info.maxMem / (PF_PAGE_SIZE / 1024);
	xml = pf_domain_xml_new(text, &error);
	free(text);
	if (!xml) {
		pf_warning("VM %s: %s", domain->name, error->message);
		return FALSE;
	}
	domain->active = pf_domain_xml_is_live(xml);
	if (domain->active == (info.state == VIR_DOMAIN_SHUTOFF))
		return FALSE;
	fill_from_xml(xml, domain);
	*incomplete = domain->active && pf_domain_xml_is_qemu(xml) && domain->pid == 0;
	return TRUE;
}

static gboolean same_domain(const PfDomain *a, const PfDomain *b)
{
	return strcmp(a->name, b->name) == 0 && strcmp(a->group, b->group) == 0 &&
	       strcmp(a->state, b->state) == 0 && strcmp(a->refusal, b->refusal) == 0 &&
	       strcmp(a->channel, b->channel) == 0 && a->thp == b->thp &&
	       a->enabled == b->enabled && a->active == b->active && a->has_shim == b->has_shim &&
	       a->port_open == b->port_open && a->pid == b->pid &&
	       a->memory_pages == b->memory_pages;
}

static void emit_domain(PfBrokerDomains *domains, const PfDomain *domain)
{
	PfBrokerMessage event = {.type = PF_BROKER_DOMAIN, .body.domain = *domain};
	Known *known = g_hash_table_lookup(domains->known, domain->uuid);

	if (known && same_domain(&known->domain, domain))
		return;
	if (!known) {
		known = g_new0(Known, 1);
		g_hash_table_insert(domains->known, g_strdup(domain->uuid), known);
	}
	known->domain = *domain;
	domains->emit(domains->userdata, &event);
}

static void emit_gone(PfBrokerDomains *domains, const char *uuid)
{
	PfBrokerMessage event = {.type = PF_BROKER_GONE};

	g_strlcpy(event.body.domain.uuid, uuid, sizeof(event.body.domain.uuid));
	if (g_hash_table_remove(domains->known, uuid))
		domains->emit(domains->userdata, &event);
}

/* It is there, and whether it runs and shares memory is not known. */
static void emit_unread(PfBrokerDomains *domains, const char *uuid)
{
	PfDomain domain = {.group = PF_GROUP_DEFAULT,
		.state = "unknown",
		.refusal = "libvirt does not say what it is",
		.active = TRUE,
		.has_shim = TRUE};

	g_strlcpy(domain.uuid, uuid, sizeof(domain.uuid));
	g_strlcpy(domain.name, uuid, sizeof(domain.name));
	emit_domain(domains, &domain);
}

/* Reads one domain; whether it should be looked at again soon. */
static gboolean refresh(PfBrokerDomains *domains, const char *uuid)
{
	PfDomain domain = {0};
	virDomainPtr handle;
	gboolean incomplete = FALSE, found;

	if (!domains->connection)
		return FALSE;
	handle = virDomainLookupByUUIDString(domains->connection, uuid);
	if (!handle) {
		if (virGetLastErrorCode() == VIR_ERR_NO_DOMAIN)
			emit_gone(domains, uuid);
		return FALSE;
	}
	g_strlcpy(domain.uuid, uuid, sizeof(domain.uuid));
	found = read_domain(handle, &domain, &incomplete);
	virDomainFree(handle);
	if (found)
		emit_domain(domains, &domain);
	else if (!g_hash_table_contains(domains->known, uuid))
		emit_unread(domains, uuid);
	return !found || incomplete;
}

void pf_broker_domains_refresh(PfBrokerDomains *domains, const char *uuid)
{
	g_autofree char *own = g_strdup(uuid);

	refresh(domains, own);
}

const PfDomain *pf_broker_domains_find(const PfBrokerDomains *domains, const char *uuid)
{
	const Known *known = g_hash_table_lookup(domains->known, uuid);

	return known ? &known->domain : NULL;
}

gboolean pf_broker_domains_take_device(PfBrokerDomains *domains, const char *uuid, gint64 now_us)
{
	Known *known = g_hash_table_lookup(domains->known, uuid);

	return pf_device_allowance_take(&known->devices, known->domain.pid, now_us);
}

/* Who asks for a VM once libvirt is there gets it: so the domains are said first. */
static void announce_connection(PfBrokerDomains *domains)
{
	PfBrokerMessage event = {.type = PF_BROKER_CONNECTED};

	if (domains->announce)
		domains->emit(domains->userdata, &event);
	domains->announce = false;
}

static void on_timer(int timer, void *opaque)
{
	PfBrokerDomains *domains = opaque;
	g_autoptr(GHashTable) stale = g_steal_pointer(&domains->stale);
	GHashTableIter iter;
	gpointer uuid, tries;

	domains->stale = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	virEventUpdateTimeout(timer, -1);
	g_hash_table_iter_init(&iter, stale);
	while (g_hash_table_iter_next(&iter, &uuid, &tries)) {
		guint next = GPOINTER_TO_UINT(tries) + 1;

		if (refresh(domains, uuid) && next <= MAX_RETRIES)
			g_hash_table_insert(domains->stale, g_strdup(uuid), GUINT_TO_POINTER(next));
	}
	announce_connection(domains);
	if (g_hash_table_size(domains->stale) > 0)
		virEventUpdateTimeout(timer, RETRY_MS);
}

static void mark_stale(PfBrokerDomains *domains, const char *uuid)
{
	g_hash_table_insert(domains->stale, g_strdup(uuid), GUINT_TO_POINTER(0));
	virEventUpdateTimeout(domains->timer, 0);
}

static void mark_handle(PfBrokerDomains *domains, virDomainPtr handle)
{
	char uuid[VIR_UUID_STRING_BUFLEN];

	if (virDomainGetUUIDString(handle, uuid) == 0)
		mark_stale(domains, uuid);
}

static int on_lifecycle(
	virConnectPtr connection, virDomainPtr handle, int event, int detail, void *opaque)
{
	mark_handle(opaque, handle);
	return 0;
}

static void on_device(
	virConnectPtr connection, virDomainPtr handle, const char *alias, void *opaque)
{
	mark_handle(opaque, handle);
}

static void on_metadata(
	virConnectPtr connection, virDomainPtr handle, int type, const char *xmlns, void *opaque)
{
	mark_handle(opaque, handle);
}

/* Its ports */

static void on_port_timer(int timer, void *opaque)
{
	PfBrokerDomains *domains = opaque;
	GHashTableIter iter;
	gpointer uuid, looks;

	g_hash_table_iter_init(&iter, domains->ports);
	while (g_hash_table_iter_next(&iter, &uuid, &looks)) {
		guint left = GPOINTER_TO_UINT(looks) - 1;

		mark_stale(domains, uuid);
		if (left > 0)
			g_hash_table_iter_replace(&iter, GUINT_TO_POINTER(left));
		else
			g_hash_table_iter_remove(&iter);
	}
	if (g_hash_table_size(domains->ports) == 0)
		virEventUpdateTimeout(timer, -1);
}

/* What it says in detail is in the definition, a moment later. */
static void on_port(virConnectPtr connection, virDomainPtr handle, const char *event,
	long long seconds, unsigned int micros, const char *details, void *opaque)
{
	PfBrokerDomains *domains = opaque;
	char uuid[VIR_UUID_STRING_BUFLEN];

	if (virDomainGetUUIDString(handle, uuid) < 0)
		return;
	if (g_hash_table_size(domains->ports) == 0)
		virEventUpdateTimeout(domains->port_timer, PORT_MS);
	g_hash_table_insert(domains->ports, g_strdup(uuid), GUINT_TO_POINTER(PORT_LOOKS));
}

/* libvirt has no event of its own for ports that it does not know the meaning of. A driver without this: it is seen late. */
static void watch_ports(PfBrokerDomains *domains)
{
	domains->port_callback = virConnectDomainQemuMonitorEventRegister(
		domains->connection, NULL, "VSERPORT_CHANGE", on_port, domains, NULL, 0);
}

static void unwatch_ports(PfBrokerDomains *domains)
{
	if (domains->port_callback >= 0)
		virConnectDomainQemuMonitorEventDeregister(
			domains->connection, domains->port_callback);
	domains->port_callback = -1;
	g_hash_table_remove_all(domains->ports);
	virEventUpdateTimeout(domains->port_timer, -1);
}

static gboolean watch(
	PfBrokerDomains *domains, int event, virConnectDomainEventGenericCallback callback)
{
	int id = virConnectDomainEventRegisterAny(
		domains->connection, NULL, event, callback, domains, NULL);

	if (id >= 0)
		g_array_append_val(domains->callbacks, id);
	return id >= 0;
}

static gboolean mark_all(PfBrokerDomains *domains)
{
	virDomainPtr *handles = NULL;
	int n = virConnectListAllDomains(domains->connection, &handles, 0);
	GHashTableIter iter;
	gpointer uuid;

	g_hash_table_iter_init(&iter, domains->known);
	while (g_hash_table_iter_next(&iter, &uuid, NULL))
		mark_stale(domains, uuid);
	for (int i = 0; i < n; i++) {
		mark_handle(domains, handles[i]);
		virDomainFree(handles[i]);
	}
	free(handles);
	return n >= 0;
}

gboolean pf_broker_domains_attach(PfBrokerDomains *domains, virConnectPtr connection)
{
	if (virConnectRef(connection) < 0)
		return FALSE;
	domains->connection = connection;
	if (!watch(domains, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
		    VIR_DOMAIN_EVENT_CALLBACK(on_lifecycle)) ||
		!mark_all(domains))
		return FALSE;
	/* A driver without these loses only the news of hot-plug until the next event. */
	watch(domains, VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, VIR_DOMAIN_EVENT_CALLBACK(on_device));
	watch(domains, VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, VIR_DOMAIN_EVENT_CALLBACK(on_device));
	watch(domains, VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, VIR_DOMAIN_EVENT_CALLBACK(on_metadata));
	watch_ports(domains);
	domains->announce = true;
	virEventUpdateTimeout(domains->timer, 0);
	return TRUE;
}

void pf_broker_domains_detach(PfBrokerDomains *domains)
{
	if (!domains->connection)
		return;
	for (guint i = 0; i < domains->callbacks->len; i++)
		virConnectDomainEventDeregisterAny(
			domains->connection, g_array_index(domains->callbacks, int, i));
	g_array_set_size(domains->callbacks, 0);
	unwatch_ports(domains);
	virConnectClose(domains->connection);
	domains->connection = NULL;
	domains->announce = false;
}

PfBrokerDomains *pf_broker_domains_new(
	void (*emit)(void *userdata, PfBrokerMessage *event), void *userdata)
{
	PfBrokerDomains *domains = g_new0(PfBrokerDomains, 1);

	domains->emit = emit;
	domains->userdata = userdata;
	domains->known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	domains->stale = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	domains->callbacks = g_array_new(FALSE, FALSE, sizeof(int));
	domains->timer = virEventAddTimeout(-1, on_timer, domains, NULL);
	domains->ports = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	domains->port_timer = virEventAddTimeout(-1, on_port_timer, domains, NULL);
	domains->port_callback = -1;
	return domains;
}

void pf_broker_domains_free(PfBrokerDomains *domains)
{
	pf_broker_domains_detach(domains);
	virEventRemoveTimeout(domains->timer);
	virEventRemoveTimeout(domains->port_timer);
	g_hash_table_unref(domains->ports);
	g_hash_table_unref(domains->known);
	g_hash_table_unref(domains->stale);
	g_array_unref(domains->callbacks);
	g_free(domains);
}
