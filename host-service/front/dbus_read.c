/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The methods and properties that show something. Each checks its arguments, asks the service what it needs for its
 * answer, and makes values of what comes (dbus_values.c). It may be of a moment ago (dbus_answers.c).
 *
 * What the service says may be wrong, but it is text and numbers that can be shown (front_protocol.h). It may be more than
 * a bus takes, and a message too large would end the connection: so an answer stops growing at MAX_REPLY_BYTES.
 */
#include "host-service/front/dbus_private.h"
#include "host-service/front/dbus_values.h"
#include "host-service/wire/front_protocol.h"
#include "pagefusion-version.h"
#include <string.h>

#define MAX_REPLY_BYTES ((gsize)16 << 20) /* half of what dbus-daemon's system bus takes */

/* A call that waits for the service. */
typedef struct Read {
	PfDbusCall *call;
	const struct Method *method;
	PfMetricQuery query;
	guint want;     /* of the service */
	char *vm;       /* the VM that was asked for, NULL: all or none */
	char *property; /* NULL: all of them, or none */
} Read;

typedef struct Method {
	const char *name;
	gboolean needs_libvirt;
	/* Takes the arguments. FALSE with error set: they are wrong. */
	gboolean (*parse)(Read *read, GVariant *parameters, GError **error);
	/* A floating reference, NULL with error set. The VM that was asked for is there. */
	GVariant *(*answer)(const Read *read, const PfFrontAnswer *answer, GError **error);
} Method;

static void read_free(Read *read)
{
	g_free(read->vm);
	g_free(read->property);
	g_free(read);
}

/* A dictionary in which no key is known: FALSE with error set when it is not empty. */
static gboolean check_options(GVariant *options, GError **error)
{
	GVariantIter iter;
	const char *key;

	g_variant_iter_init(&iter, options);
	if (!g_variant_iter_next(&iter, "{&sv}", &key, NULL))
		return TRUE;
	g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT,
		"option '%s' is not known to this version of the service: leave it out", key);
	return FALSE;
}

static void set_no_such_vm(GError **error, const char *vm)
{
	if (strlen(vm) > PF_METRIC_MAX_OBJECT)
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_NO_SUCH_VM,
			"no VM has a name that long: see 'pagefusionctl list vms'");
	else
		g_set_error(error, PF_DBUS_ERROR, PF_DBUS_E_NO_SUCH_VM,
			"no VM has the name or UUID '%s': see 'pagefusionctl list vms'", vm);
}

static gboolean check_size(gsize bytes, GError **error)
{
	if (bytes <= MAX_REPLY_BYTES)
		return TRUE;
	g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_FAILED,
		"there are too many VMs for one answer: ask for them one by one");
	return FALSE;
}

/* ListVMs */

static gboolean parse_list(Read *read, GVariant *parameters, GError **error)
{
	g_autoptr(GVariant) options = g_variant_get_child_value(parameters, 0);

	read->want = PF_FRONT_WANT_VMS;
	return check_options(options, error);
}

static GVariant *list_vms(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	g_auto(GVariantBuilder) builder;
	gsize bytes = 0;

	g_variant_builder_init(&builder, G_VARIANT_TYPE("aa{sv}"));
	for (guint i = 0; i < answer->vms->len; i++) {
		GVariant *vm = pf_dbus_describe_vm(g_ptr_array_index(answer->vms, i));

		bytes += g_variant_get_size(vm);
		g_variant_builder_add_value(&builder, vm);
		if (!check_size(bytes, error))
			return NULL;
	}
	return g_variant_new("(aa{sv})", &builder);
}

/* GetVM */

static gboolean parse_get(Read *read, GVariant *parameters, GError **error)
{
	g_autoptr(GVariant) options = NULL;

	g_variant_get(parameters, "(s@a{sv})", &read->vm, &options);
	read->want = PF_FRONT_WANT_VMS;
	return check_options(options, error);
}

static GVariant *get_vm(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	return g_variant_new("(@a{sv})", pf_dbus_describe_vm(g_ptr_array_index(answer->vms, 0)));
}

/* QueryMetrics */

static gboolean parse_names(
	PfMetricQuery *query, const char *object, GVariant *names, GError **error)
{
	gsize n_patterns;
	g_autofree const char **patterns = g_variant_get_strv(names, &n_patterns);
	g_autoptr(GError) wrong = NULL;

	if (pf_metric_query_parse(query, object, patterns, n_patterns, &wrong))
		return TRUE;
	g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_INVALID_ARGUMENT, wrong->message);
	return FALSE;
}

static gboolean parse_query(Read *read, GVariant *parameters, GError **error)
{
	const char *object;
	g_autoptr(GVariant) names = NULL;
	g_autoptr(GVariant) options = NULL;

	g_variant_get(parameters, "(&s@as@a{sv})", &object, &names, &options);
	if (!check_options(options, error) || !parse_names(&read->query, object, names, error))
		return FALSE;
	if (read->query.object != PF_METRIC_OBJECT_VM)
		read->want |= PF_FRONT_WANT_HOST;
	if (read->query.object != PF_METRIC_OBJECT_HOST)
		read->want |= PF_FRONT_WANT_VMS;
	if (read->query.object == PF_METRIC_OBJECT_VM)
		read->vm = g_strdup(object);
	return TRUE;
}

/* Adds a VM's values to those of others; their size. */
static gsize add_vm_values(GVariantBuilder *values, const PfMetricQuery *query, const PfVmView *vm)
{
	GVariantBuilder builder;
	g_autoptr(GVariant) added = NULL;
	GVariantIter iter;
	GVariant *value;

	g_variant_builder_init(&builder, G_VARIANT_TYPE(PF_DBUS_VALUES));
	pf_dbus_add_vm_values(&builder, query, vm);
	added = g_variant_ref_sink(g_variant_builder_end(&builder));
	g_variant_iter_init(&iter, added);
	while ((value = g_variant_iter_next_value(&iter))) {
		g_variant_builder_add_value(values, value);
		g_variant_unref(value);
	}
	return g_variant_get_size(added);
}

static GVariant *query_metrics(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	g_auto(GVariantBuilder) builder;
	gsize bytes = 0;

	g_variant_builder_init(&builder, G_VARIANT_TYPE(PF_DBUS_VALUES));
	if (read->want & PF_FRONT_WANT_HOST)
		pf_dbus_add_host_values(&builder, &read->query, &answer->host);
	for (guint i = 0; i < answer->vms->len; i++) {
		bytes += add_vm_values(&builder, &read->query, g_ptr_array_index(answer->vms, i));
		if (!check_size(bytes, error))
			return NULL;
	}
	return g_variant_new("(a(ssts))", &builder);
}

/* Properties: GDBus has checked their names. */

static gboolean parse_property(Read *read, GVariant *parameters, GError **error)
{
	g_variant_get(parameters, "(&ss)", NULL, &read->property);
	return TRUE;
}

static gboolean parse_properties(Read *read, GVariant *parameters, GError **error)
{
	return TRUE;
}

static GVariant *property(const char *name, const PfFrontAnswer *answer)
{
	if (strcmp(name, "Version") == 0)
		return g_variant_new_string(PF_VERSION);
	if (strcmp(name, "LibvirtConnected") == 0)
		return g_variant_new_boolean(answer->connected);
	return pf_dbus_text(answer->reason);
}

static GVariant *get_property(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	return g_variant_new("(v)", property(read->property, answer));
}

static GVariant *get_properties(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	static const char *const names[] = {"Version", "LibvirtConnected", "LibvirtReason"};
	GVariantBuilder builder;

	g_variant_builder_init(&builder, G_VARIANT_TYPE_VARDICT);
	for (guint i = 0; i < G_N_ELEMENTS(names); i++)
		g_variant_builder_add(&builder, "{sv}", names[i], property(names[i], answer));
	return g_variant_new("(a{sv})", &builder);
}

/* All of them */

static const Method methods[] = {
	{"ListVMs", TRUE, parse_list, list_vms},
	{"GetVM", TRUE, parse_get, get_vm},
	{"QueryMetrics", TRUE, parse_query, query_metrics},
	{"Get", FALSE, parse_property, get_property},
	{"GetAll", FALSE, parse_properties, get_properties},
};

static GVariant *make_reply(const Read *read, const PfFrontAnswer *answer, GError **error)
{
	if (read->method->needs_libvirt && !answer->connected) {
		g_set_error_literal(error, PF_DBUS_ERROR, PF_DBUS_E_NO_LIBVIRT,
			answer->reason[0] ? answer->reason : "libvirt is not connected");
		return NULL;
	}
	if (!answer->found) {
		set_no_such_vm(error, read->vm);
		return NULL;
	}
	return read->method->answer(read, answer, error);
}

static void fail_read(const Read *read, const GError *error)
{
	if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_BUSY))
		pf_dbus_call_fail_literal(
			read->call, G_DBUS_ERROR, G_DBUS_ERROR_LIMITS_EXCEEDED, error->message);
	else
		pf_dbus_call_fail_literal(read->call, PF_DBUS_ERROR,
			error->domain == PF_DBUS_ERROR ? error->code : PF_DBUS_E_FAILED,
			error->message);
}

static void on_answer(const PfFrontAnswer *answer, const GError *failed, void *userdata)
{
	Read *read = userdata;
	g_autoptr(GError) error = NULL;
	GVariant *reply = answer ? make_reply(read, answer, &error) : NULL;

	if (reply)
		pf_dbus_call_return(read->call, reply);
	else
		fail_read(read, answer ? error : failed);
	read_free(read);
}

void pf_dbus_read(PfDbusFront *front, PfDbusCall *call)
{
	const char *method = pf_dbus_call_method(call);
	g_autoptr(GError) error = NULL;
	Read *read = g_new0(Read, 1);
	guint i = 0;

	/* One of them it is: the interface has no other, and GDBus lets nothing else through. */
	while (i < G_N_ELEMENTS(methods) - 1 && strcmp(method, methods[i].name) != 0)
		i++;
	read->call = call;
	read->method = &methods[i];
	if (!read->method->parse(read, pf_dbus_call_parameters(call), &error)) {
		pf_dbus_call_fail(call, error);
		read_free(read);
		return;
	}
	pf_dbus_answers_ask(front->answers, read->want, read->vm, on_answer, read);
}
