/* A library between the program and the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>

int shared_name(void) { return 2; }
int mid_name(void) { return 3; }
void *next_of(const char *name) { return dlsym(RTLD_NEXT, name); }
