/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pagefusionctl from arguments to text and exit code, against a service that this file plays in a
 * thread of its own on a private bus. The program waits for each answer, so what a test sets before
 * it runs needs no lock.
 */
#include "host-service/ctl/ctl.h"
#include "host-service/front/dbus_names.h"
#include "host-service/front/org.pagefusion1.h"
#include "pagefusion-version.h"
#include <json-glib/json-glib.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define WEB                                                                                                       \
	"{'name': <'web'>, 'uuid': <'u-1'>, 'group': <'default'>, 'state': <'running'>, "                         \
	"'pagefusion': <true>, 'active': <true>, 'reason': <''>, 'agent-version': <'0.1.0'>, "                    \
	"'thp': <'balanced'>, 'thp-setting': <'default'>, 'written': <uint64 12>, "                               \
	"'ways-out': <uint64 13>, 'busy': <uint64 14>, "                                                          \
	"'kernel': <'6.1.0-42'>, 'additions-state': <'connected'>, 'additions-since': <uint64 1800000000>, "      \
	"'shim-connected': <true>, 'hinted': <uint64 8000>, "                                                     \
	"'fused': <uint64 7000>, 'shared-kib': <uint64 24000>, 'runs': <uint64 900>, "                            \
	"'revoked': <uint64 5>, 'over-quota': <uint64 6>, 'maps': <uint64 1000>, 'maps-budget': <uint64 40000>, " \
	"'discarded': <uint64 11>, 'memory-kib': <uint64 524288>, "                                               \
	"'refused': <{'busy': uint64 3, 'not-present': 4, 'huge': 6, 'of-tomorrow': 9}>}"
/* A name with a quote, a backslash, an escape sequence, and C1's one; a VM that does not run. */
#define EVIL                                                                                       \
	"{'name': <'e\"v\\\\il\\u001b[2J\\u009b\\n'>, 'uuid': <'u-2'>, 'group': <'g'>, "           \
	"'state': <'shut off'>, 'pagefusion': <false>, 'active': <false>, "                        \
	"'reason': <'page fusion is off'>, 'shared-kib': <uint64 0>, 'thp': <'all'>, "             \
	"'thp-setting': <'all'>}"

static struct {
	GTestDBus *bus;
	GThread *thread;
	GMainContext *context;
	GMainLoop *loop;
	GDBusConnection *connection;
	PfDbusManager *manager;
	const char *error; /* D-Bus name of what every method answers, NULL: success */
	const char *message;
	const char *change; /* what is answered about the additions */
	const char *vm;     /* what is answered about any VM but web; NULL: EVIL */
	char *called;       /* "method(parameters)" of the last call */
} fake;

static gboolean answered_with_error(GDBusMethodInvocation *invocation)
{
	g_autofree char *parameters =
		g_variant_print(g_dbus_method_invocation_get_parameters(invocation), FALSE);

	g_free(fake.called);
	fake.called =
		g_strconcat(g_dbus_method_invocation_get_method_name(invocation), parameters, NULL);
	if (!fake.error)
		return FALSE;
	g_dbus_method_invocation_return_dbus_error(invocation, fake.error, fake.message);
	return TRUE;
}

static gboolean on_list(
	PfDbusManager *manager, GDBusMethodInvocation *invocation, GVariant *options)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_list_vms(
			manager, invocation, g_variant_new_parsed("[" WEB ", " EVIL "]"));
	return TRUE;
}

static gboolean on_get(PfDbusManager *manager, GDBusMethodInvocation *invocation, const char *vm,
	GVariant *options)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_get_vm(manager, invocation,
			g_variant_new_parsed(strcmp(vm, "web") == 0 ? WEB
					     : fake.vm              ? fake.vm
								    : EVIL));
	return TRUE;
}

static gboolean on_modify(PfDbusManager *manager, GDBusMethodInvocation *invocation, const char *vm,
	GVariant *settings)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_modify_vm(manager, invocation);
	return TRUE;
}

static gboolean on_insert(PfDbusManager *manager, GDBusMethodInvocation *invocation, const char *vm,
	GVariant *options)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_insert_additions(
			manager, invocation, g_variant_new_parsed(fake.change));
	return TRUE;
}

static gboolean on_eject(PfDbusManager *manager, GDBusMethodInvocation *invocation, const char *vm,
	GVariant *options)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_eject_additions(
			manager, invocation, g_variant_new_parsed(fake.change));
	return TRUE;
}

static gboolean on_query(PfDbusManager *manager, GDBusMethodInvocation *invocation,
	const char *object, const char *const *metrics, GVariant *options)
{
	if (!answered_with_error(invocation))
		pf_dbus_manager_complete_query_metrics(manager, invocation,
			g_variant_new_parsed(
				"[('host', 'RAM/VMM/Shared', uint64 71244, 'kB'), "
				"('web\\u001b', 'Guest/PageFusion/Runs', 900, 'pieces')]"));
	return TRUE;
}

static void request_name(const char *method)
{
	gboolean request = strcmp(method, "RequestName") == 0;
	g_autoptr(GVariant) reply = g_dbus_connection_call_sync(fake.connection,
		"org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", method,
		request ? g_variant_new("(su)", PF_DBUS_NAME, 0u)
			: g_variant_new("(s)", PF_DBUS_NAME),
		NULL, G_DBUS_CALL_FLAGS_NONE, -1, NULL, NULL);

	assert_non_null(reply);
}

static void *serve(void *userdata)
{
	g_main_context_push_thread_default(fake.context);
	g_main_loop_run(fake.loop);
	g_main_context_pop_thread_default(fake.context);
	return NULL;
}

static int start_fake(void **state)
{
	fake.bus = g_test_dbus_new(G_TEST_DBUS_NONE);
	g_test_dbus_up(fake.bus);
	g_setenv("DBUS_SYSTEM_BUS_ADDRESS", g_test_dbus_get_bus_address(fake.bus), TRUE);
	fake.context = g_main_context_new();
	fake.loop = g_main_loop_new(fake.context, FALSE);
	g_main_context_push_thread_default(fake.context);
	fake.connection =
		g_dbus_connection_new_for_address_sync(g_test_dbus_get_bus_address(fake.bus),
			G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT |
				G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
			NULL, NULL, NULL);
	fake.manager = pf_dbus_manager_skeleton_new();
	g_signal_connect(fake.manager, "handle-list-vms", G_CALLBACK(on_list), NULL);
	g_signal_connect(fake.manager, "handle-get-vm", G_CALLBACK(on_get), NULL);
	g_signal_connect(fake.manager, "handle-modify-vm", G_CALLBACK(on_modify), NULL);
	g_signal_connect(fake.manager, "handle-insert-additions", G_CALLBACK(on_insert), NULL);
	g_signal_connect(fake.manager, "handle-eject-additions", G_CALLBACK(on_eject), NULL);
	g_signal_connect(fake.manager, "handle-query-metrics", G_CALLBACK(on_query), NULL);
	if (!g_dbus_interface_skeleton_export(
		    G_DBUS_INTERFACE_SKELETON(fake.manager), fake.connection, PF_DBUS_PATH, NULL))
		return -1;
	request_name("RequestName");
	g_main_context_pop_thread_default(fake.context);
	fake.thread = g_thread_new("fake", serve, NULL);
	return 0;
}

static int stop_fake(void **state)
{
	g_main_loop_quit(fake.loop);
	g_thread_join(fake.thread);
	g_dbus_interface_skeleton_unexport(G_DBUS_INTERFACE_SKELETON(fake.manager));
	g_object_unref(fake.manager);
	g_dbus_connection_close_sync(fake.connection, NULL, NULL);
	g_object_unref(fake.connection);
	g_main_loop_unref(fake.loop);
	g_main_context_unref(fake.context);
	g_test_dbus_down(fake.bus);
	g_object_unref(fake.bus);
	g_free(fake.called);
	return 0;
}

/* One run of the program. */
typedef struct Run {
	int code;
	char *out;
	char *err;
} Run;

static int reset(void **state)
{
	fake.error = NULL;
	fake.vm = NULL;
	fake.message = "this is wrong: do that";
	g_clear_pointer(&fake.called, g_free);
	return 0;
}

static void run_argv(Run *run, const char *const *arguments)
{
	char *argv[16] = {(char *)"pagefusionctl"};
	size_t size;
	FILE *out = open_memstream(&run->out, &size);
	FILE *err = open_memstream(&run->err, &size);
	int argc = 1;

	for (; arguments[argc - 1]; argc++)
		argv[argc] = (char *)arguments[argc - 1];
	run->code = pf_ctl_run(argc, argv, out, err);
	fclose(out);
	fclose(err);
}

static void run_free(Run *run)
{
	free(run->out);
	free(run->err);
}

#define ARGUMENTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void assert_prints(const char *const *arguments, const char *expected)
{
	Run run;

	run_argv(&run, arguments);
	assert_string_equal(run.err, "");
	assert_string_equal(run.out, expected);
	assert_int_equal(run.code, PF_CTL_OK);
	run_free(&run);
}

/* A failure: nothing on out, one line on err, without control characters. */
static void assert_ends(const char *const *arguments, PfCtlExit code, const char *says)
{
	Run run;

	run_argv(&run, arguments);
	assert_string_equal(run.out, "");
	assert_non_null(strstr(run.err, says));
	assert_memory_equal(run.err, "pagefusionctl: ", 15);
	assert_ptr_equal(strchr(run.err, '\n'), run.err + strlen(run.err) - 1);
	assert_int_equal(run.code, code);
	run_free(&run);
}

static void lists(void **state)
{
	assert_prints(ARGUMENTS("list", "vms"),
		"\"web\" {u-1}\n\"e\\\"v\\\\il\\u001b[2J\\u009b\\u000a\" {u-2}\n");
	assert_string_equal(fake.called, "ListVMs({},)");
	assert_prints(ARGUMENTS("list", "vms", "--long"),
		"\"web\" {u-1} running, page fusion on, group \"default\", 24000 kB shared, "
		"additions connected\n"
		"\"e\\\"v\\\\il\\u001b[2J\\u009b\\u000a\" {u-2} shut off, page fusion off, group "
		"\"g\", 0 kB shared\n");
}

static void shows(void **state)
{
	assert_prints(ARGUMENTS("showvminfo", "web"),
		"Name:                web\nUUID:                u-1\nGroup:               default\n"
		"State:               running\nMemory size:         524288 kB\n"
		"Page Fusion:         enabled\nHuge pages:          balanced (group)\n"
		"VM library:          connected\n"
		"Guest additions:     connected since 2027-01-15 08:00:00\n"
		"Guest agent:         0.1.0\nGuest kernel:        6.1.0-42\n"
		"Hinted:              8000 pages\nFused:               7000 pages\n"
		"Shared:              24000 kB\nRuns:                900 pieces\n"
		"Revoked:             5 pages\nOver quota:          6 pages\nDiscarded:           11 pages\n"
		"Written:             12 pages\nPinned:              14 pages\n"
		"Ways out:            13 times\n"
		"Refused:             3 pages, pinned for a device, or shared with another "
		"process\n"
		"Refused:             4 pages, not present, or swapped out\n"
		"Refused:             6 pages, in a huge page that is not to be broken\n"
		"Refused:             9 pages, of-tomorrow\n"
		"Memory maps:         1000 of 40000\n");
	assert_string_equal(fake.called, "GetVM('web', {})");
	assert_prints(ARGUMENTS("showvminfo", "other"),
		"Name:                e\"v\\il\\u001b[2J\\u009b\\u000a\nUUID:                u-2\n"
		"Group:               g\nState:               shut off\nMemory size:         0 kB\n"
		"Page Fusion:         disabled\nHuge pages:          all\nNot fusing because:  page fusion is off\n");
}

static void shows_for_machines(void **state)
{
	assert_prints(ARGUMENTS("showvminfo", "--machinereadable", "web"),
		"name=\"web\"\nuuid=\"u-1\"\ngroup=\"default\"\nstate=\"running\"\nmemory-kib="
		"524288\n"
		"pagefusion=\"on\"\nthp=\"balanced\"\nthp-setting=\"default\"\nactive=\"on\"\nreason=\"\"\nshim-connected=\"on\"\n"
		"additions-state=\"connected\"\nadditions-since=1800000000\n"
		"agent-version=\"0.1.0\"\nkernel=\"6.1.0-42\"\nhinted=8000\nfused=7000\n"
		"shared-kib=24000\nruns=900\nrevoked=5\nover-quota=6\ndiscarded=11\nwritten=12\nbusy=14\n"
		"ways-out=13\nmaps=1000\nmaps-budget=40000\n"
		"refused-busy=3\nrefused-not-present=4\nrefused-huge=6\nrefused-of-tomorrow=9\n");
	assert_prints(ARGUMENTS("showvminfo", "other", "--machinereadable"),
		"name=\"e\\\"v\\\\il\\u001b[2J\\u009b\\u000a\"\nuuid=\"u-2\"\ngroup=\"g\"\n"
		"state=\"shut off\"\npagefusion=\"off\"\nthp=\"all\"\nthp-setting=\"all\"\nactive=\"off\"\n"
		"reason=\"page fusion is off\"\nshared-kib=0\n");
}

static void modifies_silently(void **state)
{
	assert_prints(ARGUMENTS("modifyvm", "web", "--pagefusion", "on"), "");
	assert_string_equal(fake.called, "ModifyVM('web', {'pagefusion': <true>})");
	assert_prints(ARGUMENTS("modifyvm", "--pagefusion=off", "--", "-web"), "");
	assert_string_equal(fake.called, "ModifyVM('-web', {'pagefusion': <false>})");
	assert_prints(ARGUMENTS("modifyvm", "web", "--thp", "default"), "");
	assert_string_equal(fake.called, "ModifyVM('web', {'thp': <'default'>})");
	assert_prints(ARGUMENTS("modifyvm", "web", "--thp", "all", "--pagefusion", "on"), "");
	assert_true(strcmp(fake.called,
			    "ModifyVM('web', {'pagefusion': <true>, 'thp': <'all'>})") == 0 ||
		    strcmp(fake.called,
			    "ModifyVM('web', {'thp': <'all'>, 'pagefusion': <true>})") == 0);
}

static void sets_the_group(void **state)
{
	assert_prints(ARGUMENTS("modifyvm", "web", "--group", "tenant-1"), "");
	assert_string_equal(fake.called, "ModifyVM('web', {'group': <'tenant-1'>})");
	assert_prints(ARGUMENTS("modifyvm", "web", "--group=default"), "");
	assert_string_equal(fake.called, "ModifyVM('web', {'group': <'default'>})");
	assert_prints(ARGUMENTS("modifyvm", "web", "--group", "g", "--pagefusion", "on"), "");
	assert_non_null(strstr(fake.called, "'pagefusion': <true>"));
	assert_non_null(strstr(fake.called, "'group': <'g'>"));
}

static void assert_says(const char *const *arguments, const char *says)
{
	Run run;

	run_argv(&run, arguments);
	assert_string_equal(run.err, "");
	assert_int_equal(run.code, PF_CTL_OK);
	if (!strstr(run.out, says))
		fail_msg("\"%s\", wanted \"%s\"", run.out, says);
	run_free(&run);
}

static void inserts(void **state)
{
	fake.change =
		"{'drive': <'sda'>, 'changed': <true>, 'running': <true>, 'of-drive': <false>}";
	assert_prints(ARGUMENTS("additions", "insert", "web\033"),
		"The guest additions are in drive sda of VM web\\u001b now.\n"
		"In the guest, as root:\n"
		"  mount -r /dev/disk/by-label/PAGEFUSION /mnt    (or: mount -r /dev/sr0 /mnt)\n"
		"  sh /mnt/install.sh\n"
		"  umount /mnt\n"
		"Then here: pagefusionctl additions eject web\\u001b\n");
	assert_string_equal(fake.called, "InsertAdditions('web\\u001b', {})");
	fake.change = "{'drive': <'sda'>, 'changed': <false>, 'running': <true>}";
	assert_says(ARGUMENTS("additions", "insert", "web"), "in drive sda of VM web already.\n");
	fake.change = "{'drive': <'sda'>, 'changed': <true>, 'running': <false>}";
	assert_says(ARGUMENTS("additions", "insert", "web"),
		"in drive sda of VM web when it is started next.\n");
	fake.change = "{'drive': <'sd\\na'>, 'changed': <true>, 'of-drive': <true>}";
	assert_says(ARGUMENTS("additions", "insert", "web"),
		"in the new drive sd\\u000aa of VM web when");
}

static void ejects(void **state)
{
	fake.change =
		"{'drive': <'sda'>, 'changed': <true>, 'running': <true>, 'of-drive': <false>}";
	assert_prints(ARGUMENTS("additions", "eject", "web"),
		"The guest additions are ejected from drive sda of VM web.\n");
	assert_string_equal(fake.called, "EjectAdditions('web', {})");
	fake.change = "{'drive': <''>, 'changed': <false>}";
	assert_prints(ARGUMENTS("additions", "eject", "--force", "web"),
		"The guest additions are in no drive of VM web.\n");
	assert_string_equal(fake.called, "EjectAdditions('web', {'force': <true>})");
	fake.change =
		"{'drive': <'sda'>, 'changed': <true>, 'running': <true>, 'of-drive': <true>}";
	assert_says(
		ARGUMENTS("additions", "eject", "web"), "is gone when the VM is started next.\n");
	fake.change = "{'drive': <'sda'>, 'changed': <true>, 'of-drive': <true>}";
	assert_says(ARGUMENTS("additions", "eject", "web"), "is gone too.\n");
}

#define STATE(state, since)                                                                        \
	"{'name': <'a'>, 'active': <true>, 'pagefusion': <true>, 'additions-state': <'" state      \
	"'>, 'additions-since': <uint64 " since ">}"

/* With what to do, where page fusion is on. */
static void advises(void **state)
{
	fake.vm = STATE("never seen", "0");
	assert_says(ARGUMENTS("showvminfo", "a"),
		"Guest additions:     never seen; install them: pagefusionctl additions insert VM, "
		"then in the guest install.sh\n");
	fake.vm = STATE("silent", "1800000000");
	assert_says(ARGUMENTS("showvminfo", "a"),
		"Guest additions:     silent since 2027-01-15 08:00:00; in the guest: "
		"pagefusion-agent --check says what to do\n");
	fake.vm = STATE("too old", "1800000001");
	assert_says(ARGUMENTS("showvminfo", "a"),
		"too old since 2027-01-15 08:00:01; newer ones: pagefusionctl additions insert");
	fake.vm = STATE("of\\ntomorrow", "18446744073709551615");
	assert_says(ARGUMENTS("showvminfo", "a"), "Guest additions:     of\\u000atomorrow\n");
	fake.vm =
		"{'name': <'a'>, 'active': <true>, 'pagefusion': <false>, 'additions-state': <'never seen'>}";
	assert_says(ARGUMENTS("showvminfo", "a"), "Guest additions:     never seen\n");
}

#define NO_GROUP(name) "--group cannot be '" name "': give it 1 to 63 letters, digits,"

/* They do not even reach the service. */
static void refuses_what_is_no_group(void **state)
{
	static const char *const names[][2] = {{"", NO_GROUP("")}, {"-a", NO_GROUP("-a")},
		{"a/b", NO_GROUP("a/b")}, {"../a", NO_GROUP("../a")}, {"a b", NO_GROUP("a b")},
		{"a\033[2J", NO_GROUP("a\\u001b[2J")}, {"\303\244", NO_GROUP("\303\244")},
		{"\377", "--group cannot be"},
		{"1234567890123456789012345678901234567890123456789012345678901234",
			NO_GROUP(
				"1234567890123456789012345678901234567890123456789012345678901234")}};

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
		assert_ends(ARGUMENTS("modifyvm", "a", "--group", names[i][0]), PF_CTL_USAGE,
			names[i][1]);
	assert_ends(ARGUMENTS("modifyvm", "a", "--pagefusion=off", "--group=g"), PF_CTL_USAGE,
		"in no trust group: leave --group out");
	assert_ends(
		ARGUMENTS("list", "vms", "--group", "g"), PF_CTL_USAGE, "Unknown option --group");
	assert_null(fake.called);
}

static void queries(void **state)
{
	assert_prints(ARGUMENTS("metrics", "query"),
		"Object     Metric                 Value\n"
		"---------  ---------------------  ----------\n"
		"host       RAM/VMM/Shared         71244 kB\n"
		"web\\u001b  Guest/PageFusion/Runs  900 pieces\n");
	assert_string_equal(fake.called, "QueryMetrics('*', [], {})");
}

static void passes_the_query_on(void **state)
{
	Run run;

	run_argv(&run, ARGUMENTS("metrics", "query", "web", "RAM/VMM/Shared,Guest/*,"));
	assert_string_equal(
		fake.called, "QueryMetrics('web', ['RAM/VMM/Shared', 'Guest/*', ''], {})");
	run_free(&run);
	run_argv(&run, ARGUMENTS("metrics", "query", "host"));
	assert_string_equal(fake.called, "QueryMetrics('host', [], {})");
	run_free(&run);
}

/* Parses what a command prints; the caller frees it. */
static JsonNode *run_json(const char *const *arguments)
{
	Run run;
	g_autoptr(GError) error = NULL;
	JsonNode *root;

	run_argv(&run, arguments);
	assert_int_equal(run.code, PF_CTL_OK);
	for (const char *p = run.out; *p; p++)
		assert_true((unsigned char)*p >= 0x20 || *p == '\n');
	assert_null(strstr(run.out, "\302\233"));
	root = json_from_string(run.out, &error);
	assert_null(error);
	run_free(&run);
	return root;
}

static void writes_json(void **state)
{
	g_autoptr(JsonNode) list = run_json(ARGUMENTS("list", "vms", "--json"));
	g_autoptr(JsonNode) info = run_json(ARGUMENTS("showvminfo", "web", "--json"));
	g_autoptr(JsonNode) metrics = run_json(ARGUMENTS("metrics", "query", "--json"));
	JsonObject *evil = json_array_get_object_element(json_node_get_array(list), 1);
	JsonObject *web = json_node_get_object(info);
	JsonObject *value = json_array_get_object_element(json_node_get_array(metrics), 1);

	assert_string_equal(
		json_object_get_string_member(evil, "name"), "e\"v\\il\033[2J\302\233\n");
	assert_false(json_object_get_boolean_member(evil, "pagefusion"));
	assert_int_equal(json_object_get_int_member(web, "shared-kib"), 24000);
	assert_int_equal(
		json_object_get_int_member(json_object_get_object_member(web, "refused"), "busy"),
		3);
	assert_string_equal(json_object_get_string_member(web, "thp"), "balanced");
	assert_string_equal(json_object_get_string_member(web, "thp-setting"), "default");
	assert_string_equal(json_object_get_string_member(value, "object"), "web\033");
	assert_string_equal(
		json_object_get_string_member(value, "metric"), "Guest/PageFusion/Runs");
	assert_int_equal(json_object_get_int_member(value, "value"), 900);
	assert_string_equal(json_object_get_string_member(value, "unit"), "pieces");
}

static void errors_have_exit_codes(void **state)
{
	static const struct {
		const char *name;
		const char *message;
		PfCtlExit code;
		const char *says;
	} cases[] = {
		{PF_DBUS_ERROR_NO_SUCH_VM, "no VM 'x': see", PF_CTL_NO_SUCH_VM,
			": no VM 'x': see\n"},
		{PF_DBUS_ERROR_VM_NOT_SHUT_OFF, "it runs", PF_CTL_REFUSED, ": it runs\n"},
		{PF_DBUS_ERROR_REFUSED, "hugepages", PF_CTL_REFUSED, ": hugepages\n"},
		{PF_DBUS_ERROR_INVALID_ARGUMENT, "no metric", PF_CTL_USAGE, ": no metric\n"},
		{PF_DBUS_ERROR_NO_LIBVIRT, "no libvirt", PF_CTL_UNREACHABLE, ": no libvirt\n"},
		{PF_DBUS_ERROR_FAILED, "two\nlines\033[1m", PF_CTL_FAILED,
			"two\\u000alines\\u001b[1m\n"},
		{"org.freedesktop.DBus.Error.AccessDenied", "x", PF_CTL_REFUSED, "as root (sudo)"},
		{"org.freedesktop.DBus.Error.UnknownMethod", "x", PF_CTL_FAILED, "another version"},
		{"org.freedesktop.DBus.Error.NoReply", "x", PF_CTL_UNREACHABLE,
			"did not answer (x)"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		fake.error = cases[i].name;
		fake.message = cases[i].message;
		assert_ends(ARGUMENTS("list", "vms"), cases[i].code, cases[i].says);
		assert_ends(ARGUMENTS("showvminfo", "x"), cases[i].code, cases[i].says);
		assert_ends(ARGUMENTS("modifyvm", "x", "--pagefusion", "on"), cases[i].code,
			cases[i].says);
		assert_ends(ARGUMENTS("metrics", "query"), cases[i].code, cases[i].says);
		assert_ends(ARGUMENTS("additions", "insert", "x"), cases[i].code, cases[i].says);
		assert_ends(ARGUMENTS("additions", "eject", "x"), cases[i].code, cases[i].says);
	}
}

/* Wrong arguments never reach the service. */
static void refuses_bad_arguments(void **state)
{
	static const struct {
		const char *arguments[6];
		const char *says;
	} cases[] = {
		{{NULL}, "no command was given: see 'pagefusionctl --help'"},
		{{"frobnicate"}, "there is no command 'frobnicate'"},
		{{"\033[31m"}, "there is no command '\\u001b[31m'"},
		{{"list"}, "after 'list' comes 'vms'"},
		{{"list", "hosts"}, "after 'list' comes 'vms'"},
		{{"list", "vms", "more"}, "'more' is one argument too many"},
		{{"list", "vms", "--pagefusion", "on"}, "Unknown option --pagefusion"},
		{{"list", "vms", "--colour\n"}, "Unknown option --colour\\u000a"},
		{{"showvminfo"}, "a VM is missing"},
		{{"showvminfo", "a", "b"}, "'b' is one argument too many"},
		{{"showvminfo", "\377"}, "not valid UTF-8"},
		{{"showvminfo", "a", "--json", "--machinereadable"}, "exclude each other"},
		{{"modifyvm"}, "a VM is missing"},
		{{"modifyvm", "a"}, "nothing to change"},
		{{"modifyvm", "a", "--pagefusion"}, "Missing argument for --pagefusion"},
		{{"modifyvm", "a", "--pagefusion", "maybe"},
			"cannot be 'maybe': give it 'on' or 'off'"},
		{{"modifyvm", "a", "--pagefusion", "ON"}, "cannot be 'ON'"},
		{{"modifyvm", "a", "--thp", "some"},
			"cannot be 'some': give it 'preserve', 'balanced', 'all' or 'default'"},
		{{"modifyvm", "a", "--thp", "\377"}, "--thp cannot be"},
		{{"modifyvm", "a", "--thp", "ALL"}, "cannot be 'ALL'"},
		{{"modifyvm", "a", "--pagefusion=off", "--thp=all"}, "leave --thp out"},
		{{"list", "vms", "--thp", "all"}, "Unknown option --thp"},
		{{"modifyvm", "a", "b", "--pagefusion", "on"}, "'b' is one argument too many"},
		{{"modifyvm", "a", "--pagefusion", "on", "--json"}, "Unknown option --json"},
		{{"metrics"}, "after 'metrics' comes 'query': use metrics query"},
		{{"additions"},
			"after 'additions' comes 'insert' or 'eject': use additions insert VM, or "
			"additions eject VM [--force]"},
		{{"additions", "install", "a"}, "after 'additions' comes 'insert' or 'eject'"},
		{{"additions", "insert"}, "a VM is missing: use additions insert VM"},
		{{"additions", "insert", "a", "--force"}, "Unknown option --force"},
		{{"additions", "eject", "a", "b"}, "'b' is one argument too many"},
		{{"metrics", "query", "*", "*", "*"}, "'*' is one argument too many"},
		{{"metrics", "query", "*", ""}, "the list of metrics is empty"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
		assert_ends(cases[i].arguments, PF_CTL_USAGE, cases[i].says);
	assert_null(fake.called);
}

static void helps(void **state)
{
	Run run;

	assert_prints(ARGUMENTS("--version"), "pagefusionctl " PF_VERSION "\n");
	run_argv(&run, ARGUMENTS("modifyvm", "--help"));
	assert_int_equal(run.code, PF_CTL_OK);
	assert_memory_equal(run.out, "Usage: pagefusionctl COMMAND\n", 29);
	assert_prints(ARGUMENTS("--help"), run.out);
	assert_prints(ARGUMENTS("help"), run.out);
	run_free(&run);
	assert_null(fake.called);
}

static void says_that_the_output_is_full(void **state)
{
	char *argv[] = {(char *)"pagefusionctl", (char *)"list", (char *)"vms", NULL};
	char *text = NULL;
	size_t size;
	FILE *full = fopen("/dev/full", "w");
	FILE *err = open_memstream(&text, &size);

	assert_non_null(full);
	assert_int_equal(pf_ctl_run(3, argv, full, err), PF_CTL_FAILED);
	fclose(full);
	fclose(err);
	assert_non_null(strstr(text, "could not be written"));
	free(text);
}

static void says_that_the_service_is_away(void **state)
{
	request_name("ReleaseName");
	assert_ends(ARGUMENTS("list", "vms"), PF_CTL_UNREACHABLE,
		"pagefusionctl: the page fusion service is not running: start it "
		"(systemctl start pagefusiond)\n");
	request_name("RequestName");
	assert_null(fake.called);
}

static void says_that_the_bus_is_away(void **state)
{
	g_autofree char *address = g_strdup(g_getenv("DBUS_SYSTEM_BUS_ADDRESS"));

	g_setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus", TRUE);
	assert_ends(
		ARGUMENTS("list", "vms"), PF_CTL_UNREACHABLE, "start it (systemctl start dbus)");
	g_setenv("DBUS_SYSTEM_BUS_ADDRESS", address, TRUE);
}

#define with_reset(test) cmocka_unit_test_setup(test, reset)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_reset(lists),
		with_reset(shows),
		with_reset(shows_for_machines),
		with_reset(modifies_silently),
		with_reset(sets_the_group),
		with_reset(inserts),
		with_reset(ejects),
		with_reset(advises),
		with_reset(refuses_what_is_no_group),
		with_reset(queries),
		with_reset(passes_the_query_on),
		with_reset(writes_json),
		with_reset(errors_have_exit_codes),
		with_reset(refuses_bad_arguments),
		with_reset(helps),
		with_reset(says_that_the_output_is_full),
		with_reset(says_that_the_service_is_away),
		with_reset(says_that_the_bus_is_away),
	};

	g_setenv("TZ", "UTC", TRUE);
	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, start_fake, stop_fake);
}
