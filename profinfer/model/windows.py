"""Layer 5: when the operators' probes were in place, and which graphs were recorded with them.

A recorder that has to keep a limit takes these probes away for a while. What lies inside such a
pause, or across its edge, is no loss: it is left out of every view of operators. Must not import
the analyses or above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.model.visits import Events, Visits

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """A stretch of time with operators' probes in place.

    Attributes:
        begin_ns: the probes were all there; the smallest integer from the recording's begin.
        end_ns: they began to go; the largest integer if they stayed.
        began, ended: why, as the recorder said it; "" at the recording's two ends.
    """

    begin_ns: int
    end_ns: int
    began: str = ""
    ended: str = ""


def windows(documents: Iterable[Any]) -> list[Window]:
    """All windows of a recording, from its NOTEs; none if the probes were never taken away."""
    limits = np.iinfo(np.int64)
    out: list[Window] = []
    begin, began, on, switched = int(limits.min), "", True, False
    for note in documents:
        level, ts = note.get("level"), note.get("ts")
        if note.get("what") != "level" or level not in ("op", "graph") or type(ts) is not int:
            continue
        switched = True
        why = str(note.get("why", ""))
        if level == "graph" and on:
            out.append(Window(begin, ts, began, why))
        elif level == "op" and not on:
            begin, began = ts, why
        on = level == "op"
    if switched and on:
        out.append(Window(begin, int(limits.max), began))
    return out


def limit_missed(documents: Iterable[Any]) -> str:
    """Why a limit could not be kept, as the recorder said it at its end; "" if it could."""
    found = [note for note in documents if note.get("what") == "limit missed"]
    return str(found[-1].get("why", "")) if found else ""


def inside(begin: I64, end: I64, of: list[Window]) -> Mask:
    """Mask of the spans that lie in one window; of all of them where there are no windows."""
    if not of:
        return np.ones(len(begin), bool)
    opens = np.array([w.begin_ns for w in of], np.int64)
    closes = np.array([w.end_ns for w in of], np.int64)
    at = np.searchsorted(opens, begin, side="right") - 1
    out: Mask = (at >= 0) & (end <= closes[at])
    return out


def leave_out(
    events: Events, visits: Visits, sampled: Mask, of: list[Window]
) -> tuple[Events, Visits]:
    """Take away what was recorded of graphs that are not sampled.

    Args:
        events: operator records; their kinds are changed in place.
        visits: their visits.
        sampled: by graph.
        of: the windows.
    """
    if not of and sampled.all():
        return events, visits
    first = events.ts[visits.start] if len(visits.start) else np.zeros(0, np.int64)
    known = visits.graph >= 0
    drop = np.where(known, ~np.r_[sampled, True][visits.graph], ~inside(first, first, of))
    events.kind[drop[events.visit]] = 0
    return events, replace(visits, graph=np.where(drop, np.int32(-1), visits.graph))
