/* Reads the router's choice: which experts each token of a batch goes to. See routes.bpf.c.
 *
 * Both are tail calls: the walk over a graph ends in the first, the probe of an operator in the
 * second, so that their own programs stay as small as they were.
 */

/* Nodes that take the same ids: remember where these can be read. */
static __always_inline void pf_route_found(struct pf_walk *w)
{
    struct pf_routes *r = &w->routes;
    struct pf_routed_key key = {};
    struct pf_routed to = {};
    u64 ne[4] = {}, nb[2] = {};
    u64 bad = pf_read_user(ne, sizeof(ne), (void *)(r->ids + PF_TENSOR_NE)) |
              pf_read_user(nb, sizeof(nb), (void *)(r->ids + PF_TENSOR_NB)) |
              (pf_user_u32(r->ids + PF_TENSOR_TYPE) ^ PF_TYPE_I32) | (nb[0] ^ 4) | (ne[2] ^ 1) |
              (ne[3] ^ 1) | ne[1] >> 31 | (ne[0] - 1) / PF_MAX_EXPERTS_USED;
    if (bad) {
        pf_count(PF_CNT_UNREADABLE, 1);
        return;
    }
    key.cgraph = w->cgraph;
    key.at = r->at;
    to.ids = r->ids;
    to.stride = nb[1];
    to.last = r->last;
    to.node = r->node;
    to.used = ne[0];
    to.rows = ne[1];
    to.next = r->first;
    if (!routed.update(&key, &to))
        r->first = r->at;
}

/* The definition is read: look at the nodes that take ids, from the last to the first, so that each
 * place knows the next. Tail-calls itself, PF_ROUTES_PER_STEP nodes a time. */
int pf_route_step(struct pt_regs *ctx)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_walk *w = walks.lookup(&tid);
    if (!w)
        return 0;
    struct pf_routes *r = &w->routes;
    if (r->n > PF_MAX_ROUTES) {
        pf_count(PF_CNT_UNREADABLE, r->n - PF_MAX_ROUTES);
        r->n = PF_MAX_ROUTES;
    }
    for (u32 i = 0; i < PF_ROUTES_PER_STEP; i++) {
        u32 n = *(volatile u32 *)&r->n;
        struct pf_route *node = &r->route[(n - 1) & (PF_MAX_ROUTES - 1)];
        u64 ids = n ? pf_user_u64(node->tensor + PF_TENSOR_IDS) : 0;
        u32 at = pf_place(node->tensor, node->node);
        r->n = n ? n - 1 : 0;
#ifdef PF_FLAG_COMPUTE
        if (n && !(pf_user_u32(node->tensor + PF_TENSOR_FLAGS) & PF_FLAG_COMPUTE))
            continue;
#endif
        if (ids != r->ids) {
            if (r->ids)
                pf_route_found(w);
            r->ids = ids;
            r->last = at;
        }
        r->at = at;
        r->node = node->node;
        if (!n) {
            pf_walk_done(w);
            return 0;
        }
    }
    route_steps.call(ctx, 0);
    return 0;
}

/* Tail-calls itself, one record a time, at most 33 times. */
int pf_expert_step(struct pt_regs *ctx)
{
    u64 now = bpf_ktime_get_ns();
    u32 tid = (u32)bpf_get_current_pid_tgid();
    struct pf_walk *w = walks.lookup(&tid);
    struct pf_slot *s = pf_slot_of(tid);
    if (!w || !s)
        return 0;
    struct pf_reading *r = &w->reading;
    if (!r->left) {
        struct pf_routed_key key = {};
        key.cgraph = w->cgraph;
        key.at = s->ids_at;
        struct pf_routed *from = routed.lookup(&key);
        if (!from) { /* forgotten: there were too many graphs; the reader sees what is missing */
            s->ids_at = PF_NEVER;
            return 0;
        }
        s->ids_at = from->next;
#ifndef PF_OPS_WIDE
        if (s->index > from->last) /* the probes came when the graph was under way */
            return 0;
#endif
        r->data = pf_user_u64(from->ids + PF_TENSOR_DATA);
        r->stride = from->stride;
        r->left = from->rows;
        r->out.cgraph = w->cgraph;
        r->out.node = from->node;
        r->out.n_used = from->used;
        r->out.n_tokens = from->rows;
    }
    u64 used = r->out.n_used, stride = r->stride, data = r->data;
    u64 rows = r->left, bytes = used * 4, bad = 0;
    PF_KEEP_BOUND(used);
    if (used == 0 || used > PF_MAX_EXPERTS_USED)
        goto unread;
    r->out.first = r->out.n_tokens - rows;
    if (rows > PF_IDS_PER_RECORD / used)
        rows = PF_IDS_PER_RECORD / used;
    if (stride == bytes) { /* the rows lie one behind the other */
        bytes = rows * bytes;
        PF_KEEP_BOUND(bytes);
        if (bytes > 4 * PF_IDS_PER_RECORD)
            goto unread;
        bad = pf_read_user(r->id, bytes, (void *)data);
    } else {
        PF_KEEP_BOUND(bytes);
        if (bytes > 4 * PF_MAX_EXPERTS_USED)
            goto unread;
        if (rows > PF_ROWS_PER_STEP)
            rows = PF_ROWS_PER_STEP;
        u32 at = 0, i;
        PF_KEEP_BOUND(rows); /* as for PF_EACH_PTR */
        for (i = 0; pf_kept(&i) < PF_ROWS_PER_STEP && i < rows; i++) {
            bad |= pf_read_user(&r->id[at & (PF_IDS_PER_RECORD - 1)], bytes, (void *)data);
            at += used;
            data += stride;
        }
        data = r->data;
    }
    if (bad)
        goto unread;
    r->data = data + rows * stride;
    r->left -= rows;
    r->out.n = rows;
    u64 size = rows * used * 4;
    PF_KEEP_BOUND(size);
    if (size > 4 * PF_IDS_PER_RECORD)
        goto unread;
    pf_header(&r->out.h, PF_EXPERTS, 0, now);
    r->out.ns = bpf_ktime_get_ns() - now;
    pf_emit(&r->out, sizeof(r->out) + size, PF_EXPERTS);
    if (!r->left)
        return 0;
    expert_steps.call(ctx, 0); /* back here only when the 33 calls are used up */
unread:
    pf_count(PF_CNT_EXPERTS_UNREAD, r->left);
    r->left = 0;
    return 0;
}
