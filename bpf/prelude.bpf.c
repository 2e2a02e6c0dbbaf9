/* Maps and the few functions every probe uses: counters, emit, per-thread slots. */

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Stops the compiler from checking one copy of a length and using another, which the verifier
 * cannot follow. Check the bound after it. */
#define PF_KEEP_BOUND(v) asm volatile("" : "+r"(v))

/* The helper bpf_probe_read_user under a name of ours: at every call of the well-known name BCC reads
 * all of /proc/kallsyms to see whether the kernel has it, which took more than half of the time of a
 * compile. Every kernel with a ring buffer (5.8) has it (5.5). */
static long (*pf_read_user)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;

BPF_RINGBUF_OUTPUT(ring, PF_RING_PAGES);
BPF_PERCPU_ARRAY(counters, u64, PF_CNT_COUNT);

/* Where operators are told by begins and barriers, their records have to be wide. */
#ifdef PF_OPS_WIDE
typedef struct pf_op pf_op_record;
#else
typedef u32 pf_op_record;
#endif

/* One thread's open batch. Keyed by tid and not by CPU: a uprobe program can be preempted, and
 * then another thread of the target would write into the same per-CPU buffer. */
#ifdef PF_COUNTERS
/* What counters read at the records of the batch, and the thread's counts up to its last switch. */
struct pf_tally {
    struct pf_counts head;
    u64 value[PF_OPS_PER_BATCH * PF_COUNTERS];
    struct bpf_perf_event_value total[PF_COUNTERS];
};
#endif
struct pf_slot {
    u32 index;           /* loop index of the last record; here, in the cache line of the head */
    u32 ids_at;          /* where in the graph expert ids are to be read next, or PF_NEVER */
    struct pf_ops head;  /* from here on as it is sent; capture/leftover.py knows the place */
    pf_op_record op[PF_OPS_PER_BATCH];
#ifdef PF_COUNTERS
    struct pf_tally tally;
#endif
#ifdef PF_COUNT_PASSED /* filter.bpf.c */
    u32 passed;          /* hits of this graph that left no record */
    u32 caller;          /* the thread has begun graphs */
#endif
#ifdef PF_FILTER
    u64 before_ts;       /* of the last one */
    u32 before;          /* its loop index */
    u32 is_before;       /* it is not recorded yet */
    u64 filtered;        /* wanted[] is that of the graph at hand */
    u64 wanted[PF_FILTER_WORDS];
#endif
};
/* An array and not a hash: its lookup is inlined and takes some 50 ns less. A thread's
 * place follows from its tid; claims decides who has a place when two threads want the same. */
BPF_ARRAY(slots, struct pf_slot, PF_MAX_THREADS);
BPF_HASH(claims, u32, u32, PF_MAX_THREADS); /* place -> tid */
#define PF_NEVER 0xffffffff
#define PF_PLACES 8 /* tried for a thread, one after the other */

static __always_inline void pf_count(u32 slot, u64 n)
{
    u64 *c = counters.lookup(&slot);
    if (c)
        lock_xadd(c, n); /* atomic: the program can be preempted between load and store */
}

/* Not zero: nothing is recorded. A process that runs already is recorded from the moment that all
 * probes are in place until the moment before the first is removed. */
BPF_ARRAY(paused, u64, 1);
#define PF_PAUSED 1

static __always_inline int pf_is_paused(void)
{
    u32 zero = 0;
    u64 *p = paused.lookup(&zero);
    return p && *p;
}

/* Nobody is woken: the recorder drains in bulk on its own clock. What is not recorded because of a
 * pause is an error to the caller (a definition must be sent later), but no loss. */
static __always_inline long pf_emit(void *rec, u64 size, u32 kind)
{
    if (pf_is_paused())
        return PF_PAUSED;
    long err = ring.ringbuf_output(rec, size, BPF_RB_NO_WAKEUP);
    pf_count(err ? PF_CNT_LOST + kind : PF_CNT_SENT + kind, 1);
    return err;
}

static __always_inline void pf_header(struct pf_hdr *h, u16 kind, u16 flags, u64 ts)
{
    h->kind = kind;
    h->flags = flags;
    h->tid = (u32)bpf_get_current_pid_tgid();
    h->ts = ts;
}

#ifdef PF_TASK_TGID /* the scheduler's events are recorded: of this process */
BPF_ARRAY(sched_target, u64, 1);
#endif

/* The slot at the n-th place of a thread, whoever has it. */
static __always_inline struct pf_slot *pf_slot_at(u32 tid, u32 n)
{
    u32 place = (tid + n) & (PF_MAX_THREADS - 1);
    return slots.lookup(&place);
}

/* Gives a thread a slot and records the thread, the first time it is seen. */
static __always_inline struct pf_slot *pf_slot_new(u32 tid)
{
    struct pf_slot *s = 0;
    if (pf_is_paused()) /* a thread is named when its slot is made */
        return 0;
    for (u32 n = 0; n < PF_PLACES; n++) {
        u32 place = (tid + n) & (PF_MAX_THREADS - 1);
        if (!claims.insert(&place, &tid)) { /* fails when the place is taken */
            s = slots.lookup(&place);
            break;
        }
    }
    if (!s)
        return 0;
    s->ids_at = PF_NEVER;
    s->head.h.tid = tid; /* from now on it is found */
#ifdef PF_TASK_TGID
    u32 zero = 0;
    u64 *target = sched_target.lookup(&zero);
    if (target && !*target) /* user space counts pids in a namespace of its own */
        *target = bpf_get_current_pid_tgid() >> 32;
#endif
    struct pf_thread t = {};
    pf_header(&t.h, PF_THREAD, 0, bpf_ktime_get_ns());
    bpf_get_current_comm(t.comm, sizeof(t.comm));
    pf_emit(&t, sizeof(t), PF_THREAD);
    return s;
}

/* The slot of a thread that has one. */
static __always_inline struct pf_slot *pf_slot_of(u32 tid)
{
    for (u32 n = 0; n < PF_PLACES; n++) {
        struct pf_slot *s = pf_slot_at(tid, n);
        if (s && s->head.h.tid == tid)
            return s;
    }
    return 0;
}

static __always_inline struct pf_slot *pf_slot_get(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_slot *s = pf_slot_of(tid);
    if (s)
        return s;
    s = pf_slot_new(tid);
    if (!s && !pf_is_paused())
        pf_count(PF_CNT_NO_SLOT, 1);
    return s;
}

/* How many begins and ends a thread has had, by kind of span. */
struct pf_numbers {
    u16 n[PF_NUMBERED];
};
BPF_HASH(numbers, u32, struct pf_numbers, PF_MAX_THREADS);

/* The number of a begin or end, in its place among the flags. Also of one that will be lost. */
static __always_inline u16 pf_number(u16 kind)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    u32 of = kind <= PF_GRAPH_END ? (kind - PF_CALL_BEGIN) / 2 : PF_NUMBERED - 1;
    struct pf_numbers *all = numbers.lookup(&tid), none = {};
    if (!all) {
        numbers.update(&tid, &none);
        all = numbers.lookup(&tid);
        if (!all)
            return 0; /* more threads than the table has room for */
    }
    u16 n = all->n[of] % PF_NUMBERS + 1;
    all->n[of] = n;
    return n << PF_NUMBER_SHIFT;
}

static __always_inline void pf_end(u16 kind, u32 probe, s32 value)
{
    struct pf_end e = {};
    pf_header(&e.h, kind, pf_number(kind), bpf_ktime_get_ns());
    e.probe = probe;
    e.value = value;
    pf_emit(&e, sizeof(e), kind);
}

static __always_inline u64 pf_user_u64(u64 at)
{
    u64 v = 0;
    pf_read_user(&v, sizeof(v), (void *)at);
    return v;
}

static __always_inline u32 pf_user_u32(u64 at)
{
    u32 v = 0;
    pf_read_user(&v, sizeof(v), (void *)at);
    return v;
}
