/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the broker reads: packets from the service, and QEMU's answers to gpa2hva. What passes the
 * check keeps the promises that the code behind it relies on.
 */
#include "host-service/broker_protocol.h"
#include "host-service/qemu_process.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void check_request(const uint8_t *data, size_t size)
{
	PfBrokerRequest request = {0};

	memcpy(&request, data, MIN(size, sizeof(request)));
	if (!pf_broker_check_request(&request, size, 0))
		return;
	require(size == sizeof(request) && request.id != 0);
	require(strlen(request.vm) < sizeof(request.vm));
	if (request.type == PF_BROKER_MODIFY)
		require(request.changes != 0 && request.enabled <= 1 && request.thp <= PF_THP_ALL);
	if (request.type != PF_BROKER_TRANSLATE)
		return;
	require(request.n_ranges >= 1 && request.n_ranges <= PF_SESSION_MAX_RAM_RANGES);
	for (uint32_t i = 0; i < request.n_ranges; i++) {
		uint64_t last = request.ranges[i].first.v + (request.ranges[i].n_pages - 1);

		require(last >= request.ranges[i].first.v && last < PF_GFN_END);
	}
}

static void check_message(const uint8_t *data, size_t size)
{
	PfBrokerMessage message = {0};

	memcpy(&message, data, MIN(size, sizeof(message)));
	if (pf_broker_check_message(&message, size) && message.type == PF_BROKER_DOMAIN)
		require(strlen(message.body.domain.name) < sizeof(message.body.domain.name));
}

static void check_reply(const uint8_t *data, size_t size)
{
	g_autofree char *reply = g_strndup((const char *)data, size);
	PfHva hva = {0};

	if (pf_qemu_parse_gpa2hva(reply, 0x1000, &hva))
		require(hva.v != 0 && hva.v % PF_PAGE_SIZE == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	check_request(data, size);
	check_message(data, size);
	check_reply(data, size);
	return 0;
}
