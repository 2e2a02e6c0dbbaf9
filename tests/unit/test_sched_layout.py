"""Where the kernel keeps what the scheduler's events need: BTF, arguments, raw states."""

from __future__ import annotations

import struct

import pytest

from profinfer.capture.btf import Btf, BtfError
from profinfer.capture.sched import Scheduler, sched_layout
from profinfer.capture.taskstates import state_rules

INT, PTR, STRUCT, UNION, FUNC_PROTO, TYPEDEF, ENUM64 = 1, 2, 4, 5, 13, 8, 19


class BtfBuilder:
    """A BTF file, type by type; ids count from 1."""

    def __init__(self) -> None:
        self.types = bytearray()
        self.strings = bytearray(b"\0")
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str, size: int, rest: bytes = b"", vlen: int = 0) -> int:
        self.types += struct.pack("<III", self.name(name), kind << 24 | vlen, size) + rest
        self.count += 1
        return self.count

    def struct(self, kind: int, name: str, members: list[tuple[str, int, int]]) -> int:
        rest = b"".join(struct.pack("<III", self.name(n), t, 8 * at) for n, t, at in members)
        return self.add(kind, name, 4096, rest, len(members))

    def proto(self, *args: int) -> int:
        return self.add(FUNC_PROTO, "", 0, b"".join(struct.pack("<II", 0, t) for t in args),
                        len(args))  # fmt: skip

    def bytes(self) -> bytes:
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types),
                           len(self.strings))  # fmt: skip
        return head + self.types + self.strings


def kernel(state: str = "__state", hands_over: bool = True, swapped: bool = False) -> Btf:
    """A kernel as far as it matters; the state is an argument since Linux 5.18."""
    b = BtfBuilder()
    number = b.add(INT, "unsigned int", 4, struct.pack("<I", 32))
    flag = b.add(INT, "bool", 1, struct.pack("<I", 8))
    b.add(ENUM64, "unrelated", 8, bytes(24), 2)
    inner = b.struct(STRUCT, "", [("prio", number, 4), ("tgid", number, 12)])
    task = b.struct(
        STRUCT,
        "task_struct",
        [
            (state, number, 24),
            ("flags", number, 44),
            ("pid", number, 1264),
            ("", inner, 1000),
            ("comm", number, 1752),
        ],
    )
    pointer = b.add(PTR, "", task)
    nothing = b.add(PTR, "", 0)
    args = [nothing, flag, pointer, pointer, *[number] * hands_over]
    if swapped:  # as Linux 5.18.0 had it
        args = [nothing, flag, number, pointer, pointer]
    b.add(TYPEDEF, "btf_trace_sched_switch", b.add(PTR, "", b.proto(*args)))
    return Btf(b.bytes())


def test_a_new_kernel_hands_the_state_over() -> None:
    layout = sched_layout(kernel())
    assert layout.definitions == {
        "PF_TASK_PID": 1264,
        "PF_TASK_TGID": 1012,  # in an unnamed part, as with CONFIG_RANDSTRUCT
        "PF_TASK_PRIO": 1004,
        "PF_TASK_COMM": 1752,
        "PF_TASK_FLAGS": 44,
        "PF_SCHED_PREV_ARG": 1,
        "PF_SCHED_NEXT_ARG": 2,
        "PF_SCHED_STATE_ARG": 3,
    }
    assert layout.state_from == "argument 3 of sched_switch"


def test_the_order_of_the_arguments_is_the_kernels() -> None:
    found = sched_layout(kernel(swapped=True)).definitions
    assert (found["PF_SCHED_STATE_ARG"], found["PF_SCHED_NEXT_ARG"]) == (1, 3)


@pytest.mark.parametrize("field", ["__state", "state"])
def test_an_older_kernel_keeps_it_in_the_task(field: str) -> None:
    layout = sched_layout(kernel(field, hands_over=False))
    assert layout.definitions["PF_TASK_STATE"] == 24
    assert "PF_SCHED_STATE_ARG" not in layout.definitions
    assert layout.state_from == f"task_struct.{field} at 24"


def test_what_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(BtfError, match="no state"):
        sched_layout(kernel("what", hands_over=False))
    with pytest.raises(BtfError, match="no btf_trace_sched_wake"):
        kernel().arguments("btf_trace_sched_wake")
    with pytest.raises(BtfError, match="no mm_struct"):
        kernel().fields("mm_struct")
    for data in (b"", b"\x12" * 64, kernel.__doc__.encode()):
        with pytest.raises(BtfError):
            Btf(data)


def test_without_btf_a_recording_goes_on_and_says_why(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Btf.of_kernel.__func__, "__defaults__", (tmp_path / "vmlinux",))
    sched = Scheduler.wanted(True)
    assert sched.definitions is None
    assert sched.to_json()["recorded"] is False
    assert "CONFIG_DEBUG_INFO_BTF" in str(sched.to_json()["why"])
    assert Scheduler.wanted(False).to_json() == {"recorded": False, "why": "--no-sched"}


def test_state_rules_are_the_kernels() -> None:
    def letter(release: str, raw: int) -> str:
        return next((str(ch) for mask, ch in state_rules(release) if raw & mask == mask), "R")

    for release in ("5.8.0", "5.14.21", "6.18.44-fc", "unreadable"):
        assert [letter(release, raw) for raw in (0, 1, 2, 4, 8, 0x80, 0x20, 0x40)] == list(
            "RSDTtXZP"
        )
        assert letter(release, 0x102) == "D"  # killable
        assert letter(release, 0x402) == "I"
    # A lock of a real-time kernel, a frozen task: unknown to kernels before.
    assert (letter("5.14.0", 0x1000), letter("5.15.0", 0x1000)) == ("R", "D")
    assert (letter("6.0.9", 0x8000), letter("6.1.0", 0x8000)) == ("R", "D")
    # Freezable sleep (6.1) has a bit of its own beside the sleep's.
    assert letter("6.18.0", 0x2001) == "S"
