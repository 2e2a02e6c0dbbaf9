/* Hardware and software counters of each thread, read at the records of its operators.
 *
 * The events count whole CPUs, whoever runs: a counter of one task must be opened for each thread by
 * its id, and threads come too fast for that. What a thread counted is summed up at context switches
 * instead: what a CPU has counted since its last switch was counted by the task that runs there now.
 * So a thread's counts are those up to its last switch, plus the CPU's now, less the CPU's at its last
 * switch; whoever ran before or elsewhere never enters, and nothing need be known of the next task. */

BPF_PERF_ARRAY(events, PF_CPUS * PF_COUNTERS); /* CPU by CPU */

struct pf_last {
    u64 switches;
    struct bpf_perf_event_value at[PF_COUNTERS];
};
BPF_PERCPU_ARRAY(last_switch, struct pf_last, 1);

/* This CPU's counters; one that cannot be read is PF_NOT_COUNTED. */
static __always_inline void pf_counters_read(struct bpf_perf_event_value *to)
{
    u32 cpu = bpf_get_smp_processor_id();
#pragma unroll
    for (u32 k = 0; k < PF_COUNTERS; k++)
        if (events.perf_counter_value(cpu * PF_COUNTERS + k, &to[k], sizeof(to[k])))
            to[k].counter = PF_NOT_COUNTED;
}

/* In the task that goes, before it goes. */
int pf_on_switch(void *ctx)
{
    u32 zero = 0, tid = (u32)bpf_get_current_pid_tgid();
    struct pf_last *last = last_switch.lookup(&zero);
    if (!last)
        return 0;
    struct bpf_perf_event_value now[PF_COUNTERS];
    pf_counters_read(now);
    struct pf_slot *s = tid ? pf_slot_of(tid) : 0; /* slots that nobody has are of thread 0 */
#pragma unroll
    for (u32 k = 0; k < PF_COUNTERS; k++) {
        if (now[k].counter == PF_NOT_COUNTED)
            continue;
        if (s) {
            s->tally.total[k].counter += now[k].counter - last->at[k].counter;
            s->tally.total[k].enabled += now[k].enabled - last->at[k].enabled;
            s->tally.total[k].running += now[k].running - last->at[k].running;
        }
        last->at[k] = now[k];
    }
    last->switches++;
    return 0;
}

static __always_inline void pf_tally_add(struct pf_slot *s, u32 n)
{
    u32 zero = 0;
    struct pf_tally *t = &s->tally;
    volatile struct pf_last *last = last_switch.lookup(&zero);
    /* Else the compiler makes an "or" of adding an odd number to this even one, and the verifier
     * loses the bound. */
    u64 first = (n & (PF_OPS_PER_BATCH - 1)) * PF_COUNTERS;
    PF_KEEP_BOUND(first);
    if (!last || first > (PF_OPS_PER_BATCH - 1) * PF_COUNTERS)
        return;
    /* A uprobe program stays on its CPU, but can be preempted there: then once more. */
#pragma unroll
    for (int again = 0; again < 3; again++) {
        struct bpf_perf_event_value now[PF_COUNTERS];
        u64 switches = last->switches;
        pf_counters_read(now);
#pragma unroll
        for (u32 k = 0; k < PF_COUNTERS; k++) {
            u64 *value = &t->value[first + k];
            if (now[k].counter == PF_NOT_COUNTED) {
                *value = PF_NOT_COUNTED;
                pf_count(PF_CNT_NOT_COUNTED, 1);
                continue;
            }
            *value = t->total[k].counter + now[k].counter - last->at[k].counter;
            t->head.enabled[k] = t->total[k].enabled + now[k].enabled - last->at[k].enabled;
            t->head.running[k] = t->total[k].running + now[k].running - last->at[k].running;
        }
        if (last->switches == switches)
            break;
    }
}

static __always_inline void pf_tally_flush(struct pf_slot *s, u64 n)
{
    struct pf_tally *t = &s->tally;
    t->head.h = s->head.h;
    t->head.h.kind = PF_COUNTS;
    t->head.h.flags = 0;
    t->head.seq = s->head.seq;
    t->head.n = n;
    t->head.n_counters = PF_COUNTERS;
    pf_emit(t, sizeof(struct pf_counts) + n * PF_COUNTERS * sizeof(u64), PF_COUNTS);
}
