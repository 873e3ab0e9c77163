/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an attacker who has taken over the service would try, each in a sandbox of its own, and what comes of it. */
#include "tests/security/inside.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#define KILLED (INSIDE_SIGNAL + SIGSYS)
#define PAGE   4096
#define NOBODY 0x3fffffff /* the id of no process: the kernel would say so, if it were asked */

static int unix_socket = -1; /* opened before */
static pid_t parent;
static void *page; /* of ours, readable and writable */

/* A way to do it: below 0 with errno is a failure. */
typedef struct Attempt {
	const char *name;
	long (*attempt)(void);
	int expected;
} Attempt;

static int outcome(void *userdata)
{
	const Attempt *attempt = userdata;

	return attempt->attempt() < 0 ? errno : 0;
}

static void try_all(const Attempt *attempts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		Attempt attempt = attempts[i];
		int came = inside(outcome, &attempt);

		if (came != attempt.expected)
			fail_msg("%s: %d and not %d (%s)", attempt.name, came, attempt.expected,
				came >= INSIDE_SIGNAL ? "killed" : strerror(came));
	}
}

#define TRY(name, expression)                                                                      \
	static long name(void)                                                                     \
	{                                                                                          \
		return (long)(expression);                                                         \
	}

/* Files */

TRY(open_passwd, open("/etc/passwd", O_RDONLY))
TRY(open_device, open("/dev/userfaultfd", O_RDWR))
TRY(open_libvirt, open("/run/libvirt", O_PATH))
TRY(open_above, open("/../../etc", O_PATH))
TRY(create, open("/file", O_WRONLY | O_CREAT, 0600))
TRY(create_unnamed, open("/", O_WRONLY | O_TMPFILE, 0600))
TRY(list, syscall(SYS_getdents64, open("/", O_RDONLY | O_DIRECTORY), page, PAGE))
TRY(make_directory, mkdir("/directory", 0700))
TRY(open_meminfo, open("/proc/meminfo", O_RDONLY))
TRY(open_sysctl, open("/proc/sys/vm/max_map_count", O_RDWR))
TRY(open_init, open("/proc/1/status", O_RDONLY))
TRY(write_own_memory, open("/proc/self/mem", O_RDWR))
TRY(write_own_score, open("/proc/self/oom_score_adj", O_WRONLY))
TRY(change_mode, chmod("/proc", 0777))
TRY(by_handle, syscall(SYS_open_by_handle_at, unix_socket, page, O_RDONLY))
TRY(change_root, chroot("/proc"))
TRY(mount_tmpfs, mount("tmpfs", "/proc", "tmpfs", 0, NULL))
TRY(unmount, umount2("/proc", MNT_DETACH))
TRY(open_mount, syscall(SYS_fsopen, "tmpfs", 0))

static long open_parent(void)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/status", parent);
	return open(path, O_RDONLY);
}

static const Attempt file_attempts[] = {
	{"open /etc/passwd", open_passwd, ENOENT},
	{"open /dev/userfaultfd", open_device, ENOENT},
	{"open /run/libvirt", open_libvirt, ENOENT},
	{"open what is above /", open_above, ENOENT},
	{"create a file", create, EROFS},
	{"create a file without a name", create_unnamed, EROFS},
	{"list /", list, EPERM},
	{"make a directory", make_directory, EPERM},
	{"open /proc/meminfo", open_meminfo, ENOENT},
	{"open a sysctl", open_sysctl, ENOENT},
	{"open /proc/1", open_init, ENOENT},
	{"open the parent's /proc", open_parent, ENOENT},
	{"open its own memory", write_own_memory, EROFS},
	{"change its own score", write_own_score, EROFS},
	{"chmod", change_mode, EPERM},
	{"open by handle", by_handle, KILLED},
	{"chroot", change_root, KILLED},
	{"mount", mount_tmpfs, KILLED},
	{"unmount", unmount, KILLED},
	{"fsopen", open_mount, KILLED},
};

static void test_files(void **state)
{
	try_all(file_attempts, G_N_ELEMENTS(file_attempts));
}

/* Sockets */

static const struct sockaddr_un by_path = {AF_UNIX, "/run/dbus/system_bus_socket"};
static const struct sockaddr_un abstract = {AF_UNIX, "\0pagefusion-test"};

TRY(socket_unix, socket(AF_UNIX, SOCK_STREAM, 0))
TRY(socket_inet, socket(AF_INET, SOCK_STREAM, 0))
TRY(socket_netlink, socket(AF_NETLINK, SOCK_RAW, 0))
TRY(socket_vsock, socket(AF_VSOCK, SOCK_STREAM, 0))
TRY(connect_path, connect(unix_socket, (const struct sockaddr *)&by_path, sizeof by_path))
TRY(connect_abstract, connect(unix_socket, (const struct sockaddr *)&abstract, sizeof abstract))
TRY(bind_abstract, bind(unix_socket, (const struct sockaddr *)&abstract, sizeof abstract))
TRY(listen_socket, listen(unix_socket, 1))

static long socket_pair(void)
{
	int fds[2];

	return socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
}

static const Attempt socket_attempts[] = {
	{"a unix socket", socket_unix, EPERM},
	{"an internet socket", socket_inet, EPERM},
	{"a netlink socket", socket_netlink, EPERM},
	{"a vsock", socket_vsock, EPERM},
	{"a pair of sockets", socket_pair, EPERM},
	{"connect to the bus", connect_path, EPERM},
	{"connect to an abstract name", connect_abstract, EPERM},
	{"bind", bind_abstract, EPERM},
	{"listen", listen_socket, EPERM},
};

static void test_sockets(void **state)
{
	unix_socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(unix_socket >= 0);
	for (size_t i = 0; i < G_N_ELEMENTS(socket_attempts); i++) {
		Attempt attempt = socket_attempts[i];
		pid_t pid = inside_start(outcome, &attempt, unix_socket);
		int came = inside_end(pid);

		if (came != attempt.expected)
			fail_msg("%s: %d and not %d", attempt.name, came, attempt.expected);
	}
	close(unix_socket);
}

/* Programs, processes and users */

static char *const no_arguments[] = {NULL};

TRY(execute, execve("/proc/self/exe", no_arguments, no_arguments))
TRY(execute_memory,
	syscall(SYS_execveat, memfd_create("x", 0), "", no_arguments, no_arguments, AT_EMPTY_PATH))
TRY(fork_process, syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))
TRY(namespace_by_clone, syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0))
TRY(clone_three, syscall(SYS_clone3, page, CLONE_ARGS_SIZE_VER0))
TRY(trace_parent, ptrace(PTRACE_ATTACH, parent, NULL, NULL))
TRY(kill_parent, kill(parent, SIGKILL))
TRY(kill_parent_thread, syscall(SYS_tgkill, parent, parent, SIGKILL))
TRY(kill_thread, syscall(SYS_tkill, parent, SIGKILL))
TRY(queue_signal, syscall(SYS_rt_sigqueueinfo, parent, SIGTERM, page))
TRY(kill_by_descriptor,
	syscall(SYS_pidfd_send_signal, syscall(SYS_pidfd_open, parent, 0), SIGKILL, NULL, 0))
TRY(steal_descriptor, syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, parent, 0), 0, 0))
TRY(own_signal, syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), 0))
TRY(signal_nobody, syscall(SYS_tgkill, NOBODY, NOBODY, 0))
TRY(limits_of_nobody, prlimit(NOBODY, RLIMIT_NOFILE, NULL, page))
TRY(become_root, setuid(0))
TRY(become_roots_group, setgid(0))
TRY(join_groups, syscall(SYS_setgroups, 0, NULL))
TRY(regain, syscall(SYS_capset, page, page))
TRY(leave, unshare(CLONE_NEWUSER))
TRY(enter, setns(syscall(SYS_pidfd_open, parent, 0), CLONE_NEWNET))

static long read_parent(void)
{
	struct iovec ours = {page, 8}, theirs = {page, 8};

	return process_vm_readv(parent, &ours, 1, &theirs, 1, 0);
}

static long write_parent(void)
{
	struct iovec ours = {page, 8}, theirs = {page, 8};

	return process_vm_writev(parent, &ours, 1, &theirs, 1, 0);
}

static long change_limit(void)
{
	struct rlimit none = {0, 0};

	return setrlimit(RLIMIT_NOFILE, &none);
}

static const Attempt process_attempts[] = {
	{"execve", execute, KILLED},
	{"execute memory", execute_memory, KILLED},
	{"fork", fork_process, EPERM},
	{"clone a user namespace", namespace_by_clone, EPERM},
	{"clone3", clone_three, ENOSYS},
	{"ptrace", trace_parent, KILLED},
	{"kill", kill_parent, KILLED},
	{"tgkill", kill_parent_thread, EPERM},
	{"tgkill, of any other", signal_nobody, EPERM},
	{"tkill", kill_thread, KILLED},
	{"queue a signal", queue_signal, KILLED},
	{"kill by pidfd", kill_by_descriptor, KILLED},
	{"take a descriptor by pidfd", steal_descriptor, KILLED},
	{"signal itself", own_signal, 0},
	{"read another's memory", read_parent, KILLED},
	{"write another's memory", write_parent, KILLED},
	{"change a limit", change_limit, EPERM},
	{"read another's limits", limits_of_nobody, EPERM},
	{"setuid", become_root, KILLED},
	{"setgid", become_roots_group, KILLED},
	{"setgroups", join_groups, KILLED},
	{"capset", regain, KILLED},
	{"unshare", leave, KILLED},
	{"setns", enter, KILLED},
};

static void test_processes(void **state)
{
	try_all(process_attempts, G_N_ELEMENTS(process_attempts));
}

/* Memory and the kernel */

TRY(map_code,
	(long)mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == -1 ? -1
												: 0)
TRY(make_code, mprotect(page, PAGE, PROT_READ | PROT_EXEC))
TRY(make_code_with_key, syscall(SYS_pkey_mprotect, page, PAGE, PROT_EXEC, -1))
TRY(imply_code, personality(READ_IMPLIES_EXEC))
TRY(become_dumpable, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
TRY(survive_parent, prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0))
TRY(call_name, prctl(PR_SET_NAME, "pf-inside", 0, 0, 0))
TRY(catch_faults, syscall(SYS_userfaultfd, 0))
TRY(load_bpf, syscall(SYS_bpf, 0, page, 0))
TRY(make_ring, syscall(SYS_io_uring_setup, 1, page))
TRY(count_events, syscall(SYS_perf_event_open, page, 0, -1, -1, 0))
TRY(use_keys, syscall(SYS_keyctl, 0, 0))
TRY(load_module, syscall(SYS_finit_module, 0, "", 0))
TRY(type_terminal, ioctl(STDIN_FILENO, TIOCSTI, "x"))
TRY(own_signals, fcntl(STDIN_FILENO, F_SETOWN, parent))
TRY(share_memory, shmget(IPC_PRIVATE, PAGE, 0600))
TRY(open_queue, syscall(SYS_mq_open, "queue", O_CREAT | O_RDWR, 0600, NULL))
TRY(call_newer, syscall(511))
#ifdef __x86_64__
TRY(call_x32, syscall(0x40000000 | SYS_getpid))

static long call_32_bits(void)
{
	long r = 20; /* getpid */

	__asm__ volatile("int $0x80" : "+a"(r) : : "memory");
	return r;
}
#endif

static const Attempt kernel_attempts[] = {
	{"map code", map_code, EPERM},
	{"make code", make_code, EPERM},
	{"make code with a key", make_code_with_key, EPERM},
	{"READ_IMPLIES_EXEC", imply_code, EPERM},
	{"become dumpable", become_dumpable, EPERM},
	{"survive its parent", survive_parent, EPERM},
	{"call itself something", call_name, 0},
	{"userfaultfd", catch_faults, KILLED},
	{"bpf", load_bpf, KILLED},
	{"io_uring", make_ring, KILLED},
	{"perf_event_open", count_events, KILLED},
	{"keyctl", use_keys, KILLED},
	{"load a module", load_module, KILLED},
	{"type into a terminal", type_terminal, EPERM},
	{"send signals by a descriptor", own_signals, EPERM},
	{"shared memory", share_memory, EPERM},
	{"a message queue", open_queue, EPERM},
	{"a call that is newer than the list", call_newer, ENOSYS},
#ifdef __x86_64__
	{"x32", call_x32, KILLED},
	{"32 bits", call_32_bits, KILLED},
#endif
};

static void test_kernel(void **state)
{
	try_all(kernel_attempts, G_N_ELEMENTS(kernel_attempts));
}

/* The others of the list; with these arguments they would do nothing to us either. */
static const int others[] = {
	SYS_kcmp, SYS_process_madvise, SYS_rt_tgsigqueueinfo, SYS_fsconfig, SYS_fsmount, SYS_fspick,
	SYS_mount_setattr, SYS_move_mount, SYS_name_to_handle_at, SYS_open_tree, SYS_pivot_root,
	SYS_setfsgid, SYS_setfsuid, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid,
	SYS_add_key, SYS_io_uring_enter, SYS_io_uring_register, SYS_request_key, SYS_acct,
	SYS_delete_module, SYS_init_module, SYS_kexec_load, SYS_reboot, SYS_swapoff, SYS_swapon,
#ifdef __x86_64__
	SYS_ioperm, SYS_iopl, SYS_kexec_file_load, SYS_modify_ldt
#endif
};

static int call_other(void *userdata)
{
	return syscall(*(const int *)userdata, -1L, -1L, -1L, -1L, -1L, -1L) < 0 ? errno : 0;
}

static void test_other_calls(void **state)
{
	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		int call = others[i], came = inside(call_other, &call);

		if (came != KILLED)
			fail_msg("system call %d: %d and not %d", call, came, KILLED);
	}
}

static int set_up(void **state)
{
	parent = getpid();
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return page == MAP_FAILED;
}

static int tear_down(void **state)
{
	return munmap(page, PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_sockets),
		cmocka_unit_test(test_processes),
		cmocka_unit_test(test_kernel),
		cmocka_unit_test(test_other_calls),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
