/* Backends: data that is moved between them, waits for them, and what they do on the host.
 *
 * All of it happens a few times a graph. A backend is named later: by its GUID, or by the address of
 * one of its functions; here both are only copied.
 */

static __always_inline u64 pf_tensor_owner(u64 tensor)
{
    u64 view = pf_user_u64(tensor + PF_TENSOR_VIEW_SRC);
    u64 buffer = pf_user_u64((view ? view : tensor) + PF_TENSOR_BUFFER);
    return buffer ? pf_user_u64(buffer + PF_BUFFER_FUNCTION) : 0;
}

BPF_HASH(copies_begun, u32, struct pf_copy, PF_MAX_MAIN_THREADS);
BPF_ARRAY(zero_copy, struct pf_copy, 1);

/* `tensor` is the one whose struct is kept; `other` is a tensor with PF_COPY_TENSOR, else host memory. */
static __always_inline int pf_copy_begin(struct pt_regs *ctx, u32 probe, u32 what, u16 flags,
                                         u64 backend, u64 tensor, u64 other, u64 bytes)
{
    u32 tid = (u32)bpf_get_current_pid_tgid(), zero = 0;
    struct pf_copy *c = copies_begun.lookup(&tid); /* too large for a program's stack */
    if (!c) {
        struct pf_copy *empty = zero_copy.lookup(&zero);
        if (!empty)
            return 0;
        copies_begun.update(&tid, empty);
        c = copies_begun.lookup(&tid);
        if (!c) {
            pf_count(PF_CNT_NO_SLOT, 1);
            return 0;
        }
        pf_slot_get(); /* names the thread */
    }
    if (pf_read_user(c->raw, sizeof(c->raw), (void *)tensor)) {
        pf_count(PF_CNT_UNREADABLE, 1);
        return 0;
    }
    u64 mine = pf_tensor_owner(tensor), its = what == PF_COPY_TENSOR ? pf_tensor_owner(other) : 0;
    int writes = what == PF_COPY_SET || what == PF_COPY_FILL;
    c->src = writes ? other : tensor;
    c->dst = writes ? tensor : other;
    c->src_owner = writes ? its : mine;
    c->dst_owner = writes ? mine : its;
    c->backend = backend;
    c->bytes = bytes;
    c->what = what;
    c->probe = probe;
    pf_header(&c->h, PF_COPY_BEGIN, flags | pf_number(PF_COPY_BEGIN), bpf_ktime_get_ns());
    pf_emit(c, sizeof(*c), PF_COPY_BEGIN);
    return 0;
}

/* ggml_backend_synchronize(backend) */
static __always_inline int pf_sync_begin(struct pt_regs *ctx, u32 probe)
{
    struct pf_sync s = {};
    s.backend = PT_REGS_PARM1(ctx);
    s.get_name = pf_user_u64(s.backend + PF_BACKEND_GET_NAME);
    u64 guid = pf_user_u64(s.backend + PF_BACKEND_GUID);
    pf_read_user(s.guid, sizeof(s.guid), (void *)guid);
    s.probe = probe;
    pf_slot_get();
    pf_header(&s.h, PF_SYNC_BEGIN, pf_number(PF_SYNC_BEGIN), bpf_ktime_get_ns());
    pf_emit(&s, sizeof(s), PF_SYNC_BEGIN);
#ifdef PF_WAITS
    pf_wait_begun();
#endif
    return 0;
}

/* ggml_backend_event_synchronize(event): its first field is the device */
static __always_inline int pf_event_begin(struct pt_regs *ctx, u32 probe)
{
    struct pf_sync s = {};
    s.backend = pf_user_u64(PT_REGS_PARM1(ctx));
    s.get_name = pf_user_u64(s.backend); /* so is the device's name function */
    s.probe = probe;
    pf_slot_get();
    pf_header(&s.h, PF_SYNC_BEGIN, PF_SYNC_EVENT | pf_number(PF_SYNC_BEGIN), bpf_ktime_get_ns());
    pf_emit(&s, sizeof(s), PF_SYNC_BEGIN);
    return 0;
}

static __always_inline int pf_work_begin(struct pt_regs *ctx, u32 probe, u64 a, u64 b, u64 c)
{
    struct pf_work w = {};
    w.value[0] = a;
    w.value[1] = b;
    w.value[2] = c;
    w.probe = probe;
    pf_slot_get();
    pf_header(&w.h, PF_WORK_BEGIN, pf_number(PF_WORK_BEGIN), bpf_ktime_get_ns());
    pf_emit(&w, sizeof(w), PF_WORK_BEGIN);
    return 0;
}

/* Messages begin with their command, sent alone as one byte. Nothing else is looked into. */
static __always_inline u64 pf_lone_byte(u64 at, u64 bytes)
{
    unsigned char byte = 0;
    if (bytes == 1)
        pf_read_user(&byte, 1, (void *)at);
    return byte;
}

static __always_inline int pf_backend_end(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_BACKEND_END, probe, (s32)PT_REGS_RC(ctx));
    return 0;
}

static __always_inline int pf_sync_end(struct pt_regs *ctx, u32 probe)
{
#ifdef PF_WAITS
    pf_wait_ended();
#endif
    return pf_backend_end(ctx, probe);
}
