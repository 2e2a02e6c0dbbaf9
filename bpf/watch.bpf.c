/* Holds a target that loads its engine later: it stops itself at the loader's hook and at the
 * engine's first use, the recorder looks, attaches, and lets it go on. */

/* 0: hits of the loader's hook, 1: of a tripwire, 2: not zero when nothing is to be stopped any
 * more; probes are removed in the background, and nobody would wake the target then. */
BPF_ARRAY(hits, u64, 3);

static inline int pf_stop(u32 which)
{
    u32 over = 2;
    u64 *n = hits.lookup(&which), *done = hits.lookup(&over);
    if (!n || !done || *done)
        return 0;
    lock_xadd(n, 1);
    bpf_send_signal(PF_SIGSTOP);
    return 0;
}

int pf_on_load(struct pt_regs *ctx)
{
    return pf_stop(0);
}

int pf_on_trip(struct pt_regs *ctx)
{
    return pf_stop(1);
}
