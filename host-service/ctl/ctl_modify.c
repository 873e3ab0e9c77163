/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* modifyvm: settings of one VM, changed together; silent when it is done. */
#include "host-service/config/group_name.h"
#include "host-service/config/thp.h"
#include "host-service/ctl/client.h"

static PfCtlExit check_pagefusion(PfCtl *ctl)
{
	const char *value = ctl->options.pagefusion;

	if (value && !g_str_equal(value, "on") && !g_str_equal(value, "off"))
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"--pagefusion cannot be '%s': give it 'on' or 'off'", value);
	if (ctl->options.thp && g_strcmp0(value, "off") == 0)
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"a VM without page fusion has no policy for huge pages: leave --thp out");
	if (ctl->options.group && g_strcmp0(value, "off") == 0)
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"a VM without page fusion is in no trust group: leave --group out");
	return PF_CTL_OK;
}

static PfCtlExit check_group(PfCtl *ctl)
{
	const char *value = ctl->options.group;

	if (value && !pf_group_name_is_valid(value))
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"--group cannot be '%s': give it " PF_GROUP_NAME_RULE, value);
	return PF_CTL_OK;
}

static PfCtlExit check_thp(PfCtl *ctl)
{
	const char *value = ctl->options.thp;
	PfThp thp;

	if (value && !pf_thp_parse(value, &thp))
		return pf_ctl_fail(ctl, PF_CTL_USAGE,
			"--thp cannot be '%s': give it 'preserve', 'balanced', 'all' or 'default'",
			value);
	return PF_CTL_OK;
}

static PfCtlExit check_options(PfCtl *ctl)
{
	PfCtlExit code;

	if (!ctl->options.pagefusion && !ctl->options.thp && !ctl->options.group)
		return pf_ctl_fail(
			ctl, PF_CTL_USAGE, "nothing to change: use " PF_CTL_MODIFY_USAGE);
	code = check_pagefusion(ctl);
	if (code == PF_CTL_OK)
		code = check_group(ctl);
	return code == PF_CTL_OK ? check_thp(ctl) : code;
}

static GVariant *make_settings(const PfCtlOptions *options)
{
	GVariantDict settings;

	g_variant_dict_init(&settings, NULL);
	if (options->pagefusion)
		g_variant_dict_insert(
			&settings, "pagefusion", "b", g_str_equal(options->pagefusion, "on"));
	if (options->thp)
		g_variant_dict_insert(&settings, "thp", "s", options->thp);
	if (options->group)
		g_variant_dict_insert(&settings, "group", "s", options->group);
	return g_variant_dict_end(&settings);
}

PfCtlExit pf_ctl_modify_vm(PfCtl *ctl)
{
	PfCtlExit code = check_options(ctl);
	g_autoptr(PfDbusManager) manager = code == PF_CTL_OK ? pf_ctl_connect(ctl, &code) : NULL;
	g_autoptr(GError) error = NULL;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_modify_vm_sync(
		    manager, ctl->args[0], make_settings(&ctl->options), NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	return PF_CTL_OK;
}
