"""Mutates a sound trace and reads it: ``python tests/fuzz_reader.py [N] [SEED]``.

Whatever happens to the bytes, reading ends with a TraceError, or with the same content as before,
or with different content and at least one problem sentence: never a traceback, never wrong
numbers in silence.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from builders import sample_run  # noqa: E402

from profinfer.errors import TraceError  # noqa: E402
from profinfer.tracefile.frames import (  # noqa: E402
    pack_chunk_header,
    pack_file_header,
    padded,
    parse_file_header,
    scan_chunks,
)
from profinfer.tracefile.reader import TraceReader  # noqa: E402
from profinfer.tracefile.schema import FIXED, OpKind  # noqa: E402

Content = tuple[object, ...]


def sound_trace() -> bytes:
    """A trace with several chunks of every kind, packed ones between others."""
    builder = sample_run(layers=1, decode_tokens=2).builder
    builder.chunk_bytes = 1 << 30
    builder.wide = True
    builder.ops(77, [(10**9, OpKind.ENTER, 0), (10**9 + 5, OpKind.END, 1)])
    builder.note(1, "a note")
    for i in range(6):
        for _ in range(20):
            builder.call_begin(77, 10**10 + i, n_tokens=i)
            builder.call_end(77, 10**10 + i + 5)
        builder.packed = i % 2 == 1
        builder.flush()
        builder.loss(10**10 + i)
    builder.update(engine={"version": "9.9"})
    builder.note(2, "another")
    return builder.bytes()


def content(path: Path) -> tuple[Content, list[str]]:
    """Everything that the file says, and the problems."""
    with TraceReader(path) as reader:
        index = reader.records()
        ops = reader.ops()
        arrays = [index.kind, index.flags, index.tid, index.ts, index.length, *ops]
        for kind in FIXED:
            arrays += reader.fixed(kind)
        arrays += [*reader.tensors(), *reader.buffers()]
        said = (
            tuple(array.tobytes() for array in arrays),
            reader.meta,
            reader.trailer,
            tuple(map(repr, reader.losses)),
            tuple(map(repr, reader.notes)),
            index.discarded,
        )
        return said, reader.problems


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One to three changes of one kind."""
    out = bytearray(data)
    kind = rng.choice(
        ["flip", "byte", "cut", "insert", "delete", "duplicate", "swap", "length", "zero", "join"]
    )
    sync = [i for i in range(0, len(data) - 4, 8) if data[i : i + 4] == b"CHNK"]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) or 1)
        size = rng.choice([1, 3, 8, 32, 64, 400])
        if kind == "flip" and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "byte" and out:
            out[at] = rng.randrange(256)
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = rng.randbytes(size)
        elif kind == "delete":
            del out[at : at + size]
        elif kind == "zero":
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif kind in ("duplicate", "swap"):
            i = rng.randrange(len(sync))
            begin, end = sync[i], (*sync, len(data))[i + 1]
            piece = data[begin:end]
            if kind == "swap":
                del out[begin:end]
            to = rng.choice(sync)
            out[to:to] = piece
        elif kind == "length":  # of a chunk or of a ring entry
            to = rng.choice(sync) + rng.choice([8, 12, 16, 20, 32, 36, 40])
            out[to : to + 4] = rng.choice([0, 1, 0xFFFFFFFF, rng.getrandbits(32)]).to_bytes(
                4, "little"
            )
        elif kind == "join":
            out += data[rng.choice([0, rng.choice(sync)]) :]
    return kind, bytes(out)


def reframe(data: bytes, rng: random.Random) -> bytes:
    """Change a payload and make its checksums right again, as a faulty recorder would."""
    header = parse_file_header(memoryview(data), "data")
    count = len(scan_chunks(data, header.first_chunk).chunks)
    chosen = rng.randrange(-1, count)
    meta = scribble(header.meta, rng) if chosen == -1 else header.meta
    return rebuilt(data, meta, lambda n, old: scribble(old, rng) if n == chosen else old)


def rebuilt(data: bytes, meta: bytes, change: Callable[[int, bytes], bytes]) -> bytes:
    """The file with other metadata, each chunk's payload changed, and checksums that are right.

    Args:
        data: a sound file.
        meta: what stands in its header.
        change: gives the payload for a chunk's number and payload.
    """
    out = bytearray(pack_file_header(meta))
    first = parse_file_header(memoryview(data), "data").first_chunk
    for number, chunk in enumerate(scan_chunks(data, first).chunks):
        payload = change(number, data[chunk.offset : chunk.offset + chunk.length])
        out += pack_chunk_header(chunk.kind, len(payload), chunk.seq, zlib.crc32(payload))
        out += payload.ljust(padded(len(payload)), b"\0")
    return bytes(out)


def scribble(payload: bytes, rng: random.Random) -> bytes:
    out = bytearray(payload)
    at = rng.randrange(len(out) or 1)
    if not out:
        out += b"x"
    elif rng.random() < 0.5:
        out[at] = rng.choice([0, 1, 9, 11, 255, ord("{"), ord("0"), ord('"'), rng.randrange(256)])
    elif rng.random() < 0.5:
        at &= ~3
        value = rng.choice([0, 8, 16, 1 << 30, 1 << 31, 0xFFFFFFFF, rng.getrandbits(32)])
        out[at : at + 4] = value.to_bytes(4, "little")
    else:
        del out[at : at + rng.choice([1, 4, 8, 1 << 20])]
    return bytes(out)


def verdict(path: Path, mutated: bytes, original: Content, *, sealed: bool = True) -> str:
    """How reading ended; raises AssertionError for what must not be.

    Args:
        path: where to put the mutated file.
        mutated: its bytes.
        original: content of the sound file.
        sealed: the checksums are those of the sound file, so that any difference must be noticed.
    """
    path.write_bytes(mutated)
    try:
        said, problems = content(path)
    except TraceError as error:
        assert "\n" not in error.message and str(path) in error.message
        return "refused"
    if said != original:
        if not sealed and not problems:
            return "different, checksums made right"
        assert problems, "different content and no problem said"
        return "partial, said so"
    return "same, with a problem said" if problems else "same"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    data = sound_trace()
    slowest = 0.0
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.pf"
        path.write_bytes(data)
        original, problems = content(path)
        assert not problems, problems
        for number in range(count):
            rng = random.Random(f"{seed}-{number}")
            sealed = number % 5 != 0
            kind, mutated = mutate(data, rng) if sealed else ("reframe", reframe(data, rng))
            begin = time.perf_counter()
            try:
                end = verdict(path, mutated, original, sealed=sealed)
            except BaseException:
                print(f"FAILED: number {number}, seed {seed}, {kind}", file=sys.stderr)
                Path("/tmp/fuzz-failed.pf").write_bytes(mutated)
                raise
            slowest = max(slowest, time.perf_counter() - begin)
            ends[f"{kind}: {end}"] += 1
    for name, times in sorted(ends.items()):
        print(f"{times:7}  {name}")
    print(f"{count} files of {len(data)} bytes, slowest {slowest * 1000:.0f} ms, no failure")


if __name__ == "__main__":
    main()
