/* Stands before the driver as the library does, but only passes launches on and counts those that
 * the driver took: what no library in its place can do without. */
#define _GNU_SOURCE
#include <dlfcn.h>

static int (*next)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   void *, void **, void **);
static int (*next_ex)(const void *, void *, void **, void **);
static unsigned long count;

__attribute__((constructor)) static void find(void) {
    *(void **)&next = dlsym(RTLD_NEXT, "cuLaunchKernel");
    *(void **)&next_ex = dlsym(RTLD_NEXT, "cuLaunchKernelEx");
}

int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    int outcome = next(kernel, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra);
    if (outcome == 0)
        count++;
    return outcome;
}

int cuLaunchKernelEx(const void *config, void *kernel, void **arguments, void **extra) {
    int outcome = next_ex(config, kernel, arguments, extra);
    if (outcome == 0)
        count++;
    return outcome;
}
