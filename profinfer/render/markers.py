"""Layer 7: what a timeline shows beside its threads: rates, tokens, losses, provenance.

Owns the tracks of the process. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pandas as pd

from profinfer.render import limitmarks, memorymarks
from profinfer.render.events import Points, Spans
from profinfer.render.packets import Packets, Track
from profinfer.render.timeline import Timeline, ints

_COMM_LEN = 15  # the kernel keeps that much of a thread's name


def threads_of(timeline: Timeline) -> dict[int, Track]:
    """Thread id -> track, for every thread of any table.

    The thread that calls the engine is the "main thread" when there is one such thread or it is
    the first of the process; the others are workers, numbered as they came to work.
    """
    callers: set[int] = set()
    for table in (timeline.calls, timeline.samples, timeline.splits, timeline.graphs):
        callers.update(np.unique(ints(table, "tid")).tolist())
    seen = callers | set(np.unique(ints(timeline.ops, "tid")).tolist())
    comm = {
        int(tid): str(name)
        for tid, name in zip(timeline.threads["tid"], timeline.threads["name"], strict=True)
        if not pd.isna(name) and str(name)
    }
    first = dict(
        zip(
            ints(timeline.threads, "tid").tolist(),
            ints(timeline.threads, "first_ns").tolist(),
            strict=True,
        )
    )
    process = timeline.recording.process[:_COMM_LEN]
    tracks: dict[int, Track] = {}
    workers = 0
    for tid in sorted(seen, key=lambda t: (t not in callers, first.get(t, 0), t)):
        if tid in callers:
            main = len(callers) == 1 or tid == timeline.recording.pid
            name = "main thread" if main else "calling thread"
        else:
            workers += 1
            name = f"worker {workers}"
        if comm.get(tid, process) != process:
            name += f" ({comm[tid]})"
        tracks[tid] = Track("thread", name, tid)
    return tracks


class Markers:
    """Slices, instants and counter values of the process's own tracks.

    Attributes:
        tracks: profinfer's own, one for each context's generations, and the counters.
        active_track: index of the "active threads" counter.
        spans: the few slices on them.
    """

    def __init__(self, packets: Packets, timeline: Timeline, first_ns: int, last_ns: int) -> None:
        """Collect everything; its size goes with the number of calls and graphs."""
        self._packets = packets
        self._slices: list[tuple[int, int, int, int]] = []
        self._points: list[tuple[int, int, int]] = []
        self.tracks: list[Track] = [Track("profinfer", "profinfer")]
        self._recording(timeline, first_ns, last_ns)
        within = (first_ns, last_ns)
        self._limits(timeline, within)
        self._generations(timeline)
        self._rates(timeline.calls)
        self._series(timeline, within)
        self._points += memorymarks.points(
            packets, timeline.faults, timeline.reads, self._track, within
        )
        self.active_track = self._track("active threads", unit="threads")
        self._points.append((first_ns, self.active_track, packets.count(0)))
        slices = sorted(self._slices)
        begin, end, track, template = np.array(slices, np.int64).reshape(-1, 4).T
        n = len(slices)
        self.spans = Spans(begin, end, track, np.zeros(n, np.int64), template, np.ones(n, bool))
        points = np.array(sorted(self._points), np.int64).reshape(-1, 3)
        self._ts, self._point_track, self._template = points.T
        self._given = 0

    def points(self, until_ns: int) -> Points:
        """The points before ``until_ns`` not given yet."""
        part = slice(self._given, int(np.searchsorted(self._ts, until_ns)))
        self._given = part.stop
        return Points(self._ts[part], self._point_track[part], self._template[part])

    def _track(self, kind: str, tid: int = 0, name: str = "", unit: str | None = None) -> int:
        self.tracks.append(Track(kind, name or kind, tid, len(self.tracks), unit))
        return len(self.tracks) - 1

    def _recording(self, timeline: Timeline, first_ns: int, last_ns: int) -> None:
        """Provenance as one slice over everything; losses as instants within it."""
        about = timeline.recording
        losses = {f"lost.{name}": n for name, n in about.losses.items()}
        facts = {"argv": shlex.join(about.argv), **about.facts, **losses}
        template = self._packets.event("recording", "profinfer", facts, once=True)
        self._slices.append((first_ns, last_ns, 0, template))
        if about.losses:
            lost = self._packets.event("lost", "loss", about.losses, once=True, instant=True)
            self._points.append((last_ns, 0, lost))
        graphs = timeline.graphs
        if len(graphs):
            broken = graphs[~graphs["complete"].to_numpy(dtype=bool)]
            for graph_id, begin in zip(
                ints(broken, "graph_id").tolist(), ints(broken, "begin_ns").tolist(), strict=True
            ):
                template = self._packets.event(
                    "incomplete graph", "loss", {"graph_id": graph_id}, instant=True
                )
                self._points.append((begin, 0, template))

    def _limits(self, timeline: Timeline, within: tuple[int, int]) -> None:
        """When operators were recorded, if not all the time; when the quota was used up."""
        if timeline.windows:
            track = self._track(limitmarks.WINDOWS)
            for begin, end, template in limitmarks.windows(self._packets, timeline.windows, within):
                self._slices.append((begin, end, track, template))
            for ts, template in limitmarks.switches(self._packets, timeline.windows, within):
                self._points.append((ts, track, template))
        hits = list(limitmarks.throttled(self._packets, timeline, within))
        if hits:
            track = self._track(limitmarks.QUOTA)
            self._points += [(ts, track, template) for ts, template in hits]

    def _series(self, timeline: Timeline, within: tuple[int, int]) -> None:
        for series in timeline.series:
            steps = series.steps(*within)
            if not len(steps.ts):
                continue
            track = self._track(series.name, unit=series.unit)
            for ts, value in zip(steps.ts.tolist(), steps.value.tolist(), strict=True):
                whole = value.is_integer()
                template = self._packets.count(int(value)) if whole else self._packets.rate(value)
                self._points.append((ts, track, template))

    def _generations(self, timeline: Timeline) -> None:
        """Each prompt as two slices: until its first token, and while its tokens were decoded."""
        table, calls = timeline.generations, timeline.calls
        decoding = calls.loc[calls["token_index"] >= 0, ["ctx", "seq"]]
        owners = pd.concat([table[["ctx", "seq"]], decoding]).drop_duplicates()
        contexts = owners["ctx"].drop_duplicates().tolist()
        tracks = {}
        for number, (ctx, seq) in enumerate(owners.itertuples(index=False)):
            words = [f"context {contexts.index(ctx)}"] if len(contexts) > 1 else []
            words += [f"sequence {seq}"] if len(owners) > len(contexts) else []
            name = f"generation ({', '.join(words)})" if words else "generation"
            tracks[ctx, seq] = self._track("generation", number, name)
        rows: list[Any] = list(table.itertuples(index=False))
        for row in rows:
            track, end, begin = tracks[row.ctx, row.seq], int(row.end_ns), int(row.begin_ns)
            about: dict[str, int | float] = {"generation": int(row.generation)}
            if not pd.isna(row.ttft_ns):
                args = about | {
                    "prompt_tokens": int(row.prompt_tokens),
                    "ttft_ms": row.ttft_ns / 1e6,
                }
                first = begin + int(row.ttft_ns)
                template = self._packets.event("TTFT", "generation", args)
                self._slices.append((begin, first, track, template))
                instant = self._packets.event("first token", "generation", args, instant=True)
                self._points.append((first, track, instant))
                begin = first
            if row.output_tokens and end > begin:
                template = self._packets.event(
                    "decoding", "generation", about | {"tokens": int(row.output_tokens)}
                )
                self._slices.append((begin, end, track, template))
        self._tokens(timeline.calls, tracks)

    def _tokens(self, calls: pd.DataFrame, tracks: dict[tuple[int, int], int]) -> None:
        """Each decode step of one sequence as an instant, with its time per output token."""
        columns = ("ctx", "seq", "generation", "token_index", "begin_ns", "done_ns")
        ends: dict[tuple[int, ...], int] = {}
        for ctx, seq, generation, index, begin, end in zip(
            *(calls[c].tolist() for c in columns), strict=True
        ):
            if index < 0 or generation < 0 or end < begin or (ctx, seq) not in tracks:
                continue
            ends[ctx, seq, generation, index] = end
            args: dict[str, int | float] = {"generation": generation}
            before = ends.pop((ctx, seq, generation, index - 1), None)
            if before is not None:
                args["tpot_ms"] = (end - before) / 1e6
            template = self._packets.event(
                f"token #{index}", "generation", args, once=True, instant=True
            )
            self._points.append((end, tracks[ctx, seq], template))

    def _rates(self, calls: pd.DataFrame) -> None:
        """Tokens per second: of each decode step when it is done, of each prefill until it is."""
        decode_track = self._track("decode tok/s", unit="tok/s")
        prefill_track = self._track("prefill tok/s", unit="tok/s")
        begin, end, n = ints(calls, "begin_ns"), ints(calls, "done_ns"), ints(calls, "n_tokens")
        ctx, decoded = ints(calls, "ctx"), ints(calls, "n_decoded")
        read = np.where(calls["phase"].isin(("prefill", "mixed")), n - decoded, 0)
        previous: dict[int, int] = {}  # context -> row of its last decode
        zero = self._packets.rate(0.0)
        for i in np.argsort(begin, kind="stable").tolist():
            key = int(ctx[i])
            before = previous.get(key)
            if before is not None and not decoded[i]:
                self._points.append((int(begin[i]), decode_track, zero))
                del previous[key]
            if end[i] <= begin[i]:
                continue
            if decoded[i]:
                if before is not None and end[i] > end[before]:
                    rate = 1e9 * float(decoded[i]) / float(end[i] - end[before])
                    self._points.append((int(end[i]), decode_track, self._packets.rate(rate)))
                previous[key] = i
            if read[i] > 0:
                rate = 1e9 * float(read[i]) / float(end[i] - begin[i])
                self._points.append((int(begin[i]), prefill_track, self._packets.rate(rate)))
                self._points.append((int(end[i]), prefill_track, zero))
