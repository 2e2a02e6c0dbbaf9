"""Layer 8: ``profinfer info``: where, when and how a trace was recorded.

Owns which facts are shown and in what order. Reads the trace file only, builds no tables.
"""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli.options import NO_ENGINE
from profinfer.units import MISSING, format_bytes, format_count, format_ns

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from profinfer.tracefile.metadata import Layout, Plan, TraceMetadata
    from profinfer.tracefile.reader import TraceReader


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For a person or for a program.",
)
def command(trace: Path, form: str) -> None:
    """Print where, when and how TRACE was recorded, and what is missing from it."""
    from profinfer.tracefile.reader import TraceReader

    with TraceReader(trace) as reader:
        if form == "json":
            click.echo(json.dumps(describe(reader), indent=2))
        else:
            from rich.console import Console

            show(reader, Console(highlight=False, soft_wrap=False))


def losses(reader: TraceReader) -> dict[str, int]:
    """What the BPF program could not deliver, by name; zeros are left out."""
    from profinfer.tracefile import schema

    counters = reader.counters
    names = {schema.CNT_LOST + kind: f"{kind.name} records" for kind in schema.Kind}
    names |= {
        schema.CNT_OP_LOST: "operator records in refused batches",
        schema.CNT_NO_SLOT: "operator records of threads beyond the table",
        schema.CNT_UNREADABLE: "tensors or graphs that could not be read",
        schema.CNT_TOO_MANY_NODES: "graphs too long to be read",
    }
    return {name: counters[at] for at, name in names.items() if at < len(counters) and counters[at]}


def describe(reader: TraceReader) -> dict[str, Any]:
    """Everything ``info`` knows, as one JSON object."""
    trailer = reader.trailer
    return {
        "path": str(reader.path),
        "size_bytes": reader.size_bytes,
        "format": f"{reader.version[0]}.{reader.version[1]}",
        "complete": reader.complete,
        "chunks": reader.chunk_counts(),
        "records": {kind.name: count for kind, count in reader.count_by_kind().items()},
        "operator_records": len(reader.ops().ops),
        "duration_ns": duration_ns(reader),
        "losses": losses(reader),
        "missing_records": {kind.name: n for kind, n in reader.missing_records().items()},
        "problems": reader.problems,
        "notes": reader.notes,
        "trailer": trailer.to_json() if trailer else None,
        "metadata": reader.meta.to_json(),
    }


def duration_ns(reader: TraceReader) -> int | None:
    """From the first record to the last one, None without records."""
    ts = reader.records().ts
    return int(ts.max() - ts.min()) if len(ts) else None


def show(reader: TraceReader, console: Console) -> None:
    """Print the same for a person."""
    for title, part in _sections(reader):
        console.rule(title, align="left", characters="─")
        console.print(part)
    problems = reader.problems
    console.rule("Problems", align="left", characters="─")
    for problem in problems:
        console.print(f"- {problem}", markup=False)
    if not problems:
        console.print("none")


def _sections(reader: TraceReader) -> list[tuple[str, RenderableType]]:
    meta = reader.meta
    parts = [
        ("Trace", _pairs(_trace(reader))),
        ("Target", _pairs(_target(reader))),
        ("Host", _pairs(_host(meta))),
        ("Engine", _pairs(_engine(meta))),
        ("Probes", _plain(f"none: {NO_ENGINE}") if meta.nothing_probed else _probes(meta.plan)),
    ]
    if meta.plan.skipped:
        skipped = [(s.function, f"{s.reason or MISSING} ({s.role})") for s in meta.plan.skipped]
        parts.append(("Not probed", _pairs(skipped)))
    counts = {k.name: format_count(n) for k, n in reader.count_by_kind().items()}
    if counts.get("OPS"):
        counts["OPS"] += f"  (batches of {format_count(len(reader.ops().ops))} operator records)"
    parts.append(("Records", _pairs(list(counts.items()) or [("none", "")])))
    lost = [(format_count(count), name) for name, count in losses(reader).items()]
    lost += [
        (format_count(count), f"{kind.name} records sent that the file does not hold")
        for kind, count in reader.missing_records().items()
    ]
    if not reader.counters:
        lost.append(("unknown", "the file holds no counters"))
    parts.append(("Lost", _pairs(lost or [("nothing", "")])))
    if memory := _memory(reader):
        parts.append(("Memory", _pairs(memory)))
    if "recorded" in meta.experts:
        why = f"not recorded: {meta.experts.get('why') or 'unknown'}"
        said = "recorded, where a model has any" if meta.experts["recorded"] is True else why
        parts.append(("Experts", _pairs([("ids", said)])))
    notes = [note for note in reader.notes if note.get("what") != "memory"]
    if notes:
        parts.append(("Notes", _pairs([(_when(n, meta), _note(n)) for n in notes])))
    return parts


def _memory(reader: TraceReader) -> list[tuple[str, str]]:
    """Whether page faults and reads were recorded, readings of sizes, the limit."""
    told = reader.meta.memory
    rows = []
    for name, part in (("page faults", told), ("disk reads", told.get("reads"))):
        if isinstance(part, dict) and "recorded" in part:
            why = f"not recorded: {part.get('why') or 'unknown'}"
            rows.append((name, "recorded" if part["recorded"] is True else why))
    readings = sum(note.get("what") == "memory" for note in reader.notes)
    if readings:
        rows.append(("sizes", f"{readings} readings of /proc"))
    limit = told.get("limit_bytes")
    if isinstance(limit, int):
        rows.append(("limit", f"{format_bytes(limit)}\nfrom {told.get('limit_from')}"))
    return rows


def _trace(reader: TraceReader) -> list[tuple[str, str]]:
    chunks = ", ".join(f"{n} {kind}" for kind, n in reader.chunk_counts().items())
    meta, clock = reader.meta, reader.meta.clock
    start = datetime.fromtimestamp(clock.realtime_ns / 1e9, UTC)
    rows = [
        ("file", str(reader.path)),
        ("size", f"{format_bytes(reader.size_bytes)} in chunks: {chunks or 'none'}"),
        ("format", f"{reader.version[0]}.{reader.version[1]}, by profinfer {meta.profinfer}"),
        ("recorded", meta.created_utc or MISSING),
        ("clock", f"{clock.monotonic_ns} ns monotonic = {start:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("spans", format_ns(duration_ns(reader))),
    ]
    if meta.ring_bytes is not None:
        rows.append(("ring buffer", format_bytes(meta.ring_bytes)))
    if meta.sched.recorded is not None:
        how = f"recorded, {meta.sched.state_from}, {meta.sched.evidence}"
        rows.append(("thread states", how if meta.sched.recorded else f"no: {meta.sched.why}"))
    if meta.limits:
        rows.append(("CPU limits", json.dumps(meta.limits)))
    if meta.options:
        rows.append(("options", json.dumps(meta.options)))
    return rows


def _target(reader: TraceReader) -> list[tuple[str, str]]:
    target, trailer = reader.meta.target, reader.trailer
    rows = [
        ("command", shlex.join(target.argv) or MISSING),
        ("program", target.exe or MISSING),
        ("folder", target.cwd or MISSING),
        ("pid", str(target.pid or MISSING)),
    ]
    if trailer is None:
        return [*rows, ("ended", "unknown: the recording did not finish")]
    ended = trailer.reason or MISSING
    if trailer.exit_signal is not None:
        ended += f", killed by signal {trailer.exit_signal}"
    elif trailer.exit_code is not None:
        ended += f", exit code {trailer.exit_code}"
    rows.append(("ended", ended))
    if trailer.threads:
        names = [f"{name} ({tid})" for tid, name in trailer.threads.items()]
        shown = ", ".join(names[:8]) + (f", {len(names) - 8} more" if len(names) > 8 else "")
        rows.append(("threads", f"{len(names)}: {shown}"))
    return rows


def _calibrated(meta: TraceMetadata) -> str:
    return str(meta.calibration.get("created_utc", ""))


def _host(meta: TraceMetadata) -> list[tuple[str, str]]:
    host = meta.host
    return [
        ("kernel", f"{host.kernel or MISSING} {host.machine or ''}".strip()),
        ("CPU", f"{host.cpu_model or MISSING}, {host.cpus_online or '?'} online"),
        ("memory", f"{format_bytes(host.memory_bytes)}, pages of {format_bytes(host.page_size)}"),
        *([("name", host.hostname)] if host.hostname else []),
        *([("roofs", f"measured {made[:10]}")] if (made := _calibrated(meta)) else []),
    ]


def _engine(meta: TraceMetadata) -> list[tuple[str, str]]:
    engine = meta.engine
    if meta.nothing_probed and not engine.images:
        return [("none", NO_ENGINE)]
    rows = [(name, _because(text, why)) for name, text, why in (
        ("engine", f"{engine.name or MISSING} {engine.version or ''}".strip(), engine.evidence),
        ("layout", _layout(engine.layout), engine.layout.evidence if engine.layout else None),
        ("op names", str(len(engine.ops)), engine.ops_evidence),
        ("types", str(sum(t is not None for t in engine.types)), engine.types_evidence),
    )]  # fmt: skip
    for image in engine.images:
        build = f"build id {image.build_id}" if image.build_id else "no build id"
        rows.append((image.role or "image", f"{image.path}\n{build}"))
    return rows


def _layout(layout: Layout | None) -> str:
    if layout is None:
        return "unknown"
    return f"{layout.id or MISSING}, tensors of {layout.tensor_size} bytes"


def _because(text: str, evidence: str | None) -> str:
    return f"{text}\nfrom {evidence}" if evidence else text


def _probes(plan: Plan) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("id", "role", "function", "instruction", "cost"):
        table.add_column(
            name, justify="right" if name in ("id", "cost") else "left", overflow="fold"
        )
    for probe in plan.probes:
        how = "" if probe.emulated is None else " (emulated)" if probe.emulated else " (stepped)"
        function = f"{probe.function}\n{probe.image or ''}".rstrip()
        if probe.kind == "uretprobe":
            function = f"return of {function}"
        table.add_row(
            str(probe.id),
            probe.role or MISSING,
            _plain(function),
            _plain(f"{probe.insn or MISSING}{how}"),
            format_ns(probe.cost_ns),
        )
    attached_by = plan.extra.get("attached_by")
    how = f", attached by {attached_by}" if attached_by else ""
    table.caption = f"level {plan.level or MISSING}, operators by mode {plan.ops.mode}{how}"
    table.caption_justify = "left"
    return table


def _pairs(rows: list[tuple[str, str]]) -> RenderableType:
    """Name and value, the value folded so that nothing is cut."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=False, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(_plain(name), _plain(value))
    return table


def _plain(text: str) -> RenderableType:
    """Text from outside: no markup in it is obeyed, and bytes that are no UTF-8 are escaped."""
    from rich.text import Text

    return Text(text.encode("utf-8", "backslashreplace").decode())


def _when(note: dict[str, Any], meta: TraceMetadata) -> str:
    ts = note.get("ts")
    if not isinstance(ts, int):
        return MISSING
    return f"+{format_ns(ts - meta.clock.monotonic_ns)}"


def _note(note: dict[str, Any]) -> str:
    rest = {k: v for k, v in note.items() if k not in ("ts", "text")}
    return " ".join(filter(None, (str(note.get("text", "")), json.dumps(rest) if rest else "")))
