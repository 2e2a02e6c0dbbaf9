"""Layer 6: what going from backend to backend costs, where it is worth a sentence.

Must not import rich or above.
"""

from __future__ import annotations

import numpy as np

from profinfer.analysis.backends import chosen, crossing, has_others
from profinfer.analysis.finding import Finding, Number, Prize
from profinfer.analysis.hosttime import away_times
from profinfer.model.results import asynchronous_names
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_bytes, format_ns, format_percent, format_things

# Below these parts of the calls' time nothing is said.
TRAFFIC_MIN = 0.10
STARTING_MIN = 0.10
WAITING_MIN = 0.30
# So many splits a call are not meant by anybody who puts some layers on another backend.
SPLITS_MIN = 8


def findings(trace: Trace, selection: Selection) -> list[Finding]:
    """What is wrong with how the selected calls use backends; nothing on the CPU alone."""
    calls = trace.calls[selection.calls]
    spent = int((calls["done_ns"] - calls["begin_ns"]).sum())
    if not spent or not has_others(trace):
        return []
    found = (_traffic, _starting, _waiting)
    return [finding for look in found for finding in look(trace, selection, spent)]


def _traffic(trace: Trace, selection: Selection, spent: int) -> list[Finding]:
    """Copies between backends take a good part of the calls."""
    copies = crossing(trace, selection)
    copies = copies.assign(time_ns=copies["end_ns"] - copies["begin_ns"])
    time = int(copies["time_ns"].sum())
    if time < TRAFFIC_MIN * spent:
        return []
    most = copies.groupby(["source", "target"], observed=True)["time_ns"].sum().idxmax()
    source, target = map(str, most)  # type: ignore[call-overload]
    text = (
        f"copies between backends take {format_percent(time / spent)} of the calls' time: "
        f"{len(copies):,} copies of {format_bytes(int(copies['bytes'].sum()))}, most of it from "
        f"{source} to {target}"
    )
    evidence = {
        "copies": Number(len(copies), "count", "Copies that cross from one backend to another."),
        "copied_bytes": Number(int(copies["bytes"].sum()), "bytes", "What they copied."),
        "copying_ns": Number(time, "ns", "Time inside them."),
        "calls_ns": Number(spent, "ns", "Time of the calls."),
    }
    prize = Prize(time, selection.n_tokens, spent, "all time in copies that cross")
    tries = "fewer, larger parts of the model on one backend"
    return [Finding("traffic", None, text, tries, selection.description, evidence, prize)]


def _starting(trace: Trace, selection: Selection, spent: int) -> list[Finding]:
    """The CPU's threads start and leave at every split, and do little between."""
    splits = chosen(trace, trace.splits, selection)
    graphs = trace.graphs[selection.graphs]
    graphs = graphs[(graphs["call_id"] >= 0).to_numpy() & graphs["sampled"].to_numpy()]
    others = splits[(splits["backend"] != "CPU").to_numpy()]
    calls = max(selection.n_calls, 1)
    if not len(trace.op_walls) or len(splits) < SPLITS_MIN * calls or not len(others):
        return []
    walls = trace.op_walls
    inside = np.zeros(len(trace.graphs), np.int64)
    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy()
    np.add.at(inside, walls["graph_id"].to_numpy(), length)
    wall = (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()
    lost = int(np.maximum(wall - inside[graphs["graph_id"].to_numpy()], 0).sum())
    if lost < STARTING_MIN * spent:
        return []
    each = len(graphs) / calls
    names = sorted(set(others["backend"].astype(str)))
    text = (
        f"{format_percent(lost / spent)} of the calls' time the CPU's threads start and leave: the "
        f"graph is cut into {format_things(round(len(splits) / calls), 'split')} a call between "
        f"CPU and {', '.join(names)}, {each:.0f} of them graphs of the CPU"
    )
    evidence = {
        "splits": Number(len(splits) / calls, "number", "Splits a call."),
        "graphs": Number(each, "number", "Of these, graphs of the CPU, a call."),
        "lost_ns": Number(lost, "ns", "The CPU's graphs less their operators' time."),
        "calls_ns": Number(spent, "ns", "Time of the calls."),
    }
    prize = Prize(lost, selection.n_tokens, spent, "all time in the CPU's graphs between operators")
    tries = "whole layers on one backend, so that the graph is cut less often"
    return [Finding("starting", None, text, tries, selection.description, evidence, prize)]


def _waiting(trace: Trace, selection: Selection, spent: int) -> list[Finding]:
    """The calls are mostly waiting for a backend that computes by itself."""
    time = int(away_times(trace)[2][selection.calls].sum())
    if time < WAITING_MIN * spent or not selection.n_tokens:
        return []
    splits = chosen(trace, trace.splits, selection)
    names = asynchronous_names(splits)
    text = (
        f"{format_percent(time / spent)} of the calls' time is waiting for {names or 'a backend'}: "
        f"{format_ns(time / selection.n_tokens)} a token"
    )
    evidence = {
        "waiting_ns": Number(time, "ns", "Waiting inside of calls, and until results were there."),
        "calls_ns": Number(spent, "ns", "Time of the calls, from begin to results."),
    }
    prize = Prize(time, selection.n_tokens, spent, "all time in waits, as if it took none")
    tries = "more or fewer layers on it (-ngl), and 'profinfer diff' of both runs"
    return [Finding("waiting", None, text, tries, selection.description, evidence, prize)]
