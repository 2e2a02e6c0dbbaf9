"""Layer 3: the self-description in a trace's header, as frozen dataclasses, to and from JSON.

Owns the names and types of the metadata keys. Must not import numpy or anything above.

Reading is tolerant: a missing optional key is None (an empty tuple or dict for collections), an
unknown key is kept in ``extra`` and written back, a key of the wrong type is a ``TraceError`` that
names it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from profinfer.errors import TraceError

JsonObject = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JsonPart:
    """A dataclass that is one JSON object. ``extra`` holds the keys it does not know.

    ``OPTIONAL`` are the keys that are not written where there is nothing of them.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    extra: JsonObject = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: object, where: str = "") -> Self:
        """Build from a decoded JSON object.

        Args:
            data: what ``json.loads`` gave.
            where: path of this object in the metadata, for error messages.

        Raises:
            TraceError: a required key is missing or a value has the wrong type.
        """
        if not isinstance(data, Mapping):
            raise _wrong(where or "metadata", "an object", data)
        values: JsonObject = {}
        for item, wanted in _fields_of(cls):
            key = f"{where}.{item.name}" if where else item.name
            if data.get(item.name) is not None:
                values[item.name] = _decode(wanted, data[item.name], key)
            elif item.default is dataclasses.MISSING and (
                item.default_factory is dataclasses.MISSING
            ):
                raise TraceError(f"the trace's metadata lacks {key}", _HINT)
        known = {item.name for item, _ in _fields_of(cls)}
        return cls(**values, extra={k: v for k, v in data.items() if k not in known})

    def to_json(self) -> JsonObject:
        """The JSON object, unknown keys included."""
        out = {item.name: _encode(getattr(self, item.name)) for item, _ in _fields_of(type(self))}
        return {**self.extra, **{k: v for k, v in out.items() if v or k not in self.OPTIONAL}}


_HINT = "record it again with this version of profinfer"


_FieldTypes = tuple[tuple[dataclasses.Field[Any], Any], ...]
_field_types: dict[type[Any], _FieldTypes] = {}


def _fields_of(cls: type[Any]) -> _FieldTypes:
    """The dataclass fields but ``extra``, with their resolved types. Resolving is slow: once."""
    if cls not in _field_types:
        hints = typing.get_type_hints(cls)
        own = tuple((f, hints[f.name]) for f in dataclasses.fields(cls) if f.name != "extra")
        _field_types[cls] = own
    return _field_types[cls]


def _wrong(key: str, wanted: str, value: object) -> TraceError:
    return TraceError(
        f"the trace's metadata key {key} should be {wanted}, not {type(value).__name__}", _HINT
    )


def _decode(wanted: Any, value: Any, key: str) -> Any:
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (types.UnionType, typing.Union):  # X | None
        if value is None:
            return None
        return _decode(next(a for a in args if a is not types.NoneType), value, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(key, "a list", value)
        return tuple(_decode(args[0], v, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(key, "an object", value)
        return {str(k): _decode(args[1], v, f"{key}.{k}") for k, v in value.items()}
    if issubclass(wanted, JsonPart):
        return wanted.from_json(value, key)
    # bool is an int to Python, not to JSON.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise _wrong(key, {int: "an integer", str: "text", bool: "true or false"}[wanted], value)
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, JsonPart):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {k: _encode(v) for k, v in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class Target(JsonPart):
    """The recorded process."""

    argv: tuple[str, ...] = ()
    cwd: str | None = None
    pid: int | None = None
    exe: str | None = None


@dataclass(frozen=True, kw_only=True)
class Host(JsonPart):
    """The machine it ran on."""

    kernel: str | None = None
    machine: str | None = None
    hostname: str | None = None
    cpu_model: str | None = None
    cpus_online: int | None = None
    topology: dict[str, Any] = field(default_factory=dict)
    page_size: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Clock(JsonPart):
    """One reading of the clocks, taken together: trace time to calendar and boot time."""

    monotonic_ns: int
    realtime_ns: int
    boottime_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Image(JsonPart):
    """An ELF file of the engine."""

    path: str
    build_id: str | None = None
    role: str | None = None


@dataclass(frozen=True, kw_only=True)
class Function(JsonPart):
    """A function whose address records hold, by its place in its file."""

    path: str
    offset: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Layout(JsonPart):
    """Byte offsets of the engine's structs; the raw structs in the trace are read with them."""

    id: str | None = None
    evidence: str | None = None
    tensor_size: int | None = None
    buffer_size: int | None = None
    tensor: dict[str, int] = field(default_factory=dict)
    cgraph: dict[str, int] = field(default_factory=dict)
    cplan: dict[str, int] = field(default_factory=dict)
    buffer: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TensorType(JsonPart):
    """A ggml type: ``size`` bytes hold ``block`` elements."""

    name: str
    block: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Engine(JsonPart):
    """What is known of the engine, and from where."""

    OPTIONAL = ("functions",)

    name: str | None = None
    version: str | None = None
    evidence: str | None = None
    images: tuple[Image, ...] = ()
    layout: Layout | None = None
    ops: tuple[str, ...] = ()
    ops_evidence: str | None = None
    unary_ops: tuple[str, ...] = ()
    glu_ops: tuple[str, ...] = ()
    types: tuple[TensorType | None, ...] = ()
    types_evidence: str | None = None
    functions: tuple[Function, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpsPlan(JsonPart):
    """How operators were captured: mode "site", "pair" or "none"."""

    mode: str = "none"
    bias: int = 0
    barrier_always: bool = False


@dataclass(frozen=True, kw_only=True)
class Probe(JsonPart):
    """One attached probe; ``id`` is what the records carry."""

    id: int
    role: str | None = None
    function: str
    image: str | None = None
    address: int | None = None
    offset: int | None = None
    insn: str | None = None
    emulated: bool | None = None
    cost_ns: int | None = None
    kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class Skipped(JsonPart):
    """A probe that was wanted and not attached."""

    function: str
    role: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Counter(JsonPart):
    """A counter read at operators: which side counts (user, kernel, both), and what one is."""

    name: str
    side: str | None = None
    hardware: bool | None = None
    bytes: int | None = None
    direction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan(JsonPart):
    """What was probed."""

    level: str | None = None
    counters: tuple[Counter, ...] = ()
    ops: OpsPlan = field(default_factory=OpsPlan)
    probes: tuple[Probe, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> JsonObject:
        """The JSON object; without the key ``counters`` where there are none."""
        out = super().to_json()
        return {k: v for k, v in out.items() if k != "counters" or v}


@dataclass(frozen=True, kw_only=True)
class Sched(JsonPart):
    """Whether the scheduler's events were recorded, and how raw task states are decoded.

    ``states`` are pairs of mask and letter, tried in order; None in traces that know nothing of it.
    """

    recorded: bool | None = None
    why: str | None = None
    evidence: str | None = None
    state_from: str | None = None
    states: tuple[Any, ...] = ()
    recorder: int | None = None  # profinfer's own process id


@dataclass(frozen=True, kw_only=True)
class TraceMetadata(JsonPart):
    """Everything a trace says about itself in its header."""

    OPTIONAL = ("calibration", "memory", "experts", "maps")

    profinfer: str
    created_utc: str | None = None
    target: Target = field(default_factory=Target)
    host: Host = field(default_factory=Host)
    clock: Clock
    engine: Engine = field(default_factory=Engine)
    plan: Plan = field(default_factory=Plan)
    calibration: dict[str, Any] = field(default_factory=dict)
    sched: Sched = field(default_factory=Sched)
    limits: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)
    ring_bytes: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    maps: tuple[Any, ...] = ()  # [start, end, file offset, path] of executable mappings

    @property
    def nothing_probed(self) -> bool:
        """No probe was put in place: the recording ended before an engine was loaded."""
        return not self.plan.probes


@dataclass(frozen=True, kw_only=True)
class Trailer(JsonPart):
    """How a recording ended. ``counters`` are those of the BPF program, summed over CPUs."""

    ended_ns: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    reason: str | None = None
    counters: tuple[int, ...] = ()
    ring_records: int | None = None
    ring_bytes: int | None = None
    threads: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)


def merge(base: JsonObject, patch: Mapping[str, Any]) -> JsonObject:
    """``base`` with ``patch`` laid over it: objects merge, null removes, the rest replaces."""
    out = dict(base)
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            below = out.get(key)
            out[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            out[key] = value
    return out
