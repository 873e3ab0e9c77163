/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Inside the broker: where guest memory lies, asked of QEMU's monitors, which may never answer. */
#include "host-service/broker_protocol.h"

typedef struct PfBrokerTranslator PfBrokerTranslator;

/*
 * answered() is called in the thread of libvirt's event loop for each request that was begun, with its answer or an
 * error; both are the translator's. uri is libvirt's and must live as long as the process. NULL: errno says why.
 */
PfBrokerTranslator *pf_broker_translator_new(const char *uri,
	void (*answered)(void *userdata, PfBrokerMessage *answer, const GError *error),
	void *userdata);

/* Nothing is answered any more. A call that hangs is left alone: nobody waits for it. */
void pf_broker_translator_free(PfBrokerTranslator *translator);

/*
 * Begins with a TRANSLATE that was checked, of the VM of this name, or puts it behind others. G_IO_ERROR_BUSY: an
 * earlier one of this VM has no answer yet.
 */
gboolean pf_broker_translator_begin(PfBrokerTranslator *translator, const PfBrokerRequest *request,
	const char *name, GError **error);
