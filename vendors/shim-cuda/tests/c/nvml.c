/* As much of NVML as the shim asks. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int nvmlDeviceGetUUID(void *device, char *text, unsigned len) {
    (void)device;
    snprintf(text, len, "%s", getenv("NVML_UUID"));
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *device, uint64_t *info) {
    (void)device;
    info[0] = 80ULL << 30;
    info[1] = 79ULL << 30;
    info[2] = 1ULL << 30;
    return 0;
}

/* One process of somebody else, in each list; v1 has no instances. */
struct v1 { unsigned pid; unsigned long long used; };
struct v2 { unsigned pid; unsigned long long used; unsigned gpu, compute; };

#define LIST(name, type) \
    int name(void *device, unsigned *count, type *infos) { \
        unsigned room = infos ? *count : 0; \
        if (device != (void *)1) \
            return 2; \
        *count = 1; \
        if (room < 1) \
            return 7; \
        infos[0].pid = 4711; \
        infos[0].used = 5ULL << 30; \
        return 0; \
    }
#define LISTS(kind) \
    LIST(nvmlDeviceGet##kind##RunningProcesses, struct v1) \
    LIST(nvmlDeviceGet##kind##RunningProcesses_v2, struct v2) \
    LIST(nvmlDeviceGet##kind##RunningProcesses_v3, struct v2)
LISTS(Compute)
LISTS(Graphics)
LISTS(MPSCompute)
