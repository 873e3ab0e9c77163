/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * A QEMU that means harm: a toy VM without the shim has connected, its connection was taken over by the test, and the
 * test says on it what it likes. To the service it is the VM that speaks. Whatever cannot be set up ends the test.
 */
#include "proto/shim_protocol.h"
#include "tests/vmm/lab.h"

typedef struct HostileMessage {
	PfShimHeader header;
	uint8_t data[PF_SHIM_MAX_MESSAGE];
	size_t size; /* of data */
	int fd;      /* that came with it, the caller's to close; -1: none */
} HostileMessage;

/* What a VM's connection has brought when it is ready; -1: not yet. All the caller's to close. */
typedef struct HostileShim {
	LabVm *vm;
	int fd;
	int device, store, staging;
} HostileShim;

/* A VM without the shim, announced; its guest can report. */
LabVm *hostile_start(Lab *lab, const char *name, const char *group);

/* A new connection of this VM's. */
int hostile_connect(LabVm *vm);
/* A descriptor of that process's. */
int hostile_take_fd(pid_t pid, int number);

/* One message, with that many copies of fd; false: the service has closed the connection. */
bool hostile_say(int fd, PfShimType type, uint64_t id, const void *data, size_t size, int with,
	unsigned n_copies);
bool hostile_send(int fd, const void *packet, size_t size, int with, unsigned n_copies);
/* HELLO of a shim of this version. */
void hostile_hello(int fd, uint32_t flags, uint64_t fused_pages);

/* The next message of the service; false: it has closed the connection instead. */
bool hostile_hear(Lab *lab, int fd, HostileMessage *message);
/* The next one is of this type. */
void hostile_expect(Lab *lab, int fd, PfShimType type, HostileMessage *message);
/* The service says nothing more, and closes the connection. */
void hostile_expect_end(Lab *lab, int fd, const char *what);
/* Nothing was said so far. */
void hostile_expect_silence(int fd);

/* From HELLO until it is ready. returned: a store that it says it has, or -1. */
void hostile_get_ready(LabVm *vm, int returned, HostileShim *shim);
void hostile_close(HostileShim *shim);

/* Open descriptors of this process, in which the service is; there will be so many: nothing that was sent is kept. */
unsigned hostile_count_fds(void);
void hostile_expect_fds(Lab *lab, unsigned n, const char *what);
