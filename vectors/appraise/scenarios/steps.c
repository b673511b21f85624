/* steps: prepares files and runs single system calls on them, one reported line a call.
 *   steps prepare ROOT < SCENARIOS   makes ROOT/NAME/FILE with the content and the security.ima label given
 *   steps run     ROOT < SCENARIOS   runs the steps; prints NAME TAB N TAB STEP TAB RESULT TAB LABEL TAB T0 TAB T1
 * A scenario line: NAME TAB FILE:CONTENT:LABEL,... (or -) TAB STEP; STEP; ...    (words: see README.md)
 * CONTENT, LABEL: hex, "empty" for no bytes; LABEL "-" for no label.
 * LABEL printed: that of the file the step touched. T0, T1: coarse wall clock in ms; an audit record of the step has a
 * time stamp in T0..=T1 and no other step's has (the audit text reaches the kernel log later, from another thread). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define IMA "security.ima"
static int slot[26];          /* open descriptors, -1 = none */
static char *slot_file[26];   /* the name each was opened by */
static unsigned char *map;
static char data[65536];      /* what the step returned besides ok */
static const char *touched;   /* the file whose label is reported */

static long long now(void) { struct timespec t; clock_gettime(CLOCK_REALTIME_COARSE, &t); return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }
static long long later_than(long long t) { long long n; do { usleep(4000); n = now(); } while (n <= t); return n; }

static size_t unhex(const char *h, unsigned char *o) {
	size_t n = 0;
	if (!h || !strcmp(h, "empty")) return 0;
	for (; h[0] && h[1]; h += 2) { unsigned v; if (sscanf(h, "%2x", &v) != 1) { fprintf(stderr, "bad hex %s\n", h); exit(2); } o[n++] = v; }
	return n;
}
static void hex(char *o, const unsigned char *b, ssize_t n) {
	if (n == 0) strcpy(o, "empty");
	for (ssize_t i = 0; i < n; i++) sprintf(o + 2 * i, "%02x", b[i]);
}
static void show_label(const char *f) {
	static unsigned char b[65536]; static char o[2 * sizeof b + 8];
	ssize_t n = f ? lgetxattr(f, IMA, b, sizeof b) : -1;
	if (n < 0) strcpy(o, "-"); else hex(o, b, n);
	fputs(o, stdout);
}

static int open_flags(const char *s) {
	int f = 0;
	for (; *s; s++) switch (*s) {
	case 'r': f |= O_RDONLY; break;	case 'w': f |= O_WRONLY; break;	case 'b': f |= O_RDWR; break;
	case 'c': f |= O_CREAT; break;	case 'x': f |= O_EXCL; break;	case 't': f |= O_TRUNC; break;
	case 'a': f |= O_APPEND; break;	case 'd': f |= O_DIRECT; break;	case 'p': f |= O_PATH; break;
	default: fprintf(stderr, "bad flag %c\n", *s); exit(2);
	}
	return f;
}
static int fail(long r) { return r < 0 ? errno : 0; }
static int read_all(int fd) {
	static unsigned char b[16384]; ssize_t n = pread(fd, b, sizeof b, 0);
	if (n < 0) return errno;
	strcpy(data, "data:"); hex(data + 5, b, n); return 0;
}
static int run_program(const char *f) {
	int pp[2], e = 0, st; pid_t p;
	if (pipe2(pp, O_CLOEXEC)) return errno;
	if (!(p = fork())) { char *a[] = { (char *)f, 0 }, *env[] = { 0 }; execve(f, a, env); e = errno; if (write(pp[1], &e, sizeof e)) {} _exit(127); }
	close(pp[1]); if (read(pp[0], &e, sizeof e) != sizeof e) e = 0;
	close(pp[0]); waitpid(p, &st, 0);
	if (!e) sprintf(data, WIFEXITED(st) ? "exit:%d" : "signal:%d", WIFEXITED(st) ? WEXITSTATUS(st) : WTERMSIG(st));
	return e;
}
static void bind(int s, int fd, const char *name) { slot[s] = fd; free(slot_file[s]); slot_file[s] = name ? strdup(name) : 0; }

/* One step; returns 0 or an errno. a[0] is the verb. A capital letter names a descriptor, anything else is a file name. */
static int step(char **a, int n) {
	static unsigned char b[65536]; const char *v = a[0]; struct stat st; int fd, e;
#define IS(w, c) (!strcmp(v, w) && n == (c) + 1)
#define NUM(i) strtoll(a[i], 0, 0)
	int s = n > 1 && a[1][0] >= 'A' && a[1][0] <= 'Z' && !a[1][1] ? a[1][0] - 'A' : -1;
	touched = s >= 0 ? slot_file[s] : n > 1 ? a[1] : 0;
	if ((s >= 0 && slot[s] < 0 && strcmp(v, "open") && strcmp(v, "tmpfile")) || (IS("copyrange", 3) && slot[a[2][0] - 'A'] < 0) ||
	    ((!strcmp(v, "store") || !strcmp(v, "munmap")) && !map)) { strcpy(data, "skipped"); return 0; }
	if (IS("open", 3)) { touched = a[2]; fd = open(a[2], open_flags(a[3]), 0644); bind(s, fd, a[2]); return fail(fd); }
	if (IS("tmpfile", 1)) { touched = 0; fd = open(".", O_TMPFILE | O_RDWR, 0644); bind(s, fd, 0); return fail(fd); }
	if (IS("linkfd", 2)) { sprintf((char *)b, "/proc/self/fd/%d", slot[s]); e = fail(linkat(AT_FDCWD, (char *)b, AT_FDCWD, a[2], AT_SYMLINK_FOLLOW)); bind(s, slot[s], a[2]); touched = a[2]; return e; }
	if (IS("write", 2)) { size_t k = unhex(a[2], b); return fail(write(slot[s], b, k)); }
	if (IS("pwrite", 3)) { size_t k = unhex(a[3], b); return fail(pwrite(slot[s], b, k, NUM(2))); }
	if (IS("read", 1)) return read_all(slot[s]);
	if (IS("close", 1)) { fd = slot[s]; slot[s] = -1; return fail(close(fd)); }
	if (IS("ftruncate", 2)) return fail(ftruncate(slot[s], NUM(2)));
	if (IS("fsync", 1)) return fail(fsync(slot[s]));
	if (IS("copyrange", 3)) { touched = slot_file[a[2][0] - 'A']; return fail(copy_file_range(slot[s], 0, slot[a[2][0] - 'A'], 0, NUM(3), 0)); }
	if (IS("punch", 3)) return fail(fallocate(slot[s], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, NUM(2), NUM(3)));
	if (IS("mmap", 1)) { void *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, slot[s], 0); if (p == MAP_FAILED) return errno; map = p; return 0; }
	if (IS("store", 2)) { unhex(a[2], map); return 0; }
	if (IS("munmap", 1)) { e = fail(munmap(map, 4096)); map = 0; return e; }
	if (IS("truncate", 2)) return fail(truncate(a[1], NUM(2)));
	if (IS("mknod", 1)) return fail(mknod(a[1], S_IFREG | 0644, 0));
	if (IS("unlink", 1)) return fail(unlink(a[1]));
	if (IS("rename", 2)) {
		for (int i = 0; i < 26; i++) if (slot_file[i] && !strcmp(slot_file[i], a[1])) bind(i, slot[i], a[2]);
		touched = a[2]; return fail(rename(a[1], a[2]));
	}
	if (IS("hardlink", 2)) { touched = a[2]; return fail(link(a[1], a[2])); }
	if (IS("chmod", 2)) return fail(chmod(a[1], strtol(a[2], 0, 8)));
	if (IS("chown", 2)) return fail(chown(a[1], NUM(2), -1));
	if (IS("utimes", 1)) { struct timespec t[2] = { { 1000000000, 0 }, { 1000000000, 0 } }; return fail(utimensat(AT_FDCWD, a[1], t, 0)); }
	if (IS("setlabel", 2)) { size_t k = unhex(a[2], b); return fail(lsetxattr(a[1], IMA, b, k, 0)); }
	if (IS("rmlabel", 1)) return fail(lremovexattr(a[1], IMA));
	if (IS("cat", 1)) { fd = open(a[1], O_RDONLY); if (fd < 0) return errno; e = read_all(fd); close(fd); return e; }
	if (IS("mapexec", 1)) { fd = open(a[1], O_RDONLY); if (fd < 0) return errno; void *p = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0); e = p == MAP_FAILED ? errno : 0; if (!e) munmap(p, 4096); close(fd); return e; }
	if (IS("exec", 1)) return run_program(a[1]);
	if (IS("stat", 1)) { if (stat(a[1], &st)) return errno; sprintf(data, "size:%lld", (long long)st.st_size); return 0; }
	if (IS("drop", 0)) { sync(); fd = open("/proc/sys/vm/drop_caches", O_WRONLY); e = fail(write(fd, "3", 1)); close(fd); return e; }
	fprintf(stderr, "unknown step %s/%d\n", v, n - 1); exit(2);
}

static void prepare(char *files) {
	static unsigned char b[65536]; char *save, *sub;
	if (!strcmp(files, "-")) return;
	for (char *f = strtok_r(files, ",", &save); f; f = strtok_r(0, ",", &save)) {
		char *name = strtok_r(f, ":", &sub), *content = strtok_r(0, ":", &sub), *label = strtok_r(0, ":", &sub);
		size_t n = unhex(content, b); int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755);
		if (fd < 0 || write(fd, b, n) != (ssize_t)n) { perror(name); exit(1); }
		close(fd); chmod(name, 0755);
		if (strcmp(label, "-")) { n = unhex(label, b); if (lsetxattr(name, IMA, b, n, 0)) { perror(label); exit(1); } }
	}
}
static void run(const char *scenario, char *steps) {
	static long long last; char *save, *sub; int n = 0;
	for (int i = 0; i < 26; i++) bind(i, -1, 0);
	for (char *s = strtok_r(steps, ";", &save); s; s = strtok_r(0, ";", &save)) {
		char *a[8], text[4096]; int k = 0; s += strspn(s, " "); snprintf(text, sizeof text, "%s", s);
		for (char *w = strtok_r(s, " ", &sub); w && k < 8; w = strtok_r(0, " ", &sub)) a[k++] = w;
		data[0] = 0; long long t0 = later_than(last); int e = step(a, k); last = later_than(now());
		printf("%s\t%d\t%s\t%s\t", scenario, ++n, text, e ? strerrorname_np(e) : data[0] ? data : "ok");
		show_label(touched); printf("\t%lld\t%lld\n", t0, last); fflush(stdout);
	}
	for (int i = 0; i < 26; i++) if (slot[i] >= 0) { fprintf(stderr, "%s leaves %c open\n", scenario, 'A' + i); close(slot[i]); }
}
int main(int c, char **v) {
	static char line[1 << 20]; char *save;
	if (c != 3) return 2;
	umask(022);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!line[0] || line[0] == '#') continue;
		char *name = strtok_r(line, "\t", &save), *files = strtok_r(0, "\t", &save), *steps = strtok_r(0, "\t", &save);
		if (!steps) { fprintf(stderr, "bad line %s\n", name); return 2; }
		if (chdir(v[2])) { perror(v[2]); return 1; }
		if (!strcmp(v[1], "prepare")) mkdir(name, 0755);
		if (chdir(name)) { perror(name); return 1; }
		if (!strcmp(v[1], "prepare")) prepare(files); else run(name, steps);
	}
	return 0;
}
