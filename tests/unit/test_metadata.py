from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from builders import METADATA, metadata

from profinfer.errors import TraceError
from profinfer.tracefile.metadata import TraceMetadata, Trailer, merge

SMALLEST: dict[str, Any] = {
    "profinfer": "0.1.0",
    "clock": {"monotonic_ns": 1, "realtime_ns": 2},
}


def test_everything_survives_a_round_trip() -> None:
    meta = TraceMetadata.from_json(METADATA)
    assert json.loads(json.dumps(meta.to_json())) == METADATA
    assert TraceMetadata.from_json(meta.to_json()) == meta
    assert meta.engine.layout is not None
    assert meta.engine.layout.tensor["ne"] == 16
    assert meta.engine.types[4] is None
    assert meta.engine.types[3] is not None and meta.engine.types[3].name == "q4_1"
    assert meta.plan.ops.mode == "site" and meta.plan.probes[4].role == "op-end"


def test_optional_keys_may_be_missing() -> None:
    meta = TraceMetadata.from_json(SMALLEST)
    assert meta.target.argv == () and meta.target.pid is None
    assert meta.engine.layout is None and meta.plan.ops.mode == "none"
    assert meta.ring_bytes is None and meta.options == {}


def test_unknown_keys_are_kept() -> None:
    data = merge(SMALLEST, {"new": [1], "host": {"kernel": "7", "moon": "full"}})
    meta = TraceMetadata.from_json(data)
    assert meta.extra == {"new": [1]} and meta.host.extra == {"moon": "full"}
    again = meta.to_json()
    assert again["new"] == [1] and again["host"]["moon"] == "full"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"clock": 7}, "clock"),
        ({"clock": {"monotonic_ns": "soon"}}, "clock.monotonic_ns"),
        ({"clock": {"monotonic_ns": True}}, "clock.monotonic_ns"),
        ({"target": {"argv": "ls"}}, "target.argv"),
        ({"target": {"argv": ["ls", 3]}}, "target.argv[1]"),
        ({"engine": {"types": [{"name": "f32", "block": 1}]}}, "engine.types[0].size"),
        ({"engine": {"layout": {"tensor": {"ne": "x"}}}}, "engine.layout.tensor.ne"),
        ({"plan": {"probes": [{"id": 0, "function": "f"}, 5]}}, "plan.probes[1]"),
        ({"plan": {"ops": {"barrier_always": 1}}}, "plan.ops.barrier_always"),
        ({"host": []}, "host"),
        ({"clock": None}, "clock"),
        ({"profinfer": None}, "profinfer"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, Any], key: str) -> None:
    with pytest.raises(TraceError) as caught:
        TraceMetadata.from_json(merge(SMALLEST, change))
    assert key in caught.value.message.split()
    assert caught.value.hint


@pytest.mark.parametrize("data", [None, 3, "x", []])
def test_not_an_object(data: object) -> None:
    with pytest.raises(TraceError, match="should be an object"):
        TraceMetadata.from_json(data)


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        metadata().ring_bytes = 3  # type: ignore[misc]


def test_argv_with_bytes_that_are_no_utf8() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    text = json.dumps(metadata(target={"argv": [name]}).to_json())
    assert text.isascii()
    assert TraceMetadata.from_json(json.loads(text)).target.argv == (name,)


def test_trailer() -> None:
    trailer = Trailer.from_json({"exit_code": 3, "threads": {"7": "x"}, "later": 1})
    assert (
        trailer.exit_code == 3 and trailer.threads == {"7": "x"} and trailer.extra == {"later": 1}
    )
    assert trailer.counters == () and trailer.exit_signal is None


def test_merge_lays_a_patch_over() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
    assert merge(base, {"a": {"b": 5, "c": None}, "d": [3], "e": {"f": None, "g": 1}}) == {
        "a": {"b": 5},
        "d": [3],
        "e": {"g": 1},
    }
    assert base == {"a": {"b": 1, "c": 2}, "d": [1, 2]}
