"""Layer 5: everything that is missing or was not understood, counted in one place.

Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from profinfer.model.calls import Spans
from profinfer.model.definitions import Definitions
from profinfer.model.edges import SPANS, Edges
from profinfer.model.nodes import NodeTables
from profinfer.model.operators import Operators
from profinfer.model.visits import Visits
from profinfer.tracefile import schema
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import Kind

_LABELS = {
    "lost_ops": "batches of operator records lost",
    "lost_op_records": "operator records lost",
    "missing_ops": "batches of operator records not in the file",
    "missing_batches": "batches of operator records missing",
    "torn_batches": "batches whose sequences were not read to the end",
    "lost_expert_rows": "tokens of a layer whose experts are not known",
    "no_slot": "records of threads beyond the table of threads",
    "unreadable": "structs that could not be read",
    "too_many_nodes": "graphs with too many nodes to read",
}


def label(key: str) -> str:
    """A key of the losses in words, to stand behind its number."""
    if key in _LABELS:
        return _LABELS[key]
    what, _, kind = key.partition("_")
    endings = {"lost": f"{kind} records lost", "missing": f"{kind} records not in the file"}
    return endings.get(what, key.replace("_", " "))


def beyond_the_ends(
    losses: Mapping[str, int], edges: Edges, graphs: pd.DataFrame
) -> dict[str, int]:
    """Losses of an excerpt, without what was under way when it began or ended."""
    explained = {f"{how}_{kind}" for how in ("unmatched", "cut") for kind in SPANS}
    out = {k: n for k, n in losses.items() if k not in explained}
    out |= {f"unmatched_{kind}": n for kind, n in edges.middle.items()}
    incomplete = ~graphs["complete"] & ~graphs["cut"]
    return out | {"orphan_ops": edges.orphans, "incomplete_graphs": int(incomplete.sum())}


def _counter(reader: TraceReader, slot: int) -> int:
    return reader.counters[slot] if slot < len(reader.counters) else 0


def operators_lost(reader: TraceReader) -> bool:
    """Whether the BPF program says that operator records are missing."""
    slots = (schema.CNT_OP_LOST, schema.CNT_NO_SLOT, schema.CNT_LOST + Kind.OPS)
    return any(_counter(reader, slot) for slot in slots)


GRAPHS = SPANS["graphs"]
EVERY_SPAN = tuple(kind for kinds in SPANS.values() for kind in kinds)


def spans_lost(reader: TraceReader, kinds: tuple[Kind, ...]) -> bool:
    """Whether records of these kinds are missing: refused by the ring, or not in the file."""
    missing = reader.missing_records()
    return any(_counter(reader, schema.CNT_LOST + kind) or missing.get(kind) for kind in kinds)


def tally(
    reader: TraceReader,
    spans: Spans,
    definitions: Definitions,
    nodes: NodeTables,
    ops: Operators,
    visits: Visits,
    graphs: pd.DataFrame,
    lost_expert_rows: int,
) -> dict[str, int]:
    """Counts by kind. A key that begins with ``lost_`` is what the ring buffer refused."""
    out = {
        f"lost_{kind.name.lower()}": _counter(reader, schema.CNT_LOST + kind)
        for kind in Kind
        if _counter(reader, schema.CNT_LOST + kind)
    }
    out |= {f"missing_{k.name.lower()}": n for k, n in reader.missing_records().items()}
    out |= {
        "lost_op_records": _counter(reader, schema.CNT_OP_LOST),
        "no_slot": _counter(reader, schema.CNT_NO_SLOT),
        "unreadable": _counter(reader, schema.CNT_UNREADABLE),
        "too_many_nodes": _counter(reader, schema.CNT_TOO_MANY_NODES),
        "lost_expert_rows": lost_expert_rows,
        "missing_batches": visits.lost_batches,
        "backwards_events": visits.backwards,
        "torn_batches": spans.torn_batches,
        **{f"unmatched_{what}": n for what, n in spans.unmatched.items()},
        **{f"cut_{what}": n for what, n in spans.cut.items()},
        "unread_nodes": definitions.unreadable,
        "implausible_nodes": definitions.implausible,
        "unknown_ops": nodes.unknown_ops,
        "undefined_graphs": int((graphs["def_id"] < 0).sum()) if len(nodes.nodes) else 0,
        "orphan_ops": int(ops.orphans.records.sum()),
        "undefined_ops": ops.undefined,
        "bad_index_ops": ops.bad_index,
        "disordered_ops": ops.disorder,
        "clipped_ops": ops.clipped,
        "ambiguous_ops": ops.ambiguous,
        "incomplete_graphs": int((~graphs["complete"]).sum()),
        "file_problems": len(reader.problems) + (not reader.complete),
    }
    return out
