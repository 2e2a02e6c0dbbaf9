/* Operators that are not wanted (record --ops, --layers, --threads) leave no record.
 *
 * Which nodes of a graph are wanted is decided when its definition is read, as bits by place in the
 * graph; model/wanted.py decides the same from the definition and must be kept like it. An operator
 * begins when the barrier before it opens, and that is told by when each thread came to it: so the
 * record before a wanted one is kept too. It saves records and a part of the handler, not the trap.
 */

#ifdef PF_FILTER
struct pf_wanted {
    u64 word[PF_FILTER_WORDS];
};
/* cgraph -> its bits. A graph whose bits were thrown out is read again. */
BPF_TABLE("lru_hash", u64, struct pf_wanted, wanted_nodes, 512);
static __always_inline int pf_wanted_known(u64 cgraph)
{
    return wanted_nodes.lookup(&cgraph) != 0;
}

#define PF_NO_LAYER 0xffffffff
#ifdef PF_LAYER_FIRST
#define PF_NAME_CHAR(name, at) (u32)(name)[(at) & (PF_NAME_BYTES - 1)]

/* Layer of a node, in *layer, where that of the node before was: the number behind the first '-', or
 * behind cache_?_l, up to a blank or the end: Qcur-3, cache_k_l3 (view). What ggml named itself
 * belongs to the layer of the node before.
 *
 * What is found goes through memory: of that the verifier knows nothing, and so does not follow
 * each of the ways out of the loop to the end of the program. */
static __always_inline void pf_layer_of(const unsigned char *name, u32 *layer, u32 *place)
{
    u64 word = *(u64 *)name;
    if (!(word & 0xff) || (word & 0xffffffffff) == 0x5f65646f6eull /* node_ */ ||
        (word & 0xffffffffff) == 0x5f6661656cull /* leaf_ */)
        return;
    if ((word & 0xffffffffffff) == 0x5f6568636163ull && word >> 56 == '_' && name[8] == 'l') {
        *(volatile u32 *)place = 9;
    } else {
        u32 i;
        for (i = 0; i < PF_NAME_BYTES; i++)
            if (name[i] == '-' || !name[i])
                break;
        *(volatile u32 *)place = i + 1;
    }
    u32 at = *(volatile u32 *)place, n, value = 0, c = 0;
    for (n = 0; n < PF_LAYER_DIGITS; n++) {
        c = PF_NAME_CHAR(name, at + n) - '0';
        if (c > 9)
            break;
        value = value * 10 + c;
    }
    c = PF_NAME_CHAR(name, at + n);
    *(volatile u32 *)layer = at < PF_NAME_BYTES && n && (!c || c == ' ') ? value : PF_NO_LAYER;
}
#endif

#ifdef PF_OPS_LOW
static __always_inline int pf_op_is_wanted(u32 op)
{
    u64 mask = op < 64 ? PF_OPS_LOW : PF_OPS_HIGH;
    return op < 128 && (mask >> (op & 63) & 1);
}
#endif

static __always_inline int pf_is_wanted(struct pf_slot *s, u32 node)
{
    if (node >= 64 * PF_FILTER_WORDS || !s->filtered)
        return 1;
    u64 word = node >> 6;
    PF_KEEP_BOUND(word);
    return s->wanted[word & (PF_FILTER_WORDS - 1)] >> (node & 63) & 1;
}

static __always_inline void pf_filter_load(struct pf_slot *s, u64 cgraph)
{
    struct pf_wanted *bits = wanted_nodes.lookup(&cgraph);
    s->filtered = bits && !bpf_probe_read_kernel(s->wanted, sizeof(s->wanted), bits);
}
#else
#define pf_wanted_known(cgraph) 1
#endif

#ifdef PF_MAIN_ONLY
#define pf_is_aside(s) (!(s)->caller && ++(s)->passed)
#else
#define pf_is_aside(s) 0
#endif
