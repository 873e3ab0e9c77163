/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A KVM vCPU writes to its pages, so the faults are KVM's. It works through a list of pages: for each it checks the
 * eight words, makes the next step, and counts in its own memory; then it leaves by an output instruction, until the
 * next list. With RACE set it waits a moment before each page for one that is just being fused, and takes that one
 * instead.
 *
 * It runs in user mode with paging (its addresses are the guest-physical ones), because some kinds of KVM emulate every
 * instruction of anything else. It needs no stack and no interrupt.
 *
 * The lock is held while it works through a list. Who holds it may change the vCPU's pages; hints are said at any
 * moment.
 */
#include "tests/stress/vmm.h"
#include <assert.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define GUEST_PAGES STRESS_VCPU_END
#define MAX_LIST    64u
#define NO_PAGE     0xffffu

/* By guest-physical address. The code has these numbers too. */
#define RACE   0x900u /* byte */
#define TARGET 0x904u /* 16 bits: a page, or NO_PAGE */
#define LOST   0x908u /* 32 bits: wrong words so far */
#define SPIN   0x90cu /* 32 bits: how often it looks for a target */
#define WHERE                                                                                      \
	0x910u /* 32 bits each, of the last wrong word: page, state that was wanted, what it saw */
#define COUNTERS    0xa00u /* a byte a page: its state */
#define CODE        0x1000u
#define LIST        0x3000u /* 16 bits a page, NO_PAGE at the end; in the end the pages that it took */
#define PAGE_TABLES 0x4000u /* four pages */

static_assert(STRESS_WORDS == 8 && STRESS_STATES == 32 && STRESS_WORD_DISTANCE == 1 << 9 &&
		      STRESS_WORD_OFFSET == 8 && STRESS_VCPU_END <= 512,
	"these are numbers in the code below");

extern const uint8_t stress_guest_code[];
extern const uint32_t stress_guest_code_size;

__asm__(".pushsection .rodata\n"
	".globl stress_guest_code, stress_guest_code_size\n"
	"stress_guest_code:\n"
	"	.code64\n"
	"	movl $0x3000, %edi\n"
	"1:	movzwl (%rdi), %ebp\n" /* the next page */
	"	cmpl $0xffff, %ebp\n"
	"	je 8f\n"
	"	cmpb $0, 0x900\n"
	"	je 4f\n"
	"	movl 0x90c, %ecx\n"
	"2:	movzwl 0x904, %eax\n" /* a target? */
	"	cmpl $0xffff, %eax\n"
	"	jne 3f\n"
	"	decl %ecx\n"
	"	jnz 2b\n"
	"	jmp 4f\n"
	"3:	movw $0xffff, 0x904\n"
	"	movl %eax, %ebp\n"
	"	movw %bp, (%rdi)\n"
	"4:	movl %ebp, %ebx\n"
	"	shll $12, %ebx\n"
	"	movzbl 0xa00(%rbp), %eax\n"
	"	movl %eax, %edx\n"
	"	movl $8, %ecx\n"
	"5:	movl %edx, %esi\n" /* the word of that state */
	"	andl $7, %esi\n"
	"	shll $9, %esi\n"
	"	movzwl 8(%rbx,%rsi), %r8d\n"
	"	cmpl %edx, %r8d\n"
	"	je 6f\n"
	"	incl 0x908\n"
	"	movl %ebp, 0x910\n"
	"	movl %edx, 0x914\n"
	"	movl %r8d, 0x918\n"
	"	movw %dx, 8(%rbx,%rsi)\n"
	"6:	decl %edx\n"
	"	andl $31, %edx\n"
	"	decl %ecx\n"
	"	jnz 5b\n"
	"	incl %eax\n" /* the step */
	"	andl $31, %eax\n"
	"	movl %eax, %esi\n"
	"	andl $7, %esi\n"
	"	shll $9, %esi\n"
	"	movw %ax, 8(%rbx,%rsi)\n"
	"	movb %al, 0xa00(%rbp)\n"
	"	addl $2, %edi\n"
	"	jmp 1b\n"
	"8:	outb %al, $0x10\n"
	"	jmp stress_guest_code\n"
	"9:	.balign 4\n"
	"stress_guest_code_size:\n"
	"	.long 9b - stress_guest_code\n"
	".popsection\n");

static uint8_t *ram;
static int vcpu = -1;
static struct kvm_run *run;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void vcpu_lock(void)
{
	pthread_mutex_lock(&lock);
}

void vcpu_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

static volatile uint16_t *word_at(unsigned address)
{
	return (volatile uint16_t *)(ram + address);
}

static volatile uint32_t *long_at(unsigned address)
{
	return (volatile uint32_t *)(ram + address);
}

/* Before there is a vCPU its pages are filled. */
static volatile uint8_t *counter(unsigned i)
{
	return page_address(0) + COUNTERS + i;
}

unsigned vcpu_state(unsigned i)
{
	return *counter(i);
}

void vcpu_set_state(unsigned i, unsigned state)
{
	*counter(i) = (uint8_t)state;
}

void vcpu_target(unsigned i)
{
	if (vcpu >= 0)
		*word_at(TARGET) = (uint16_t)i;
}

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "VM %u: %s: %s\n", vm_index, what, strerror(errno));
	exit(1);
}

static void run_list(void)
{
	int r;

	do {
		r = ioctl(vcpu, KVM_RUN, 0);
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		die("KVM_RUN");
	if (run->exit_reason == KVM_EXIT_IO)
		return;
	fprintf(stderr, "VM %u: the vCPU stopped with exit reason %u\n", vm_index,
		run->exit_reason);
	exit(1);
}

static unsigned make_list(StressRandom *random, unsigned *round)
{
	unsigned n = 1 + stress_below(random, MAX_LIST);
	bool jumps = stress_below(random, 2) == 0;

	for (unsigned k = 0; k < n; k++) {
		unsigned i = STRESS_RING + stress_below(random, STRESS_VCPU_END - STRESS_RING);

		if (!jumps) {
			i = *round;
			*round = i + 1 < STRESS_VCPU_END ? i + 1 : STRESS_RING;
		}
		*word_at(LIST + 2 * k) = (uint16_t)i;
		/* What it is now is said while it changes. */
		if (stress_below(random, 8) == 0)
			pages[i].dirty = true;
	}
	*word_at(LIST + 2 * n) = NO_PAGE;
	*word_at(RACE) = stress_below(random, 8) == 0;
	*long_at(SPIN) = 1 + stress_below(random, 60000);
	*word_at(TARGET) = NO_PAGE;
	return n;
}

static void tell_lost(uint32_t *known)
{
	for (; *known != *long_at(LOST); (*known)++)
		page_wrong(*long_at(WHERE), true, "the vCPU saw %u and not %u", *long_at(WHERE + 8),
			*long_at(WHERE + 4));
}

static void work(StressThread *thread, StressRandom *random)
{
	unsigned round = STRESS_RING;
	uint32_t known = 0;

	while (!stopping) {
		unsigned n;

		vcpu_lock();
		n = make_list(random, &round);
		run_list();
		atomic_fetch_add_explicit(&me->visits, n, memory_order_relaxed);
		tell_lost(&known);
		for (unsigned k = 0; k < n; k++)
			pages[*word_at(LIST + 2 * k)].dirty = true;
		/* It looks at words only. */
		for (unsigned k = 0; k < 2; k++)
			page_check(
				STRESS_RING + stress_below(random, STRESS_VCPU_END - STRESS_RING));
		vcpu_unlock();
		beat(thread);
		pace(random, me->vcpu_cycles, VCPU_CYCLES_A_SECOND, 24000);
	}
}

/* Four levels, addresses as they are; accessed and dirty already, so that nobody writes to them. */
static void make_page_tables(void)
{
	const uint64_t flags = 0x67;

	for (unsigned level = 0; level < 3; level++)
		*(uint64_t *)(ram + PAGE_TABLES + level * PF_PAGE_SIZE) =
			(PAGE_TABLES + (level + 1) * PF_PAGE_SIZE) | flags;
	for (unsigned i = 0; i < GUEST_PAGES; i++)
		*(uint64_t *)(ram + PAGE_TABLES + 3 * PF_PAGE_SIZE + i * sizeof(uint64_t)) =
			i * PF_PAGE_SIZE | flags;
}

/* 64-bit user mode, allowed to use ports. */
static void set_registers(void)
{
	const struct kvm_segment data = {.limit = 0xffffffff,
		.selector = 0x2b,
		.type = 3,
		.present = 1,
		.dpl = 3,
		.db = 1,
		.s = 1,
		.g = 1};
	struct kvm_regs regs = {.rip = CODE, .rflags = 0x3002};
	struct kvm_sregs sregs;

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("KVM_GET_SREGS");
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.cs = data;
	sregs.cs.selector = 0x33;
	sregs.cs.type = 11;
	sregs.cs.db = 0;
	sregs.cs.l = 1;
	sregs.tr = (struct kvm_segment){.limit = 0x67, .selector = 0x40, .type = 11, .present = 1};
	sregs.cr0 = 0x80000031;
	sregs.cr3 = PAGE_TABLES;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		die("registers");
}

static void make_vcpu(int kvm)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = GUEST_PAGES * PF_PAGE_SIZE, .userspace_addr = (uintptr_t)ram};
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		die("KVM_CREATE_VM");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		die("KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("vCPU");
	set_registers();
}

void vcpu_start(int kvm)
{
	ram = page_address(0);
	memcpy(ram + CODE, stress_guest_code, stress_guest_code_size);
	make_page_tables();
	make_vcpu(kvm);
	thread_start("vcpu", work);
}
