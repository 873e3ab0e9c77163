/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* additions insert and eject: the CD with the guest additions, and what is to be done with it in the guest. */
#include "host-service/ctl/client.h"
#include "host-service/ctl/output.h"

/* libvirt waits so long for others who change the VM, and then for the guest. */
#define TIMEOUT_MS 60000

typedef struct Change {
	const char *drive; /* empty: there was none */
	gboolean changed, running, of_drive;
} Change;

static Change read_change(GVariant *result)
{
	Change change = {.drive = ""};

	g_variant_lookup(result, "drive", "&s", &change.drive);
	g_variant_lookup(result, "changed", "b", &change.changed);
	g_variant_lookup(result, "running", "b", &change.running);
	g_variant_lookup(result, "of-drive", "b", &change.of_drive);
	return change;
}

static void say_inserted(const PfCtl *ctl, const Change *change, const char *vm, const char *drive)
{
	if (!change->changed)
		fprintf(ctl->out,
			"The guest additions are in drive %s of VM %s already.\n"
			"If the host has newer ones by now: eject them and insert them again.\n",
			drive, vm);
	else if (change->running)
		fprintf(ctl->out, "The guest additions are in drive %s of VM %s now.\n", drive, vm);
	else
		fprintf(ctl->out,
			"The guest additions are in %s %s of VM %s when it is started next.\n",
			change->of_drive ? "the new drive" : "drive", drive, vm);
	fprintf(ctl->out,
		"In the guest, as root:\n"
		"  mount -r /dev/disk/by-label/PAGEFUSION /mnt    (or: mount -r /dev/sr0 /mnt)\n"
		"  sh /mnt/install.sh\n"
		"  umount /mnt\n"
		"Then here: pagefusionctl additions eject %s\n",
		vm);
}

static void say_ejected(const PfCtl *ctl, const Change *change, const char *vm, const char *drive)
{
	if (!change->changed)
		fprintf(ctl->out, "The guest additions are in no drive of VM %s.\n", vm);
	else if (change->of_drive)
		fprintf(ctl->out,
			"The guest additions are ejected from drive %s of VM %s; the drive, which "
			"came with them, is %s.\n",
			drive, vm,
			change->running ? "gone when the VM is started next" : "gone too");
	else
		fprintf(ctl->out, "The guest additions are ejected from drive %s of VM %s.\n",
			drive, vm);
}

static void say(const PfCtl *ctl, GVariant *result, gboolean insert)
{
	Change change = read_change(result);
	g_autofree char *vm = pf_ctl_escape(ctl->args[0], PF_CTL_PLAIN);
	g_autofree char *drive = pf_ctl_escape(change.drive, PF_CTL_PLAIN);

	if (insert)
		say_inserted(ctl, &change, vm, drive);
	else
		say_ejected(ctl, &change, vm, drive);
}

static PfDbusManager *connect_patiently(PfCtl *ctl, PfCtlExit *code)
{
	PfDbusManager *manager = pf_ctl_connect(ctl, code);

	if (manager)
		g_dbus_proxy_set_default_timeout(G_DBUS_PROXY(manager), TIMEOUT_MS);
	return manager;
}

PfCtlExit pf_ctl_insert_additions(PfCtl *ctl)
{
	PfCtlExit code = PF_CTL_OK;
	g_autoptr(PfDbusManager) manager = connect_patiently(ctl, &code);
	g_autoptr(GVariant) result = NULL;
	g_autoptr(GError) error = NULL;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_insert_additions_sync(
		    manager, ctl->args[0], pf_ctl_no_options(), &result, NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	say(ctl, result, TRUE);
	return PF_CTL_OK;
}

static GVariant *make_options(gboolean force)
{
	GVariantDict options;

	g_variant_dict_init(&options, NULL);
	if (force)
		g_variant_dict_insert(&options, "force", "b", TRUE);
	return g_variant_dict_end(&options);
}

PfCtlExit pf_ctl_eject_additions(PfCtl *ctl)
{
	PfCtlExit code = PF_CTL_OK;
	g_autoptr(PfDbusManager) manager = connect_patiently(ctl, &code);
	g_autoptr(GVariant) result = NULL;
	g_autoptr(GError) error = NULL;

	if (!manager)
		return code;
	if (!pf_dbus_manager_call_eject_additions_sync(
		    manager, ctl->args[0], make_options(ctl->options.force), &result, NULL, &error))
		return pf_ctl_call_failed(ctl, error);
	say(ctl, result, FALSE);
	return PF_CTL_OK;
}
