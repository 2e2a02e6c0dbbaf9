/* Operator level, per thread: the hot path. One probe an operator where the plan allows it,
 * 8 bytes a record, one ring-buffer entry a batch. */

static __always_inline void pf_flush(struct pf_slot *s, u16 flags)
{
    u64 n = s->head.n;
    PF_KEEP_BOUND(n);
    if (n == 0 || n > PF_OPS_PER_BATCH)
        return;
    s->head.h.flags = flags;
    u64 size = sizeof(struct pf_ops) + n * sizeof(struct pf_op);
    long err = pf_emit(s, size, PF_OPS);
    s->head.n = 0;
    if (err == PF_PAUSED)
        return;
    pf_count(err ? PF_CNT_OP_LOST : PF_CNT_OP_RECORDS, n);
    s->head.seq++; /* also when lost: the gap shows which thread lost a batch, and when */
}

static __always_inline void pf_op_add(struct pf_slot *s, u64 now, u32 what)
{
    u32 n = s->head.n;
    if (n && (now - s->head.h.ts) >> 32) { /* does not fit a record's 32 bits: 4.3 s */
        pf_flush(s, 0);
        n = 0;
    }
    if (n == 0)
        pf_header(&s->head.h, PF_OPS, 0, now);
    struct pf_op *op = &s->op[n & (PF_OPS_PER_BATCH - 1)];
    op->dt = now - s->head.h.ts;
    op->what = what;
    s->head.n = n + 1;
    if (n + 1 == PF_OPS_PER_BATCH)
        pf_flush(s, 0);
}

/* The graph is not known yet here; the first operator tells it. */
static __always_inline int pf_loop_enter(struct pt_regs *ctx)
{
    if (pf_gate_closed())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    pf_flush(s, 0);
    s->head.cgraph = 0;
    pf_op_add(s, now, PF_OP_ENTER << 24);
    return 0;
}

static __always_inline int pf_loop_leave(struct pt_regs *ctx)
{
    if (pf_gate_closed())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    pf_op_add(s, now, PF_OP_LEAVE << 24);
    pf_flush(s, PF_OPS_LAST);
    return 0;
}

/* At the graph loop's own barrier call: a register holds the loop index, another the graph. */
static __always_inline int pf_loop_barrier(struct pt_regs *ctx, u32 index, u64 cgraph)
{
    if (pf_gate_closed())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    if (s->head.cgraph != cgraph) {
        if (s->head.cgraph)
            pf_flush(s, 0);
        s->head.cgraph = cgraph;
    }
    pf_op_add(s, now, PF_OP_END << 24 | (index & 0xffffff));
    return 0;
}

/* f(params, tensor): an operator begins. Tensors are 16-byte aligned and those of one graph lie
 * within 256 MiB, so 24 bits above the lowest four name one. */
static __always_inline int pf_op_begin(struct pt_regs *ctx, u64 tensor)
{
    if (pf_gate_closed())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (s)
        pf_op_add(s, now, PF_OP_BEGIN << 24 | ((tensor >> 4) & 0xffffff));
    return 0;
}

static __always_inline int pf_barrier(struct pt_regs *ctx)
{
    if (pf_gate_closed())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (s)
        pf_op_add(s, now, PF_OP_BARRIER << 24);
    return 0;
}
