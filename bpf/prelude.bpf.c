/* Maps and the few functions every probe uses: counters, emit, per-thread slots. */

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Stops the compiler from checking one copy of a length and using another, which the verifier
 * cannot follow. Check the bound after it. */
#define PF_KEEP_BOUND(v) asm volatile("" : "+r"(v))

BPF_RINGBUF_OUTPUT(ring, PF_RING_PAGES);
BPF_PERCPU_ARRAY(counters, u64, PF_CNT_COUNT);

/* One thread's open batch. Keyed by tid and not by CPU: a uprobe program can be preempted, and
 * then another thread of the target would write into the same per-CPU buffer. */
struct pf_slot {
    struct pf_ops head;
    struct pf_op op[PF_OPS_PER_BATCH];
};
BPF_HASH(slots, u32, struct pf_slot, PF_MAX_THREADS);
BPF_ARRAY(zero_slot, struct pf_slot, 1); /* too large for the BPF stack, so a map holds the zeros */

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

/* Records a thread the first time it is seen. */
static __always_inline struct pf_slot *pf_slot_new(u32 tid)
{
    u32 zero = 0;
    struct pf_slot *empty = zero_slot.lookup(&zero);
    if (!empty || pf_is_paused()) /* a thread is named when its slot is made */
        return 0;
    slots.update(&tid, empty);
    struct pf_thread t = {};
    pf_header(&t.h, PF_THREAD, 0, bpf_ktime_get_ns());
    bpf_get_current_comm(t.comm, sizeof(t.comm));
    pf_emit(&t, sizeof(t), PF_THREAD);
    return slots.lookup(&tid);
}

static __always_inline struct pf_slot *pf_slot_get(void)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_slot *s = slots.lookup(&tid);
    if (!s)
        s = pf_slot_new(tid);
    if (!s && !pf_is_paused())
        pf_count(PF_CNT_NO_SLOT, 1);
    return s;
}

static __always_inline void pf_end(u16 kind, u32 probe, s32 value)
{
    struct pf_end e = {};
    pf_header(&e.h, kind, 0, bpf_ktime_get_ns());
    e.probe = probe;
    e.value = value;
    pf_emit(&e, sizeof(e), kind);
}

static __always_inline u64 pf_user_u64(u64 at)
{
    u64 v = 0;
    bpf_probe_read_user(&v, sizeof(v), (void *)at);
    return v;
}

static __always_inline u32 pf_user_u32(u64 at)
{
    u32 v = 0;
    bpf_probe_read_user(&v, sizeof(v), (void *)at);
    return v;
}
