/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The test is systemd: it receives what is to be kept at a NOTIFY_SOCKET, and starts each service, a child, with what
 * it has. What lies between, the front, is left out.
 */
#include "host-service/front/systemd.h"
#include "host-service/service/groups.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "lingering_socket.h"
#include "store_forgery.h"

#define FIRST_FD 3
#define MAX_KEPT 8

/* systemd */

typedef struct Kept {
	char *name;
	int fd;
} Kept;

typedef struct Systemd {
	int socket;
	Kept kept[MAX_KEPT];
	size_t n;
} Systemd;

static int systemd_start(void **state)
{
	Systemd *systemd = g_new0(Systemd, 1);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	g_autofree char *name = g_strdup_printf("@pf-test-groups-%d", getpid());

	systemd->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* An abstract name: "@" stands for the zero byte. */
	memcpy(address.sun_path + 1, name + 1, strlen(name + 1));
	if (bind(systemd->socket, (struct sockaddr *)&address,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))) < 0)
		return -1;
	setenv("NOTIFY_SOCKET", name, 1);
	*state = systemd;
	return 0;
}

static void drop_kept(Systemd *systemd, size_t i)
{
	close(systemd->kept[i].fd);
	g_free(systemd->kept[i].name);
	systemd->kept[i] = systemd->kept[--systemd->n];
}

static int systemd_stop(void **state)
{
	Systemd *systemd = *state;

	while (systemd->n > 0)
		drop_kept(systemd, 0);
	close(systemd->socket);
	unsetenv("NOTIFY_SOCKET");
	g_free(systemd);
	return 0;
}

static void forget(Systemd *systemd, const char *name)
{
	for (size_t i = systemd->n; i-- > 0;)
		if (strcmp(systemd->kept[i].name, name) == 0)
			drop_kept(systemd, i);
}

/* fd is consumed; as systemd does it, what it has already is not kept twice. */
static void remember(Systemd *systemd, const char *name, int fd)
{
	struct stat news, old;

	assert_int_equal(fstat(fd, &news), 0);
	for (size_t i = 0; i < systemd->n; i++) {
		assert_int_equal(fstat(systemd->kept[i].fd, &old), 0);
		if (old.st_ino == news.st_ino) {
			close(fd);
			return;
		}
	}
	assert_true(systemd->n < MAX_KEPT);
	systemd->kept[systemd->n++] = (Kept){g_strdup(name), fd};
}

/* Takes what was said; FALSE: nothing more was. */
static gboolean hear(Systemd *systemd)
{
	char text[512] = {0}, name[256] = {0};
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {text, sizeof text - 1};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control};
	struct cmsghdr *header;
	int fd;

	if (recvmsg(systemd->socket, &message, MSG_CMSG_CLOEXEC) < 0) {
		assert_int_equal(errno, EAGAIN);
		return FALSE;
	}
	header = CMSG_FIRSTHDR(&message);
	if (sscanf(text, "FDSTOREREMOVE=1\nFDNAME=%255[^\n]", name) == 1) {
		assert_null(header);
		forget(systemd, name);
		return TRUE;
	}
	assert_int_equal(sscanf(text, "FDSTORE=1\nFDNAME=%255[^\n]", name), 1);
	assert_non_null(header);
	assert_int_equal(header->cmsg_len, CMSG_LEN(sizeof fd));
	memcpy(&fd, CMSG_DATA(header), sizeof fd);
	remember(systemd, name, fd);
	return TRUE;
}

static size_t n_kept(Systemd *systemd)
{
	while (hear(systemd))
		;
	return systemd->n;
}

/* In the child: all that systemd has, from descriptor 3 on. */
static void hand_over(const Systemd *systemd)
{
	g_autofree char *n = g_strdup_printf("%zu", systemd->n);
	g_autofree char *pid = g_strdup_printf("%d", getpid());
	g_autoptr(GString) names = g_string_new(NULL);
	int copies[MAX_KEPT];

	if (systemd->n == 0)
		return;
	for (size_t i = 0; i < systemd->n; i++) {
		copies[i] = fcntl(systemd->kept[i].fd, F_DUPFD_CLOEXEC, 100);
		close(systemd->kept[i].fd);
	}
	for (size_t i = 0; i < systemd->n; i++) {
		assert_int_equal(dup2(copies[i], FIRST_FD + (int)i), FIRST_FD + (int)i);
		g_string_append_printf(names, "%s%s", i ? ":" : "", systemd->kept[i].name);
	}
	closefrom(100);
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", n, 1);
	setenv("LISTEN_FDNAMES", names->str, 1);
}

/* In the child. */
static PfGroups *take_groups(void)
{
	GArray *kept = pf_systemd_take_stores();
	PfGroups *groups = pf_groups_new(
		&pf_systemd_keeper, (const PfKeptStore *)(void *)kept->data, kept->len);

	/* The descriptors are not ours any more. */
	for (guint i = 0; i < kept->len; i++)
		g_free(g_array_index(kept, PfKeptStore, i).name);
	g_free(g_array_free(g_steal_pointer(&kept), FALSE));
	return groups;
}

static PfGroups *new_groups(void)
{
	return pf_groups_new(&pf_systemd_keeper, NULL, 0);
}

/* A service in a process of its own. An assertion that fails there ends it by a signal. */
static pid_t start_service(
	const Systemd *systemd, void (*run)(PfGroups *groups, void *arg), void *arg)
{
	pid_t service = fork();

	assert_true(service >= 0);
	if (service == 0) {
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		signal(SIGABRT, SIG_DFL);
		hand_over(systemd);
		run(take_groups(), arg);
		_exit(0);
	}
	return service;
}

static void run_service(const Systemd *systemd, void (*run)(PfGroups *groups, void *arg), void *arg)
{
	pid_t service = start_service(systemd, run, arg);
	int status;

	assert_int_equal(waitpid(service, &status, 0), service);
	assert_int_equal(status, 0);
}

/* Stores and strangers */

static const uint8_t *filled_page(uint8_t fill)
{
	static uint8_t page[PF_PAGE_SIZE];

	memset(page, fill, sizeof(page));
	return page;
}

static void assert_frame_is(const PfStore *store, uint64_t frame, uint8_t fill)
{
	uint8_t page[PF_PAGE_SIZE];

	assert_int_equal(pf_store_read(store, (PfFrame){frame}, page), 0);
	assert_memory_equal(page, filled_page(fill), sizeof page);
}

static int forged_store(uint8_t id)
{
	Forgery plan = forgery();

	plan.label.id[0] = id;
	return forge(&plan);
}

static PfStore *need_store(PfGroup *group)
{
	g_autoptr(GError) error = NULL;
	PfStore *store = pf_group_store(group, &error);

	assert_null(error);
	assert_non_null(store);
	return store;
}

/* In this process */

static void test_made_when_needed(void **state)
{
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, "default");
	g_autoptr(GString) name = g_string_new("store-");
	PfStore *store;

	assert_null(pf_group_peek_store(group));
	assert_int_equal(n_kept(*state), 0);
	assert_ptr_equal(pf_groups_find(groups, "default"), group);
	assert_null(pf_groups_find(groups, "other"));

	store = need_store(group);
	assert_ptr_equal(need_store(group), store);
	assert_ptr_equal(pf_group_peek_store(group), store);
	assert_string_equal(pf_store_group(store), "default");
	assert_int_equal(n_kept(*state), 1);
	for (int i = 0; i < 16; i++)
		g_string_append_printf(name, "%02x", pf_store_id(store)[i]);
	assert_string_equal(((Systemd *)*state)->kept[0].name, name->str);
	assert_true(pf_store_is(store, ((Systemd *)*state)->kept[0].fd));

	pf_group_leave(group);
	assert_int_equal(n_kept(*state), 0);
	assert_null(pf_groups_find(groups, "default"));
	pf_groups_free(groups);
}

static void test_ends_with_the_last_vm(void **state)
{
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, "default"), *other;

	assert_ptr_equal(pf_groups_join(groups, "default"), group);
	other = pf_groups_join(groups, "other");
	assert_ptr_not_equal(other, group);
	assert_ptr_not_equal(need_store(group), need_store(other));
	assert_int_equal(n_kept(*state), 2);
	pf_group_leave(group);
	assert_int_equal(n_kept(*state), 2);
	assert_non_null(pf_group_peek_store(group));
	pf_group_leave(group);
	assert_int_equal(n_kept(*state), 1);
	assert_true(pf_store_is(pf_group_peek_store(other), ((Systemd *)*state)->kept[0].fd));
	pf_group_leave(other);
	assert_int_equal(n_kept(*state), 0);
	pf_groups_free(groups);
}

/* One VM is forsaken: its store is kept, whatever the others do before or after it. */
static void test_forsaken(void **state)
{
	for (int others_first = 0; others_first < 2; others_first++) {
		PfGroups *groups = new_groups();
		PfGroup *group = pf_groups_join(groups, "default");

		pf_groups_join(groups, "default");
		need_store(group);
		if (others_first)
			pf_group_leave(group);
		pf_group_forsake(group);
		if (!others_first)
			pf_group_leave(group);
		assert_null(pf_groups_find(groups, "default"));
		assert_int_equal(n_kept(*state), 1 + (size_t)others_first);
		pf_groups_free(groups);
	}
}

static void test_no_name_for_a_store(void **state)
{
	g_autoptr(GError) error = NULL;
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, "");

	assert_null(pf_group_store(group, &error));
	assert_non_null(error);
	assert_int_equal(n_kept(*state), 0);
	pf_group_leave(group);
	pf_groups_free(groups);
}

static void test_memory(void **state)
{
	PfGroups *groups = new_groups();
	PfGroup *a = pf_groups_join(groups, "a"), *b = pf_groups_join(groups, "b");
	guint64 allocated_kib = 1, swapped_kib = 1;

	pf_groups_join(groups, "c");
	pf_groups_memory(groups, &allocated_kib, &swapped_kib);
	assert_int_equal(allocated_kib, 0);
	assert_int_equal(swapped_kib, 0);
	for (uint64_t i = 0; i < 5; i++)
		assert_int_equal(pf_store_write(need_store(i < 2 ? a : b), (PfFrame){600 + i},
					 filled_page(1)),
			0);
	pf_groups_memory(groups, &allocated_kib, &swapped_kib);
	assert_int_equal(allocated_kib, 4 * (2 + 5));
	assert_int_equal(swapped_kib, 0);
	pf_group_leave(a);
	pf_group_leave(b);
	pf_group_leave(pf_groups_find(groups, "c"));
	pf_groups_free(groups);
}

/* There may be no systemd, or no keeper at all: nothing changes but that. */
static void test_without_a_keeper(void **state)
{
	PfGroups *groups = pf_groups_new(NULL, NULL, 0);

	need_store(pf_groups_join(groups, "default"));
	pf_group_leave(pf_groups_find(groups, "default"));
	pf_groups_free(groups);
	assert_int_equal(n_kept(*state), 0);
}

static void test_without_systemd(void **state)
{
	PfGroups *groups;
	g_autofree char *socket_name = g_strdup(getenv("NOTIFY_SOCKET"));

	unsetenv("NOTIFY_SOCKET");
	groups = new_groups();
	need_store(pf_groups_join(groups, "default"));
	pf_group_leave(pf_groups_find(groups, "default"));
	pf_groups_free(groups);
	setenv("NOTIFY_SOCKET", socket_name, 1);
	assert_int_equal(n_kept(*state), 0);
}

static void test_returned_first(void **state)
{
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, FORGED_GROUP);
	const char *why = NULL;
	int fd = forged_store(1), copy = dup(fd);

	assert_true(pf_group_take_returned(group, fd, &why));
	assert_int_equal(pf_store_first_own(pf_group_peek_store(group)), 1024);
	assert_ptr_equal(need_store(group), pf_group_peek_store(group));
	assert_int_equal(n_kept(*state), 1);
	assert_true(pf_store_is(pf_group_peek_store(group), copy));
	/* The group's other VMs have the same. */
	assert_true(pf_group_take_returned(group, copy, &why));
	assert_int_equal(n_kept(*state), 1);
	pf_group_leave(group);
	assert_int_equal(n_kept(*state), 0);
	pf_groups_free(groups);
}

static void assert_refused(PfGroup *group, int fd)
{
	const PfStore *before = pf_group_peek_store(group);
	const char *why = NULL;

	assert_true(fd >= 0);
	assert_false(pf_group_take_returned(group, fd, &why));
	assert_non_null(why);
	assert_ptr_equal(pf_group_peek_store(group), before);
}

static void test_returned_is_not_ours(void **state)
{
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, "default");
	PfGroup *forged = pf_groups_join(groups, FORGED_GROUP);

	/* First without a store, then with one. */
	for (int round = 0; round < 2; round++) {
		assert_refused(group, forged_store(1));
		assert_refused(group, open("/dev/null", O_RDWR | O_CLOEXEC));
		assert_refused(group, socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
		assert_int_equal(n_kept(*state), (size_t)round);
		need_store(group);
	}
	assert_refused(group, dup(pf_store_fd(need_store(forged))));
	assert_refused(forged, forged_store(1));
	assert_refused(forged, dup(pf_store_readonly_fd(need_store(group))));
	assert_int_equal(n_kept(*state), 2);
	pf_group_leave(group);
	pf_group_leave(forged);
	pf_groups_free(groups);
}

/* Nor do we wait for its end. */
static void test_returned_lingers(void **unused)
{
	PfGroups *groups = new_groups();
	PfGroup *group = pf_groups_join(groups, "default");
	struct timespec before, after;
	int peers[2];

	for (int round = 0; round < 2; round++) {
		int fd = lingering_socket(&peers[round]);

		clock_gettime(CLOCK_MONOTONIC, &before);
		assert_refused(group, fd);
		clock_gettime(CLOCK_MONOTONIC, &after);
		assert_true(after.tv_sec - before.tv_sec < LINGER_S - 2);
		need_store(group);
	}
	end_lingering(peers[0]);
	end_lingering(peers[1]);
	pf_group_leave(group);
	pf_groups_free(groups);
}

/* From one service to the next */

static void write_and_wait(PfGroups *groups, void *arg)
{
	int ready = *(const int *)arg;
	PfStore *store = need_store(pf_groups_join(groups, "default"));

	assert_int_equal(pf_store_write(store, (PfFrame){600}, filled_page(0x66)), 0);
	assert_int_equal(write(ready, "1", 1), 1);
	pause();
}

static void read_and_write(PfGroups *groups, void *unused)
{
	PfGroup *found = pf_groups_find(groups, "default");
	PfStore *store;

	assert_null(getenv("LISTEN_PID"));
	assert_null(getenv("LISTEN_FDS"));
	assert_null(getenv("LISTEN_FDNAMES"));
	assert_non_null(found);
	assert_ptr_equal(pf_groups_join(groups, "default"), found);
	store = pf_group_peek_store(found);
	assert_non_null(store);
	assert_ptr_equal(need_store(found), store);
	assert_int_equal(pf_store_first_own(store), 1024);
	assert_frame_is(store, 600, 0x66);
	pf_store_claim(store, (PfFrame){600});
	assert_int_equal(pf_store_write(store, (PfFrame){600}, filled_page(0x77)), -EEXIST);
	assert_int_equal(pf_store_write(store, (PfFrame){1024}, filled_page(0x88)), 0);
	pf_group_forsake(found);
	pf_groups_free(groups);
}

static void read_both_and_leave(PfGroups *groups, void *unused)
{
	PfGroup *group = pf_groups_join(groups, "default");
	PfStore *store = pf_group_peek_store(group);

	assert_non_null(store);
	assert_int_equal(pf_store_first_own(store), 1536);
	assert_frame_is(store, 600, 0x66);
	assert_frame_is(store, 1024, 0x88);
	pf_group_leave(group);
	pf_groups_free(groups);
}

static void test_killed_and_started_anew(void **state)
{
	int ends[2], ready, status;
	pid_t service;
	char byte;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	/* Out of the way of what systemd hands over. */
	ready = fcntl(ends[1], F_DUPFD_CLOEXEC, 50);
	close(ends[1]);
	service = start_service(*state, write_and_wait, &ready);
	close(ready);
	assert_int_equal(read(ends[0], &byte, 1), 1);
	close(ends[0]);
	kill(service, SIGKILL);
	assert_int_equal(waitpid(service, &status, 0), service);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(n_kept(*state), 1);

	run_service(*state, read_and_write, NULL);
	assert_int_equal(n_kept(*state), 1);
	run_service(*state, read_both_and_leave, NULL);
	assert_int_equal(n_kept(*state), 0);
}

static void join_one_and_drop_the_others(PfGroups *groups, void *unused)
{
	PfGroup *group = pf_groups_join(groups, FORGED_GROUP);

	assert_non_null(pf_group_peek_store(group));
	assert_non_null(pf_groups_find(groups, "unused"));
	pf_groups_drop_unused(groups);
	assert_null(pf_groups_find(groups, "unused"));
	assert_ptr_equal(pf_groups_find(groups, FORGED_GROUP), group);
	assert_non_null(pf_group_peek_store(group));
	pf_group_forsake(group);
}

static void keep_forged(Systemd *systemd, uint8_t id, const char *group)
{
	Forgery plan = forgery();
	g_autoptr(GString) name = g_string_new("store-");

	plan.label.id[0] = id;
	g_strlcpy(plan.label.group, group, sizeof plan.label.group);
	for (int i = 0; i < 16; i++)
		g_string_append_printf(name, "%02x", plan.label.id[i]);
	remember(systemd, name->str, forge(&plan));
}

static void test_unused(void **state)
{
	Systemd *systemd = *state;

	keep_forged(systemd, 1, FORGED_GROUP);
	keep_forged(systemd, 2, "unused");
	run_service(systemd, join_one_and_drop_the_others, NULL);
	assert_int_equal(n_kept(systemd), 1);
	assert_memory_equal(systemd->kept[0].name, "store-01", 8);
}

static void do_nothing(PfGroups *groups, void *unused)
{
	pf_groups_free(groups);
}

static void test_unused_is_kept_till_then(void **state)
{
	keep_forged(*state, 1, FORGED_GROUP);
	run_service(*state, do_nothing, NULL);
	assert_int_equal(n_kept(*state), 1);
}

static void expect_id(PfGroups *groups, void *arg)
{
	const PfGroup *group = pf_groups_find(groups, FORGED_GROUP);

	assert_non_null(group);
	assert_int_equal(pf_store_id(pf_group_peek_store(group))[0], *(const uint8_t *)arg);
}

static void test_two_of_a_group(void **state)
{
	Systemd *systemd = *state;
	uint8_t first = 7;

	keep_forged(systemd, first, FORGED_GROUP);
	keep_forged(systemd, 3, FORGED_GROUP);
	run_service(systemd, expect_id, &first);
	assert_int_equal(n_kept(systemd), 1);
	assert_memory_equal(systemd->kept[0].name, "store-07", 8);
}

/* Not what systemd does, but no reason to lose a store. */
static void test_one_twice(void **state)
{
	Systemd *systemd = *state;
	uint8_t id = 7;

	keep_forged(systemd, id, FORGED_GROUP);
	systemd->kept[1] = (Kept){g_strdup(systemd->kept[0].name), dup(systemd->kept[0].fd)};
	systemd->n = 2;
	run_service(systemd, expect_id, &id);
	assert_int_equal(n_kept(systemd), 2);
}

/* arg: the other end of a pipe that was handed over. */
static void wait_until_closed(PfGroups *groups, void *arg)
{
	struct pollfd p = {.fd = *(const int *)arg};

	assert_null(pf_groups_find(groups, FORGED_GROUP));
	assert_int_equal(poll(&p, 1, 30000), 1);
	assert_true(p.revents & POLLHUP);
	pf_groups_free(groups);
}

static void hand_over_pipe(Systemd *systemd, const char *name, size_t n_kept_after)
{
	int ends[2], reader, status;
	pid_t service;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	reader = fcntl(ends[0], F_DUPFD_CLOEXEC, 50);
	close(ends[0]);
	remember(systemd, name, ends[1]);
	service = start_service(systemd, wait_until_closed, &reader);
	close(reader);
	/* Nor have we it open any more. */
	assert_int_equal(dup2(systemd->socket, ends[1]), ends[1]);
	assert_int_equal(waitpid(service, &status, 0), service);
	assert_int_equal(status, 0);
	assert_int_equal(n_kept(systemd), n_kept_after);
	forget(systemd, name);
}

static void test_what_is_not_ours(void **state)
{
	/* Of another part of the service, or of somebody else, and none of our business. */
	static const char *const others[] = {"listener", "store-", "store-default", "store-00",
		"store-0123456789ABCDEF0123456789ABCDEF",
		"store-0123456789abcdef0123456789abcdef0"};

	for (size_t i = 0; i < G_N_ELEMENTS(others); i++)
		hand_over_pipe(*state, others[i], 1);
	/* Under our name, but no store. */
	hand_over_pipe(*state, "store-0123456789abcdef0123456789abcdef", 0);
}

static void hand_over_to_another(PfGroups *groups, void *unused)
{
	pf_groups_free(groups);
	setenv("LISTEN_PID", "1", 1);
	setenv("LISTEN_FDS", "1", 1);
	groups = new_groups();
	assert_null(pf_groups_find(groups, FORGED_GROUP));
}

static void test_for_another_process(void **state)
{
	keep_forged(*state, 1, FORGED_GROUP);
	run_service(*state, hand_over_to_another, NULL);
	assert_int_equal(n_kept(*state), 1);
}

int main(void)
{
#define GROUPS_TEST(test) cmocka_unit_test_setup_teardown(test, systemd_start, systemd_stop)
	const struct CMUnitTest tests[] = {
		GROUPS_TEST(test_killed_and_started_anew),
		GROUPS_TEST(test_unused),
		GROUPS_TEST(test_unused_is_kept_till_then),
		GROUPS_TEST(test_two_of_a_group),
		GROUPS_TEST(test_one_twice),
		GROUPS_TEST(test_what_is_not_ours),
		GROUPS_TEST(test_for_another_process),
		GROUPS_TEST(test_made_when_needed),
		GROUPS_TEST(test_ends_with_the_last_vm),
		GROUPS_TEST(test_forsaken),
		GROUPS_TEST(test_no_name_for_a_store),
		GROUPS_TEST(test_memory),
		GROUPS_TEST(test_without_a_keeper),
		GROUPS_TEST(test_without_systemd),
		GROUPS_TEST(test_returned_first),
		GROUPS_TEST(test_returned_is_not_ours),
		GROUPS_TEST(test_returned_lingers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
