/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What the broker and its clients say to each other: one struct a packet (packet.h) over a
 * SOCK_SEQPACKET socket pair, at most one descriptor with it. Both ends are the same binary, so
 * there is no version. The service asks, each request gets one answer with its id; events come at
 * any time. The front has a socket of its own, for other requests, and hears of no events. The
 * broker takes both for hostile: pf_broker_check_request() and pf_broker_may_ask() are the only way
 * in.
 */
#include "host-service/wire/broker.h"
#include "proto/limits.h"
#include <assert.h>
#include <stdbool.h>

#define PF_BROKER_MAGIC     0x31424650u /* "PFB1" */
#define PF_BROKER_MAX_VM    256         /* bytes of a name or UUID, with the final 0 */
#define PF_BROKER_MAX_TEXT  512         /* bytes of a message, with the final 0 */
#define PF_BROKER_MAX_QUEUE 4096        /* requests that wait in a client for room in the socket */

typedef enum PfBrokerRequestType {
	PF_BROKER_OPEN_USERFAULTFD = 1, /* vm: a UUID; answer: a descriptor */
	PF_BROKER_OPEN_CHANNEL = 2,     /* vm: a UUID; answer: a descriptor */
	PF_BROKER_TRANSLATE = 3,        /* vm: a UUID, ranges; answer: hvas, as many */
	/* Of the front alone; vm: a name or UUID. */
	PF_BROKER_MODIFY = 4,           /* changes, enabled, thp, group */
	PF_BROKER_INSERT_ADDITIONS = 5, /* answer: additions */
	PF_BROKER_EJECT_ADDITIONS = 6,  /* force; answer: additions */
} PfBrokerRequestType;

typedef enum PfBrokerClient {
	PF_BROKER_CLIENT_SERVICE,
	PF_BROKER_CLIENT_FRONT,
} PfBrokerClient;

/* What a request has no use for is zero. */
typedef struct PfBrokerRequest {
	uint32_t magic;
	uint32_t type;    /* PfBrokerRequestType */
	uint64_t id;      /* chosen by the client, never 0 */
	uint32_t changes; /* PfVmSetting bits, at least one */
	union {
		uint32_t enabled; /* MODIFY */
		uint32_t force;   /* EJECT_ADDITIONS */
	};
	uint32_t thp; /* PfThp */
	uint32_t n_ranges;
	char vm[PF_BROKER_MAX_VM];
	char group[PF_GROUP_NAME_MAX + 1];
	PfGuestRange ranges[PF_SESSION_MAX_RAM_RANGES];
} PfBrokerRequest;
static_assert(sizeof(PfBrokerRequest) == 32 + 256 + 64 + 64 * 16, "no holes");

typedef enum PfBrokerMessageType {
	PF_BROKER_ANSWER = 64,       /* id, error and text; or hvas, additions, or a descriptor */
	PF_BROKER_DOMAIN = 65,       /* domain: changed or new */
	PF_BROKER_GONE = 66,         /* domain.uuid alone */
	PF_BROKER_CONNECTED = 67,    /* libvirt came, and what domains it has was said */
	PF_BROKER_LIBVIRT_AWAY = 68, /* text: the reason */
} PfBrokerMessageType;

/* An answer or an event. */
typedef struct PfBrokerMessage {
	uint32_t magic;
	uint32_t type; /* PfBrokerMessageType */
	uint64_t id;   /* of the request; 0 in events */
	int32_t error; /* GIOErrorEnum, or -1: none */
	uint32_t n_hvas;
	char text[PF_BROKER_MAX_TEXT];
	union {
		PfHva hvas[PF_SESSION_MAX_RAM_RANGES];
		PfAdditionsChange additions;
		PfDomain domain;
	} body;
} PfBrokerMessage;

/*
 * Whether size bytes with n_fds descriptors are a request that the broker may act on: right size
 * and type, text that ends and is UTF-8 without control characters, a UUID where one is due, ranges
 * inside guest-physical space.
 */
bool pf_broker_check_request(const PfBrokerRequest *request, size_t size, size_t n_fds);

/* Whether requests of this type (PfBrokerRequestType) are for this client. */
bool pf_broker_may_ask(PfBrokerClient client, uint32_t type);

/* The same for what the broker sends: the sizes, the types, and that all text ends. */
bool pf_broker_check_message(const PfBrokerMessage *message, size_t size);

/* Whether text is a UUID in the form that libvirt prints. */
bool pf_broker_is_uuid(const char *text);
