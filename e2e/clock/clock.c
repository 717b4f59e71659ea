/*
 * A wall clock that is wrong, for one process: preloaded, this adds to it what the file WEFT_TEST_CLOCK holds, an int64_t
 * of seconds that may change while the process runs. Clocks that measure durations (CLOCK_MONOTONIC) stay right.
 *
 * libfaketime would do the same, but an Envoy that it is preloaded into does not start: it allocates while the allocator
 * is set up, which asks for the time. Nothing is allocated here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t right = 0;
static const volatile int64_t *skew = &right;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("WEFT_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *held = mmap(NULL, sizeof *skew, PROT_READ, MAP_SHARED, file, 0);
    if (held != MAP_FAILED)
        skew = held;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *skew;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed)
        *at = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    return failed;
}

time_t time(time_t *at)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return (time_t)-1;
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
