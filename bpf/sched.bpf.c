/* Scheduler: when a thread of the target left its CPU, got one, or woke up. Raw tracepoints, which
 * see the whole machine; what is not the target's is thrown away first.
 *
 * Layouts come from the running kernel's BTF as definitions: PF_TASK_* are offsets in struct
 * task_struct, PF_SCHED_*_ARG places among the tracepoint's arguments. */

struct pf_raw_args {
    u64 args[8];
};

static __always_inline u32 pf_task_u32(u64 task, u32 at)
{
    u32 v = 0;
    bpf_probe_read_kernel(&v, sizeof(v), (void *)(task + at));
    return v;
}

/* 0: not known yet. User space knows it unless its pid namespace is not the first one. */
static __always_inline u32 pf_sched_target(void)
{
    u32 zero = 0;
    u64 *target = sched_target.lookup(&zero);
    return target ? *target : 0;
}

#define PF_TASK_IS_KERNEL 0x00200000 /* PF_KTHREAD of include/linux/sched.h */

static __always_inline void pf_sched_emit(u32 tid, u16 flags, u32 state, u64 other, u64 now)
{
    struct pf_sched e = {};
    e.h.kind = PF_SCHED;
    e.h.flags = flags;
#ifdef PF_TASK_FLAGS
    if (pf_task_u32(other, PF_TASK_FLAGS) & PF_TASK_IS_KERNEL)
        e.h.flags |= PF_SCHED_KERNEL;
#endif
    e.h.tid = tid;
    e.h.ts = now;
    e.cpu = bpf_get_smp_processor_id();
    e.state = state;
    e.other = pf_task_u32(other, PF_TASK_PID);
    e.other_tgid = pf_task_u32(other, PF_TASK_TGID);
    e.prio = pf_task_u32(other, PF_TASK_PRIO);
    bpf_probe_read_kernel(e.comm, sizeof(e.comm), (void *)(other + PF_TASK_COMM));
    pf_emit(&e, sizeof(e), PF_SCHED);
}

/* One event of 16 is timed and stands for all, by bits of the clock that are chance. */
static __always_inline void pf_sched_timed(u64 since)
{
    if (!(since >> 6 & 15) && !pf_is_paused())
        pf_count(PF_CNT_SCHED_NS, 16 * (bpf_ktime_get_ns() - since));
}

int pf_sched_switch(struct pf_raw_args *ctx)
{
    u32 target = pf_sched_target();
    u64 id = bpf_get_current_pid_tgid(); /* still the one that leaves */
    u64 next = ctx->args[PF_SCHED_NEXT_ARG];
    int leaves = id >> 32 == target;
    int comes = pf_task_u32(next, PF_TASK_TGID) == target;
    if (!target || !(leaves || comes))
        return 0;
    u64 now = bpf_ktime_get_ns();
    if (leaves) {
#ifdef PF_SCHED_STATE_ARG /* Linux 5.18 and later hand it over */
        u32 state = ctx->args[PF_SCHED_STATE_ARG];
#else
        u32 state = pf_task_u32(ctx->args[PF_SCHED_PREV_ARG], PF_TASK_STATE);
#endif
        u16 forced = (u8)ctx->args[0] ? PF_SCHED_PREEMPT : 0;
        pf_sched_emit(id, PF_SCHED_OUT | forced, state, next, now);
    }
    if (comes)
        pf_sched_emit(pf_task_u32(next, PF_TASK_PID), PF_SCHED_IN, 0, next, now);
    pf_sched_timed(now);
    return 0;
}

static __always_inline int pf_sched_woken(u64 task, u16 flags)
{
    u32 target = pf_sched_target();
    if (!target || pf_task_u32(task, PF_TASK_TGID) != target)
        return 0;
    u64 now = bpf_ktime_get_ns();
    pf_sched_emit(pf_task_u32(task, PF_TASK_PID), flags, 0, bpf_get_current_task(), now);
    pf_sched_timed(now);
    return 0;
}

int pf_sched_wakeup(struct pf_raw_args *ctx)
{
    return pf_sched_woken(ctx->args[0], PF_SCHED_WAKE);
}

int pf_sched_wakeup_new(struct pf_raw_args *ctx)
{
    return pf_sched_woken(ctx->args[0], PF_SCHED_WAKE | PF_SCHED_NEW);
}
