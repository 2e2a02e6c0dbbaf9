/* libggml-cpu of the fake engine: thread pool, graph loop, operators that spin. */
#define _GNU_SOURCE
#include "fake_ggml.h"

#include <linux/perf_event.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define N_THREADS_MASK 0xffff
#define N_THREADS_BITS 16

struct ggml_compute_state {
    pthread_t thrd;
    int last_graph;
    bool pending;
    bool cpumask[512];
    struct ggml_threadpool *threadpool;
    int ith;
};
struct ggml_threadpool {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct ggml_cgraph *cgraph;
    struct ggml_cplan *cplan;
    atomic_int n_graph; /* count of graphs << 16 | active threads */
    _Alignas(64) atomic_int n_barrier;
    _Alignas(64) atomic_int n_barrier_passed;
    atomic_bool stop;
    atomic_int abort;
    struct ggml_compute_state *workers;
    int n_threads;
    int ec;
};
struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void *wdata;
    struct ggml_threadpool *threadpool;
    bool use_ref;
};

/* Exported and never inlined: the loop calls it through the PLT, as in the real library. */
__attribute__((noinline)) void ggml_barrier(struct ggml_threadpool *tp) {
    int n_threads = atomic_load_explicit(&tp->n_graph, memory_order_relaxed) & N_THREADS_MASK;
    if (n_threads == 1) return;
    int n_passed = atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed);
    if (atomic_fetch_add(&tp->n_barrier, 1) == n_threads - 1) {
        atomic_store_explicit(&tp->n_barrier, 0, memory_order_relaxed);
        atomic_fetch_add(&tp->n_barrier_passed, 1);
        return;
    }
    for (unsigned spins = 0; atomic_load(&tp->n_barrier_passed) == n_passed; spins++) {
        if (spins > 20000) sched_yield(); /* more threads than CPUs: let the others arrive */
    }
}

/* What this thread counted of itself outside of the kernel, by an event of its own. */
static uint64_t own_count(const struct fake_run *run) {
    static __thread int fd;
    uint64_t value = 0;
    if (run->count_type < 0) return 0;
    if (fd == 0) {
        struct perf_event_attr attr = {.type = (uint32_t)run->count_type, .size = sizeof attr,
                                       .config = run->count_config, .exclude_kernel = 1};
        fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    }
    return read(fd, &value, sizeof value) == sizeof value ? value : 0;
}

static void record(const struct ggml_tensor *t, int thread, int fused, uint64_t begin) {
    const struct fake_node *node = t->extra;
    struct fake_truth *truth = &node->run->truth[thread];
    if (truth->tid == 0) truth->tid = gettid();
    if (truth->n == truth->max) {
        truth->dropped++;
        return;
    }
    uint64_t count = own_count(node->run);
    truth->op[truth->n++] =
        (struct fake_op){node->run->call, node->idx, thread, fused, begin, fake_now(), count};
}
static uint64_t deadline(const struct ggml_tensor *t, int thread, uint64_t begin) {
    const struct fake_node *node = t->extra;
    const struct fake_run *run = node->run;
    static volatile int *volatile nowhere; /* NULL: the crash on demand */
    if (run->call == run->crash_call && node->idx >= run->crash_idx) *nowhere = 1;
    return begin + fake_planned_ns(run, t->name, node->idx, thread);
}

/* What counters are tested with: fresh pages, one fault each, and another CPU half way. */
static void disturb(const struct ggml_tensor *t, int thread) {
    const struct fake_node *node = t->extra;
    const struct fake_run *run = node->run;
    int pages = node->idx == run->touch_idx ? (thread + 1) * run->touch_pages : 0;
    volatile char *fresh = NULL;
    if (pages) {
        fresh = mmap(NULL, (size_t)pages << 12, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise((void *)fresh, (size_t)pages << 12, MADV_NOHUGEPAGE);
    }
    for (int i = 0; i < pages / 2; i++) fresh[i << 12] = 1;
    if (run->migrate) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET((run->call + node->idx + thread) % 2, &one);
        sched_setaffinity(0, sizeof one, &one);
    }
    for (int i = pages / 2; i < pages; i++) fresh[i << 12] = 1;
    if (pages) munmap((void *)fresh, (size_t)pages << 12);
}

bool ggml_cpu_extra_compute_forward(struct ggml_compute_params *params, struct ggml_tensor *op) {
    return op->op == GGML_OP_COUNT && params->nth == 0; /* no extra buffer type: never ours */
}
void ggml_compute_forward_rms_norm_mul_fused(struct ggml_compute_params *params,
                                             struct ggml_tensor *norm, struct ggml_tensor *mul) {
    uint64_t begin = fake_now();
    (void)norm;
    fake_spin_until(deadline(mul, params->ith, begin));
    record(mul, params->ith, 2, begin);
}
/* The router writes its choices at the last moment, thread by thread; the first operator that needs
 * them no more writes over them at once, as the engine's reused buffers are. */
static void route(const struct ggml_compute_params *params, struct ggml_tensor *dst) {
    const struct fake_run *run = ((const struct fake_node *)dst->extra)->run;
    for (int64_t row = params->ith; row < dst->ne[1]; row += params->nth) {
        int32_t *to = (int32_t *)((char *)dst->data + (size_t)row * dst->nb[1]);
        for (int e = 0; e < run->experts; e++) to[e] = fake_choice(run, dst->op_params[1], (int)row, e);
    }
}
static void spoil(const struct ggml_tensor *ids) {
    for (size_t i = 0; i < ids->nb[2] / 4; i++) ((volatile int32_t *)ids->data)[i] = 0x7f7f7f7f;
}
__attribute__((noinline)) void ggml_compute_forward_spin(struct ggml_compute_params *params,
                                                         struct ggml_tensor *dst) {
    uint64_t begin = fake_now(), end = deadline(dst, params->ith, begin);
    const struct fake_node *node = dst->extra;
    if (dst->op == GGML_OP_ADD && dst->src[0]->op == GGML_OP_MUL_MAT_ID) {
        spoil(dst->src[0]->src[2]->view_src);
    }
    disturb(dst, params->ith);
    if (node->run->nap && params->ith == 1 && node->idx % 5 == 0) {
        struct timespec until = {.tv_sec = (time_t)(end / 1000000000u),
                                 .tv_nsec = (long)(end % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    } else {
        fake_spin_until(end);
    }
    if (dst->op == GGML_OP_ARGSORT) route(params, dst);
    record(dst, params->ith, 1, begin);
}
/* Weights of --weights are in memory that exists: the threads take turns to read them. */
static void read_weights(const struct ggml_compute_params *params, const struct ggml_tensor *dst) {
    const struct ggml_tensor *w = dst->src[0];
    const struct fake_node *node = dst->extra;
    if (w->buffer->usage != USAGE_WEIGHTS || w->buffer->context == NULL) return;
    if (node->idx % params->nth != params->ith) return;
    for (size_t at = 0; at < w->nb[3]; at += 4096) (void)((volatile const char *)w->data)[at];
}
/* Inlined into the loop, and with a barrier of its own after the first stage: not every
 * `call ggml_barrier` of the loop function ends an operator. */
static inline __attribute__((always_inline)) void ggml_compute_forward_mul_mat(
        struct ggml_compute_params *params, struct ggml_tensor *dst) {
    uint64_t begin = fake_now(), end = deadline(dst, params->ith, begin);
    read_weights(params, dst);
    fake_spin_until(begin + 5000);
    ggml_barrier(params->threadpool);
    fake_spin_until(end);
    record(dst, params->ith, 1, begin);
}
static inline __attribute__((always_inline)) void ggml_compute_forward(
        struct ggml_compute_params *params, struct ggml_tensor *tensor) {
    if (ggml_cpu_extra_compute_forward(params, tensor)) return;
    switch (tensor->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: break;
        case GGML_OP_MUL_MAT: ggml_compute_forward_mul_mat(params, tensor); break;
        default: ggml_compute_forward_spin(params, tensor); break;
    }
}
static int ggml_cpu_try_fuse_ops(const struct ggml_cgraph *cgraph, int node_n,
                                 struct ggml_compute_params *params) {
    struct ggml_tensor *node = cgraph->nodes[node_n];
    if (node->op != GGML_OP_RMS_NORM || node_n + 1 >= cgraph->n_nodes) return 0;
    struct ggml_tensor *mul = cgraph->nodes[node_n + 1];
    if (mul->op != GGML_OP_MUL || mul->src[0] != node) return 0;
    ggml_compute_forward_rms_norm_mul_fused(params, node, mul);
    return 1;
}

static __attribute__((noinline)) void *ggml_graph_compute_thread(void *data) {
    struct ggml_compute_state *state = data;
    struct ggml_threadpool *tp = state->threadpool;
    const struct ggml_cgraph *cgraph = tp->cgraph;
    const struct ggml_cplan *cplan = tp->cplan;
    struct ggml_compute_params params = {
        .ith = state->ith,
        .nth = atomic_load_explicit(&tp->n_graph, memory_order_relaxed) & N_THREADS_MASK,
        .wsize = cplan->work_size,
        .wdata = cplan->work_data,
        .threadpool = tp,
        .use_ref = cplan->use_ref,
    };

    for (int node_n = 0; node_n < cgraph->n_nodes &&
                         atomic_load_explicit(&tp->abort, memory_order_relaxed) != node_n;
         node_n++) {
        struct ggml_tensor *node = cgraph->nodes[node_n];
#ifndef FAKE_EMPTIES /* engines of 2025 and before: a barrier after these too */
        if (ggml_op_is_empty(node->op)) continue;
#endif
#ifndef FAKE_OLD_LOOP
        if ((node->flags & FLAG_COMPUTE) == 0) continue;
#endif
        const int n_fused = ggml_cpu_try_fuse_ops(cgraph, node_n, &params);
        if (n_fused > 0) {
            node_n += n_fused;
        } else {
            ggml_compute_forward(&params, node);
        }
        if (state->ith == 0 && cplan->abort_callback &&
            cplan->abort_callback(cplan->abort_callback_data)) {
            atomic_store_explicit(&tp->abort, node_n + 1, memory_order_relaxed);
            tp->ec = 1;
        }
#ifdef FAKE_OLD_LOOP /* engines of 2024: a barrier after every node, none after the loop */
        ggml_barrier(state->threadpool);
    }
#else
        if (node_n + 1 < cgraph->n_nodes) {
            ggml_barrier(state->threadpool);
        }
    }
    ggml_barrier(state->threadpool);
#endif
    return 0;
}

static void *ggml_graph_compute_secondary_thread(void *data) {
    struct ggml_compute_state *state = data;
    struct ggml_threadpool *tp = state->threadpool;
    while (true) {
        pthread_mutex_lock(&tp->mutex);
        while (!tp->stop && tp->n_graph == state->last_graph) {
            pthread_cond_wait(&tp->cond, &tp->mutex);
        }
        state->last_graph = tp->n_graph;
        pthread_mutex_unlock(&tp->mutex);
        if (tp->stop) return NULL;
        if (state->ith < (state->last_graph & N_THREADS_MASK)) ggml_graph_compute_thread(state);
    }
}

struct ggml_threadpool *ggml_threadpool_new(int n_threads) {
    struct ggml_threadpool *tp = aligned_alloc(64, (sizeof *tp + 63) / 64 * 64);
    *tp = (struct ggml_threadpool){.n_threads = n_threads};
    pthread_mutex_init(&tp->mutex, NULL);
    pthread_cond_init(&tp->cond, NULL);
    tp->workers = calloc((size_t)n_threads, sizeof *tp->workers);
    for (int i = 0; i < n_threads; i++) {
        tp->workers[i].threadpool = tp;
        tp->workers[i].ith = i;
        if (i > 0 && pthread_create(&tp->workers[i].thrd, NULL,
                                    ggml_graph_compute_secondary_thread, &tp->workers[i])) {
            abort();
        }
    }
    return tp;
}
void ggml_threadpool_free(struct ggml_threadpool *tp) {
    pthread_mutex_lock(&tp->mutex);
    tp->stop = true;
    pthread_cond_broadcast(&tp->cond);
    pthread_mutex_unlock(&tp->mutex);
    for (int i = 1; i < tp->n_threads; i++) pthread_join(tp->workers[i].thrd, NULL);
}

enum ggml_status ggml_graph_compute(struct ggml_cgraph *cgraph, struct ggml_cplan *cplan) {
    struct ggml_threadpool *tp = cplan->threadpool;
    tp->cgraph = cgraph;
    tp->cplan = cplan;
    tp->abort = -1;
    tp->ec = GGML_STATUS_SUCCESS;
    pthread_mutex_lock(&tp->mutex);
    tp->n_graph = ((tp->n_graph >> N_THREADS_BITS) + 1) << N_THREADS_BITS | cplan->n_threads;
    pthread_cond_broadcast(&tp->cond);
    pthread_mutex_unlock(&tp->mutex);
    ggml_graph_compute_thread(&tp->workers[0]);
    return (enum ggml_status)tp->ec;
}

/* --- backends ----------------------------------------------------------------------------- */
struct cpu_context { struct ggml_threadpool *tp; int n_threads; };
static const char *ggml_backend_cpu_get_name(ggml_backend_t backend) {
    (void)backend;
    return "CPU";
}
static enum ggml_status ggml_backend_cpu_graph_compute(ggml_backend_t backend,
                                                       struct ggml_cgraph *cgraph) {
    struct cpu_context *cpu = backend->context;
    struct ggml_cplan cplan = {.n_threads = cpu->n_threads, .threadpool = cpu->tp};
    return ggml_graph_compute(cgraph, &cplan);
}
static const char *ggml_backend_accel_get_name(ggml_backend_t backend) {
    (void)backend;
    return "ACCEL";
}
/* No thread, no ggml_graph_compute: a split whose operators cannot be seen. */
static enum ggml_status ggml_backend_accel_graph_compute(ggml_backend_t backend,
                                                         struct ggml_cgraph *cgraph) {
    (void)backend;
    for (int i = 0; i < cgraph->n_nodes; i++) {
        if (!ggml_op_is_empty(cgraph->nodes[i]->op)) fake_spin_until(fake_now() + 20000);
    }
    return GGML_STATUS_SUCCESS;
}
ggml_backend_t ggml_backend_cpu_init(struct ggml_threadpool *tp, int n_threads) {
    static ggml_guid guid = {0xaa, 0x67, 0xc7, 0x43, 0x96, 0xe6, 0xa3, 0x8a,
                             0xe3, 0xaf, 0xea, 0x92, 0x36, 0xbc, 0xfc, 0x89};
    ggml_backend_t backend = calloc(1, sizeof *backend);
    struct cpu_context *cpu = calloc(1, sizeof *cpu);
    *cpu = (struct cpu_context){tp, n_threads};
    backend->guid = &guid;
    backend->iface.get_name = ggml_backend_cpu_get_name;
    backend->iface.graph_compute = ggml_backend_cpu_graph_compute;
    backend->context = cpu;
    return backend;
}
ggml_backend_t ggml_backend_accel_init(void) {
    static ggml_guid guid = {'f', 'a', 'k', 'e', '-', 'a', 'c', 'c', 'e', 'l', 0, 0, 0, 0, 0, 1};
    ggml_backend_t backend = calloc(1, sizeof *backend);
    backend->guid = &guid;
    backend->iface.get_name = ggml_backend_accel_get_name;
    backend->iface.graph_compute = ggml_backend_accel_graph_compute;
    return backend;
}
