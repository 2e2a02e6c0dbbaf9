/* Operator level, per thread: the hot path. One probe an operator where the plan allows it,
 * 4 bytes a record (8 with PF_OPS_WIDE), one ring-buffer entry a batch. */

#ifdef PF_OPS_WIDE
#define PF_OPS_FORM 0
#define PF_FITS(dt, code) (!((dt) >> 32)) /* 4.3 s */
#else
#define PF_OPS_FORM PF_OPS_COMPACT
#define PF_FITS(dt, code) ((code) && !((dt) >> PF_OPS_DT_BITS)) /* 0.13 s */
#endif

static __always_inline void pf_flush(struct pf_slot *s, u16 flags)
{
    u64 n = s->head.n;
    if (n == 0)
        return;
    PF_KEEP_BOUND(n); /* else both become one comparison of n - 513, of which old verifiers learn nothing */
    if (n > PF_OPS_PER_BATCH)
        return;
    s->head.h.flags = PF_OPS_FORM | flags;
#ifdef PF_COUNTERS
    pf_tally_flush(s, n);
#endif
    u64 size = sizeof(struct pf_ops) + n * sizeof(pf_op_record);
    long err = pf_emit(&s->head, size, PF_OPS);
    s->head.n = 0;
    if (err == PF_PAUSED)
        return;
    pf_count(err ? PF_CNT_OP_LOST : PF_CNT_OP_RECORDS, n);
    s->head.seq++; /* also when lost: the gap shows which thread lost a batch, and when */
}

/* `code` is the compact record's, 0 where it has none: then the record begins a batch. */
static __always_inline void pf_op_add(struct pf_slot *s, u64 now, u32 what, u32 code)
{
    u32 n = s->head.n;
    u64 dt = now - s->head.h.ts;
    if (n && !PF_FITS(dt, code)) {
        pf_flush(s, 0);
        n = 0;
    }
    if (n == 0) {
        pf_header(&s->head.h, PF_OPS, PF_OPS_FORM, now);
        dt = 0;
    }
    pf_op_record *op = &s->op[n & (PF_OPS_PER_BATCH - 1)];
#ifdef PF_OPS_WIDE
    op->dt = dt;
    op->what = what;
#else
    *op = n ? code << PF_OPS_DT_BITS | (u32)dt : what;
#endif
#ifdef PF_COUNTERS
    pf_tally_add(s, n);
#endif
    s->head.n = n + 1;
    if (n + 1 == PF_OPS_PER_BATCH)
        pf_flush(s, 0);
}

/* The graph is not known yet here; the first operator tells it. */
static __always_inline int pf_loop_enter(struct pt_regs *ctx)
{
    if (pf_gate_stops())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    if (pf_is_aside(s))
        return 0;
    pf_flush(s, 0);
    s->head.cgraph = 0;
    s->index = -1;
#ifdef PF_FILTER
    s->is_before = 0;
#endif
    pf_op_add(s, now, PF_OP_ENTER << 24, 0);
    return 0;
}

static __always_inline void pf_op_end(struct pf_slot *s, u64 now, u32 index)
{
    u32 step = index - s->index;
    s->index = index;
    pf_op_add(s, now, PF_OP_END << 24 | index, step <= PF_OPS_MAX_STEP ? step : 0);
}

/* The last operator that left no record, where what comes now begins when its barrier opens. */
static __always_inline void pf_op_before(struct pf_slot *s)
{
#ifdef PF_FILTER
    if (!s->is_before)
        return;
    s->is_before = 0;
    s->passed--;
    pf_op_end(s, s->before_ts, s->before);
#endif
}

static __always_inline void pf_count_passed(struct pf_slot *s)
{
#ifdef PF_COUNT_PASSED
    if (s->passed)
        pf_count(PF_CNT_OP_PASSED, s->passed);
    s->passed = 0;
#endif
}

static __always_inline int pf_loop_leave(struct pt_regs *ctx)
{
    if (pf_gate_stops())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    if (!pf_is_aside(s)) {
        pf_op_before(s);
        pf_op_add(s, now, PF_OP_LEAVE << 24, PF_OPS_CODE_LEAVE);
        pf_flush(s, PF_OPS_LAST);
    }
    pf_count_passed(s);
    return 0;
}

/* At the graph loop's own barrier call: a register holds the loop index, another the graph. */
static __always_inline int pf_loop_barrier(struct pt_regs *ctx, u32 index, u64 cgraph)
{
    if (pf_gate_stops())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s || pf_is_aside(s))
        return 0;
    if (s->head.cgraph != cgraph) {
        if (s->head.cgraph)
            pf_flush(s, 0);
        s->head.cgraph = cgraph;
#ifdef PF_FILTER
        pf_filter_load(s, cgraph);
#endif
    }
    index &= 0xffffff;
#ifdef PF_FILTER
    if (!pf_is_wanted(s, index - PF_LOOP_BIAS)) {
        s->before_ts = now;
        s->before = index;
        s->is_before = 1;
        s->passed++;
        return 0;
    }
    pf_op_before(s);
#endif
    pf_op_end(s, now, index);
#ifdef PF_MUL_MAT_ID
    if (index >= s->ids_at)
        expert_steps.call(ctx, 0);
#endif
    return 0;
}

#ifdef PF_OPS_WIDE

/* f(params, tensor): an operator begins. Tensors are 16-byte aligned and those of one graph lie
 * within 256 MiB, so 24 bits above the lowest four name one. */
static __always_inline int pf_op_begin(struct pt_regs *ctx, u64 tensor)
{
    if (pf_gate_stops())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (!s)
        return 0;
    u32 which = (tensor >> 4) & 0xffffff;
    pf_op_add(s, now, PF_OP_BEGIN << 24 | which, 0);
#ifdef PF_MUL_MAT_ID
    if (which == s->ids_at)
        expert_steps.call(ctx, 0);
#endif
    return 0;
}

static __always_inline int pf_barrier(struct pt_regs *ctx)
{
    if (pf_gate_stops())
        return 0;
    u64 now = bpf_ktime_get_ns();
    struct pf_slot *s = pf_slot_get();
    if (s)
        pf_op_add(s, now, PF_OP_BARRIER << 24, 0);
    return 0;
}
#endif
