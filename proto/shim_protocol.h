/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What pagefusiond and libpagefusion-vmm.so say to each other, over a SOCK_SEQPACKET unix socket:
 * one message a packet, fixed structs in the byte order of the machine, descriptors as SCM_RIGHTS.
 * proto/PROTOCOL.md has the conversation. A shim lives as long as its VM, so a service meets shims
 * that are years older than itself: HELLO, LIST, LISTED, RELEASE, RELEASED and STORE_RETURN are
 * frozen, their layout is the same in every version.
 */
#include <assert.h>
#include <stdint.h>

/* How a VM finds both: the library in its LD_PRELOAD, and where the service listens, in a variable or by default. */
#define PF_SHIM_LIBRARY         "libpagefusion-vmm.so"
#define PF_SHIM_SOCKET_VARIABLE "PAGEFUSION_SOCKET"
#define PF_SHIM_DEFAULT_SOCKET  "/run/pagefusion/shim.sock"

#define PF_SHIM_MAGIC        0x31534650u /* "PFS1" */
#define PF_SHIM_VERSION      1u
#define PF_SHIM_MAX_MESSAGE  65536u /* bytes, header included */
#define PF_SHIM_RUN_PAGES    32u    /* longest run of one fuse transaction: the longest freeze */
#define PF_SHIM_MAX_RUNS     512u   /* in one FUSE */
#define PF_SHIM_RETRY_MAX_MS 5000   /* the longest pause between two attempts to connect */
#define PF_SHIM_MAX_CAPTURE  256u   /* pages in one CAPTURE, and slots in a staging memfd */

typedef enum PfShimType {
	/* service to shim */
	PF_SHIM_ATTACH =
		1, /* fds: [/dev/userfaultfd]; the shim makes its own from it. Answer: READY */
	PF_SHIM_STORE = 2, /* PfShimStore, fds: [store, read-only] */
	PF_SHIM_STAGING =
		3, /* fds: [staging memfd, read-write, sealed size of PF_SHIM_MAX_CAPTURE pages] */
	PF_SHIM_CAPTURE = 4, /* PfShimCapture[]; copy page to staging slot. Answer: CAPTURED */
	PF_SHIM_FUSE = 5,    /* PfShimRun[]. Answer: FUSED */
	PF_SHIM_RELEASE = 6, /* PfShimRange[], none: everything. Answer: RELEASED */
	PF_SHIM_LIST = 7,    /* Answer: LISTED, once or more */
	/* shim to service */
	PF_SHIM_HELLO = 64,    /* PfShimHello; the first message */
	PF_SHIM_READY = 65,    /* PfShimReady */
	PF_SHIM_CAPTURED = 66, /* uint8_t PfShimResult[], one for each PfShimCapture of the order */
	PF_SHIM_FUSED = 67,    /* uint8_t PfShimResult[], one for each page of the order's runs */
	PF_SHIM_RELEASED = 68, /* empty */
	PF_SHIM_LISTED = 69,   /* PfShimListed and PfShimRun[] */
	PF_SHIM_LOST =
		70, /* PfShimLost[]: pages that were fused and no longer are; not an answer, id 0 */
	PF_SHIM_STATE =
		71, /* PfShimState; sent when something in it changed, at most twice a second */
	PF_SHIM_STORE_RETURN =
		72, /* PfShimStore, fds: [store, read-only]: after HELLO, when the shim holds one */
} PfShimType;

typedef struct PfShimHeader {
	uint32_t magic;
	uint16_t type;   /* PfShimType */
	uint16_t n_fds;  /* descriptors that came with this packet */
	uint32_t length; /* bytes, header included; the packet's size */
	uint32_t reserved;
	uint64_t id; /* of an order; its answer carries it back */
} PfShimHeader;
static_assert(sizeof(PfShimHeader) == 24, "wire");

#define PF_SHIM_HAS_USERFAULTFD (1u << 0)
#define PF_SHIM_HAS_STORE       (1u << 1)

typedef struct PfShimHello {
	uint32_t version;        /* newest that this shim speaks */
	uint32_t version_oldest; /* oldest that it still speaks */
	uint32_t flags;          /* PF_SHIM_HAS_* */
	uint32_t page_size;
	uint64_t fused_pages; /* from an earlier service */
	uint64_t reserved[4];
} PfShimHello;
static_assert(sizeof(PfShimHello) == 56, "wire");

/* Why the shim cannot fuse at all. */
typedef enum PfShimReadyCode {
	PF_SHIM_READY_OK = 0,
	PF_SHIM_READY_NO_FEATURES =
		1, /* the kernel's userfaultfd lacks one of those that we need (missing_features) */
	PF_SHIM_READY_FAILED = 2, /* error says why */
	PF_SHIM_READY_NO_BLOCKS =
		3, /* no RAM block seen yet; a second READY follows with the first one */
} PfShimReadyCode;

typedef struct PfShimReady {
	uint32_t code;             /* PfShimReadyCode */
	int32_t error;             /* errno, positive */
	uint64_t missing_features; /* UFFD_FEATURE_* */
} PfShimReady;
static_assert(sizeof(PfShimReady) == 16, "wire");

typedef struct PfShimStore {
	uint8_t group_id[16]; /* random, made with the store */
	uint64_t reserved;
} PfShimStore;
static_assert(sizeof(PfShimStore) == 24, "wire");

typedef struct PfShimCapture {
	uint64_t hva;
	uint32_t slot;
	uint32_t reserved;
} PfShimCapture;
static_assert(sizeof(PfShimCapture) == 16, "wire");

/* Pages of the run that lie in a transparent huge page are fused all the same, which breaks it. */
#define PF_SHIM_RUN_MAY_BREAK_HUGE (1u << 0)

typedef struct PfShimRun {
	uint64_t hva;
	uint64_t frame; /* of the first page; the others follow it */
	uint32_t n_pages;
	uint32_t flags; /* PF_SHIM_RUN_*; 0 in LISTED */
} PfShimRun;
static_assert(sizeof(PfShimRun) == 24, "wire");

typedef struct PfShimRange {
	uint64_t hva;
	uint64_t n_pages; /* 0: nothing, and RELEASED tells when it was reached */
} PfShimRange;
static_assert(sizeof(PfShimRange) == 16, "wire");

typedef struct PfShimListed {
	uint32_t more; /* 1: another LISTED follows */
	uint32_t n_runs;
} PfShimListed;
static_assert(sizeof(PfShimListed) == 8, "wire");

/* What became of one page of an order. */
typedef enum PfShimResult {
	PF_SHIM_DONE = 0,        /* fused, or captured */
	PF_SHIM_DIFFERENT = 1,   /* the page's bytes are not the frame's */
	PF_SHIM_BUSY = 2,        /* pinned (a DMA may be in flight) or shared: later */
	PF_SHIM_NOT_PRESENT = 3, /* nothing there, or swapped out: later */
	PF_SHIM_WRITTEN =
		4, /* written while it was being fused: private in a file VMA, never again */
	PF_SHIM_NO_MAPS = 5,     /* the budget of maps is used up, or the kernel has no more */
	PF_SHIM_NOT_RAM = 6,     /* not inside a RAM block of private anonymous memory */
	PF_SHIM_NOT_PRIVATE = 7, /* fused already, or private in a file VMA */
	PF_SHIM_NO_FRAME = 8,    /* the store has no such frame, or no store was given */
	PF_SHIM_STOPPED = 9,     /* the shim has stopped fusing: see STATE */
	PF_SHIM_FAILED = 10,     /* any other refusal of the kernel */
	PF_SHIM_HUGE =
		11, /* in a transparent huge page, and the order does not allow to break it */
	PF_SHIM_ASIDE = 12, /* QEMU uses a userfaultfd itself: when it has closed it */
	PF_SHIM_N_RESULTS
} PfShimResult;

typedef enum PfShimLoss {
	PF_SHIM_LOST_REVOKED = 0,   /* the guest wrote */
	PF_SHIM_LOST_DISCARDED = 1, /* QEMU gave the page up, or its block went away */
	PF_SHIM_LOST_RELEASED = 2,  /* by RELEASE */
	PF_SHIM_N_LOSSES
} PfShimLoss;

typedef struct PfShimLost {
	uint64_t hva;
	uint64_t frame; /* of the first page */
	uint32_t n_pages;
	uint32_t loss; /* PfShimLoss */
} PfShimLost;
static_assert(sizeof(PfShimLost) == 24, "wire");

typedef struct PfShimState {
	uint32_t stopped; /* 1: an error that could not be undone; fusing has stopped, revoking goes
			     on */
	int32_t stopped_error; /* errno, positive */
	uint64_t fused_pages;
	uint64_t runs;          /* pieces of consecutive fused pages */
	uint64_t maps;          /* VMAs of the process, when last counted */
	uint64_t maps_budget;   /* it stops fusing at this many */
	uint64_t revoked_pages; /* since the process started */
	uint64_t discarded_pages;
	uint64_t written_pages; /* became private in a file VMA */
	uint64_t cpu_ns;        /* of the shim's threads */
	uint64_t
		ways_out; /* revokes and discards that got no map or no memory, and were done without */
	uint64_t
		busy_pages; /* refused because they were pinned or shared, since the process started */
	uint64_t aside;     /* 1: QEMU uses a userfaultfd itself, nothing is fused meanwhile */
	uint64_t reserved;
} PfShimState;
static_assert(sizeof(PfShimState) == 104, "wire");
