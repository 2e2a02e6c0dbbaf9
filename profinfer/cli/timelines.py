"""Layer 8: from what was asked for to the timeline of a trace, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from profinfer.cli import options as shared
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.cli.timelineoptions import ExportOptions
    from profinfer.model.trace import Trace
    from profinfer.render.perfetto import Written
    from profinfer.render.timeline import Timeline

MOST_FLOWS = 400_000  # operators with flows; each gets a packet of its own


@dataclass(frozen=True)
class Chosen:
    """A timeline to be written.

    Attributes:
        timeline: what is drawn.
        said: lines about what is missing, from the recording or by choice.
    """

    timeline: Timeline
    said: tuple[str, ...]

    def about(self, written: Written) -> Iterator[str]:
        """Lines about what did not come out as it was recorded."""
        if written.orphans:
            yield f"warning: {written.orphans:,} operators of unknown graphs were left out"
        if written.adjusted:
            yield f"note: {written.adjusted:,} slices were cut to fit into the slice around them"
        if written.short:
            yield f"note: {written.short:,} operators and waits were too short and left out"


class _Counting:
    """A file that only knows its size."""

    def write(self, data: bytes) -> int:
        return len(data)


def chosen(options: ExportOptions) -> Chosen:
    """Open the trace and narrow its timeline.

    Raises:
        ProfinferError: the trace cannot be read, or there is nothing to draw.
        UsageProblem: nothing is selected, or too much.
    """
    from profinfer.model.trace import Trace

    trace = Trace.open(options.trace)
    timeline = _selected(trace, options)
    said = [f"warning: {problem}" for problem in trace.problems]
    if timeline.recording.losses:
        lost = ", ".join(f"{name} {n:,}" for name, n in timeline.recording.losses.items())
        said.append(f"warning: the recording is not whole: {lost}")
    if options.threads:
        timeline = _of_threads(timeline, options.threads, options.trace)
    timeline = replace(timeline, min_ns=options.min_ns)
    if options.flows:
        timeline = _with_flows(trace, timeline)
    if options.max_bytes is not None:
        timeline, left_out = _fitted(timeline, options.max_bytes)
        said += [f"note: left out to stay below the size: {left_out}"] if left_out else []
    return Chosen(timeline, tuple(said))


def _selected(trace: Trace, options: ExportOptions) -> Timeline:
    from profinfer.render.timeline import Timeline

    selection = None
    phase = None if options.phase == "all" else options.phase
    if phase is not None or options.tokens is not None:
        selection = trace.select(phase=phase, tokens=options.tokens, unsampled=True)
        if selection.empty:
            raise UsageProblem(
                f"nothing to export: {options.trace} has no such calls ({selection.description})",
                f"profinfer report {options.trace}, to see what there is",
            )
    timeline = Timeline.of_trace(trace, selection)
    if timeline.empty and trace.meta.nothing_probed:
        raise ProfinferError(
            f"nothing to export: {options.trace} holds no call and no graph: {shared.NO_ENGINE}",
            "record it again, until the program has generated something",
        )
    if timeline.empty:
        raise ProfinferError(
            f"nothing to export: {options.trace} holds no call and no graph",
            f"profinfer info {options.trace}, to see how it was recorded",
        )
    return timeline


def _of_threads(timeline: Timeline, words: tuple[str, ...], path: Path) -> Timeline:
    """Operators of the threads that the words name."""
    from profinfer.render.markers import threads_of
    from profinfer.render.narrowing import of_threads

    # "worker 1 (comm)" answers to worker1, and "main thread" to main.
    names = {
        tid: track.name.partition(" (")[0].removesuffix(" thread").replace(" ", "")
        for tid, track in threads_of(timeline).items()
    }
    wanted: set[int] = set()
    for word in words:
        found = {tid for tid, name in names.items() if word in (name, str(tid))}
        if word == "workers":
            found = {tid for tid, name in names.items() if name.startswith("worker")}
        if not found:
            there = ", ".join(f"{name} ({tid})" for tid, name in names.items())
            raise UsageProblem(f"{path} has no thread {word}; it has {there}", "--threads main")
        wanted |= found
    return of_threads(timeline, wanted)


def _with_flows(trace: Trace, timeline: Timeline) -> Timeline:
    if len(timeline.ops) > MOST_FLOWS:
        raise UsageProblem(
            f"flows of {len(timeline.ops):,} operators would be far too many",
            "--flows --tokens 10",
        )
    producers: dict[int, tuple[int, ...]] = {}
    for def_id in sorted({int(d) for d in timeline.graphs["def_id"] if d >= 0}):
        producers |= trace.producers(def_id)
    return replace(timeline, producers=producers)


def _fitted(timeline: Timeline, limit: int) -> tuple[Timeline, str | None]:
    from typing import BinaryIO, cast

    from profinfer.render.narrowing import TooLarge, fit
    from profinfer.render.perfetto import write
    from profinfer.units import format_bytes

    def size_of(part: Timeline) -> int:
        return write(part, cast(BinaryIO, _Counting())).bytes

    try:
        fitted = fit(timeline, limit, size_of)
    except TooLarge as error:
        raise UsageProblem(
            f"the calls alone, without any operator, take {format_bytes(error.least)}",
            "a larger --max-size, or a part with --tokens A:B",
        ) from error
    return fitted.timeline, fitted.left_out
