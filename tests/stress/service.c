/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The real service as a process, with a broker that is a thread of ours. It is only ever killed. */
#include "tests/stress/stress.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noreturn)) static void become_service(const Stress *stress, int broker_fd)
{
	g_autofree char *log = g_strdup_printf("%s/service.log", stress->dir);
	int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	char number[16];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(fd, STDERR_FILENO);
	fcntl(broker_fd, F_SETFD, 0);
	snprintf(number, sizeof number, "%d", broker_fd);
	execl(stress->options.defect == STRESS_OFFSET_USED_AGAIN ? PF_TEST_DEFECT_SERVICE
								 : PF_TEST_PAGEFUSIOND,
		"pagefusiond", "--broker-fd", number, "--no-bus", "--user", "64321", "--run-dir",
		stress->dir, "--revoke-delay-ms", "0", NULL);
	_exit(127);
}

void service_start(Stress *stress)
{
	int fd;

	stress->broker = toy_broker_start(&fd);
	stress->service = fork();
	if (stress->service < 0)
		g_error("fork: %s", g_strerror(errno));
	if (stress->service == 0)
		become_service(stress, fd);
	close(fd);
	toy_broker_set_libvirt(stress->broker, TRUE, "");
	vms_announce(stress);
}

void service_kill(Stress *stress)
{
	if (stress->service == 0)
		return;
	kill(stress->service, SIGKILL);
	waitpid(stress->service, NULL, 0);
	stress->service = 0;
	g_clear_pointer(&stress->broker, toy_broker_stop);
}

static bool is_store(const char *path)
{
	char target[64] = "";

	return readlink(path, target, sizeof target - 1) > 0 &&
	       g_str_has_prefix(target, "/memfd:pagefusion") && !strstr(target, "staging");
}

/* The first process has no store; its only child, where there is another broker, is the service. 0: it has none. */
static pid_t child_of(pid_t front)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/task/%d/children", front, front);
	g_autofree char *children = NULL;

	if (!g_file_get_contents(path, &children, NULL, NULL))
		return 0;
	return (pid_t)g_ascii_strtoll(children, NULL, 10);
}

/* Memory of the stores that the service has open. Two descriptors of one count once. */
static uint64_t store_kib(pid_t service)
{
	g_autofree char *dir = g_strdup_printf("/proc/%d/fd", service);
	DIR *fds = opendir(dir);
	const struct dirent *entry;
	uint64_t kib = 0, seen = 0;

	while (fds && (entry = readdir(fds))) {
		g_autofree char *path = g_build_filename(dir, entry->d_name, NULL);
		struct stat status;

		if (!is_store(path) || stat(path, &status) < 0 || status.st_ino == seen)
			continue;
		seen = status.st_ino;
		kib += (uint64_t)status.st_blocks / 2;
	}
	if (fds)
		closedir(fds);
	return kib;
}

void service_look(Stress *stress)
{
	int status;

	if (stress->service == 0)
		return;
	stress->store_kib = store_kib(child_of(stress->service));
	stress->store_kib_max = MAX(stress->store_kib_max, stress->store_kib);
	if (waitpid(stress->service, &status, WNOHANG) != stress->service)
		return;
	fprintf(stderr, "the service has ended by itself, with status %#x\n", (unsigned)status);
	stress->service_crashes++;
	stress->service = 0;
	g_clear_pointer(&stress->broker, toy_broker_stop);
}
