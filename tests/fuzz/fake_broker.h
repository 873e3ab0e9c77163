/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* The broker, in the fuzzer: in the same thread, and answers as it is told. It checks what the service asks. */
#include "host-service/wire/broker.h"

typedef enum FakeTrouble {
	FAKE_NO_DEVICE = 1 << 0,      /* for now */
	FAKE_NO_USERFAULTFD = 1 << 1, /* for ever */
	FAKE_NO_CHANNEL = 1 << 2,
	FAKE_NO_ADDRESS = 1 << 3, /* an error */
	FAKE_NOT_LINEAR = 1 << 4, /* of every range */
	FAKE_SILENT = 1 << 5,     /* asked, it waits until this is gone */
} FakeTrouble;

typedef struct FakeBroker {
	int socket;
	guint trouble; /* FakeTrouble bits */
	/* A channel for the guest of this VM: the service's end, or -1. */
	int (*open_channel)(void *userdata, const char *uuid);
	/* Where a range lies in QEMU; 0: nowhere. */
	uint64_t (*locate)(void *userdata, const char *uuid, PfGuestRange range);
	void *userdata;
} FakeBroker;

/* Returns the service's end. */
int fake_broker_open(FakeBroker *broker);

/* Answers what was asked; TRUE: something was. */
gboolean fake_broker_serve(FakeBroker *broker);
