/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * showvminfo: for people, lines of "Name: value", where what a VM that does not run cannot have is
 * left out; for scripts, key=value lines with the keys of the D-Bus interface: text and flags in
 * quotes, numbers bare.
 */
#include "host-service/ctl/client.h"
#include "host-service/ctl/output.h"
#include <inttypes.h>

#define LABEL_WIDTH 20

static void print_line(FILE *out, const char *label, const char *raw)
{
	g_autofree char *value = pf_ctl_escape(raw, PF_CTL_PLAIN);

	pf_ctl_write_padded(out, label, LABEL_WIDTH);
	fprintf(out, " %s\n", value);
}

static void print_text(
	FILE *out, GVariantDict *vm, const char *label, const char *key, const char *if_empty)
{
	const char *value = "";

	g_variant_dict_lookup(vm, key, "&s", &value);
	if (value[0] == '\0')
		value = if_empty;
	if (value)
		print_line(out, label, value);
}

static gboolean flag(GVariantDict *vm, const char *key)
{
	gboolean value = FALSE;

	g_variant_dict_lookup(vm, key, "b", &value);
	return value;
}

static void print_number(
	FILE *out, GVariantDict *vm, const char *label, const char *key, const char *unit)
{
	guint64 value = 0;
	g_autofree char *text = NULL;

	g_variant_dict_lookup(vm, key, "t", &value);
	text = g_strdup_printf("%" PRIu64 " %s", value, unit);
	print_line(out, label, text);
}

static void print_maps(FILE *out, GVariantDict *vm)
{
	guint64 maps = 0;
	guint64 budget = 0;
	g_autofree char *text = NULL;

	g_variant_dict_lookup(vm, "maps", "t", &maps);
	g_variant_dict_lookup(vm, "maps-budget", "t", &budget);
	text = g_strdup_printf("%" PRIu64 " of %" PRIu64, maps, budget);
	print_line(out, "Memory maps:", text);
}

/* NULL: there is none, or it is none. The caller frees it. */
static char *local_time(guint64 seconds)
{
	g_autoptr(GDateTime) time = NULL;

	if (seconds > 0 && seconds <= G_MAXINT64)
		time = g_date_time_new_from_unix_local((gint64)seconds);
	return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S") : NULL;
}

/* Why pages were refused, as a person says it; a newer service may know more reasons. */
static const char *explain(const char *reason)
{
	static const struct {
		const char *reason, *text;
	} texts[] = {
		{"different", "changed since they were hinted"},
		{"busy", "pinned for a device, or shared with another process"},
		{"not-present", "not present, or swapped out"},
		{"written", "written to while being fused"},
		{"no-maps", "no memory maps left"},
		{"not-ram", "not in memory that can be fused"},
		{"not-private", "fused already, or never to be fused again"},
		{"no-frame", "no such frame in the store"},
		{"stopped", "fusing has stopped"},
		{"failed", "the kernel refused for another reason"},
		{"huge", "in a huge page that is not to be broken"},
		{"aside", "QEMU used userfaultfd itself"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		if (g_str_equal(reason, texts[i].reason))
			return texts[i].text;
	}
	return reason;
}

/* A line for each reason that occurred. */
static void print_refused(FILE *out, GVariantDict *vm)
{
	g_autoptr(GVariant) refused =
		g_variant_dict_lookup_value(vm, "refused", G_VARIANT_TYPE("a{st}"));
	GVariantIter iter;
	const char *reason;
	guint64 pages;

	if (!refused)
		return;
	if (g_variant_iter_init(&iter, refused) == 0)
		print_line(out, "Refused:", "none");
	while (g_variant_iter_next(&iter, "{&st}", &reason, &pages)) {
		g_autofree char *text =
			g_strdup_printf("%" PRIu64 " pages, %s", pages, explain(reason));

		print_line(out, "Refused:", text);
	}
}

/* The policy in force, and whether it is the host's. */
static void print_thp(FILE *out, GVariantDict *vm)
{
	const char *policy = "";
	const char *setting = "";
	g_autofree char *text = NULL;

	if (!g_variant_dict_lookup(vm, "thp", "&s", &policy))
		return;
	g_variant_dict_lookup(vm, "thp-setting", "&s", &setting);
	text = g_strconcat(policy, g_str_equal(setting, "default") ? " (group)" : "", NULL);
	print_line(out, "Huge pages:", text);
}

/* The guest additions: state, since when, and what to do. */
static void print_additions(FILE *out, GVariantDict *vm)
{
	static const struct {
		const char *state, *advice;
	} advices[] = {
		{"never seen", "; install them: pagefusionctl additions insert VM, then in the "
			       "guest install.sh"},
		{"silent", "; in the guest: pagefusion-agent --check says what to do"},
		{"too old", "; newer ones: pagefusionctl additions insert VM, then in the guest "
			    "install.sh"},
	};
	const char *state = "", *advice = "";
	guint64 since = 0;
	g_autofree char *time = NULL, *text = NULL;

	if (!g_variant_dict_lookup(vm, "additions-state", "&s", &state))
		return;
	g_variant_dict_lookup(vm, "additions-since", "t", &since);
	for (size_t i = 0; i < G_N_ELEMENTS(advices); i++)
		if (flag(vm, "pagefusion") && g_str_equal(state, advices[i].state))
			advice = advices[i].advice;
	time = local_time(since);
	text = g_strconcat(state, time ? " since " : "", time ? time : "", advice, NULL);
	print_line(out, "Guest additions:", text);
}

static void print_running(FILE *out, GVariantDict *vm)
{
	print_line(out, "VM library:", flag(vm, "shim-connected") ? "connected" : "not connected");
	print_additions(out, vm);
	print_text(out, vm, "Guest agent:", "agent-version", "not heard of");
	print_text(out, vm, "Guest kernel:", "kernel", "unknown");
	print_number(out, vm, "Hinted:", "hinted", "pages");
	print_number(out, vm, "Fused:", "fused", "pages");
	print_number(out, vm, "Shared:", "shared-kib", "kB");
	print_number(out, vm, "Runs:", "runs", "pieces");
	print_number(out, vm, "Revoked:", "revoked", "pages");
	print_number(out, vm, "Over quota:", "over-quota", "pages");
	print_number(out, vm, "Discarded:", "discarded", "pages");
	print_number(out, vm, "Written:", "written", "pages");
	print_number(out, vm, "Pinned:", "busy", "pages");
	print_number(out, vm, "Ways out:", "ways-out", "times");
	print_refused(out, vm);
	print_maps(out, vm);
}

static void print_info(FILE *out, GVariant *description)
{
	g_auto(GVariantDict) vm = G_VARIANT_DICT_INIT(description);

	print_text(out, &vm, "Name:", "name", "");
	print_text(out, &vm, "UUID:", "uuid", "");
	print_text(out, &vm, "Group:", "group", "");
	print_text(out, &vm, "State:", "state", "");
	print_number(out, &vm, "Memory size:", "memory-kib", "kB");
	print_line(out, "Page Fusion:", flag(&vm, "pagefusion") ? "enabled" : "disabled");
	print_thp(out, &vm);
	print_text(out, &vm, "Not fusing because:", "reason", NULL);
	if (flag(&vm, "active"))
		print_running(out, &vm);
}

static void print_pair(FILE *out, const char *raw_key, GVariant *value)
{
	g_autofree char *key = pf_ctl_escape(raw_key, PF_CTL_PLAIN);
	g_autofree char *text = NULL;

	if (g_variant_is_of_type(value, G_VARIANT_TYPE_UINT64)) {
		fprintf(out, "%s=%" PRIu64 "\n", key, g_variant_get_uint64(value));
	} else if (g_variant_is_of_type(value, G_VARIANT_TYPE_BOOLEAN)) {
		fprintf(out, "%s=\"%s\"\n", key, g_variant_get_boolean(value) ? "on" : "off");
	} else if (g_variant_is_of_type(value, G_VARIANT_TYPE_STRING)) {
		text = pf_ctl_escape(g_variant_get_string(value, NULL), PF_CTL_QUOTED);
		fprintf(out, "%s=%s\n", key, text);
	}
}

static void print_refused_pairs(FILE *out, GVariantDict *vm)
{
	g_autoptr(GVariant) refused =
		g_variant_dict_lookup_value(vm, "refused", G_VARIANT_TYPE("a{st}"));
	GVariantIter iter;
	const char *reason;
	guint64 pages;

	if (!refused)
		return;
	g_variant_iter_init(&iter, refused);
	while (g_variant_iter_next(&iter, "{&st}", &reason, &pages)) {
		g_autofree char *key = g_strdup_printf("refused-%s", reason);
		g_autoptr(GVariant) value = g_variant_ref_sink(g_variant_new_uint64(pages));

		print_pair(out, key, value);
	}
}

static void print_machine_readable(FILE *out, GVariant *description)
{
	static const char *const keys[] = {"name", "uuid", "group", "state", "memory-kib",
		"pagefusion", "thp", "thp-setting", "active", "reason", "shim-connected",
		"additions-state", "additions-since", "agent-version", "kernel", "hinted", "fused",
		"shared-kib", "runs", "revoked", "over-quota", "discarded", "written", "busy",
		"ways-out", "maps", "maps-budget"};
	g_auto(GVariantDict) vm = G_VARIANT_DICT_INIT(description);

	for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
		g_autoptr(GVariant) value = g_variant_dict_lookup_value(&vm, keys[i], NULL);

		if (value)
			print_pair(out, keys[i], value);
	}
	print_refused_pairs(out, &vm);
}

PfCtlExit pf_ctl_show_vm_info(PfCtl *ctl)
{
	PfCtlExit code = PF_CTL_OK;
	g_autoptr(PfDbusManager) manager = pf_ctl_connect(ctl, &code);
	g_autoptr(GVariant) vm = NULL;
	g_autoptr(GError) error = NULL;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_get_vm_sync(
		    manager, ctl->args[0], pf_ctl_no_options(), &vm, NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	if (ctl->options.json)
		pf_ctl_write_json(ctl->out, json_gvariant_serialize(vm));
	else if (ctl->options.machine_readable)
		print_machine_readable(ctl->out, vm);
	else
		print_info(ctl->out, vm);
	return PF_CTL_OK;
}
