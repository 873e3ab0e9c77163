/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A model of fuse, revoke and discard (host-service/shim/), for spin. It knows one page of guest RAM and one frame, and
 * tries every order of the steps of everybody who has to do with them. check.sh asks two questions:
 *
 * bytes: whatever happens, and however long, is what is read always what was written last? After a discard: zeros. This
 * search has no bound but the state space, which is finite because offsets that nothing refers to are all alike.
 *
 * waiting (-DBOUNDED): when everybody does a bounded number of things, does every run end, and has everybody then
 * done all that he wanted? No fairness is assumed: a circle of steps of any kind (somebody faults, is woken, faults
 * again) is an error, as is a run that stops while somebody waits. Bounds are needed because orders or discards without
 * end could starve anybody; in real life a page that was revoked is fused again only after a new report. Contents, the
 * service's death and reclaim have no part in who waits, and are left out.
 *
 * The processes, and what each mirrors:
 *
 *   vcpu           a locked read-modify-write: reads its word, compares it with what it keeps privately, writes
 *   dma            a device with a long-term pin: pins the page, stores its own word at any time later, unpins
 *   reader         reads the whole page at any time, and compares it with what both writers keep
 *   reclaim        the kernel takes a page of the store out of the page table
 *   qemu           madvise(MADV_DONTNEED), and mmap(MAP_FIXED) or munmap() over the page, after an unplug or for a page
 *                  with a memory error: discard() is pf_core_madvise(), the rest pf_core_mmap() (discard.c)
 *   fault_thread   fault_thread(): reads faults and remap events, waits for nobody (faults.c)
 *   revoke_thread  resolve_queued(), pf_core_resolve_fault(), pf_core_make_private(), pf_core_part() (faults.c,
 *                  revoke.c)
 *   neighbour      the same for the page beside this one: replace() registers this one for a while (revoke.c)
 *   link           pf_core_fuse(), pf_core_release(), and telling what is lost (fuse.c, revoke.c, link.c)
 *   service        publishes a frame, orders it, punches it when the shim neither maps it nor has an order for it, may
 *                  be killed at any moment; the next one learns from the shim what is fused
 *
 * A step is one system call (the kernel's are atomic against page faults and each other), a memory access, or what is
 * done to our own state under the lock, where nobody else looks. "No map can be had" is an alternative wherever the
 * code has one, whatever is really the case.
 *
 * The two invariants:
 *
 * 1. A page's bytes are what its writers keep. Asserted at each read. This says all in one: no write is lost, nobody
 *    sees zeros where there must be none, or another page's bytes, or a frame that is not the page.
 * 2. Whenever the lock is free, the shim's state says what the page table has (AGREED). A fused page maps the frame,
 *    protected, and the frame is what the writers keep; that is why a revoke may put the frame's bytes there.
 *
 * What is left out, and why nothing is lost by it:
 *
 * - Runs. A call for a run does the same to each of its pages, and no page's steps depend on another page's bytes.
 *   Neighbours matter for the registration alone, and that is in. UFFDIO_MOVE has split a huge page before any of this.
 * - Two frames. A page maps one at most, and offsets are never used again: when nothing refers to an offset any more,
 *   it stands for the next one. So the frame under way is always the one that matters.
 * - Values. A word is one bit and a writer writes either: what is stale differs from what is right in some run.
 * - Translations that a CPU still holds: the kernel flushes them before the call that changes the entry returns.
 * - Capturing reads pages that are present, under the lock, and cannot wait. A frame's bytes are those of the page at
 *   some moment, which is the worst case: others are not equal and go back at the first comparison.
 * - Memory that is short for a while (naps and repeats), frames that cannot be read (PF_PAGE_BROKEN), fork, and Linux
 *   before 6.12, which may unmap before it fails. The mechanism tests have these.
 * - The queue of faults is two bits, one for each sort: two faults of a sort are as one that was read later. What waits
 *   for an empty queue waits for both bits. (That it is full is answered by a wake, as many other things are.)
 * - mremap() by QEMU is a release and then a munmap() under one lock.
 *
 * The defects, each a -D that must make the check fail: NO_SECOND_COMPARISON (what was mapped counts as fused, without
 * a look at the page table), DISCARD_NOT_INTERCEPTED, MUNMAP_NOT_INTERCEPTED (the real call alone: no lock, and
 * the state forgets nothing), MUNMAP_NOT_FORGOTTEN (locked, but forgets nothing), PIN_CHECK_BYPASSED (UFFDIO_MOVE takes
 * pinned pages), OFFSET_USED_AGAIN (a service that was killed left a frame, and the next one puts another one there
 * before the shim could say that it maps it) and NO_WAY_OUT (a revoke without a map wakes and leaves it at that).
 */

/* Who touches the page, and may meet a fault. */
#define CPU    0
#define DMA    1
#define READER 2

#define NO_FAULT      0
#define MISSING_FAULT 1 /* in the kernel, not read yet */
#define WRITE_FAULT   2
#define FAULT_READ    3

byte waits[3];
bool plugged = true; /* the guest has the page */

#ifdef BOUNDED
/* How often each thing may still be done. */
byte accesses[3]; /* made */
byte frames_left = 1, orders_left = 2, calls_left = 1;
byte releases_left = 1, neighbours_left = 1;
#define MAY(what)      (what > 0)
#define SPEND(what)    what--
#define MAY_ACCESS(me) (accesses[me] < 1 + (me == CPU))
#define ACCESSED(me)   accesses[me]++
#else
#define MAY(what) true
#define SPEND(what)
#define MAY_ACCESS(me) true
#define ACCESSED(me)
#endif

/* The kernel: one page of guest RAM, and the pages of memory that may be there. */

#define ANON  0 /* the mapping around the page: anonymous memory, */
#define FILE  1 /* a private mapping of the frame, */
#define OTHER 2 /* or something of QEMU's own that is no guest RAM */

#define NOT_REGISTERED 0
#define MISSING        1
#define WP             2

#define N_PAGES 3 /* pages of memory: 0 to 2 */
#define FRAME   3 /* the page table entry maps the store's page */
#define EMPTY   4 /* and: no page */

byte vma = ANON, registered;
bool protected;     /* by userfaultfd; an entry that is empty stays protected (a marker) */
byte entry = EMPTY; /* the page table entry: a page, FRAME or EMPTY */
byte scratch = EMPTY, spare = EMPTY, dma_page = EMPTY;
byte content[N_PAGES];
bool dma_stale; /* QEMU gave the page up while it was pinned */

/* A content is two words of one bit: the vCPU's and the DMA's. One more content is no guest's at all. */
#define CPU_WORD    1
#define DMA_WORD    2
#define WHOLE       7
#define ZEROS       0
#define QEMUS_OWN   4
#define WITH(c, word, on) (((c) & ~word) | (on * word))

/* What the writers keep privately: the page as it must be. */
byte kept;

/* The frame: its bytes, and what the service knows of it. */

#define NEVER_USED 0 /* an offset of the store; it reads as zeros */
#define PUBLISHED  1 /* the shim neither maps it nor has an order for it */
#define ORDERED    2 /* it may */
#define UNKNOWN    3 /* an earlier service published it, and the shim has not said yet what it maps */
#define PUNCHED    4

byte frame;
byte known;
bool order; /* on its way to the shim */
bool connected = true;

/* The shim */

#define PRIVATE         0
#define FUSED           1
#define PRIVATE_IN_FILE 2
#define GONE            3

bool lock;
byte state = PRIVATE;
bool ordered, lost; /* an order is under way; a loss is noted, and not yet told to the service */
byte fetched;       /* the frame's bytes as they were read for the order */
bool write_queued, missing_queued, remap_event;

#define PENDING (write_queued || missing_queued)

byte at, old; /* used within a step */

/* What the kernel does */

#define IN_USE(p) (entry == (p) || scratch == (p) || spare == (p) || dma_page == (p))
#define HELD      (entry == FRAME -> frame : content[entry])

inline new_page(to, value)
{
	at = 0;
	do
	:: at < N_PAGES && IN_USE(at) -> at++
	:: else -> break
	od;
	assert(at < N_PAGES);
	content[at] = value;
	to = at;
	at = 0
}

/* A reference to the page old is gone. What nobody has becomes zeros, so that equal states are equal. */
inline drop_old()
{
	if
	:: old < N_PAGES && !IN_USE(old) -> content[old] = ZEROS
	:: else
	fi;
	old = 0
}

inline drop(reference)
{
	old = reference;
	reference = EMPTY;
	drop_old()
}

/* mmap(MAP_FIXED), or mremap() over the page. */
inline kernel_map(kind, registration)
{
	vma = kind;
	registered = registration;
	protected = false;
	drop(entry)
}

/* Who waits tries again. */
inline kernel_wake()
{
	waits[CPU] = NO_FAULT;
	waits[DMA] = NO_FAULT;
	waits[READER] = NO_FAULT
}

inline kernel_unprotect()
{
	protected = false;
	kernel_wake()
}

/* What a read fault leaves there. */
inline kernel_populate()
{
	if
	:: entry == EMPTY && vma == FILE -> entry = FRAME
	:: entry == EMPTY && vma == ANON -> new_page(entry, ZEROS)
	:: else
	fi
}

/* And a write fault: a page of its own. */
inline kernel_copy()
{
	if
	:: entry >= N_PAGES && vma == FILE -> new_page(entry, frame)
	:: entry == EMPTY && vma == ANON -> new_page(entry, ZEROS)
	:: else
	fi
}

/* The guest and its devices */

#define MUST_WAIT(write) \
	((registered == MISSING && entry == EMPTY) || (write && registered == WP && protected))
#define CAN(me, write) (MAY_ACCESS(me) && plugged && waits[me] == NO_FAULT && !MUST_WAIT(write))

inline fault(me, write)
{
	d_step {
		MAY_ACCESS(me) && plugged && waits[me] == NO_FAULT && MUST_WAIT(write) ->
		if
		:: registered == MISSING -> waits[me] = MISSING_FAULT
		:: else ->
			/* An entry that is empty is filled first, as protected as it is. */
			waits[me] = WRITE_FAULT;
			if
			:: entry == EMPTY -> kernel_copy()
			:: else
			fi
		fi
	}
}

/* Reads its word and writes it. */
inline read_modify_write(on)
{
	d_step {
		CAN(CPU, true) ->
		kernel_copy();
		assert((HELD & CPU_WORD) == (kept & CPU_WORD));
		content[entry] = WITH(content[entry], CPU_WORD, on);
		kept = WITH(kept, CPU_WORD, on);
		ACCESSED(CPU)
	}
}

inline store_by_dma(on)
{
	d_step {
		dma_page != EMPTY && !dma_stale ->
		content[dma_page] = WITH(content[dma_page], DMA_WORD, on);
		kept = WITH(kept, DMA_WORD, on)
	}
}

active proctype vcpu()
{
	do
	:: fault(CPU, true)
	:: read_modify_write(0)
	:: read_modify_write(1)
	od
}

/* A device: pins the page for writing, writes when it likes, unpins. */
active proctype dma()
{
	do
	:: fault(DMA, true)
	:: d_step {
		dma_page == EMPTY && CAN(DMA, true) ->
		kernel_copy();
		dma_page = entry;
		ACCESSED(DMA)
	   }
#ifndef BOUNDED
	:: store_by_dma(0)
	:: store_by_dma(1)
#endif
	:: d_step {
		dma_page != EMPTY ->
		dma_stale = false;
		drop(dma_page)
	   }
	od
}

active proctype reader()
{
	do
	:: fault(READER, false)
	:: d_step {
		CAN(READER, false) ->
		kernel_populate();
		assert((HELD & WHOLE) == (kept & WHOLE));
		ACCESSED(READER)
	   }
	od
}

#ifndef BOUNDED
/* The kernel takes a frame's page out of the page table, when memory is short. */
active proctype reclaim()
{
	do
	:: d_step {
		entry == FRAME -> entry = EMPTY
	   }
	od
}
#endif

/* The shim's transactions */

/*
 * The second invariant: whenever the lock is free, the shim's state says what the page table has. A defect would be
 * found by this at once; there the bytes have to show it.
 */
#define AGREED \
	((state != PRIVATE || vma == ANON) && \
	(state != FUSED || (vma == FILE && registered == WP && protected && \
		frame == kept && (entry >= N_PAGES || content[entry] == kept))) && \
	(state != PRIVATE_IN_FILE || (vma == FILE && entry < N_PAGES && !protected)) && \
	(state == GONE || vma != OTHER))

inline unlock()
{
#ifndef DEFECT
	assert(AGREED);
#endif
	lock = false
}

inline set_state(new_state)
{
	if
	:: state == FUSED -> lost = true
	:: else
	fi;
	state = new_state
}

/* pf_core_make_private(), and the end of the transaction. */
inline make_private()
{
	if
	:: d_step { /* a new mapping over the page, atomic for everybody */
		new_page(spare, frame);
		kernel_map(ANON, MISSING);
		remap_event = true
	   }
	   d_step { /* UFFDIO_MOVE, or UFFDIO_COPY: nobody has pinned the spare page, so it is the same */
		!remap_event ->
		assert(entry == EMPTY);
		entry = spare;
		spare = EMPTY;
		registered = NOT_REGISTERED;
		kernel_wake();
		set_state(PRIVATE);
		unlock()
	   }
#ifdef NO_WAY_OUT
	:: d_step {
		kernel_wake();
		unlock()
	   }
#else
	:: d_step { /* no map: pf_core_part() */
		kernel_unprotect()
	   }
	   d_step {
		kernel_copy();
		kernel_wake();
		set_state(PRIVATE_IN_FILE);
		unlock()
	   }
#endif
	fi
}

#ifdef PIN_CHECK_BYPASSED
#define CAN_MOVE (vma == ANON && entry < N_PAGES)
#else
#define CAN_MOVE (vma == ANON && entry < N_PAGES && entry != dma_page)
#endif

#ifdef NO_SECOND_COMPARISON
#define STILL_THE_FRAMES true
#else
#define STILL_THE_FRAMES (entry == FRAME)
#endif

/* The end of an order: unlocks, and answers. The bytes that were moved out, if any, are dropped. */
inline end_order()
{
	kernel_wake();
	drop(scratch);
	if
	:: connected && known == ORDERED && state != FUSED -> known = PUBLISHED
	:: else
	fi;
	ordered = false;
	fetched = ZEROS;
	unlock()
}

/* UFFDIO_MOVE back; if it is refused UFFDIO_COPY, to another page. Where something else has come, neither. */
inline put_back()
{
	if
	:: scratch != EMPTY && vma == ANON && entry == EMPTY ->
		entry = scratch;
		scratch = EMPTY
	:: else
	fi
}

inline copy_back()
{
	if
	:: scratch != EMPTY && vma == ANON && entry == EMPTY -> new_page(entry, content[scratch])
	:: else
	fi
}

/* The three ends of a freeze that leaves the page as it was: the last one fails to unregister. */
inline give_up()
{
	if
	:: d_step {
		put_back();
		registered = NOT_REGISTERED;
		end_order()
	   }
	:: d_step {
		copy_back();
		registered = NOT_REGISTERED;
		end_order()
	   }
	:: d_step {
		put_back();
		end_order()
	   }
	fi
}

/* leave_to_writer() */
inline leave_to_writer()
{
	d_step {
		kernel_unprotect()
	}
	d_step {
		kernel_copy();
		set_state(PRIVATE_IN_FILE);
		end_order()
	}
}

/* map_frames() and look_again(): REGISTER(WP) alone holds nobody, so it is one step with WRITEPROTECT. */
inline map_frame()
{
	d_step {
		kernel_map(FILE, NOT_REGISTERED);
		drop(scratch)
	}
	if
	:: d_step {
		true -> /* a window: nobody is held until here */
		registered = WP;
		protected = true
	   }
	   d_step { /* MADV_POPULATE_READ */
		kernel_populate()
	   }
	   if
	   :: d_step {
		STILL_THE_FRAMES ->
		set_state(FUSED);
		end_order()
	      }
	   :: else -> leave_to_writer()
	   fi
	:: leave_to_writer() /* it cannot be protected */
	fi
}

/* fuse_stretch() and compare_and_map(), of a page that was present when the lock was taken. */
inline fuse()
{
	if
	:: d_step {
		CAN_MOVE ->
		scratch = entry;
		entry = EMPTY
	   }
	   if
	   :: content[scratch] == fetched -> map_frame()
	   :: give_up() /* it is different, or there is no map for it */
	   fi
	:: !CAN_MOVE -> give_up()
	fi
}

/* QEMU gives memory up, and puts other mappings where guest RAM was. */

/* The contents are gone because QEMU wants it so; a DMA under way does not reach the page any more. */
inline given_up()
{
	dma_stale = (dma_page != EMPTY);
	kept = ZEROS
}

/* madvise(MADV_DONTNEED), the real one: the protection stays, as a marker. */
inline kernel_discard()
{
	drop(entry);
	given_up()
}

/* pf_core_madvise() */
inline discard()
{
#ifdef DISCARD_NOT_INTERCEPTED
	d_step {
		kernel_discard()
	}
#else
	if
	:: d_step { /* not in a file VMA */
		!lock && state != FUSED && state != PRIVATE_IN_FILE ->
		kernel_discard()
	   }
	:: d_step { /* discard_in_file() */
		!lock && (state == FUSED || state == PRIVATE_IN_FILE) ->
		lock = true;
		kernel_map(ANON, NOT_REGISTERED);
		given_up();
		set_state(PRIVATE);
		kernel_wake()
	   }
	   d_step {
		kernel_discard();
		unlock()
	   }
	:: d_step { /* no map: zero_in_file() */
		!lock && (state == FUSED || state == PRIVATE_IN_FILE) ->
		lock = true;
		kernel_unprotect()
	   }
	   d_step {
		kernel_copy();
		set_state(PRIVATE_IN_FILE);
		kernel_wake()
	   }
	   d_step {
		/* A fault here would wait for the lock that is ours. */
		assert(!MUST_WAIT(true));
		content[entry] = ZEROS;
		kept = ZEROS;
		kernel_wake();
		unlock()
	   }
	fi
#endif
}

/* pf_core_mmap() with MAP_FIXED, and pf_core_munmap(): the real call and what it means to us under one lock. */
#ifdef MUNMAP_NOT_INTERCEPTED
#define MAY_MAP true
#else
#define MAY_MAP !lock
#endif
#if defined(MUNMAP_NOT_INTERCEPTED) || defined(MUNMAP_NOT_FORGOTTEN)
#define FORGET
#else
#define FORGET set_state(GONE)
#endif

active proctype qemu()
{
	do
	:: MAY(calls_left) ->
	   if
	   :: discard()
	   :: d_step { /* the guest has given the memory back: unplugged */
		MAY_MAP && !waits[CPU] && !waits[DMA] && !waits[READER] && dma_page == EMPTY ->
		plugged = false;
		kernel_map(OTHER, NOT_REGISTERED);
		new_page(entry, QEMUS_OWN);
		FORGET
	   }
	   assert(vma == OTHER && content[entry] == QEMUS_OWN)
	   :: true /* a page with a memory error gets new memory while the guest has it */
	   fi;
	   if
	   :: state != GONE && plugged -> skip
	   :: d_step {
		MAY_MAP ->
		kernel_map(ANON, NOT_REGISTERED);
		given_up();
		plugged = true;
		FORGET
	      }
	      /* The next memory at this place: madvise(MADV_DONTFORK), pf_core_add_block(). */
	      d_step {
		!lock ->
		if
		:: state == GONE -> state = PRIVATE
		:: else
		fi
	      }
	   fi;
	   SPEND(calls_left)
	od
}

/* The shim's threads */

/* Puts a fault into the shim's queue. Two of one sort are as one that was read later. */
inline read_fault(who)
{
	d_step {
		waits[who] == MISSING_FAULT || waits[who] == WRITE_FAULT ->
		if
		:: waits[who] == WRITE_FAULT -> write_queued = true
		:: else -> missing_queued = true
		fi;
		waits[who] = FAULT_READ
	}
}

/* Only reads, and waits for nobody. */
active proctype fault_thread()
{
	do
	:: d_step {
		remap_event -> remap_event = false
	   }
	:: read_fault(CPU)
	:: read_fault(DMA)
	:: read_fault(READER)
	od
}

/* resolve_queued() and pf_core_resolve_fault() */
active proctype revoke_thread()
{
	do
	:: d_step {
		!lock && write_queued && state == FUSED ->
		lock = true;
		write_queued = false
	   }
	   make_private()
	:: d_step {
		!lock && write_queued && state != FUSED ->
		write_queued = false;
		kernel_unprotect()
	   }
	:: d_step {
		!lock && missing_queued ->
		missing_queued = false;
		/* UFFDIO_ZEROPAGE: where it is registered and nothing is there. */
		if
		:: state == PRIVATE && registered == MISSING && entry == EMPTY -> new_page(entry, ZEROS)
		:: else
		fi;
		kernel_wake()
	   }
	od
}

/* A revoke of the page beside this one: this one is registered with it, and its unregistering may fail. */
active proctype neighbour()
{
	do
	:: d_step {
		MAY(neighbours_left) && !lock && state == PRIVATE && vma == ANON ->
		SPEND(neighbours_left);
		lock = true;
		registered = MISSING
	   }
	   if
	   :: d_step {
		true ->
		registered = NOT_REGISTERED;
		kernel_wake();
		unlock()
	      }
	   :: d_step {
		true ->
		kernel_wake();
		unlock()
	      }
	   fi
	od
}

active proctype link()
{
	do
	:: d_step {
		order ->
		order = false;
		ordered = true;
		fetched = frame
	   }
	   if
	   :: d_step { /* pf_core_yield(): faults that were read go first */
		!lock && !PENDING && state == PRIVATE && vma == ANON && entry < N_PAGES ->
		lock = true;
		registered = MISSING
	      }
	      fuse()
	   :: d_step { /* worth_a_freeze(): no; or the budget of maps is spent */
		!lock && !PENDING ->
		end_order()
	      }
	   fi
	:: d_step { /* RELEASE */
		MAY(releases_left) && !lock && !PENDING && state == FUSED ->
		SPEND(releases_left);
		lock = true
	   }
	   make_private()
	:: d_step { /* LOST */
		!lock && connected && lost ->
		lost = false;
		if
		:: known == ORDERED -> known = PUBLISHED
		:: else
		fi
	   }
	:: d_step { /* another service: what was ordered is dropped, then it hears what is fused */
		!lock && !connected ->
		order = false;
		lost = false;
		connected = true;
		if
		:: known == UNKNOWN && state == FUSED -> known = ORDERED
		:: known == UNKNOWN && state != FUSED -> known = PUBLISHED
		:: else
		fi
	   }
	od
}

/* The service */

/* Where a frame may be put: nobody has ever used the offset; or nobody has said that he does. */
#ifdef OFFSET_USED_AGAIN
#define MAY_PUBLISH (known == NEVER_USED || known == UNKNOWN)
#else
#define MAY_PUBLISH (known == NEVER_USED)
#endif

#define REFERRED_TO (vma == FILE || order || ordered || lost)

active proctype service()
{
	do
	:: d_step { /* the bytes are those of the guest's page now, and of somebody else's */
		MAY(frames_left) && MAY_PUBLISH && kept != ZEROS ->
		SPEND(frames_left);
		frame = kept;
		known = PUBLISHED
	   }
	:: d_step {
		MAY(orders_left) && connected && known == PUBLISHED && !order ->
		SPEND(orders_left);
		order = true;
		known = ORDERED
	   }
	:: d_step { /* the hole is punched; the kernel unmaps what is mapped */
		connected && known == PUBLISHED ->
		known = PUNCHED;
		frame = ZEROS;
		if
		:: entry == FRAME -> entry = EMPTY
		:: else
		fi
	   }
	:: d_step { /* an offset that nothing refers to may stand for the next one */
		known == PUNCHED && !REFERRED_TO -> known = NEVER_USED
	   }
#ifndef BOUNDED
	:: d_step { /* killed */
		connected ->
		connected = false;
		if
		:: known == PUBLISHED || known == ORDERED -> known = UNKNOWN
		:: else
		fi
	   }
#endif
	od
}

#ifdef BOUNDED
/* Nothing can be done any more: then everybody has done all that he wanted. */
active proctype end()
{
	timeout ->
	assert(!MAY_ACCESS(CPU) && !MAY_ACCESS(DMA) && !MAY_ACCESS(READER) && !calls_left && !lock)
}
#endif
