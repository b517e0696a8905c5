/* Calls functions that the drop-in passes on, twice: by the way that finds the driver's, and by
 * the way that has found it. */
#include <stdint.h>
#include <stdio.h>

extern int cuInit(unsigned);
extern int cuTexRefSetMipmapLevelClamp(void *, float, float);
extern int cuTensorMapEncodeIm2colWide(void *, int, unsigned, void *, const void *, const void *,
                                       int, int, unsigned, unsigned, const void *, int, int, int,
                                       int, int);
extern int cuDeviceGetCount(int *);

static void *at(intptr_t value) { return (void *)value; }

int main(void) {
    printf("init %d\n", cuInit(0));
    for (int i = 0; i < 2; i++) {
        int outcome = cuTexRefSetMipmapLevelClamp(at(9), 1.25f, -2.5f);
        int encoded = cuTensorMapEncodeIm2colWide(at(1), 2, 3, at(4), at(5), at(6), -7, 8, 9, 10,
                                                  at(11), 12, 13, 14, 15, 16);
        printf("gave %d %d\n", outcome, encoded);
    }
    int count = 42;
    int outcome = cuDeviceGetCount(&count);
    printf("absent %d %d\n", outcome, count);
    return 0;
}
