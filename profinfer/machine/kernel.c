/* Measures what this machine can do at most; prints one JSON object a repeat.
 *
 * usage: kernel THREADS REPEATS MEGABYTES MILLISECONDS SECONDS
 *
 * REPEATS undisturbed repeats of each kind are wanted; it goes on for SECONDS at most. MEGABYTES: of
 * all arrays. MILLISECONDS: that a repeat of the compute kinds takes.
 *
 *   read   every thread sums its part of an array far larger than the caches: bytes read / time.
 *          This is what decoding does with weights.
 *   triad  a[i] = b[i] + s * c[i], as in McCalpin's STREAM: 3 x 4 bytes an element / time.
 *   fp32   fused multiply-adds on registers, as many independent ones as hide their latency:
 *          2 operations each / time.
 *   int8   8-bit dot products into 32 bits (VNNI, AVX2 maddubs, SDOT): what quantised matrix
 *          products are made of; 2 operations a pair of numbers. Left out where there is none.
 *
 * A repeat uses one of PARTS parts of the arrays in turn, so that it is short (few milliseconds: on
 * a busy machine some repeats find the CPUs free) and yet finds nothing in the caches.
 *
 * Threads start together at a barrier; the time is from the first one's start to the last one's
 * end. "cpu" is the CPU time of all threads over threads x time: below 1, somebody else ran.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define LANES (WIDTH / 4)
#define PARTS 6
#define UNDISTURBED 0.95 /* of the CPU time that the threads could have had */
#define CHAINS 12 /* 2 units x 4..5 cycles of latency, and the 16 registers of AVX2 hold them */

typedef float vf __attribute__((vector_size(WIDTH)));
typedef int32_t vi __attribute__((vector_size(WIDTH)));

enum { READ, TRIAD, FP32, INT8, KINDS };
static const char *const names[KINDS] = {"read", "triad", "fp32", "int8"};

static int threads;
static size_t elements; /* floats of one array and thread: PARTS parts */
static size_t part;     /* floats of a part, a multiple of 16 x LANES */
static int at;          /* number of the part that is next: the one used longest ago */
static long rounds;     /* of the compute kernels */
static int kind;
static pthread_barrier_t gate;

struct worker {
    pthread_t id;
    float *a, *b, *c;
    double begin, end, cpu;
    long sink;
};

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static long do_read(const float *from) {
    const vi *p = (const vi *)from;
    vi sum[8] = {0};
    for (size_t i = 0; i < part / LANES; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += p[i + k];
    vi all = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
    return all[0];
}

static long do_triad(float *a, const float *b, const float *c) {
    vf *va = (vf *)a;
    const vf *vb = (const vf *)b, *vc = (const vf *)c;
    vf s = (vf){0} + 3.0f;
    for (size_t i = 0; i < part / LANES; i++) va[i] = vb[i] + s * vc[i];
    return (long)a[1];
}

/* The chains are separate variables: an array would be kept in memory. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static long do_fp32(void) {
    vf m = (vf){0} + 0.999f, add = (vf){0} + 0.001f;
#define DECLARE(n) vf x##n = (vf){0} + (float)n;
#define STEP(n) x##n = x##n * m + add;
#define KEEP(n) __asm__ volatile("" : "+" REG(x##n));
#if defined(__aarch64__)
#define REG(x) "w"(x)
#elif defined(__x86_64__)
#define REG(x) "v"(x)
#else
#define REG(x) "m"(x)
#endif
    EACH(DECLARE)
    for (long i = 0; i < rounds; i++) { EACH(STEP) EACH(KEEP) }
#define SUM(n) +x##n
    vf all = (vf){0} EACH(SUM);
    return (long)all[0];
}

/* One step: INT8_PAIRS products of 8-bit numbers, added up. */
#if defined(__AVX512VNNI__)
#define INT8_PAIRS 64
#define DOT(acc, u, v) (vi) _mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(u), (__m512i)(v))
#elif defined(__AVXVNNI__)
#define INT8_PAIRS 32
#define DOT(acc, u, v) (vi) _mm256_dpbusd_avx_epi32((__m256i)(acc), (__m256i)(u), (__m256i)(v))
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define INT8_PAIRS 32
#define DOT(acc, u, v)                                                                         \
    (acc) + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(u), (__m256i)(v)),            \
                                  _mm256_set1_epi16(1))
#elif defined(__ARM_FEATURE_DOTPROD)
#define INT8_PAIRS 16
#define DOT(acc, u, v) (vi) vdotq_s32((int32x4_t)(acc), (int8x16_t)(u), (int8x16_t)(v))
#endif

static long do_int8(void) {
#ifdef INT8_PAIRS
    vi u = (vi){0} + 0x01020301, v = (vi){0} + 0x02010102;
#define DECLARE_I(n) vi y##n = (vi){0} + n;
#define STEP_I(n) y##n = DOT(y##n, u, v);
#define KEEP_I(n) __asm__ volatile("" : "+" REG(y##n));
    EACH(DECLARE_I)
    /* Opaque, so that the products are not taken out of the loop. */
    for (long i = 0; i < rounds; i++) {
        __asm__ volatile("" : "+" REG(u), "+" REG(v));
        EACH(STEP_I) EACH(KEEP_I)
    }
#define SUM_I(n) +y##n
    vi all = (vi){0} EACH(SUM_I);
    return all[0];
#else
    return 0;
#endif
}

/* In huge pages where the kernel gives them: the roof is the memory's, not that of page walks. */
static float *array(size_t bytes) {
    void *p;
    if (posix_memalign(&p, 2 << 20, bytes)) exit(3);
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void *work(void *argument) {
    struct worker *w = argument;
    size_t bytes = elements * sizeof(float), o = at * part;
    if (kind <= TRIAD && !w->a) {
        w->a = array(bytes);
        w->b = array(bytes);
        w->c = array(bytes);
        /* The thread that uses a page touches it first, so that it lies near. */
        for (size_t i = 0; i < elements; i++) w->a[i] = w->b[i] = w->c[i] = 1.0f;
    }
    pthread_barrier_wait(&gate);
    double cpu = now(CLOCK_THREAD_CPUTIME_ID);
    w->begin = now(CLOCK_MONOTONIC);
    switch (kind) {
    case READ: w->sink += do_read(w->a + o) + do_read(w->b + o) + do_read(w->c + o); break;
    case TRIAD: w->sink += do_triad(w->a + o, w->b + o, w->c + o); break;
    case FP32: w->sink += do_fp32(); break;
    case INT8: w->sink += do_int8(); break;
    }
    w->end = now(CLOCK_MONOTONIC);
    w->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
    return NULL;
}

static double done_by_one(void) {
    switch (kind) {
    case READ:
    case TRIAD: return 3.0 * part * sizeof(float);
    case FP32: return 2.0 * LANES * CHAINS * (double)rounds;
#ifdef INT8_PAIRS
    case INT8: return 2.0 * INT8_PAIRS * CHAINS * (double)rounds;
#endif
    }
    return 0;
}

static double once(struct worker *all, double *share) {
    pthread_barrier_init(&gate, NULL, threads);
    for (int t = 0; t < threads; t++)
        if (pthread_create(&all[t].id, NULL, work, &all[t])) exit(3);
    for (int t = 0; t < threads; t++) pthread_join(all[t].id, NULL);
    pthread_barrier_destroy(&gate);
    double begin = all[0].begin, end = all[0].end, cpu = 0;
    for (int t = 0; t < threads; t++) {
        if (all[t].begin < begin) begin = all[t].begin;
        if (all[t].end > end) end = all[t].end;
        cpu += all[t].cpu;
    }
    *share = cpu / (threads * (end - begin));
    return end - begin;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    threads = atoi(argv[1]);
    int repeats = atoi(argv[2]);
    size_t group = 16 * LANES;
    part = (size_t)atol(argv[3]) * 1000000 / 3 / PARTS / sizeof(float) / threads / group * group;
    elements = PARTS * part;
    double wanted = atof(argv[4]) / 1e3, limit = atof(argv[5]);
    struct worker *all = calloc(threads, sizeof *all);
    if (threads < 1 || repeats < 1 || part < group || !all) return 2;
    for (kind = 0; kind < KINDS; kind++) {
        double share;
        rounds = 1000;
        if (!done_by_one()) continue;
        if (kind >= FP32) { /* as many rounds as take the time that was asked for */
            double took = once(all, &share);
            while (took < wanted / 8) {
                rounds *= 4;
                took = once(all, &share);
            }
            rounds = (long)(rounds * wanted / took) + 1;
        } else {
            once(all, &share); /* touches the pages */
        }
        double start = now(CLOCK_MONOTONIC);
        for (int i = 0, clean = 0; clean < repeats; i++) {
            at = i % PARTS;
            double took = once(all, &share);
            printf("{\"kind\": \"%s\", \"per_s\": %.6e, \"cpu\": %.4f}\n", names[kind],
                   threads * done_by_one() / took, share);
            clean += share >= UNDISTURBED;
            if (i + 1 >= repeats && now(CLOCK_MONOTONIC) - start > limit) break;
        }
    }
    long sink = 0;
    for (int t = 0; t < threads; t++) sink += all[t].sink;
    return sink == 42 ? 1 : 0; /* the sums are used, or the compiler would drop them */
}
