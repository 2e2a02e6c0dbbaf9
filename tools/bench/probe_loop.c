/* A loop with the instruction that an operator probe sits on, and nothing else: `call`, with the
 * loop's index in r12 and the graph in rbp as in ggml's own loop. Prints what a call costs.
 *
 *   probe_loop OPS        reads "ROUNDS THREADS" lines from stdin; for each, every thread runs ROUNDS
 *                         graphs of OPS operators and the line "best median" (ns a call) is printed
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void bench_ops(uint64_t n, const void *graph);
void bench_enter(void);
void bench_leave(void);

__asm__(".text\n"
        ".globl bench_leaf,bench_ops,bench_call,bench_enter,bench_leave,bench_nop5\n"
        ".type bench_leaf,@function\n.type bench_ops,@function\n.type bench_enter,@function\n"
        ".type bench_leave,@function\n.type bench_call,@function\n.type bench_nop5,@function\n"
        "bench_leaf: ret\n"
        "bench_enter: push %rbp\n pop %rbp\n ret\n"
        "bench_leave: push %rbp\n pop %rbp\n ret\n"
        "bench_ops: push %rbp\n push %r12\n push %rbx\n"
        "  mov %rdi,%rbx\n mov %rsi,%rbp\n xor %r12d,%r12d\n"
        "1: inc %r12d\n"
        "bench_nop5: .byte 0x0f,0x1f,0x44,0x00,0x00\n"
        "bench_call: call bench_leaf\n"
        "  dec %rbx\n jnz 1b\n"
        "  pop %rbx\n pop %r12\n pop %rbp\n ret\n");

static uint64_t ops;
static int rounds;
static double *costs; /* of thread 0 */

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *run(void *first) {
    for (int r = 0; r < rounds; r++) {
        bench_enter();
        uint64_t begin = now();
        bench_ops(ops, &ops);
        uint64_t end = now();
        bench_leave();
        if (first) {
            costs[r] = (double)(end - begin) / (double)ops;
        }
    }
    return NULL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    int threads;
    if (argc != 2) {
        return 2;
    }
    ops = strtoul(argv[1], NULL, 10);
    while (scanf("%d %d", &rounds, &threads) == 2) {
        pthread_t thread[64];
        if (rounds < 1 || threads < 1 || threads > 64) {
            return 2;
        }
        costs = malloc((size_t)rounds * sizeof(double));
        for (int t = 1; t < threads; t++) {
            pthread_create(&thread[t], NULL, run, NULL);
        }
        run(costs);
        for (int t = 1; t < threads; t++) {
            pthread_join(thread[t], NULL);
        }
        qsort(costs, (size_t)rounds, sizeof(double), by_value);
        printf("%.1f %.1f\n", costs[0], costs[rounds / 2]);
        fflush(stdout);
        free(costs);
    }
    return 0;
}
