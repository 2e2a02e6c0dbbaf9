/* Requests of llama-server: queued by an HTTP thread, given to a slot by the main one. Of what is
 * asked only the ids are read: the first field of struct server_task and of struct server_slot. */

static __always_inline int pf_request(u32 probe, u16 flags, u64 slot, u64 task)
{
    struct pf_mark m = {};
    s32 id = -1;
    pf_header(&m.h, PF_REQUEST, flags, bpf_ktime_get_ns());
    m.ctx = ~0ull;
    m.probe = probe;
    if (slot) {
        if (pf_read_user(&id, sizeof(id), (void *)slot))
            pf_count(PF_CNT_UNREADABLE, 1);
        else
            m.ctx = (u64)(u32)id;
    }
    m.value = -1;
    if (pf_read_user(&m.value, sizeof(m.value), (void *)task))
        pf_count(PF_CNT_UNREADABLE, 1);
    pf_emit(&m, sizeof(m), PF_REQUEST);
    return 0;
}

/* server_queue::post(server_task &&, bool) */
static __always_inline int pf_request_post(struct pt_regs *ctx, u32 probe)
{
    return pf_request(probe, 0, 0, PT_REGS_PARM2(ctx));
}

/* server_queue::post(std::vector<server_task> &&, bool): the first of them */
static __always_inline int pf_request_posts(struct pt_regs *ctx, u32 probe)
{
    u64 first = 0;
    pf_read_user(&first, sizeof(first), (void *)PT_REGS_PARM2(ctx));
    return pf_request(probe, 0, 0, first);
}

/* launch_slot_with_task(server_slot &, server_task &&) of a server context */
static __always_inline int pf_request_launch(struct pt_regs *ctx, u32 probe)
{
    return pf_request(probe, PF_REQUEST_LAUNCH, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}
