/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * The broker is the process that may talk to libvirt and open /dev/userfaultfd. What parses bytes
 * from guests and from QEMU processes asks it for a short list of fixed things, over a socket pair
 * with the messages of broker_protocol.h. So does the front, for other things, over a socket pair of
 * its own. This header is both ends: pf_broker_serve() is the broker's main loop, PfBroker a
 * client's end of its socket.
 */
#include "common/page.h"
#include "host-service/config/group_name.h"
#include "host-service/config/thp.h"
#include <gio/gio.h>

typedef struct PfBroker PfBroker;

#define PF_UUID_TEXT 37 /* with the final 0 */

/* A domain as libvirt has it. */
typedef struct PfDomain {
	char uuid[PF_UUID_TEXT];
	char name[256];
	/* Trust group; PF_GROUP_DEFAULT where the definition names none, empty where it names what can be none (which is a
	 * refusal). */
	char group[PF_GROUP_NAME_MAX + 1];
	char state[32];    /* "shut off", "running", "paused", ... as virsh says it */
	char refusal[256]; /* why this domain cannot be fused, one sentence; empty when it can */
	char channel[108]; /* path of the guest channel's unix socket; empty when it has none or
			      does not run */
	PfThp thp;         /* of the flag; PF_THP_DEFAULT where it names none */
	gboolean enabled;  /* the flag: of the live definition while it runs, else of the persistent
			      one */
	gboolean active;   /* it has a QEMU process */
	gboolean has_shim; /* that process was started with the shim, or may have been */
	gboolean port_open; /* the channel's, in the guest, as libvirt last noted it */
	gint64 pid;         /* of that process, 0 when it has none, or libvirt does not say (yet) */
	guint64 memory_pages; /* maximal memory */
} PfDomain;

typedef struct PfBrokerEvents {
	/* Something about a domain changed, or it is seen for the first time. */
	void (*domain_changed)(void *userdata, const PfDomain *domain);
	/* It has been undefined and does not run. */
	void (*domain_gone)(void *userdata, const char *uuid);
	/* libvirt came (connected) or went; the reason when it went, one sentence that says what to
	 * do. */
	void (*libvirt_changed)(void *userdata, gboolean connected, const char *reason);
	/* The broker process has ended: its clients end too. */
	void (*closed)(void *userdata);
} PfBrokerEvents;

/*
 * A client's end. fd (SOCK_SEQPACKET) is consumed. events and userdata must live as long as the
 * broker. Events and answers are dispatched by the thread-default main context.
 */
PfBroker *pf_broker_new(int fd, const PfBrokerEvents *events, void *userdata);
/* No event comes any more. Callbacks that still wait for an answer are called later, by the main
 * context, with G_IO_ERROR_CLOSED: what they need must not be freed with the broker. */
void pf_broker_free(PfBroker *broker);

typedef struct PfBrokerConfig {
	const char *uri;       /* of libvirt: qemu:///system */
	const char *shim_path; /* of libpagefusion-vmm.so, goes into a domain's LD_PRELOAD */
	const char
		*shim_socket; /* where shims find the service; goes into the domain's environment */
	const char *additions_iso; /* absolute path of the image with the guest additions */
} PfBrokerConfig;

/*
 * The broker has two clients. The service may ask for anything but a changed definition, and hears of domains; the front
 * may have definitions changed and asks for nothing else.
 */
typedef struct PfBrokerSockets {
	int service, front; /* the clients' ends, or the broker's */
} PfBrokerSockets;

/* Starts the broker process (fork, no exec); the clients' ends of its sockets are the caller's. Its pid, or -1 with error set. */
pid_t pf_broker_spawn(const PfBrokerConfig *config, PfBrokerSockets *sockets, GError **error);

/* The broker's main loop; returns the process's exit status. Both are consumed; it ends when one of them does. */
int pf_broker_serve(PfBrokerSockets sockets, const PfBrokerConfig *config);

/*
 * A descriptor of /dev/userfaultfd for the shim of this domain, opened read-write. The caller owns it; -1 with error
 * set: G_IO_ERROR_BUSY when there were too many for this domain lately.
 */
void pf_broker_open_userfaultfd(
	PfBroker *broker, const char *uuid, GAsyncReadyCallback callback, void *userdata);
int pf_broker_open_userfaultfd_finish(GAsyncResult *result, GError **error);

/* A stream connected to the domain's guest channel (nonblocking, close-on-exec). The caller owns
 * it. */
void pf_broker_open_channel(
	PfBroker *broker, const char *uuid, GAsyncReadyCallback callback, void *userdata);
int pf_broker_open_channel_finish(GAsyncResult *result, GError **error);

/*
 * Where guest-physical memory lies in QEMU: the host virtual address of each range (at most
 * PF_SESSION_MAX_RAM_RANGES), asked for both its ends and checked to be linear. A range that is not
 * linear gets v = 0. G_IO_ERROR_BUSY while an earlier question about this domain has no answer yet.
 */
void pf_broker_translate(PfBroker *broker, const char *uuid, const PfGuestRange *ranges,
	size_t n_ranges, GAsyncReadyCallback callback, void *userdata);
/* n_ranges addresses in *hvas (g_free), or FALSE with error set. */
gboolean pf_broker_translate_finish(
	GAsyncResult *result, PfHva **hvas, size_t *n_ranges, GError **error);

typedef enum PfVmSetting {
	PF_VM_SET_ENABLED = 1 << 0,
	PF_VM_SET_THP = 1 << 1,
	PF_VM_SET_GROUP = 1 << 2,
} PfVmSetting;

/* What to change in a definition; what `changes` does not name is zero here, and stays there. */
typedef struct PfVmSettings {
	guint changes; /* PfVmSetting bits, at least one */
	gboolean enabled;
	PfThp thp; /* only with a flag that is on, or turned on with it; so is group */
	char group[PF_GROUP_NAME_MAX + 1]; /* a valid name; PF_GROUP_DEFAULT: the flag names none */
} PfVmSettings;

/*
 * Changes settings of a shut-off domain in its persistent definition, all or none. vm is a name or
 * a UUID. G_IO_ERROR_* with one line that says what and what to do: NOT_FOUND, BUSY (not shut off),
 * NOT_SUPPORTED (refused; the message names the element of the definition), FAILED.
 */
void pf_broker_modify(PfBroker *broker, const char *vm, const PfVmSettings *settings,
	GAsyncReadyCallback callback, void *userdata);
gboolean pf_broker_modify_finish(GAsyncResult *result, GError **error);

/* What was done with the medium of the guest additions. */
typedef struct PfAdditionsChange {
	char drive[32];   /* its name in the guest, sda; empty: there was nothing to eject */
	uint32_t changed; /* 0: it was so already */
	uint32_t
		running; /* the VM runs, so that its guest sees it; 0: it is in the definition alone */
	uint32_t of_drive; /* a drive was added for it, or taken out with it */
} PfAdditionsChange;

/*
 * Puts the guest additions into a CD drive of a domain, which is a name or a UUID: into one that is empty, of the QEMU process
 * while it runs, else of the persistent definition, which gets a drive if it has none. Takes them out again, of both; force:
 * also where the guest has locked the drive. What is not ours is left alone. G_IO_ERROR_*, one line as for
 * pf_broker_modify(): NOT_FOUND, NOT_SUPPORTED (refused), NOT_CONNECTED, FAILED.
 */
void pf_broker_insert_additions(
	PfBroker *broker, const char *vm, GAsyncReadyCallback callback, void *userdata);
void pf_broker_eject_additions(PfBroker *broker, const char *vm, gboolean force,
	GAsyncReadyCallback callback, void *userdata);
/* Of both. *change is only written to when it is done. */
gboolean pf_broker_additions_finish(
	GAsyncResult *result, PfAdditionsChange *change, GError **error);
