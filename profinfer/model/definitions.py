"""Layer 5: the graph definitions of a trace, put together from its PTRS and TENSOR records.

Owns the rebuilding of what each graph's nodes were at the moment it ran, and the recognition of
definitions that are the same in everything a view shows (addresses and view offsets may differ).
Loops over changed graphs, never over operator events. Must not import the analyses or above.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from profinfer.model import tensors
from profinfer.model.decode import Records
from profinfer.tracefile import schema
from profinfer.tracefile.metadata import Engine, Layout

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

NONE = -1  # no source in this slot
MISSING = -2  # an address was named, but its tensor was never read
MAX_NODES = 1 << 20  # far beyond any graph that the kernel's walk can read
USAGE_WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS
WEIGHT_SUFFIXES = (b".weight", b".bias")


@dataclass(frozen=True)
class Contents:
    """The distinct tensors of a trace: equal content id means equal in every field shown.

    Attributes:
        fields: parsed fields, one row per content id.
        weight: is it a model weight, shape (n,).
        implausible: no engine could have made it, shape (n,).
    """

    fields: tensors.Fields
    weight: npt.NDArray[np.bool_]
    implausible: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Definition:
    """One distinct graph.

    Attributes:
        node: content id of each node, NONE where it was never read, shape (n_nodes,).
        src: content id of each source, NONE or MISSING, shape (n_nodes, max_src).
        src_idx: node index of each source, NONE for a leaf, shape (n_nodes, max_src).
        src_weight: content id of the weight behind each source (through a view), or NONE.
        address: tensor address of each node, shape (n_nodes,).
        root: address of the tensor whose memory each node is in: itself, or what it is a view of,
            shape (n_nodes,).
        src_root: likewise of each source, 0 for none, shape (n_nodes, max_src).
        data: address of each node's data when it was read, 0 if not known, shape (n_nodes,).
        src_data: likewise of each source, shape (n_nodes, max_src).
    """

    node: I32
    src: I32
    src_idx: I32
    src_weight: I32
    address: U64
    root: U64
    src_root: U64
    data: U64
    src_data: U64


@dataclass(frozen=True)
class Definitions:
    """All distinct graphs, and which one every GRAPH_BEGIN record runs.

    Attributes:
        contents: the distinct tensors.
        items: the distinct definitions; the index is the def_id.
        of_graph: def_id per GRAPH_BEGIN record, -1 if none is known.
        of_split: def_id per SPLIT_BEGIN record; -1 also for the CPU's, whose graphs tell.
        unreadable: nodes whose tensor was never read.
        implausible: nodes whose tensor cannot be true.
    """

    contents: Contents
    items: tuple[Definition, ...]
    of_graph: I32
    of_split: I32
    unreadable: int
    implausible: int


def buffer_usage(records: Records, layout: Layout, buffers: npt.NDArray[np.uint64]) -> npt.NDArray:  # type: ignore[type-arg]
    """Buffer usage of each tensor record, -1 where its buffer was not read."""
    at = layout.buffer.get("usage")
    out = np.full(len(buffers), -1, np.int8)
    if at is None or not len(records.buffers):
        return out
    raw = tensors.raw_bytes(records.buffers)
    usage = tensors.column(raw, at, "<i4")
    order = np.argsort(records.buffers["addr"], kind="stable")
    addr = records.buffers["addr"][order]
    found = np.searchsorted(addr, buffers, side="right") - 1
    hit = (found >= 0) & (addr[found] == buffers)
    out[hit] = usage[order[found[hit]]]
    return out


def _contents(
    raw: tensors.U8, usage: npt.NDArray[np.int8], engine: Engine, layout: Layout
) -> tuple[I32, Contents]:
    """Content id of every tensor record, and the table of contents."""
    every = tensors.parse(raw, layout.tensor)
    op_name = {name: i for i, name in enumerate(engine.ops)}
    activation = np.isin(every.op, [op_name.get("UNARY", -1), op_name.get("GLU", -1)])
    key = np.zeros(
        len(raw),
        [
            ("type", "i8"),
            ("op", "i8"),
            ("ne", "i8", 4),
            ("nb", "i8", 4),
            ("param", "i8"),
            ("flags", "i8"),
            ("view", "i1"),
            ("usage", "i1"),
            ("name", every.name.dtype),
        ],
    )
    for name in ("type", "op", "ne", "nb", "flags", "name"):
        key[name] = getattr(every, name)
    key["param"] = np.where(activation, every.param, 0)
    key["view"] = every.view_src != 0
    key["usage"] = usage
    packed = key.view(f"V{key.dtype.itemsize}").tolist()
    ids: dict[bytes, int] = {}
    content = np.fromiter((ids.setdefault(k, len(ids)) for k in packed), np.int32, len(packed))
    first = np.zeros(len(ids), np.int64)
    first[content[::-1]] = np.arange(len(content))[::-1]
    fields = tensors.parse(raw[first], layout.tensor)
    names = fields.name
    suffix = np.zeros(len(names), bool)
    for ending in WEIGHT_SUFFIXES:
        suffix |= np.char.endswith(names, ending)
    weight = (fields.op == op_name.get("NONE", 0)) & (suffix | (usage[first] == USAGE_WEIGHTS))
    bad = tensors.implausible(fields, len(engine.ops), len(engine.types))
    return content, Contents(fields, weight, bad)


@dataclass
class _Walk:
    """State of the stream while definitions are rebuilt."""

    pointers: dict[int, npt.NDArray[np.uint64]] = field(default_factory=dict)

    def piece(self, record: np.void) -> None:
        """Lay one PTRS record over the pointer array of its graph."""
        cgraph, first, n = int(record["cgraph"]), int(record["first"]), int(record["n"])
        n = min(n, schema.PTRS_PER_RECORD)
        if first + n > MAX_NODES:
            return  # a damaged record: its graph stays without a definition, which is counted
        known = self.pointers.get(cgraph)
        if known is None or len(known) < first + n:
            grown = np.zeros(first + n, np.uint64)
            if known is not None:
                grown[: len(known)] = known
            self.pointers[cgraph] = known = grown
        known[first : first + n] = record["ptr"][:n]


@dataclass(frozen=True)
class _Runs:
    """All that runs a definition: first the GRAPH_BEGIN records, then the SPLIT_BEGIN records.

    Attributes:
        order: place in the stream, shape (n,).
        cgraph, gen, n_nodes: as recorded; gen is 0 of splits, n_nodes of those not read.
        changed: a new definition came before it.
        graphs: how many are graphs.
    """

    order: I64
    cgraph: npt.NDArray[np.uint64]
    gen: npt.NDArray[np.uint64]
    n_nodes: I64
    changed: npt.NDArray[np.bool_]
    graphs: int


def _runs(records: Records) -> _Runs:
    kinds = (schema.Kind.GRAPH_BEGIN, schema.Kind.SPLIT_BEGIN)
    graphs, splits = (records.rows[kind] for kind in kinds)
    read = (splits["flags"] & schema.SPLIT_READ) != 0
    changed = [(rows["flags"] & schema.GRAPH_CHANGED) != 0 for rows in (graphs, splits)]
    return _Runs(
        order=np.concatenate([records.order[kind] for kind in kinds]),
        cgraph=np.concatenate([graphs["cgraph"], splits["cgraph"]]),
        gen=np.concatenate([graphs["gen"], np.zeros(len(splits), np.uint64)]),
        n_nodes=np.concatenate([graphs["n_nodes"], np.where(read, splits["n_nodes"], 0)]).astype(
            np.int64
        ),
        changed=np.concatenate(changed),
        graphs=len(graphs),
    )


def _lookup(addresses: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> I32:
    """Slot of each wanted address in the sorted ``addresses``: NONE for 0, MISSING if absent."""
    out = np.full(wanted.shape, MISSING, np.int32)
    if len(addresses):
        at = np.minimum(np.searchsorted(addresses, wanted), len(addresses) - 1)
        out = np.where(addresses[at] == wanted, at, MISSING).astype(np.int32)
    out[wanted == 0] = NONE
    return out


def build(records: Records, engine: Engine) -> Definitions:
    """Rebuild every graph definition in stream order.

    Args:
        records: the decoded trace.
        engine: names and layout, from the metadata.
    """
    layout = engine.layout or Layout()
    raw = tensors.raw_bytes(records.tensors)
    recs = tensors.parse(raw, layout.tensor)
    content, contents = _contents(raw, buffer_usage(records, layout, recs.buffer), engine, layout)
    addresses, slot_of_rec = np.unique(records.tensors["addr"], return_inverse=True)
    src_slot = _lookup(addresses, recs.src)
    view_slot = _lookup(addresses, recs.view_src)
    # One more row and slot, so that -1 and -2 index something: "never read".
    latest = np.full(len(addresses) + 2, -1, np.int64)
    content1 = np.r_[content, NONE].astype(np.int32)
    weight1 = np.r_[contents.weight, False]
    zero = np.zeros(1, np.uint64)
    view1, data1 = np.r_[recs.view_src, zero], np.r_[recs.data, zero]

    runs = _runs(records)
    order = runs.order
    ptrs = records.rows[schema.Kind.PTRS]
    nodes_only = np.flatnonzero((ptrs["flags"] & schema.PTRS_LEAFS) == 0)
    ptr_order = records.order[schema.Kind.PTRS][nodes_only]
    rec_upto = np.searchsorted(records.order[schema.Kind.TENSOR], order)
    ptr_upto = np.searchsorted(ptr_order, order)

    of_run = np.full(len(order), -1, np.int32)
    items: list[Definition] = []
    known: dict[bytes, int] = {}
    by_gen: dict[tuple[int, int], int] = {}
    latest_of: dict[int, tuple[int, int]] = {}
    walk = _Walk()
    rec_done = ptr_done = 0
    for row in np.argsort(order, kind="stable").tolist():
        for at in nodes_only[ptr_done : ptr_upto[row]]:
            walk.piece(ptrs[at])
        ptr_done = max(ptr_done, int(ptr_upto[row]))
        if rec_upto[row] > rec_done:
            fresh = np.arange(rec_done, rec_upto[row])
            latest[slot_of_rec[fresh]] = fresh  # the last one wins, as in the stream
            rec_done = int(rec_upto[row])
        n = int(runs.n_nodes[row])
        if not n:
            continue
        cgraph, gen = int(runs.cgraph[row]), int(runs.gen[row])
        # A split does not say which reading it runs: it is the graph's latest.
        known_as = (cgraph, gen) if gen else latest_of.get(cgraph, (cgraph, 0))
        if not runs.changed[row] and known_as in by_gen:
            of_run[row] = by_gen[known_as]
            latest_of[cgraph] = known_as
            continue
        known_as = (cgraph, gen or -row - 1)
        pointers = walk.pointers.get(cgraph)
        if pointers is None or len(pointers) < n or not len(addresses):
            continue
        slots = _lookup(addresses, pointers[:n])
        rec = latest[slots]
        node = content1[rec]
        # -1 as a record picks the appended row of content1; as a source it must stay absent.
        srcs = np.where(rec[:, None] >= 0, src_slot[rec], NONE)
        src_rec = latest[srcs]
        src = np.where(srcs < 0, srcs, np.where(src_rec < 0, MISSING, content1[src_rec]))
        root = content1[latest[np.where(src_rec < 0, NONE, view_slot[src_rec])]]
        src_weight = np.where(
            weight1[src] & (src >= 0), src, np.where(weight1[root] & (root >= 0), root, NONE)
        )
        key = hashlib.blake2b(
            node.tobytes() + src.tobytes() + src_weight.tobytes(), digest_size=16
        ).digest()
        def_id = known.get(key)
        if def_id is None:
            def_id = known[key] = len(items)
            where = np.full(len(addresses) + 2, NONE, np.int32)
            where[slots] = np.arange(n)
            where[-2:] = NONE
            named = np.where(rec[:, None] >= 0, recs.src[rec], 0).astype(np.uint64)
            items.append(
                Definition(
                    node,
                    src.astype(np.int32),
                    where[srcs].astype(np.int32),
                    src_weight.astype(np.int32),
                    pointers[:n].copy(),
                    root=np.where(view1[rec], view1[rec], pointers[:n]),
                    src_root=np.where(view1[src_rec], view1[src_rec], named),
                    data=data1[rec],
                    src_data=data1[src_rec],
                )
            )
        of_run[row] = by_gen[known_as] = def_id
        latest_of[cgraph] = known_as
    every = np.concatenate([d.node for d in items]) if items else np.zeros(0, np.int32)
    return Definitions(
        contents,
        tuple(items),
        of_run[: runs.graphs],
        of_run[runs.graphs :],
        unreadable=int((every < 0).sum()),
        implausible=int(contents.implausible[every[every >= 0]].sum()),
    )
