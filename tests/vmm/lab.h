/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * Toy VMs around one service. The service runs in this process (its main loop turns while a test
 * waits for anything) or as the program pagefusiond, for tests that kill it. Whatever cannot be set
 * up ends the test.
 */
#include "host-service/service/service.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LAB_MAX_VMS 8

/* Who a VM runs as, and the service where it is a process of its own. */
#define LAB_VM_UID      65534
#define LAB_SERVICE_UID 64321

typedef struct Lab Lab;

typedef struct LabVm {
	Lab *lab;
	pid_t pid;
	int to, from; /* its standard input and output */
	int pagemap;
	char name[32], uuid[PF_UUID_TEXT], channel[108], group[64];
	uint64_t blocks[2]; /* addresses of gfn 0 and gfn LAB_HIGH */
	void (*change)(PfDomain *
			domain); /* what the next service hears of it is changed so; NULL: it is not */
} LabVm;

#define LAB_LOW_PAGES  1024u
#define LAB_HIGH       0x100000ull
#define LAB_HIGH_PAGES 512u

Lab *lab_new(bool own_process);
/* In this process; it waits no longer than that for an answer of a shim. */
Lab *lab_new_impatient(unsigned answer_ms);
void lab_free(Lab *lab);

PfService *lab_service(Lab *lab); /* in this process only */
const char *lab_shim_socket(const Lab *lab);
const char *lab_dir(const Lab *lab); /* everybody may write there; its files go with the lab */

/* The service's process: kill -9; in this process: an orderly end. Then a new one that knows the same VMs. */
void lab_kill_service(Lab *lab);
void lab_restart_service(Lab *lab);

/* A process; the service does not know that it is a VM before lab_announce(). */
LabVm *lab_start_vm(Lab *lab, const char *name, const char *group);
/* One that does not load the shim. */
LabVm *lab_start_bare_vm(Lab *lab, const char *name, const char *group);
/* The same, as another user. */
LabVm *lab_start_bare_vm_as(Lab *lab, const char *name, const char *group, uid_t uid);
void lab_announce(LabVm *vm);
/* The same, with something in it changed. */
void lab_announce_changed(LabVm *vm, void (*change)(PfDomain *domain));
/* As QEMU ends: by itself, or killed. The service hears that the domain is gone. */
void lab_end_vm(LabVm *vm, bool killed);

/* A program, searched for in PATH, as QEMU is started: not as root, with the shim. */
pid_t lab_spawn(const Lab *lab, const char *const argv[], int in, int out);
/* A VM that is no toy and obeys no commands: its RAM begins at that address. It ends with the lab. */
LabVm *lab_adopt_vm(Lab *lab, const char *name, const char *group, pid_t pid, uint64_t ram);

/* One line to the VM, one line back (valid until the next command). */
const char *lab_command(LabVm *vm, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same; fails the test unless the answer is "ok". */
void lab_ok(LabVm *vm, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Waits until condition() is true, at most 20 s. */
bool lab_wait(Lab *lab, bool (*condition)(void *userdata), void *userdata);
/* Turns the main loop for that long. Only where a test wants to see that nothing happens. */
void lab_turn(Lab *lab, unsigned ms);
void lab_wait_for_session(LabVm *vm);

/* From /proc/PID/pagemap: the frame number in the host's memory when the page is one of a file,
 * else 0. */
uint64_t lab_file_pfn(const LabVm *vm, uint64_t gfn);
unsigned lab_count_file_pages(const LabVm *vm);
