/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The checks of the broker's socket. Both structs are plain memory, so the checks are about what a
 * wrong or hostile peer could put there: text without an end, counts beyond the arrays, numbers that
 * overflow when they are added or shifted.
 */
#include "host-service/wire/broker_protocol.h"
#include <string.h>

bool pf_broker_is_uuid(const char *text)
{
	size_t i;

	for (i = 0; i < PF_UUID_TEXT - 1; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? text[i] != '-' : !g_ascii_isxdigit(text[i]))
			return false;
	}
	return text[i] == 0;
}

static bool ends(const char *text, size_t room)
{
	return memchr(text, 0, room) != NULL;
}

/* Text goes into log lines and error messages, so a control character has no business there. */
static bool is_printable(const char *text, size_t room)
{
	if (!ends(text, room) || !g_utf8_validate(text, -1, NULL))
		return false;
	for (const char *p = text; *p; p = g_utf8_next_char(p))
		if (g_unichar_iscntrl(g_utf8_get_char(p)))
			return false;
	return true;
}

static bool ranges_are_valid(const PfBrokerRequest *request)
{
	if (request->n_ranges == 0 || request->n_ranges > PF_SESSION_MAX_RAM_RANGES)
		return false;
	for (size_t i = 0; i < request->n_ranges; i++) {
		const PfGuestRange *range = &request->ranges[i];

		if (range->n_pages == 0 || range->n_pages > PF_GFN_END ||
			range->first.v > PF_GFN_END - range->n_pages)
			return false;
	}
	return true;
}

static bool thp_is_valid(uint32_t thp)
{
	return thp <= PF_THP_ALL;
}

static bool group_is_valid(const PfBrokerRequest *request)
{
	if (!ends(request->group, sizeof(request->group)))
		return false;
	return request->changes & PF_VM_SET_GROUP ? pf_group_name_is_valid(request->group)
						  : request->group[0] == 0;
}

/* A setting that is not to be changed is zero. */
static bool changes_are_valid(const PfBrokerRequest *request)
{
	if (request->changes == 0 ||
		request->changes > (PF_VM_SET_ENABLED | PF_VM_SET_THP | PF_VM_SET_GROUP))
		return false;
	return request->enabled <= !!(request->changes & PF_VM_SET_ENABLED) &&
	       thp_is_valid(request->thp) &&
	       (request->thp == 0 || request->changes & PF_VM_SET_THP) && group_is_valid(request);
}

bool pf_broker_check_request(const PfBrokerRequest *request, size_t size, size_t n_fds)
{
	if (size != sizeof(*request) || n_fds != 0)
		return false;
	if (request->magic != PF_BROKER_MAGIC || request->id == 0)
		return false;
	if (!is_printable(request->vm, sizeof(request->vm)))
		return false;
	switch (request->type) {
	case PF_BROKER_OPEN_USERFAULTFD:
	case PF_BROKER_OPEN_CHANNEL:
		return pf_broker_is_uuid(request->vm);
	case PF_BROKER_TRANSLATE:
		return pf_broker_is_uuid(request->vm) && ranges_are_valid(request);
	case PF_BROKER_MODIFY:
		return request->vm[0] != 0 && changes_are_valid(request);
	case PF_BROKER_INSERT_ADDITIONS:
		return request->vm[0] != 0 && request->force == 0;
	case PF_BROKER_EJECT_ADDITIONS:
		return request->vm[0] != 0 && request->force <= 1;
	default:
		return false;
	}
}

bool pf_broker_may_ask(PfBrokerClient client, uint32_t type)
{
	return (client == PF_BROKER_CLIENT_FRONT) ==
	       (type == PF_BROKER_MODIFY || type == PF_BROKER_INSERT_ADDITIONS ||
		       type == PF_BROKER_EJECT_ADDITIONS);
}

static bool domain_is_valid(const PfDomain *domain)
{
	return pf_broker_is_uuid(domain->uuid) && ends(domain->name, sizeof(domain->name)) &&
	       ends(domain->group, sizeof(domain->group)) &&
	       ends(domain->state, sizeof(domain->state)) &&
	       ends(domain->refusal, sizeof(domain->refusal)) &&
	       ends(domain->channel, sizeof(domain->channel)) &&
	       thp_is_valid((uint32_t)domain->thp) && domain->pid >= 0;
}

bool pf_broker_check_message(const PfBrokerMessage *message, size_t size)
{
	if (size != sizeof(*message) || message->magic != PF_BROKER_MAGIC)
		return false;
	if (!ends(message->text, sizeof(message->text)))
		return false;
	switch (message->type) {
	case PF_BROKER_ANSWER:
		return message->id != 0 && message->n_hvas <= PF_SESSION_MAX_RAM_RANGES;
	case PF_BROKER_DOMAIN:
		return domain_is_valid(&message->body.domain);
	case PF_BROKER_GONE:
		return ends(message->body.domain.uuid, PF_UUID_TEXT) &&
		       pf_broker_is_uuid(message->body.domain.uuid);
	case PF_BROKER_CONNECTED:
	case PF_BROKER_LIBVIRT_AWAY:
		return true;
	default:
		return false;
	}
}
