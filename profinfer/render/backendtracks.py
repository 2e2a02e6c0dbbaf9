"""Layer 7: other backends on a timeline: a track each, with flows from what gave them work.

Owns the tracks of backends, of copies between them, of waits and messages, and of a server that was
recorded too. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from profinfer.analysis.backends import chosen, labels
from profinfer.analysis.backendwork import wire
from profinfer.errors import UsageProblem
from profinfer.render.events import Spans
from profinfer.render.packets import Packets, Track
from profinfer.units import format_bytes

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace

_RANK = 500  # below the threads
_LEVEL = 200  # what begins a flow at the same moment on a thread comes first
_SLOWEST_NS = 1_000_000_000  # until a server begins what it was told
_SPLIT_FLOW, _COMMAND_FLOW = 1 << 40, 2 << 40


@dataclass(frozen=True)
class BackendEvents:
    """What is drawn of backends, table by table; each has begin_ns, end_ns, track, name and flow.

    ``track`` names the row that a slice stands in, ``flow`` the flow that begins or ends at it,
    -1 for none; further columns become arguments.
    """

    tables: dict[str, pd.DataFrame]


def split_flow(split_id: int) -> int:
    """Id of the flow from a split's submission to the backend's own span."""
    return _SPLIT_FLOW + split_id


def backend_events(
    trace: Trace, selection: Selection | None = None, server: Trace | None = None
) -> BackendEvents:
    """The events of a trace, or of its selected calls.

    Args:
        trace: the recording.
        selection: which calls; None for all.
        server: a recording of the RPC server that it spoke to, on the same machine.

    Raises:
        UsageProblem: the server ran on another machine, whose clock is another, or it is none
            that the recorded program spoke to.
    """
    pick: Callable[[pd.DataFrame], pd.DataFrame] = (
        (lambda table: table) if selection is None else lambda t: chosen(trace, t, selection)
    )
    tables = {
        "busy": _busy(pick(trace.splits)),
        "copies": _copies(pick(trace.copies)),
        "waits": _waits(pick(trace.syncs)),
    }
    messages, served = _messages(trace), _served(trace)
    theirs = None
    if server is not None:
        _same_clock(trace, server)
        theirs = _served(server)
        _spoke(trace, server, messages, theirs)
    if selection is not None:
        messages, served = messages.iloc[:0], served.iloc[:0]
    if server is not None and theirs is not None:
        messages, theirs = _joined(messages, theirs)
        target = server.meta.target
        name = f"{(target.exe or 'server').rpartition('/')[2]} (pid {target.pid})"
        theirs["track"] = f"{name}: serving"
        served = pd.concat([served, theirs, _graphs(server, name)], ignore_index=True)
    return BackendEvents(tables | {"messages": messages, "served": served})


def _table(source: pd.DataFrame, track: object, name: object, flow: object = -1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "begin_ns": source["begin_ns"],
            "end_ns": source["end_ns"],
            "track": track,
            "name": name,
            "flow": flow,
        }
    )


def _busy(splits: pd.DataFrame) -> pd.DataFrame:
    """From submission until done; what is queued behind another begins when that one is done."""
    mine = splits[(splits["outermost"] & (splits["backend"] != "CPU")).to_numpy()]
    mine = mine.sort_values("begin_ns", kind="stable")
    nodes = mine["n_nodes"].astype(str)
    track = "backend " + labels(mine)
    out = _table(mine, track, nodes + " nodes", split_flow(0) + mine["split_id"].astype(np.int64))
    out["end_ns"] = mine["done_ns"].where(mine["done_ns"] >= 0, mine["end_ns"])
    out["ends"] = True
    before = out.groupby("track")["end_ns"].transform(
        lambda ends: ends.cummax().shift(fill_value=0)
    )
    out["begin_ns"] = np.maximum(out["begin_ns"], before)
    out["end_ns"] = np.maximum(out["end_ns"], out["begin_ns"])
    return out.assign(
        split_id=mine["split_id"], submit_us=(mine["end_ns"] - mine["begin_ns"]) / 1e3
    )


def _copies(copies: pd.DataFrame) -> pd.DataFrame:
    mine = copies[(copies["outermost"] & copies["crosses"]).to_numpy()]
    size = [format_bytes(n) for n in mine["bytes"].tolist()]
    way = mine["source"].astype(str) + " to " + mine["target"].astype(str)
    track = "copies " + way + _of_thread(mine)
    name = mine["tensor"].astype(str) + pd.Series([f" ({s})" for s in size], mine.index, dtype=str)
    return _table(mine, track, name).assign(
        bytes=mine["bytes"], type=mine["type"].astype(str), function=mine["function"].astype(str)
    )


def _waits(syncs: pd.DataFrame) -> pd.DataFrame:
    mine = syncs[(syncs["backend"] != "CPU").to_numpy()]
    name = mine["backend"].astype(str)
    return _table(mine, "waits for " + name + _of_thread(mine), "wait for " + name)


def _of_thread(table: pd.DataFrame) -> pd.Series[str] | str:
    """Threads have rows of their own, if there are several: their slices could overlap."""
    if table["tid"].nunique() < 2:
        return ""
    return " (thread " + table["tid"].astype(str) + ")"


def _messages(trace: Trace) -> pd.DataFrame:
    """A client's messages, their pieces joined, and the answers that it waited for."""
    work = wire(trace)
    if (work["kind"] == "serve").any():
        work = work.iloc[:0]
    number = work["starts"].cumsum().rename("number")
    sent = work[(work["kind"] == "send").to_numpy()]
    grouped = sent.groupby([sent["tid"], number[sent.index]])
    out = grouped.agg(
        begin_ns=("begin_ns", "min"),
        end_ns=("end_ns", "max"),
        bytes=("bytes", "sum"),
        command=("message", "first"),
    ).reset_index()
    got = work[(work["kind"] == "recv").to_numpy()]
    got = pd.DataFrame(
        {
            "tid": got["tid"],
            "begin_ns": got["begin_ns"],
            "end_ns": got["end_ns"],
            "bytes": got["bytes"],
            "command": "answer to " + got["message"].astype(str),
        }
    )
    both = pd.concat([out.drop(columns="number"), got], ignore_index=True)
    both = both.sort_values("begin_ns", kind="stable").reset_index(drop=True)
    track = "RPC connection" + _of_thread(both)
    return _table(both, track, both["command"].astype(str)).assign(
        bytes=both["bytes"], command=both["command"].astype(str)
    )


def _served(trace: Trace) -> pd.DataFrame:
    work = trace.backend_work
    mine = work[(work["kind"] == "serve").to_numpy()].sort_values("begin_ns", kind="stable")
    command = mine["command"].astype(str)
    return _table(mine, "serving" + _of_thread(mine), command).assign(command=command)


def _graphs(server: Trace, name: str) -> pd.DataFrame:
    graphs = server.graphs
    nodes = graphs["n_nodes"].astype(str)
    return _table(graphs, f"{name}: graphs", "graph (" + nodes + " nodes)")


def _joined(messages: pd.DataFrame, served: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flows from each message to what the server did: the n-th of a command, from the end.

    One of the two recordings may have begun later, so they are counted from the end.
    """
    ours, theirs = np.full(len(messages), -1), np.full(len(served), -1)
    at = 0
    for command in sorted(set(messages["command"]) & set(served["command"])):
        mine = np.flatnonzero((messages["command"] == command).to_numpy())
        its = np.flatnonzero((served["command"] == command).to_numpy())
        n = min(len(mine), len(its))
        ours[mine[len(mine) - n :]] = theirs[its[len(its) - n :]] = (
            _COMMAND_FLOW + at + np.arange(n)
        )
        at += n
    return messages.assign(flow=ours), served.assign(flow=theirs, ends=True)


def _same_clock(trace: Trace, server: Trace) -> None:
    def boot(t: Trace) -> int:
        return (t.meta.clock.realtime_ns - t.meta.clock.monotonic_ns) // 10**9

    if (
        trace.meta.host.hostname != server.meta.host.hostname
        or abs(boot(trace) - boot(server)) > 60
    ):
        raise UsageProblem(
            f"{server.path} was recorded on another machine, or before a reboot: "
            "the two clocks cannot be joined",
            "record both on one machine, over loopback",
        )


def _spoke(trace: Trace, server: Trace, messages: pd.DataFrame, served: pd.DataFrame) -> None:
    """Refuse a server that none of the messages can have gone to."""
    if not len(served):
        raise UsageProblem(
            f"{server.path} is no recording of an RPC server: it served no command",
            "leave out --with, or profinfer record -o server.pf -- rpc-server ...",
        )
    if not len(messages):
        raise UsageProblem(
            f"{trace.path} sent nothing to an RPC server: {server.path} cannot be joined to it",
            "leave out --with",
        )
    apart = (
        messages["begin_ns"].min() > served["end_ns"].max()
        or messages["end_ns"].max() + _SLOWEST_NS < served["begin_ns"].min()
    )
    if apart or not set(messages["command"]) & set(served["command"]):
        why = "at another time" if apart else "of other commands"
        raise UsageProblem(
            f"{server.path} is a recording {why}: no message of {trace.path} went there",
            "leave out --with, or the recording of the server made at the same time",
        )


class BackendSlices:
    """The tracks and slices of ``BackendEvents``.

    Attributes:
        tracks: one for each row that has anything.
        spans: all slices.
    """

    def __init__(
        self,
        packets: Packets,
        events: BackendEvents | None,
        first_track: int,
        within: tuple[int, int],
    ) -> None:
        """Collect everything; ``within`` are the first and last time of the timeline, ns."""
        self.tracks: list[Track] = []
        found: dict[str, int] = {}
        rows: list[tuple[int, int, int, int]] = []
        for kind, table in events.tables.items() if events else ():
            for begin, end, name, template in _slices(packets, kind, table, within):
                if name not in found:
                    found[name] = len(self.tracks)
                    self.tracks.append(Track(name, name, rank=_RANK + len(found)))
                rows.append((begin, end, found[name] + first_track, template))
        rows.sort(key=lambda row: (row[2], row[0]))
        data = np.array(rows, np.int64).reshape(-1, 4)
        flat = np.full(len(rows), _LEVEL)
        self.spans = Spans(
            data[:, 0], data[:, 1], data[:, 2], flat, data[:, 3], np.zeros(len(rows), np.bool_)
        )


_FRAME = ("begin_ns", "end_ns", "track", "name", "flow", "ends", "command")


def _slices(
    packets: Packets, kind: str, table: pd.DataFrame, within: tuple[int, int]
) -> Iterator[tuple[int, int, str, int]]:
    """Begin, end, track and template of each row inside ``within``; none overlaps on a track."""
    inside = (table["begin_ns"] >= within[0]) & (table["end_ns"] <= within[1])
    table = table[inside.to_numpy()].sort_values(["track", "begin_ns"], kind="stable")
    extra = [c for c in table.columns if c not in _FRAME]
    after: dict[str, int] = {}
    ends = bool("ends" in table and len(table) and table["ends"].all())
    columns = ["begin_ns", "end_ns", "track", "name", "flow", *extra]
    for begin, end, track, name, flow, *values in zip(
        *(table[c].tolist() for c in columns), strict=True
    ):
        begin = max(begin, after.get(track, 0))
        after[track] = end = max(end, begin)
        ids = (int(flow),) if flow >= 0 else ()
        template = packets.event(
            name,
            kind,
            dict(zip(extra, values, strict=True)),
            once=True,
            flows=() if ends else ids,
            ends=ids if ends else (),
        )
        yield begin, end, track, template
