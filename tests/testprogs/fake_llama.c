/* libllama of the fake engine: builds the graph of a small transformer and decodes. */
#include "fake_ggml.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EMBD = 64, HEADS = 4, HEAD = 16, KV_HEADS = 2, FF = 128, VOCAB = 320, CTX = 4096 };
enum { MAX_NODES = 8192, MAX_LEAFS = 8192, TRUTH_ROWS = 1 << 17, MAX_ROWS = 1024 };

typedef struct ggml_tensor tensor;
typedef struct llama_context lctx;

static void shape(tensor *t, enum ggml_type type, const int64_t ne[4]) {
    t->type = type;
    for (int i = 0; i < 4; i++) t->ne[i] = ne[i];
    t->nb[0] = ggml_type_size(type);
    t->nb[1] = t->nb[0] * (size_t)(ne[0] / ggml_blck_size(type));
    t->nb[2] = t->nb[1] * (size_t)ne[1];
    t->nb[3] = t->nb[2] * (size_t)ne[2];
}
#define NE(...) ((const int64_t[4]){__VA_ARGS__})
#define D3(a, b, c) NE(a, b, c, 1)

/* Leafs are kept over rebuilds; a name met before is the same tensor, reshaped. */
static tensor *leaf(lctx *c, enum ggml_backend_buffer_usage usage, enum ggml_type type,
                    const int64_t ne[4], const char *format, ...) {
    struct ggml_cgraph *g = &c->graph;
    char name[64];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    tensor *t = NULL;
    for (int i = 0; i < g->n_leafs && t == NULL; i++) {
        if (__builtin_strcmp(g->leafs[i]->name, name) == 0) t = g->leafs[i];
    }
    if (t == NULL) {
        t = g->leafs[g->n_leafs] = &c->store[g->n_leafs];
        g->n_leafs++;
        __builtin_strcpy(t->name, name);
        uintptr_t base = c->buf[USAGE_WEIGHTS].context && usage == USAGE_WEIGHTS
                             ? (uintptr_t)c->buf[USAGE_WEIGHTS].context : 0x700000000000;
        t->data = (void *)(base + 0x100000 * (uintptr_t)g->n_leafs);
    }
    t->buffer = &c->buf[usage];
    if (usage == USAGE_COMPUTE) ggml_set_input(t);
    shape(t, type, ne);
    return t;
}

static tensor *node(lctx *c, enum ggml_op op, const int64_t ne[4], tensor *a, tensor *b,
                    const char *format, ...) {
    struct ggml_cgraph *g = &c->graph;
    int idx = g->n_nodes++;
    tensor *t = g->nodes[idx] = &c->arena[idx];
    *t = (tensor){.op = op, .buffer = &c->buf[USAGE_COMPUTE], .flags = FLAG_COMPUTE};
    shape(t, GGML_TYPE_F32, ne);
    t->src[0] = a;
    t->src[1] = b;
    if (op == GGML_OP_RESHAPE || op == GGML_OP_VIEW || op == GGML_OP_PERMUTE) {
        t->view_src = a->view_src ? a->view_src : a;
        t->type = a->type;
        t->buffer = a->buffer;
    }
    t->data = t->view_src ? t->view_src->data : (void *)(0x600000000000 + 0x10000 * (uintptr_t)idx);
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    c->info[idx] = (struct fake_node){&c->run, idx};
    t->extra = &c->info[idx];
    return t;
}
static tensor *weight(lctx *c, int64_t in, int64_t out, int il, const char *what) {
    return leaf(c, USAGE_WEIGHTS, GGML_TYPE_Q8_0, D3(in, out, 1), "blk.%d.%s.weight", il, what);
}
static tensor *norm(lctx *c, tensor *x, int il, const char *w, const char *name) {
    tensor *scale = il < 0 ? leaf(c, USAGE_WEIGHTS, GGML_TYPE_F32, D3(EMBD, 1, 1), "%s.weight", w)
                           : leaf(c, USAGE_WEIGHTS, GGML_TYPE_F32, D3(EMBD, 1, 1),
                                  "blk.%d.%s.weight", il, w);
    tensor *n = il < 0 ? node(c, GGML_OP_RMS_NORM, x->ne, x, NULL, "norm")
                       : node(c, GGML_OP_RMS_NORM, x->ne, x, NULL, "norm-%d", il);
    return il < 0 ? node(c, GGML_OP_MUL, x->ne, n, scale, "%s", name)
                  : node(c, GGML_OP_MUL, x->ne, n, scale, "%s-%d", name, il);
}

/* Router and experts in place of a dense layer; the choices of all layers lie in the same memory. */
static tensor *experts(lctx *c, tensor *cur, int il) {
    const int64_t n = cur->ne[1], all = c->o.experts, used = c->o.used;
    tensor *t = node(c, GGML_OP_MUL_MAT, D3(all, n, 1), weight(c, EMBD, all, il, "ffn_gate_inp"), cur,
                     "ffn_moe_logits-%d", il);
    t = node(c, GGML_OP_SOFT_MAX, t->ne, t, NULL, "ffn_moe_probs-%d", il);
    tensor *sorted = node(c, GGML_OP_ARGSORT, t->ne, t, NULL, "ffn_moe_argsort-%d", il);
    shape(sorted, GGML_TYPE_I32, sorted->ne);
    sorted->data = c->ids;
    sorted->op_params[1] = il;
    tensor *ids = node(c, GGML_OP_VIEW, D3(used, n, 1), sorted, NULL, "ffn_moe_topk-%d", il);
    for (int i = 0; i < 4; i++) ids->nb[i] = sorted->nb[i];
    static const char *const what[] = {"up", "gate", "down"};
    tensor *x = cur, *made[3];
    for (int i = 0; i < 3; i++) {
        int64_t in = i == 2 ? FF : EMBD, out = i == 2 ? EMBD : FF;
        tensor *w = leaf(c, USAGE_WEIGHTS, GGML_TYPE_Q8_0, D3(in, out, all),
                         "blk.%d.ffn_%s_exps.weight", il, what[i]);
        if (i == 2) {
            x = node(c, GGML_OP_GLU, D3(FF, used, n), made[1], made[0], "ffn_moe_swiglu-%d", il);
            x->op_params[0] = GGML_GLU_OP_SWIGLU;
        }
        made[i] = node(c, GGML_OP_MUL_MAT_ID, D3(out, used, n), w, x, "ffn_moe_%s-%d", what[i], il);
        made[i]->src[2] = ids;
    }
    return made[2];
}

static void build(lctx *c, int n, int n_kv, int layers) {
    c->graph.n_nodes = 0;
    c->graph.order = 1; /* rebuilt */
    tensor *tokens = leaf(c, USAGE_COMPUTE, GGML_TYPE_I32, D3(n, 1, 1), "inp_tokens");
    tensor *pos = leaf(c, USAGE_COMPUTE, GGML_TYPE_I32, D3(n, 1, 1), "inp_pos");
    tensor *mask = leaf(c, USAGE_COMPUTE, GGML_TYPE_F32, D3(n_kv, n, 1), "attn_inp_kq_mask");
    tensor *ids = leaf(c, USAGE_COMPUTE, GGML_TYPE_I64, D3(n, 1, 1), "k_idxs");
    tensor *embd = leaf(c, USAGE_WEIGHTS, GGML_TYPE_Q8_0, D3(EMBD, VOCAB, 1), "token_embd.weight");
    tensor *cur = node(c, GGML_OP_GET_ROWS, D3(EMBD, n, 1), embd, tokens, "embd");

    for (int il = 0; il < layers; il++) {
        tensor *residual = cur, *t;
        cur = norm(c, cur, il, "attn_norm", "attn_norm");
        tensor *q = node(c, GGML_OP_MUL_MAT, D3(EMBD, n, 1), weight(c, EMBD, EMBD, il, "attn_q"),
                         cur, "Qcur-%d", il);
        q = node(c, GGML_OP_RESHAPE, D3(HEAD, HEADS, n), q, NULL, "Qcur-%d (reshaped)", il);
        q = node(c, GGML_OP_ROPE, D3(HEAD, HEADS, n), q, pos, "Qcur_rope-%d", il);
        tensor *k = node(c, GGML_OP_MUL_MAT, D3(HEAD * KV_HEADS, n, 1),
                         weight(c, EMBD, HEAD * KV_HEADS, il, "attn_k"), cur, "Kcur-%d", il);
        tensor *cache = leaf(c, USAGE_ANY, GGML_TYPE_F16, D3(HEAD * KV_HEADS, CTX, 1),
                             "cache_k_l%d", il);
        t = node(c, GGML_OP_SET_ROWS, cache->ne, k, ids, "cache_k_l%d (write)", il);
        t->view_src = cache;
        t->buffer = cache->buffer;
        t->type = cache->type;
        t = node(c, GGML_OP_VIEW, D3(HEAD, KV_HEADS, n_kv), cache, NULL, "cache_k_l%d (view)", il);
        t = node(c, GGML_OP_PERMUTE, D3(HEAD, n_kv, KV_HEADS), t, NULL,
                 "cache_k_l%d (view) (permuted)", il);
        t = node(c, GGML_OP_MUL_MAT, D3(n_kv, n, HEADS), t, q, "kq-%d", il);
        t = node(c, GGML_OP_SOFT_MAX, D3(n_kv, n, HEADS), t, mask, "kq_soft_max-%d", il);
        cur = node(c, GGML_OP_MUL_MAT, D3(EMBD, n, 1), weight(c, EMBD, EMBD, il, "attn_output"), t,
                   "attn_out-%d", il);
        if (il == 0) { /* never computed: no flag, as a node the output does not need */
            node(c, GGML_OP_ADD, cur->ne, cur, residual, "unused-0")->flags = 0;
        }
        if (il == layers - 1 && n > 1) { /* a prompt keeps its last row only */
            t = leaf(c, USAGE_COMPUTE, GGML_TYPE_I32, D3(1, 1, 1), "inp_out_ids");
            cur = node(c, GGML_OP_GET_ROWS, D3(EMBD, 1, 1), cur, t, "attn_out_rows");
            residual = node(c, GGML_OP_GET_ROWS, D3(EMBD, 1, 1), residual, t, "residual_rows");
        }
        tensor *inp = cur = node(c, GGML_OP_ADD, cur->ne, cur, residual, "ffn_inp-%d", il);
        cur = norm(c, cur, il, "ffn_norm", "ffn_norm");
        if (c->o.experts) {
            cur = experts(c, cur, il);
            cur = node(c, GGML_OP_ADD, inp->ne, cur, inp, "l_out-%d", il);
            continue;
        }
        const int64_t *wide = D3(FF, cur->ne[1], 1);
        tensor *gate = node(c, GGML_OP_MUL_MAT, wide, weight(c, EMBD, FF, il, "ffn_gate"), cur,
                            "ffn_gate-%d", il);
        gate = node(c, GGML_OP_UNARY, wide, gate, NULL, "ffn_silu-%d", il);
        gate->op_params[0] = GGML_UNARY_OP_SILU;
        tensor *up = node(c, GGML_OP_MUL_MAT, wide, weight(c, EMBD, FF, il, "ffn_up"), cur,
                          "ffn_up-%d", il);
        t = node(c, GGML_OP_GLU, wide, gate, up, "ffn_swiglu-%d", il);
        t->op_params[0] = GGML_GLU_OP_SWIGLU;
        cur = node(c, GGML_OP_MUL_MAT, inp->ne, weight(c, FF, EMBD, il, "ffn_down"), t,
                   "ffn_out-%d", il);
        cur = node(c, GGML_OP_ADD, cur->ne, cur, inp, "l_out-%d", il);
    }
    cur = norm(c, cur, -1, "output_norm", "result_norm");
    tensor *head = leaf(c, USAGE_WEIGHTS, GGML_TYPE_F16, D3(EMBD, VOCAB, 1), "output.weight");
    cur = node(c, GGML_OP_MUL_MAT, D3(VOCAB, cur->ne[1], 1), head, cur, "result_output");
    cur->flags |= FLAG_OUTPUT;
    if (c->o.tail) node(c, GGML_OP_VIEW, cur->ne, cur, NULL, "result_view");
}

/* What every program of the real engine calls before its first decode. */
__attribute__((noinline)) lctx *llama_init_from_model(void *model, ...) {
    __asm__ volatile("" ::"r"(model) : "memory");
    return calloc(1, sizeof(lctx));
}

/* No read-ahead: a page that is touched is a fault and a read of its own. */
static void *map_weights(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat facts;
    if (fd < 0 || fstat(fd, &facts) != 0) return perror(path), exit(1), NULL;
    void *base = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return perror(path), exit(1), NULL;
    madvise(base, (size_t)facts.st_size, MADV_RANDOM);
    close(fd);
    return base;
}

lctx *llama_init_fake(const struct fake_options *o) {
    lctx *c = llama_init_from_model(NULL);
    c->o = *o;
    c->tp = ggml_threadpool_new(o->threads);
    c->sched = (struct ggml_backend_sched){.n_splits = o->splits, .uid = o->uid};
    c->sched.backend[0] = ggml_backend_cpu_init(c->tp, o->threads);
    c->sched.backend[1] = ggml_backend_accel_init();
    c->arena = calloc(MAX_NODES, sizeof *c->arena);
    c->store = calloc(MAX_LEAFS, sizeof *c->store);
    c->info = calloc(MAX_NODES, sizeof *c->info);
    c->graph = (struct ggml_cgraph){.size = MAX_NODES,
                                    .nodes = calloc(MAX_NODES, sizeof(tensor *)),
                                    .leafs = calloc(MAX_LEAFS, sizeof(tensor *))};
    for (int i = 0; i < 3; i++) c->buf[i].usage = (enum ggml_backend_buffer_usage)i;
    if (o->weights) c->buf[USAGE_WEIGHTS].context = map_weights(o->weights);
    c->run = (struct fake_run){.call = -1, .crash_call = o->crash_call, .base_us = o->base_us,
                               .nap = o->nap};
    c->run.touch_idx = o->touch_idx;
    c->run.touch_pages = o->touch_pages;
    c->run.migrate = o->migrate;
    c->run.experts = o->experts;
    c->run.used = o->used;
    c->ids = calloc((size_t)(MAX_ROWS * (o->experts + 1)), sizeof *c->ids);
    c->run.plant = o->plant;
    c->run.plant_percent = o->plant_percent;
    c->run.count_type = o->count_type;
    c->run.count_config = o->count_config;
    c->run.truth = calloc((size_t)o->threads, sizeof *c->run.truth);
    for (int i = 0; i < o->threads; i++) {
        c->run.truth[i].max = TRUTH_ROWS;
        c->run.truth[i].op = calloc(TRUTH_ROWS, sizeof(struct fake_op));
        /* Where faults are counted, writing the truth must not make any. */
        volatile char *rows = (volatile char *)c->run.truth[i].op;
        for (size_t at = 0; o->touch_pages && at < 1u << 20; at += 4096) rows[at] = 0;
    }
    return c;
}

__attribute__((noinline)) int32_t llama_decode(lctx *ctx, struct llama_batch batch) {
    int n = batch.n_tokens, pad = ctx->o.kv_pad;
    ctx->run.call++;
    ctx->run.scale = n > 1 ? 2 : 1;
    if (ctx->run.call >= ctx->o.slow_from && ctx->run.call < ctx->o.slow_to) ctx->run.scale *= 3;
    ctx->n_past = batch.pos ? batch.pos[n - 1] + 1 : ctx->n_past + n;
    int n_kv = (ctx->n_past + pad - 1) / pad * pad;
    int layers = ctx->o.layers + (ctx->o.vary && ctx->run.call % 3 == 2 ? 1 : 0);
    if (n != ctx->built_tokens || n_kv != ctx->built_kv || layers != ctx->built_layers) {
        build(ctx, n, n_kv, layers);
        ctx->built_tokens = n;
        ctx->built_kv = n_kv;
        ctx->built_layers = layers;
        ctx->builds++;
        ctx->run.crash_idx = ctx->graph.n_nodes / 2;
    }
    return (int32_t)ggml_backend_sched_graph_compute_async(&ctx->sched, &ctx->graph);
}
__attribute__((noinline)) void llama_set_warmup(lctx *ctx, bool warmup) { ctx->warmup = warmup; }
__attribute__((noinline)) void llama_perf_context_reset(lctx *ctx) { ctx->n_resets++; }
__attribute__((noinline)) int32_t llama_sampler_sample(void *smpl, lctx *ctx, int32_t idx) {
    (void)smpl;
    fake_spin_until(fake_now() + (uint64_t)ctx->o.sample_us * 1000u);
    return idx + 1;
}
