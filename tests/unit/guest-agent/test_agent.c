/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The agent's loop, in a process of its own as it blocks signals; this one is the host and, beyond
 * a socket, the port. Scans, process events and the port's dispatch are the test's own (the linker
 * puts them in the place of the real ones): they do or fail as it wants, and count what they do in
 * memory that both processes share.
 */
#include "guest-agent/agent.h"
#include "guest-agent/find/process_events.h"
#include "guest-agent/find/scan.h"
#include "guest-agent/status_server.h"
#include "guest-agent/status_show.h"
#include "guest-agent/tell/channel.h"
#include "tests/unit/guest-agent/little_host.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define PATIENCE_MS 20000
#define N_PAGES     3 /* of each file */

int __wrap_pf_facts_read(PfFacts *facts);
int __wrap_pf_facts_read_ram(PfRam *ram);
int __wrap_pf_scanner_new(PfScanner **scanner, PfState *state);
void __wrap_pf_scanner_free(PfScanner *scanner);
int __wrap_pf_scanner_pass(PfScanner *scanner, PfPageClass class, const PfAgentConfig *config,
	const PfRam *ram, PfStep step, void *userdata, PfScanStats *stats);
int __wrap_pf_scanner_look(PfScanner *scanner, const pid_t *pids, size_t n, const PfRam *ram,
	PfStep step, void *userdata, PfScanStats *stats);
const char *__wrap_pf_scanner_impossible(PfScanner *scanner, PfPageClass class);
uint64_t __wrap_pf_scanner_left_behind(const PfScanner *scanner);
int __wrap_pf_channel_open(const char *path);
int __real_pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll);
int __wrap_pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll);
int __real_pf_status_server_init(PfStatusServer *server, const char *path);
int __wrap_pf_status_server_init(PfStatusServer *server, const char *path);
int __wrap_pf_process_events_new(PfProcessEvents **events);
void __wrap_pf_process_events_free(PfProcessEvents *events);
int __wrap_pf_process_events_fd(const PfProcessEvents *events);
int __wrap_pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t capacity, uint64_t *ended, bool *lost);

/* What both processes see. */
typedef struct Shared {
	int ram_result, scan_result, status_result;
	int dispatch_result; /* once */
	bool hang_up;        /* once: the host closes its end */
	int n_steps;         /* of a pass */
	uint64_t n_hashed;   /* pages, in each step, as a pass says */
	int n_passes[PF_N_CLASSES], n_looks, n_opened;
	pid_t looked_at;
	uint64_t ram_pages;
} Shared;

static Shared *shared;
static PfState *agent_state;
static int ports[2][2];   /* our end, the agent's end of the first port and of the next */
static int happenings[2]; /* a pid a program started, 0 a process ended */
static LittleHost host;
static char directory[32], config_path[64], status_path[64];
static PfAgentConfig config;
static PfAgentOptions options;
static pid_t child;
static int said_fd;
static char said[16384];
static size_t n_said;

int __wrap_pf_facts_read(PfFacts *facts)
{
	*facts = (PfFacts){.kernel = "6.1"};
	return __wrap_pf_facts_read_ram(&facts->ram);
}

int __wrap_pf_facts_read_ram(PfRam *ram)
{
	if (shared->ram_result < 0)
		return shared->ram_result;
	*ram = (PfRam){.ranges = {{{1}, shared->ram_pages}}, .n = 1};
	return 0;
}

int __wrap_pf_scanner_new(PfScanner **scanner, PfState *state)
{
	agent_state = state;
	*scanner = NULL;
	return 0;
}

void __wrap_pf_scanner_free(PfScanner *scanner)
{
}

const char *__wrap_pf_scanner_impossible(PfScanner *scanner, PfPageClass class)
{
	return class == PF_CLASS_KERNEL ? "it is none" : NULL;
}

uint64_t __wrap_pf_scanner_left_behind(const PfScanner *scanner)
{
	return 0;
}

/* Another file for each class, and one for a new process. */
static int find_file(PfPageClass class, bool complete, unsigned number)
{
	const PfFileKey key = {PF_SOURCE_FILE, 1, number};
	const PfFileStamp stamp = {.size = N_PAGES * PF_PAGE_SIZE};
	PfObserved observed[N_PAGES] = {0};
	char name[16];
	PfFile *file;
	bool fresh;

	snprintf(name, sizeof(name), "file-%u", number);
	for (uint32_t i = 0; i < N_PAGES; i++)
		observed[i] = (PfObserved){.gfn = {number * 100 + i + 1}, .file_page = i};
	pf_state_begin(agent_state, class, complete);
	if (pf_state_see(agent_state, &key, &stamp, 0, name, &file, &fresh) < 0 ||
		(class == PF_CLASS_MAPPED && pf_page_ranges_add(&file->mapped, 0, N_PAGES) < 0) ||
		pf_file_commit(file, 0, N_PAGES, observed, N_PAGES) < 0)
		return -ENOMEM;
	pf_state_end(agent_state);
	return 0;
}

/* For listen_to(): what is only in memory wakes nobody. */
static void tell(const char *what)
{
	if (write(STDERR_FILENO, what, strlen(what)) < 0)
		abort();
}

int __wrap_pf_scanner_pass(PfScanner *scanner, PfPageClass class, const PfAgentConfig *wanted,
	const PfRam *ram, PfStep step, void *userdata, PfScanStats *stats)
{
	int r = 0;

	*stats = (PfScanStats){0};
	if (class == PF_CLASS_KERNEL)
		return -ENOTSUP;
	shared->n_passes[class]++;
	for (int i = 0; i < shared->n_steps && r == 0; i++) {
		r = step(userdata, shared->n_hashed);
		tell(r == 0 ? "stepped\n" : "given up\n");
	}
	if (r == 0)
		r = shared->scan_result;
	return r == 0 ? find_file(class, true, class) : r;
}

int __wrap_pf_scanner_look(PfScanner *scanner, const pid_t *pids, size_t n, const PfRam *ram,
	PfStep step, void *userdata, PfScanStats *stats)
{
	*stats = (PfScanStats){0};
	shared->looked_at = n == 1 ? pids[0] : -1;
	shared->n_looks++;
	return find_file(PF_CLASS_MAPPED, false, PF_N_CLASSES);
}

int __wrap_pf_channel_open(const char *path)
{
	int n = shared->n_opened++;

	if (strcmp(path, "/port") != 0)
		return -ENOENT;
	return n < 2 ? fcntl(ports[n][1], F_DUPFD_CLOEXEC, 0) : -EBUSY;
}

int __wrap_pf_channel_dispatch(PfChannel *channel, const struct pollfd *poll)
{
	int r = shared->dispatch_result;

	shared->dispatch_result = 0;
	if (shared->hang_up) {
		shared->hang_up = false;
		channel->connected = false;
		pf_conversation_lost(channel->conversation);
		return 0;
	}
	return r < 0 ? r : __real_pf_channel_dispatch(channel, poll);
}

int __wrap_pf_status_server_init(PfStatusServer *server, const char *path)
{
	server->fd = -1;
	if (shared->status_result < 0)
		return shared->status_result;
	return __real_pf_status_server_init(server, status_path);
}

int __wrap_pf_process_events_new(PfProcessEvents **events)
{
	*events = (PfProcessEvents *)happenings;
	return 0;
}

void __wrap_pf_process_events_free(PfProcessEvents *events)
{
}

int __wrap_pf_process_events_fd(const PfProcessEvents *events)
{
	return happenings[0];
}

int __wrap_pf_process_events_take(
	PfProcessEvents *events, pid_t *pids, size_t capacity, uint64_t *ended, bool *lost)
{
	ssize_t n = read(happenings[0], pids, capacity * sizeof(*pids));

	*ended = 0;
	*lost = false;
	return n < 0 ? -errno : (int)((size_t)n / sizeof(*pids));
}

static int setup(void **state)
{
	shared = mmap(
		NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return -1;
	shared->ram_pages = 1 << 17;
	shared->n_steps = 1;
	shared->status_result = -EROFS;
	strcpy(directory, "/tmp/pf-agent-XXXXXX");
	if (!mkdtemp(directory))
		return -1;
	snprintf(config_path, sizeof(config_path), "%s/conf", directory);
	snprintf(status_path, sizeof(status_path), "%s/status", directory);
	for (int i = 0; i < 2; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ports[i]) <
			0)
			return -1;
	}
	if (pipe2(happenings, O_CLOEXEC | O_NONBLOCK) < 0)
		return -1;
	little_host_init(&host);
	config = (PfAgentConfig){.interval_s = 3600,
		.slow_interval_s = 3600,
		.hash_limit = 128 << 20,
		.cpu_limit_permyriad = 10,
		.classes = {[PF_CLASS_MAPPED] = true}};
	options = (PfAgentOptions){.config = &config,
		.config_path = config_path,
		.config_named = true,
		.port = "/port"};
	n_said = 0;
	said[0] = '\0';
	return 0;
}

static void close_pair(int fds[2])
{
	close(fds[0]);
	if (fds[1] >= 0)
		close(fds[1]);
}

static int teardown(void **state)
{
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		close(said_fd);
	}
	child = 0;
	close_pair(ports[0]);
	close_pair(ports[1]);
	close_pair(happenings);
	little_host_deinit(&host);
	munmap(shared, sizeof(*shared));
	pf_agent_config_deinit(&config);
	unlink(config_path);
	unlink(status_path);
	rmdir(directory);
	return 0;
}

static void start(void)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		dup2(fds[1], STDERR_FILENO);
		_exit(pf_agent_run(&options));
	}
	close(fds[1]);
	said_fd = fds[0];
	assert_int_equal(fcntl(said_fd, F_SETFL, O_NONBLOCK), 0);
}

static void host_says(int port, uint8_t *frame, size_t size)
{
	assert_int_equal(write(ports[port][0], frame, size), size);
	free(frame);
}

static void host_says_hello(int port, uint64_t session_id)
{
	size_t size;
	uint8_t *frame = little_host_hello(&host, session_id, 64, &size);

	host_says(port, frame, size);
}

/* Takes what the agent says, to the host and to its log, as it comes; false: nothing more will, as
 * it has ended, or does not say anything for too long. */
static bool listen_to(int port)
{
	struct pollfd polls[2] = {{ports[port][0], POLLIN, 0}, {said_fd, POLLIN, 0}};
	uint8_t buffer[4096];
	ssize_t n;

	if (poll(polls, 2, PATIENCE_MS) <= 0)
		return false;
	while ((n = read(ports[port][0], buffer, sizeof(buffer))) > 0)
		little_host_feed(&host, buffer, (size_t)n);
	while ((n = read(said_fd, said + n_said, sizeof(said) - 1 - n_said)) > 0)
		n_said += (size_t)n;
	said[n_said] = '\0';
	return n != 0;
}

#define WAIT_FOR(port, condition)                                                                  \
	do {                                                                                       \
		while (!(condition))                                                               \
			if (!listen_to(port))                                                      \
				fail_msg(                                                          \
					"waited for %s; the agent said \"%s\"", #condition, said); \
	} while (0)

/* Its exit status. */
static int ended(void)
{
	int status;

	while (listen_to(0)) {
	}
	close(said_fd);
	assert_int_equal(waitpid(child, &status, 0), child);
	child = 0;
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void stop(void)
{
	assert_int_equal(kill(child, SIGTERM), 0);
	assert_int_equal(ended(), EXIT_SUCCESS);
}

static void assert_says(const char *what)
{
	if (!strstr(said, what))
		fail_msg("said \"%s\", wanted \"%s\"", said, what);
}

static bool knows(const char *name)
{
	for (size_t m = 0; m < LITTLE_HOST_MODULES; m++) {
		if (host.modules[m].declared && strcmp(host.modules[m].name, name) == 0)
			return true;
	}
	return false;
}

/* What is shared has been set by the caller. */
static void check_end(const char *says)
{
	host_says_hello(0, 1);
	start();
	assert_int_equal(ended(), EXIT_FAILURE);
	assert_says(says);
}

static void test_scan_fails(void **state)
{
	shared->scan_result = -EIO;
	check_end("cannot look at this guest's pages: Input/output error");
	assert_null(strstr(said, "memory layout"));
}

static void test_not_root(void **state)
{
	shared->scan_result = -EPERM;
	check_end("run this as root");
}

static void test_no_layout(void **state)
{
	shared->ram_result = -EIO;
	check_end("cannot read this guest's memory layout: Input/output error");
}

static void test_no_layout_any_more(void **state)
{
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0"));
	shared->ram_result = -EPERM;
	assert_int_equal(kill(child, SIGHUP), 0);
	assert_int_equal(ended(), EXIT_FAILURE);
	assert_says("/proc/iomem hides its addresses: run this as root");
}

static void test_port_fails(void **state)
{
	shared->dispatch_result = -EIO;
	check_end("/port: Input/output error");
}

static void test_port_is_gone(void **state)
{
	shared->dispatch_result = -ENODEV;
	check_end("turn page fusion on for this VM on the host");
}

/* That is not the port's fault. */
static void test_no_memory(void **state)
{
	shared->dispatch_result = -ENOMEM;
	check_end("cannot go on: Cannot allocate memory");
	assert_null(strstr(said, "/port"));
}

static void test_no_port(void **state)
{
	options.port = "/nonexistent";
	start();
	assert_int_equal(ended(), EXIT_FAILURE);
	assert_says("no virtio-serial port /nonexistent");
}

/* Nothing is looked at before a host wants to know. */
static void test_report(void **state)
{
	config.classes[PF_CLASS_CACHE] = config.classes[PF_CLASS_KERNEL] = true;
	start();
	WAIT_FOR(0, host.n_knocks == 1);
	assert_int_equal(shared->n_passes[PF_CLASS_MAPPED], 0);
	host_says_hello(0, 1);
	WAIT_FOR(0, knows("file-0") && knows("file-1"));
	WAIT_FOR(0, strstr(said, "reported 6 pages of 2 files in "));
	assert_says("no pages of the class kernel: it is none");
	/* A view that cannot be had is no reason to end. */
	assert_says("--status will not work");
	/* A new session: all is told again, nothing is looked at again. */
	host_says_hello(0, 2);
	WAIT_FOR(0, host.n_ends > 0 && knows("file-0") && knows("file-1"));
	assert_int_equal(shared->n_passes[PF_CLASS_MAPPED], 1);
	assert_int_equal(shared->n_passes[PF_CLASS_CACHE], 1);
	stop();
}

/* A program starts after the first pass: it is looked at alone. */
static void test_new_process(void **state)
{
	const pid_t pid = 4711;

	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0"));
	assert_int_equal(write(happenings[1], &pid, sizeof(pid)), sizeof(pid));
	WAIT_FOR(0, knows("file-4"));
	assert_int_equal(shared->looked_at, pid);
	assert_int_equal(shared->n_passes[PF_CLASS_MAPPED], 1);
	stop();
}

/* The port goes away and comes back. */
static void test_next_port(void **state)
{
	options.wait = true;
	start();
	WAIT_FOR(0, host.n_knocks == 1);
	shared->dispatch_result = -ENODEV;
	host_says_hello(0, 1);
	WAIT_FOR(0, strstr(said, "waiting for virtio-serial port /port"));
	assert_null(strstr(said, "port /port is there"));
	host_says_hello(1, 2);
	WAIT_FOR(1, knows("file-0"));
	assert_says("virtio-serial port /port is there");
	assert_int_equal(shared->n_opened, 2);
	stop();
}

static void write_config(const char *text)
{
	FILE *file = fopen(config_path, "we");

	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

static void hang_up_on_agent(void)
{
	assert_int_equal(kill(child, SIGHUP), 0);
}

static void test_hangup(void **state)
{
	assert_int_equal(pf_agent_config_init(&config), 0);
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0") && knows("file-1"));
	/* Something wrong: what held before holds, but it looks at everything. */
	write_config("[classes]\ncache = perhaps\n");
	hang_up_on_agent();
	WAIT_FOR(0, strstr(said, "what held before still holds"));
	assert_says(config_path);
	WAIT_FOR(0, shared->n_passes[PF_CLASS_CACHE] == 2);
	assert_true(knows("file-1"));
	/* A class is switched off: its pages are withdrawn. */
	write_config("[classes]\ncache = off\n");
	hang_up_on_agent();
	WAIT_FOR(0, !knows("file-1"));
	assert_true(knows("file-0"));
	write_config("[classes]\ncache = on\n");
	hang_up_on_agent();
	WAIT_FOR(0, knows("file-1"));
	stop();
}

/* The file says again what it said before; then the port is looked for again. */
static void test_hangup_and_next_port(void **state)
{
	assert_int_equal(pf_agent_config_init(&config), 0);
	assert_non_null(config.port = strdup("/port"));
	options.port = NULL;
	options.wait = true;
	write_config("[agent]\nport = /port\n");
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0") && knows("file-1"));
	hang_up_on_agent();
	WAIT_FOR(0, shared->n_passes[PF_CLASS_CACHE] == 2);
	shared->dispatch_result = -ENODEV;
	host_says_hello(0, 2);
	WAIT_FOR(0, strstr(said, "waiting for virtio-serial port /port"));
	host_says_hello(1, 3);
	WAIT_FOR(1, knows("file-0"));
	stop();
}

/* The file that was named is not there any more: nobody has said what is to hold. */
static void test_named_config_vanishes(void **state)
{
	assert_int_equal(pf_agent_config_init(&config), 0);
	config.classes[PF_CLASS_CACHE] = false;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0"));
	hang_up_on_agent();
	WAIT_FOR(0, strstr(said, "No such file or directory: what held before still holds"));
	assert_says(config_path);
	WAIT_FOR(0, host.n_ends == 2);
	assert_int_equal(shared->n_passes[PF_CLASS_CACHE], 0);
	stop();
}

/* One that nobody named was taken away: the defaults hold. */
static void test_default_config_vanishes(void **state)
{
	assert_int_equal(pf_agent_config_init(&config), 0);
	config.classes[PF_CLASS_CACHE] = false;
	options.config_named = false;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, knows("file-0"));
	hang_up_on_agent();
	WAIT_FOR(0, knows("file-1"));
	assert_null(strstr(said, "still holds"));
	stop();
}

/* Memory is plugged in: where RAM is, only a hello says. */
static void test_more_ram(void **state)
{
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, host.n_ends == 1);
	shared->ram_pages *= 2;
	assert_int_equal(kill(child, SIGHUP), 0);
	WAIT_FOR(0, host.n_knocks == 2);
	host_says_hello(0, 2);
	WAIT_FOR(0, host.n_hellos == 2 && knows("file-0"));
	stop();
}

/* A pass that hashes more than the limit allows is slow, and can be ended nevertheless. */
static void test_slow_pass(void **state)
{
	shared->n_hashed = 1 << 20;
	config.hash_limit = 1 << 20;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, host.n_hellos == 1);
	assert_false(knows("file-0"));
	stop();
	assert_false(knows("file-0"));
}

/* A pass that pauses half a second in each step. */
static void make_slow_passes(int n_steps)
{
	shared->n_steps = n_steps;
	shared->n_hashed = 128;
	config.hash_limit = 1 << 20;
}

/* Nothing is looked at for a host that has gone; what was begun is done when it is back. */
static void test_host_goes_in_mid_pass(void **state)
{
	make_slow_passes(20);
	config.classes[PF_CLASS_MAPPED] = false;
	config.classes[PF_CLASS_CACHE] = true;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, strstr(said, "stepped"));
	shared->hang_up = true;
	WAIT_FOR(0, strstr(said, "given up"));
	shared->n_steps = 1;
	host_says_hello(0, 2);
	WAIT_FOR(0, knows("file-1"));
	assert_int_equal(shared->n_passes[PF_CLASS_CACHE], 2);
	stop();
}

/* The agent answers --status with this line. */
static void assert_status(const char *line)
{
	char *answer = NULL;
	size_t size;
	FILE *out = open_memstream(&answer, &size);

	assert_non_null(out);
	assert_int_equal(pf_status_show(out, status_path, true), EXIT_SUCCESS);
	assert_int_equal(fclose(out), 0);
	if (!strstr(answer, line))
		fail_msg("wanted %s in %s", line, answer);
	free(answer);
}

/* Who asks in the midst of a pass hears what is so now. */
static void test_status_in_mid_pass(void **state)
{
	make_slow_passes(20);
	shared->status_result = 0;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, strstr(said, "stepped"));
	assert_status("\"sessions\":1,");
	host_says_hello(0, 2);
	WAIT_FOR(0, host.n_hellos == 1);
	assert_status("\"sessions\":2,");
	assert_int_equal(shared->n_passes[PF_CLASS_MAPPED], 1);
	assert_null(strstr(said, "given up"));
	stop();
}

/* A predecessor is slow to end. */
static void test_status_later(void **state)
{
	shared->status_result = -EADDRINUSE;
	host_says_hello(0, 1);
	start();
	WAIT_FOR(0, strstr(said, "--status will not work") && knows("file-0"));
	/* Nothing else is left to do that would wake it. */
	shared->status_result = 0;
	WAIT_FOR(0, strstr(said, "--status works now"));
	assert_status("\"sessions\":1,");
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_scan_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_root, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_layout, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_layout_any_more, setup, teardown),
		cmocka_unit_test_setup_teardown(test_port_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_port_is_gone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_report, setup, teardown),
		cmocka_unit_test_setup_teardown(test_new_process, setup, teardown),
		cmocka_unit_test_setup_teardown(test_next_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hangup, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hangup_and_next_port, setup, teardown),
		cmocka_unit_test_setup_teardown(test_named_config_vanishes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_default_config_vanishes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_more_ram, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow_pass, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host_goes_in_mid_pass, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_in_mid_pass, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_later, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
