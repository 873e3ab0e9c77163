/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Theory of operation
 *
 * The broker opens the channel, and opens it again a moment after it broke. Each session begins
 * with the RAM that the agent reports; the broker is asked where it lies in QEMU, because no page can
 * be fused before: again while it does not know, and when the agent reports other RAM. An answer costs
 * up to two calls of QEMU's monitor a range, and may take for ever, so there is one question at a
 * time, and the pauses between them grow, whatever they are asked for, until none was needed for a
 * while. What fails is tried again as long as the VM lives; it is logged when the reason is another
 * than before, and is the VM's reason until it works.
 *
 * Reading is paced: whatever the guest sends is charged to the VM's quota, a slice of READ_SIZE at a time, so that VMs
 * take turns. When the quota says so nothing is read for a while; what the guest has sent waits in the socket, and the
 * guest in its write. Nothing is lost by that. A pause ends early only with the channel.
 *
 * Bytes are all that the channel carries. Descriptors come from a QEMU that means harm: the channel is closed for a while,
 * and for longer if it still holds up the closing of those that it has sent.
 */
#include "host-service/service/guest.h"
#include "common/log.h"
#include "host-service/service/cpu_time.h"
#include "host-service/wire/received_fds.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define REOPEN_S       1
#define REOPEN_FLOOD_S 10
#define LOCATE_FIRST_S 2
#define LOCATE_LAST_S  60
#define LOCATE_CALM_S                                                                              \
	(2 * LOCATE_LAST_S) /* no question for so long: the next pause is the first again */
#define READ_SIZE 65536

struct PfGuest {
	int refs; /* one for the owner, one for each answer of the broker that is awaited */
	gboolean closed;
	PfBroker *broker;
	PfFusionVm *fusion;
	char *uuid, *name;
	guint64 memory_pages; /* what the VM can have at most */
	PfQuota *quota;
	PfCloser *closer; /* of what QEMU sends */
	PfLogLimit *log;
	const PfGuestEvents *events;
	void *userdata;

	PfSession *session;
	gboolean available, opening;
	int channel;       /* -1: not open */
	guint read_source; /* for input, or, in a pause, for the channel's end only */
	guint pause_source, write_source, reopen_source;
	uint64_t named;      /* pages in the slice that is being read; what else costs hints too */
	char *channel_error; /* why it was not opened the last time; NULL: it was */

	gboolean has_reported; /* all of it, in this session */
	uint64_t n_hints;      /* pages, in this session; one that is hinted twice counts twice */
	char *agent_version, *kernel;
	PfAdditions additions;
	uint32_t page_size;     /* of the guest; 0: no agent was heard of */
	gboolean old_protocol;  /* its agent's: nothing is taken in it */
	guint64 reported_pages; /* RAM by its own account */
	gboolean lies;          /* that is more than the VM can have: nothing it says is taken */
	PfGuestRange ranges[PF_SESSION_MAX_RAM_RANGES];
	PfHva hvas[PF_SESSION_MAX_RAM_RANGES];
	size_t n_ranges;
	guint question;  /* number of the newest question for hvas: older answers are void */
	gboolean asking; /* the broker owes an answer, void or not */
	gboolean located,
		to_locate; /* it is; it is to be, and an answer that is awaited may be void */
	guint locate_source, locate_pause_s;
	gint64 located_us;  /* when the newest question was asked or answered */
	char *locate_error; /* why it was not located the last time; NULL: not asked, or it was */
};

static void open_channel(PfGuest *guest);

static void unref(PfGuest *guest)
{
	if (--guest->refs > 0)
		return;
	g_free(guest->uuid);
	g_free(guest->name);
	g_free(guest->agent_version);
	g_free(guest->kernel);
	g_free(guest->channel_error);
	g_free(guest->locate_error);
	g_free(guest);
}

/* Keeps the newest reason for what fails again and again, and logs it when it is a new one. */
static void complain(PfGuest *guest, char **where, const char *reason)
{
	if (g_strcmp0(*where, reason) != 0)
		pf_log_limited(guest->log, PF_LOG_WARNING, "%s", reason);
	g_free(*where);
	*where = g_strdup(reason);
}

/* Where RAM is */

typedef struct Question {
	PfGuest *guest; /* a reference */
	guint number;
} Question;

static void ask(PfGuest *guest);

static gboolean on_locate(gpointer userdata)
{
	PfGuest *guest = userdata;

	guest->locate_source = 0;
	ask(guest);
	return G_SOURCE_REMOVE;
}

/* As soon as it may be asked. */
static void locate(PfGuest *guest)
{
	gint64 idle_us = g_get_monotonic_time() - guest->located_us, wait_us;

	guest->to_locate = TRUE;
	if (guest->asking || guest->locate_source)
		return;
	if (idle_us > LOCATE_CALM_S * G_USEC_PER_SEC)
		guest->locate_pause_s = 0;
	wait_us = guest->locate_pause_s * G_USEC_PER_SEC - idle_us;
	if (wait_us > 0)
		guest->locate_source = g_timeout_add((guint)(wait_us / 1000 + 1), on_locate, guest);
	else
		ask(guest);
}

static void stop_locating(PfGuest *guest)
{
	g_clear_handle_id(&guest->locate_source, g_source_remove);
	/* Also at the guest's end: no answer is taken after it. */
	guest->question++;
	guest->to_locate = FALSE;
}

static void not_located(PfGuest *guest, const char *why)
{
	g_autofree char *reason =
		g_strdup_printf("the guest's RAM cannot be found in QEMU: %s", why);

	complain(guest, &guest->locate_error, reason);
}

/* Takes what the broker knows. Ranges that it does not know have hva 0; one that it knows is enough
 * to begin with. */
static gboolean take_hvas(PfGuest *guest, const PfHva *hvas, size_t n)
{
	gboolean found = FALSE;

	if (n != guest->n_ranges)
		return FALSE;
	for (size_t i = 0; i < n; i++) {
		guest->hvas[i] = hvas[i];
		found |= hvas[i].v != 0;
	}
	return found;
}

static void on_located(GObject *source, GAsyncResult *result, gpointer userdata)
{
	g_autofree Question *question = userdata;
	PfGuest *guest = question->guest;
	g_autoptr(GError) error = NULL;
	g_autofree PfHva *hvas = NULL;
	size_t n = 0;
	gboolean answered = pf_broker_translate_finish(result, &hvas, &n, &error);

	guest->asking = FALSE;
	guest->located_us = g_get_monotonic_time();
	if (question->number == guest->question) {
		guest->located = answered && take_hvas(guest, hvas, n);
		guest->to_locate = !guest->located;
		if (guest->located)
			g_clear_pointer(&guest->locate_error, g_free);
		else
			not_located(guest,
				answered ? "none of it lies there in one piece" : error->message);
		guest->events->changed(guest->userdata);
	}
	if (guest->to_locate)
		locate(guest);
	unref(guest);
}

static void ask(PfGuest *guest)
{
	Question *question = g_new(Question, 1);

	guest->asking = TRUE;
	guest->located_us = g_get_monotonic_time();
	guest->locate_pause_s = CLAMP(guest->locate_pause_s * 2, LOCATE_FIRST_S, LOCATE_LAST_S);
	guest->refs++;
	*question = (Question){guest, ++guest->question};
	pf_broker_translate(
		guest->broker, guest->uuid, guest->ranges, guest->n_ranges, on_located, question);
}

PfHva pf_guest_hva(const PfGuest *guest, PfGfn gfn, uint32_t n_pages)
{
	for (size_t i = 0; guest->located && i < guest->n_ranges; i++) {
		uint64_t page = gfn.v - guest->ranges[i].first.v;

		if (gfn.v >= guest->ranges[i].first.v && page < guest->ranges[i].n_pages &&
			n_pages <= guest->ranges[i].n_pages - page && guest->hvas[i].v != 0)
			return (PfHva){guest->hvas[i].v + page * PF_PAGE_SIZE};
	}
	return (PfHva){0};
}

uint64_t pf_guest_gfn(const PfGuest *guest, PfHva hva, PfGfn *gfn)
{
	for (size_t i = 0; guest->located && i < guest->n_ranges; i++) {
		uint64_t page = (hva.v - guest->hvas[i].v) / PF_PAGE_SIZE;

		if (guest->hvas[i].v == 0 || hva.v < guest->hvas[i].v ||
			page >= guest->ranges[i].n_pages)
			continue;
		*gfn = (PfGfn){guest->ranges[i].first.v + page};
		return guest->ranges[i].n_pages - page;
	}
	return 0;
}

/* What the session says */

/*
 * Adjacent ranges become one: a run of consecutive pages then always lies in one. FALSE: they are
 * what they were, and so is where they lie, for the QEMU process is the same.
 */
static gboolean take_ranges(PfGuest *guest, const PfGuestInfo *info)
{
	PfGuestRange ranges[PF_SESSION_MAX_RAM_RANGES];
	size_t n = 0;

	for (size_t i = 0; i < info->n_ram; i++) {
		PfGuestRange *last = n > 0 ? &ranges[n - 1] : NULL;

		if (last && last->first.v + last->n_pages == info->ram[i].first.v)
			last->n_pages += info->ram[i].n_pages;
		else
			ranges[n++] = info->ram[i];
	}
	/* cppcheck-suppress uninitvar ; the first n are set */
	if (n == guest->n_ranges && memcmp(ranges, guest->ranges, n * sizeof *ranges) == 0)
		return FALSE;
	memcpy(guest->ranges, ranges, n * sizeof *ranges);
	guest->n_ranges = n;
	return TRUE;
}

static void set_text(char **where, const char *text)
{
	g_free(*where);
	*where = g_strdup(text);
}

static guint64 n_pages(const PfGuestInfo *info)
{
	guint64 n = 0;

	for (size_t i = 0; i < info->n_ram; i++)
		n += info->ram[i].n_pages;
	return n;
}

static gint64 now_s(void)
{
	return g_get_real_time() / G_USEC_PER_SEC;
}

/* Who it is that speaks from now on. */
static void take_agent(PfGuest *guest, const PfGuestInfo *info)
{
	gboolean is_old = pf_additions_is_older(info->agent_version, PF_AGENT_MIN_VERSION);

	set_text(&guest->agent_version, info->agent_version);
	set_text(&guest->kernel, info->kernel);
	guest->page_size = info->page_size;
	guest->old_protocol = info->protocol < PF_SESSION_PROTOCOL;
	pf_additions_answered(&guest->additions, is_old || guest->old_protocol, now_s());
	pf_log_limited(
		guest->log, PF_LOG_INFO, "agent %s on Linux %s", info->agent_version, info->kernel);
}

static uint64_t n_hinted(const PfGuest *guest)
{
	PfFusionVmStats stats;

	pf_fusion_vm_stats(guest->fusion, &stats);
	return stats.hinted;
}

static void on_started(void *userdata, const PfGuestInfo *info)
{
	PfGuest *guest = userdata;

	take_agent(guest, info);
	pf_fusion_session_started(guest->fusion);
	guest->has_reported = FALSE;
	guest->n_hints = 0;
	/* It asks the broker, and may release everything. */
	guest->named += pf_quota_session_hints(guest->quota);
	guest->reported_pages = n_pages(info);
	if (guest->reported_pages > guest->memory_pages && !guest->lies)
		pf_log_limited(guest->log, PF_LOG_WARNING,
			"its agent claims more RAM than the VM can have");
	guest->lies = guest->reported_pages > guest->memory_pages;
	if (take_ranges(guest, info) || !guest->located) {
		gboolean was_located = guest->located;

		stop_locating(guest);
		guest->located = FALSE;
		if (was_located)
			guest->events->moved(guest->userdata);
		if (info->page_size == PF_PAGE_SIZE && !guest->old_protocol && !guest->lies)
			locate(guest);
	}
	guest->events->changed(guest->userdata);
}

static void on_module(void *userdata, uint32_t module_id, const PfModuleInfo *info)
{
	PfGuest *guest = userdata;
	uint64_t before = n_hinted(guest);

	pf_fusion_module(guest->fusion, module_id, info);
	guest->named += 1 + before - n_hinted(guest);
}

static void on_hints(void *userdata, uint32_t module_id, uint64_t file_page, PfGfn gfn,
	uint32_t count, const PfDigest *digests)
{
	PfGuest *guest = userdata;

	guest->named += count;
	guest->n_hints += count;
	/* Hints cost memory by the page: no more than the VM has. */
	if (!guest->lies)
		pf_fusion_hints(guest->fusion, module_id, file_page, gfn, count, digests,
			g_get_monotonic_time());
}

/* Pages that were not hinted cost nothing: a module may be much larger than the guest. */
static void on_withdrawn(
	void *userdata, uint32_t module_id, const PfFileRange *ranges, size_t n_ranges)
{
	PfGuest *guest = userdata;
	uint64_t before = n_hinted(guest);

	pf_fusion_withdrawn(guest->fusion, module_id, ranges, n_ranges);
	guest->named += n_ranges + before - n_hinted(guest);
}

static void on_reported(void *userdata, uint64_t n_modules, uint64_t n_pages)
{
	PfGuest *guest = userdata;

	guest->has_reported = TRUE;
	pf_debug("%s: reported %" G_GUINT64_FORMAT " pages of %" G_GUINT64_FORMAT " modules",
		guest->name, n_pages, n_modules);
}

static const PfSessionSink sink = {on_started, on_module, on_hints, on_withdrawn, on_reported};

static uint64_t new_session_id(void *userdata)
{
	uint64_t id = 0;

	while (id == 0)
		if (getrandom(&id, sizeof id, 0) != sizeof id)
			g_error("the kernel has no random numbers: %s", g_strerror(errno));
	return id;
}

/* The channel */

static gboolean on_reopen(gpointer userdata)
{
	PfGuest *guest = userdata;

	guest->reopen_source = 0;
	open_channel(guest);
	return G_SOURCE_REMOVE;
}

static void close_channel(PfGuest *guest)
{
	g_clear_handle_id(&guest->read_source, g_source_remove);
	g_clear_handle_id(&guest->pause_source, g_source_remove);
	g_clear_handle_id(&guest->write_source, g_source_remove);
	stop_locating(guest);
	if (guest->channel >= 0)
		pf_received_fds_close_later(guest->channel);
	guest->channel = -1;
	pf_additions_asked(&guest->additions, now_s());
}

static void reopen_later(PfGuest *guest, guint seconds)
{
	close_channel(guest);
	if (guest->available && !guest->reopen_source)
		guest->reopen_source = g_timeout_add_seconds(seconds, on_reopen, guest);
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer userdata);

/* FALSE: the channel has failed. */
static gboolean flush(PfGuest *guest)
{
	const uint8_t *data;
	size_t size;

	while (data = pf_session_output(guest->session, &size), size > 0) {
		ssize_t n = write(guest->channel, data, size);

		if (n < 0 && errno == EAGAIN) {
			if (!guest->write_source)
				guest->write_source =
					g_unix_fd_add(guest->channel, G_IO_OUT, on_writable, guest);
			return TRUE;
		}
		if (n < 0 && errno != EINTR)
			return FALSE;
		if (n > 0)
			pf_session_sent(guest->session, (size_t)n);
	}
	g_clear_handle_id(&guest->write_source, g_source_remove);
	return TRUE;
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer userdata)
{
	PfGuest *guest = userdata;

	if (!flush(guest))
		reopen_later(guest, REOPEN_S);
	return guest->write_source ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static ssize_t receive(PfGuest *guest, void *data, size_t size, unsigned *n_fds)
{
	PfReceivedFds control;
	struct iovec part = {data, size};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	ssize_t n = recvmsg(guest->channel, &message, MSG_CMSG_CLOEXEC);

	*n_fds = n >= 0 ? pf_received_fds_drop(&message, guest->closer) : 0;
	return n;
}

/* 0, or for how many seconds the channel is to be closed. *size: bytes that were read. */
static guint feed(PfGuest *guest, size_t *size)
{
	uint8_t data[READ_SIZE];
	unsigned n_fds;
	ssize_t n = receive(guest, data, sizeof data, &n_fds);
	int result;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return REOPEN_S;
	*size = (size_t)n;
	if (n_fds > 0) {
		pf_log_limited(guest->log, PF_LOG_WARNING,
			"its QEMU sends descriptors on the guest channel, which is closed for %d s",
			REOPEN_FLOOD_S);
		return REOPEN_FLOOD_S;
	}
	result = pf_session_feed(guest->session, data, (size_t)n);
	if (result != PF_SESSION_OK) {
		pf_log_limited(guest->log, PF_LOG_WARNING,
			"its agent sends %s; its channel is closed for %d s",
			result < 0 ? "what needs more memory than there is" : "more than it may",
			REOPEN_FLOOD_S);
		return REOPEN_FLOOD_S;
	}
	return flush(guest) ? 0 : REOPEN_S;
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer userdata);

static gboolean on_end_in_pause(gint fd, GIOCondition condition, gpointer userdata)
{
	reopen_later(userdata, REOPEN_S);
	return G_SOURCE_CONTINUE; /* it is removed already */
}

static gboolean on_pause_over(gpointer userdata)
{
	PfGuest *guest = userdata;

	guest->pause_source = 0;
	g_source_remove(guest->read_source);
	guest->read_source =
		g_unix_fd_add(guest->channel, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, guest);
	return G_SOURCE_REMOVE;
}

static void pause_reading(PfGuest *guest, gint64 us)
{
	g_source_remove(guest->read_source);
	guest->read_source =
		g_unix_fd_add(guest->channel, G_IO_HUP | G_IO_ERR, on_end_in_pause, guest);
	guest->pause_source = g_timeout_add((guint)(us / 1000 + 1), on_pause_over, guest);
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer userdata)
{
	PfGuest *guest = userdata;
	uint64_t cpu_us = pf_cpu_time_us();
	size_t size = 0;
	guint seconds;
	gint64 wait;

	guest->named = 0;
	seconds = feed(guest, &size);
	wait = pf_quota_spend(guest->quota, size, guest->named,
		pf_cpu_time_us() - cpu_us + PF_QUOTA_TURN_US, g_get_monotonic_time());
	if (seconds > 0)
		reopen_later(guest, seconds);
	else if (wait > 0)
		pause_reading(guest, wait);
	guest->events->changed(guest->userdata);
	return G_SOURCE_CONTINUE;
}

void pf_guest_begin_session(PfGuest *guest)
{
	if (guest->channel < 0)
		return;
	guest->has_reported = FALSE;
	pf_additions_asked(&guest->additions, now_s());
	pf_session_open(guest->session);
	if (!flush(guest))
		reopen_later(guest, REOPEN_S);
}

static void on_opened(GObject *source, GAsyncResult *result, gpointer userdata)
{
	PfGuest *guest = userdata;
	g_autoptr(GError) error = NULL;
	int fd = pf_broker_open_channel_finish(result, &error);

	guest->opening = FALSE;
	if (guest->closed || !guest->available) {
		if (fd >= 0)
			pf_received_fds_close_later(fd);
	} else if (fd < 0) {
		complain(guest, &guest->channel_error, error->message);
		reopen_later(guest, REOPEN_S);
	} else {
		g_clear_pointer(&guest->channel_error, g_free);
		guest->channel = fd;
		guest->read_source =
			g_unix_fd_add(fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, guest);
		pf_guest_begin_session(guest);
	}
	unref(guest);
}

static void open_channel(PfGuest *guest)
{
	if (!guest->available || guest->opening || guest->channel >= 0)
		return;
	if (pf_closer_n_pending(guest->closer) > PF_RECEIVED_FDS_MAX_PENDING) {
		reopen_later(guest, REOPEN_S);
		return;
	}
	guest->opening = TRUE;
	guest->refs++;
	pf_broker_open_channel(guest->broker, guest->uuid, on_opened, guest);
}

static void set_channel(PfGuest *guest, gboolean available)
{
	guest->available = available;
	if (!available) {
		g_clear_handle_id(&guest->reopen_source, g_source_remove);
		close_channel(guest);
	} else if (!guest->reopen_source) {
		open_channel(guest);
	}
}

void pf_guest_update(PfGuest *guest, const PfDomain *domain)
{
	guest->memory_pages = domain->memory_pages;
	pf_additions_port(&guest->additions, domain->port_open, now_s());
	set_channel(guest, domain->channel[0] != 0);
	/* What the agent was not believed may be the truth now; it has to say it again. */
	if (guest->lies && guest->reported_pages <= guest->memory_pages) {
		guest->lies = FALSE;
		pf_guest_begin_session(guest);
	}
}

PfGuest *pf_guest_new(PfBroker *broker, PfFusionVm *fusion, const PfDomain *domain, PfQuota *quota,
	PfLogLimit *log, const PfGuestEvents *events, void *userdata)
{
	PfGuest *guest = g_new0(PfGuest, 1);

	guest->refs = 1;
	guest->broker = broker;
	guest->fusion = fusion;
	guest->uuid = g_strdup(domain->uuid);
	guest->name = g_strdup(domain->name);
	guest->quota = quota;
	guest->log = log;
	guest->events = events;
	guest->userdata = userdata;
	guest->channel = -1;
	guest->closer = pf_closer_new();
	guest->agent_version = g_strdup("");
	guest->kernel = g_strdup("");
	guest->session = pf_session_new(&sink, guest, new_session_id);
	return guest;
}

void pf_guest_free(PfGuest *guest)
{
	if (!guest)
		return;
	guest->closed = TRUE;
	set_channel(guest, FALSE);
	g_clear_pointer(&guest->session, pf_session_free);
	g_clear_pointer(&guest->closer, pf_closer_free);
	unref(guest);
}

PfCloser *pf_guest_closer(const PfGuest *guest)
{
	return guest->closer;
}

gboolean pf_guest_has_reported(const PfGuest *guest)
{
	return guest->has_reported;
}

uint64_t pf_guest_n_hints(const PfGuest *guest)
{
	return guest->n_hints;
}

gboolean pf_guest_located(const PfGuest *guest)
{
	return guest->located;
}

uint64_t pf_guest_n_pages(const PfGuest *guest)
{
	return MIN(guest->reported_pages, guest->memory_pages);
}

const char *pf_guest_reason(const PfGuest *guest)
{
	if (!guest->available)
		return "the VM has no guest channel: shut it down, turn page fusion off and on "
		       "again, and start it";
	if (guest->channel < 0 && guest->channel_error)
		return guest->channel_error;
	if (guest->page_size == 0)
		return "no agent was heard of: install the guest additions (pagefusionctl "
		       "additions insert VM), or start pagefusion-agent in the guest";
	if (guest->old_protocol)
		return "the agent is too old to be understood: install newer guest additions "
		       "(pagefusionctl additions insert VM)";
	if (guest->page_size != PF_PAGE_SIZE)
		return "the guest's page size is not the host's (4 KiB)";
	if (guest->lies)
		return "the agent claims more RAM than the VM can have: nothing it says is taken";
	if (!guest->located)
		return guest->locate_error ? guest->locate_error
					   : "the guest's RAM was not found in QEMU yet";
	return NULL;
}

const char *pf_guest_uuid(const PfGuest *guest)
{
	return guest->uuid;
}

PfAdditionsState pf_guest_additions(PfGuest *guest, guint64 *since)
{
	return pf_additions_state(&guest->additions, now_s(), since);
}

const char *pf_guest_agent_version(const PfGuest *guest)
{
	return guest->agent_version;
}

const char *pf_guest_kernel(const PfGuest *guest)
{
	return guest->kernel;
}
