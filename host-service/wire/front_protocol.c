/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The checks of the front's socket. What a service says is shown on the bus and on terminals, and its enums index tables:
 * so numbers that are no enum's or boolean's end the conversation, and text is cleaned where it comes in. Counters may
 * have any value. Whether a message is due is front.c's to say.
 */
#include "host-service/wire/front_protocol.h"
#include "common/text.h"
#include <string.h>

#define STORE_PREFIX "store-"
#define STORE_DIGITS 32

bool pf_front_check_query(const PfFrontQuery *query, size_t size)
{
	if (size != sizeof(*query) || query->magic != PF_FRONT_MAGIC || query->id == 0)
		return false;
	if (query->want & ~(uint32_t)(PF_FRONT_WANT_HOST | PF_FRONT_WANT_VMS))
		return false;
	if (!memchr(query->vm, 0, sizeof(query->vm)))
		return false;
	return query->vm[0] == 0 || query->want & PF_FRONT_WANT_VMS;
}

/* room is at most PF_FRONT_MAX_REASON, the longest text that there is. */
static void clean(char *text, size_t room)
{
	char raw[PF_FRONT_MAX_REASON];

	memcpy(raw, text, room);
	raw[room - 1] = 0;
	memset(text, 0, room);
	pf_text_clean(text, room, raw);
}

static bool is_boolean(gboolean value)
{
	return value == FALSE || value == TRUE;
}

static bool check_domain(PfDomain *domain)
{
	clean(domain->uuid, sizeof(domain->uuid));
	clean(domain->name, sizeof(domain->name));
	clean(domain->group, sizeof(domain->group));
	clean(domain->state, sizeof(domain->state));
	clean(domain->refusal, sizeof(domain->refusal));
	clean(domain->channel, sizeof(domain->channel));
	return (uint32_t)domain->thp <= PF_THP_ALL && is_boolean(domain->enabled) &&
	       is_boolean(domain->active) && is_boolean(domain->has_shim) &&
	       is_boolean(domain->port_open);
}

static bool check_figures(const PfVmFigures *figures)
{
	return is_boolean(figures->shim_connected) && figures->thp != PF_THP_DEFAULT &&
	       (uint32_t)figures->additions <= PF_ADDITIONS_TOO_OLD &&
	       (uint32_t)figures->thp <= PF_THP_ALL &&
	       (uint32_t)figures->stats.quota <= PF_QUOTA_INDEX;
}

static bool check_vm(PfFrontVm *vm)
{
	clean(vm->reason, sizeof(vm->reason));
	clean(vm->agent_version, sizeof(vm->agent_version));
	clean(vm->kernel, sizeof(vm->kernel));
	return check_domain(&vm->domain) && check_figures(&vm->figures);
}

static bool check_end(PfFrontEnd *end)
{
	clean(end->reason, sizeof(end->reason));
	return end->connected <= 1 && end->found <= 1;
}

bool pf_front_is_store_name(const char *name)
{
	const char *digits = name + strlen(STORE_PREFIX);

	if (strncmp(name, STORE_PREFIX, strlen(STORE_PREFIX)) != 0)
		return false;
	for (size_t i = 0; i < STORE_DIGITS; i++)
		if (!g_ascii_isxdigit(digits[i]) || g_ascii_isupper(digits[i]))
			return false;
	return digits[STORE_DIGITS] == 0;
}

bool pf_front_check_message(PfFrontMessage *message, size_t size, size_t n_fds)
{
	if (size != sizeof(*message) || message->magic != PF_FRONT_MAGIC)
		return false;
	if (n_fds != (message->type == PF_FRONT_KEEP ? 1 : 0))
		return false;
	switch (message->type) {
	case PF_FRONT_HOST:
		return message->id != 0 && is_boolean(message->body.host.pressure);
	case PF_FRONT_VM:
		return message->id != 0 && check_vm(&message->body.vm);
	case PF_FRONT_END:
		return message->id != 0 && check_end(&message->body.end);
	case PF_FRONT_KEEP:
	case PF_FRONT_DROP:
		return message->id == 0 && pf_front_is_store_name(message->body.store);
	default:
		return false;
	}
}
