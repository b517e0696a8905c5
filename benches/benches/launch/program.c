/* What a program pays for calls of the driver. `WHAT COUNT`: the median nanoseconds of one, of a
 * batch's mean each; `contended COUNT`: processor time of all threads for each launch. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 500, QUEUE = 64 };

extern int cuInit(unsigned);
extern int cuDevicePrimaryCtxRetain(void **, int);
extern int cuCtxSetCurrent(void *);
extern int cuStreamSynchronize(void *);
extern int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, void *, void **, void **);
extern int cuLaunchKernelEx(const void *, void *, void **, void **);
extern int cuMemAlloc_v2(uint64_t *, size_t);
extern int cuMemFree_v2(uint64_t);

static char kernel;
static uint64_t held[BATCH];

static void must(int outcome) {
    if (outcome) {
        fprintf(stderr, "the driver gave %d\n", outcome);
        exit(1);
    }
}

static double now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

static void launch(int index) {
    (void)index;
    must(cuLaunchKernel(&kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL));
}
static void launch_ex(int index) {
    /* Grid, block, shared bytes, a stream, and no attributes. */
    static const struct {
        unsigned shape[7];
        void *stream, *attributes;
        unsigned len;
    } config = {{1, 1, 1, 32, 1, 1, 0}, NULL, NULL, 0};
    (void)index;
    must(cuLaunchKernelEx(&config, &kernel, NULL, NULL));
}
static void allocate(int index) { must(cuMemAlloc_v2(&held[index], 1 << 16)); }
static void release(int index) { must(cuMemFree_v2(held[index])); }

static double batch(void (*work)(int)) {
    double start = now(CLOCK_MONOTONIC);
    for (int index = 0; index < BATCH; index++)
        work(index);
    return (now(CLOCK_MONOTONIC) - start) / BATCH;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    void *context;
    must(argc != 3);
    long count = strtol(argv[2], NULL, 10);
    must(cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context));
    if (strcmp(argv[1], "contended") == 0) {
        double start = now(CLOCK_PROCESS_CPUTIME_ID);
        for (long done = 0; done < count; done += QUEUE) {
            for (int index = 0; index < QUEUE; index++)
                launch(index);
            must(cuStreamSynchronize(NULL));
        }
        printf("%.3f\n", (now(CLOCK_PROCESS_CPUTIME_ID) - start) / (double)count);
        return 0;
    }
    long batches = count / BATCH;
    double *times = calloc((size_t)batches, sizeof *times);
    must(batches < 1 || times == NULL);
    for (long index = 0; index < batches; index++) {
        if (strcmp(argv[1], "launch") == 0) {
            times[index] = batch(launch);
        } else if (strcmp(argv[1], "launch-ex") == 0) {
            times[index] = batch(launch_ex);
        } else {
            double allocated = batch(allocate), released = batch(release);
            times[index] = strcmp(argv[1], "allocate") == 0 ? allocated : released;
        }
    }
    qsort(times, (size_t)batches, sizeof *times, by_size);
    printf("%.3f\n", times[batches / 2]);
    return 0;
}
