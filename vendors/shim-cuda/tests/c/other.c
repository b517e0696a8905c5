/* Another library that stands in for dlsym, as profilers and tracers do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

#ifdef __aarch64__
#define VERSION "GLIBC_2.17"
#else
#define VERSION "GLIBC_2.2.5"
#endif

static int calls;

void *dlsym(void *handle, const char *name) {
    static void *(*real)(void *, const char *);
    if (!real)
        *(void **)&real = dlvsym(RTLD_NEXT, "dlsym", VERSION);
    calls++;
    return real(handle, name);
}

__attribute__((destructor)) static void report(void) {
    if (calls)
        (void)!write(1, "other was asked\n", 16);
}
