/* Token level: llama_decode, llama_encode, llama_process, samplers, warm-up. */

static __always_inline void pf_call_init(struct pf_call *c, u32 probe, u16 flags, u64 ctx)
{
    pf_header(&c->h, PF_CALL_BEGIN, flags | pf_number(PF_CALL_BEGIN), bpf_ktime_get_ns());
    c->ctx = ctx;
    c->probe = probe;
    c->n_tokens = c->pos_first = c->pos_last = c->n_seqs = c->seq = -1;
}

/* The head of struct llama_batch, the same since 2023. */
struct pf_llama_batch {
    s32 n_tokens;
    s32 pad;
    u64 token;
    u64 embd;
    u64 pos;
    u64 n_seq_id;
    u64 seq_id;
    u64 logits;
};

/* f(ctx, struct llama_batch by value): a struct this large lies on the stack above the return
 * address on x86-64; on arm64 the caller passes a pointer to it. */
static __always_inline int pf_batch_begin(struct pt_regs *ctx, u32 probe, u16 flags, u64 pushed)
{
    struct pf_llama_batch b = {};
    struct pf_tokens tokens = {};
    struct pf_call c = {};
#ifdef __aarch64__ /* and not __TARGET_ARCH_arm64: BCC says that where ARCH is set only */
    u64 at = PT_REGS_PARM2(ctx);
#else
    u64 at = ctx->sp + pushed + 8;
#endif
    pf_call_init(&c, probe, flags, PT_REGS_PARM1(ctx));
    if (pf_read_user(&b, sizeof(b), (void *)at)) {
        pf_count(PF_CNT_UNREADABLE, 1);
    } else {
        c.n_tokens = b.n_tokens;
        if (b.pos && b.n_tokens > 0) {
            pf_read_user(&c.pos_first, 4, (void *)b.pos);
            pf_read_user(&c.pos_last, 4, (void *)(b.pos + 4 * (u64)(b.n_tokens - 1)));
        }
        tokens.n_seq_id = b.n_seq_id;
        tokens.seq_id = b.seq_id;
        tokens.pos = b.pos;
        tokens.logits = b.logits;
        if (!b.seq_id || !b.n_seq_id) { /* llama_batch_get_one: all are of sequence 0 */
            c.n_seqs = 1;
            c.seq = 0;
        }
    }
    pf_call_emit(ctx, &c, &tokens);
    return 0;
}

#ifdef PF_EXT_TOKENS /* the engine's struct llama_batch_ext is known */
/* llama_process(ctx, type, struct llama_batch_ext *): the tokens are a std::vector. A layout that
 * does not hold gives -1 tokens, never a wrong number. */
static __always_inline int pf_process_begin(struct pt_regs *ctx, u32 probe)
{
    u64 batch = PT_REGS_PARM3(ctx), range[2] = {}, max = 0;
    u16 flags = (u32)PT_REGS_PARM2(ctx) == PF_PROCESS_ENCODE ? PF_CALL_ENCODE : 0;
    struct pf_tokens tokens = {};
    struct pf_call c = {};
    pf_call_init(&c, probe, flags, PT_REGS_PARM1(ctx));
    if (!pf_read_user(range, sizeof(range), (void *)(batch + PF_EXT_TOKENS)) &&
        !pf_read_user(&max, 8, (void *)(batch + PF_EXT_MAX))) {
        u64 bytes = range[1] - range[0], count = bytes / PF_EXT_TOKEN_SIZE;
        if (range[1] > range[0] && count * PF_EXT_TOKEN_SIZE == bytes && count <= max && count < (1u << 30)) {
            c.n_tokens = count;
            pf_read_user(&c.pos_first, 4, (void *)(range[0] + PF_EXT_POS));
            pf_read_user(&c.pos_last, 4, (void *)(range[1] - PF_EXT_TOKEN_SIZE + PF_EXT_POS));
            tokens.ext = range[0];
        }
    }
    if (c.n_tokens < 0)
        pf_count(PF_CNT_UNREADABLE, 1);
    pf_call_emit(ctx, &c, &tokens);
    return 0;
}
#else
static __always_inline int pf_process_begin(struct pt_regs *ctx, u32 probe)
{
    u16 flags = (u32)PT_REGS_PARM2(ctx) == PF_PROCESS_ENCODE ? PF_CALL_ENCODE : 0;
    struct pf_call c = {};
    pf_call_init(&c, probe, flags, PT_REGS_PARM1(ctx));
    pf_call_opened(&c, 0, 0);
    pf_emit(&c, sizeof(c), PF_CALL_BEGIN);
    return 0;
}
#endif

static __always_inline int pf_call_end(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_CALL_END, probe, (s32)PT_REGS_RC(ctx));
    pf_call_closed(probe);
    return 0;
}

static __always_inline int pf_sample_begin(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_SAMPLE_BEGIN, probe, 0);
    return 0;
}

/* The sampled token is not recorded: a trace holds nothing of what was said. */
static __always_inline int pf_sample_end(struct pt_regs *ctx, u32 probe)
{
    pf_end(PF_SAMPLE_END, probe, 0);
    return 0;
}

static __always_inline int pf_mark(struct pt_regs *ctx, u32 probe, s32 value)
{
    struct pf_mark m = {};
    pf_header(&m.h, PF_WARMUP, 0, bpf_ktime_get_ns());
    m.ctx = PT_REGS_PARM1(ctx);
    m.probe = probe;
    m.value = value;
    pf_emit(&m, sizeof(m), PF_WARMUP);
    return 0;
}

static __always_inline int pf_warmup_set(struct pt_regs *ctx, u32 probe)
{
    return pf_mark(ctx, probe, PT_REGS_PARM2(ctx) & 1);
}

/* Programs that warm up reset the engine's own counters afterwards. */
static __always_inline int pf_warmup_reset(struct pt_regs *ctx, u32 probe)
{
    return pf_mark(ctx, probe, PF_WARMUP_RESET);
}
