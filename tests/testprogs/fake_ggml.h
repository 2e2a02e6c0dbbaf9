/* The fake engine: real symbol names and struct layouts of ggml 0.25, known durations.
 *
 * Every struct below that carries a ggml or llama name has the layout of the real one (the
 * offsets are facts that profinfer reads; they are asserted at the end). What begins with
 * fake_ is ours: the durations and the measured truth that the tests compare with.
 */
#ifndef FAKE_GGML_H
#define FAKE_GGML_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define OPS(X) \
    X(NONE) FAKE_EXTRA_OP(X) X(DUP) X(ADD) X(ADD_ID) X(ADD1) X(ACC) X(SUB) X(MUL) X(DIV) X(SQR) \
    X(SQRT) X(LOG) X(SIN) X(COS) X(SUM) X(SUM_ROWS) X(CUMSUM) X(MEAN) X(ARGMAX) X(COUNT_EQUAL) \
    X(REPEAT) X(REPEAT_BACK) X(CONCAT) X(SILU_BACK) X(NORM) X(RMS_NORM) X(RMS_NORM_BACK) \
    X(GROUP_NORM) X(L2_NORM) X(MUL_MAT) X(MUL_MAT_ID) X(OUT_PROD) X(SCALE) X(SET) X(CPY) X(CONT) \
    X(RESHAPE) X(VIEW) X(PERMUTE) X(TRANSPOSE) X(GET_ROWS) X(GET_ROWS_BACK) X(SET_ROWS) X(DIAG) \
    X(DIAG_MASK_INF) X(DIAG_MASK_ZERO) X(SOFT_MAX) X(SOFT_MAX_BACK) X(ROPE) X(ROPE_BACK) X(CLAMP) \
    X(CONV_TRANSPOSE_1D) X(IM2COL) X(IM2COL_BACK) X(IM2COL_3D) X(COL2IM_1D) X(CONV_2D) X(CONV_3D) \
    X(CONV_2D_DW) X(CONV_TRANSPOSE_2D) X(POOL_1D) X(POOL_2D) X(POOL_2D_BACK) X(UPSCALE) X(PAD) \
    X(PAD_REFLECT_1D) X(ROLL) X(ARANGE) X(TIMESTEP_EMBEDDING) X(ARGSORT) X(TOP_K) X(LEAKY_RELU) \
    X(TRI) X(FILL) X(FLASH_ATTN_EXT) X(FLASH_ATTN_BACK) X(SSM_CONV) X(SSM_SCAN) X(WIN_PART) \
    X(WIN_UNPART) X(GET_REL_POS) X(ADD_REL_POS) X(RWKV_WKV6) X(GATED_LINEAR_ATTN) X(RWKV_WKV7) \
    X(SOLVE_TRI) X(GATED_DELTA_NET) X(LIGHTNING_INDEXER) X(DSV4_HC_COMB) X(DSV4_HC_PRE) \
    X(DSV4_HC_POST) X(UNARY) X(MAP_CUSTOM1) X(MAP_CUSTOM2) X(MAP_CUSTOM3) X(CUSTOM) \
    X(CROSS_ENTROPY_LOSS) X(CROSS_ENTROPY_LOSS_BACK) X(OPT_STEP_ADAMW) X(OPT_STEP_SGD) X(GLU)
#ifdef FAKE_SHIFT_OPS /* renumbers every op: a reader that trusts constants gives wrong names */
#define FAKE_EXTRA_OP(X) X(FAKE_EXTRA)
#else
#define FAKE_EXTRA_OP(X)
#endif
#define UNARY_OPS(X) \
    X(ABS) X(SGN) X(NEG) X(STEP) X(TANH) X(ELU) X(RELU) X(SIGMOID) X(GELU) X(GELU_QUICK) X(SILU) \
    X(HARDSWISH) X(HARDSIGMOID) X(EXP) X(EXPM1) X(SOFTPLUS) X(GELU_ERF) X(XIELU) X(FLOOR) X(CEIL) \
    X(ROUND) X(TRUNC)
#define GLU_OPS(X) \
    X(REGLU) X(GEGLU) X(SWIGLU) X(SWIGLU_OAI) X(GEGLU_ERF) X(GEGLU_QUICK) X(SWIGLU_CLAMP)

#define ENUM(n) GGML_OP_##n,
enum ggml_op { OPS(ENUM) GGML_OP_COUNT };
#undef ENUM
#define ENUM(n) GGML_UNARY_OP_##n,
enum ggml_unary_op { UNARY_OPS(ENUM) GGML_UNARY_OP_COUNT };
#undef ENUM
#define ENUM(n) GGML_GLU_OP_##n,
enum ggml_glu_op { GLU_OPS(ENUM) GGML_GLU_OP_COUNT };
#undef ENUM

enum ggml_type {
    GGML_TYPE_F32 = 0, GGML_TYPE_F16 = 1, GGML_TYPE_Q4_0 = 2, GGML_TYPE_Q8_0 = 8,
    GGML_TYPE_I32 = 26, GGML_TYPE_I64 = 27, GGML_TYPE_COUNT = 43,
};
enum { FLAG_INPUT = 1, FLAG_OUTPUT = 2, FLAG_COMPUTE = 16 };
enum ggml_status { GGML_STATUS_SUCCESS = 0 };
enum ggml_backend_buffer_usage { USAGE_ANY = 0, USAGE_WEIGHTS = 1, USAGE_COMPUTE = 2 };

struct ggml_backend_buffer {
    void *iface[11];
    void *buft;
    void *context;
    size_t size;
    enum ggml_backend_buffer_usage usage;
};

struct ggml_tensor {
    enum ggml_type type;
    struct ggml_backend_buffer *buffer;
#ifdef FAKE_OTHER_LAYOUT /* what is read as shapes looks like some */
    size_t nb[4];
    int64_t ne[4];
#else
    int64_t ne[4];
    size_t nb[4];
#endif
    enum ggml_op op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor *src[10];
    struct ggml_tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra; /* ours: struct fake_node * */
    char padding[8];
};

struct ggml_cgraph {
    int size, n_nodes, n_leafs;
    struct ggml_tensor **nodes, **grads, **grad_accs, **leafs;
    int32_t *use_counts;
    struct { size_t size; uint32_t *used; struct ggml_tensor **keys; } visited_hash_set;
    int order;
    uint64_t uid;
};

struct ggml_threadpool;
struct ggml_cplan {
    size_t work_size;
    uint8_t *work_data;
    int n_threads;
    struct ggml_threadpool *threadpool;
    bool (*abort_callback)(void *);
    void *abort_callback_data;
    bool use_ref;
};

typedef struct ggml_backend *ggml_backend_t;
typedef uint8_t ggml_guid[16];
struct ggml_backend {
    ggml_guid *guid;
    struct {
        const char *(*get_name)(ggml_backend_t);
        void *unused1[11];
        enum ggml_status (*graph_compute)(ggml_backend_t, struct ggml_cgraph *);
        void *unused2[3];
    } iface;
    void *device;
    void *context;
};

#define FAKE_MAX_SPLITS 16
struct ggml_backend_sched { /* ours: the real one is opaque to profinfer */
    int n_splits;
    ggml_backend_t backend[2]; /* even splits run on [0], odd ones on [1] */
    struct ggml_cgraph split[FAKE_MAX_SPLITS];
    bool uid;
};

struct llama_batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};

/* --- the truth ------------------------------------------------------------------------ */
struct fake_op { int call, idx, thread, fused; uint64_t begin, end, count; };
struct fake_truth { /* one thread's operators, in order; no lock, one writer */
    struct fake_op *op;
    size_t n, max, dropped;
    int tid;
};
struct fake_run { /* what the operators of one context need to know */
    struct fake_truth *truth; /* [thread] */
    int call;                 /* index of the running llama_decode */
    int crash_call;           /* -1, or the call that dies half way */
    int crash_idx;
    bool nap;                 /* thread 1 sleeps in its late nodes instead of spinning */
    int base_us;
    int scale;                /* 2 in a prefill, else 1 */
    int touch_idx;            /* the node that touches fresh pages: thread t touches */
    int touch_pages;          /* (t + 1) * touch_pages of them */
    bool migrate;             /* threads change their CPU inside every operator */
    int experts, used;        /* of each layer; 0: dense */
    const char *plant;        /* nodes of this name take plant_percent longer; NULL: none */
    int plant_percent;
    int count_type;           /* an event of perf that each thread counts of itself; -1: none */
    uint64_t count_config;
};
struct fake_node { struct fake_run *run; int idx; }; /* idx: in the whole graph */

static inline uint64_t fake_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
static inline void fake_spin_until(uint64_t t) {
    while (fake_now() < t) {}
}
/* The known durations: thread 1 is 60 us late at every fifth node, so thread 0 waits there. */
static inline uint64_t fake_duration_ns(const struct fake_run *run, int idx, int thread) {
    if (run->base_us < 0) return 0; /* as fast as it can: nothing but the barriers */
    uint64_t us = (uint64_t)(run->base_us + 10 * (idx % 7)) * (uint64_t)run->scale;
    return (us + (thread == 1 && idx % 5 == 0 ? 60 : 0)) * 1000u;
}
/* The same with a slowdown planted into all nodes NAME-0, NAME-1, ... (--plant NAME:PERCENT). */
static inline uint64_t fake_planned_ns(const struct fake_run *run, const char *name, int idx,
                                       int thread) {
    uint64_t ns = fake_duration_ns(run, idx, thread);
    size_t n = run->plant ? strlen(run->plant) : 0;
    bool planted = n && strncmp(name, run->plant, n) == 0 && name[n] == '-';
    return planted ? ns + ns * (uint64_t)run->plant_percent / 100 : ns;
}

/* The known choices of the router: distinct in one row. */
static inline int fake_choice(const struct fake_run *run, int layer, int row, int slot) {
    return (run->call * 7 + layer * 3 + row * 5 + slot) % run->experts;
}

/* --- exported, by library ---------------------------------------------------------------- */
/* libggml-base */
const char *ggml_version(void);
const char *ggml_op_name(enum ggml_op op);
const char *ggml_type_name(enum ggml_type type);
int64_t ggml_blck_size(enum ggml_type type);
size_t ggml_type_size(enum ggml_type type);
void *ggml_get_data(const struct ggml_tensor *tensor);
const char *ggml_get_name(const struct ggml_tensor *tensor);
void ggml_set_input(struct ggml_tensor *tensor);
int ggml_graph_n_nodes(struct ggml_cgraph *cgraph);
enum ggml_status ggml_backend_graph_compute_async(ggml_backend_t backend, struct ggml_cgraph *g);
enum ggml_status ggml_backend_sched_graph_compute_async(struct ggml_backend_sched *sched,
                                                        struct ggml_cgraph *graph);
static inline bool ggml_op_is_empty(enum ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_TRANSPOSE ||
           op == GGML_OP_VIEW || op == GGML_OP_PERMUTE;
}
/* libggml-cpu */
struct ggml_threadpool *ggml_threadpool_new(int n_threads);
void ggml_threadpool_free(struct ggml_threadpool *tp);
ggml_backend_t ggml_backend_cpu_init(struct ggml_threadpool *tp, int n_threads);
ggml_backend_t ggml_backend_accel_init(void); /* second backend: runs its nodes by itself */
enum ggml_status ggml_graph_compute(struct ggml_cgraph *cgraph, struct ggml_cplan *cplan);
/* libllama */
struct fake_options {
    int threads, prompt, tokens, layers, generations, kv_pad, base_us, splits, sample_us;
    int crash_call;
    int touch_idx, touch_pages; /* --touch NODE:PAGES */
    int slow_from, slow_to; /* calls in between take three times as long */
    int count_type;         /* --count TYPE:CONFIG */
    unsigned long count_config;
    bool uid, pos, tail, vary, nap, migrate;
    int experts, used; /* --experts N:K */
    const char *plant;   /* --plant NAME:PERCENT */
    int plant_percent;
    const char *weights; /* a file to map the weights from; each MUL_MAT then reads its own */
};
struct llama_context {
    struct fake_options o;
    struct fake_run run;
    struct ggml_threadpool *tp;
    struct ggml_backend_sched sched;
    struct ggml_cgraph graph;
    struct ggml_tensor *arena; /* nodes; reset on every rebuild, so addresses come back */
    struct ggml_tensor *store; /* leafs: weights, caches, inputs; built once */
    struct fake_node *info;
    int32_t *ids; /* what every layer's router writes to, and others after it */
    struct ggml_backend_buffer buf[3]; /* by usage */
    int built_tokens, built_kv, built_layers;
    uint64_t builds;
    int n_past, n_resets;
    bool warmup;
};
struct llama_context *llama_init_fake(const struct fake_options *o);
int32_t llama_decode(struct llama_context *ctx, struct llama_batch batch);
void llama_set_warmup(struct llama_context *ctx, bool warmup);
void llama_perf_context_reset(struct llama_context *ctx);
int32_t llama_sampler_sample(void *smpl, struct llama_context *ctx, int32_t idx);

#define AT(type, field, offset) _Static_assert(offsetof(struct type, field) == offset, #type "." #field)
_Static_assert(sizeof(struct ggml_tensor) == 336, "ggml_tensor");
#ifndef FAKE_OTHER_LAYOUT
AT(ggml_tensor, ne, 16); AT(ggml_tensor, nb, 48);
#endif
AT(ggml_tensor, buffer, 8);
AT(ggml_tensor, op, 80); AT(ggml_tensor, op_params, 84); AT(ggml_tensor, flags, 148);
AT(ggml_tensor, src, 152); AT(ggml_tensor, view_src, 232); AT(ggml_tensor, view_offs, 240);
AT(ggml_tensor, data, 248); AT(ggml_tensor, name, 256); AT(ggml_tensor, extra, 320);
AT(ggml_cgraph, n_nodes, 4); AT(ggml_cgraph, nodes, 16); AT(ggml_cgraph, leafs, 40);
AT(ggml_cgraph, order, 80); AT(ggml_cgraph, uid, 88);
AT(ggml_cplan, n_threads, 16); AT(ggml_backend_buffer, usage, 112);
AT(ggml_backend, device, 136);
_Static_assert(sizeof(struct llama_batch) == 56, "llama_batch");

#endif
