"""Layer 5: from when to when the target ran while it was recorded, and how that is known.

Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from profinfer.tracefile.metadata import TraceMetadata, Trailer


@dataclass(frozen=True)
class Life:
    """The stretch of time that a recording covers.

    Attributes:
        begin_ns: the target was let go at its gate; or the recording of a running one began.
        end_ns: it had ended; or the recording had.
        whole: from exec to exit, and not a part of it.
        doubt: begin, end, or both, if taken from the recording because nothing noted them.
        held: stretches in which the target stood still for the recorder, (begin, end).
    """

    begin_ns: int
    end_ns: int
    whole: bool
    doubt: str = ""
    held: tuple[tuple[int, int], ...] = ()


def life(
    notes: Iterable[Any],
    meta: TraceMetadata,
    trailer: Trailer | None,
    *,
    excerpt: bool,
    first_ns: int,
    last_ns: int,
) -> Life:
    """From the recorder's notes; without them, from the header, the trailer and the records.

    Args:
        notes: payloads of the NOTE chunks.
        meta: of the trace.
        trailer: of the trace, None if it did not finish.
        excerpt: the target ran before the recording began, or after it ended.
        first_ns: the first record.
        last_ns: the last one.
    """
    told: dict[str, int] = {}
    held = []
    for note in notes:
        what, ts = note.get("what"), note.get("ts")
        if type(ts) is not int:
            continue
        if what in ("exec", "exit"):
            told[what] = ts
        elif what == "held" and type(note.get("since")) is int:
            held.append((int(note["since"]), ts))
    doubts = []
    since = meta.options.get("attached_ns")
    begin = since if isinstance(since, int) else told.get("exec")
    if begin is None:
        begin = min(meta.clock.monotonic_ns or first_ns, first_ns)
        doubts.append("begin")
    end = told.get("exit")
    if end is None:
        end = trailer.ended_ns if trailer is not None else None
        if not excerpt:
            doubts.append("end")
    end = max(end if end is not None else last_ns, begin)
    whole = "exec" in told and "exit" in told and not excerpt
    return Life(begin, end, whole, " and ".join(doubts), tuple(held))
