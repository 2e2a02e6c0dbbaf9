"""Layer 6: decode steps taken apart: every nanosecond of each in one part, place by place.

Owns the matrix of steps and parts that growth, percentiles and outliers look at. Must not import
rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from profinfer.analysis import latency
from profinfer.analysis.hosttime import away_times
from profinfer.model.operands import KV
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Parts of a step that are no operators.
TORN = "partly recorded"
EMPTY = "empty nodes"
GAPS = "starting, leaving"
NOT_RECORDED = "not recorded"  # instead of GAPS, where record --ops or --layers left operators out
LOST = "graphs that were lost"  # instead of BUILD
GRAPHS = "graphs"
WALK = "profinfer reading"
BUILD = "building graphs"
# Of calls that use other backends, which compute by themselves.
AWAY = "giving work to backends"
COPIES = "copies between backends"
WAITS = "waiting for backends"
SAMPLING = "sampling"
BETWEEN = "between calls"
_RARE = (TORN, EMPTY, LOST, AWAY, COPIES, WAITS)  # left out where no step has any


@dataclass(frozen=True)
class Steps:
    """S decode steps of P parts, in order of time.

    Attributes:
        call: row of the calls table, shape (S,).
        position: of its last token; the number of the decode step where the caller gave none, (S,).
        cells: cells of the KV cache that its attention reads, padding included; -1 not known.
        since: when the decode call before was done, ns, shape (S,).
        total: from there until it was done itself, ns, shape (S,).
        parts: names: roles of operators, slowest first, then what is no operator.
        roles: how many of them are roles.
        time: ns, shape (S, P); each row sums to its total.
        rebuilt: it ran another definition of the graph than the decode call before, shape (S,).
    """

    call: I64
    position: I64
    cells: I64
    since: I64
    total: I64
    parts: tuple[str, ...]
    roles: int
    time: I64
    rebuilt: Mask

    @property
    def operators(self) -> I64:
        """Time in operators, shape (S,)."""
        out: I64 = self.time[:, : self.roles].sum(axis=1)
        return out


def cells_of_definitions(trace: Trace) -> I64:
    """Cells of the KV cache that each definition's attention reads (n_kv), -1 where none does.

    The longest one, where layers differ (sliding windows).
    """
    nodes, operands = trace.nodes, trace.operands
    n_defs = int(nodes["def_id"].max()) + 1 if len(nodes) else 0
    out = np.full(n_defs, -1, np.int64)
    if not len(nodes) or not operands.kind.size:
        return out
    at = operands.of_node
    known = at >= 0
    op = nodes["op"].astype(str).to_numpy()
    # K is (head size, cells, heads): source 0 of MUL_MAT(K, Q), source 1 of the fused operator.
    keys = np.char.startswith(nodes["src0_name"].astype(str).to_numpy(str), "cache_k")
    for wanted, slot in (("MUL_MAT", 0), ("FLASH_ATTN_EXT", 1)):
        rows = known & (op == wanted)
        if slot == 0:
            rows &= keys
        rows[rows] = operands.kind[at[rows], slot] == KV
        np.maximum.at(out, nodes["def_id"].to_numpy()[rows], operands.ne[at[rows], 1 + slot, 1])
    return out


_kept: WeakKeyDictionary[Selection, Steps] = WeakKeyDictionary()


def decode_steps(trace: Trace, selection: Selection) -> Steps:
    """The selected calls that are decode steps with a step before them.

    A call of several sequences counts once; its position is that of its last token. Kept as long
    as the selection is.
    """
    if selection not in _kept:
        _kept[selection] = _decode_steps(trace, selection)
    return _kept[selection]


def _decode_steps(trace: Trace, selection: Selection) -> Steps:
    calls, graphs = trace.calls, trace.graphs
    told = latency.token_steps(trace).dropna().groupby("call_id")["step_ns"].max()
    call = told.index.to_numpy(np.int64)
    keep = selection.calls[call]
    call, total = call[keep], told.to_numpy(np.int64)[keep]
    begin, end, tid = (calls[c].to_numpy() for c in ("begin_ns", "end_ns", "tid"))
    done = calls["done_ns"].to_numpy(np.int64)
    since = done[call] - total
    owner = _step_of_graphs(trace, call)
    mine = owner >= 0

    def of_graphs(values: I64) -> I64:
        out = np.zeros(len(call), np.int64)
        np.add.at(out, owner[mine], values[mine])
        return out

    in_graphs = of_graphs((graphs["end_ns"] - graphs["begin_ns"]).to_numpy())
    walk = of_graphs(graphs["walk_ns"].to_numpy())
    role = trace.nodes["role"].cat
    names, matrix = _by(trace, owner, len(call), role.codes.to_numpy(), list(role.categories))
    torn = _walls(trace, owner, len(call), torn=True)
    empty = _walls(trace, owner, len(call), empty=True)
    sampling = _sampling(trace, since, begin[call], tid[call])
    rest: list[tuple[str, I64]] = []
    if names:
        gaps = in_graphs - matrix.sum(axis=1) - torn - empty
        rest += [(TORN, torn), (EMPTY, empty)]
        rest.append((NOT_RECORDED if trace.narrowed.by_node else GAPS, gaps))
    else:
        rest.append((GRAPHS, in_graphs))
    lost = calls["torn"].to_numpy()[call]
    away, copies, waits = (values[call] for values in away_times(trace))
    inside = waits - (done - end)[call]
    rest_of_call = end[call] - begin[call] - in_graphs - walk - away - copies - inside
    rest += [
        (AWAY, away),
        (COPIES, copies),
        (WAITS, waits),
        (WALK, walk),
        (LOST, np.where(lost, rest_of_call, 0)),
        (BUILD, np.where(lost, 0, rest_of_call)),
        (SAMPLING, sampling),
        (BETWEEN, begin[call] - since - sampling),
    ]
    rest = [(name, values) for name, values in rest if name not in _RARE or values.any()]
    cells, definition = _definitions(trace, owner, len(call))
    position = calls["pos_last"].to_numpy().astype(np.int64)[call]
    known = bool((position >= 0).all())
    return Steps(
        call=call,
        position=np.where(known, position, calls["token_index"].to_numpy()[call]),
        cells=cells,
        since=since,
        total=total,
        parts=(*names, *(name for name, _ in rest)),
        roles=len(names),
        time=np.column_stack([matrix, *(values for _, values in rest)]).astype(np.int64),
        rebuilt=np.r_[False, definition[1:] != definition[:-1]] if len(call) else np.zeros(0, bool),
    )


def attention_steps(trace: Trace, steps: Steps) -> tuple[tuple[str, ...], I64]:
    """Time in the attention's own operators apart (KQ, softmax, KQV), as ``Steps.time``."""
    nodes = trace.nodes
    base = nodes["name"].astype(str).str.extract(r"^([^\s-]*)", expand=False)
    unnamed = base.str.match(r"^(node_\d+)?$")
    label = base.where(~unnamed, nodes["op"].astype(str))
    mine = (nodes["role"] == "attention").to_numpy()
    names = sorted(label[mine].unique())
    codes = np.where(mine, np.searchsorted(names, label.to_numpy(str)), len(names))
    codes = np.minimum(codes, len(names))
    owner = _step_of_graphs(trace, steps.call)
    found, time = _by(trace, owner, len(steps.call), codes, [*names, ""])
    keep = [i for i, name in enumerate(found) if name]
    return tuple(found[i] for i in keep), time[:, keep]


def _step_of_graphs(trace: Trace, call: I64) -> I64:
    """Of each graph the step that it belongs to, by the steps' calls; -1 for none."""
    row = np.full(len(trace.calls) + 1, -1, np.int64)  # the last one: graphs without a call
    row[call] = np.arange(len(call))
    out: I64 = row[trace.graphs["call_id"].to_numpy()]
    return out


def _by(
    trace: Trace, owner: I64, n: int, codes: npt.NDArray[np.integer[Any]], names: list[str]
) -> tuple[tuple[str, ...], I64]:
    """Wall time of the whole operators by the code of their node, slowest first.

    Args:
        trace: the trace.
        owner: step of each graph, -1 none.
        n: steps.
        codes: of each node: which of the names.
        names: of the groups.

    Returns:
        Names of the groups that ran, ns of shape (n, groups).
    """
    walls = trace.op_walls
    at = owner[walls["graph_id"].to_numpy()]
    use = (at >= 0) & walls["complete"].to_numpy()
    key = at[use] * len(names) + codes[walls["node_id"].to_numpy()[use]]
    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy()[use]
    # bincount sums in double precision, which is exact below 2**53 ns.
    out = np.bincount(key, length, n * len(names)).astype(np.int64).reshape(n, len(names))
    order = np.argsort(-out.sum(axis=0), kind="stable")
    order = order[out.sum(axis=0)[order] > 0]
    return tuple(str(names[i]) for i in order), out[:, order]


def _walls(trace: Trace, owner: I64, n: int, *, torn: bool = False, empty: bool = False) -> I64:
    """Wall time of operators of which a part is missing, or of empty nodes, shape (n,)."""
    walls = trace.empty_walls if empty else trace.op_walls
    at = owner[walls["graph_id"].to_numpy()]
    use = at >= 0
    if torn:
        use &= ~walls["complete"].to_numpy()
    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy()
    return np.bincount(at[use], length[use], n).astype(np.int64)


def _sampling(trace: Trace, since: I64, until: I64, tid: I64) -> I64:
    """Time in samplers of the same thread between two moments; these may lie in samplers."""
    out = np.zeros(len(since), np.int64)
    samples = trace.samples.sort_values("begin_ns", kind="stable")
    for one in np.unique(tid).tolist():
        theirs = samples[samples["tid"].to_numpy() == one]
        begin = theirs["begin_ns"].to_numpy()
        length = (theirs["end_ns"] - theirs["begin_ns"]).to_numpy()
        upto = np.r_[0, np.cumsum(length)]
        rows = np.flatnonzero(tid == one)
        passed = []
        for moment in (since[rows], until[rows]):
            at = np.searchsorted(begin, moment)  # samplers that began before
            rest = np.r_[0, begin + length][at] - moment  # what the last one still takes then
            passed.append(upto[at] - np.where(at > 0, np.maximum(rest, 0), 0))
        out[rows] = passed[1] - passed[0]
    return out


def _definitions(trace: Trace, owner: I64, n: int) -> tuple[I64, I64]:
    """Cells that each step's attention read, and the definition of its first graph."""
    cells = np.full(n, -1, np.int64)
    definition = np.full(n, -1, np.int64)
    of_def = np.r_[cells_of_definitions(trace), -1]
    rows = np.flatnonzero(owner >= 0)
    def_id = trace.graphs["def_id"].to_numpy()[rows]
    np.maximum.at(cells, owner[rows], of_def[def_id])
    definition[owner[rows][::-1]] = def_id[::-1]
    return cells, definition
