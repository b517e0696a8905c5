/* Programs of the driver API that do what the scripted tenant of the stand-in does not. Linked
 * with the driver, as `-lcuda` does it. Each line on its input lets it go on by a step. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void *Handle;
extern int cuInit(unsigned);
extern int cuDevicePrimaryCtxRetain(Handle *, int);
extern int cuDevicePrimaryCtxRelease_v2(int);
extern int cuDevicePrimaryCtxReset_v2(int);
extern int cuCtxSetCurrent(Handle);
extern int cuCtxCreate_v2(Handle *, unsigned, int);
extern int cuCtxDestroy_v2(Handle);
extern int cuCtxSynchronize(void);
extern int cuMemAlloc_v2(uint64_t *, size_t);
extern int cuMemFree_v2(uint64_t);
extern int cuMemGetInfo_v2(size_t *, size_t *);
extern int cuDeviceTotalMem_v2(size_t *, int);
extern int cuMemAllocPitch_v2(uint64_t *, size_t *, size_t, size_t, unsigned);
extern int cuArrayCreate_v2(Handle *, const void *);
extern int cuArrayDestroy(Handle);
extern int cuModuleLoadData(Handle *, const void *);
extern int cuModuleGetFunction(Handle *, Handle, const char *);
extern int cuLaunchKernel(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, Handle, void **, void **);
extern int cuStreamCreate(Handle *, unsigned);
extern int cuStreamDestroy_v2(Handle);
extern int cuStreamBeginCapture_v2(Handle, int);
extern int cuStreamEndCapture(Handle, Handle *);
extern int cuGraphInstantiateWithFlags(Handle *, Handle, unsigned long long);
extern int cuGraphLaunch(Handle, Handle);
extern int cuCheckpointProcessLock(int, void *);

static Handle kernel;

static void must(const char *what, int outcome) {
    if (outcome) {
        printf("%s gave %d\n", what, outcome);
        fflush(stdout);
        exit(1);
    }
}

static Handle start(int device) {
    Handle context, module;
    must("cuInit", cuInit(0));
    must("retain", cuDevicePrimaryCtxRetain(&context, device));
    must("current", cuCtxSetCurrent(context));
    must("module", cuModuleLoadData(&module, ""));
    must("kernel", cuModuleGetFunction(&kernel, module, "grid_us"));
    return context;
}

static int launch(unsigned us, Handle stream) {
    return cuLaunchKernel(kernel, us, 1, 1, 1, 1, 1, 0, stream, NULL, NULL);
}

static void step(const char *said) {
    char line[16];
    printf("%s\n", said);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(0);
}

static int pages_open(void) {
    int count = 0;
    char path[300], target[300];
    DIR *folder = opendir("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(folder));) {
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t len = readlink(path, target, sizeof target - 1);
        if (len > 0) {
            target[len] = 0;
            count += strncmp(target, "/memfd:ledger", 13) == 0;
            count += strncmp(target, "/memfd:process", 14) == 0;
        }
    }
    closedir(folder);
    return count;
}

static void *many(void *context) {
    must("current", cuCtxSetCurrent(context));
    for (int i = 0; i < 50; i++)
        must("launch", launch(1, NULL));
    return NULL;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    uint64_t at = 0;
    if (!strcmp(mode, "linked")) {
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 1 << 20));
        uint64_t untouched = 42;
        int outcome = cuMemAlloc_v2(&untouched, 1);
        size_t free_bytes, total, all;
        must("info", cuMemGetInfo_v2(&free_bytes, &total));
        must("total", cuDeviceTotalMem_v2(&all, 0));
        printf("%d %d %zu %zu %zu %d\n", outcome, (int)untouched, free_bytes, total, all,
               cuCheckpointProcessLock(getpid(), NULL));
    } else if (!strcmp(mode, "threads")) {
        Handle context = start(0);
        for (int round = 0; round < 2; round++) {
            pthread_t threads[80];
            for (int i = 0; i < 80; i++)
                pthread_create(&threads[i], NULL, many, context);
            for (int i = 0; i < 80; i++)
                pthread_join(threads[i], NULL);
            must("sync", cuCtxSynchronize());
            step("round");
        }
    } else if (!strcmp(mode, "fork")) {
        /* Forked before the driver is used: both are tenants of their own. */
        pid_t early = fork();
        if (early == 0) {
            /* Whatever the test comes to, nobody is left behind. */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            start(0);
            must("alloc", cuMemAlloc_v2(&at, 1 << 20));
            pause();
        }
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 2 << 20));
        step("started");
        /* Forked after: the child never comes to the driver. */
        pid_t late = fork();
        if (late == 0)
            _exit(pages_open());
        int status;
        waitpid(late, &status, 0);
        printf("%d %d\n", pages_open(), WEXITSTATUS(status));
        must("launch", launch(1, NULL));
        step("forked");
        execl("/proc/self/exe", argv[0], "wait", NULL);
    } else if (!strcmp(mode, "wait")) {
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 3 << 20));
        step("started");
    } else if (!strcmp(mode, "capture")) {
        Handle stream, graph, exec;
        start(0);
        must("stream", cuStreamCreate(&stream, 1));
        step("started");
        must("begin", cuStreamBeginCapture_v2(stream, 0));
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, stream));
        must("end", cuStreamEndCapture(stream, &graph));
        must("instantiate", cuGraphInstantiateWithFlags(&exec, graph, 0));
        step("captured");
        must("launch", cuGraphLaunch(exec, stream));
        step("launched");
    } else if (!strcmp(mode, "remembered")) {
        /* Each launch the third of its kind, so that the library goes by what it remembers. */
        Handle stream, other, graph, one = start(0);
        must("stream", cuStreamCreate(&stream, 1));
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, stream));
        step("three");
        must("begin", cuStreamBeginCapture_v2(stream, 0));
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, stream));
        must("end", cuStreamEndCapture(stream, &graph));
        step("captured");
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, stream));
        must("other", cuStreamCreate(&other, 1));
        must("destroy", cuStreamDestroy_v2(stream));
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, other));
        step("nine");
        Handle two = start(1);
        for (int i = 0; i < 3; i++)
            must("launch", launch(10, NULL));
        must("current", cuCtxSetCurrent(one));
        must("launch", launch(10, NULL));
        must("current", cuCtxSetCurrent(two));
        step("of two");
        must("launch", launch(10, NULL));
        step("once more");
    } else if (!strcmp(mode, "streams")) {
        Handle streams[5];
        start(0);
        step("started");
        for (int i = 0; i < 5; i++) {
            must("stream", cuStreamCreate(&streams[i], 1));
            must("launch", launch(5000, streams[i]));
        }
        must("launch", launch(5000, NULL));
        must("destroy", cuStreamDestroy_v2(streams[0]));
        must("destroy", cuStreamDestroy_v2(streams[3]));
        step("launched");
    } else if (!strcmp(mode, "contexts")) {
        Handle context;
        must("cuInit", cuInit(0));
        must("create", cuCtxCreate_v2(&context, 0, 0));
        must("alloc", cuMemAlloc_v2(&at, 1 << 20));
        step("created");
        must("destroy", cuCtxDestroy_v2(context));
        step("destroyed");
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 2 << 20));
        step("retained");
        must("reset", cuDevicePrimaryCtxReset_v2(0));
        step("reset");
    } else if (!strcmp(mode, "devices")) {
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 1 << 20));
        uint64_t first = at;
        Handle one = start(1);
        must("alloc", cuMemAlloc_v2(&at, 2 << 20));
        step("both");
        /* Freed while another device's context is current. */
        must("free", cuMemFree_v2(first));
        step("first");
        must("current", cuCtxSetCurrent(one));
        must("free", cuMemFree_v2(at));
        step("none");
    } else if (!strcmp(mode, "arrays")) {
        struct { size_t width, height; unsigned format, channels; } shape = {1024, 1024, 0x20, 4};
        Handle array;
        size_t pitch;
        start(0);
        must("array", cuArrayCreate_v2(&array, &shape));
        step("array");
        must("destroy", cuArrayDestroy(array));
        must("pitch", cuMemAllocPitch_v2(&at, &pitch, 1000, 64, 4));
        printf("%zu\n", pitch);
        step("pitched");
        must("free", cuMemFree_v2(at));
        step("free");
    } else if (!strcmp(mode, "plugin")) {
        /* Its own libraries come before the program's, and before what was preloaded. */
        void *plugin = dlopen("libplugin.so", RTLD_NOW | RTLD_DEEPBIND);
        int (*alloc)(size_t) = (int (*)(size_t))dlsym(plugin, "plugin_alloc");
        start(0);
        int most = alloc(1 << 20);
        printf("%d %d\n", most, alloc(1));
    } else if (!strcmp(mode, "nvml")) {
        uint64_t info[3] = {0};
        void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        int (*ask)(Handle, uint64_t *) =
            (int (*)(Handle, uint64_t *))dlsym(library, "nvmlDeviceGetMemoryInfo");
        if (argc > 2) {
            start(0);
            must("alloc", cuMemAlloc_v2(&at, 1 << 20));
        }
        must("nvml", ask((Handle)1, info));
        printf("%llu %llu %llu\n", (unsigned long long)info[0], (unsigned long long)info[1],
               (unsigned long long)info[2]);
    } else if (!strcmp(mode, "processes")) {
        /* Of each list: the code without room, the code with room, and who is in it. */
        struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } newer[8];
        struct { unsigned pid; unsigned long long used; } older[8];
        static const char *const kinds[] = {"Compute", "Graphics", "MPSCompute"};
        static const char *const versions[] = {"", "_v2", "_v3"};
        void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        start(0);
        must("alloc", cuMemAlloc_v2(&at, 1 << 20));
        step("ready");
        for (int kind = 0; kind < 3; kind++) {
            for (int version = 0; version < 3; version++) {
                char name[64];
                unsigned none = 0, count = 8;
                void *infos = version ? (void *)newer : (void *)older;
                snprintf(name, sizeof name, "nvmlDeviceGet%sRunningProcesses%s", kinds[kind],
                         versions[version]);
                int (*list)(Handle, unsigned *, void *) =
                    (int (*)(Handle, unsigned *, void *))dlsym(library, name);
                if (list((Handle)2, &none, 0) != 2)
                    return 3;
                printf("%d", list((Handle)1, &none, 0));
                printf(" %d", list((Handle)1, &count, infos));
                for (unsigned index = 0; index < count; index++) {
                    if (version && kind == 0 && newer[index].gpu + 1 != 0 && count > 1)
                        return 4;
                    printf(" %u:%llu", version ? newer[index].pid : older[index].pid,
                           version ? newer[index].used : older[index].used);
                }
                printf("\n");
            }
        }
        fflush(stdout);
        step("listed");
    }
    return 0;
}
