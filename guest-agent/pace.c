// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Three purses. Hashing is paid from a bucket that holds one second's worth of the limit, so that a
 * pass that finds much is slow instead of loud.
 *
 * Routine passes find nothing new most of the time; each puts off the next one, of any class, until
 * what it cost is no more than the limit's share of the time. So the interval is a lower bound:
 * a guest with many processes is looked at less often.
 *
 * Work that programs cause by starting and ending has ten times the routine's share, and may save
 * up some for a burst: a program that starts now and then is looked at at once, a build that
 * starts a thousand a second cannot keep the agent busy. The first pass of a class, and what
 * somebody asks for, is paid by nobody: it is what the agent is there for.
 *
 * A process that has just started a program has mapped next to nothing, so it is looked at a
 * little later and once more when it is likely to have loaded the rest. Those that are due at
 * about the same time are looked at together: one wake-up.
 */
#include "guest-agent/pace.h"

#define EVENT_SHARE    10      /* times the routine's */
#define EVENT_BURST_US 1000000 /* of CPU */
#define TOGETHER_MS    400
#define MAX_EARNED_MS  100000 /* so that no product overflows */
#define ENDED_SHARE    4      /* ends of processes: a quarter of the interval is enough */

static int64_t earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int64_t later(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static void forget_due(PfPace *pace, PfPageClass class)
{
	for (int reason = 0; reason < PF_PACE_N_REASONS; reason++)
		pace->due_ms[class][reason] = PF_PACE_NEVER;
}

void pf_pace_init(PfPace *pace, int64_t now_ms)
{
	*pace = (PfPace){.hash_ms = now_ms,
		.event_ms = now_ms,
		.routine_from_ms = now_ms,
		.event_credit_us = EVENT_BURST_US};
	for (int c = 0; c < PF_N_CLASSES; c++)
		forget_due(pace, c);
}

void pf_pace_switch_off(PfPace *pace, PfPageClass class)
{
	pace->on[class] = false;
	forget_due(pace, class);
	if (class == PF_CLASS_MAPPED)
		pace->n_pending = 0;
}

static void configure_class(
	PfPace *pace, PfPageClass class, bool on, unsigned interval_s, int64_t now_ms)
{
	int64_t *due_ms = pace->due_ms[class];

	pace->interval_ms[class] = (int64_t)interval_s * 1000;
	if (!on) {
		pf_pace_switch_off(pace, class);
	} else if (!pace->on[class]) {
		pace->on[class] = true;
		pace->n_passes[class] = 0;
		due_ms[PF_PACE_ASKED] = now_ms;
	} else if (due_ms[PF_PACE_ROUTINE] != PF_PACE_NEVER) {
		due_ms[PF_PACE_ROUTINE] =
			earlier(due_ms[PF_PACE_ROUTINE], now_ms + pace->interval_ms[class]);
	}
}

void pf_pace_configure(
	PfPace *pace, const PfAgentConfig *config, unsigned interval_s, int64_t now_ms)
{
	if (pace->hash_limit != config->hash_limit)
		pace->hash_credit = (int64_t)config->hash_limit;
	pace->hash_limit = config->hash_limit;
	pace->cpu_limit_permyriad = config->cpu_limit_permyriad;
	for (int c = 0; c < PF_N_CLASSES; c++)
		configure_class(pace, c, config->classes[c],
			c == PF_CLASS_MAPPED ? interval_s : config->slow_interval_s, now_ms);
}

void pf_pace_ask(PfPace *pace, int64_t now_ms)
{
	for (int c = 0; c < PF_N_CLASSES; c++) {
		if (pace->on[c])
			pace->due_ms[c][PF_PACE_ASKED] = now_ms;
	}
}

static void want_event_pass(PfPace *pace, int64_t due_ms)
{
	int64_t *due = &pace->due_ms[PF_CLASS_MAPPED][PF_PACE_EVENT];

	if (pace->on[PF_CLASS_MAPPED])
		*due = earlier(*due, due_ms);
}

/* When all that is known to have started has loaded its libraries. */
void pf_pace_lost(PfPace *pace, int64_t now_ms)
{
	pace->n_pending = 0;
	pace->ripe_ms = now_ms + PF_PACE_SECOND_LOOK_MS;
	want_event_pass(pace, pace->ripe_ms);
}

/* A process that starts one program after the other is looked at for the last one. */
static bool start_anew(PfPace *pace, pid_t pid, int64_t now_ms)
{
	size_t i = 0;

	while (i < pace->n_pending && pace->pending[i].pid != pid)
		i++;
	if (i == PF_PACE_MAX_PENDING)
		return false;
	pace->pending[i].pid = pid;
	pace->pending[i].second = false;
	pace->pending[i].due_ms = now_ms + PF_PACE_FIRST_LOOK_MS;
	pace->n_pending += i == pace->n_pending;
	return true;
}

void pf_pace_started(PfPace *pace, const pid_t *pids, size_t n, int64_t now_ms)
{
	if (!pace->on[PF_CLASS_MAPPED])
		return;
	for (size_t i = 0; i < n; i++) {
		if (!start_anew(pace, pids[i], now_ms)) {
			pf_pace_lost(pace, now_ms);
			return;
		}
	}
}

void pf_pace_ended(PfPace *pace, uint64_t n, int64_t now_ms)
{
	if (n > 0)
		want_event_pass(pace, now_ms + pace->interval_ms[PF_CLASS_MAPPED] / ENDED_SHARE);
}

/* Milliseconds of the clock after which that much of the CPU's time was the limit's share. */
static int64_t pay_off_ms(const PfPace *pace, uint64_t cpu_us)
{
	return (int64_t)(cpu_us * 10 / pace->cpu_limit_permyriad);
}

/* The share of a millisecond. */
static int64_t event_us_each_ms(const PfPace *pace)
{
	return (int64_t)pace->cpu_limit_permyriad * EVENT_SHARE / 10;
}

static int64_t event_credit_us(const PfPace *pace, int64_t now_ms)
{
	int64_t earned_us = (now_ms - pace->event_ms) * event_us_each_ms(pace);

	return earlier(EVENT_BURST_US, pace->event_credit_us + earned_us);
}

/* From when on work for that reason is paid for. */
static int64_t allowed_from_ms(const PfPace *pace, PfPaceReason reason, int64_t now_ms)
{
	int64_t credit_us, each_ms;

	if (reason == PF_PACE_ASKED)
		return 0;
	if (reason == PF_PACE_ROUTINE)
		return pace->routine_from_ms;
	credit_us = event_credit_us(pace, now_ms);
	each_ms = event_us_each_ms(pace);
	return credit_us >= 0 ? 0 : now_ms + (-credit_us + each_ms - 1) / each_ms;
}

static int64_t first_look_ms(const PfPace *pace)
{
	int64_t due_ms = PF_PACE_NEVER;

	for (size_t i = 0; i < pace->n_pending; i++)
		due_ms = earlier(due_ms, pace->pending[i].due_ms);
	return due_ms;
}

static void consider(PfTurn *best, PfTurn turn, int64_t allowed_ms)
{
	if (turn.due_ms == PF_PACE_NEVER)
		return;
	turn.due_ms = later(turn.due_ms, allowed_ms);
	if (turn.due_ms < best->due_ms)
		*best = turn;
}

PfTurn pf_pace_next(const PfPace *pace, int64_t now_ms)
{
	PfTurn best = {.work = PF_WORK_NONE, .due_ms = PF_PACE_NEVER};

	consider(&best,
		(PfTurn){.work = PF_WORK_LOOK,
			.reason = PF_PACE_EVENT,
			.due_ms = first_look_ms(pace)},
		allowed_from_ms(pace, PF_PACE_EVENT, now_ms));
	/* New processes wait for nothing else. */
	if (best.due_ms <= now_ms)
		return best;
	for (int c = 0; c < PF_N_CLASSES; c++) {
		for (int reason = 0; reason < PF_PACE_N_REASONS; reason++)
			consider(&best, (PfTurn){PF_WORK_PASS, c, reason, pace->due_ms[c][reason]},
				allowed_from_ms(pace, reason, now_ms));
	}
	return best;
}

size_t pf_pace_take(PfPace *pace, pid_t *pids, int64_t now_ms)
{
	size_t n = 0, kept = 0;

	for (size_t i = 0; i < pace->n_pending; i++) {
		bool due = pace->pending[i].due_ms <= now_ms + TOGETHER_MS;

		if (due)
			pids[n++] = pace->pending[i].pid;
		if (due && pace->pending[i].second)
			continue;
		pace->pending[kept] = pace->pending[i];
		if (due) {
			pace->pending[kept].second = true;
			pace->pending[kept].due_ms = later(pace->pending[kept].due_ms, now_ms) +
						     PF_PACE_SECOND_LOOK_MS - PF_PACE_FIRST_LOOK_MS;
		}
		kept++;
	}
	pace->n_pending = kept;
	return n;
}

static void pay(PfPace *pace, PfPaceReason reason, uint64_t cpu_us, int64_t now_ms)
{
	if (reason == PF_PACE_ROUTINE) {
		pace->routine_from_ms =
			later(pace->routine_from_ms, now_ms) + pay_off_ms(pace, cpu_us);
	} else if (reason == PF_PACE_EVENT) {
		pace->event_credit_us = event_credit_us(pace, now_ms) - (int64_t)cpu_us;
		pace->event_ms = now_ms;
	}
}

void pf_pace_begin(PfPace *pace, PfPageClass class, int64_t now_ms)
{
	forget_due(pace, class);
	if (class == PF_CLASS_MAPPED && now_ms < pace->ripe_ms)
		want_event_pass(pace, pace->ripe_ms);
}

void pf_pace_done(PfPace *pace, const PfTurn *turn, uint64_t cpu_us, int64_t now_ms)
{
	int64_t *due_ms = pace->due_ms[turn->class];

	pay(pace, turn->reason, cpu_us, now_ms);
	if (turn->work != PF_WORK_PASS || !pace->on[turn->class])
		return;
	due_ms[PF_PACE_ROUTINE] = now_ms + pace->interval_ms[turn->class];
	if (pace->n_passes[turn->class]++ == 0 && pf_page_class_is_volatile(turn->class))
		due_ms[PF_PACE_ASKED] = earlier(due_ms[PF_PACE_ASKED], now_ms + PF_PACE_SETTLE_MS);
}

void pf_pace_given_up(PfPace *pace, const PfTurn *turn, uint64_t cpu_us, int64_t now_ms)
{
	int64_t *due_ms = &pace->due_ms[turn->class][turn->reason];

	pay(pace, turn->reason, cpu_us, now_ms);
	/* Which processes it has not come to is not known any more. */
	if (turn->work == PF_WORK_LOOK)
		pf_pace_lost(pace, now_ms);
	else if (pace->on[turn->class])
		*due_ms = earlier(*due_ms, turn->due_ms);
}

int64_t pf_pace_hashed(PfPace *pace, uint64_t n_pages, int64_t now_ms)
{
	int64_t limit = (int64_t)pace->hash_limit;
	int64_t earned_ms = earlier(now_ms - pace->hash_ms, MAX_EARNED_MS);

	pace->hash_credit = earlier(limit, pace->hash_credit + earned_ms * limit / 1000);
	pace->hash_credit -= (int64_t)(n_pages * PF_PAGE_SIZE);
	pace->hash_ms = now_ms;
	return pace->hash_credit >= 0 ? 0 : -pace->hash_credit * 1000 / limit + 1;
}
