/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The bus interface over a socket pair: methods, properties, errors, limits. */
#include "tests/unit/host-service/dbus_rig.h"
#include "pagefusion-version.h"

typedef struct Peers {
	GDBusConnection *server;
	GDBusConnection *client;
	Rig rig;
	PfDbusFront *front;
} Peers;

static void start_connection(int fd, gboolean server, GAsyncResult **result)
{
	g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, NULL);
	g_autoptr(GSocketConnection) stream = g_socket_connection_factory_create_connection(socket);
	g_autofree char *guid = g_dbus_generate_guid();

	g_dbus_connection_new(G_IO_STREAM(stream), server ? guid : NULL,
		server ? G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_SERVER
		       : G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT,
		NULL, NULL, store_result, result);
}

static GDBusConnection *finish_connection(GAsyncResult **result)
{
	g_autoptr(GError) error = NULL;
	GDBusConnection *connection;

	wait_for(result);
	connection = g_dbus_connection_new_finish(*result, &error);
	assert_null(error);
	g_clear_object(result);
	return connection;
}

static void peers_init(Peers *peers)
{
	int fds[2];
	GAsyncResult *server = NULL;
	GAsyncResult *client = NULL;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	start_connection(fds[0], TRUE, &server);
	start_connection(fds[1], FALSE, &client);
	peers->server = finish_connection(&server);
	peers->client = finish_connection(&client);
	rig_init(&peers->rig);
	peers->front = pf_dbus_front_new_on(peers->rig.here, fake_broker, peers->server, NULL);
	assert_non_null(peers->front);
}

static void peers_deinit(Peers *peers)
{
	pf_dbus_front_free(peers->front);
	rig_deinit(&peers->rig);
	g_dbus_connection_close_sync(peers->client, NULL, NULL);
	g_object_unref(peers->client);
	g_object_unref(peers->server);
}

static void assert_answer(const char *method, const char *parameters, const char *expected)
{
	Peers peers;
	g_autoptr(GError) error = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autofree char *printed = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, method, parameters, &error);
	assert_null(error);
	printed = g_variant_print(reply, FALSE);
	assert_string_equal(printed, expected);
	peers_deinit(&peers);
}

static void assert_fails(
	const char *method, const char *parameters, const char *name, const char *says)
{
	Peers peers;
	g_autoptr(GError) error = NULL;

	peers_init(&peers);
	assert_null(call(peers.client, NULL, MANAGER, method, parameters, &error));
	assert_error(error, name, says);
	peers_deinit(&peers);
}

/* What is shown, and changed */

static void lists_vms_in_order(void **state)
{
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vms = NULL;
	static const char *const names[] = {"db", "idle", "web \357\277\275"};

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "ListVMs", "(@a{sv} {},)", NULL);
	vms = g_variant_get_child_value(reply, 0);
	assert_int_equal(g_variant_n_children(vms), 3);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autoptr(GVariant) vm = g_variant_get_child_value(vms, i);
		const char *name = NULL;

		assert_true(g_variant_lookup(vm, "name", "&s", &name));
		assert_string_equal(name, names[i]);
	}
	peers_deinit(&peers);
}

/* Every key, its type and its value. */
static void describes_a_vm(void **state)
{
	static const struct {
		const char *key;
		const char *value;
	} expected[] = {
		{"uuid", "'00000000-0000-4000-8000-000000000001'"},
		{"name", "'db'"},
		{"group", "'default'"},
		{"state", "'running'"},
		{"pagefusion", "true"},
		{"thp", "'balanced'"},
		{"thp-setting", "'default'"},
		{"active", "true"},
		{"memory-kib", "uint64 524288"},
		{"reason", "''"},
		{"agent-version", "'0.1.0'"},
		{"kernel", "'6.1.0-42'"},
		{"additions-state", "'connected'"},
		{"additions-since", "uint64 1800000000"},
		{"shim-connected", "true"},
		{"hinted", "uint64 8000"},
		{"fused", "uint64 7000"},
		{"shared-kib", "uint64 24000"},
		{"runs", "uint64 900"},
		{"revoked", "uint64 5"},
		{"over-quota", "uint64 15"},
		{"maps", "uint64 1000"},
		{"maps-budget", "uint64 40000"},
		{"discarded", "uint64 11"},
		{"written", "uint64 12"},
		{"ways-out", "uint64 13"},
		{"busy", "uint64 14"},
		{"refused", "{'busy': uint64 3, 'not-present': 4, 'huge': 6, 'aside': 8}"},
	};
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vm = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "GetVM", "('db', @a{sv} {})", NULL);
	vm = g_variant_get_child_value(reply, 0);
	assert_int_equal(g_variant_n_children(vm), G_N_ELEMENTS(expected));
	for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
		g_autoptr(GVariant) value = g_variant_lookup_value(vm, expected[i].key, NULL);
		g_autofree char *printed = NULL;

		assert_non_null(value);
		printed = g_variant_print(value, TRUE);
		assert_string_equal(printed, expected[i].value);
	}
	peers_deinit(&peers);
}

static void finds_by_uuid(void **state)
{
	Peers peers;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vm = NULL;
	const char *name = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, "GetVM",
		"('00000000-0000-4000-8000-000000000002', @a{sv} {})", NULL);
	vm = g_variant_get_child_value(reply, 0);
	assert_true(g_variant_lookup(vm, "name", "&s", &name));
	assert_string_equal(name, "idle");
	assert_true(g_variant_lookup(vm, "thp-setting", "&s", &name));
	assert_string_equal(name, "preserve");
	peers_deinit(&peers);
}

static void queries_metrics(void **state)
{
	assert_answer("QueryMetrics", "('host', @as [], @a{sv} {})",
		"([('host', 'RAM/VMM/Shared', 400, 'kB'), ('host', 'RAM/VMM/Frames', 200, 'kB'), "
		"('host', 'RAM/VMM/FramesFreed', 0, 'frames'), "
		"('host', 'RAM/VMM/Revoked', 0, 'pages'), ('host', 'RAM/VMM/Candidates', 0, 'kB'), "
		"('host', 'RAM/VMM/StoreAllocated', 200, 'kB'), "
		"('host', 'RAM/VMM/StoreSwapped', 24, 'kB'), "
		"('host', 'RAM/VMM/Pressure', 1, 'bool')],)");
	assert_answer("QueryMetrics",
		"('db', ['Guest/PageFusion/Refused', 'Guest/RAM/*'], @a{sv} {})",
		"([('db', 'Guest/RAM/Usage/Shared', 24000, 'kB'), "
		"('db', 'Guest/PageFusion/Refused', 21, 'pages')],)");
	assert_answer("QueryMetrics",
		"('*', ['Guest/PageFusion/Runs', 'RAM/VMM/Shared'], @a{sv} {})",
		"([('host', 'RAM/VMM/Shared', 400, 'kB'), ('db', 'Guest/PageFusion/Runs', 900, "
		"'pieces'), ('web \357\277\275', 'Guest/PageFusion/Runs', 900, 'pieces')],)");
	assert_answer("QueryMetrics", "('idle', ['*'], @a{sv} {})", "([],)");
}

static void refuses_bad_queries(void **state)
{
	assert_fails("QueryMetrics", "('*', ['RAM/VMM/Shard'], @a{sv} {})",
		PF_DBUS_ERROR_INVALID_ARGUMENT, "the nearest name is RAM/VMM/Shared");
	assert_fails("QueryMetrics", "('nobody', @as [], @a{sv} {})", PF_DBUS_ERROR_NO_SUCH_VM,
		"'nobody'");
	assert_fails("GetVM", "('', @a{sv} {})", PF_DBUS_ERROR_NO_SUCH_VM, "no VM has");
}

static void does_not_repeat_absurd_names(void **state)
{
	g_autofree char *name = g_strnfill(256, 'n');
	g_autofree char *parameters = g_strdup_printf("('%s', @a{sv} {})", name);

	assert_fails("GetVM", parameters, PF_DBUS_ERROR_NO_SUCH_VM, "that long");
}

static void rejects_unknown_options(void **state)
{
	static const char *const calls[][2] = {
		{"ListVMs", "({'colour': <'red'>},)"},
		{"GetVM", "('db', {'colour': <1>})"},
		{"QueryMetrics", "('*', @as [], {'colour': <true>})"},
		{"ModifyVM", "('db', {'pagefusion': <true>, 'colour': <true>})"},
		{"InsertAdditions", "('db', {'colour': <true>})"},
		{"EjectAdditions", "('db', {'force': <true>, 'colour': <true>})"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(calls); i++)
		assert_fails(calls[i][0], calls[i][1], PF_DBUS_ERROR_INVALID_ARGUMENT, "'colour'");
	assert_fails("InsertAdditions", "('db', {'force': <true>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"'force'");
	assert_fails("EjectAdditions", "('db', {'force': <'yes'>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"must be a boolean");
	assert_int_equal(broker.calls, 0);
}

static void rejects_bad_settings(void **state)
{
	assert_fails("ModifyVM", "('db', @a{sv} {})", PF_DBUS_ERROR_INVALID_ARGUMENT, "no setting");
	assert_fails("ModifyVM", "('db', {'pagefusion': <'on'>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"must be a boolean");
	assert_fails("ModifyVM", "('db', {'thp': <'some'>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"'preserve', 'balanced', 'all' and 'default'");
	assert_fails("ModifyVM", "('db', {'thp': <true>})", PF_DBUS_ERROR_INVALID_ARGUMENT,
		"must be one of the strings");
	assert_fails("ModifyVM", "('db', {'thp': <'all'>, 'pagefusion': <false>})",
		PF_DBUS_ERROR_INVALID_ARGUMENT, "leave 'thp' out");
	assert_fails("ModifyVM", "('db', {'pagefusion': <false>, 'group': <'shop'>})",
		PF_DBUS_ERROR_INVALID_ARGUMENT, "leave 'group' out");
	assert_int_equal(broker.calls, 0);
}

static void says_that_libvirt_is_away(void **state)
{
	static const char *const calls[][2] = {
		{"ListVMs", "(@a{sv} {},)"},
		{"GetVM", "('db', @a{sv} {})"},
		{"QueryMetrics", "('*', @as [], @a{sv} {})"},
		{"QueryMetrics", "('nobody', @as [], @a{sv} {})"},
		{"GetVM", "('', @a{sv} {})"},
	};

	fake.libvirt = FALSE;
	for (size_t i = 0; i < G_N_ELEMENTS(calls); i++)
		assert_fails(calls[i][0], calls[i][1], PF_DBUS_ERROR_NO_LIBVIRT,
			"libvirt is away: start it");
}

static void modifies(void **state)
{
	assert_answer("ModifyVM", "('db', {'pagefusion': <true>})", "()");
	assert_int_equal(broker.calls, 1);
	assert_string_equal(broker.vm, "db");
	assert_true(broker.settings.enabled);
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED);
	assert_answer("ModifyVM", "('idle', {'pagefusion': <false>})", "()");
	assert_false(broker.settings.enabled);
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED);
}

static void modifies_the_policy(void **state)
{
	assert_answer("ModifyVM", "('db', {'thp': <'preserve'>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_THP);
	assert_int_equal(broker.settings.thp, PF_THP_PRESERVE);
	assert_answer("ModifyVM", "('db', {'thp': <'default'>, 'pagefusion': <true>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED | PF_VM_SET_THP);
	assert_int_equal(broker.settings.thp, PF_THP_DEFAULT);
	assert_true(broker.settings.enabled);
}

static void modifies_the_group(void **state)
{
	assert_answer("ModifyVM", "('db', {'group': <'shop-1.eu'>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_GROUP);
	assert_string_equal(broker.settings.group, "shop-1.eu");
	assert_answer("ModifyVM", "('db', {'pagefusion': <true>, 'group': <'default'>})", "()");
	assert_int_equal(broker.settings.changes, PF_VM_SET_ENABLED | PF_VM_SET_GROUP);
	assert_string_equal(broker.settings.group, PF_GROUP_DEFAULT);
}

static void rejects_bad_groups(void **state)
{
	g_autofree char *name = g_strnfill(PF_GROUP_NAME_MAX + 1, 'n');
	g_autofree char *long_name = g_strdup_printf("('db', {'group': <'%s'>})", name);
	const char *const calls[] = {
		"('db', {'group': <''>})",
		"('db', {'group': <'-a'>})",
		"('db', {'group': <'a b'>})",
		"('db', {'group': <'../a'>})",
		"('db', {'group': <7>})",
		long_name,
	};

	for (size_t i = 0; i < G_N_ELEMENTS(calls); i++)
		assert_fails(
			"ModifyVM", calls[i], PF_DBUS_ERROR_INVALID_ARGUMENT, PF_GROUP_NAME_RULE);
	assert_int_equal(broker.calls, 0);
}

/* The method's answer, in the order that a dictionary has not. */
static void assert_changes(const char *method, const char *parameters, const char *expected)
{
	Peers peers;
	g_autoptr(GError) error = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) result = NULL;
	g_autofree char *printed = NULL;
	gboolean changed = FALSE, running = FALSE, of_drive = FALSE;
	const char *drive = NULL;

	peers_init(&peers);
	reply = call(peers.client, NULL, MANAGER, method, parameters, &error);
	assert_null(error);
	result = g_variant_get_child_value(reply, 0);
	assert_int_equal(g_variant_n_children(result), 4);
	assert_true(g_variant_lookup(result, "drive", "&s", &drive));
	assert_true(g_variant_lookup(result, "changed", "b", &changed));
	assert_true(g_variant_lookup(result, "running", "b", &running));
	assert_true(g_variant_lookup(result, "of-drive", "b", &of_drive));
	printed = g_strdup_printf("%s %d %d %d", drive, changed, running, of_drive);
	assert_string_equal(printed, expected);
	peers_deinit(&peers);
}

static void changes_additions(void **state)
{
	broker.change = (PfAdditionsChange){"sda", 1, 0, 1};
	assert_changes("InsertAdditions", "('db', @a{sv} {})", "sda 1 0 1");
	assert_string_equal(broker.vm, "db");
	assert_false(broker.ejects);
	broker.change = (PfAdditionsChange){"hdc", 0, 1, 0};
	assert_changes("EjectAdditions", "('idle', {'force': <true>})", "hdc 0 1 0");
	assert_string_equal(broker.vm, "idle");
	assert_true(broker.ejects && broker.force);
	assert_changes("EjectAdditions", "('idle', @a{sv} {})", "hdc 0 1 0");
	assert_false(broker.force);
	assert_int_equal(broker.calls, 3);
}

/* Each state has its name. */
static void names_additions(void **state)
{
	static const char *const names[] = {"never seen", "connected", "silent", "too old"};

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		Peers peers;
		g_autoptr(GVariant) reply = NULL;
		g_autoptr(GVariant) vm = NULL;
		const char *name = NULL;

		fake.views[0].figures.additions = (PfAdditionsState)i;
		peers_init(&peers);
		reply = call(peers.client, NULL, MANAGER, "GetVM", "('db', @a{sv} {})", NULL);
		vm = g_variant_get_child_value(reply, 0);
		assert_true(g_variant_lookup(vm, "additions-state", "&s", &name));
		assert_string_equal(name, names[i]);
		peers_deinit(&peers);
	}
}

static void passes_on_what_the_broker_says(void **state)
{
	static const struct {
		int code;
		const char *name;
	} cases[] = {
		{G_IO_ERROR_NOT_FOUND, PF_DBUS_ERROR_NO_SUCH_VM},
		{G_IO_ERROR_BUSY, PF_DBUS_ERROR_VM_NOT_SHUT_OFF},
		{G_IO_ERROR_NOT_SUPPORTED, PF_DBUS_ERROR_REFUSED},
		{G_IO_ERROR_NOT_CONNECTED, PF_DBUS_ERROR_NO_LIBVIRT},
		{G_IO_ERROR_FAILED, PF_DBUS_ERROR_FAILED},
		{G_IO_ERROR_CLOSED, PF_DBUS_ERROR_FAILED},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		broker.code = cases[i].code;
		broker.message = "what and what to do";
		assert_fails("ModifyVM", "('db', {'pagefusion': <true>})", cases[i].name,
			"what and what to do");
		assert_fails("InsertAdditions", "('db', @a{sv} {})", cases[i].name,
			"what and what to do");
		assert_fails("EjectAdditions", "('db', @a{sv} {})", cases[i].name,
			"what and what to do");
	}
}

/* The caller frees it. */
static char *print_properties(const Peers *peers)
{
	g_autoptr(GVariant) properties = call(peers->client, NULL,
		"org.freedesktop.DBus.Properties", "GetAll", "('" MANAGER "',)", NULL);

	return g_variant_print(properties, FALSE);
}

static void properties_are_read_when_asked(void **state)
{
	Peers peers;
	g_autofree char *printed_before = NULL;
	g_autofree char *printed_after = NULL;

	peers_init(&peers);
	printed_before = print_properties(&peers);
	fake.libvirt = FALSE;
	/* Answers get old. */
	printed_after = print_properties(&peers);
	while (strcmp(printed_before, printed_after) == 0) {
		g_free(printed_after);
		printed_after = print_properties(&peers);
	}
	assert_string_equal(printed_before,
		"({'Version': <'" PF_VERSION "'>, 'LibvirtConnected': <true>, "
		"'LibvirtReason': <''>},)");
	assert_string_equal(printed_after,
		"({'Version': <'" PF_VERSION "'>, 'LibvirtConnected': <false>, "
		"'LibvirtReason': <'libvirt is away: start it'>},)");
	peers_deinit(&peers);
}

static void single_properties_are_read_too(void **state)
{
	static const char *const properties[][2] = {
		{"Version", "(<'" PF_VERSION "'>,)"},
		{"LibvirtConnected", "(<false>,)"},
		{"LibvirtReason", "(<'libvirt is away: start it'>,)"},
	};
	Peers peers;
	g_autoptr(GError) error = NULL;

	peers_init(&peers);
	fake.libvirt = FALSE;
	for (size_t i = 0; i < G_N_ELEMENTS(properties); i++) {
		g_autofree char *parameters =
			g_strdup_printf("('" MANAGER "', '%s')", properties[i][0]);
		g_autoptr(GVariant) reply = call(peers.client, NULL,
			"org.freedesktop.DBus.Properties", "Get", parameters, NULL);
		g_autofree char *printed = g_variant_print(reply, FALSE);

		assert_string_equal(printed, properties[i][1]);
	}
	assert_null(call(peers.client, NULL, "org.freedesktop.DBus.Properties", "Get",
		"('" MANAGER "', 'Colour')", &error));
	assert_error(error, "org.freedesktop.DBus.Error.InvalidArgs", "Colour");
	g_clear_error(&error);
	assert_null(call(peers.client, NULL, "org.freedesktop.DBus.Properties", "Set",
		"('" MANAGER "', 'Version', <'2'>)", &error));
	assert_error(error, "org.freedesktop.DBus.Error.InvalidArgs", "Version");
	peers_deinit(&peers);
}

/* More than a bus takes in one message. */
static void does_not_answer_without_end(void **state)
{
	g_autofree char *text = g_strnfill(500, 't');

	for (size_t i = 0; i < G_N_ELEMENTS(fake.views); i++) {
		memset(fake.domains[i].name, 'n', sizeof(fake.domains[i].name) - 1);
		fake.domains[i].active = TRUE;
		fake.views[i].reason = text;
	}
	fake.rounds = 4000;
	assert_fails("ListVMs", "(@a{sv} {},)", PF_DBUS_ERROR_FAILED, "one by one");
	assert_fails(
		"QueryMetrics", "('*', @as [], @a{sv} {})", PF_DBUS_ERROR_FAILED, "one by one");
}

/* What was answered is not shown any more, as something has changed. */
static void make_forget(const Peers *peers)
{
	g_autoptr(GVariant) reply = call(
		peers->client, NULL, MANAGER, "ModifyVM", "('db', {'pagefusion': <true>})", NULL);

	assert_non_null(reply);
}

/* GetVM of a name that is nobody's. */
static void start_for_nobody(const Peers *peers, unsigned number, GAsyncResult **result)
{
	g_autofree char *parameters = g_strdup_printf("('nobody-%u', @a{sv} {})", number);

	start_call(peers->client, NULL, "GetVM", parameters, result);
}

/* As many callers as there may be ask the service once. */
static void shares_answers(void **state)
{
	GAsyncResult *results[MAX_CALLS];
	Peers peers;

	peers_init(&peers);
	for (unsigned round = 1; round <= 2; round++) {
		for (size_t i = 0; i < MAX_CALLS; i++)
			start_call(peers.client, NULL, "ListVMs", "(@a{sv} {},)", &results[i]);
		finish_many(results);
		assert_int_equal(fake.asked_for_all, round);
		make_forget(&peers);
	}
	peers_deinit(&peers);
}

/* A change while a query is under way: its answer may be of before. */
static void shows_what_was_changed(void **state)
{
	GAsyncResult *before, *after;
	Peers peers;

	peers_init(&peers);
	pf_service_front_serve(peers.rig.there, NULL);
	start_call(peers.client, NULL, "ListVMs", "(@a{sv} {},)", &before);
	make_forget(&peers);
	start_call(peers.client, NULL, "ListVMs", "(@a{sv} {},)", &after);
	pf_service_front_serve(peers.rig.there, &fake);
	assert_null(finish_call(&before));
	assert_null(finish_call(&after));
	assert_int_equal(fake.asked_for_all, 2);
	peers_deinit(&peers);
}

static void assert_finds(GAsyncResult **result, const char *expected)
{
	g_autoptr(GObject) connection = NULL;
	g_autoptr(GVariant) reply = NULL;
	g_autoptr(GVariant) vm = NULL;
	const char *name = NULL;

	wait_for(result);
	connection = g_async_result_get_source_object(*result);
	reply = g_dbus_connection_call_finish(G_DBUS_CONNECTION(connection), *result, NULL);
	assert_non_null(reply);
	vm = g_variant_get_child_value(reply, 0);
	assert_true(g_variant_lookup(vm, "name", "&s", &name));
	assert_string_equal(name, expected);
	g_clear_object(result);
}

/* Whoever asks for ever other names is answered, and the service is not kept busy with it. */
static void many_names_are_looked_for_at_once(void **state)
{
	GAsyncResult *results[MAX_CALLS];
	Peers peers;

	peers_init(&peers);
	pf_service_front_serve(peers.rig.there, NULL);
	for (unsigned i = 0; i < MAX_CALLS - 3; i++)
		start_for_nobody(&peers, i, &results[i]);
	start_call(peers.client, NULL, "GetVM", "('idle', @a{sv} {})", &results[MAX_CALLS - 3]);
	start_call(peers.client, NULL, "GetVM",
		"('00000000-0000-4000-8000-00000000000A', @a{sv} {})", &results[MAX_CALLS - 2]);
	start_call(peers.client, NULL, "QueryMetrics", "('db', @as [], @a{sv} {})",
		&results[MAX_CALLS - 1]);
	g_strlcpy(fake.domains[2].uuid, "00000000-0000-4000-8000-00000000000a",
		sizeof(fake.domains[2].uuid));
	pf_service_front_serve(peers.rig.there, &fake);
	for (size_t i = 0; i < MAX_CALLS - 3; i++) {
		g_autoptr(GError) error = finish_call(&results[i]);

		assert_error(error, PF_DBUS_ERROR_NO_SUCH_VM, "'nobody-");
	}
	assert_finds(&results[MAX_CALLS - 3], "idle");
	assert_finds(&results[MAX_CALLS - 2], "web \357\277\275");
	assert_null(finish_call(&results[MAX_CALLS - 1]));
	assert_int_equal(fake.asked_for_one, 16);
	assert_int_equal(fake.asked_for_all, 1);
	peers_deinit(&peers);
}

static void limits_calls_under_way(void **state)
{
	static const char *const calls[][2] = {
		{"ListVMs", "(@a{sv} {},)"},
		{"ModifyVM", "('db', {'pagefusion': <true>})"},
	};
	GAsyncResult *results[MAX_CALLS];
	Peers peers;

	peers_init(&peers);
	for (int round = 0; round < 2; round++) {
		pf_service_front_serve(peers.rig.there, NULL);
		start_many(peers.client, NULL, results);
		for (size_t i = 0; i < G_N_ELEMENTS(calls); i++) {
			g_autoptr(GError) error = NULL;

			assert_null(call(
				peers.client, NULL, MANAGER, calls[i][0], calls[i][1], &error));
			assert_error(
				error, "org.freedesktop.DBus.Error.LimitsExceeded", "under way");
		}
		assert_int_equal(broker.calls, 0);
		pf_service_front_serve(peers.rig.there, &fake);
		finish_many(results);
		make_forget(&peers);
		broker.calls = 0;
	}
	peers_deinit(&peers);
}

/* First the object goes from the bus, then the service from behind it. */
static void answers_what_is_under_way_at_the_end(void **state)
{
	GAsyncResult *list, *later = NULL;
	g_autoptr(GError) error = NULL;
	Peers peers;

	peers_init(&peers);
	pf_service_front_serve(peers.rig.there, NULL);
	start_call(peers.client, NULL, "ListVMs", "(@a{sv} {},)", &list);
	/* A connection's calls are dealt with in order: behind this answer the first has arrived. */
	assert_null(call(peers.client, NULL, MANAGER, "ModifyVM", "('db', @a{sv} {})", &error));
	g_clear_error(&error);
	pf_dbus_front_free(g_steal_pointer(&peers.front));
	assert_null(list);
	pf_front_free(g_steal_pointer(&peers.rig.here));
	error = finish_call(&list);
	assert_error(error, PF_DBUS_ERROR_FAILED, "has ended");
	g_clear_error(&error);
	start_call(peers.client, NULL, "ListVMs", "(@a{sv} {},)", &later);
	error = finish_call(&later);
	assert_error(error, "org.freedesktop.DBus.Error.UnknownMethod", "");
	/* The service's end has seen the end by now, or not: that is all the same here. */
	peers.rig.ended = 0;
	peers_deinit(&peers);
}

static void says_that_the_service_has_ended(void **state)
{
	g_autoptr(GError) error = NULL;
	Peers peers;

	peers_init(&peers);
	pf_service_front_free(g_steal_pointer(&peers.rig.there));
	while (peers.rig.ended == 0)
		g_main_context_iteration(NULL, TRUE);
	assert_null(call(peers.client, NULL, MANAGER, "ListVMs", "(@a{sv} {},)", &error));
	assert_error(error, PF_DBUS_ERROR_FAILED, "has ended");
	peers.rig.ended = 0;
	peers_deinit(&peers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_fake(lists_vms_in_order),
		with_fake(describes_a_vm),
		with_fake(finds_by_uuid),
		with_fake(queries_metrics),
		with_fake(refuses_bad_queries),
		with_fake(does_not_repeat_absurd_names),
		with_fake(rejects_unknown_options),
		with_fake(rejects_bad_settings),
		with_fake(says_that_libvirt_is_away),
		with_fake(modifies),
		with_fake(modifies_the_policy),
		with_fake(modifies_the_group),
		with_fake(rejects_bad_groups),
		with_fake(changes_additions),
		with_fake(names_additions),
		with_fake(passes_on_what_the_broker_says),
		with_fake(properties_are_read_when_asked),
		with_fake(single_properties_are_read_too),
		with_fake(does_not_answer_without_end),
		with_fake(shares_answers),
		with_fake(shows_what_was_changed),
		with_fake(many_names_are_looked_for_at_once),
		with_fake(limits_calls_under_way),
		with_fake(answers_what_is_under_way_at_the_end),
		with_fake(says_that_the_service_has_ended),
	};

	alarm(100); /* an answer that never comes */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
