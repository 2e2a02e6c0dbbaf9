"""Layer 8: what the sections of ``report --html`` are made from. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from profinfer.analysis import operators
from profinfer.analysis.devicetimes import DeviceTimes
from profinfer.analysis.result import Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.render.html import operatorfigures
from profinfer.render.html.charts import Chart
from profinfer.render.html.section import Fold

Part = Chart | Result | Fold


@dataclass(frozen=True)
class Source:
    """What sections are made from.

    Attributes:
        trace: the trace.
        selections: one per phase that is reported, the main one first.
        narrowed: only a part of each graph is wanted.
        colours: colour of each role.
        device_times: what the engine's own profiler wrote, None without.
    """

    trace: Trace
    selections: list[Selection]
    narrowed: bool
    colours: dict[str, int] = field(default_factory=dict)
    device_times: DeviceTimes | None = None

    @property
    def main(self) -> Selection:
        """The phase that charts are of."""
        return self.selections[0]

    @property
    def has_ops(self) -> bool:
        """Operators were recorded."""
        return len(self.trace.ops) > 0


def source(
    trace: Trace, selections: list[Selection], narrowed: bool, times: DeviceTimes | None = None
) -> Source:
    """Give every role its colour, slowest first."""
    colours = {}
    if len(trace.ops) and selections:
        by_role = operators.by(trace, selections[0], "role")
        colours = operatorfigures.tones([str(r) for r in by_role.frame["role"]])
    return Source(trace, selections, narrowed, colours, times)


def parts_of(*parts: Part | None) -> list[Part]:
    """Those that there are."""
    return [p for p in parts if p is not None]
