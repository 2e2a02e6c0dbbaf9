/* The engine's graph loop in small, and a checker that plays the uprobe.
 *
 * usage: loop SITE INDEX CGRAPH [ENTER LEAVE], each from a probe plan: SITE is the address of the
 * loop's point in this file, INDEX and CGRAPH are REGISTER[,OFFSET...] as in
 * profinfer.probes.operator_site.Location, ENTER and LEAVE are addresses around the loop or 0. The
 * program puts a breakpoint on each, runs graphs on one thread, and prints for each hit of the site
 * "hit INDEX RIGHT" (the graph is the right one, and no barrier was passed since the work was
 * done), for the others "enter" and "leave", and for each node that the loop computed "ran NODE".
 * Without arguments it does nothing.
 *
 * -DOLD_LOOP: a barrier after every node, none after the loop (engines of 2024).
 * -DONE_FUNCTION: the loop is inlined into the function that starts the threads.
 * -DLOCAL: it has no name once the program is stripped.
 * -DWORKER: it is inlined into a worker's own loop, which polls for work.
 * -DMAIN_APART: and the main thread runs something else, that is no loop.
 * -DINLINE_BARRIER, -DOMP_BARRIER: the barrier is inlined; it spins, or calls OpenMP's.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

struct ggml_tensor {
    int type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int op_params[16];
    int flags;
    struct ggml_tensor *src[10];
};
struct ggml_cgraph {
    int size, n_nodes, n_leafs;
    struct ggml_tensor **nodes;
};
struct ggml_cplan {
    size_t work_size;
    void *work_data;
    int n_threads;
    void *threadpool;
    bool (*abort_callback)(void *);
    void *abort_callback_data;
};
struct ggml_threadpool {
    struct ggml_cgraph *cgraph;
    struct ggml_cplan *cplan;
    atomic_int n_graph, n_barrier, n_passed, abort, todo, polls;
    int ec;
};
struct ggml_compute_state {
    struct ggml_threadpool *threadpool;
    int ith;
};
struct ggml_compute_params {
    int ith, nth;
    struct ggml_threadpool *threadpool;
};

#ifdef __aarch64__
#define PAUSE() __asm__ volatile("isb")
#else
#define PAUSE() __builtin_ia32_pause()
#endif
static int done_at; /* barriers passed when the last node's work was done */
#if defined INLINE_BARRIER
static inline __attribute__((always_inline)) void ggml_barrier(struct ggml_threadpool *tp) {
    int n = atomic_load_explicit(&tp->n_graph, memory_order_relaxed) & 0xffff;
    if (n == 1) return;
    int passed = atomic_load_explicit(&tp->n_passed, memory_order_relaxed);
    if (atomic_fetch_add(&tp->n_barrier, 1) == n - 1) {
        atomic_fetch_add(&tp->n_passed, 1);
        return;
    }
    while (atomic_load_explicit(&tp->n_passed, memory_order_relaxed) != passed)
        PAUSE();
    atomic_thread_fence(memory_order_seq_cst);
}
#elif defined OMP_BARRIER
static atomic_int *omp_count;
__attribute__((noinline)) void GOMP_barrier(void) { atomic_fetch_add(omp_count, 1); }
static inline __attribute__((always_inline)) void ggml_barrier(struct ggml_threadpool *tp) {
    if (atomic_load_explicit(&tp->n_graph, memory_order_relaxed) == 1) return;
    GOMP_barrier();
}
#else
/* As the engine's: exported, so that nothing is known of what it changes. */
__attribute__((noinline)) void ggml_barrier(struct ggml_threadpool *tp) {
    atomic_fetch_add(&tp->n_barrier, 1);
}
#endif
static char report[1 << 16];
static size_t reported;
static void say(const char *what, int a, int b) {
    reported += (size_t)snprintf(report + reported, sizeof report - reported, "%s %d %d\n", what, a, b);
}
__attribute__((noinline)) void compute_plain(struct ggml_compute_params *p, struct ggml_tensor *t) {
    say("ran", t->op_params[0], p->ith);
    done_at = p->threadpool->n_barrier;
}
/* Inlined, with barriers of its own: not every barrier call of the loop ends an operator. */
static inline __attribute__((always_inline)) void compute_staged(
        struct ggml_compute_params *p, struct ggml_tensor *t) {
    if (t->src[0]) ggml_barrier(p->threadpool);
    say("ran", t->op_params[0], p->ith);
    ggml_barrier(p->threadpool);
    done_at = p->threadpool->n_barrier;
}
static inline __attribute__((always_inline)) void compute_fused(
        struct ggml_compute_params *p, struct ggml_tensor *t) {
    say("ran", t->op_params[0], p->ith);
    done_at = p->threadpool->n_barrier;
}
enum { NONE = 0, STAGED = 1, NORM = 25, VIEW = 36, PLAIN = 50 };

#if defined ONE_FUNCTION || defined WORKER
static inline __attribute__((always_inline))
#elif defined LOCAL
static __attribute__((noinline))
#else
__attribute__((noinline))
#endif
void *ggml_graph_compute_thread(void *data) {
    struct ggml_compute_state *state = data;
    struct ggml_threadpool *tp = state->threadpool;
    const struct ggml_cgraph *cgraph = tp->cgraph;
    const struct ggml_cplan *cplan = tp->cplan;
    struct ggml_compute_params params = {state->ith, cplan->n_threads, tp};

    for (int node_n = 0;
         node_n < cgraph->n_nodes &&
         atomic_load_explicit(&tp->abort, memory_order_relaxed) != node_n;
         node_n++) {
        struct ggml_tensor *node = cgraph->nodes[node_n];
        if (node->op == NONE || (node->op >= VIEW && node->op < VIEW + 4)) continue;
#ifndef OLD_LOOP
        if ((node->flags & 16) == 0) continue;
        if (node->op == NORM && node_n + 1 < cgraph->n_nodes &&
            cgraph->nodes[node_n + 1]->src[0] == node) {
            compute_fused(&params, cgraph->nodes[node_n + 1]);
            node_n++;
        } else
#endif
        if (node->op == STAGED) {
            compute_staged(&params, node);
        } else {
            compute_plain(&params, node);
        }
        if (state->ith == 0 && cplan->abort_callback &&
            cplan->abort_callback(cplan->abort_callback_data)) {
            atomic_store_explicit(&tp->abort, node_n + 1, memory_order_relaxed);
            tp->ec = 1;
        }
#ifdef OLD_LOOP
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

#ifdef WORKER
__attribute__((noinline)) void *ggml_graph_compute_secondary_thread(void *data) {
    struct ggml_compute_state *state = data;
    struct ggml_threadpool *tp = state->threadpool;
    while (atomic_load(&tp->polls)) {
        atomic_fetch_sub(&tp->polls, 1);
        if (atomic_load_explicit(&tp->todo, memory_order_relaxed)) {
            atomic_store(&tp->todo, 0);
            ggml_graph_compute_thread(state);
        }
    }
    return 0;
}
#endif

__attribute__((noinline)) int ggml_graph_compute(struct ggml_cgraph *g, struct ggml_cplan *plan) {
    struct ggml_threadpool *tp = plan->threadpool;
    tp->cgraph = g;
    tp->cplan = plan;
    struct ggml_compute_state state = {tp, 0};
#ifdef MAIN_APART
    static void *(*volatile start)(void *);
    if (tp->ec) start(&state);
#elif defined WORKER
    atomic_store(&tp->polls, 5);
    atomic_store(&tp->todo, 1);
    ggml_graph_compute_secondary_thread(&state);
#else
    ggml_graph_compute_thread(&state);
#endif
    return tp->ec;
}

/* --- the checker ------------------------------------------------------------------------- */
struct place {
    int reg, n;
    long offset[8];
};
static struct place index_at, cgraph_at;
enum { SITE, ENTER, LEAVE, SITES };
static const char *const names_of[] = {"hit", "enter", "leave"};
#ifdef __aarch64__
typedef uint32_t code;
typedef unsigned long long reg_t;
#else
typedef unsigned char code;
typedef greg_t reg_t;
static code *stepped;
#endif
static code *sites[SITES], old[SITES];
static struct ggml_cgraph *running;
static struct ggml_threadpool *pool;

static uint64_t value(const struct place *p, const reg_t *regs, int last_bytes) {
    uint64_t v = (uint64_t)regs[p->reg];
    for (int i = 0; i < p->n; i++) {
        uint64_t at = v + (uint64_t)p->offset[i];
        v = i + 1 == p->n && last_bytes == 4 ? *(uint32_t *)at : *(uint64_t *)at;
    }
    return last_bytes == 4 ? (uint32_t)v : v;
}
static void look(int i, const reg_t *regs) {
    if (i == SITE) {
        bool right = value(&cgraph_at, regs, 8) == (uint64_t)running;
        say("hit", (int)value(&index_at, regs, 4), right && pool->n_barrier == done_at);
    } else {
        say(names_of[i], 0, 0);
    }
}
#ifdef __aarch64__
/* Does what the kernel does: looks, then simulates the bl or b. */
static void on_trap(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;
    reg_t regs[32];
    for (int i = 0; i < 31; i++) regs[i] = m->regs[i];
    regs[31] = m->sp;
    for (int i = 0; i < SITES; i++) {
        if (!sites[i] || m->pc != (uint64_t)sites[i]) continue;
        look(i, regs);
        if ((old[i] & 0x7c000000) != 0x14000000) abort();
        if (old[i] >> 31) m->regs[30] = m->pc + 4;
        m->pc += (int64_t)((int32_t)(old[i] << 6) >> 6) * 4;
        return;
    }
    abort();
}
#else
/* Does what the kernel does: looks, then runs the instruction alone. */
static void on_trap(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (stepped) { /* behind the instruction now */
        *stepped = 0xcc;
        stepped = NULL;
        regs[REG_EFL] &= ~0x100ll;
        return;
    }
    for (int i = 0; i < SITES; i++) {
        if (!sites[i] || (unsigned char *)regs[REG_RIP] != sites[i] + 1) continue;
        look(i, regs);
        stepped = sites[i];
        *stepped = old[i];
        regs[REG_RIP] = (greg_t)stepped;
        regs[REG_EFL] |= 0x100;
        return;
    }
    abort();
}
#endif
static struct place parse(char *text) {
    struct place p = {.reg = -1};
    char *word = strtok(text, ",");
#ifdef __aarch64__
    p.reg = strcmp(word, "sp") ? atoi(word + 1) : 31;
#else
    static const char *names[] = {"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                                  "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp"};
    for (int i = 0; i < 16; i++) /* the order of REG_R8.. in ucontext.h */
        if (!strcmp(word, names[i])) p.reg = i;
#endif
    if (p.reg < 0) abort();
    while ((word = strtok(NULL, ","))) p.offset[p.n++] = strtol(word, NULL, 0);
    return p;
}
extern unsigned char __executable_start;

int main(int argc, char **argv) {
    if (argc < 4) return 0;
    index_at = parse(argv[2]);
    cgraph_at = parse(argv[3]);
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    for (int i = 0; i < SITES; i++) {
        unsigned long at = i == SITE ? strtoul(argv[1], NULL, 0)
                           : argc == 6 ? strtoul(argv[3 + i], NULL, 0) : 0;
        if (!at) continue;
        sites[i] = (code *)(&__executable_start + at);
        unsigned char *page = (unsigned char *)((uintptr_t)sites[i] & ~4095ul);
        if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return 3;
        old[i] = *sites[i];
#ifdef __aarch64__
        *sites[i] = 0xd4200000; /* brk */
        __builtin___clear_cache((char *)sites[i], (char *)(sites[i] + 1));
#else
        *sites[i] = 0xcc;
#endif
    }

    static const int ops[] = {NONE, PLAIN, VIEW, NORM, PLAIN, STAGED, VIEW, NORM, NORM, PLAIN, STAGED,
                              PLAIN, VIEW};
    enum { N = sizeof ops / sizeof *ops };
    static struct ggml_tensor tensors[N];
    struct ggml_tensor *nodes[N];
    for (int i = 0; i < N; i++) {
        nodes[i] = &tensors[i];
        tensors[i].op = ops[i];
        tensors[i].op_params[0] = i;
        tensors[i].flags = i == 9 ? 0 : 16;
        if (i > 0 && ops[i - 1] == NORM) tensors[i].src[0] = &tensors[i - 1];
    }
    struct ggml_threadpool tp = {.abort = -1, .n_graph = 1};
    struct ggml_cplan plan = {.n_threads = 1, .threadpool = &tp};
    pool = &tp;
#ifdef OMP_BARRIER
    omp_count = &tp.n_barrier;
#endif
    for (int n = 0; n <= 2 * N; n++) { /* every length of graph: empty, ends with a view, ... */
        struct ggml_cgraph g = {.size = N, .n_nodes = n % (N + 1), .nodes = nodes};
        running = &g;
        tp.n_graph = 1 + n / (N + 1); /* then as if there was another thread */
        say("graph", g.n_nodes, 0);
        ggml_graph_compute(&g, &plan);
    }
    fputs(report, stdout);
    return 0;
}
