/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stress: toy VMs in one trust group whose threads write, read directly from a disk, discard, unplug, fork and lie,
 * against the real service, which is killed at random moments and started anew. Now and then there are no maps, or no
 * memory. Whoever reads a page checks it, in the end every byte of every page is checked, and the figures must show
 * that what was to be shown has happened often enough.
 *
 * All random choices follow from the seed. What a thread does when follows from the scheduler too, so the same seed
 * gives the same plan and not the same interleaving.
 */
#include "common/digest.h"
#include "tests/stress/stress.h"
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define TICK_US           10000
#define ANSWER_S          20
#define KILL_EACH_US      (2 * G_USEC_PER_SEC)
#define LONG_LIFE_US      (11 * G_USEC_PER_SEC)
#define LONG_LIFE_EACH_US (35 * G_USEC_PER_SEC)
#define STORE_WAIT_US     (30 * G_USEC_PER_SEC)
#define PROGRESS_US       (5 * G_USEC_PER_SEC)

const char *const stress_defect_names[STRESS_N_DEFECTS] = {"none", "no-second-comparison",
	"discard-not-intercepted", "munmap-not-intercepted", "pin-check-bypassed",
	"offset-used-again", "no-way-out"};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
	interrupted = number;
}

static bool take_defect(const char *name, StressDefect *defect)
{
	for (unsigned i = 0; i < STRESS_N_DEFECTS; i++)
		if (strcmp(name, stress_defect_names[i]) == 0) {
			*defect = (StressDefect)i;
			return true;
		}
	return false;
}

static bool take_number(const char *text, uint64_t limit, uint64_t *number)
{
	char *end;

	errno = 0;
	*number = strtoull(text, &end, 0);
	return errno == 0 && end != text && *end == 0 && *text != '-' && *number <= limit;
}

static bool take_options(int argc, char **argv, Options *options)
{
	bool seeded = false;
	uint64_t number;

	*options = (Options){.seconds = 60, .floor_percent = 100, .work_dir = "/var/tmp"};
	for (int i = 1; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];

		if (strcmp(name, "--seconds") == 0 && take_number(value, 86400, &number) &&
			number > 0)
			options->seconds = (unsigned)number;
		else if (strcmp(name, "--floor-percent") == 0 && take_number(value, 100, &number))
			options->floor_percent = (unsigned)number;
		else if (strcmp(name, "--seed") == 0 &&
			 take_number(value, UINT64_MAX, &options->seed))
			seeded = true;
		else if (strcmp(name, "--json") == 0)
			options->json = value;
		else if (strcmp(name, "--work-dir") == 0)
			options->work_dir = value;
		else if (strcmp(name, "--defect") != 0 || !take_defect(value, &options->defect))
			return false;
	}
	if (!seeded && getrandom(&options->seed, sizeof options->seed, 0) < 0)
		return false;
	return argc % 2 == 1;
}

/* Memory that the VMMs see too, and what they all can look up in it. */
static bool share(Stress *stress)
{
	uint8_t page[PF_PAGE_SIZE];
	PfHasher *hasher = pf_hasher_new();
	bool good = hasher != NULL;

	stress->shared_fd = memfd_create("stress", MFD_CLOEXEC);
	if (stress->shared_fd < 0 || ftruncate(stress->shared_fd, sizeof *stress->shared) < 0)
		return false;
	stress->shared = mmap(NULL, sizeof *stress->shared, PROT_READ | PROT_WRITE, MAP_SHARED,
		stress->shared_fd, 0);
	if (stress->shared == MAP_FAILED)
		return false;
	stress->shared->seed = stress->options.seed;
	stress->shared->defect = stress->options.defect;
	for (unsigned salt = 0; salt < STRESS_SALTS; salt++)
		for (unsigned state = 0; good && state < STRESS_STATES; state++) {
			stress_fill(page, salt, state);
			good = pf_hasher_page(
				       hasher, page, &stress->shared->digests[salt][state]) == 0;
		}
	pf_hasher_free(hasher);
	return good;
}

/* The file that is read directly. */
static bool make_file(const Stress *stress)
{
	g_autofree char *path = g_strdup_printf("%s/direct", stress->dir);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	uint8_t page[PF_PAGE_SIZE];
	bool good = fd >= 0;

	for (unsigned i = 0; good && i < STRESS_DIRECT_SALTS; i++) {
		stress_fill(page, STRESS_DIRECT_SALT + i, 0);
		good = write(fd, page, sizeof page) == (ssize_t)sizeof page;
	}
	good = good && fsync(fd) == 0;
	if (fd >= 0)
		close(fd);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	if (!good || fd < 0)
		fprintf(stderr, "%s: no direct reads: %s: choose another --work-dir\n", path,
			g_strerror(errno));
	return good && fd >= 0;
}

static int set_up(Stress *stress)
{
	if (geteuid() != 0) {
		fprintf(stderr, "stress: needs root\n");
		return EXIT_FAILURE;
	}
	stress->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (stress->kvm_fd < 0 || access("/dev/userfaultfd", F_OK) < 0) {
		fprintf(stderr, "skipped: this machine has no /dev/kvm or no /dev/userfaultfd\n");
		return STRESS_SKIP;
	}
	snprintf(stress->dir, sizeof stress->dir, "%.40s/stress-XXXXXX", stress->options.work_dir);
	if (!g_mkdtemp(stress->dir) || g_chmod(stress->dir, 01777) < 0) {
		fprintf(stderr, "%s: %s\n", stress->dir, g_strerror(errno));
		return EXIT_FAILURE;
	}
	trouble_init();
	return share(stress) && make_file(stress) && vms_start(stress) ? EXIT_SUCCESS
								       : EXIT_FAILURE;
}

static void clean_up(Stress *stress)
{
	g_autoptr(GDir) dir = NULL;
	const char *name;

	service_kill(stress);
	vms_end(stress);
	trouble_exit();
	dir = stress->dir[0] ? g_dir_open(stress->dir, 0, NULL) : NULL;
	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(stress->dir, name, NULL);

		g_unlink(path);
	}
	if (dir)
		g_rmdir(stress->dir);
}

/* When the service is killed or started next. Right after its start, while it lists, in the middle of work. */
static gint64 next_moment_us(Stress *stress)
{
	gint64 now = g_get_monotonic_time(), ran = now - stress->started_us;
	unsigned kind = stress_below(&stress->random, 10);
	unsigned limit = kind < 2 ? 40000 : kind < 4 ? 400000 : 4500000;

	if (stress->service != 0 && ran >= stress->long_life_us) {
		/* Long enough to look through the store for what earlier ones have left there. */
		stress->long_life_us += LONG_LIFE_EACH_US;
		return now + LONG_LIFE_US + stress_below(&stress->random, 2000000);
	}
	if (stress->service == 0)
		limit = kind < 8 ? 20000 : 400000;
	/* It must be often enough, whatever comes by chance. */
	else if (stress->service_kills * KILL_EACH_US < ran)
		limit = MIN(limit, 800000);
	return now + stress_below(&stress->random, limit);
}

static void turn(Stress *stress, gint64 *moment_us)
{
	service_look(stress);
	if (g_get_monotonic_time() >= *moment_us) {
		if (stress->service != 0) {
			service_kill(stress);
			stress->service_kills++;
		} else {
			service_start(stress);
		}
		*moment_us = next_moment_us(stress);
	}
	trouble_look(stress);
	watchdog_look(stress);
	if (stress->caught_after == 0 && result_anything_wrong(stress))
		stress->caught_after =
			(double)(g_get_monotonic_time() - stress->started_us) / G_USEC_PER_SEC;
}

static bool goes_on(const Stress *stress)
{
	gint64 ran = g_get_monotonic_time() - stress->started_us;

	if (interrupted || stress->hangs > 0 || stress->vmm_crashes > 0)
		return false;
	if (stress->options.defect != STRESS_NO_DEFECT && stress->caught_after > 0)
		return false;
	return ran < (gint64)stress->options.seconds * G_USEC_PER_SEC;
}

static bool run(Stress *stress)
{
	gint64 moment_us, progress_us = PROGRESS_US;

	for (unsigned i = 0; i < STRESS_VMS; i++)
		if (!vms_command(stress, i, "start\n", 10))
			return false;
	stress->started_us = g_get_monotonic_time();
	canary_start(stress);
	service_start(stress);
	stress->long_life_us = stress_below(&stress->random, 20000000);
	moment_us = next_moment_us(stress);
	while (goes_on(stress)) {
		turn(stress, &moment_us);
		if (g_get_monotonic_time() - stress->started_us > progress_us) {
			result_progress(stress);
			progress_us += PROGRESS_US;
		}
		g_usleep(TICK_US);
	}
	canary_stop();
	trouble_end(stress);
	stress->seconds = (double)(g_get_monotonic_time() - stress->started_us) / G_USEC_PER_SEC;
	return true;
}

/* One line to all VMs, then all answers: what one of them waits for may be another one's. */
static void command_all(Stress *stress, const char *line)
{
	gint64 deadline = g_get_monotonic_time() + ANSWER_S * G_USEC_PER_SEC;

	for (unsigned i = 0; i < STRESS_VMS; i++)
		vms_send(stress, i, line);
	for (unsigned i = 0; i < STRESS_VMS; i++) {
		if (vms_answer(stress, i, deadline))
			continue;
		fprintf(stderr, "VM %u does not %.6s; its threads:\n", i, line);
		watchdog_tell(stress, i);
		stress->hangs++;
	}
}

/* Nobody maps anything, and a last service has to find out that all frames of the others can go. */
static void empty_store(Stress *stress)
{
	gint64 deadline = g_get_monotonic_time() + STORE_WAIT_US;

	service_start(stress);
	do {
		g_usleep(TICK_US);
		service_look(stress);
	} while (g_get_monotonic_time() < deadline && stress->service != 0 && !interrupted &&
		 (stress->store_kib == 0 || stress->store_kib > STRESS_KIB_LEFT));
	stress->store_kib_left = stress->store_kib;
}

/* The threads end, the service is killed for the last time, everything is released and looked at. */
static void finish(Stress *stress)
{
	if (stress->hangs > 0 || stress->vmm_crashes > 0)
		return;
	command_all(stress, "stop\n");
	service_look(stress);
	service_kill(stress);
	if (stress->hangs > 0)
		return;
	command_all(stress, "finish\n");
	empty_store(stress);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal};
	Stress stress = {0};
	int status;

	if (!take_options(argc, argv, &stress.options)) {
		fprintf(stderr, "stress [--seconds N] [--seed S] [--json FILE] [--floor-percent N] "
				"[--work-dir DIR] [--defect NAME]\n");
		return 2;
	}
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	stress.random = stress_random(stress.options.seed, STRESS_VMS, 0);
	printf("seed %#" G_GINT64_MODIFIER "x\n", stress.options.seed);
	status = set_up(&stress);
	if (status == EXIT_SUCCESS && !run(&stress))
		status = EXIT_FAILURE;
	if (status == EXIT_SUCCESS && !interrupted) {
		if (stress.options.defect == STRESS_NO_DEFECT || stress.caught_after == 0)
			finish(&stress);
		if (stress.caught_after == 0 && result_anything_wrong(&stress))
			stress.caught_after = stress.seconds;
		status = result_tell(&stress) ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	clean_up(&stress);
	return interrupted ? 128 + interrupted : status;
}
