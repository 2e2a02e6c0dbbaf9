"""Layer 5: does the trace agree with itself? One check per question, one sentence per answer.

Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.losses import label
from profinfer.model.trace import Trace

# Below this share a graph's wall time is not explained by its operators and gaps.
EXPLAINED_MIN = 0.98


@dataclass(frozen=True)
class Check:
    """One question about the trace.

    Attributes:
        name: short and stable, for machines.
        ok: the answer is as it should be.
        text: the answer as a sentence, with numbers.
        severity: what a failure means: "warning" (numbers hold, something is missing) or
            "error" (numbers may be wrong).
    """

    name: str
    ok: bool
    text: str
    severity: str = "warning"


def explained(trace: Trace) -> float | None:
    """Share of all graphs' wall time that operators and barriers after empty nodes cover.

    Gaps are not counted. None without operators, or if some were left out on purpose.
    """
    if not len(trace.op_walls) or trace.narrowed.by_node:
        return None
    graphs = trace.graphs
    whole = (graphs["complete"] & graphs["sampled"]).to_numpy()
    covered = _walls_of_graphs(trace)[whole].sum()
    wall = (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()[whole].sum()
    return float(covered / wall) if wall else None


def _walls_of_graphs(trace: Trace) -> npt.NDArray[np.int64]:
    """Time of each graph from release to release, empty nodes included."""
    total = np.zeros(len(trace.graphs), np.int64)
    for walls in (trace.op_walls, trace.empty_walls):
        length = (walls["release_ns"] - walls["begin_ns"]).to_numpy()
        np.add.at(total, walls["graph_id"].to_numpy(), length)
    return total


def _sums(trace: Trace) -> Check | None:
    """Start gap + operator walls + end gap must be the graph's wall time, to the nanosecond."""
    graphs = trace.graphs
    if not len(trace.op_walls) or trace.narrowed.by_node:
        return None
    total = _walls_of_graphs(trace)
    begin, end = graphs["begin_ns"].to_numpy(), graphs["end_ns"].to_numpy()
    enter, release = graphs["enter_ns"].to_numpy(), graphs["release_ns"].to_numpy()
    whole = graphs["complete"].to_numpy() & (release >= 0) & (enter >= 0)
    start_gap, end_gap = enter - begin, end - release
    off = np.abs(start_gap + total + end_gap - (end - begin))
    negative = (start_gap < 0) | (end_gap < 0)
    bad = int(((off > 0) | negative)[whole].sum())
    what = "operators"
    if len(trace.empty_walls):
        what += ", barriers after empty nodes"
    return Check(
        "graph_sums",
        bad == 0,
        f"{what} and gaps sum to each graph's wall time"
        if not bad
        else f"{bad} graphs' {what} and gaps do not sum to their wall time",
        "error",
    )


def _lost(trace: Trace) -> Check:
    lost = {k: n for k, n in trace.losses.items() if n and k.startswith(("lost_", "missing_"))}
    lost |= {
        k: trace.losses[k] for k in ("no_slot", "unreadable", "too_many_nodes") if trace.losses[k]
    }
    text = ", ".join(f"{n:,} {label(k)}" for k, n in lost.items())
    return Check("losses", not lost, text if lost else "nothing lost")


def _counted(trace: Trace, name: str, good: str, bad: dict[str, str], severity: str) -> Check:
    found = [f"{trace.missing[k]:,} {what}" for k, what in bad.items() if k in trace.missing]
    return Check(name, not found, ", ".join(found) if found else good, severity)


_SPANS = ("calls", "samples", "splits", "graphs")


def _pairs(trace: Trace) -> Check:
    """Begins and ends. An excerpt has some of one without the other at its two ends."""
    if trace.excerpt and any(trace.losses[f"{how}_{k}"] for how in ("unmatched", "cut")
                             for k in _SPANS):  # fmt: skip
        found = [f"{n:,} {k} without their begin or end, not at an edge of the excerpt"
                 for k, n in trace.excerpt_edges.middle.items() if n]  # fmt: skip
        text = "an excerpt: what was under way when it began and ended is left out"
        return Check("pairs", not found, ", ".join(found) if found else text)
    found = [f"{trace.losses[f'unmatched_{k}']:,} unmatched {k}" for k in _SPANS
             if trace.losses[f"unmatched_{k}"]]  # fmt: skip
    found += [f"{trace.losses[f'cut_{k}']:,} {k} cut off by the end of the recording"
              for k in _SPANS if trace.losses[f"cut_{k}"]]  # fmt: skip
    return Check("pairs", not found, ", ".join(found) if found else "every begin has its end")


def _layout(trace: Trace) -> list[Check]:
    """What the recorder said of the first tensors it read, if it said that they make no sense."""
    return [
        Check(
            "layout",
            False,
            f"what was read of tensors makes no sense ({note.get('example')}): no name, shape or "
            "operator here is to be believed",
            "error",
        )
        for note in trace.reader.notes
        if note.get("what") == "implausible"
    ]


def _glued(trace: Trace) -> list[Check]:
    """What an older recorder lost. It did not number what it wrote."""
    text = ("begins and ends were lost and have no numbers (an older profinfer): around them two "
            "calls or graphs may be taken for one long one")  # fmt: skip
    return [Check("glued", False, text, "error")] if trace.may_be_glued else []


def checks(trace: Trace) -> list[Check]:
    """All questions that this trace can answer."""
    out = [
        Check(
            "file",
            not trace.problems,
            "; ".join(trace.problems) if trace.problems else "file whole",
        ),
        *_layout(trace),
        _lost(trace),
        *_glued(trace),
        _pairs(trace),
    ]
    if trace.meta.plan.ops.mode != "none" and len(trace.graphs):
        graphs = trace.graphs[trace.graphs["sampled"]]
        graphs = graphs[~graphs["cut"]] if trace.excerpt else graphs
        whole, total = int(graphs["complete"].sum()), len(graphs)
        every = f"every node once per thread in all {total:,} graphs"
        if trace.narrowed.by_node:
            every = f"{trace.narrowed.text} in all {total:,} graphs, others left out"
        if trace.narrowed.by_node and total and not len(trace.ops) + len(trace.empty_ops):
            none = f"no operator was recorded: no graph computes {trace.narrowed.text}"
            out.append(Check("chosen", False, none))
        out.append(
            Check(
                "nodes",
                whole == total,
                every
                if whole == total
                else f"{total - whole:,} of {total:,} graphs are incomplete",
            )
        )
        out.append(
            _counted(
                trace,
                "clock",
                "clock and order sane",
                {
                    "backwards_events": "events older than the one before",
                    "clipped_ops": "operators that end before they begin",
                    "disordered_ops": "operators out of order",
                },
                "error",
            )
        )
        out.append(
            _counted(
                trace,
                "definitions",
                "all nodes understood",
                {
                    "orphan_ops": "operator records without a graph",
                    "unknown_ops": "nodes of unknown operator",
                    "implausible_nodes": "implausible nodes",
                    "unread_nodes": "unread nodes",
                    "undefined_graphs": "graphs without definition",
                    "bad_index_ops": "records of nodes that the graph does not have",
                    "ambiguous_ops": "operator records with an ambiguous address",
                },
                "error",
            )
        )
        sums = _sums(trace)
        if sums:
            out.append(sums)
        share = explained(trace)
        if share is not None:
            barriers = " and barriers after empty nodes" if len(trace.empty_walls) else ""
            out.append(
                Check(
                    "explained",
                    share >= EXPLAINED_MIN,
                    f"operators{barriers} explain {100 * share:.1f} % of the graphs' time",
                )
            )
    return out
