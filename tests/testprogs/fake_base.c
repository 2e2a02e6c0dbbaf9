/* libggml-base of the fake engine: tables, getters and the scheduler. */
#include "fake_ggml.h"

#include <stdlib.h>

#define NAME(n) #n,
static const char *GGML_OP_NAME[GGML_OP_COUNT] = {OPS(NAME)};
static const char *GGML_UNARY_OP_NAME[GGML_UNARY_OP_COUNT] = {UNARY_OPS(NAME)};
static const char *GGML_GLU_OP_NAME[GGML_GLU_OP_COUNT] = {GLU_OPS(NAME)};

struct ggml_type_traits {
    const char *type_name;
    int64_t blck_size;
    int64_t blck_size_interleave;
    size_t type_size;
    bool is_quantized;
    void *to_float, *from_float_ref;
};
#define TYPE(id, name, block, bytes) \
    [id] = {.type_name = name, .blck_size = block, .type_size = bytes, .is_quantized = block > 1}
static const struct ggml_type_traits type_traits[GGML_TYPE_COUNT] = {
    TYPE(0, "f32", 1, 4), TYPE(1, "f16", 1, 2), TYPE(2, "q4_0", 32, 18), TYPE(3, "q4_1", 32, 20),
    TYPE(4, "DEPRECATED", 0, 0), TYPE(5, "DEPRECATED", 0, 0), TYPE(6, "q5_0", 32, 22),
    TYPE(7, "q5_1", 32, 24), TYPE(8, "q8_0", 32, 34), TYPE(9, "q8_1", 32, 36),
    TYPE(10, "q2_K", 256, 84), TYPE(11, "q3_K", 256, 110), TYPE(12, "q4_K", 256, 144),
    TYPE(13, "q5_K", 256, 176), TYPE(14, "q6_K", 256, 210), TYPE(15, "q8_K", 256, 292),
    TYPE(16, "iq2_xxs", 256, 66), TYPE(17, "iq2_xs", 256, 74), TYPE(18, "iq3_xxs", 256, 98),
    TYPE(19, "iq1_s", 256, 50), TYPE(20, "iq4_nl", 32, 18), TYPE(21, "iq3_s", 256, 110),
    TYPE(22, "iq2_s", 256, 82), TYPE(23, "iq4_xs", 256, 136), TYPE(24, "i8", 1, 1),
    TYPE(25, "i16", 1, 2), TYPE(26, "i32", 1, 4), TYPE(27, "i64", 1, 8), TYPE(28, "f64", 1, 8),
    TYPE(29, "iq1_m", 256, 56), TYPE(30, "bf16", 1, 2), TYPE(31, "REMOVED", 0, 0),
    TYPE(32, "REMOVED", 0, 0), TYPE(33, "REMOVED", 0, 0), TYPE(34, "tq1_0", 256, 54),
    TYPE(35, "tq2_0", 256, 66), TYPE(36, "REMOVED", 0, 0), TYPE(37, "REMOVED", 0, 0),
    TYPE(38, "REMOVED", 0, 0), TYPE(39, "mxfp4", 32, 17), TYPE(40, "nvfp4", 64, 36),
    TYPE(41, "q1_0", 128, 18), TYPE(42, "q2_0", 64, 18),
};

const char *ggml_version(void) { return "0.25.3"; }
const char *ggml_commit(void) { return "fake"; }
const char *ggml_op_name(enum ggml_op op) { return GGML_OP_NAME[op]; }
const char *ggml_unary_op_name(enum ggml_unary_op op) { return GGML_UNARY_OP_NAME[op]; }
const char *ggml_glu_op_name(enum ggml_glu_op op) { return GGML_GLU_OP_NAME[op]; }
const char *ggml_type_name(enum ggml_type type) { return type_traits[type].type_name; }
int64_t ggml_blck_size(enum ggml_type type) { return type_traits[type].blck_size; }
size_t ggml_type_size(enum ggml_type type) { return type_traits[type].type_size; }
bool ggml_is_quantized(enum ggml_type type) { return type_traits[type].is_quantized; }
void *ggml_get_data(const struct ggml_tensor *tensor) { return tensor->data; }
const char *ggml_get_name(const struct ggml_tensor *tensor) { return tensor->name; }

void ggml_set_input(struct ggml_tensor *tensor) {
    if (tensor->op != GGML_OP_NONE) abort();
    tensor->flags |= FLAG_INPUT;
}
enum ggml_unary_op ggml_get_unary_op(const struct ggml_tensor *tensor) {
    if (tensor->op != GGML_OP_UNARY) abort();
    return (enum ggml_unary_op)tensor->op_params[0];
}
enum ggml_glu_op ggml_get_glu_op(const struct ggml_tensor *tensor) {
    if (tensor->op != GGML_OP_GLU) abort();
    return (enum ggml_glu_op)tensor->op_params[0];
}
struct ggml_tensor **ggml_graph_nodes(struct ggml_cgraph *cgraph) { return cgraph->nodes; }
int ggml_graph_n_nodes(struct ggml_cgraph *cgraph) { return cgraph->n_nodes; }
enum ggml_backend_buffer_usage ggml_backend_buffer_get_usage(struct ggml_backend_buffer *buffer) {
    if (buffer == NULL) abort();
    return buffer->usage;
}

enum ggml_status ggml_backend_graph_compute_async(ggml_backend_t backend, struct ggml_cgraph *g) {
    return backend->iface.graph_compute(backend, g);
}

/* Cuts the graph into n_splits views of its nodes (no leafs in a view, as in the real one). */
enum ggml_status ggml_backend_sched_graph_compute_async(struct ggml_backend_sched *sched,
                                                        struct ggml_cgraph *graph) {
    static atomic_uint_fast64_t next_uid = 1;
    for (int i = 0; i < sched->n_splits; i++) {
        struct ggml_cgraph *split = &sched->split[i];
        int from = graph->n_nodes * i / sched->n_splits;
        int to = graph->n_nodes * (i + 1) / sched->n_splits;
        /* a graph that was built again gets a new identity: order carries "rebuilt" here */
        if (graph->order || split->nodes == NULL) {
            *split = (struct ggml_cgraph){.size = to - from, .n_nodes = to - from,
                                          .nodes = graph->nodes + from};
            split->uid = sched->uid ? atomic_fetch_add(&next_uid, 1) : 0;
        }
        ggml_backend_graph_compute_async(sched->backend[i % 2], split);
    }
    graph->order = 0;
    return GGML_STATUS_SUCCESS;
}
