/* A driver whose calls cost nothing: what is left is what the library before it costs. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Addresses come again, as a driver's do; far more than are held at a time. */
enum { PLACES = 4096, PLACE_BYTES = 1 << 20 };

static uint64_t next;
static char context;

int cuInit(unsigned flags) { return (int)(flags & 0); }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    static const unsigned char own[16] = {0x5f, 0x1a, 0x4e, 0x3c, 0, 0, 0x40, 0, 0x80};
    return memcpy(uuid, own, sizeof own), device;
}
int cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, device; }
int cuCtxSetCurrent(void *current) { return current != &context; }
int cuCtxGetCurrent(void **current) { return *current = &context, 0; }
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuThreadExchangeStreamCaptureMode(unsigned *mode) { return *mode = 0; }
int cuStreamSynchronize(void *stream) { return stream != NULL; }
int cuEventCreate(void **event, unsigned flags) { return *event = &next, (int)(flags & 0); }
int cuEventRecord(void *event, void *stream) { return event == NULL && stream == NULL; }
int cuEventQuery(void *event) { return event == NULL; }
int cuEventElapsedTime(float *ms, void *from, void *to) {
    return *ms = 0.001F, from == NULL || to == NULL;
}
int cuEventDestroy_v2(void *event) { return event == NULL; }
int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared;
    return kernel == NULL || stream != NULL || arguments != NULL || extra != NULL;
}
int cuLaunchKernelEx(const void *config, void *kernel, void **arguments, void **extra) {
    return config == NULL || kernel == NULL || arguments != NULL || extra != NULL;
}
int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    *at = (uint64_t)(1 + next++ % PLACES) * PLACE_BYTES;
    return bytes > PLACE_BYTES;
}
int cuMemFree_v2(uint64_t at) { return at == 0; }
