// What the router of a model chooses, from the engine's own callback: each ffn_moe_topk in full.
//
//     router_truth MODEL THREADS PROMPT UBATCH DECODE [--tell]
//
// Decodes PROMPT tokens (a fixed sequence) in one batch, then DECODE tokens one by one, greedily
// chosen. With --tell it prints `call layer token slot expert` lines; without, it asks for no callback,
// and computes the same.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

static int call = -1, first_row[1024];

static bool on_node(ggml_tensor *t, bool ask, void *) {
    int layer;
    if (sscanf(t->name, "ffn_moe_topk-%d", &layer) != 1) return false;
    if (ask) return true;
    std::vector<char> data(ggml_nbytes(t));
    ggml_backend_tensor_get(t, data.data(), 0, data.size());
    for (int64_t i = 0; i < t->ne[1]; i++) {
        for (int64_t k = 0; k < t->ne[0]; k++) {
            int id;
            memcpy(&id, data.data() + i * t->nb[1] + k * t->nb[0], 4);
            printf("%d %d %ld %ld %d\n", call, layer, first_row[layer] + i, k, id);
        }
    }
    first_row[layer] += t->ne[1];
    return true;
}

static int decode(llama_context *ctx, llama_token *token, int n) {
    call++;
    memset(first_row, 0, sizeof first_row);
    return llama_decode(ctx, llama_batch_get_one(token, n));
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int threads = atoi(argv[2]), prompt = atoi(argv[3]), ubatch = atoi(argv[4]), n = atoi(argv[5]);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = prompt + n + 8;
    params.n_batch = prompt;
    params.n_ubatch = ubatch;
    params.n_threads = params.n_threads_batch = threads;
    if (argc > 6) params.cb_eval = on_node;
    llama_context *ctx = llama_init_from_model(model, params);
    if (!ctx) return 1;
    int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens(prompt);
    for (int i = 0; i < prompt; i++) tokens[i] = (i * 37 + 11) % n_vocab;
    if (decode(ctx, tokens.data(), prompt)) return 1;
    for (int i = 0; i < n; i++) {
        const float *logits = llama_get_logits_ith(ctx, -1);
        llama_token best = 0;
        for (int v = 1; v < n_vocab; v++) {
            if (logits[v] > logits[best]) best = v;
        }
        if (decode(ctx, &best, 1)) return 1;
    }
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
