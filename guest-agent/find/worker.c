// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A system call on a file whose server is gone can take for ever, and nothing ends it but a signal that ends the
 * process. So it is made in another thread, the hand, while the caller waits with a deadline. The hand is started
 * when the first job comes and stays for the next; it sleeps meanwhile.
 *
 * A job that misses its deadline is left behind: it belongs to its hand from then on, and so does whatever it
 * uses. The worker forgets that hand and starts another for the next job. Should the call come back one day, the
 * hand discards the job and ends. What the hands and the worker have in common (the board) lives until the last
 * of them is gone, since a hand can outlive the worker.
 *
 * A hand that is left behind costs its stack and a thread; that there are only a few of them at the same time
 * bounds what a guest's broken mounts can cost. Hands have the priority of the thread that starts them. They
 * block all signals but those that their own instructions raise: guard.c needs SIGBUS. What a thread cannot
 * help with is a call that hangs while it holds the lock of the address space, as mmap() of some network file
 * systems can: look.c asks the server just before, where no lock is held.
 */
#include "guest-agent/find/worker.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* Of address space; memory is only what is used of it. */
#define STACK_SIZE (256 * 1024)

typedef struct Board {
	pthread_mutex_t lock; /* of all below, and of each hand's fields */
	pthread_cond_t changed;
	size_t n_users; /* the worker and its hands */
	size_t n_left;
} Board;

typedef struct Hand {
	Board *board;
	PfJob *job;     /* to be run, until it has */
	bool left;      /* nobody waits for the job */
	bool dismissed; /* there will be no more jobs */
	pthread_t thread;
} Hand;

struct PfWorker {
	Board *board;
	Hand *hand; /* NULL: none, or it was left behind */
	int timeout_ms;
	int64_t waited_us; /* for all its jobs */
};

static Board *board_new(void)
{
	Board *board = calloc(1, sizeof(*board));
	pthread_condattr_t attributes;

	if (!board)
		return NULL;
	pthread_mutex_init(&board->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&board->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	board->n_users = 1;
	return board;
}

/* Unlocks the board, and frees it when its last user goes. */
static void board_leave(Board *board)
{
	bool last = --board->n_users == 0;

	pthread_mutex_unlock(&board->lock);
	if (!last)
		return;
	pthread_cond_destroy(&board->changed);
	pthread_mutex_destroy(&board->lock);
	free(board);
}

int pf_worker_new(PfWorker **worker, int timeout_ms)
{
	PfWorker *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->timeout_ms = timeout_ms;
	w->board = board_new();
	if (!w->board) {
		free(w);
		return -ENOMEM;
	}
	*worker = w;
	return 0;
}

void pf_worker_free(PfWorker *worker)
{
	Board *board;

	if (!worker)
		return;
	board = worker->board;
	pthread_mutex_lock(&board->lock);
	if (worker->hand) {
		pthread_t thread = worker->hand->thread;

		worker->hand->dismissed = true;
		pthread_cond_broadcast(&board->changed);
		pthread_mutex_unlock(&board->lock);
		pthread_join(thread, NULL);
		pthread_mutex_lock(&board->lock);
	}
	board_leave(board);
	free(worker);
}

/* Called locked, and returns so. Whether the hand goes on. */
static bool run_one(Hand *hand)
{
	Board *board = hand->board;
	PfJob *job = hand->job;

	pthread_mutex_unlock(&board->lock);
	job->run(job);
	pthread_mutex_lock(&board->lock);
	hand->job = NULL;
	if (!hand->left) {
		pthread_cond_broadcast(&board->changed);
		return true;
	}
	pthread_mutex_unlock(&board->lock);
	job->discard(job);
	pthread_mutex_lock(&board->lock);
	board->n_left--;
	return false;
}

static void *hand_main(void *data)
{
	Hand *hand = data;
	Board *board = hand->board;
	bool goes_on = true;

	pthread_mutex_lock(&board->lock);
	while (goes_on) {
		if (hand->job)
			goes_on = run_one(hand);
		else if (hand->dismissed)
			goes_on = false;
		else
			pthread_cond_wait(&board->changed, &board->lock);
	}
	free(hand);
	board_leave(board);
	return NULL;
}

static int start_thread(Hand *hand)
{
	static const int own[] = {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP};
	pthread_attr_t attributes;
	sigset_t blocked, before;
	int r;

	sigfillset(&blocked);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&blocked, own[i]);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	r = pthread_create(&hand->thread, &attributes, hand_main, hand);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -r;
}

/* Called locked, so that the hand waits until all of it is set up. */
static int take_on(PfWorker *worker)
{
	Hand *hand = calloc(1, sizeof(*hand));
	int r;

	if (!hand)
		return -ENOMEM;
	hand->board = worker->board;
	r = start_thread(hand);
	if (r < 0) {
		free(hand);
		return -EBUSY;
	}
	worker->board->n_users++;
	worker->hand = hand;
	return 0;
}

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static struct timespec deadline_in(int timeout_ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += timeout_ms / 1000;
	t.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (t.tv_nsec >= 1000000000L) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000L;
	}
	return t;
}

/* Called locked. */
static int hand_over(PfWorker *worker, PfJob *job)
{
	Board *board = worker->board;
	Hand *hand = worker->hand;
	struct timespec deadline = deadline_in(worker->timeout_ms);
	int r = 0;

	hand->job = job;
	pthread_cond_broadcast(&board->changed);
	while (hand->job && r == 0)
		r = pthread_cond_timedwait(&board->changed, &board->lock, &deadline);
	if (!hand->job)
		return 0;
	assert(r == ETIMEDOUT);
	hand->left = true;
	board->n_left++;
	worker->hand = NULL;
	pthread_detach(hand->thread);
	return -ETIMEDOUT;
}

int pf_worker_run(PfWorker *worker, PfJob *job)
{
	Board *board = worker->board;
	int64_t began_us = now_us();
	int r = 0;

	pthread_mutex_lock(&board->lock);
	if (board->n_left >= PF_WORKER_MAX_LEFT)
		r = -EBUSY;
	else if (!worker->hand)
		r = take_on(worker);
	if (r == 0)
		r = hand_over(worker, job);
	pthread_mutex_unlock(&board->lock);
	worker->waited_us += now_us() - began_us;
	return r;
}

size_t pf_worker_left(const PfWorker *worker)
{
	size_t n;

	pthread_mutex_lock(&worker->board->lock);
	n = worker->board->n_left;
	pthread_mutex_unlock(&worker->board->lock);
	return n;
}

int64_t pf_worker_waited_us(const PfWorker *worker)
{
	return worker->waited_us;
}
