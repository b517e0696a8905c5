/* Looks names up in every way there is and says which library answered. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

void *next_of(const char *name);

int shared_name(void) { return 1; }

static void show(const char *way, const char *name, void *found) {
    Dl_info info;
    const char *file = "none";
    if (found && dladdr(found, &info)) {
        const char *slash = strrchr(info.dli_fname, '/');
        file = slash ? slash + 1 : info.dli_fname;
    }
    printf("%s %s %s\n", way, name, file);
}

int main(int argc, char **argv) {
    static const char *names[] = {"malloc", "getpid", "shared_name", "mid_name", "cublasCreate_v2",
                                  "curl_easy_init", "cu", "nv", "c", ""};
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    void *self = dlopen(NULL, RTLD_NOW);
    void *mid = dlopen("libmid.so", RTLD_NOW);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        show("default", names[i], dlsym(RTLD_DEFAULT, names[i]));
        show("next", names[i], dlsym(RTLD_NEXT, names[i]));
        show("next-of-mid", names[i], next_of(names[i]));
        show("self", names[i], dlsym(self, names[i]));
        show("libc", names[i], dlsym(libc, names[i]));
        show("mid", names[i], dlsym(mid, names[i]));
        show("version", names[i], dlvsym(libc, names[i], "GLIBC_2.2.5"));
        show("no-version", names[i], dlvsym(libc, names[i], "GLIBC_9.9"));
    }
    dlerror();
    show("error", "none_such", dlsym(libc, "none_such"));
    const char *error = dlerror();
    printf("error says %d\n", error && strstr(error, "none_such") != NULL);
    if (argc > 1) {
        void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
        show("cuda", "cuMemAlloc_v2", dlsym(cuda, "cuMemAlloc_v2"));
        show("cuda", "cuGetProcAddress_v2", dlsym(cuda, "cuGetProcAddress_v2"));
        show("cuda", "cuDeviceGet", dlsym(cuda, "cuDeviceGet"));
        show("cuda-version", "cuMemAlloc_v2", dlvsym(cuda, "cuMemAlloc_v2", argv[1]));
        show("cuda-none", "cuMemAlloc_v9", dlsym(cuda, "cuMemAlloc_v9"));
        show("cuda-none", "dlsym_of_cuda", dlsym(cuda, "dlsym_of_cuda"));
        show("cuda-default", "cuMemAlloc_v2", dlsym(RTLD_DEFAULT, "cuMemAlloc_v2"));
        show("cuda-next-of-mid", "cuMemAlloc_v2", next_of("cuMemAlloc_v2"));
        show("cuda-libc", "cuMemAlloc_v2", dlsym(libc, "cuMemAlloc_v2"));
    }
    return 0;
}
