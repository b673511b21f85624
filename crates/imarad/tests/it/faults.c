/* What a C library would do on a bad day. Loaded into a daemon by LD_PRELOAD; each fault is switched on by a file of its
   name in the directory IMARA_FAULTS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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
