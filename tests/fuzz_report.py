"""Mutates sound traces and reports on them: ``python tests/fuzz_report.py [N] [SEED] [--from I]``.

Most files have their checksums made right again, as a faulty recorder or a kernel that lies would
write them: then nothing but the model and the analyses stands between wrong bytes and a traceback.
Whatever they hold, a report ends with its text or with one clear line, in good time, within some
memory, and with no warning of numpy or pandas.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import NoReturn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fuzz_reader import mutate, rebuilt, reframe  # noqa: E402

from profinfer.cli import run  # noqa: E402
from profinfer.cli.report import command  # noqa: E402
from profinfer.tracefile.frames import parse_file_header, scan_chunks  # noqa: E402
from profinfer.tracefile.schema import RING_DISCARD, ChunkKind  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SECONDS = 60  # a report of these small traces takes well below one
MEMORY = 6 << 30
FAILED = Path("/tmp/fuzz-report-failed.pf")
BY = ("op", "layer", "role", "node", "shape", "thread", "token", "generation", "position",
      "outlier", "matmul", "prompt", "backend", "context", "expert", "reuse", "cache")  # fmt: skip
VIEWS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("--phase", "all"), ("--format", "json"), ("--explain",), ("--ledger",),
    ("--roofline",), ("--faults",), ("--faults", "--by", "tensor"), ("--counters",),
    ("--experts",), ("--corrected",), ("--tokens", "1:3"), ("--layer", "0:1"),
    *(("--by", view) for view in BY),
)  # fmt: skip


class Hang(BaseException):
    """A report that did not end."""


def _hang(*_: object) -> NoReturn:
    raise Hang


def mutated(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A few changes of the file, of what is in its chunks, or of its records."""
    how = rng.random()
    if how < 0.1:
        return mutate(data, rng)
    times = rng.choice((1, 1, 2, 5, 20))
    if how < 0.25:
        for _ in range(times):
            data = reframe(data, rng)
        return f"reframe {times}", data
    return f"records {times}", records(data, rng, times)


def records(data: bytes, rng: random.Random, times: int) -> bytes:
    """Change values of records, lose some, repeat move some; the file is sound."""
    header = parse_file_header(memoryview(data), "data")
    chunks = scan_chunks(data, header.first_chunk).chunks
    ring = [n for n, chunk in enumerate(chunks) if chunk.kind == ChunkKind.RING]
    hits = Counter(rng.choices(ring, k=times))

    def change(number: int, payload: bytes) -> bytes:
        if number not in hits:
            return payload
        found = entries(payload)
        for _ in range(hits[number]):
            spoil(found, rng)
        return b"".join(found)

    return rebuilt(data, header.meta, change)


def entries(payload: bytes) -> list[bytes]:
    """The entries of a piece of the ring, each with its header and what pads it."""
    out, at = [], 0
    while at + 8 <= len(payload):
        length = int.from_bytes(payload[at : at + 4], "little") & (RING_DISCARD - 1)
        end = at + 8 + ((length + 7) & ~7)
        out.append(payload[at:end])
        at = end
    return out


def spoil(found: list[bytes], rng: random.Random) -> None:
    """One change of one entry, in place."""
    if not found:
        return
    # Kinds have equal chances: most records are of operators.
    kinds: dict[bytes, list[int]] = {}
    for n, entry in enumerate(found):
        kinds.setdefault(entry[8:10], []).append(n)
    at = rng.choice(kinds[rng.choice(sorted(kinds))])
    how = rng.choice(("value", "value", "value", "byte", "lose", "repeat", "move", "lose many"))
    if how in ("value", "byte"):
        entry = bytearray(found[at])
        size = 1 if how == "byte" else rng.choice((2, 4, 8))
        place = 8 + rng.randrange(max(len(entry) - 8, 1)) // size * size
        old = int.from_bytes(entry[place : place + size], "little")
        most = (1 << 8 * size) - 1
        new = rng.choice((
            0, 1, most, most >> 1, old + 1, old - 1, old ^ 1 << rng.randrange(8 * size),
            old * 2, old // 2, rng.getrandbits(8 * size),
        ))  # fmt: skip
        entry[place : place + size] = (new & most).to_bytes(size, "little")
        found[at] = bytes(entry)
    elif how == "lose":
        del found[at]
    elif how == "lose many":
        del found[at : at + rng.randrange(1, 40)]
    elif how == "repeat":
        found.insert(rng.randrange(len(found)), found[at])
    else:
        found.insert(rng.randrange(len(found)), found.pop(at))


def reported(path: Path, args: tuple[str, ...]) -> str:
    """How the report ended; raises for what must not be."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(SECONDS)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            status = run(command, [str(path), *args])
    finally:
        signal.alarm(0)
    if status == 0:
        assert out.getvalue().strip(), "nothing was said"
        return "reported"
    said = err.getvalue().splitlines()
    assert status in (1, 2), f"status {status}: {said}"
    assert said and said[0].startswith("profinfer: ") and len(said) <= 2, said
    return "refused" if status == 1 else "has no such view"


def fuzz(count: int, seed: int, first: int = 0) -> Counter[str]:
    """Report on so many files; raises for the first that must not be.

    Args:
        count: files.
        seed: of all of them.
        first: number of the first one, to see a failure again.
    """
    sound = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.pf"))}
    ends: Counter[str] = Counter()
    slowest, last = (0.0, 0), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.pf"
        for number in range(first, first + count):
            rng = random.Random(f"{seed}-{number}")
            name, args = rng.choice(list(sound)), rng.choice(VIEWS)
            kind, data = mutated(sound[name], rng)
            path.write_bytes(data)
            begin = time.perf_counter()
            try:
                ends[reported(path, args)] += 1
            except BaseException:
                FAILED.write_bytes(data)
                words = " ".join(args)
                print(
                    f"FAILED: number {number}, seed {seed}, {name}, {kind}\n"
                    f"  profinfer report {FAILED} {words}\n"
                    f"  again: python tests/fuzz_report.py 1 {seed} --from {number}",
                    file=sys.stderr,
                )
                raise
            slowest = max(slowest, (time.perf_counter() - begin, number))
            if time.monotonic() - last > 60:
                last = time.monotonic()
                print(f"{number - first + 1} of {count}", file=sys.stderr)
    print(f"slowest: number {slowest[1]}, {slowest[0] * 1000:.0f} ms")
    return ends


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=2_000)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="I")
    parser.add_argument("--keep-going", action="store_true", help="count failures by their place")
    asked = parser.parse_args()
    os.environ |= {"PROFINFER_DEBUG": "1", "COLUMNS": "80", "XDG_STATE_HOME": "/nowhere"}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _hang)
    if asked.keep_going:
        return _survey(asked.count, asked.seed, asked.first)
    ends = fuzz(asked.count, asked.seed, asked.first)
    for end, times in sorted(ends.items()):
        print(f"{times:7}  {end}")
    print(f"{asked.count} files, no failure")
    return 0


def _survey(count: int, seed: int, first: int) -> int:
    """All failures, each place once, the most frequent first."""
    places: dict[str, list[int]] = {}
    for number in range(first, first + count):
        try:
            nothing = io.StringIO()
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                fuzz(1, seed, number)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            calls = traceback.extract_tb(error.__traceback__)
            ours = [f for f in calls if "/profinfer/" in f.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "-"
            text = f"{where} {type(error).__name__}: {str(error)[:90]}"
            places.setdefault(text, []).append(number)
    for text, numbers in sorted(places.items(), key=lambda p: -len(p[1])):
        print(f"{len(numbers):5}  {text}  (numbers {numbers[:3]})")
    print(f"{count} files, {sum(map(len, places.values()))} failures")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main())
