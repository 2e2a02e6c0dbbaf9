"""Layer 8: ``profinfer dump``: the raw records, one a line, in stream order.

Owns the text form of a record. It is the oracle of the tests: nothing is joined, sorted or left
out, and the same file always gives the same text. JSON chunks stand where they were written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from profinfer.tracefile.reader import TraceReader

_KINDS = """CALL_BEGIN CALL_END SAMPLE_BEGIN SAMPLE_END SPLIT_BEGIN SPLIT_END GRAPH_BEGIN GRAPH_END
OPS PTRS TENSOR BUFFER THREAD WARMUP SEQS SCHED COUNTS FAULT READ EXPERTS COPY_BEGIN SYNC_BEGIN
WORK_BEGIN BACKEND_END REQUEST UPDATE LOSS NOTE TRAILER""".split()
_HEX = {"ctx", "backend", "cgraph", "get_name", "addr", "data", "buffer", "view_src", "last"}
_HEX |= {"from", "to", "src_owner", "dst_owner"}
_HIDDEN = {"kind", "flags", "tid", "ts", "pad"}
# Names of flag bits, by kind.
_FLAGS = {
    "CALL_BEGIN": ("ENCODE",),
    "GRAPH_BEGIN": ("CHANGED", "PARTIAL", "NO_OPS"),
    "OPS": ("LAST", "COMPACT"),
    "PTRS": ("LEAFS",),
    "SEQS": ("CUT",),
    "SCHED": ("OUT", "IN", "WAKE", "NEW", "PREEMPT", "KERNEL"),
    "FAULT": ("MAJOR",),
    "READ": ("WRITE",),
    "SPLIT_BEGIN": ("CHANGED", "PARTIAL", "READ"),
    "COPY_BEGIN": ("ASYNC",),
    "SYNC_BEGIN": ("EVENT",),
    "REQUEST": ("LAUNCH",),
}
_NUMBERED = ("_BEGIN", "_END")  # in the rest of the bits


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    type=click.Choice(_KINDS, case_sensitive=False),
    help="Only records of this kind; may be repeated. One of " + ", ".join(_KINDS) + ".",
)
@click.option("--ops", "with_ops", is_flag=True, help="Also a line for every operator record.")
@click.option("--limit", type=click.IntRange(min=0), help="Stop after this many records.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text, or one JSON object a line.",
)
def command(
    trace: Path, kinds: tuple[str, ...], with_ops: bool, limit: int | None, form: str
) -> None:
    """Print the raw records of TRACE, one a line, in the order of the recording."""
    from profinfer.tracefile.reader import TraceReader

    write = text_lines if form == "text" else json_lines
    with TraceReader(trace) as reader:
        for record in records(reader, set(kinds), limit, with_ops):
            for line in write(record):
                click.echo(line)
        for problem in reader.problems:
            click.echo(f"profinfer: {problem}", err=True)


@dataclass(frozen=True)
class Record:
    """One record or JSON chunk, decoded as far as the file alone allows.

    Attributes:
        order: place in the stream, None for a JSON chunk.
        ts: CLOCK_MONOTONIC ns, None for a JSON chunk.
        tid: thread, None for a JSON chunk.
        kind: name of the kind.
        flags: names of the set flag bits.
        fields: the rest, in the order of the file.
        ops: operator records as (dt, kind, arg), where they were asked for.
    """

    order: int | None
    ts: int | None
    tid: int | None
    kind: str
    flags: tuple[str, ...]
    fields: dict[str, Any]
    ops: tuple[tuple[int, str, int], ...] = ()


def records(
    reader: TraceReader, kinds: set[str], limit: int | None, with_ops: bool
) -> Iterator[Record]:
    """The records of ``kinds`` (all when empty), JSON chunks where they lie between them."""
    from profinfer.tracefile.schema import ChunkKind, Kind

    index = reader.records()
    wanted = {kind for kind in Kind if not kinds or kind.name in kinds}
    take = {
        kind: _rows(reader, kind, with_ops) for kind in reader.count_by_kind() if kind in wanted
    }
    documents = [
        (chunk, value)
        for chunk, value in reader.documents
        if not kinds or ChunkKind(chunk.kind).name in kinds
    ]
    left = len(index) + len(documents) if limit is None else limit
    for order, (number, offset) in enumerate(
        zip(index.kind.tolist(), index.offset.tolist(), strict=True)
    ):
        while left and documents and documents[0][0].offset < offset:
            yield _document(*documents.pop(0))
            left -= 1
        if number in take:
            if not left:
                return
            yield take[number](order)
            left -= 1
    for chunk, value in documents[:left]:
        yield _document(chunk, value)


def _document(chunk: Any, value: dict[str, Any]) -> Record:
    from profinfer.tracefile.schema import ChunkKind

    return Record(None, None, None, ChunkKind(chunk.kind).name, (), value)


def _rows(reader: TraceReader, kind: Any, with_ops: bool) -> Callable[[int], Record]:
    """A function that decodes the next record of one kind."""
    from profinfer.tracefile.schema import Kind

    operators: Iterator[tuple[tuple[int, str, int], ...]] | None = None
    decode: Callable[[Any], dict[str, Any]] = _fields
    if kind is Kind.OPS:
        ops = reader.ops()
        rows = ops.batches
        operators = _operators(ops) if with_ops else None
    elif kind is Kind.TENSOR:
        rows, decode = reader.tensors().rows, _tensor_decoder(reader)
    elif kind is Kind.BUFFER:
        rows, decode = reader.buffers().rows, _buffer_decoder(reader)
    elif kind is Kind.COPY_BEGIN:
        rows, decode = reader.copies().rows, _copy_decoder(reader)
    elif kind is Kind.COUNTS:
        rows, decode = reader.counts().heads, _counts_decoder(reader)
    elif kind is Kind.EXPERTS:
        rows, decode = reader.experts().heads, _experts_decoder(reader)
    else:
        rows = reader.fixed(kind).rows
    coming = iter(rows)
    bits = _FLAGS.get(kind.name, ())

    def take(order: int) -> Record:
        row = next(coming)
        flags = int(row["flags"])
        names = [name for bit, name in enumerate(bits) if flags >> bit & 1]
        if kind.name.endswith(_NUMBERED):
            from profinfer.tracefile.schema import NUMBER_SHIFT

            names += [f"#{number}"] if (number := flags >> NUMBER_SHIFT) else []
            flags &= (1 << NUMBER_SHIFT) - 1
        if flags >> len(bits):
            names.append(f"flags={flags:#x}")
        return Record(
            order,
            int(row["ts"]),
            int(row["tid"]),
            kind.name,
            tuple(names),
            decode(row),
            next(operators) if operators else (),
        )

    return take


def _fields(row: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in row.dtype.names:
        if name in _HIDDEN:
            continue
        value = row[name]
        if name == "ptr":
            out[name] = [int(p) for p in value[: int(row["n"])]]
        elif name == "run":
            out["runs"] = [
                dict(zip(value.dtype.names, run.tolist(), strict=True))
                for run in value[: int(row["n_runs"])]
            ]
        elif name == "value" and value.shape:
            out["values"] = value.tolist()
        elif name == "guid":
            out[name] = bytes(value).hex()
        elif name == "comm":
            out[name] = bytes(value).decode("utf-8", "backslashreplace")
        else:
            out[name] = int(value)
    return out


def _counts_decoder(reader: TraceReader) -> Callable[[Any], dict[str, Any]]:
    """Decodes COUNTS records, which must come in order: the values of each by counter."""
    names = [counter.name for counter in reader.meta.plan.counters]
    values = iter(reader.counts().values)

    def decode(row: Any) -> dict[str, Any]:
        columns = next(values).T.tolist()
        k = int(row["n_counters"])
        named = dict(zip([*names, *map(str, range(len(names), k))], columns, strict=False))
        times = {name: row[name][:k].tolist() for name in ("enabled", "running")}
        return {"seq": int(row["seq"]), "n": int(row["n"]), **times, "values": named}

    return decode


def _experts_decoder(reader: TraceReader) -> Callable[[Any], dict[str, Any]]:
    """Decodes EXPERTS records, which must come in order: the ids of each token."""
    ids = reader.experts().ids
    at = 0

    def decode(row: Any) -> dict[str, Any]:
        nonlocal at
        n, used = int(row["n"]), int(row["n_used"])
        mine = ids[at : at + n * used].reshape(n, used)
        at += n * used
        return {**_fields(row), "ids": mine.tolist()}

    return decode


def _operators(ops: Any) -> Iterator[tuple[tuple[int, str, int], ...]]:
    from profinfer.tracefile.schema import OpKind

    names = {kind.value: kind.name for kind in OpKind}
    at = 0
    for count in ops.counts.tolist():
        part = ops.ops[at : at + count]
        at += count
        yield tuple(
            (dt, names.get(what >> 24, f"kind={what >> 24}"), what & 0xFFFFFF)
            for dt, what in part.tolist()
        )


def _struct(make: Callable[[Any], Any], reader: TraceReader) -> Any:
    """A struct's dtype from the layout, None where the layout does not fit its own size."""
    try:
        return make(reader.meta.engine.layout)
    except ValueError:
        return None


def _tensor_decoder(reader: TraceReader) -> Callable[[Any], dict[str, Any]]:
    from profinfer.tracefile.structs import decode_struct, tensor_struct

    engine = reader.meta.engine
    dtype = _struct(tensor_struct, reader)

    def name(table: tuple[Any, ...], number: int) -> str:
        known = table[number] if 0 <= number < len(table) else None
        return str(getattr(known, "name", known)) if known is not None else f"?{number}"

    def decode(row: Any) -> dict[str, Any]:
        out: dict[str, Any] = {"addr": int(row["addr"]), "gen": int(row["gen"])}
        if dtype is None:
            return {**out, "raw": bytes(row["raw"]).hex()}
        has = decode_struct(bytes(row["raw"]), dtype)
        if "name" in has:
            out["name"] = has["name"].decode("utf-8", "backslashreplace")
        if "op" in has:
            out["op"] = name(engine.ops, has["op"])
        if "type" in has:
            out["type"] = name(engine.types, has["type"])
        out |= {key: has[key] for key in ("ne", "nb", "op_params", "src") if key in has}
        while out.get("src") and not out["src"][-1]:
            out["src"].pop()
        for key in ("flags", "buffer", "data", "view_src", "view_offs"):
            if key in has:
                out["tensor_flags" if key == "flags" else key] = has[key]
        return out

    return decode


def _copy_decoder(reader: TraceReader) -> Callable[[Any], dict[str, Any]]:
    from profinfer.tracefile.structs import decode_struct, tensor_struct

    dtype = _struct(tensor_struct, reader)
    renamed = {"src": "from", "dst": "to"}

    def decode(row: Any) -> dict[str, Any]:
        names = [n for n in row.dtype.names if n not in _HIDDEN and n != "raw"]
        out: dict[str, Any] = {renamed.get(name, name): int(row[name]) for name in names}
        has = decode_struct(bytes(row["raw"]), dtype) if dtype is not None else {}
        if "name" in has:
            out["name"] = has["name"].decode("utf-8", "backslashreplace")
        return out

    return decode


def _buffer_decoder(reader: TraceReader) -> Callable[[Any], dict[str, Any]]:
    from profinfer.tracefile.structs import buffer_struct, decode_struct

    dtype = _struct(buffer_struct, reader)

    def decode(row: Any) -> dict[str, Any]:
        fields = decode_struct(bytes(row["raw"]), dtype) if dtype is not None else {}
        return {"addr": int(row["addr"]), "gen": int(row["gen"]), **fields}

    return decode


def text_lines(record: Record) -> Iterator[str]:
    """A record as text: order, time, thread, kind, fields, flags; then its operators."""
    if record.order is None:
        yield f"{'-':>7} {record.kind} {json.dumps(record.fields)}"
        return
    parts = [f"{record.order:>7}", _seconds(record.ts or 0), f"tid={record.tid}", record.kind]
    parts += [f"{name}={_text(name, value)}" for name, value in record.fields.items()]
    parts += [f"[{' '.join(record.flags)}]"] if record.flags else []
    yield " ".join(parts)
    for dt, kind, arg in record.ops:
        yield f"{'':>7} {_seconds((record.ts or 0) + dt)} tid={record.tid}   {kind} arg={arg}"


def json_lines(record: Record) -> Iterator[str]:
    """A record as one JSON object."""
    out: dict[str, Any] = {"kind": record.kind}
    if record.order is None:
        yield json.dumps({**out, "value": record.fields})
        return
    out |= {"order": record.order, "ts": record.ts, "tid": record.tid}
    out |= {"flags": list(record.flags), **record.fields}
    if record.ops:
        out["ops"] = [{"dt": dt, "kind": kind, "arg": arg} for dt, kind, arg in record.ops]
    yield json.dumps(out)


def _seconds(ts: int) -> str:
    return f"{ts // 10**9}.{ts % 10**9:09d}"


def _text(name: str, value: Any) -> str:
    if name in ("ne", "nb"):
        return "x".join(map(str, value))
    if name in ("src", "ptr"):
        return ",".join(f"{v:#x}" for v in value) or "-"
    if name == "op_params":
        # Mostly zeros; what is left out is zero.
        shown = list(value)
        while shown and not shown[-1]:
            shown.pop()
        return ",".join(map(str, shown)) or "-"
    if name == "runs":  # sequence:position+tokens/outputs
        return ",".join(f"{r['seq']}:{r['pos']}+{r['n_tokens']}/{r['n_outputs']}" for r in value)
    if name in _HEX:
        return f"{value:#x}"
    if name in ("name", "comm"):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
