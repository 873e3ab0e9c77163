/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* modifyvm: one setting of one VM; silent when it is done. */
#include "host-service/ctl/client.h"

static PfCtlExit parse_on_off(PfCtl *ctl, gboolean *on)
{
	const char *value = ctl->options.pagefusion;

	if (!value)
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"nothing to change: use modifyvm VM --pagefusion on|off");
	*on = g_str_equal(value, "on");
	if (!*on && !g_str_equal(value, "off"))
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"--pagefusion cannot be '%s': give it 'on' or 'off'", value);
	return PF_CTL_OK;
}

static GVariant *make_settings(gboolean on)
{
	GVariantDict settings;

	g_variant_dict_init(&settings, NULL);
	g_variant_dict_insert(&settings, "pagefusion", "b", on);
	return g_variant_dict_end(&settings);
}

PfCtlExit pf_ctl_modify_vm(PfCtl *ctl)
{
	gboolean on = FALSE;
	PfCtlExit code = parse_on_off(ctl, &on);
	g_autoptr(PfDbusManager) manager = code == PF_CTL_OK ? pf_ctl_connect(ctl, &code) : NULL;
	g_autoptr(GError) error = NULL;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_modify_vm_sync(
		    manager, ctl->args[0], make_settings(on), NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	return PF_CTL_OK;
}
