"""What the C of the BPF programs must not say."""

from __future__ import annotations

import re
from pathlib import Path

BPF = Path(__file__).resolve().parents[2] / "bpf"


def test_no_call_by_the_name_that_makes_bcc_read_kallsyms() -> None:
    """Each call of it costs 60 ms of compile time; see prelude.bpf.c."""
    for path in BPF.glob("*.bpf.c"):
        assert not re.search(r"\bbpf_probe_read_user(_str)?\s*\(", path.read_text()), path
