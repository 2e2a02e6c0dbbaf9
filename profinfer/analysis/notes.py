"""Layer 6: the notes that every view carries: what is lost, what is incomplete.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np

from profinfer.analysis.result import Note
from profinfer.model.losses import label
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_ns


def losses(trace: Trace) -> list[Note]:
    """What is missing from the whole trace, as one warning, or nothing."""
    found = {k: n for k, n in trace.losses.items() if n and k.startswith(("lost_", "no_slot"))}
    notes = []
    if found:
        text = ", ".join(f"{n:,} {label(k)}" for k, n in found.items())
        notes.append(Note("warning", f"while recording: {text}"))
    elif trace.losses["missing_batches"]:
        text = f"{trace.losses['missing_batches']:,} batches of operator records are missing"
        notes.append(Note("warning", text))
    notes.extend(Note("warning", problem) for problem in trace.problems)
    return notes


def incomplete(trace: Trace, selection: Selection) -> list[Note]:
    """Graphs of the selection of which something is missing."""
    chosen = trace.graphs[selection.graphs]
    bad = int((~chosen["complete"]).sum())
    if not bad:
        return []
    text = (
        f"{bad:,} of {len(chosen):,} graphs are incomplete: what was seen of them counts, "
        "their torn operators are left out of compute and wait"
    )
    return [Note("warning", text)]


def sampled(trace: Trace, selection: Selection) -> list[Note]:
    """How much of what was asked for was recorded without operators, and is left out."""
    if selection.of_tokens <= selection.n_tokens:
        return []
    windows = len(trace.windows)
    inside = f", in {windows} window{'' if windows == 1 else 's'}" if windows else ""
    why = next((f" ({w.ended})" for w in trace.windows if w.ended), "")
    text = (
        f"operators were recorded during {selection.n_tokens:,} of {selection.of_tokens:,} tokens"
        f"{inside}{why}: this view covers those, and its "
        "numbers per token are means over them"
    )
    out = [Note("info", text)]
    if trace.limit_missed:
        out.append(Note("warning", f"the limit was not kept: {trace.limit_missed}"))
    return out


def narrowed(trace: Trace) -> list[Note]:
    """What record --ops, --layers and --threads left out."""
    out = []
    if trace.narrowed.by_node:
        text = f"only {trace.narrowed.text} were recorded: shares are of these"
        out.append(Note("info", text))
    if trace.narrowed.main:
        text = (
            "only the thread that begins a graph left records of operators: its waits for the "
            "others count as computing"
        )
        out.append(Note("info", text))
    return out


def cut(shown: int, rows: int, which: str = "slowest") -> list[Note]:
    """How many rows a view leaves out, and which ones it shows, or nothing."""
    return [Note("info", f"the {shown} {which} of {rows:,}; more: --top N")] if shown < rows else []


def elsewhere(trace: Trace, selection: Selection) -> list[Note]:
    """What other backends than the CPU computed for the selected calls, which has no rows here."""
    splits = trace.splits
    mine = np.r_[selection.calls, False][splits["call_id"].to_numpy()]
    mine &= splits["outermost"].to_numpy() & (splits["backend"] != "CPU").to_numpy()
    splits = splits[mine]
    if not len(splits):
        return []
    done = splits["done_ns"].where(splits["done_ns"] >= 0, splits["end_ns"])
    names = ", ".join(sorted(set(splits["backend"].astype(str))))
    text = (
        f"the CPU's operators alone: {names} ran {int(splits['n_nodes'].sum()):,} more nodes, in "
        f"{format_ns(int((done - splits['begin_ns']).sum()))}; see --by backend"
    )
    return [Note("info", text)]


def of(trace: Trace, selection: Selection) -> tuple[Note, ...]:
    """All of them."""
    return (
        *losses(trace),
        *incomplete(trace, selection),
        *sampled(trace, selection),
        *narrowed(trace),
    )
