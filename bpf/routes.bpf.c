/* Where in a graph expert ids can be read, found while its definition is read.
 *
 * The router's choice is the third source of MUL_MAT_ID. It is complete when such a node begins, and
 * its memory is given to nobody else before the last node that takes it has ended on all threads. At
 * the graph loop's barrier a thread has ended its own part of a node and holds all others back; so
 * between the first and the last such node, both included, the ids are whole and still there. They
 * are read at the first, by the thread that began the graph. All other threads and all nodes before
 * it pay one comparison, with a number in a cache line that they write to anyway.
 */

#define PF_MAX_ROUTES 512 /* a power of two */
#define PF_ROUTES_PER_STEP 16

/* Nodes of a graph that take ids, as the walk met them; then what consecutive ones share. */
struct pf_route {
    u64 tensor;
    u32 node, pad;
};
struct pf_routes {
    u32 n;
    u32 first;           /* where ids are to be read first, as pf_slot.ids_at; or PF_NEVER */
    u64 ids;             /* of the nodes that are looked at, 0: none */
    u32 at, last, node;  /* of these: place of the first and the last, index of the first */
    u32 pad;
    struct pf_route route[PF_MAX_ROUTES];
};

/* What is known of one place where ids are read. */
struct pf_routed_key {
    u64 cgraph;
    u32 at, pad;
};
struct pf_routed {
    u64 ids, stride;     /* bytes from one row to the next */
    u32 last, node, used, rows;
    u32 next, pad;       /* `at` of the next place in the graph */
};
BPF_TABLE("lru_hash", struct pf_routed_key, struct pf_routed, routed, 16384);

#define PF_IDS_PER_RECORD 1024 /* a power of two */
#define PF_ROWS_PER_STEP 128   /* where rows do not lie one behind the other */

/* What of a place was read so far. */
struct pf_reading {
    u64 data, stride;
    u32 left, pad;       /* rows */
    struct pf_experts out;
    s32 id[PF_IDS_PER_RECORD + PF_MAX_EXPERTS_USED]; /* of the record before; more than it holds, */
};                                                   /* for the verifier */

BPF_PROG_ARRAY(route_steps, 1);
BPF_PROG_ARRAY(expert_steps, 1);

/* A loop index as the barrier's probe reads it; without such a probe the name of a tensor. */
static __always_inline u32 pf_place(u64 tensor, u32 node)
{
#ifdef PF_OPS_WIDE
    return (tensor >> 4) & 0xffffff;
#else
    return (node + (PF_OPS_BIAS)) & 0xffffff;
#endif
}

/* A node was read: does it take ids? Without a branch, of which the verifier would follow both ways for
 * each node of a piece. */
static __always_inline void pf_route_note(struct pf_routes *r, u8 *raw, u64 tensor, u32 node)
{
    u32 n = r->n;
    struct pf_route *next = &r->route[n & (PF_MAX_ROUTES - 1)];
    next->tensor = tensor;
    next->node = node;
    r->n = n + (*(u32 *)&raw[PF_TENSOR_OP] == PF_MUL_MAT_ID);
}

/* A graph begins on this thread: its first ids are to be read there. */
static __always_inline void pf_route_arm(u32 first)
{
    struct pf_slot *s = pf_slot_of((u32)bpf_get_current_pid_tgid());
    if (s)
        s->ids_at = first;
}
