// SPDX-License-Identifier: LGPL-2.1-or-later
/* What --check makes of what the agent's parts say. The linker puts the test's own answers in their
 * place; each test makes one thing missing. */
#include "guest-agent/check.h"
#include "guest-agent/facts.h"
#include "guest-agent/find/cache_walk.h"
#include "guest-agent/find/guard.h"
#include "guest-agent/find/kernel_image.h"
#include "guest-agent/find/opening.h"
#include "guest-agent/find/process_events.h"
#include "guest-agent/find/visit.h"
#include "guest-agent/status_server.h"
#include "guest-agent/status_show.h"
#include "guest-agent/tell/port.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <cmocka.h>

#define ALL_RIGHTS UINT64_MAX

/* What the parts answer. */
static struct {
	uint64_t rights;
	int visitor, opening, facts, events, kernel_image, probe;
	const char *kernel_why, *cache_why, *port, *release;
} answers;

static char opened[64];

int __wrap_capget(cap_user_header_t header, cap_user_data_t data);
int __wrap_uname(struct utsname *names);
int __wrap_pf_visitor_new(PfVisitor **visitor);
void __wrap_pf_visitor_free(PfVisitor *visitor);
int __wrap_pf_opening_open(PfWorker *worker, const char *path, PfFound *found);
int __wrap_pf_facts_read(PfFacts *facts);
int __wrap_pf_process_events_new(PfProcessEvents **events);
void __wrap_pf_process_events_free(PfProcessEvents *events);
int __wrap_pf_kernel_image_new(PfKernelImage **image, const char **impossible);
void __wrap_pf_kernel_image_free(PfKernelImage *image);
const char *__wrap_pf_cache_walk_impossible(void);
int __wrap_pf_port_find(char *path, size_t size);
int __wrap_pf_status_probe(const char *path);
const char *__wrap_pf_service_start(void);
const char *__wrap_pf_service_log(void);

int __wrap_capget(cap_user_header_t header, cap_user_data_t data)
{
	assert_int_equal(header->version, _LINUX_CAPABILITY_VERSION_3);
	data[0].effective = (uint32_t)answers.rights;
	data[1].effective = (uint32_t)(answers.rights >> 32);
	return 0;
}

int __wrap_uname(struct utsname *names)
{
	snprintf(names->release, sizeof(names->release), "%s", answers.release);
	return 0;
}

int __wrap_pf_visitor_new(PfVisitor **visitor)
{
	return answers.visitor;
}

void __wrap_pf_visitor_free(PfVisitor *visitor)
{
	assert_null(visitor);
}

int __wrap_pf_opening_open(PfWorker *worker, const char *path, PfFound *found)
{
	snprintf(opened, sizeof(opened), "%s", path);
	found->fd = answers.opening == PF_OPENING_OK ? dup(0) : -1;
	return answers.opening;
}

int __wrap_pf_facts_read(PfFacts *facts)
{
	*facts = (PfFacts){.ram = {.ranges = {{{1}, 256}, {{1000}, 512}}, .n = 2}};
	return answers.facts;
}

int __wrap_pf_process_events_new(PfProcessEvents **events)
{
	return answers.events;
}

void __wrap_pf_process_events_free(PfProcessEvents *events)
{
	assert_null(events);
}

int __wrap_pf_kernel_image_new(PfKernelImage **image, const char **impossible)
{
	*impossible = answers.kernel_why;
	return answers.kernel_image;
}

void __wrap_pf_kernel_image_free(PfKernelImage *image)
{
	assert_null(image);
}

const char *__wrap_pf_cache_walk_impossible(void)
{
	return answers.cache_why;
}

int __wrap_pf_port_find(char *path, size_t size)
{
	if (!answers.port)
		return -ENOENT;
	snprintf(path, size, "%s", answers.port);
	return 0;
}

int __wrap_pf_status_probe(const char *path)
{
	assert_string_equal(path, PF_AGENT_STATUS_SOCKET);
	return answers.probe;
}

const char *__wrap_pf_service_start(void)
{
	return "START";
}

const char *__wrap_pf_service_log(void)
{
	return "LOG";
}

static PfAgentConfig config;
static const char *config_path;

static int set_up(void **state)
{
	memset(&answers, 0, sizeof(answers));
	answers.rights = ALL_RIGHTS;
	answers.port = "/dev/null";
	answers.release = "6.1.0-28-amd64";
	config_path = "/etc/agent.conf";
	return pf_agent_config_init(&config);
}

static int tear_down(void **state)
{
	pf_agent_config_deinit(&config);
	return 0;
}

/* Exit status; what it wrote until the next call. */
static const char *checked(const char *wrong, bool json, int expected)
{
	static char *text;
	size_t size;
	FILE *out;
	int status;

	free(text);
	out = open_memstream(&text, &size);
	assert_non_null(out);
	status = pf_check(out, &(PfConfigChecked){&config, config_path, wrong}, json);
	assert_int_equal(fclose(out), 0);
	if (status != expected)
		fail_msg("exit status %d, wanted %d:\n%s", status, expected, text);
	return text;
}

/* The check has this line among its own. */
static void assert_line(int expected, const char *line)
{
	const char *text = checked(NULL, false, expected);

	if (!strstr(text, line))
		fail_msg("\"%s\" is not in:\n%s", line, text);
}

static void all_is_well(void **state)
{
	const char *text = checked(NULL, false, 0);

	assert_memory_equal(text, "ok       configuration   /etc/agent.conf can be read\n", 53);
	assert_non_null(strstr(text, "\nok       rights          all capabilities that it uses\n"));
	assert_non_null(strstr(text, "\nok       page numbers    "));
	assert_non_null(strstr(text, "\nok       mapped files    "));
	assert_non_null(strstr(text, "\nok       page size       4096 bytes\n"));
	assert_non_null(strstr(text, "\nok       memory layout   3 MiB in 2 ranges\n"));
	assert_non_null(strstr(text, " machine         "));
	assert_non_null(strstr(text, "\nok       kernel          6.1.0-28-amd64\n"));
	assert_non_null(
		strstr(text, "\nok       port            /dev/null (in use by the agent)\n"));
	assert_non_null(strstr(text, "\nok       agent           runs: "));
	assert_non_null(strstr(text, "\nok       new programs    "));
	assert_non_null(strstr(text, "\nok       class mapped    on\n"));
	assert_non_null(strstr(text, "\nok       class cache     on\n"));
	assert_non_null(strstr(text, "\nnote     class buffers   off\n"));
	assert_non_null(strstr(text, "\nnote     class kernel    off\n"));
	assert_null(strstr(text, "missing"));
	/* A file that this process maps was opened. */
	assert_memory_equal(opened, "/proc/self/map_files/", 21);
}

/* What the mission needs. */
static void missing_rights(void **state)
{
	answers.rights = ALL_RIGHTS & ~(UINT64_C(1) << CAP_SYS_PTRACE);
	assert_line(1, "missing  rights          without CAP_SYS_PTRACE: run it as root\n");
	/* Which one class needs, that is off. */
	answers.rights = ALL_RIGHTS & ~(UINT64_C(1) << CAP_SYS_RAWIO);
	assert_line(0, "ok       rights          all capabilities that it uses\n");
	config.classes[PF_CLASS_KERNEL] = true;
	assert_line(0,
		"missing  rights          without CAP_SYS_RAWIO (class kernel): run it as root\n");
	answers.rights = 0;
	assert_line(1, "missing  rights          without CAP_SYS_ADMIN, CAP_SYS_PTRACE, "
		       "CAP_DAC_READ_SEARCH, CAP_FOWNER (");
	/* Only what makes it better. */
	answers.rights = ALL_RIGHTS & ~(UINT64_C(1) << CAP_FOWNER);
	assert_line(0, "missing  rights          without CAP_FOWNER (reading files leaves access "
		       "times): run it as root\n");
}

static void hidden_page_numbers(void **state)
{
	answers.visitor = -EPERM;
	assert_line(1,
		"missing  page numbers    the kernel hides where pages are: run this as root "
		"of the VM itself, not in a container");
	assert_line(1, "missing  class mapped    on, and not possible here: page numbers are "
		       "missing\n");
	answers.visitor = -ENOENT;
	assert_line(1, "missing  page numbers    /proc/self/pagemap: No such file or directory: ");
}

static void map_files_that_cannot_be_followed(void **state)
{
	answers.opening = -EPERM;
	assert_line(1, "missing  mapped files    /proc/PID/map_files cannot be followed: run this "
		       "as root of the VM itself, not in a container");
	assert_line(1, "missing  class mapped    on, and not possible here: mapped files are "
		       "missing\n");
	answers.opening = -ENOENT;
	assert_line(1, "missing  mapped files    /proc/PID/map_files: No such file or directory: ");
	/* It was opened, and is of no interest. */
	answers.opening = PF_OPENING_E_UNWANTED;
	assert_line(0, "ok       mapped files    ");
}

static void memory_layout(void **state)
{
	answers.facts = -EPERM;
	assert_line(
		1, "missing  memory layout   /proc/iomem hides its addresses: run this as root");
	answers.facts = -ENOENT;
	assert_line(1, "missing  memory layout   /proc: No such file or directory\n");
	answers.facts = -ENOTSUP;
	assert_line(1, "missing  page size       pages are ");
}

static void ports(void **state)
{
	answers.probe = -ENOENT;
	assert_line(0, "ok       port            /dev/null\n");
	assert_line(0, "note     agent           does not run: START\n");
	answers.port = NULL;
	assert_line(1,
		"missing  port            turn page fusion on for this VM on the host, while "
		"the VM is shut off: pagefusionctl modifyvm VM --pagefusion on\n");
	config.port = strdup("/nowhere");
	assert_line(1, "missing  port            /nowhere: not there: turn page fusion on for this "
		       "VM on the host");
	free(config.port);
	config.port = strdup("/dev/zero");
	assert_line(0, "ok       port            /dev/zero\n");
}

/* What cannot be asked may run all the same. */
static void an_agent_that_does_not_say(void **state)
{
	answers.probe = -ECONNREFUSED;
	assert_line(0, "note     agent           does not run: START\n");
	answers.probe = -EACCES;
	assert_line(
		0, "note     agent           cannot be asked whether it runs: run this as root\n");
	answers.probe = -ETIMEDOUT;
	assert_line(0, "note     agent           cannot be asked whether it runs: Connection timed "
		       "out. What it said last: LOG\n");
	assert_line(0, "ok       port            /dev/null\n");
}

/* What only makes it better. */
static void new_programs(void **state)
{
	answers.events = -EPERM;
	assert_line(0,
		"missing  new programs    are found by the next pass only: run this as root, "
		"in the initial network namespace\n");
	answers.events = -ENOTSUP;
	assert_line(0,
		"missing  new programs    are found by the next pass only: the kernel does not "
		"tell when they start (CONFIG_PROC_EVENTS)\n");
}

static void classes(void **state)
{
	answers.cache_why = "it needs Linux 5.12";
	assert_line(0, "note     class cache     on, and not possible here: it needs Linux 5.12\n");
	answers.kernel_image = -EPERM;
	answers.kernel_why = "the kernel is locked down";
	assert_line(
		0, "note     class kernel    off; not possible here: the kernel is locked down\n");
	config.classes[PF_CLASS_KERNEL] = true;
	config.classes[PF_CLASS_BUFFERS] = true;
	config.classes[PF_CLASS_MAPPED] = false;
	assert_line(0,
		"note     class kernel    on, and not possible here: the kernel is locked down\n");
	assert_line(0, "ok       class buffers   on\n");
	assert_line(0, "note     class mapped    off\n");
	answers.kernel_image = 0;
	answers.kernel_why = NULL;
	assert_line(0, "ok       class kernel    on\n");
}

static void kernels(void **state)
{
	answers.release = "4.18.0-553.el8";
	assert_line(0, "note     kernel          4.18.0-553.el8 is older than 4.19, ");
	answers.release = "4.19.0";
	assert_line(0, "ok       kernel          4.19.0\n");
	answers.release = "3.10.0";
	assert_line(0, "note     kernel          3.10.0 is older");
	answers.release = "unknown";
	assert_line(0, "note     kernel          its version cannot be read\n");
}

static void no_configuration(void **state)
{
	config_path = NULL;
	assert_line(0, "ok       configuration   there is no file: the defaults hold\n");
}

/* The agent would not start. */
static void a_wrong_configuration(void **state)
{
	const char *text = checked("agent.conf:3: [agent] port: \x1b[1m\xff", false, 1);

	assert_non_null(strstr(text, "missing  configuration   agent.conf:3: [agent] port: "
				     "\xef\xbf\xbd[1m\xef\xbf\xbd\n"));
}

/* The same checks, an object each. */
static void as_json(void **state)
{
	static const char begin[] =
		"[\n{\"check\":\"configuration\",\"result\":\"missing\",\"text\":\"\\\"a\\\\b\\\"\"},\n"
		"{\"check\":\"rights\",\"result\":\"ok\",";
	static const char end[] =
		",\n{\"check\":\"class kernel\",\"result\":\"note\",\"text\":\"off\"}\n]\n";
	const char *text, *object;
	size_t n_lines = 0, n_objects = 0;

	for (text = checked(NULL, false, 0); (text = strchr(text, '\n')); text++)
		n_lines++;
	text = checked("\"a\\b\"", true, 1);
	assert_int_equal(strncmp(text, begin, strlen(begin)), 0);
	for (object = text; (object = strstr(object, "\n{\"check\":\"")); object++)
		n_objects++;
	assert_int_equal(n_objects, n_lines);
	assert_string_equal(text + strlen(text) - strlen(end), end);
}

static void nobody_takes_the_answer(void **state)
{
	FILE *full = fopen("/dev/full", "we");

	assert_non_null(full);
	assert_int_equal(pf_check(full, &(PfConfigChecked){&config, config_path, NULL}, true), 1);
	fclose(full);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		TEST(all_is_well),
		TEST(missing_rights),
		TEST(hidden_page_numbers),
		TEST(map_files_that_cannot_be_followed),
		TEST(memory_layout),
		TEST(ports),
		TEST(an_agent_that_does_not_say),
		TEST(new_programs),
		TEST(classes),
		TEST(kernels),
		TEST(no_configuration),
		TEST(a_wrong_configuration),
		TEST(as_json),
		TEST(nobody_takes_the_answer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
