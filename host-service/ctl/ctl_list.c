/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* list vms: a line for each VM, or their dictionaries as JSON. */
#include "host-service/ctl/client.h"
#include "host-service/ctl/output.h"
#include <inttypes.h>

static char *quoted(GVariantDict *vm, const char *key)
{
	const char *string = "";

	g_variant_dict_lookup(vm, key, "&s", &string);
	return pf_ctl_escape(string, PF_CTL_QUOTED);
}

static void print_details(FILE *out, GVariantDict *vm)
{
	g_autofree char *group = quoted(vm, "group");
	g_autofree char *state = NULL;
	const char *raw_state = "";
	g_autofree char *additions = NULL;
	const char *raw_additions = "unknown";
	gboolean enabled = FALSE, active = FALSE;
	guint64 shared_kib = 0;

	g_variant_dict_lookup(vm, "state", "&s", &raw_state);
	g_variant_dict_lookup(vm, "pagefusion", "b", &enabled);
	g_variant_dict_lookup(vm, "shared-kib", "t", &shared_kib);
	g_variant_dict_lookup(vm, "active", "b", &active);
	g_variant_dict_lookup(vm, "additions-state", "&s", &raw_additions);
	state = pf_ctl_escape(raw_state, PF_CTL_PLAIN);
	additions = pf_ctl_escape(raw_additions, PF_CTL_PLAIN);
	fprintf(out, " %s, page fusion %s, group %s, %" PRIu64 " kB shared", state,
		enabled ? "on" : "off", group, shared_kib);
	if (active)
		fprintf(out, ", additions %s", additions);
}

static void print_vm(PfCtl *ctl, GVariant *description)
{
	g_auto(GVariantDict) vm = G_VARIANT_DICT_INIT(description);
	g_autofree char *name = quoted(&vm, "name");
	g_autofree char *uuid = NULL;
	const char *raw_uuid = "";

	g_variant_dict_lookup(&vm, "uuid", "&s", &raw_uuid);
	uuid = pf_ctl_escape(raw_uuid, PF_CTL_PLAIN);
	fprintf(ctl->out, "%s {%s}", name, uuid);
	if (ctl->options.long_list)
		print_details(ctl->out, &vm);
	fputc('\n', ctl->out);
}

PfCtlExit pf_ctl_list_vms(PfCtl *ctl)
{
	PfCtlExit code = PF_CTL_OK;
	g_autoptr(PfDbusManager) manager = pf_ctl_connect(ctl, &code);
	g_autoptr(GVariant) vms = NULL;
	g_autoptr(GError) error = NULL;
	GVariantIter iter;
	GVariant *vm;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_list_vms_sync(manager, pf_ctl_no_options(), &vms, NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	if (ctl->options.json) {
		pf_ctl_write_json(ctl->out, json_gvariant_serialize(vms));
		return PF_CTL_OK;
	}
	g_variant_iter_init(&iter, vms);
	while ((vm = g_variant_iter_next_value(&iter))) {
		print_vm(ctl, vm);
		g_variant_unref(vm);
	}
	return PF_CTL_OK;
}
