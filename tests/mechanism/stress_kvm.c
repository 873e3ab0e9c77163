/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A KVM vCPU in real mode is the writer, so the faults are KVM's. The guest has 1 MiB: a page of
 * control words, a page of code, and from FIRST_PAGE on the pages that it writes to. Its code is
 * below, with the listing beside it; it does for each page what stress_check() and a visit do in C,
 * and puts a wrong word right after counting it.
 */
#include "tests/mechanism/mech.h"
#include "tests/mechanism/stress.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUEST_PAGES 256u
#define FIRST_PAGE  16u
#define CODE        0x1000u

/* The control words, by guest-physical address. */
#define STOP     0x900u /* byte */
#define PAUSE    0x902u /* byte: the host asks for it */
#define PAUSED   0x904u /* byte: the guest has seen it */
#define LOST     0x908u /* 32 bits */
#define VISITS   0x90cu /* 32 bits */
#define COUNTERS 0xa00u /* 16 bits a page */

static_assert(STRESS_PAGES * 2 == 0xc0 && STRESS_DISTANCE == 1 << 9 && STRESS_OFFSET == 8 &&
		      STRESS_WORDS == 8 && FIRST_PAGE == 0x1000 / 256,
	"these are numbers in the code below");

/* clang-format off */
static const uint8_t guest_code[] = {
	0x31, 0xff,                     /* start:  xor di,di */
	0xb8, 0x00, 0x10,               /*         mov ax,0x1000 */
	0x8e, 0xc0,                     /*         mov es,ax */
	0x80, 0x3e, 0x02, 0x09, 0x00,   /* page:   cmp byte ds:0x902,0x0 */
	0x74, 0x13,                     /*         je visit */
	0xc6, 0x06, 0x04, 0x09, 0x01,   /*         mov byte ds:0x904,0x1 */
	0xf3, 0x90,                     /* wait:   pause */
	0x80, 0x3e, 0x02, 0x09, 0x00,   /*         cmp byte ds:0x902,0x0 */
	0x75, 0xf7,                     /*         jne wait */
	0xc6, 0x06, 0x04, 0x09, 0x00,   /*         mov byte ds:0x904,0x0 */
	0x8b, 0x9d, 0x00, 0x0a,         /* visit:  mov bx,word [di+0xa00] */
	0x89, 0xda,                     /*         mov dx,bx */
	0xb9, 0x08, 0x00,               /*         mov cx,0x8 */
	0x89, 0xd6,                     /* check:  mov si,dx */
	0x83, 0xe6, 0x07,               /*         and si,0x7 */
	0xc1, 0xe6, 0x09,               /*         shl si,0x9 */
	0x26, 0x39, 0x54, 0x08,         /*         cmp word es:[si+0x8],dx */
	0x74, 0x09,                     /*         je right */
	0x66, 0xff, 0x06, 0x08, 0x09,   /*         inc dword ds:0x908 */
	0x26, 0x89, 0x54, 0x08,         /*         mov word es:[si+0x8],dx */
	0x4a,                           /* right:  dec dx */
	0xe2, 0xe6,                     /*         loop check */
	0x43,                           /*         inc bx */
	0x89, 0xde,                     /*         mov si,bx */
	0x83, 0xe6, 0x07,               /*         and si,0x7 */
	0xc1, 0xe6, 0x09,               /*         shl si,0x9 */
	0x26, 0x89, 0x5c, 0x08,         /*         mov word es:[si+0x8],bx */
	0x89, 0x9d, 0x00, 0x0a,         /*         mov word [di+0xa00],bx */
	0x66, 0xff, 0x06, 0x0c, 0x09,   /*         inc dword ds:0x90c */
	0x8c, 0xc0,                     /*         mov ax,es */
	0x05, 0x00, 0x01,               /*         add ax,0x100 */
	0x8e, 0xc0,                     /*         mov es,ax */
	0x83, 0xc7, 0x02,               /*         add di,0x2 */
	0x81, 0xff, 0xc0, 0x00,         /*         cmp di,0xc0 */
	0x72, 0x9d,                     /*         jb page */
	0x80, 0x3e, 0x00, 0x09, 0x00,   /*         cmp byte ds:0x900,0x0 */
	0x74, 0x8f,                     /*         je start */
	0xf4,                           /*         hlt */
};
/* clang-format on */

static uint8_t *ram;
static int vcpu;
static struct kvm_run *run;
static pthread_t thread;

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static volatile uint8_t *control(unsigned address)
{
	return ram + address;
}

static uint32_t control32(unsigned address)
{
	return *(volatile uint32_t *)(ram + address);
}

static void *run_vcpu(void *userdata)
{
	int r;

	do {
		r = ioctl(vcpu, KVM_RUN, 0);
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		die("KVM_RUN");
	if (run->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "the vCPU stopped with exit reason %u\n", run->exit_reason);
		exit(1);
	}
	return NULL;
}

static void make_vcpu(int kvm)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = GUEST_PAGES * PF_PAGE_SIZE, .userspace_addr = (uintptr_t)ram};
	struct kvm_regs regs = {.rip = CODE, .rflags = 2};
	struct kvm_sregs sregs;
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		die("KVM_CREATE_VM");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		die("KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("vCPU");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		die("registers");
}

static void start(uint8_t *pages)
{
	uint16_t first = STRESS_N_FIRST;

	memset(ram, 0, PF_PAGE_SIZE);
	memcpy(ram + CODE, guest_code, sizeof(guest_code));
	for (size_t i = 0; i < STRESS_PAGES; i++)
		memcpy(ram + COUNTERS + i * sizeof(first), &first, sizeof(first));
	if (pthread_create(&thread, NULL, run_vcpu, NULL) != 0)
		abort();
}

static void pause_writer(void)
{
	*control(PAUSE) = 1;
	while (!*control(PAUSED))
		sched_yield();
}

static void resume(void)
{
	*control(PAUSE) = 0;
	while (*control(PAUSED))
		sched_yield();
}

static void stop(void)
{
	*control(STOP) = 1;
	pthread_join(thread, NULL);
}

static uint64_t get_lost(void)
{
	return control32(LOST);
}

static uint64_t get_visits(void)
{
	return control32(VISITS);
}

static uint16_t counter(size_t page)
{
	uint16_t value;

	memcpy(&value, ram + COUNTERS + page * sizeof(value), sizeof(value));
	return value;
}

int main(int argc, char **argv)
{
	static const StressWriters writers = {
		.start = start,
		.pause = pause_writer,
		.resume = resume,
		.stop = stop,
		.n_lost = get_lost,
		.n_visits = get_visits,
		.counter = counter,
	};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 && errno == ENOENT) {
		fprintf(stderr, "skipped: this machine has no /dev/kvm\n");
		return MECH_SKIP;
	}
	if (kvm < 0)
		die("/dev/kvm");
	mech_start();
	ram = mech_block(GUEST_PAGES);
	make_vcpu(kvm);
	return stress_main(argc, argv, &writers, ram + FIRST_PAGE * PF_PAGE_SIZE);
}
