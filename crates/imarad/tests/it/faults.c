/* What a C library would do on a bad day. Loaded into a daemon by LD_PRELOAD; each fault is switched on by a file of its
   name in the directory IMARA_FAULTS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int on(const char *fault)
{
	char path[4096];
	const char *directory = getenv("IMARA_FAULTS");
	if (!directory)
		return 0;
	snprintf(path, sizeof path, "%s/%s", directory, fault);
	int before = errno, found = access(path, F_OK) == 0;
	errno = before;
	return found;
}

/* The kernel has no memory for whoever wants to read at a place in a file. Not every call goes through the C library, so the
   kernel itself is told to say so. */
__attribute__((constructor)) static void no_memory(void)
{
	if (!on("no-memory"))
		return;
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pread64, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_preadv2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		abort();
}

/* The first thread, which is the dispatcher, cannot tell the time; it does not reckon with that. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*next)(clockid_t, struct timespec *);
	if (!next)
		next = dlsym(RTLD_NEXT, "clock_gettime");
	if (gettid() == getpid() && on("clock")) {
		errno = EINVAL;
		return -1;
	}
	return next(clock, now);
}

/* The group of questions, or those of notices, get queues that are bounded by /proc/sys/fs/fanotify/max_queued_events. */
int fanotify_init(unsigned int flags, unsigned int event_flags)
{
	static int (*next)(unsigned int, unsigned int);
	if (!next)
		next = dlsym(RTLD_NEXT, "fanotify_init");
	if (on((flags & 0xc) ? "bounded" : "bounded-notices"))
		flags &= ~0x10u;
	return next(flags, event_flags);
}
