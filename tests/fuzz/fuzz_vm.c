/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The service around two VMs whose guest and whose QEMU are hostile. The first byte of the input says what the VMs are;
 * each record (records.h) is a step: the low bit of its operation is the VM, the rest what happens. After each step the
 * main loop runs dry, and what must always hold is checked: the rules of fusion, orders that name located RAM and
 * frames that exist (hostile_qemu.c), requests that the broker may answer (fake_broker.c), and at the end that no
 * descriptor is left open. The clock and the timers are the fuzzer's.
 */
#include "common/log.h"
#include "host-service/service/vm.h"
#include "tests/fuzz/fake_broker.h"
#include "tests/fuzz/hostile_guest.h"
#include "tests/fuzz/hostile_qemu.h"
#include "tests/fuzz/records.h"
#include "tests/fuzz/vm_clock.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define N_VMS      2u
#define N_MODULES  3u
#define N_CONTENTS 16u
#define N_ROUNDS                                                                                   \
	6u /* of the main loop after a step: what is asked, answered, and follows from that */
#define FAR_GFN   1000u /* of a range that does not lie in QEMU in one piece */
#define RAM_AT    UINT64_C(0x7f0000000000)
#define RAM_OF(i) (RAM_AT + ((uint64_t)(i) << 32))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct World World;

typedef struct Side {
	World *world;
	PfDomain domain;
	PfVm *vm; /* NULL: the service does not know it (yet) */
	HostileQemu qemu;
	HostileGuest guest;
} Side;

struct World {
	PfFusion *fusion;
	PfGroups *groups;
	PfBroker *broker;
	FakeBroker fake;
	PfVmContext context;
	gboolean wanted;
	Side sides[N_VMS];
};

typedef struct Input {
	const uint8_t *data;
	size_t size;
} Input;

static PfConfig *config;
static PfHasher *hasher;
static PfDigest digests[N_CONTENTS];
static pid_t ended_process;

static unsigned take(Input *in, unsigned limit)
{
	unsigned byte;

	if (in->size == 0)
		return 0;
	byte = *in->data++;
	in->size--;
	return byte % limit;
}

/* What the service asks of the world */

static Side *find_side(World *world, const char *uuid)
{
	for (unsigned i = 0; i < N_VMS; i++)
		if (g_str_equal(world->sides[i].domain.uuid, uuid))
			return &world->sides[i];
	MUST(!"a VM that there is not");
	return NULL;
}

static int open_channel(void *userdata, const char *uuid)
{
	Side *side = find_side(userdata, uuid);
	int fds[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
	guest_attach(&side->guest, fds[0]);
	return fds[1];
}

static uint64_t locate(void *userdata, const char *uuid, PfGuestRange range)
{
	const Side *side = find_side(userdata, uuid);

	if (range.first.v >= QEMU_PAGES || range.n_pages > QEMU_PAGES - range.first.v)
		return 0;
	return side->qemu.ram_at + range.first.v * PF_PAGE_SIZE;
}

static bool frame_exists(void *userdata, uint64_t frame)
{
	const Side *side = userdata;
	const PfStore *store = pf_group_peek_store(pf_vm_group(side->vm));
	uint8_t page[PF_PAGE_SIZE];

	MUST(store && pf_store_is(store, side->qemu.store));
	return pf_store_read(store, (PfFrame){frame}, page) == 0;
}

static void on_wanted(void *userdata)
{
	World *world = userdata;

	world->wanted = TRUE;
}

static void on_domain(void *userdata, const PfDomain *domain)
{
	MUST(!"no domain was told of");
}

static void on_gone(void *userdata, const char *uuid)
{
	MUST(!"no domain is gone");
}

static void on_libvirt(void *userdata, gboolean connected, const char *reason)
{
	MUST(!"nothing was said of libvirt");
}

static void on_broker_closed(void *userdata)
{
	MUST(!"the broker has not ended");
}

static const PfBrokerEvents broker_events = {on_domain, on_gone, on_libvirt, on_broker_closed};

/* The service */

static void start_service(World *world)
{
	world->fusion = pf_fusion_new(&PF_FUSION_DEFAULTS);
	world->groups = pf_groups_new(NULL, NULL, 0);
	world->broker = pf_broker_new(fake_broker_open(&world->fake), &broker_events, world);
	world->context = (PfVmContext){.broker = world->broker,
		.fusion = world->fusion,
		.groups = world->groups,
		.hasher = hasher,
		.config = config,
		.wanted = on_wanted,
		.userdata = world};
}

static void start_vm(Side *side)
{
	g_autoptr(GError) error = NULL;

	if (side->vm)
		return;
	side->vm = pf_vm_new(&side->world->context, &side->domain, &error);
	MUST(side->vm && !error);
	MUST(g_str_equal(pf_vm_group_name(side->vm), side->domain.group));
}

static void stop_vm(Side *side)
{
	g_clear_pointer(&side->vm, pf_vm_free);
}

static void stop_service(World *world)
{
	for (unsigned i = 0; i < N_VMS; i++)
		stop_vm(&world->sides[i]);
	pf_broker_free(world->broker);
	pf_groups_drop_unused(world->groups);
	pf_groups_free(world->groups);
	MUST(pf_fusion_check(world->fusion) == NULL);
	pf_fusion_free(world->fusion);
	close(world->fake.socket);
	/* Answers that were still awaited. */
	while (g_main_context_iteration(NULL, FALSE))
		;
}

static void pump_one(PfFusionVm *fusion_vm, void *userdata)
{
	pf_vm_pump(pf_fusion_vm_userdata(fusion_vm));
}

static void on_freed(void *userdata, const char *group, PfFrame frame)
{
	World *world = userdata;

	pf_store_drop(pf_group_peek_store(pf_groups_find(world->groups, group)), frame);
}

/* Whether frames of an earlier service may be freed. */
static gboolean all_are_known(const World *world)
{
	for (unsigned i = 0; i < N_VMS; i++)
		if (!world->sides[i].vm || !pf_vm_is_known(world->sides[i].vm))
			return FALSE;
	return TRUE;
}

static void pump(World *world)
{
	world->wanted = FALSE;
	for (unsigned i = 0; i < N_VMS; i++)
		pf_fusion_set_complete(
			world->fusion, world->sides[i].domain.group, all_are_known(world));
	pf_fusion_foreach_pending(world->fusion, pump_one, world);
	pf_fusion_free_unused(world->fusion, UINT32_MAX, on_freed, world);
}

/* After a step */

static void run_dry(World *world)
{
	for (unsigned round = 0; round < N_ROUNDS; round++) {
		gboolean busy = FALSE;

		while (g_main_context_iteration(NULL, FALSE))
			busy = TRUE;
		busy |= fake_broker_serve(&world->fake);
		busy |= world->wanted;
		if (world->wanted)
			pump(world);
		for (unsigned i = 0; i < N_VMS; i++) {
			qemu_receive(&world->sides[i].qemu);
			guest_receive(&world->sides[i].guest);
		}
		if (!busy)
			return;
	}
}

static void check_view(Side *side)
{
	PfVmView view = {0};

	if (!side->vm)
		return;
	pf_vm_view(side->vm, &view);
	MUST(g_utf8_validate(view.reason, -1, NULL));
	MUST(g_utf8_validate(view.agent_version, -1, NULL));
	MUST(g_utf8_validate(view.kernel, -1, NULL));
	MUST(view.figures.thp != PF_THP_DEFAULT &&
		view.figures.stats.shared <= view.figures.stats.fused);
}

static void check(World *world)
{
	const char *broken = pf_fusion_check(world->fusion);

	if (broken)
		broken_rule(broken, __FILE__, __LINE__);
	for (unsigned i = 0; i < N_VMS; i++)
		check_view(&world->sides[i]);
}

/* Steps */

static void step_connect(Side *side)
{
	g_autoptr(GError) error = NULL;
	PfShimLink *link;

	if (!side->vm)
		return;
	link = pf_shim_link_new(qemu_connect(&side->qemu), &error);
	MUST(link && !error);
	pf_vm_take_shim(side->vm, link);
}

static void step_hello(Side *side, Input *in)
{
	qemu_hello(&side->qemu, in->data, in->size);
}

/* A few orders; the rest of the bytes is XORed over the answer to the last one. */
static void step_obey(Side *side, Input *in)
{
	unsigned n = take(in, 8);

	for (unsigned i = 0; i < n; i++)
		if (!qemu_obey(&side->qemu, NULL, 0))
			return;
		else
			run_dry(side->world);
	qemu_obey(&side->qemu, in->data, in->size);
}

static int some_descriptor(const Side *side, unsigned kind)
{
	const Side *other = &side->world->sides[side == side->world->sides];
	PfStore *store = side->vm ? pf_group_peek_store(pf_vm_group(side->vm)) : NULL;

	switch (kind) {
	case 1:
		return fcntl(side->qemu.store, F_DUPFD_CLOEXEC, 0);
	case 2:
		return fcntl(other->qemu.store, F_DUPFD_CLOEXEC, 0);
	case 3:
		return memfd_create("junk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	case 4:
		return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	case 5:
		return store ? fcntl(pf_store_readonly_fd(store), F_DUPFD_CLOEXEC, 0) : -1;
	case 6:
		return fcntl(side->qemu.staging, F_DUPFD_CLOEXEC, 0);
	default:
		return -1;
	}
}

/* Any packet: its type, the id, what descriptor goes along, and the payload. */
static void step_packet(Side *side, Input *in)
{
	const GArray *orders = side->qemu.orders;
	uint16_t type = (uint16_t)(PF_SHIM_HELLO - 2 + take(in, 14));
	unsigned which = take(in, 8);
	uint64_t id = which < orders->len ? g_array_index(orders, uint64_t, which) : which - 4;
	int fd = some_descriptor(side, take(in, 7));

	if (type == PF_SHIM_STORE_RETURN)
		qemu_return_store(&side->qemu, fd);
	else
		qemu_send(&side->qemu, type, id, in->data, in->size, fd);
	if (fd >= 0)
		close(fd);
}

/* Pages that it maps, or says that it does: as listed, or as lost. */
static void step_pages(Side *side, Input *in)
{
	unsigned how = take(in, 4), first = take(in, QEMU_PAGES), n = take(in, 64) + 1;
	PfShimRun run = {side->qemu.ram_at + first * PF_PAGE_SIZE, 512 + take(in, 64), n, 0};
	PfShimLost lost = {run.hva, run.frame, n, take(in, PF_SHIM_N_LOSSES)};
	struct {
		PfShimListed head;
		PfShimRun run;
	} listed = {{0, 1}, run};

	if (how == 0) {
		qemu_send(&side->qemu, PF_SHIM_LOST, 0, &lost, sizeof lost, -1);
	} else if (how == 1) {
		listed.run.n_pages <<= take(in, 26);
		qemu_send(&side->qemu, PF_SHIM_LISTED, 2, &listed, sizeof listed, -1);
	} else if (how == 2) {
		lost.n_pages <<= take(in, 26);
		qemu_send(&side->qemu, PF_SHIM_LOST, 0, &lost, sizeof lost, -1);
	} else {
		qemu_lose(&side->qemu, first, n, lost.loss);
	}
}

/* A guest that boots: it asks for a session. */
static void knock(Side *side)
{
	guest_knock(&side->guest);
	run_dry(side->world);
}

static void step_guest_hello(Side *side, Input *in)
{
	unsigned how = take(in, 8);
	PfGuestRange ram[] = {{{0}, QEMU_PAGES}, {{FAR_GFN}, 8}};

	if (how == 1)
		ram[0].n_pages = 1 + take(in, QEMU_PAGES);
	if (how == 2)
		ram[1].n_pages <<= take(in, 32);
	if (how == 3)
		ram[1] = (PfGuestRange){{QEMU_PAGES / 2}, QEMU_PAGES / 2};
	if (how == 3)
		ram[0].n_pages = QEMU_PAGES / 2;
	if (how != 5)
		knock(side);
	guest_hello(
		&side->guest, how == 4 ? 65536 : PF_PAGE_SIZE, ram, how == 2 || how == 3 ? 2 : 1);
}

static void step_hints(Side *side, Input *in)
{
	uint32_t module = take(in, N_MODULES + 1);
	unsigned gfn = take(in, QEMU_PAGES), content = take(in, N_CONTENTS), n = 1 + take(in, 64);
	unsigned how = take(in, 4);
	PfDigest said[64];

	for (unsigned i = 0; i < n; i++) {
		said[i] = digests[(content + i) % N_CONTENTS];
		if (how != 3 && gfn + i < QEMU_PAGES && side->qemu.map[gfn + i] < 0)
			side->qemu.ram[gfn + i] = (uint8_t)((content + i) % N_CONTENTS);
	}
	guest_hints(&side->guest, module, gfn, how == 2 ? FAR_GFN + gfn : gfn, said, n);
}

/* A new session with RAM and modules: what a fuzzer would need long for. */
static void step_boot(Side *side)
{
	const PfGuestRange ram = {{0}, QEMU_PAGES};

	knock(side);
	guest_hello(&side->guest, PF_PAGE_SIZE, &ram, 1);
	for (uint32_t i = 0; i < N_MODULES; i++)
		guest_module(&side->guest, i, (uint8_t)i, QEMU_PAGES);
}

static void step_domain(Side *side, Input *in)
{
	unsigned flags = take(in, 256);
	PfDomain *domain = &side->domain;

	domain->enabled = !(flags & 1);
	g_strlcpy(domain->refusal, flags & 2 ? "it is refused" : "", sizeof domain->refusal);
	g_strlcpy(domain->channel, flags & 4 ? "" : "/channel", sizeof domain->channel);
	domain->thp = flags & 8 ? PF_THP_DEFAULT : PF_THP_ALL;
	domain->memory_pages = flags & 16 ? 4 : QEMU_PAGES + 64;
	if (side->vm)
		pf_vm_update(side->vm, domain);
}

static void step_restart(World *world, Input *in)
{
	stop_service(world);
	start_service(world);
	for (unsigned i = 0; i < N_VMS; i++)
		if (take(in, 4) != 3)
			start_vm(&world->sides[i]);
}

static void step_end_vm(Side *side, Input *in)
{
	stop_vm(side);
	side->domain.pid = take(in, 2) ? ended_process : getpid();
	if (take(in, 2))
		start_vm(side);
}

static void step_time(World *world, Input *in)
{
	vm_clock_pass(INT64_C(1000) << take(in, 24));
	pf_fusion_tick(world->fusion, vm_clock_now_us());
	world->wanted = TRUE;
}

static void step(World *world, const Record *record)
{
	Side *side = &world->sides[record->operation & 1];
	Input in = {record->bytes, record->size};

	switch ((record->operation >> 1) % 19) {
	case 0:
		step_connect(side);
		break;
	case 1:
		step_hello(side, &in);
		break;
	case 2:
		step_obey(side, &in);
		break;
	case 3:
		step_packet(side, &in);
		break;
	case 4:
		step_pages(side, &in);
		break;
	case 5:
		qemu_disconnect(&side->qemu);
		break;
	case 6:
		guest_raw(&side->guest, in.data, in.size);
		break;
	case 7:
		guest_body(&side->guest, in.data, in.size);
		break;
	case 8:
		step_guest_hello(side, &in);
		break;
	case 9:
		step_boot(side);
		break;
	case 10:
		step_hints(side, &in);
		break;
	case 11:
		guest_withdraws(
			&side->guest, take(&in, N_MODULES), take(&in, QEMU_PAGES), take(&in, 64));
		break;
	case 12:
		for (unsigned n = 1 + take(&in, 32); n > 0; n--)
			guest_report_end(&side->guest);
		break;
	case 13:
		guest_close(&side->guest);
		break;
	case 14:
		step_domain(side, &in);
		break;
	case 15:
		world->fake.trouble = take(&in, 64);
		vm_clock_set_cost(UINT64_C(1) << take(&in, 18));
		break;
	case 16:
		step_restart(world, &in);
		break;
	case 17:
		step_end_vm(side, &in);
		break;
	default:
		step_time(world, &in);
	}
}

/* The world */

static void make_side(World *world, unsigned i, gboolean groups_differ)
{
	Side *side = &world->sides[i];
	PfDomain *domain = &side->domain;

	side->world = world;
	g_snprintf(domain->uuid, sizeof domain->uuid, "01234567-89ab-cdef-0123-456789abcde%u", i);
	g_snprintf(domain->name, sizeof domain->name, "vm%u", i);
	g_snprintf(domain->group, sizeof domain->group, "group%u", groups_differ ? i : 0);
	g_strlcpy(domain->channel, "/channel", sizeof domain->channel);
	domain->enabled = domain->active = domain->has_shim = TRUE;
	domain->memory_pages = QEMU_PAGES + 64;
	domain->pid = getpid();
	qemu_init(&side->qemu, RAM_OF(i), frame_exists, side);
	guest_init(&side->guest);
}

static void make_globals(void)
{
	uint8_t page[PF_PAGE_SIZE];

	/* What is logged would cost more than all the rest. */
	pf_log_set_level((PfLogLevel)0);
	hasher = pf_hasher_new();
	MUST(hasher);
	config = pf_config_new();
	pf_config_set_thp(config, PF_THP_ALL);
	for (unsigned i = 0; i < N_CONTENTS; i++) {
		memset(page, (int)i, sizeof page);
		MUST(pf_hasher_page(hasher, page, &digests[i]) == 0);
	}
	/* GLib's own descriptors are open from now on. */
	g_main_context_iteration(NULL, FALSE);
	g_object_unref(g_task_new(NULL, NULL, NULL, NULL));
	/* Nobody waits for it: its number stays its own, as a process that has ended. */
	ended_process = fork();
	if (ended_process == 0)
		_exit(0);
	MUST(ended_process > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	World world = {
		.fake = {.open_channel = open_channel, .locate = locate, .userdata = &world}};
	unsigned n_open, n_steps = 0, how;
	Input in = {data, size};
	Record record;

	if (!hasher)
		make_globals();
	how = take(&in, 4);
	/* Another user than ours, or root, who is refused. */
	vm_clock_init(how & 2 ? 0 : geteuid() + 1);
	n_open = vm_clock_count_fds();
	start_service(&world);
	for (unsigned i = 0; i < N_VMS; i++) {
		make_side(&world, i, how & 1);
		start_vm(&world.sides[i]);
	}
	run_dry(&world);
	while (n_steps++ < 200 && next_record(&in.data, &in.size, &record)) {
		step(&world, &record);
		run_dry(&world);
		check(&world);
	}
	stop_service(&world);
	for (unsigned i = 0; i < N_VMS; i++) {
		qemu_deinit(&world.sides[i].qemu);
		guest_deinit(&world.sides[i].guest);
	}
	vm_clock_deinit();
	MUST(vm_clock_wait_for_fds(n_open));
	return 0;
}
