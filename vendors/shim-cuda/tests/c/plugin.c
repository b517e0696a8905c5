/* A plug-in that is linked with the driver and looks its names up in its own scope first. */
#include <stdint.h>
#include <stddef.h>

extern int cuMemAlloc_v2(uint64_t *, size_t);

int plugin_alloc(size_t bytes) {
    uint64_t at;
    return cuMemAlloc_v2(&at, bytes);
}
