/* Graph level: splits, graphs, and the reading of what their nodes are.
 *
 * A definition is read when a graph begins, on the thread that begins it, because only then is
 * it certain to be there; and only what is new or changed is sent. Engines that number their
 * graphs (cgraph->uid) cost nothing when the same graph runs again.
 */

struct pf_walk {
    u64 cgraph, array, gen, t0, uid, nodes, leafs;
    u32 n_nodes, n_leafs, n_threads, probe;
    u32 count, pos;           /* of the array being read */
    u32 reading_leafs;        /* 0: nodes */
    u32 sends_graph;          /* emit PF_GRAPH_BEGIN at the end */
    u32 sends_split;          /* emit PF_SPLIT_BEGIN at the end */
    u32 pad;
    u32 changed, partial;
    struct pf_ptrs ptrs;
    struct pf_tensor tensor;
    struct pf_buffer buffer;
    struct pf_split split;
#ifdef PF_FILTER
    u32 layer, place; /* of the last node, and of the number in its name */
    struct pf_wanted wanted;
#endif
#ifdef PF_MUL_MAT_ID
    struct pf_routes routes;
    struct pf_reading reading;
#endif
};
BPF_HASH(walks, u32, struct pf_walk, PF_MAX_MAIN_THREADS);
BPF_ARRAY(zero_walk, struct pf_walk, 1);

struct pf_known_graph {
    u64 uid, nodes, gen;
    u32 n_nodes;
    u32 ids_at; /* see pf_routes.first */
};
BPF_HASH(known_graphs, u64, struct pf_known_graph, 4096);
BPF_HASH(known_leafs, u64, u64, 4096); /* cgraph -> uid */

/* address -> hash of what was last sent from there; of pieces of pointer arrays, see pf_piece_key */
BPF_TABLE("lru_hash", u64, u64, seen, PF_MAX_TENSORS);

BPF_PROG_ARRAY(steps, 1);

/* Bijective in every word for the words after it, so that one changed word always shows. */
static __always_inline u64 pf_mix(u64 h, u64 word)
{
    h ^= word;
    h *= 0x9e3779b97f4a7c15ull;
    return h ^ (h >> 29);
}

#ifdef PF_FILTER
static __always_inline void pf_filter_node(struct pf_walk *w, u32 at)
{
    const unsigned char *raw = w->tensor.raw;
    int want = at < 64 * PF_FILTER_WORDS;
#ifdef PF_LAYER_FIRST
    pf_layer_of(raw + PF_TENSOR_NAME, &w->layer, &w->place);
    want = want && *(volatile u32 *)&w->layer - PF_LAYER_FIRST < PF_LAYER_END - PF_LAYER_FIRST;
#endif
#ifdef PF_OPS_LOW
    want = want && pf_op_is_wanted(*(u32 *)(raw + PF_TENSOR_OP));
#endif
    u64 word = at >> 6;
    PF_KEEP_BOUND(word);
    if (want)
        w->wanted.word[word & (PF_FILTER_WORDS - 1)] |= 1ull << (at & 63);
}
#endif

static __always_inline int pf_is_known(u64 key, u64 hash)
{
    u64 *old = seen.lookup(&key);
    return old && *old == hash;
}

static __always_inline void pf_graph_emit(struct pf_walk *w, u64 gen, u16 flags, u64 now)
{
    struct pf_graph g = {};
    if (pf_gate_closed())
        flags |= PF_GRAPH_NO_OPS;
    pf_header(&g.h, PF_GRAPH_BEGIN, flags | pf_number(PF_GRAPH_BEGIN), now);
    g.cgraph = w->cgraph;
    g.uid = w->uid;
    g.gen = gen;
    g.n_nodes = w->n_nodes;
    g.n_threads = w->n_threads;
    g.walk_ns = now - w->t0;
    g.probe = w->probe;
    pf_nodes_begun(w->n_nodes, w->n_threads);
    pf_emit(&g, sizeof(g), PF_GRAPH_BEGIN);
}

static __always_inline void pf_split_emit(struct pf_walk *w, u16 flags)
{
    pf_header(&w->split.h, PF_SPLIT_BEGIN, flags | pf_number(PF_SPLIT_BEGIN), bpf_ktime_get_ns());
    pf_emit(&w->split, sizeof(w->split), PF_SPLIT_BEGIN);
}

static __always_inline void pf_walk_done(struct pf_walk *w)
{
    u64 cgraph = w->cgraph;
    if (!w->sends_graph && !w->sends_split) {
        u64 uid = w->uid;
        if (uid && !w->partial)
            known_leafs.update(&cgraph, &uid);
        return;
    }
    u64 gen = w->gen;
    struct pf_known_graph *old = known_graphs.lookup(&cgraph);
    if (old && !w->changed && old->nodes == w->nodes && old->n_nodes == w->n_nodes)
        gen = old->gen; /* rebuilt, but the same in every byte */
    else
        w->changed = 1;
    if (w->partial) {
        known_graphs.delete(&cgraph); /* read it again next time */
    } else {
        struct pf_known_graph k = {};
        k.uid = w->uid;
        k.nodes = w->nodes;
        k.gen = gen;
        k.n_nodes = w->n_nodes;
#ifdef PF_MUL_MAT_ID
        k.ids_at = w->routes.first;
#endif
        known_graphs.update(&cgraph, &k);
    }
#ifdef PF_FILTER
    wanted_nodes.update(&cgraph, &w->wanted);
#endif
#ifdef PF_MUL_MAT_ID
    pf_route_arm(w->routes.first);
#endif
    u16 flags = (w->changed ? PF_GRAPH_CHANGED : 0) | (w->partial ? PF_GRAPH_PARTIAL : 0);
    if (w->sends_split)
        pf_split_emit(w, flags | PF_SPLIT_READ); /* the flags are the same ones */
    else
        pf_graph_emit(w, gen, flags, bpf_ktime_get_ns());
}

static __always_inline void pf_buffer_read(struct pf_walk *w)
{
    u64 addr = *(u64 *)&w->tensor.raw[PF_TENSOR_BUFFER], h = 0;
    if (!addr)
        return;
    if (pf_read_user(w->buffer.raw, PF_BUFFER_SIZE, (void *)addr))
        return;
    u64 *words = (u64 *)w->buffer.raw;
#pragma unroll
    for (int i = 0; i < PF_BUFFER_SIZE / 8; i++)
        h = pf_mix(h, words[i]);
    if (pf_is_known(addr, h))
        return;
    pf_header(&w->buffer.h, PF_BUFFER, 0, w->t0);
    w->buffer.addr = addr;
    w->buffer.gen = w->gen;
    if (!pf_emit(&w->buffer, sizeof(w->buffer), PF_BUFFER))
        seen.update(&addr, &h);
}

/* `at`: place among the nodes. */
static __always_inline void pf_tensor_read(struct pf_walk *w, u64 addr, u32 at)
{
    u64 h = 0;
    if (pf_read_user(w->tensor.raw, PF_TENSOR_SIZE, (void *)addr)) {
        pf_count(PF_CNT_UNREADABLE, 1);
        w->partial = 1;
        return;
    }
#ifdef PF_FILTER
    if (!w->reading_leafs)
        pf_filter_node(w, at);
#endif
#ifdef PF_MUL_MAT_ID
    pf_route_note(&w->routes, w->tensor.raw, addr, at); /* leafs compute nothing */
#endif
    u64 *words = (u64 *)w->tensor.raw;
#pragma unroll
    for (int i = 0; i < PF_TENSOR_SIZE / 8; i++)
        h = pf_mix(h, words[i]);
    if (pf_is_known(addr, h))
        return;
    pf_header(&w->tensor.h, PF_TENSOR, 0, w->t0);
    w->tensor.addr = addr;
    w->tensor.gen = w->gen;
    if (pf_emit(&w->tensor, sizeof(w->tensor), PF_TENSOR)) {
        w->partial = 1;
        return;
    }
    seen.update(&addr, &h);
    w->changed = 1;
    pf_buffer_read(w);
}

/* A piece belongs to its graph: the reader lays it over what it knows of that cgraph, so it is sent
 * again when the same cgraph had another array in between (views of a graph on the stack). */
static __always_inline u64 pf_piece_key(struct pf_walk *w)
{
    return pf_mix(pf_mix(w->reading_leafs, w->cgraph), w->pos) | 1ull << 63; /* no address */
}

/* i from 0 to n - 1, at most 63, compared with the constant each time: verifiers before Linux 6.8
 * learn a bound from a constant only. The compiler must know neither i nor that n is at most 64, or it
 * counts n down to 0 and leaves that comparison out. */
#define PF_EACH_PTR(i, n) \
    for (i = 0; pf_kept(&i) < PF_PTRS_PER_RECORD && i < (n); i++)

static __always_inline u32 pf_kept(u32 *v)
{
    PF_KEEP_BOUND(*v);
    return *v;
}

/* One piece of 64 pointers and the tensors behind them. */
static __always_inline void pf_piece_read(struct pf_walk *w)
{
    u64 at = w->array + 8 * (u64)w->pos, key = pf_piece_key(w), h = w->cgraph;
    u64 left = (u64)w->count - w->pos;
    u32 i;
    if (left > PF_PTRS_PER_RECORD)
        left = PF_PTRS_PER_RECORD;
    PF_KEEP_BOUND(left);
    if (left > PF_PTRS_PER_RECORD)
        return;
    if (pf_read_user(w->ptrs.ptr, left * 8, (void *)at)) {
        pf_count(PF_CNT_UNREADABLE, 1);
        w->partial = 1;
        w->pos += left;
        return;
    }
    w->ptrs.n = left;
    w->ptrs.first = w->pos;
    PF_KEEP_BOUND(left); /* see PF_EACH_PTR */
    PF_EACH_PTR(i, left)
        h = pf_mix(h, w->ptrs.ptr[i]);
    /* Read back from memory, about which the verifier knows nothing: else it knows from each of
     * the 64 ways out of the loop how many there are, and goes through what follows for each. */
    left = *(volatile u32 *)&w->ptrs.n;
    if (!pf_is_known(key, h)) {
        pf_header(&w->ptrs.h, PF_PTRS, w->reading_leafs ? PF_PTRS_LEAFS : 0, w->t0);
        w->ptrs.cgraph = w->cgraph;
        w->ptrs.gen = w->gen;
        if (pf_emit(&w->ptrs, sizeof(w->ptrs), PF_PTRS)) {
            w->partial = 1;
        } else {
            seen.update(&key, &h);
            w->changed = 1;
        }
    }
    PF_EACH_PTR(i, left)
        pf_tensor_read(w, w->ptrs.ptr[i], w->pos + i);
    w->pos += *(volatile u32 *)&w->ptrs.n;
}

/* A BPF program may not loop over thousands of nodes: it tail-calls itself, PF_PIECES_PER_STEP
 * pieces a time, at most 33 times. */
int pf_walk_step(struct pt_regs *ctx)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_walk *w = walks.lookup(&tid);
    if (!w)
        return 0;
    for (int piece = 0; piece < PF_PIECES_PER_STEP; piece++) {
        if (w->pos >= w->count) {
            if (w->reading_leafs || !w->n_leafs || !w->leafs)
                goto done;
            w->reading_leafs = 1;
            w->array = w->leafs;
            w->count = w->n_leafs;
            w->pos = 0;
        }
        pf_piece_read(w);
    }
    steps.call(ctx, 0);
    pf_count(PF_CNT_TOO_MANY_NODES, 1); /* here only when the 33 calls are used up */
    w->partial = 1;
done:
#ifdef PF_MUL_MAT_ID
    if (w->routes.n && w->sends_graph)
        route_steps.call(ctx, 0);
#endif
    pf_walk_done(w);
    return 0;
}

static __always_inline u64 pf_graph_uid(u64 cgraph)
{
#ifdef PF_CGRAPH_UID
    return pf_user_u64(cgraph + PF_CGRAPH_UID);
#else
    return 0;
#endif
}

static __always_inline struct pf_walk *pf_walk_new(u32 probe, u64 cgraph)
{
    u32 tid = (u32)bpf_get_current_pid_tgid(), zero = 0;
    struct pf_walk *w = walks.lookup(&tid);
    if (!w) {
        struct pf_walk *empty = zero_walk.lookup(&zero);
        if (!empty)
            return 0;
        walks.update(&tid, empty);
        w = walks.lookup(&tid);
        if (!w) {
            pf_count(PF_CNT_NO_SLOT, 1);
            return 0;
        }
        struct pf_slot *s = pf_slot_get(); /* names the thread */
#ifdef PF_MAIN_ONLY
        if (s)
            s->caller = 1;
#endif
    }
    w->cgraph = cgraph;
    w->probe = probe;
    w->t0 = bpf_ktime_get_ns();
    w->gen = w->t0;
    w->uid = pf_graph_uid(cgraph);
    w->n_nodes = pf_user_u32(cgraph + PF_CGRAPH_N_NODES);
    w->nodes = pf_user_u64(cgraph + PF_CGRAPH_NODES);
    w->n_leafs = pf_user_u32(cgraph + PF_CGRAPH_N_LEAFS);
    w->leafs = pf_user_u64(cgraph + PF_CGRAPH_LEAFS);
    w->changed = w->partial = w->reading_leafs = w->n_threads = 0;
    w->sends_graph = w->sends_split = 0;
    w->pos = 0;
#ifdef PF_MUL_MAT_ID
    w->routes.n = w->routes.ids = w->reading.left = 0;
    w->routes.first = PF_NEVER;
#endif
    return w;
}

/* ggml_backend_sched_graph_compute_async(sched, cgraph): the whole graph still has its leafs
 * (weights, inputs, caches); the splits that are computed are views without them. */
static __always_inline int pf_leafs(struct pt_regs *ctx, u32 probe)
{
    u64 cgraph = PT_REGS_PARM2(ctx), uid = pf_graph_uid(cgraph);
    u64 *known = known_leafs.lookup(&cgraph);
    if (uid && known && *known == uid)
        return 0;
    struct pf_walk *w = pf_walk_new(probe, cgraph);
    if (!w)
        return 0;
    w->reading_leafs = 1;
    w->array = w->leafs;
    w->count = w->n_leafs;
    steps.call(ctx, 0);
    return 0;
}

/* Whether the nodes at hand are those that were read. */
static __always_inline int pf_is_same(struct pf_known_graph *k, struct pf_walk *w)
{
    return k && k->uid && k->uid == w->uid && k->nodes == w->nodes && k->n_nodes == w->n_nodes;
}

/* ggml_graph_compute(cgraph, cplan) */
static __always_inline int pf_graph_begin(struct pt_regs *ctx, u32 probe)
{
    u64 cgraph = PT_REGS_PARM1(ctx), cplan = PT_REGS_PARM2(ctx);
    struct pf_walk *w = pf_walk_new(probe, cgraph);
    if (!w)
        return 0;
    w->n_threads = pf_user_u32(cplan + PF_CPLAN_N_THREADS);
    w->sends_graph = 1;
    struct pf_known_graph *k = known_graphs.lookup(&cgraph);
    if (pf_is_same(k, w) && pf_wanted_known(cgraph)) {
#ifdef PF_MUL_MAT_ID
        pf_route_arm(k->ids_at);
#endif
        pf_graph_emit(w, k->gen, 0, bpf_ktime_get_ns());
        return 0;
    }
    w->array = w->nodes;
    w->count = w->n_nodes;
#ifdef PF_FILTER
    w->layer = PF_NO_LAYER;
    __builtin_memset(&w->wanted, 0, sizeof(w->wanted));
#endif
    steps.call(ctx, 0);
    return 0;
}

static __always_inline int pf_graph_end(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_GRAPH_END, probe, (s32)PT_REGS_RC(ctx));
    return 0;
}

/* ggml_backend_graph_compute_async(backend, cgraph). What the CPU is given comes by at
 * ggml_graph_compute and is read there; of any other backend nobody else tells the nodes. */
static __always_inline int pf_split_begin(struct pt_regs *ctx, u32 probe)
{
    u64 backend = PT_REGS_PARM1(ctx), cgraph = PT_REGS_PARM2(ctx);
    struct pf_walk *w = pf_walk_new(probe, cgraph);
    if (!w)
        return 0;
    struct pf_split *s = &w->split;
    u64 guid = pf_user_u64(backend + PF_BACKEND_GUID), id[2] = {};
    pf_read_user(id, sizeof(id), (void *)guid);
    __builtin_memcpy(s->guid, id, sizeof(id));
    s->backend = backend;
    s->cgraph = cgraph;
    s->uid = w->uid;
    s->get_name = pf_user_u64(backend + PF_BACKEND_GET_NAME);
    s->n_nodes = w->n_nodes;
    s->probe = probe;
    if (id[0] == PF_CPU_GUID_LOW && id[1] == PF_CPU_GUID_HIGH) {
        pf_split_emit(w, 0);
        return 0;
    }
    w->sends_split = 1;
    struct pf_known_graph *k = known_graphs.lookup(&cgraph);
    if (pf_is_same(k, w)) {
        pf_split_emit(w, PF_SPLIT_READ);
        return 0;
    }
    w->array = w->nodes;
    w->count = w->n_nodes;
    steps.call(ctx, 0);
    return 0;
}

static __always_inline int pf_split_end(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_SPLIT_END, probe, (s32)PT_REGS_RC(ctx));
    return 0;
}
