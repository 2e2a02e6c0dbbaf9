/* Memory: page faults of the target's threads, and what they made the disk read.
 *
 * Faults are software events of perf, which are opened on the target's threads only and need neither
 * tracefs nor the kernel's types: one event when a fault begins, one when it has ended as a major or
 * a minor one. PF_FAULT_ADDR is where the handler's context has the address (struct
 * bpf_perf_event_data). Reads are a raw tracepoint; PF_BIO_* and the like are offsets from BTF. */

static long (*pf_read_kernel)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;

#define PF_FAULT_NEAR (128 << 10) /* twice what the kernel maps around a fault */
#define PF_FAULT_SOON 200000      /* ns */
#define PF_FAULT_RUN 32

/* One thread's open run of minor faults. Its place follows from its tid, as in slots; when two
 * threads want the same place the run of the one is handed over for the other's. */
struct pf_fault_run {
    struct pf_fault out;
    u64 began;
    u32 began_tid, pad;
};
BPF_ARRAY(fault_runs, struct pf_fault_run, PF_MAX_THREADS);
/* Process whose reads are recorded, as the kernel counts; 0: not known yet. */
BPF_ARRAY(read_target, u64, 1);

static __always_inline struct pf_fault_run *pf_fault_place(u32 tid)
{
    u32 place = tid & (PF_MAX_THREADS - 1);
    return fault_runs.lookup(&place);
}

static __always_inline void pf_fault_flush(struct pf_fault_run *run)
{
    if (run->out.n)
        pf_emit(&run->out, sizeof(run->out), PF_FAULT);
    run->out.n = 0;
}

/* PERF_COUNT_SW_PAGE_FAULTS: raised before the fault is handled */
int pf_fault_begin(void *ctx)
{
    u64 id = bpf_get_current_pid_tgid();
    u32 zero = 0;
    struct pf_fault_run *run = pf_fault_place(id);
    if (!run)
        return 0;
    run->began = bpf_ktime_get_ns();
    run->began_tid = id;
    u64 *target = read_target.lookup(&zero);
    if (target && !*target) /* user space counts pids in a namespace of its own */
        *target = id >> 32;
    return 0;
}

static __always_inline int pf_fault_end(void *ctx, u16 flags)
{
    u64 addr = *(u64 *)(ctx + PF_FAULT_ADDR), now = bpf_ktime_get_ns();
    u32 tid = bpf_get_current_pid_tgid();
    struct pf_fault_run *run = pf_fault_place(tid);
    if (!run)
        return 0;
    u64 began = run->began_tid == tid && run->began ? run->began : now;
    struct pf_fault *f = &run->out;
    u64 step = addr - f->last;
    if (f->n && (flags || f->h.tid != tid || step > PF_FAULT_NEAR || f->n >= PF_FAULT_RUN ||
                 began - (f->h.ts + f->dt) > PF_FAULT_SOON))
        pf_fault_flush(run);
    if (!f->n) {
        pf_header(&f->h, PF_FAULT, flags, began);
        f->addr = addr;
        f->ns = 0;
    }
    f->last = addr;
    f->n++;
    f->dt = now - f->h.ts;
    f->ns += now - began;
    run->began = 0;
    if (flags)
        pf_fault_flush(run);
    return 0;
}

int pf_fault_major(void *ctx)
{
    return pf_fault_end(ctx, PF_FAULT_MAJOR);
}

int pf_fault_minor(void *ctx)
{
    return pf_fault_end(ctx, 0);
}

#ifdef PF_BIO_ARG
struct pf_bio_args {
    u64 args[4];
};

#define PF_BIO_CLONED 2 /* bi_flags: a part of one that was seen before, or remapped */

static __always_inline u64 pf_kernel_u64(u64 at)
{
    u64 v = 0;
    pf_read_kernel(&v, sizeof(v), (void *)at);
    return v;
}

static __always_inline u32 pf_kernel_u32(u64 at)
{
    u32 v = 0;
    pf_read_kernel(&v, sizeof(v), (void *)at);
    return v;
}

/* block_bio_queue: on the thread that faulted, read, or started a read-ahead */
int pf_bio_queue(struct pf_bio_args *ctx)
{
    u32 zero = 0;
    u64 *target = read_target.lookup(&zero);
    u64 id = bpf_get_current_pid_tgid();
    if (!target || !*target || id >> 32 != *target)
        return 0;
    u64 bio = ctx->args[PF_BIO_ARG];
    u32 op = pf_kernel_u32(bio + PF_BIO_OPF) & 0xff;
    if (op > 1 || (pf_kernel_u32(bio + PF_BIO_FLAGS) & PF_BIO_CLONED))
        return 0;
    struct pf_read r = {};
    pf_header(&r.h, PF_READ, op ? PF_READ_WRITE : 0, bpf_ktime_get_ns());
    r.bytes = pf_kernel_u32(bio + PF_BIO_SIZE);
    u64 vec = pf_kernel_u64(bio + PF_BIO_VEC);
    u64 page = pf_kernel_u64(vec + PF_VEC_PAGE);
    u64 mapping = pf_kernel_u64(page + PF_PAGE_MAPPING);
    if (mapping && !(mapping & 3)) { /* else anonymous memory, of direct I/O */
        u64 inode = pf_kernel_u64(mapping + PF_MAPPING_HOST);
        r.ino = pf_kernel_u64(inode + PF_INODE_INO);
        r.dev = pf_kernel_u32(pf_kernel_u64(inode + PF_INODE_SB) + PF_SB_DEV);
        r.offset = pf_kernel_u64(page + PF_PAGE_INDEX) * PF_KERNEL_PAGE +
                   pf_kernel_u32(vec + PF_VEC_OFFSET);
    }
    pf_emit(&r, sizeof(r), PF_READ);
    return 0;
}
#endif
