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
