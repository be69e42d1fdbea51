/* Counts the operations that change files below a folder, and disturbs the n-th one.

   Loaded with LD_PRELOAD, so that it also sees what libraries in C, C++ and Rust do. What it has to
   do stands in a small file that all processes of a command map into memory: see `struct control`,
   which faults.py writes. Only Linux. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, STOP, FULL, READ_ONLY, ONCE, VANISH, CUT };

struct control {
  int64_t group;   /* the process group that is disturbed; 0 for none */
  int64_t mode;    /* of the enumeration above */
  int64_t at;      /* at the how manieth operation, from 1 */
  int64_t error;   /* errno of FULL, READ_ONLY and ONCE */
  int64_t count;   /* operations so far */
  int64_t reads;   /* files below `input` that were opened for reading so far */
  int64_t fired;   /* whether it was disturbed */
  int64_t clock_s; /* by how many seconds clocks go wrong */
  int64_t old;     /* whether the system cannot exchange two files, as on NFS */
  char root[256];  /* operations below this folder count */
  char input[256]; /* reads below this folder count, for VANISH and CUT */
  char name[512];  /* the operation that was disturbed, and its path */
};

static struct control *control;

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CRASH_CONTROL");
  if (!path) return;
  int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR);
  if (file < 0) return;
  void *map = mmap(0, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  syscall(SYS_close, file);
  if (map != MAP_FAILED) control = map;
}

static int below(const char *path, const char *folder) {
  size_t length = strlen(folder);
  return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int absolute(int folder, const char *path, char *out) {
  char link[64];
  ssize_t length;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
    return 1;
  }
  if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  length = readlink(link, out, PATH_MAX - 1);
  if (length < 0) return 0;
  snprintf(out + length, PATH_MAX - length, "/%s", path);
  return 1;
}

static int of_file(int file, char *out) {
  char link[64];
  struct stat about;
  if (fstat(file, &about) || !S_ISREG(about.st_mode)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, out, PATH_MAX - 1);
  if (length < 0) return 0;
  out[length] = 0;
  return 1;
}

static int on(void) { return control && control->group && getpgrp() == control->group; }

static void note(const char *what, const char *path) {
  snprintf(control->name, sizeof control->name, "%s %.480s", what, path);
  control->fired = 1;
}

/* Returns whether the operation fails; errno is set then. `grows`: it takes room on the disk. */
static int disturbed(const char *what, const char *path, int grows) {
  if (!below(path, control->root) || control->mode >= VANISH) return 0;
  if (control->mode == FULL && !grows) return 0;
  int64_t number = __sync_add_and_fetch(&control->count, 1);
  if (getenv("CRASH_TRACE")) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", (long)number, what, path);
    int file = syscall(SYS_openat, AT_FDCWD, getenv("CRASH_TRACE"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    syscall(SYS_write, file, line, length);
    syscall(SYS_close, file);
  }
  if (control->mode == COUNT || number < control->at) return 0;
  if (number > control->at && control->mode != FULL && control->mode != READ_ONLY) return 0;
  if (!control->fired) note(what, path);
  switch (control->mode) {
    case KILL:
      kill(0, SIGKILL);
      for (;;) pause();
    case STOP:
      raise(SIGSTOP);
      return 0;
    default:
      errno = (int)control->error;
      return 1;
  }
}

static int at(int folder, const char *path, const char *what, int grows) {
  char full[PATH_MAX];
  int before = errno;
  if (!on() || !path || !absolute(folder, path, full)) return 0;
  int failed = disturbed(what, full, grows);
  if (!failed) errno = before;
  return failed;
}

static int to(int file, const char *what) {
  char full[PATH_MAX];
  int before = errno;
  if (!on() || !of_file(file, full)) return 0;
  int failed = disturbed(what, full, 1);
  if (!failed) errno = before;
  return failed;
}

/* At the n-th file that is opened for reading below the input folder: it is gone, or cut in half. */
static void read_begins(int folder, const char *path) {
  char full[PATH_MAX];
  struct stat about;
  int before = errno;
  if (!on() || !path || !absolute(folder, path, full)) return;
  if (!below(full, control->input) || stat(full, &about) || !S_ISREG(about.st_mode)) return;
  int64_t number = __sync_add_and_fetch(&control->reads, 1);
  if (control->mode >= VANISH && number == control->at) {
    note(control->mode == VANISH ? "vanish" : "cut", full);
    if (control->mode == VANISH) syscall(SYS_unlinkat, AT_FDCWD, full, 0);
    else syscall(SYS_truncate, full, about.st_size / 2);
  }
  errno = before;
}

static int opening(int folder, const char *path, int flags) {
  if ((flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC))) {
    read_begins(folder, path);
    return 0;
  }
  return at(folder, path, "open", flags & O_CREAT);
}

#define MODE_OF(flags, mode) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list more; \
    va_start(more, flags); \
    mode = va_arg(more, mode_t); \
    va_end(more); \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    MODE_OF(flags, mode) \
    if (opening(AT_FDCWD, path, flags)) return -1; \
    REAL(int, #name, const char *, int, mode_t); \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    MODE_OF(flags, mode) \
    if (opening(folder, path, flags)) return -1; \
    REAL(int, #name, int, const char *, int, mode_t); \
    return real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    int writes = mode[0] != 'r' || strchr(mode, '+'); \
    if (opening(AT_FDCWD, path, !writes ? O_RDONLY : mode[0] == 'r' ? O_RDWR : O_RDWR | O_CREAT)) \
      return 0; \
    REAL(FILE *, #name, const char *, const char *); \
    return real(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
  if (to(fileno(stream), "fwrite")) return 0;
  REAL(size_t, "fwrite", const void *, size_t, size_t, FILE *);
  return real(data, size, number, stream);
}

ssize_t write(int file, const void *data, size_t size) {
  if (to(file, "write")) return -1;
  REAL(ssize_t, "write", int, const void *, size_t);
  return real(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
  if (to(file, "writev")) return -1;
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  return real(file, parts, number);
}

#define PWRITE(name) \
  ssize_t name(int file, const void *data, size_t size, off_t offset) { \
    if (to(file, "pwrite")) return -1; \
    REAL(ssize_t, #name, int, const void *, size_t, off_t); \
    return real(file, data, size, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define SENDFILE(name) \
  ssize_t name(int out, int in, off_t *offset, size_t size) { \
    if (to(out, "sendfile")) return -1; \
    REAL(ssize_t, #name, int, int, off_t *, size_t); \
    return real(out, in, offset, size); \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

#define FTRUNCATE(name) \
  int name(int file, off_t size) { \
    if (to(file, "truncate")) return -1; \
    REAL(int, #name, int, off_t); \
    return real(file, size); \
  }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

int fsync(int file) {
  if (to(file, "fsync")) return -1;
  REAL(int, "fsync", int);
  return real(file);
}

int rename(const char *from, const char *name) {
  if (at(AT_FDCWD, name, "rename", 0)) return -1;
  REAL(int, "rename", const char *, const char *);
  return real(from, name);
}

int renameat(int here, const char *from, int there, const char *name) {
  if (at(there, name, "rename", 0)) return -1;
  REAL(int, "renameat", int, const char *, int, const char *);
  return real(here, from, there, name);
}

int renameat2(int here, const char *from, int there, const char *name, unsigned flags) {
  if (on() && control->old) {
    errno = EINVAL;
    return -1;
  }
  if (at(there, name, "exchange", 0)) return -1;
  return (int)syscall(SYS_renameat2, here, from, there, name, flags);
}

int unlink(const char *path) {
  if (at(AT_FDCWD, path, "unlink", 0)) return -1;
  REAL(int, "unlink", const char *);
  return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
  if (at(folder, path, "unlink", 0)) return -1;
  REAL(int, "unlinkat", int, const char *, int);
  return real(folder, path, flags);
}

int remove(const char *path) {
  if (at(AT_FDCWD, path, "unlink", 0)) return -1;
  REAL(int, "remove", const char *);
  return real(path);
}

int rmdir(const char *path) {
  if (at(AT_FDCWD, path, "rmdir", 0)) return -1;
  REAL(int, "rmdir", const char *);
  return real(path);
}

int mkdir(const char *path, mode_t mode) {
  if (at(AT_FDCWD, path, "mkdir", 1)) return -1;
  REAL(int, "mkdir", const char *, mode_t);
  return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  if (at(folder, path, "mkdir", 1)) return -1;
  REAL(int, "mkdirat", int, const char *, mode_t);
  return real(folder, path, mode);
}

int link(const char *from, const char *name) {
  if (at(AT_FDCWD, name, "link", 1)) return -1;
  REAL(int, "link", const char *, const char *);
  return real(from, name);
}

int linkat(int here, const char *from, int there, const char *name, int flags) {
  if (at(there, name, "link", 1)) return -1;
  REAL(int, "linkat", int, const char *, int, const char *, int);
  return real(here, from, there, name, flags);
}

int symlink(const char *target, const char *name) {
  if (at(AT_FDCWD, name, "symlink", 1)) return -1;
  REAL(int, "symlink", const char *, const char *);
  return real(target, name);
}

int symlinkat(const char *target, int folder, const char *name) {
  if (at(folder, name, "symlink", 1)) return -1;
  REAL(int, "symlinkat", const char *, int, const char *);
  return real(target, folder, name);
}

static int64_t wrong_by(void) { return on() ? control->clock_s : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(int, "clock_gettime", clockid_t, struct timespec *);
  int result = real(clock, now);
  if (!result && clock == CLOCK_REALTIME) now->tv_sec += wrong_by();
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  REAL(int, "gettimeofday", struct timeval *, void *);
  int result = real(now, zone);
  if (!result) now->tv_sec += wrong_by();
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
