/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A service that says what it likes, and a toy VM with the real shim that listens to it. Whatever cannot be set up ends
 * the test.
 */
#include "proto/shim_protocol.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FAKE_BLOCK_PAGES 1024u /* of the VM's first block */
#define FAKE_MAX_FDS     3u

typedef struct FakeService {
	char dir[32], socket[64], channel[64];
	int listener, connection;
	pid_t vm;
	int to, from;       /* its standard input and output */
	uint64_t blocks[2]; /* addresses */
	int store;          /* writable; -1: none made yet */
	uint64_t n_frames;  /* that were published */
	PfShimHello hello;  /* of this connection */
} FakeService;

/* The VM runs and has connected, and has said hello. */
FakeService *fake_service_new(void);
void fake_service_free(FakeService *fake);

/* One line to the VM, one line back (valid until the next command). */
const char *fake_command(FakeService *fake, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void fake_ok(FakeService *fake, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Descriptors to send. What is opened is the caller's to close. */
typedef enum FakeFd {
	FAKE_NO_FD,
	FAKE_DEVICE,         /* /dev/userfaultfd */
	FAKE_STORE,          /* as it must be */
	FAKE_STORE_UNSEALED, /* read-only, but can shrink */
	FAKE_STORE_WRITABLE, /* sealed */
	FAKE_OTHER_STORE,    /* as it must be, but another one */
	FAKE_STAGING,        /* as it must be */
	FAKE_STAGING_UNSEALED,
	FAKE_STAGING_SMALL, /* sealed, a page too short */
	FAKE_FILE,          /* of a file system, read-only */
	FAKE_PIPE,          /* its end to read from */
	FAKE_NULL,          /* /dev/null */
} FakeFd;
int fake_open(FakeService *fake, FakeFd what);

/* Writes the contents that the VM's "fill" makes for seed into the store, at the next frame. */
uint64_t fake_publish(FakeService *fake, uint64_t seed);

/* One packet. Zeros stand for what is right. */
typedef struct FakePacket {
	const char *what; /* for messages of the test */
	uint16_t type;
	const void *data;
	size_t size; /* of data */
	FakeFd fds[FAKE_MAX_FDS];
	uint32_t magic;
	int length_off, n_fds_off; /* added to what the header says */
	size_t cut;                /* so many bytes of the packet are not sent */
	size_t padding;            /* so many zeros are sent behind data, and counted in length */
} FakePacket;
void fake_send(FakeService *fake, const FakePacket *packet);

/* Waits for a message of this type and returns its payload (valid until the next call). LOST and STATE are skipped
 * unless asked for. */
const void *fake_receive(FakeService *fake, PfShimType type, size_t *size);
/* The same for an answer that is an array of PfShimResult. */
void fake_expect_results(FakeService *fake, PfShimType type, PfShimResult wanted, size_t n);

/* Waits until the shim has ended the connection; false: it did not. */
bool fake_has_ended(FakeService *fake);
/* Waits until the shim connects and has said hello. Returns how long that took, in milliseconds. */
unsigned fake_accept(FakeService *fake);

/* ATTACH, STORE and STAGING as they must be; READY says OK. */
void fake_attach(FakeService *fake);
/* One run in a FUSE; it may break huge pages. No answer is waited for. */
void fake_fuse(FakeService *fake, uint64_t hva, uint64_t frame, uint32_t n_pages);
/* Fused pages by the shim's list. */
uint64_t fake_n_listed(FakeService *fake);

/* What the kernel says: pages of the first block that map a file's page; open descriptors of the VM. */
unsigned fake_n_file_pages(const FakeService *fake, uint64_t gfn, unsigned n);
unsigned fake_n_fds(const FakeService *fake);
