/* The program of the compatibility matrix: decodes fixed tokens with any llama.cpp since May 2024.
 *
 * usage: matrix-driver MODEL          runs a prompt of 7 tokens, then 12 tokens one by one
 *        matrix-driver MODEL dump     prints every node of the prompt's graph as the engine sees it
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#include "llama.h"

static int printing = 1;

static void shape(const struct ggml_tensor *t)
{
    printf("%lldx%lldx%lldx%lld", (long long)t->ne[0], (long long)t->ne[1], (long long)t->ne[2],
           (long long)t->ne[3]);
}

/* Called for every node, views and all, in the graph's order. */
static bool each_node(struct ggml_tensor *t, bool ask, void *data)
{
    (void)data;
    if (ask || !printing)
        return true;
    printf("node\t%s\t%s\t%s\t", t->name, ggml_op_name(t->op), ggml_type_name(t->type));
    shape(t);
    for (int i = 0; i < 2; i++) {
        struct ggml_tensor *s = t->src[i];
        printf("\t%s\t", s ? s->name : "");
        if (s)
            shape(s);
    }
    printf("\n");
    return true;
}

static void quiet(enum ggml_log_level level, const char *text, void *data)
{
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

static void decode(struct llama_context *ctx, struct llama_batch *batch, int first, int n)
{
    batch->n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch->token[i] = 5 + (first + i) % 50;
        batch->pos[i] = first + i;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = 0;
        batch->logits[i] = i == n - 1;
    }
    if (llama_decode(ctx, *batch)) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_load_model_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fprintf(stderr, "no model\n");
        return 1;
    }
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 2;
    if (argc > 2)
        params.cb_eval = each_node;
    struct llama_context *ctx = llama_new_context_with_model(model, params);
    if (!ctx)
        return 1;
    struct llama_batch batch = llama_batch_init(32, 0, 1);
    decode(ctx, &batch, 0, 7);
    printing = 0;
    for (int i = 0; i < 12; i++)
        decode(ctx, &batch, 7 + i, 1);
    llama_batch_free(batch);
    llama_free(ctx);
    llama_free_model(model);
    return 0;
}
