/* Calls any function of the driver with any words, as its lines say:
 *   call HOW SYMBOL WORD...   calls SYMBOL, looked up by HOW: the same, as the loader does, or
 *                         NAME@VERSION@FLAGS, as CUDA's runtime does; answers with the outcome,
 *                         how often the driver was called, and `out`
 *   fill WORD...          what `@fill` points to
 *   calls SYMBOL          the driver's count
 * A word is a number, `@out` (eight bytes, which hold 42 before), `@pitch` or `@fill`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long word;
typedef int (*Call)(word, word, word, word, word, word, word, word, word, word, word);

static word out, pitch, fill[32];
static void *driver;
static int (*get)(const char *, void **, int, word, int *);

static word value(const char *text) {
    if (!strcmp(text, "@out"))
        return (word)&out;
    if (!strcmp(text, "@pitch"))
        return (word)&pitch;
    if (!strcmp(text, "@fill"))
        return (word)fill;
    return strtoul(text, NULL, 0);
}

/* `NAME@VERSION@FLAGS`, or a symbol. */
static Call look_up(char *text) {
    char *version = strchr(text, '@');
    if (!version)
        return (Call)dlsym(driver, text);
    *version++ = 0;
    void *found = NULL;
    int status;
    char *flags = strchr(version, '@');
    get(text, &found, atoi(version), flags ? strtoul(flags + 1, NULL, 0) : 0, &status);
    return (Call)found;
}

int main(void) {
    char line[512];
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    int (*calls)(const char *) = (int (*)(const char *))dlsym(driver, "whole_calls");
    if (!calls)
        calls = (int (*)(const char *))dlsym(dlopen(getenv("WHOLE"), RTLD_NOW), "whole_calls");
    *(void **)&get = dlsym(driver, "cuGetProcAddress_v2");
    while (fgets(line, sizeof line, stdin)) {
        word words[11] = {0};
        int len = 0;
        char *verb = strtok(line, " \n"), *symbol = strtok(NULL, " \n"), *text;
        if (!strcmp(verb, "calls")) {
            printf("%d\n", calls(symbol));
        } else if (!strcmp(verb, "fill")) {
            memset(fill, 0, sizeof fill);
            for (text = symbol; text; text = strtok(NULL, " \n"))
                fill[len++] = value(text);
            printf("ok\n");
        } else {
            char *row = strtok(NULL, " \n");
            while (len < 11 && (text = strtok(NULL, " \n")))
                words[len++] = value(text);
            int before = calls(row);
            out = 42;
            Call call = look_up(symbol);
            int outcome = call ? call(words[0], words[1], words[2], words[3], words[4], words[5],
                                      words[6], words[7], words[8], words[9], words[10])
                               : -1;
            printf("%d %d %lu\n", outcome, calls(row) - before, out);
        }
        fflush(stdout);
    }
    return 0;
}
