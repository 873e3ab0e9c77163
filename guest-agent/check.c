// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Asks the agent's own parts whether they work here, with the rights of who runs the check: what a
 * service manager takes away from the agent that it starts (capabilities, system calls) is not seen.
 * Only the port is not opened, as the host would hear of it. A check says "ok", "missing" with what
 * to do, or "note" where nothing has to be or can be done. What the mission needs (mapped files, and
 * a port to tell of them) decides on the exit status; other classes, and the notice of programs that
 * start, only make it better.
 */
#include "guest-agent/check.h"
#include "common/text.h"
#include "guest-agent/find/cache_walk.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/kernel_image.h"
#include "guest-agent/find/maps.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/process_events.h"
#include "guest-agent/find/visit.h"
#include "guest-agent/json.h"
#include "guest-agent/service.h"
#include "guest-agent/status_server.h"
#include "guest-agent/status_show.h"
#include "guest-agent/tell/port.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#define MAX_TEXT 1024

/* The C library has it, and no header that says so. */
int capget(cap_user_header_t header, cap_user_data_t data);

typedef enum Result { OK, MISSING, NOTE } Result;

typedef struct Check {
	FILE *out;
	bool json;
	const PfAgentConfig *config;
	unsigned n_said;
	bool reaches_pages, reaches_files; /* what the classes need */
} Check;

static void say(Check *check, Result result, const char *name, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void say(Check *check, Result result, const char *name, const char *format, ...)
{
	static const char *const results[] = {"ok", "missing", "note"};
	char text[MAX_TEXT], clean[MAX_TEXT * 3];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	pf_text_clean(clean, sizeof(clean), text);
	if (check->json) {
		fprintf(check->out, "%s\n{\"check\":\"%s\",\"result\":\"%s\",\"text\":",
			check->n_said ? "," : "[", name, results[result]);
		pf_json_string(check->out, clean);
		fputc('}', check->out);
	} else {
		fprintf(check->out, "%-8s %-15s %s\n", results[result], name, clean);
	}
	check->n_said++;
}

static bool check_configuration(Check *check, const PfConfigChecked *checked)
{
	if (checked->wrong)
		say(check, MISSING, "configuration", "%s", checked->wrong);
	else if (checked->path)
		say(check, OK, "configuration", "%s can be read", checked->path);
	else
		say(check, OK, "configuration", "there is no file: the defaults hold");
	return !checked->wrong;
}

/* --- rights --- */

typedef struct Right {
	unsigned number;
	bool needed;
	PfPageClass class; /* that needs it; PF_N_CLASSES: all */
	const char *name;
} Right;

static const Right rights[] = {
	{CAP_SYS_ADMIN, true, PF_N_CLASSES, "CAP_SYS_ADMIN"},
	{CAP_SYS_PTRACE, true, PF_N_CLASSES, "CAP_SYS_PTRACE"},
	{CAP_DAC_READ_SEARCH, true, PF_N_CLASSES, "CAP_DAC_READ_SEARCH"},
	{CAP_FOWNER, false, PF_N_CLASSES, "CAP_FOWNER (reading files leaves access times)"},
	{CAP_NET_ADMIN, false, PF_N_CLASSES, "CAP_NET_ADMIN (programs that start are found later)"},
	{CAP_SYS_RAWIO, false, PF_CLASS_KERNEL, "CAP_SYS_RAWIO (class kernel)"},
};

static uint64_t effective_rights(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

	if (capget(&header, data) < 0)
		return 0;
	return data[0].effective | (uint64_t)data[1].effective << 32;
}

static bool is_used(const Check *check, const Right *right)
{
	return right->class == PF_N_CLASSES || check->config->classes[right->class];
}

static bool check_rights(Check *check)
{
	uint64_t held = effective_rights();
	char missing[256] = "";
	size_t length = 0;
	bool enough = true;

	for (size_t i = 0; i < sizeof(rights) / sizeof(rights[0]); i++) {
		if (held >> rights[i].number & 1 || !is_used(check, &rights[i]))
			continue;
		enough = enough && !rights[i].needed;
		length += (size_t)snprintf(missing + length, sizeof(missing) - length, "%s%s",
			length ? ", " : "", rights[i].name);
	}
	if (length == 0)
		say(check, OK, "rights", "all capabilities that it uses");
	else
		say(check, MISSING, "rights", "without %s: run it as root", missing);
	return enough;
}

/* --- memory --- */

static void check_page_numbers(Check *check)
{
	PfVisitor *visitor = NULL;
	int r = pf_guard_init();

	if (r == 0)
		r = pf_visitor_new(&visitor);
	pf_visitor_free(visitor);
	check->reaches_pages = r == 0;
	if (r == 0)
		say(check, OK, "page numbers", "the kernel tells where pages are");
	else if (r == -EPERM)
		say(check, MISSING, "page numbers",
			"the kernel hides where pages are: run this as root of the VM itself, not "
			"in a container or a user namespace");
	else
		say(check, MISSING, "page numbers", "/proc/self/pagemap: %s: is /proc mounted?",
			strerror(-r));
}

/* Path in map_files of a file that this process maps. 0 or -errno. */
static int find_mapping(char *path, size_t size)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char *line = NULL;
	size_t capacity = 0;
	PfMapsEntry entry;
	int r = -ENOENT;

	if (!maps)
		return -errno;
	while (r < 0 && getline(&line, &capacity, maps) > 0) {
		if (pf_maps_parse(line, &entry) != PF_MAPS_OK || !pf_maps_wanted(&entry))
			continue;
		snprintf(path, size, "/proc/self/map_files/%" PRIx64 "-%" PRIx64, entry.start,
			entry.end);
		r = 0;
	}
	free(line);
	fclose(maps);
	return r;
}

static void check_mapped_files(Check *check)
{
	char path[64];
	PfFound found;
	int r = find_mapping(path, sizeof(path));

	if (r == 0)
		r = pf_opening_open(NULL, path, &found);
	if (r == PF_OPENING_OK)
		close(found.fd);
	check->reaches_files = r >= 0;
	if (r >= 0)
		say(check, OK, "mapped files", "can be opened through /proc/PID/map_files");
	else if (r == -EPERM || r == -EACCES)
		say(check, MISSING, "mapped files",
			"/proc/PID/map_files cannot be followed: run this as root of the VM itself, "
			"not in a container or a user namespace");
	else
		say(check, MISSING, "mapped files", "/proc/PID/map_files: %s: is /proc mounted?",
			strerror(-r));
}

static bool check_memory(Check *check)
{
	PfFacts facts;
	int r = pf_facts_read(&facts);
	uint64_t n_pages = 0;

	if (r == -ENOTSUP) {
		say(check, MISSING, "page size",
			"pages are %ld bytes, not 4096: page fusion cannot work in this VM with "
			"this kernel",
			sysconf(_SC_PAGESIZE));
		return false;
	}
	say(check, OK, "page size", "4096 bytes");
	for (size_t i = 0; r == 0 && i < facts.ram.n; i++)
		n_pages += facts.ram.ranges[i].n_pages;
	if (r == 0)
		say(check, OK, "memory layout", "%" PRIu64 " MiB in %zu ranges", n_pages / 256,
			facts.ram.n);
	else if (r == -EPERM)
		say(check, MISSING, "memory layout",
			"/proc/iomem hides its addresses: run this as root of the VM itself, not in "
			"a container or a user namespace");
	else
		say(check, MISSING, "memory layout", "/proc: %s", strerror(-r));
	return r == 0;
}

/* --- the machine --- */

static void check_machine(Check *check)
{
#ifdef __x86_64__
	unsigned eax, ebx, ecx = 0, edx;

	if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx >> 31)
		say(check, OK, "machine", "a virtual machine");
	else
		say(check, NOTE, "machine",
			"no hypervisor is seen: the agent is for guests of one");
#else
	say(check, NOTE, "machine", "not x86-64: the host cannot share this VM's memory");
#endif
}

static void check_kernel(Check *check)
{
	unsigned major, minor;
	struct utsname names;

	if (uname(&names) < 0 || sscanf(names.release, "%u.%u", &major, &minor) != 2)
		say(check, NOTE, "kernel", "its version cannot be read");
	else if (major < 4 || (major == 4 && minor < 19))
		say(check, NOTE, "kernel", "%s is older than 4.19, for which the agent is made",
			names.release);
	else
		say(check, OK, "kernel", "%s", names.release);
}

/* probed is the answer of pf_status_probe(). */
static void check_agent(Check *check, int probed)
{
	if (probed == 0)
		say(check, OK, "agent", "runs: pagefusion-agent --status shows what it does");
	else if (probed == -ENOENT || probed == -ECONNREFUSED)
		say(check, NOTE, "agent", "does not run: %s", pf_service_start());
	else if (probed == -EACCES || probed == -EPERM)
		say(check, NOTE, "agent", "cannot be asked whether it runs: run this as root");
	else
		say(check, NOTE, "agent",
			"cannot be asked whether it runs: %s. What it said last: %s",
			strerror(-probed), pf_service_log());
}

static bool check_port(Check *check, bool runs)
{
	const char *port = check->config->port;
	char found[PATH_MAX];
	struct stat status;
	bool there;

	if (!port)
		port = pf_port_find(found, sizeof(found)) == 0 ? found : NULL;
	there = port && stat(port, &status) == 0;
	if (!there)
		say(check, MISSING, "port",
			"%s%sturn page fusion on for this VM on the host, while the VM is shut off: "
			"pagefusionctl modifyvm VM --pagefusion on",
			port ? port : "", port ? ": not there: " : "");
	else if (access(port, R_OK | W_OK) < 0)
		say(check, MISSING, "port", "%s: %s: run this as root", port, strerror(errno));
	else
		say(check, OK, "port", "%s%s", port, runs ? " (in use by the agent)" : "");
	return there && access(port, R_OK | W_OK) == 0;
}

static void check_new_programs(Check *check)
{
	PfProcessEvents *events = NULL;
	int r = pf_process_events_new(&events);

	pf_process_events_free(events);
	if (r == 0)
		say(check, OK, "new programs", "are noticed when they start");
	else if (r == -EPERM)
		say(check, MISSING, "new programs",
			"are found by the next pass only: run this as root, in the initial network "
			"namespace");
	else
		say(check, MISSING, "new programs",
			"are found by the next pass only: the kernel does not tell when they start "
			"(CONFIG_PROC_EVENTS)");
}

/* --- classes --- */

/* Why the class cannot be looked for, or NULL. *missing: because of what another check calls missing. */
static const char *impossible(const Check *check, PfPageClass class, bool *missing)
{
	PfKernelImage *image = NULL;
	const char *why = NULL;

	*missing = false;
	if (class == PF_CLASS_KERNEL) {
		if (pf_kernel_image_new(&image, &why) < 0 && !why)
			why = "the kernel's image cannot be read";
		pf_kernel_image_free(image);
		return why;
	}
	*missing = !check->reaches_pages || (class == PF_CLASS_MAPPED && !check->reaches_files);
	if (*missing)
		return check->reaches_pages ? "mapped files are missing"
					    : "page numbers are missing";
	return class == PF_CLASS_CACHE ? pf_cache_walk_impossible() : NULL;
}

static void check_class(Check *check, PfPageClass class)
{
	bool missing;
	const char *why = impossible(check, class, &missing);
	char name[32];

	snprintf(name, sizeof(name), "class %s", pf_page_class_name(class));
	if (!check->config->classes[class])
		say(check, NOTE, name, "off%s%s", why ? "; not possible here: " : "",
			why ? why : "");
	else if (why)
		say(check, missing ? MISSING : NOTE, name, "on, and not possible here: %s", why);
	else
		say(check, OK, name, "on");
}

int pf_check(FILE *out, const PfConfigChecked *checked, bool json)
{
	Check check = {.out = out, .json = json, .config = checked->config};
	int probed = pf_status_probe(PF_AGENT_STATUS_SOCKET);
	bool works = check_configuration(&check, checked);

	works = check_rights(&check) && works;
	check_page_numbers(&check);
	check_mapped_files(&check);
	works = check_memory(&check) && works && check.reaches_pages && check.reaches_files;
	check_machine(&check);
	check_kernel(&check);
	works = check_port(&check, probed == 0) && works;
	check_agent(&check, probed);
	check_new_programs(&check);
	for (int i = 0; i < PF_N_CLASSES; i++)
		check_class(&check, (PfPageClass)i);
	if (json)
		fputs("\n]\n", out);
	return works && fflush(out) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
