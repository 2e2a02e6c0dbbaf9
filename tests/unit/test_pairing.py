from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from profinfer.model.spans import outermost, pair, parents


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def spans(begin: list[tuple[int, int]], end: list[tuple[int, int]]):
    """``(ts, key)`` begins and ends -> the pairs as (begin ts, end ts or None), and the counts."""
    b, e = (
        np.array(begin or np.zeros((0, 2)), np.int64),
        np.array(end or np.zeros((0, 2)), np.int64),
    )
    found = pair(b[:, 0], b[:, 1], e[:, 0], e[:, 1])
    got = [
        (int(b[i, 0]), int(e[j, 0]) if j >= 0 else None)
        for i, j in zip(found.begin, found.end, strict=True)
    ]
    assert found.unmatched == len(found.open) + len(found.stray)
    return got, len(found.open), len(found.stray)


def test_nothing() -> None:
    assert spans([], []) == ([], 0, 0)


def test_nesting_is_a_stack() -> None:
    got, lost_ends, lost_begins = spans([(1, 0), (2, 0), (6, 0)], [(3, 0), (5, 0), (9, 0)])
    assert got == [(1, 5), (2, 3), (6, 9)]
    assert (lost_ends, lost_begins) == (0, 0)


def test_keys_do_not_mix() -> None:
    got, *_ = spans([(1, 0), (2, 1)], [(3, 0), (4, 1)])
    assert got == [(1, 3), (2, 4)]


def test_end_without_begin_is_counted_and_hurts_no_other() -> None:
    assert spans([(5, 0)], [(2, 0), (7, 0)]) == ([(5, 7)], 0, 1)
    assert spans([(5, 0)], [(7, 0), (9, 0)]) == ([(5, 7)], 0, 1)


def test_begin_whose_end_is_lost_is_counted_not_stretched() -> None:
    assert spans([(1, 0), (5, 0), (8, 0)], [(6, 0), (9, 0)]) == ([(5, 6), (8, 9)], 1, 0)


def test_last_begin_is_cut_off_by_the_end_of_the_recording() -> None:
    assert spans([(1, 0), (5, 0)], [(2, 0)]) == ([(1, 2), (5, None)], 0, 0)


def test_end_and_begin_in_the_same_nanosecond() -> None:
    assert spans([(1, 0), (4, 0)], [(4, 0), (9, 0)])[0] == [(1, 4), (4, 9)]


@st.composite
def balanced(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Properly nested (begin, end, key) spans of a few keys; every time is used once per key."""
    out: list[tuple[int, int, int]] = []
    for key in range(draw(st.integers(1, 3))):
        open_at: list[int] = []
        ts = 0
        for _ in range(draw(st.integers(0, 12))):
            ts += draw(st.integers(1, 5))
            if open_at and draw(st.booleans()):
                out.append((open_at.pop(), ts, key))
            else:
                open_at.append(ts)
        while open_at:
            ts += 1
            out.append((open_at.pop(), ts, key))
    return out


@given(balanced(), st.randoms())
def test_any_balanced_nesting_is_found(truth: list[tuple[int, int, int]], random) -> None:
    begin = [(b, k) for b, _, k in truth]
    end = [(e, k) for _, e, k in truth]
    random.shuffle(begin)
    random.shuffle(end)
    got, lost_ends, lost_begins = spans(begin, end)
    assert sorted(got) == sorted((b, e) for b, e, _ in truth)
    assert (lost_ends, lost_begins) == (0, 0)


def test_outermost_folds_what_lies_inside_on_the_same_thread() -> None:
    tid, begin, end = i64(1, 1, 1, 2), i64(0, 2, 10, 3), i64(9, 5, 12, 4)
    assert outermost(tid, begin, end).tolist() == [True, False, True, True]


def test_parents_by_time_and_thread() -> None:
    got = parents(i64(1, 1, 2, 1), i64(5, 15, 5, 25), i64(1, 1), i64(20, 0), i64(30, 10))
    assert got.tolist() == [1, -1, -1, 0]
