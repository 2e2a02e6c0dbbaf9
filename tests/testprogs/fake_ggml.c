/* The program of the fake engine: decodes as told, then prints what it measured as JSON.
 *
 * The JSON is the tests' truth: per context the calls, the samplings, the graph definitions
 * with planned durations, and one row [call, node, thread, covered, begin, end] per operator
 * and thread, all times CLOCK_MONOTONIC ns. It is printed at the end only (nothing after a
 * crash), on stdout or into --out FILE.
 */
#define _GNU_SOURCE
#include "fake_ggml.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_CALLS = 1 << 16, MAX_DEFS = 256, MAX_TOKENS = 512, MAX_SLOTS = 64 };

static struct fake_options opt = {.threads = 2, .prompt = 7, .tokens = 16, .layers = 2,
                                  .generations = 1, .kv_pad = 4, .base_us = 20, .splits = 1,
                                  .sample_us = 30, .crash_call = -1, .uid = true, .pos = true};
static int contexts = 1, slots = 1;
static bool interleave;
static double seconds;
static bool want_ops = true;
static const char *mode = "normal", *warmup = "reset", *out_path;
static volatile sig_atomic_t stop;

struct part { int seq, pos, n; };
struct call {
    int n, first, last, generation, def;
    bool warmup;
    uint64_t begin, end;
    struct part *part; /* one a sequence, in the order of the batch */
    int n_parts;
};
struct sample { uint64_t begin, end; };
struct worker {
    pthread_t thread;
    struct llama_context *ctx;
    struct call *call;
    struct sample *sample;
    int n_calls, n_samples, n_defs, tid;
    uint64_t builds;
    char *defs;
    size_t defs_len;
    FILE *defs_file;
};

static void describe(struct worker *w) {
    struct llama_context *c = w->ctx;
    FILE *f = w->defs_file;
    fprintf(f, "%s{\"nodes\": [", w->n_defs ? ",\n" : "");
    for (int i = 0; i < c->graph.n_nodes; i++) {
        struct ggml_tensor *t = c->graph.nodes[i];
        bool skipped = ggml_op_is_empty(t->op) || (t->flags & FLAG_COMPUTE) == 0;
        fprintf(f, "%s\n {\"idx\": %d, \"name\": \"%s\", \"op\": \"%s\", \"type\": \"%s\", ",
                i ? "," : "", i, t->name, ggml_op_name(t->op), ggml_type_name(t->type));
        fprintf(f, "\"ne\": [%ld, %ld, %ld, %ld], \"nb\": [%zu, %zu, %zu, %zu], ", t->ne[0],
                t->ne[1], t->ne[2], t->ne[3], t->nb[0], t->nb[1], t->nb[2], t->nb[3]);
        fprintf(f, "\"flags\": %d, \"empty\": %s, \"skipped\": %s, \"src\": [", t->flags,
                ggml_op_is_empty(t->op) ? "true" : "false", skipped ? "true" : "false");
        for (int s = 0; s < 10 && t->src[s]; s++) {
            fprintf(f, "%s\"%s\"", s ? ", " : "", t->src[s]->name);
        }
        fprintf(f, "], \"planned_ns\": [");
        for (int k = 0; k < c->o.threads; k++) {
            fprintf(f, "%s%lu", k ? ", " : "", fake_duration_ns(&c->run, i, k));
        }
        fprintf(f, "]}");
    }
    fprintf(f, "]}");
    w->n_defs++;
}

struct tokens { int n, seq[MAX_TOKENS], pos[MAX_TOKENS]; };

static void add(struct tokens *t, int seq, int pos) {
    if (t->n == MAX_TOKENS) abort();
    t->seq[t->n] = seq;
    t->pos[t->n++] = pos;
}

static void run(struct worker *w, struct tokens *t, int generation, bool warmup, bool with_seqs) {
    static int32_t token[MAX_TOKENS];
    int32_t one[MAX_TOKENS], *seq[MAX_TOKENS];
    struct llama_batch batch = {.n_tokens = t->n, .token = token, .pos = opt.pos ? t->pos : NULL};
    for (int i = 0; i < t->n; i++) {
        one[i] = 1;
        seq[i] = &t->seq[i];
    }
    if (with_seqs) {
        batch.n_seq_id = one;
        batch.seq_id = seq;
    }
    uint64_t begin = fake_now();
    llama_decode(w->ctx, batch);
    uint64_t end = fake_now();
    if (w->builds != w->ctx->builds && w->n_defs < MAX_DEFS) describe(w);
    w->builds = w->ctx->builds;
    if (w->n_calls == MAX_CALLS) return;
    struct call *c = &w->call[w->n_calls++];
    *c = (struct call){t->n, t->pos[0], t->pos[t->n - 1], generation, w->n_defs - 1, warmup, begin,
                       end, calloc(MAX_SLOTS, sizeof(struct part)), 0};
    for (int i = 0, p; i < t->n; i++) {
        for (p = 0; p < c->n_parts && c->part[p].seq != t->seq[i]; p++) {}
        if (p == c->n_parts) c->part[c->n_parts++] = (struct part){t->seq[i], t->pos[i], 0};
        c->part[p].n++;
    }
}

static void decode(struct worker *w, int n, int first, int generation, bool warmup) {
    struct tokens t = {0};
    for (int i = 0; i < n; i++) add(&t, 0, first + i);
    if (first == 0) w->ctx->n_past = 0;
    run(w, &t, generation, warmup, false);
}

static void sample(struct worker *w) {
    uint64_t begin = fake_now();
    llama_sampler_sample(NULL, w->ctx, -1);
    if (w->n_samples < MAX_CALLS) {
        w->sample[w->n_samples++] = (struct sample){begin, fake_now()};
    }
}

/* As a server does: slot s gets its prompt (of opt.prompt + s tokens) in step s, in one batch with
 * the next token of each slot before it. Interleaved, all prompts come at once, token by token. */
static void serve(struct worker *w, int generation) {
    int last = slots - 1 + opt.tokens;
    for (int step = 0; step <= last && !stop; step++) {
        struct tokens t = {0};
        for (int i = 0; interleave && step == 0 && i < opt.prompt; i++) {
            for (int s = 0; s < slots; s++) add(&t, s, i);
        }
        for (int s = 0; !interleave && s < slots && s <= step; s++) {
            for (int i = 0; s == step && i < opt.prompt + s; i++) add(&t, s, i);
            if (s < step) add(&t, s, opt.prompt + step - 1);
        }
        for (int s = 0; interleave && step > 0 && s < slots; s++) add(&t, s, opt.prompt + step - 1);
        run(w, &t, generation, false, true);
        for (int s = 0; s < slots && s <= step; s++) sample(w);
    }
}

static void fork_child(void) {
    if (fork() != 0) return;
    struct fake_options o = opt;
    struct worker w = {.ctx = llama_init_fake(&o), .call = calloc(MAX_CALLS, sizeof(struct call)),
                       .n_defs = MAX_DEFS};
    for (int i = 0; i < 3; i++) decode(&w, 1, i, 0, false);
    _exit(0);
}

static void *work(void *data) {
    struct worker *w = data;
    uint64_t until = fake_now() + (uint64_t)(seconds * 1e9);
    w->tid = gettid();
    w->ctx = llama_init_fake(&opt);
    w->call = calloc(MAX_CALLS, sizeof *w->call);
    w->sample = calloc(MAX_CALLS, sizeof *w->sample);
    w->defs_file = open_memstream(&w->defs, &w->defs_len);
    bool set = strcmp(warmup, "set") == 0; /* engines before 2026 tell the context so */
    if (set) llama_set_warmup(w->ctx, true);
    if (strcmp(warmup, "none") != 0) decode(w, 2, 0, -1, true);
    if (set) llama_set_warmup(w->ctx, false);
    if (strcmp(warmup, "none") != 0) llama_perf_context_reset(w->ctx);
    for (int g = 0; !stop && (seconds > 0 ? fake_now() < until : g < opt.generations); g++) {
        if (slots > 1) {
            serve(w, g);
            continue;
        }
        decode(w, opt.prompt, 0, g, false);
        sample(w);
        for (int i = 0; i < opt.tokens && !stop && !(seconds > 0 && fake_now() > until); i++) {
            if (i == opt.tokens / 2 && strcmp(mode, "fork") == 0) fork_child();
            decode(w, 1, opt.prompt + i, g, false);
            sample(w);
        }
    }
    fclose(w->defs_file);
    ggml_threadpool_free(w->ctx->tp);
    return NULL;
}

static void print_worker(FILE *f, struct worker *w) {
    struct llama_context *c = w->ctx;
    size_t dropped = 0;
    fprintf(f, "{\"ctx\": %lu, \"tid\": %d, \"builds\": %lu, \"tids\": [", (uint64_t)c, w->tid,
            c->builds);
    for (int t = 0; t < opt.threads; t++) {
        fprintf(f, "%s%d", t ? ", " : "", c->run.truth[t].tid);
        dropped += c->run.truth[t].dropped;
    }
    fprintf(f, "], \"ops_dropped\": %zu,\n\"calls\": [", dropped);
    for (int i = 0; i < w->n_calls; i++) {
        struct call *k = &w->call[i];
        fprintf(f,
                "%s\n {\"n_tokens\": %d, \"pos_first\": %d, \"pos_last\": %d, \"generation\": %d, "
                "\"def\": %d, \"warmup\": %s, \"begin_ns\": %lu, \"end_ns\": %lu, \"parts\": [",
                i ? "," : "", k->n, k->first, k->last, k->generation, k->def,
                k->warmup ? "true" : "false", k->begin, k->end);
        for (int p = 0; p < k->n_parts; p++) {
            struct part *q = &k->part[p];
            fprintf(f, "%s[%d, %d, %d]", p ? ", " : "", q->seq, q->pos, q->n);
        }
        fprintf(f, "]}");
    }
    fprintf(f, "],\n\"samples\": [");
    for (int i = 0; i < w->n_samples; i++) {
        fprintf(f, "%s[%lu, %lu]", i ? ", " : "", w->sample[i].begin, w->sample[i].end);
    }
    fprintf(f, "],\n\"defs\": [%s],\n\"ops\": [", w->defs);
    bool any = false;
    for (int t = 0; t < opt.threads && want_ops; t++) {
        for (size_t i = 0; i < c->run.truth[t].n; i++, any = true) {
            struct fake_op *o = &c->run.truth[t].op[i];
            fprintf(f, "%s[%d, %d, %d, %d, %lu, %lu]", any ? ",\n " : "\n ", o->call, o->idx,
                    o->thread, o->fused, o->begin, o->end);
        }
    }
    fprintf(f, "]}");
}

static void on_interrupt(int sig) {
    (void)sig;
    stop = 1;
}

static const char usage[] =
    "usage: fake_ggml [--threads N] [--prompt N] [--tokens N] [--layers N] [--generations N]\n"
    "  [--contexts N] [--slots N] [--interleave] [--splits N] [--kv-pad N]\n"
    "  [--base-us N] [--sample-us N] [--seconds T]\n"
    "  [--mode normal|crash|exit3|idle|fork] [--warmup reset|set|none] [--no-uid] [--no-pos]\n"
    "  [--no-ops] [--tail] [--vary] [--nap] [--slow FIRST:LAST] [--touch NODE:PAGES] [--migrate]\n"
    "  [--out FILE] [--weights FILE] [--experts N:USED]\n";

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"threads", 1, 0, 't'}, {"prompt", 1, 0, 'p'}, {"tokens", 1, 0, 'n'},
        {"layers", 1, 0, 'l'}, {"generations", 1, 0, 'g'}, {"contexts", 1, 0, 'c'},
        {"splits", 1, 0, 's'}, {"kv-pad", 1, 0, 'k'}, {"base-us", 1, 0, 'b'},
        {"sample-us", 1, 0, 'a'}, {"seconds", 1, 0, 'T'}, {"mode", 1, 0, 'm'},
        {"no-uid", 0, 0, 'U'}, {"no-pos", 0, 0, 'P'}, {"warmup", 1, 0, 'W'},
        {"slots", 1, 0, 'S'}, {"interleave", 0, 0, 'I'}, {"slow", 1, 0, 'w'}, {"no-ops", 0, 0, 'O'}, {"tail", 0, 0, 'i'}, {"vary", 0, 0, 'v'}, {"nap", 0, 0, 'N'}, {"out", 1, 0, 'o'}, {"touch", 1, 0, 'f'}, {"migrate", 0, 0, 'R'}, {"weights", 1, 0, 'M'}, {"experts", 1, 0, 'E'}, {0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
            case 't': opt.threads = atoi(optarg); break;
            case 'p': opt.prompt = atoi(optarg); break;
            case 'n': opt.tokens = atoi(optarg); break;
            case 'l': opt.layers = atoi(optarg); break;
            case 'g': opt.generations = atoi(optarg); break;
            case 'c': contexts = atoi(optarg); break;
            case 'S': slots = atoi(optarg); break;
            case 'w': sscanf(optarg, "%d:%d", &opt.slow_from, &opt.slow_to); break;
            case 'f': sscanf(optarg, "%d:%d", &opt.touch_idx, &opt.touch_pages); break;
            case 'R': opt.migrate = true; break;
            case 'I': interleave = true; break;
            case 's': opt.splits = atoi(optarg); break;
            case 'k': opt.kv_pad = atoi(optarg); break;
            case 'b': opt.base_us = atoi(optarg); break;
            case 'a': opt.sample_us = atoi(optarg); break;
            case 'T': seconds = atof(optarg); break;
            case 'm': mode = optarg; break;
            case 'U': opt.uid = false; break;
            case 'P': opt.pos = false; break;
            case 'W': warmup = optarg; break;
            case 'O': want_ops = false; break;
            case 'i': opt.tail = true; break;
            case 'v': opt.vary = true; break;
            case 'N': opt.nap = true; break;
            case 'o': out_path = optarg; break;
            case 'M': opt.weights = optarg; break;
            case 'E': sscanf(optarg, "%d:%d", &opt.experts, &opt.used); break;
            default: fputs(usage, stderr); return 2;
        }
    }
    if (opt.threads < 1 || opt.prompt < 1 || opt.prompt > 512 || opt.splits < 1 ||
        opt.splits > FAKE_MAX_SPLITS || opt.kv_pad < 1 || contexts < 1 || opt.layers < 1 ||
        slots < 1 || slots > MAX_SLOTS || opt.used > opt.experts) {
        fputs(usage, stderr);
        return 2;
    }
    if (strcmp(mode, "idle") == 0) {
        puts("{\"pid\": 0, \"contexts\": []}");
        return 0;
    }
    if (strcmp(mode, "crash") == 0) {
        opt.crash_call = (strcmp(warmup, "none") != 0) + 1 + opt.tokens / 2;
    }
    signal(SIGINT, on_interrupt);

    struct worker *w = calloc((size_t)contexts, sizeof *w);
    for (int i = 1; i < contexts; i++) pthread_create(&w[i].thread, NULL, work, &w[i]);
    work(&w[0]);
    for (int i = 1; i < contexts; i++) pthread_join(w[i].thread, NULL);
    while (wait(NULL) > 0) {}

    FILE *f = out_path ? fopen(out_path, "w") : stdout;
    if (f == NULL) return perror(out_path), 1;
    fprintf(f, "{\"pid\": %d, \"mode\": \"%s\", \"threads\": %d,\n\"contexts\": [", getpid(), mode,
            opt.threads);
    for (int i = 0; i < contexts; i++) {
        if (i) fputs(",\n", f);
        print_worker(f, &w[i]);
    }
    fputs("]}\n", f);
    if (fclose(f) != 0) return perror("fake_ggml"), 1;
    return stop ? 130 : strcmp(mode, "exit3") == 0 ? 3 : 0;
}
