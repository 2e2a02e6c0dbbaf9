/* Which decode steps operators are recorded in, where not all are wanted (record --tokens).
 *
 * The gate is set when a call begins and holds until the next: graphs run inside of calls. It saves
 * the work of the handlers and their records, not the trap: what it stops is counted. */

#ifdef PF_GATE_FIRST
BPF_ARRAY(gate, u64, 1); /* 1: open */
BPF_HASH(gate_steps, u64, u64, 256); /* context -> decode steps since its last prompt */

static __always_inline int pf_gate_closed(void)
{
    u32 zero = 0;
    u64 *open = gate.lookup(&zero);
    return !open || !*open;
}

/* At a hit of the operators' probes. */
static __always_inline int pf_gate_stops(void)
{
    if (!pf_gate_closed())
        return 0;
    if (!pf_is_paused())
        pf_count(PF_CNT_OP_PASSED, 1);
    return 1;
}

/* A call of a context that does nothing but decode, or does something else. */
static __always_inline void pf_gate_call(u64 ctx, int decodes)
{
    u32 zero = 0;
    u64 none = 0, open = 0;
    u64 *n = gate_steps.lookup(&ctx), *state = gate.lookup(&zero);
    if (!n) {
        gate_steps.update(&ctx, &none);
        n = gate_steps.lookup(&ctx);
    }
    if (!n || !state)
        return;
    if (decodes) {
        u64 step = *n;
        *n = step + 1;
        open = step >= PF_GATE_FIRST && step < PF_GATE_END && (step - PF_GATE_FIRST) % PF_GATE_EVERY == 0;
    } else {
        *n = 0;
    }
    *state = open;
}
#else
#define pf_gate_closed() 0
#define pf_gate_stops() 0
#define pf_gate_call(ctx, decodes)
#endif
