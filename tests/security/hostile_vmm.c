/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A QEMU that its guest has broken out into, and that tries to write to the frames of its trust group.
 * `hostile_vmm STORE DEVICE PATH` has two descriptors that the service has sent: the store and /dev/userfaultfd. PATH
 * is the service's own descriptor of the store, in /proc. Each line on standard input is an attempt, in one of three
 * shapes; it is answered with the errno that it ended with, or 0.
 *
 *   NAME          one of hostile_attempts.c
 *   child NAME    by a child
 *   root NAME     by a child that is root in a user namespace of its own
 */
#include "tests/security/hostile_attempts.h"
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define UNKNOWN 254
#define ENDED   253

static bool write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "we");

	return file && fputs(text, file) >= 0 && fclose(file) == 0;
}

static bool become_root(void)
{
	char map[64];

	snprintf(map, sizeof(map), "0 %u 1", geteuid());
	return unshare(CLONE_NEWUSER) == 0 && write_file("/proc/self/uid_map", map);
}

static int attempt(const HostileTarget *target, const char *name)
{
	for (size_t i = 0; i < hostile_n_attempts; i++)
		if (strcmp(hostile_attempts[i].name, name) == 0)
			return hostile_attempts[i].run(target);
	return UNKNOWN;
}

static int attempt_in_child(const HostileTarget *target, const char *name, bool as_root)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(as_root && !become_root() ? errno : attempt(target, name));
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return ENDED;
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	HostileTarget target = {.page_size = (size_t)sysconf(_SC_PAGESIZE)};
	char line[128], how[64], name[64];

	if (argc != 4) {
		fprintf(stderr, "hostile_vmm STORE DEVICE PATH\n");
		return 2;
	}
	target.store = atoi(argv[1]);
	target.device = atoi(argv[2]);
	target.service_path = argv[3];
	target.frame =
		lseek(target.store, HOSTILE_FIRST_FRAME * (off_t)target.page_size, SEEK_DATA);
	if (target.frame < 0) {
		perror("hostile_vmm: there are no frames");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%63s %63s", how, name) == 1)
			printf("%d\n", attempt(&target, how));
		else
			printf("%d\n", attempt_in_child(&target, name, strcmp(how, "root") == 0));
		fflush(stdout);
	}
	return 0;
}
