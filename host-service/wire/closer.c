/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A sender can hold up a closing in two ways. A TCP socket lingers until its data was taken: that sleep ends with a
 * signal, so at each tick a watchdog sends one to whoever is closing something. To interrupt what would have ended by
 * itself does no harm: Linux has let go of the descriptor before. A file of a FUSE is flushed when a
 * descriptor of it is closed, and waits for the answer for as long as the process lives. Only a descriptor that was
 * received can be such a one: what lies unread in a socket is not flushed. So each sender's received descriptors have a
 * thread of their own, that others need not wait for; sockets have one together.
 *
 * Threads begin when there is something to close, with small stacks, which count for the service's limit of memory. Where
 * none can be had, the next descriptor tries again.
 */
#include "host-service/wire/closer.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <unistd.h>

#define TICK_US    1000
#define STACK_SIZE (128u << 10)

struct PfCloser {
	GQueue waiting; /* descriptors, each one more than it is, because a queue has no NULL */
	bool has_thread, is_closing, is_freed;
	pthread_t thread;
	GCond more; /* for the thread of the one for all */
};

/* For all of what follows, and for each closer. */
static GMutex lock;
static PfCloser for_all = {.waiting = G_QUEUE_INIT};
static GQueue threads = G_QUEUE_INIT; /* of PfCloser */
static GCond begun;                   /* a closing */
static bool has_watchdog, is_installed;

static void be_interrupted(int signal)
{
}

/* Not before it is needed: other processes of ours never close for others. */
static void install(void)
{
	const struct sigaction action = {.sa_handler = be_interrupted};

	if (!is_installed)
		is_installed = sigaction(SIGUSR1, &action, NULL) == 0;
}

/* No signal of the process's is for a thread of ours. */
static bool start(pthread_t *thread, void *(*run)(void *), void *data)
{
	pthread_attr_t attributes;
	sigset_t all, old;
	bool started;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	started = pthread_create(thread, &attributes, run, data) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attributes);
	return started;
}

/* The watchdog */

/* false: nobody closes anything. */
static bool interrupt_all(void)
{
	bool any = false;

	for (GList *item = threads.head; item; item = item->next) {
		const PfCloser *closer = item->data;

		if (closer->is_closing)
			pthread_kill(closer->thread, SIGUSR1);
		any |= closer->is_closing;
	}
	return any;
}

static void *watch(void *unused)
{
	g_mutex_lock(&lock);
	for (;;) {
		if (!interrupt_all())
			g_cond_wait(&begun, &lock);
		g_mutex_unlock(&lock);
		g_usleep(TICK_US);
		g_mutex_lock(&lock);
	}
	return NULL;
}

static void be_watched(void)
{
	pthread_t watchdog;

	if (!has_watchdog)
		has_watchdog = start(&watchdog, watch, NULL);
	g_cond_signal(&begun);
}

/* Closing */

static void destroy(PfCloser *closer)
{
	g_cond_clear(&closer->more);
	g_free(closer);
}

/* false: there is nothing to do. */
static bool wait_for_work(PfCloser *closer)
{
	while (closer == &for_all && g_queue_is_empty(&closer->waiting))
		g_cond_wait(&closer->more, &lock);
	return !g_queue_is_empty(&closer->waiting);
}

static void *serve(void *data)
{
	PfCloser *closer = data;
	sigset_t interrupt;

	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &interrupt, NULL);
	g_mutex_lock(&lock);
	while (wait_for_work(closer)) {
		int fd = GPOINTER_TO_INT(g_queue_pop_head(&closer->waiting)) - 1;

		closer->is_closing = true;
		be_watched();
		g_mutex_unlock(&lock);
		close(fd);
		g_mutex_lock(&lock);
		closer->is_closing = false;
	}
	g_queue_remove(&threads, closer);
	closer->has_thread = false;
	if (closer->is_freed)
		destroy(closer);
	g_mutex_unlock(&lock);
	return NULL;
}

static void push(PfCloser *closer, int fd)
{
	g_queue_push_tail(&closer->waiting, GINT_TO_POINTER(fd + 1));
	install();
	if (!closer->has_thread) {
		closer->has_thread = start(&closer->thread, serve, closer);
		if (closer->has_thread)
			g_queue_push_tail(&threads, closer);
	}
	g_cond_signal(&closer->more);
}

PfCloser *pf_closer_new(void)
{
	PfCloser *closer = g_new0(PfCloser, 1);

	g_queue_init(&closer->waiting);
	g_cond_init(&closer->more);
	return closer;
}

void pf_closer_free(PfCloser *closer)
{
	if (!closer)
		return;
	g_mutex_lock(&lock);
	closer->is_freed = true;
	/* There was no thread to be had. */
	while (!closer->has_thread && !g_queue_is_empty(&closer->waiting))
		push(&for_all, GPOINTER_TO_INT(g_queue_pop_head(&closer->waiting)) - 1);
	if (!closer->has_thread)
		destroy(closer);
	g_mutex_unlock(&lock);
}

void pf_closer_close(PfCloser *closer, int fd)
{
	if (fd < 0)
		return;
	g_mutex_lock(&lock);
	push(closer ? closer : &for_all, fd);
	g_mutex_unlock(&lock);
}

guint pf_closer_n_pending(const PfCloser *closer)
{
	guint n;

	if (!closer)
		closer = &for_all;
	g_mutex_lock(&lock);
	n = g_queue_get_length((GQueue *)&closer->waiting) + closer->is_closing;
	g_mutex_unlock(&lock);
	return n;
}
