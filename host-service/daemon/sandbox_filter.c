/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An allow-list: what the service does, and what glibc, GLib and OpenSSL do for it. The rest gets one of four answers.
 *
 * - Killed is what no library tries on its own account and what an attacker needs: another program, another process's
 *   memory or descriptors, mounts and namespaces, another user, and the kernel's interfaces that have been its weak
 *   spots. The kernel writes a line about it (audit).
 * - EPERM is the answer to all else that is known: some library may ask, and has to live with a no. Sockets are of this
 *   kind, because glibc and OpenSSL open some of their own to see whether somebody is there.
 * - ENOSYS is what clone3 gets, whose arguments lie in memory, where a filter cannot look: glibc then makes its threads
 *   with clone. It is also the answer to all calls that are newer than this list, as of a kernel that does not have
 *   them, because that is the answer for which a library has another way.
 * - Calls of another architecture (32 bits, x32) kill.
 *
 * Arguments are looked at where they are numbers and matter: no memory is executable, no process is begun, only a
 * process's own threads get signals, and its own limits can only be read.
 */
#include "host-service/daemon/sandbox_filter.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The headers and libseccomp of Debian 12 are older than these; the numbers are the same everywhere. */
#define NR_CACHESTAT 451
#define NR_NEWEST    511 /* none of the newer ones is listed here */

static const int allowed[] = {
	/* descriptors */
	SCMP_SYS(accept4),
	SCMP_SYS(close),
	SCMP_SYS(eventfd2),
	SCMP_SYS(fallocate),
	SCMP_SYS(fchmod),
	SCMP_SYS(fstat),
	SCMP_SYS(fstatfs),
	SCMP_SYS(ftruncate),
	SCMP_SYS(getsockopt),
	SCMP_SYS(lseek),
	SCMP_SYS(memfd_create),
	SCMP_SYS(newfstatat),
	SCMP_SYS(openat),
	SCMP_SYS(pidfd_open),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(pread64),
	SCMP_SYS(pwrite64),
	SCMP_SYS(read),
	SCMP_SYS(recvmsg),
	SCMP_SYS(sendmsg),
	SCMP_SYS(write),
	SCMP_SYS(writev),
	NR_CACHESTAT,
	/* memory; see also the list of arguments */
	SCMP_SYS(brk),
	SCMP_SYS(madvise),
	SCMP_SYS(mremap),
	SCMP_SYS(munmap),
	/* threads */
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
	SCMP_SYS(futex),
	SCMP_SYS(getpid),
	SCMP_SYS(getppid),
	SCMP_SYS(gettid),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(rseq),
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sched_getaffinity),
	SCMP_SYS(sched_yield),
	SCMP_SYS(set_robust_list),
	/* what time it is, who we are and how much there is */
	SCMP_SYS(clock_getres),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(getegid),
	SCMP_SYS(geteuid),
	SCMP_SYS(getgid),
	SCMP_SYS(getrandom),
	SCMP_SYS(getrusage),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(getuid),
	SCMP_SYS(nanosleep),
	SCMP_SYS(sysinfo),
};

static const int killed[] = {
	/* another program, another process */
	SCMP_SYS(execve),
	SCMP_SYS(execveat),
	SCMP_SYS(kcmp),
	SCMP_SYS(kill),
	SCMP_SYS(pidfd_getfd),
	SCMP_SYS(pidfd_send_signal),
	SCMP_SYS(process_madvise),
	SCMP_SYS(process_vm_readv),
	SCMP_SYS(process_vm_writev),
	SCMP_SYS(ptrace),
	SCMP_SYS(rt_sigqueueinfo),
	SCMP_SYS(rt_tgsigqueueinfo),
	SCMP_SYS(tkill),
	/* another place in the file system */
	SCMP_SYS(chroot),
	SCMP_SYS(fsconfig),
	SCMP_SYS(fsmount),
	SCMP_SYS(fsopen),
	SCMP_SYS(fspick),
	SCMP_SYS(mount),
	SCMP_SYS(mount_setattr),
	SCMP_SYS(move_mount),
	SCMP_SYS(name_to_handle_at),
	SCMP_SYS(open_by_handle_at),
	SCMP_SYS(open_tree),
	SCMP_SYS(pivot_root),
	SCMP_SYS(setns),
	SCMP_SYS(umount2),
	SCMP_SYS(unshare),
	/* another user */
	SCMP_SYS(capset),
	SCMP_SYS(setfsgid),
	SCMP_SYS(setfsuid),
	SCMP_SYS(setgid),
	SCMP_SYS(setgroups),
	SCMP_SYS(setregid),
	SCMP_SYS(setresgid),
	SCMP_SYS(setresuid),
	SCMP_SYS(setreuid),
	SCMP_SYS(setuid),
	/* the kernel's wide interfaces */
	SCMP_SYS(add_key),
	SCMP_SYS(bpf),
	SCMP_SYS(io_uring_enter),
	SCMP_SYS(io_uring_register),
	SCMP_SYS(io_uring_setup),
	SCMP_SYS(keyctl),
	SCMP_SYS(modify_ldt),
	SCMP_SYS(perf_event_open),
	SCMP_SYS(request_key),
	SCMP_SYS(userfaultfd),
	/* root's own */
	SCMP_SYS(acct),
	SCMP_SYS(delete_module),
	SCMP_SYS(finit_module),
	SCMP_SYS(init_module),
	SCMP_SYS(ioperm),
	SCMP_SYS(iopl),
	SCMP_SYS(kexec_file_load),
	SCMP_SYS(kexec_load),
	SCMP_SYS(reboot),
	SCMP_SYS(swapoff),
	SCMP_SYS(swapon),
};

static int add_each(scmp_filter_ctx filter, uint32_t action, const int *calls, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = seccomp_rule_add(filter, action, calls[i], 0);
	return r;
}

/* Of an int the kernel looks at the lower half only. */
static struct scmp_arg_cmp is_int(unsigned argument, int value)
{
	return (struct scmp_arg_cmp){argument, SCMP_CMP_MASKED_EQ, UINT32_MAX, (uint32_t)value};
}

static struct scmp_arg_cmp has_bit(unsigned argument, uint64_t bit)
{
	return (struct scmp_arg_cmp){argument, SCMP_CMP_MASKED_EQ, bit, bit};
}

static struct scmp_arg_cmp has_not_bit(unsigned argument, uint64_t bit)
{
	return (struct scmp_arg_cmp){argument, SCMP_CMP_MASKED_EQ, bit, 0};
}

static struct scmp_arg_cmp is_null(unsigned argument)
{
	return (struct scmp_arg_cmp){argument, SCMP_CMP_EQ, 0, 0};
}

static int allow_if(scmp_filter_ctx filter, int call, struct scmp_arg_cmp condition)
{
	return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, &condition);
}

static int allow_fcntl(scmp_filter_ctx filter)
{
	static const int commands[] = {
		F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS, F_ADD_SEALS};
	int r = 0;

	for (size_t i = 0; i < G_N_ELEMENTS(commands) && r == 0; i++)
		r = allow_if(filter, SCMP_SYS(fcntl), is_int(1, commands[i]));
	return r;
}

/* Not to change limits: no new ones, and of no other process. */
static int allow_reading_limits(scmp_filter_ctx filter)
{
	const struct scmp_arg_cmp conditions[] = {is_int(0, 0), is_null(2)};

	return seccomp_rule_add_array(
		filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), G_N_ELEMENTS(conditions), conditions);
}

static int add_arguments(scmp_filter_ctx filter)
{
	const struct {
		int call;
		struct scmp_arg_cmp condition;
	} rules[] = {
		{SCMP_SYS(mmap), has_not_bit(2, PROT_EXEC)},
		{SCMP_SYS(mprotect), has_not_bit(2, PROT_EXEC)},
		{SCMP_SYS(clone), has_bit(0, CLONE_THREAD)},
		{SCMP_SYS(prctl), is_int(0, PR_SET_NAME)},
		{SCMP_SYS(tgkill), is_int(0, getpid())},
	};
	int r = allow_fcntl(filter);

	for (size_t i = 0; i < G_N_ELEMENTS(rules) && r == 0; i++)
		r = allow_if(filter, rules[i].call, rules[i].condition);
	return r == 0 ? allow_reading_limits(filter) : r;
}

static int add_unknown(scmp_filter_ctx filter)
{
	int r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	for (int call = NR_CACHESTAT + 1; call <= NR_NEWEST && r == 0; call++)
		r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), call, 0);
	return r;
}

static int fill(scmp_filter_ctx filter)
{
	int r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

	/* Else a call is looked for in a list from its beginning to its end. */
	if (r == 0)
		r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (r == 0)
		r = add_each(filter, SCMP_ACT_ALLOW, allowed, G_N_ELEMENTS(allowed));
	if (r == 0)
		r = add_each(filter, SCMP_ACT_KILL_PROCESS, killed, G_N_ELEMENTS(killed));
	if (r == 0)
		r = add_arguments(filter);
	if (r == 0)
		r = add_unknown(filter);
	return r;
}

int pf_sandbox_load_filter(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int r;

	if (!filter)
		return -ENOMEM;
	r = fill(filter);
	if (r == 0)
		r = seccomp_load(filter);
	seccomp_release(filter);
	return r;
}
