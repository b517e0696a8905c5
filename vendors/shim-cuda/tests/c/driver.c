/* A driver of a few functions that say which arguments came: integers, floats and what is on the
 * stack; and one that an old driver lacks is lacking here. */
#include <stdint.h>
#include <stdio.h>

int cuInit(unsigned flags) { return flags ? 1 : 0; }

int cuTexRefSetMipmapLevelClamp(void *reference, float low, float high) {
    printf("clamp %d %.2f %.2f\n", (int)(intptr_t)reference, low, high);
    return 0;
}

int cuTensorMapEncodeIm2colWide(void *map, int type, unsigned rank, void *address, const void *dims,
                                const void *strides, int lower, int upper, unsigned channels,
                                unsigned pixels, const void *elements, int interleave, int mode,
                                int swizzle, int promotion, int fill) {
    printf("map %d %d %u %d %d %d %d %d %u %u %d %d %d %d %d %d\n", (int)(intptr_t)map, type, rank,
           (int)(intptr_t)address, (int)(intptr_t)dims, (int)(intptr_t)strides, lower, upper,
           channels, pixels, (int)(intptr_t)elements, interleave, mode, swizzle, promotion, fill);
    return 7;
}
