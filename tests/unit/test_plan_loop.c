/* The engine's graph loop in small, and a checker that plays the uprobe.
 *
 * usage: loop SITE INDEX CGRAPH, each from a probe plan: SITE is the address of the loop's
 * `call ggml_barrier` in this file, INDEX and CGRAPH are REGISTER[,OFFSET...] as in
 * profinfer.probes.operator_site.Location. The program puts an int3 on the site, runs graphs on
 * one thread, and prints for each hit "hit INDEX GRAPH_IS_RIGHT" and for each node that the loop
 * computed "ran NODE". Without arguments it does nothing.
 *
 * -DOLD_LOOP: a barrier after every node, none after the loop (engines of 2024).
 * -DONE_FUNCTION: the loop is inlined into the function that starts the threads.
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
    atomic_int n_graph, n_barrier, abort;
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

/* As the engine's: exported, so that nothing is known of what it changes. */
__attribute__((noinline)) void ggml_barrier(struct ggml_threadpool *tp) {
    atomic_fetch_add(&tp->n_barrier, 1);
}
static char report[1 << 16];
static size_t reported;
static void say(const char *what, int a, int b) {
    reported += (size_t)snprintf(report + reported, sizeof report - reported, "%s %d %d\n", what, a, b);
}
__attribute__((noinline)) void compute_plain(struct ggml_compute_params *p, struct ggml_tensor *t) {
    say("ran", t->op_params[0], p->ith);
}
/* Inlined, with barriers of its own: not every barrier call of the loop ends an operator. */
static inline __attribute__((always_inline)) void compute_staged(
        struct ggml_compute_params *p, struct ggml_tensor *t) {
    if (t->src[0]) ggml_barrier(p->threadpool);
    say("ran", t->op_params[0], p->ith);
    ggml_barrier(p->threadpool);
}
static inline __attribute__((always_inline)) void compute_fused(
        struct ggml_compute_params *p, struct ggml_tensor *t) {
    say("ran", t->op_params[0], p->ith);
}
enum { NONE = 0, STAGED = 1, NORM = 25, VIEW = 36, PLAIN = 50 };

#ifdef ONE_FUNCTION
static inline __attribute__((always_inline))
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

__attribute__((noinline)) int ggml_graph_compute(struct ggml_cgraph *g, struct ggml_cplan *plan) {
    struct ggml_threadpool *tp = plan->threadpool;
    tp->cgraph = g;
    tp->cplan = plan;
    struct ggml_compute_state state = {tp, 0};
    ggml_graph_compute_thread(&state);
    return tp->ec;
}

/* --- the checker ------------------------------------------------------------------------- */
struct place {
    int reg, n;
    long offset[8];
};
static struct place index_at, cgraph_at;
static unsigned char *site;
static struct ggml_cgraph *running;

static uint64_t value(const struct place *p, const greg_t *regs, int last_bytes) {
    uint64_t v = (uint64_t)regs[p->reg];
    for (int i = 0; i < p->n; i++) {
        uint64_t at = v + (uint64_t)p->offset[i];
        v = i + 1 == p->n && last_bytes == 4 ? *(uint32_t *)at : *(uint64_t *)at;
    }
    return last_bytes == 4 ? (uint32_t)v : v;
}
/* Does what the kernel does: looks, then emulates the call. */
static void on_trap(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    if ((unsigned char *)regs[REG_RIP] != site + 1) abort();
    say("hit", (int)value(&index_at, regs, 4), value(&cgraph_at, regs, 8) == (uint64_t)running);
    int32_t distance;
    memcpy(&distance, site + 1, 4);
    regs[REG_RSP] -= 8;
    *(uint64_t *)regs[REG_RSP] = (uint64_t)(site + 5);
    regs[REG_RIP] = (greg_t)(site + 5 + distance);
}
static struct place parse(char *text) {
    static const char *names[] = {"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                                  "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp"};
    struct place p = {.reg = -1};
    char *word = strtok(text, ",");
    for (int i = 0; i < 16; i++) /* the order of REG_R8.. in ucontext.h */
        if (!strcmp(word, names[i])) p.reg = i;
    if (p.reg < 0) abort();
    while ((word = strtok(NULL, ","))) p.offset[p.n++] = strtol(word, NULL, 0);
    return p;
}
extern unsigned char __executable_start;

int main(int argc, char **argv) {
    if (argc != 4) return 0;
    site = &__executable_start + strtoul(argv[1], NULL, 0);
    index_at = parse(argv[2]);
    cgraph_at = parse(argv[3]);
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    unsigned char *page = (unsigned char *)((uintptr_t)site & ~4095ul);
    if (*site != 0xe8 || mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return 3;
    *site = 0xcc;

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
    struct ggml_threadpool tp = {.abort = -1};
    struct ggml_cplan plan = {.n_threads = 1, .threadpool = &tp};
    for (int n = 0; n <= N; n++) { /* every length of graph: empty, ends with a view, ... */
        struct ggml_cgraph g = {.size = N, .n_nodes = n, .nodes = nodes};
        running = &g;
        say("graph", n, 0);
        ggml_graph_compute(&g, &plan);
    }
    fputs(report, stdout);
    return 0;
}
