/* Which sequences the tokens of a batch belong to: a server decodes one token of several
 * requests at once, and reads the prompts of others in the same batch.
 *
 * Every token names its sequences, and only a walk over them tells how many tokens each has. It
 * costs about 0.1 us a token, once a call; consecutive tokens of a sequence make one run.
 */

/* Where the tokens are: the arrays of a struct llama_batch, or the first token of a
 * struct llama_batch_ext. */
struct pf_tokens {
    u64 n_seq_id, seq_id, pos, logits;
    u64 ext;
};

struct pf_token {
    s32 seq;
    u32 n_seqs;
    u32 output;
};

struct pf_batch_walk {
    struct pf_tokens tokens;
    u32 at; /* the next token */
    u32 runs; /* so far, in all records */
    struct pf_seqs out;
};
BPF_HASH(batch_walks, u32, struct pf_batch_walk, PF_MAX_MAIN_THREADS);
BPF_ARRAY(zero_batch_walk, struct pf_batch_walk, 1);
BPF_PROG_ARRAY(batch_steps, 1);

/* Not 0: it could not be read, or is nothing that an engine would have there. */
static __always_inline int pf_token_read(struct pf_tokens *from, u32 i, struct pf_token *t)
{
    u64 first = 0;
    t->output = 0;
#ifdef PF_EXT_SEQS /* llama_batch_ext: a std::unordered_set<llama_seq_id> in each token */
    if (from->ext) {
        u64 token = from->ext + (u64)i * PF_EXT_TOKEN_SIZE, set[2] = {}; /* first node, count */
        if (pf_read_user(set, sizeof(set), (void *)(token + PF_EXT_SEQS)) ||
            pf_read_user(&t->output, 1, (void *)(token + PF_EXT_OUTPUT)))
            return 1;
        t->n_seqs = set[1];
        first = set[0] + PF_EXT_SEQ_VALUE;
        if (set[1] > PF_MAX_SEQS)
            return 1;
    } else
#endif
    {
        if (!from->seq_id || pf_read_user(&t->n_seqs, 4, (void *)(from->n_seq_id + 4 * (u64)i)) ||
            pf_read_user(&first, 8, (void *)(from->seq_id + 8 * (u64)i)))
            return 1;
        if (from->logits)
            pf_read_user(&t->output, 1, (void *)(from->logits + i));
    }
    if (pf_read_user(&t->seq, 4, (void *)first))
        return 1;
    t->output = t->output != 0;
    return t->n_seqs == 0 || t->n_seqs > PF_MAX_SEQS || (u32)t->seq >= PF_MAX_SEQS;
}

static __always_inline s32 pf_token_pos(struct pf_tokens *from, u32 i)
{
    s32 pos = -1;
#ifdef PF_EXT_SEQS
    if (from->ext)
        pf_read_user(&pos, 4, (void *)(from->ext + (u64)i * PF_EXT_TOKEN_SIZE + PF_EXT_POS));
    else
#endif
    if (from->pos)
        pf_read_user(&pos, 4, (void *)(from->pos + 4 * (u64)i));
    return pos;
}

/* What the recorder watches without reading records: how fast tokens are decoded, and how long
 * calls take. A call inside a call of its thread is part of it. */
struct pf_open_call {
    u64 ts;
    u32 probe;
    u32 steps; /* 0: not only decode steps */
    u64 nodes; /* of the graphs that it has begun */
};
BPF_HASH(open_calls, u32, struct pf_open_call, PF_MAX_MAIN_THREADS);

#ifdef PF_WAITS /* a backend may compute on when its call has returned */
/* The latest call of a thread that has ended: waiting for a backend afterwards is its time, too. */
struct pf_ended_call {
    u64 wait; /* such a wait began; 0 outside of any */
    u64 steps;
};
BPF_HASH(ended_calls, u32, struct pf_ended_call, PF_MAX_MAIN_THREADS);

static __always_inline void pf_wait_begun(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_ended_call *call = ended_calls.lookup(&tid);
    if (call && !open_calls.lookup(&tid))
        call->wait = bpf_ktime_get_ns();
}

static __always_inline void pf_wait_ended(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_ended_call *call = ended_calls.lookup(&tid);
    if (!call || !call->wait)
        return;
    u64 took = bpf_ktime_get_ns() - call->wait;
    pf_count(PF_CNT_CALL_NS, took);
    if (call->steps)
        pf_count(PF_CNT_STEP_NS, took);
    call->wait = 0;
}
#endif

static __always_inline void pf_call_opened(struct pf_call *c, u32 steps, int walk)
{
    u32 tid = c->h.tid;
    struct pf_open_call *old = open_calls.lookup(&tid), call = {};
    if (old && old->probe != c->probe)
        return;
    if (!walk)
        pf_gate_call(c->ctx, steps);
    call.ts = c->h.ts;
    call.probe = c->probe;
    call.steps = steps;
    open_calls.update(&tid, &call);
}

static __always_inline void pf_call_closed(u32 probe)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_open_call *call = open_calls.lookup(&tid);
    if (!call || call->probe != probe)
        return;
    u64 took = bpf_ktime_get_ns() - call->ts;
    pf_count(PF_CNT_CALL_NS, took);
    if (call->steps) {
        pf_count(PF_CNT_STEPS, call->steps);
        pf_count(PF_CNT_STEP_NS, took);
        pf_count(PF_CNT_STEP_NODES, call->nodes);
    }
#ifdef PF_WAITS
    struct pf_ended_call ended = {};
    ended.steps = call->steps;
    ended_calls.update(&tid, &ended);
#endif
    open_calls.delete(&tid);
}

/* How many operators' probes a graph goes through is told by its nodes: of whom, and on how many
 * threads. */
static __always_inline void pf_nodes_begun(u32 nodes, u32 threads)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_open_call *call = open_calls.lookup(&tid);
    pf_count(PF_CNT_THREADS, threads);
    pf_count(PF_CNT_NODES, nodes);
    pf_count(PF_CNT_NODE_THREADS, (u64)nodes * threads);
    if (call)
        call->nodes += nodes;
}

static __always_inline void pf_batch_done(struct pf_batch_walk *w, u16 flags)
{
    w->out.h.flags = flags;
    pf_emit(&w->out, sizeof(w->out), PF_SEQS);
}

/* Tail-calls itself, PF_TOKENS_PER_STEP tokens a time, at most 33 times. */
int pf_batch_step(struct pt_regs *ctx)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_batch_walk *w = batch_walks.lookup(&tid);
    if (!w)
        return 0;
    for (int k = 0; k < PF_TOKENS_PER_STEP; k++) {
        struct pf_token t = {};
        u32 i = w->at, n = w->out.n_runs;
        if (i >= w->out.n_tokens) {
            struct pf_open_call *call = open_calls.lookup(&tid);
            if (call && call->ts == w->out.h.ts) {
                call->steps = w->runs == i ? i : 0; /* one token of each sequence */
                pf_gate_call(w->out.ctx, call->steps);
            }
            pf_batch_done(w, 0);
            return 0;
        }
        if (pf_token_read(&w->tokens, i, &t)) {
            pf_count(PF_CNT_UNREADABLE, 1);
            pf_batch_done(w, PF_SEQS_CUT);
            return 0;
        }
        struct pf_run *run = &w->out.run[(n - 1) & (PF_RUNS_PER_RECORD - 1)];
        if (!n || run->seq != t.seq) {
            if (n == PF_RUNS_PER_RECORD) {
                pf_batch_done(w, 0);
                n = 0;
            }
            run = &w->out.run[n & (PF_RUNS_PER_RECORD - 1)];
            run->seq = t.seq;
            run->pos = pf_token_pos(&w->tokens, i);
            run->n_tokens = run->n_outputs = 0;
            w->out.n_runs = n + 1;
            w->runs++;
        }
        run->n_tokens++;
        run->n_outputs += t.output;
        w->out.n_shared += t.n_seqs > 1;
        w->at = i + 1;
    }
    batch_steps.call(ctx, 0);
    pf_batch_done(w, PF_SEQS_CUT); /* here only when the 33 calls are used up */
    return 0;
}

/* Emits the call and, if its tokens can belong to several sequences, walks over them. May not
 * return. */
static __always_inline void pf_call_emit(struct pt_regs *ctx, struct pf_call *c, struct pf_tokens *tokens)
{
    u32 tid = c->h.tid, zero = 0;
    int walk = c->n_seqs < 0 && (tokens->seq_id || tokens->ext);
#ifndef PF_EXT_SEQS
    walk = walk && !tokens->ext;
#endif
    if (walk && c->n_tokens == 1) {
        struct pf_token t = {};
        walk = 0;
        if (!pf_token_read(tokens, 0, &t)) {
            c->n_seqs = 1;
            c->seq = t.seq;
        }
    }
    pf_call_opened(c, c->n_tokens == 1, walk);
    pf_emit(c, sizeof(*c), PF_CALL_BEGIN);
    if (!walk || c->n_tokens < 1)
        return;
    struct pf_batch_walk *w = batch_walks.lookup(&tid);
    if (!w) {
        struct pf_batch_walk *empty = zero_batch_walk.lookup(&zero);
        if (!empty)
            return;
        batch_walks.update(&tid, empty);
        w = batch_walks.lookup(&tid);
        if (!w)
            return; /* without PF_SEQS the sequences count as not known */
    }
    w->tokens = *tokens;
    w->at = w->runs = 0;
    pf_header(&w->out.h, PF_SEQS, 0, c->h.ts);
    w->out.ctx = c->ctx;
    w->out.n_tokens = c->n_tokens;
    w->out.n_shared = w->out.n_runs = 0;
    batch_steps.call(ctx, 0);
}
