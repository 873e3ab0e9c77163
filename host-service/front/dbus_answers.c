/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Answers of the service, shared by calls on the bus, so that whoever may call cannot make the service busy: what was
 * asked for already is not asked for again, while the answer is under way and SHARED_MS after it has come. For single
 * VMs there are endless names to ask for; when MAX_NAMED of them are there, one is looked for in the list of all VMs, which
 * is shared too. So the service hears at most MAX_NAMED queries for one VM and a few for all in SHARED_MS.
 */
#include "host-service/front/dbus_private.h"
#include <string.h>

#define SHARED_MS 100
#define MAX_NAMED 16

typedef struct Asker {
	char *vm; /* to be looked for in an answer about all; NULL: the answer as it is */
	PfDbusAnswered answered;
	void *userdata;
} Asker;

/* What was asked of the service. */
typedef struct Asked {
	PfDbusAnswers *answers; /* where others find it; NULL: nobody does any more */
	guint want;
	char *vm;              /* NULL: all or none */
	GQueue askers;         /* of Asker, owned: they wait for the answer */
	PfFrontAnswer *answer; /* NULL: not there yet */
	guint timer;           /* until it is too old */
} Asked;

struct PfDbusAnswers {
	PfFront *service;
	GQueue asked; /* of Asked: owned once they have their answer, and by the query before */
};

static void asked_free(Asked *asked)
{
	g_clear_handle_id(&asked->timer, g_source_remove);
	g_clear_pointer(&asked->answer, pf_front_answer_free);
	g_free(asked->vm);
	g_free(asked);
}

static const PfVmView *find_vm(const PfFrontAnswer *answer, const char *vm)
{
	g_autofree char *uuid = g_ascii_strdown(vm, -1);
	const PfVmView *found = NULL;

	for (guint i = 0; i < answer->vms->len; i++) {
		const PfVmView *view = g_ptr_array_index(answer->vms, i);

		if (strcmp(view->domain->uuid, uuid) == 0)
			return view;
		if (strcmp(view->domain->name, vm) == 0)
			found = view;
	}
	return found;
}

static void tell_of_one(const Asker *asker, const PfFrontAnswer *all)
{
	g_autoptr(GPtrArray) vms = g_ptr_array_new();
	const PfVmView *vm = find_vm(all, asker->vm);
	PfFrontAnswer answer = *all;

	if (vm)
		g_ptr_array_add(vms, (gpointer)vm);
	answer.vms = vms;
	answer.found = vm != NULL;
	asker->answered(&answer, NULL, asker->userdata);
}

/* The asker is consumed. */
static void tell(Asker *asker, const PfFrontAnswer *answer, const GError *error)
{
	if (answer && asker->vm)
		tell_of_one(asker, answer);
	else
		asker->answered(answer, error, asker->userdata);
	g_free(asker->vm);
	g_free(asker);
}

static gboolean on_old(gpointer userdata)
{
	Asked *asked = userdata;

	asked->timer = 0;
	g_queue_remove(&asked->answers->asked, asked);
	asked_free(asked);
	return G_SOURCE_REMOVE;
}

static void on_answer(GObject *source, GAsyncResult *result, void *userdata)
{
	Asked *asked = userdata;
	g_autoptr(GError) error = NULL;
	Asker *asker;

	asked->answer = pf_front_query_finish(result, &error);
	while ((asker = g_queue_pop_head(&asked->askers)))
		tell(asker, asked->answer, error);
	if (asked->answers && asked->answer) {
		asked->timer = g_timeout_add(SHARED_MS, on_old, asked);
		return;
	}
	if (asked->answers)
		g_queue_remove(&asked->answers->asked, asked);
	asked_free(asked);
}

static Asked *find(const PfDbusAnswers *answers, guint want, const char *vm)
{
	for (const GList *item = answers->asked.head; item; item = item->next) {
		Asked *asked = item->data;

		if (asked->want == want && g_strcmp0(asked->vm, vm) == 0)
			return asked;
	}
	return NULL;
}

static Asked *ask(PfDbusAnswers *answers, guint want, const char *vm)
{
	Asked *asked = g_new0(Asked, 1);

	asked->answers = answers;
	asked->want = want;
	asked->vm = g_strdup(vm);
	g_queue_init(&asked->askers);
	g_queue_push_tail(&answers->asked, asked);
	pf_front_query(answers->service, want, vm, on_answer, asked);
	return asked;
}

static guint count_named(const PfDbusAnswers *answers)
{
	guint n = 0;

	for (const GList *item = answers->asked.head; item; item = item->next)
		n += ((const Asked *)item->data)->vm != NULL;
	return n;
}

void pf_dbus_answers_ask(
	PfDbusAnswers *answers, guint want, const char *vm, PfDbusAnswered answered, void *userdata)
{
	Asked *asked = find(answers, want, vm);
	gboolean among_all = !asked && vm && count_named(answers) >= MAX_NAMED;
	Asker *asker = g_new(Asker, 1);

	if (among_all)
		asked = find(answers, want, NULL);
	if (!asked)
		asked = ask(answers, want, among_all ? NULL : vm);
	*asker = (Asker){among_all ? g_strdup(vm) : NULL, answered, userdata};
	if (asked->answer)
		tell(asker, asked->answer, NULL);
	else
		g_queue_push_tail(&asked->askers, asker);
}

void pf_dbus_answers_forget(PfDbusAnswers *answers)
{
	Asked *asked;

	while ((asked = g_queue_pop_head(&answers->asked))) {
		asked->answers = NULL;
		if (asked->answer)
			asked_free(asked);
	}
}

PfDbusAnswers *pf_dbus_answers_new(PfFront *service)
{
	PfDbusAnswers *answers = g_rc_box_new0(PfDbusAnswers);

	answers->service = service;
	g_queue_init(&answers->asked);
	return answers;
}

PfDbusAnswers *pf_dbus_answers_ref(PfDbusAnswers *answers)
{
	return g_rc_box_acquire(answers);
}

static void finish_answers(gpointer data)
{
	pf_dbus_answers_forget(data);
}

void pf_dbus_answers_unref(PfDbusAnswers *answers)
{
	g_rc_box_release_full(answers, finish_answers);
}
