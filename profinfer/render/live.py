"""Layer 7: the live view as lines of a terminal, and as JSON. Computes and prints nothing.

Must not import the command line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text

from profinfer.analysis.live import LiveView, Row, ThreadRow
from profinfer.units import format_bytes, format_ns, format_percent, format_rate, format_things

SCHEMA = "profinfer.top/1"
_LABEL = 9
_BAR = "█"
_DOTS = "░"


@dataclass(frozen=True)
class About:
    """What is known of the target and of the recorder, beside the view.

    Attributes:
        title: program, pid and model.
        elapsed_s: since the recording began.
        calls: since then.
        tokens: since then.
        mean_tps: decode steps a second of decode calls since then, None without any.
        cost: of the probes, share of the calls' time in the interval, None if it is not known.
        limit: that it is kept below, None without one.
        lost: events since the begin.
        rss: resident bytes, and file: of files, None if they are not known.
        own_cpu: CPUs that profinfer itself used in the interval, recorder and view.
        end: what ends it.
    """

    title: str
    elapsed_s: float
    calls: int
    tokens: int
    mean_tps: float | None
    cost: float | None
    limit: float | None
    lost: int
    rss: int | None
    file: int | None
    own_cpu: float
    end: str


def lines(view: LiveView, about: About, width: int, height: int) -> list[Text]:
    """The view, at most ``height`` lines of at most ``width`` characters."""
    out = [_title(about, width), *_numbers(view, about, width), Text("")]
    tail = [Text(about.end[:width], style="dim")] if about.end else []
    room = max(height - len(out) - len(tail), 0)
    # Title and rows of threads with an empty line before them: a third of the room at most.
    threads = min(len(view.threads), max(room // 3 - 2, 0))
    if threads:
        block = [Text(""), *_threads(view.threads, width, threads)]
        out += [*_operators(view, width, max(room - len(block) - 2, 1)), *block]
    else:
        out += _operators(view, width, max(room - 2, 1))
    return [*out[: height - len(tail)], *tail]


def _title(about: About, width: int) -> Text:
    minutes, seconds = divmod(int(about.elapsed_s), 60)
    clock = f"{minutes}:{seconds:02d}"
    room = width - len(clock) - 1
    title = about.title if len(about.title) <= room else about.title[: room - 1] + "…"
    return Text(title.ljust(room) + " " + clock, style="bold")


def _line(label: str, parts: list[str], width: int) -> Text:
    text = Text(f"{label:<{_LABEL}}", style="dim")
    said = ""
    for part in parts:
        more = part if not said else f"   {part}"
        if _LABEL + len(said) + len(more) <= width:
            said += more
    return text.append(said, style="default")


def _numbers(view: LiveView, about: About, width: int) -> list[Text]:
    speed = [f"{format_rate(view.tps, 'tok')} now"]
    if about.mean_tps is not None:
        speed.append(f"{format_rate(about.mean_tps, 'tok')} mean")
    if view.tpot_p50_ns is not None:
        speed.append(f"TPOT {format_ns(view.tpot_p50_ns)}, p90 {format_ns(view.tpot_p90_ns)}")
    state = [view.state if about.calls else "no call yet"]
    if view.state == "idle" and view.idle_ns and about.calls:
        state = [f"idle for {format_ns(view.idle_ns)}"]
    if view.sequences > 1:
        state.append(f"{view.sequences} sequences")
    if view.prefill_tps:
        state.append(f"prompts {format_rate(view.prefill_tps, 'tok')}")
    state += [f"{about.tokens:,} tokens", f"{about.calls:,} calls"]
    memory = []
    if about.rss is not None:
        memory.append(f"{format_bytes(about.rss)} resident")
        if about.file is not None:
            memory.append(f"{format_bytes(about.file)} of files")
    limit = "" if about.limit is None else f", limit {100 * about.limit:g} %"
    cost = "not known yet" if about.cost is None else format_percent(about.cost)
    probes = [f"cost {cost}{limit}", f"{about.lost:,} LOST" if about.lost else "none lost"]
    probes.append(f"profinfer uses {100 * about.own_cpu:.0f} % of a CPU")
    out = [_line("decode", speed, width), _line("state", state, width)]
    if memory:
        out.append(_line("memory", memory, width))
    return [*out, _line("probes", probes, width)]


def _operators(view: LiveView, width: int, most: int) -> list[Text]:
    if view.phase is None:
        return [Text("no operators: none ran in this window, or they are not recorded")]
    scope = f"operators seen in {view.seen:,} of {format_things(view.of_tokens, 'token')}"
    scope += f" of the last {format_ns(view.window_ns)}"
    head = f"{view.phase} by {view.by}"
    title = Text(head, style="bold").append(f"  {scope}"[: width - len(head)], "dim")
    if not view.rows:
        return [title, Text("  none in this window")]
    name = min(max(len(r.name) for r in view.rows), 20)
    rows = view.rows if len(view.rows) <= most else view.rows[: max(most - 1, 1)]
    bar = width - name - 34
    top = max(r.share for r in view.rows)
    out = [title]
    out += [_row(r, name, bar, top) for r in rows]
    if rest := view.rows[len(rows) :]:
        share = sum(r.share for r in rest)
        out.append(Text(f"  {len(rest)} more: {format_percent(share)}", style="dim"))
    return out


def _row(row: Row, name: int, bar: int, top: float) -> Text:
    wait = "" if math.isnan(row.wait_share) else f"wait {100 * row.wait_share:4.1f} %"
    text = Text(f"  {row.name[:name]:<{name}} {format_ns(row.per_token_ns):>8}/tok")
    text.append(f" {100 * row.share:3.0f} % ")
    if bar > 3:
        length = round(bar * row.share / top) if top else 0
        text.append((_BAR * length).ljust(bar), style="cyan")
    return text.append(f" {wait}", style="dim")


def _threads(rows: list[ThreadRow], width: int, most: int) -> list[Text]:
    out = [Text("threads", style="bold").append("  █ computing  ░ waiting", "dim")]
    name = min(max(len(f"{r.name} {r.tid}") for r in rows), 26, max(width - 44, 8))
    bar = max(width - name - 38, 6)
    shown = sorted(rows, key=lambda r: -(r.compute + r.wait))[:most]
    for row in shown:
        text = Text(f"  {f'{row.name} {row.tid}'[:name]:<{name}} ")
        full, dots = round(bar * row.compute), round(bar * row.wait)
        text.append(_BAR * full, style="green").append(_DOTS * dots, style="yellow")
        text.append(" " * max(bar - full - dots, 0))
        said = f" {100 * row.compute:3.0f} %, wait {100 * row.wait:3.0f} %"
        if not math.isnan(row.on_cpu):
            said += f", on a CPU {100 * row.on_cpu:3.0f} %"
        out.append(text.append(said))
    if len(rows) > len(shown):
        out.append(Text(f"  {len(rows) - len(shown)} more threads", style="dim"))
    return out


def as_object(view: LiveView, about: About) -> dict[str, Any]:
    """One look as a JSON object; numbers in the units of their names, NaN as null."""
    told: dict[str, Any] = {"schema": SCHEMA, **asdict(about), **asdict(view)}
    del told["end"]
    told["ops"] = told.pop("rows")
    cleaned: dict[str, Any] = _without_nan(told)
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else round(value, 6)
    return value
