"""Layer 6: groups of operators of both sides, what changed in each, and whether that is sure.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.compare import noise, student
from profinfer.analysis.compare.noise import MATERIAL, Noise, Sample
from profinfer.analysis.compare.runs import Comparison, Run

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

KIND = ["role", "op", "label"]
GROUPS = {
    "kind": KIND,
    "role": ["role"],
    "op": ["op"],
    "layer": ["layer"],
    "node": ["op", "label", "layer", "name", "unit"],
    "shape": ["op", "problem_a", "problem_b", "types_a", "types_b"],
}


@dataclass(frozen=True, eq=False)
class Changes:
    """What changed, of a comparison.

    Attributes:
        of: the runs.
    """

    of: Comparison

    @cached_property
    def total_a(self) -> float:
        """Ns per token of a, mean over runs."""
        return float(self.of.totals()[0].mean())

    @cached_property
    def total_b(self) -> float:
        """Ns per token of b, mean over runs."""
        return float(self.of.totals()[1].mean())

    @cached_property
    def _units(self) -> pd.DataFrame:
        return self.of.units.reset_index(names="unit")

    @property
    def noise(self) -> Noise:
        """Learned from the kinds of operators that do the same work on both sides."""
        return self._learned[0]

    @property
    def typical_error(self) -> float:
        """Median standard error of the own change of those kinds; NaN if nothing was learned."""
        judged = self.noise.judge(self._learned[1])
        return float(np.median(judged.error)) if len(judged.error) else np.nan

    @property
    def common(self) -> float:
        """Median logarithm of the factor that those kinds share."""
        judged = self.noise.judge(self._learned[1])
        return float(np.median(judged.shared)) if len(judged.shared) else 0.0

    @property
    def _moved(self) -> pd.Series:
        """Units that another backend ran on one side, without a time of theirs."""
        return self._units["away_a"] != self._units["away_b"]

    def moved(self, to: str) -> pd.Series:
        """Ns per token, by operator type, of what another backend ran on side ``to`` alone.

        It is the time of the other side: that of side ``to`` is not known.
        """
        here = self.of.b if to == "a" else self.of.a
        units = self._units
        times = self._means(np.arange(len(units)), len(units), here, "wall")
        mine = (self._moved & units[f"away_{to}"]).to_numpy()
        spent = pd.Series(times[mine]).groupby(units["op"][mine].to_numpy()).sum()
        return spent.sort_values(ascending=False)

    @cached_property
    def _learned(self) -> tuple[Noise, Sample]:
        units = self._units
        code, keys = _coded(units, KIND)
        same = units["in_a"] & units["in_b"] & (units["types_a"] == units["types_b"])
        same &= (units["problem_a"] == units["problem_b"]) & ~self._moved
        unchanged = same.groupby(code).all().to_numpy()
        sample, judged = self._sample(code, len(keys))
        share = self._means(code, len(keys), self.of.a, "wall") / max(self.total_a, 1.0)
        used = sample.of(unchanged & judged & (share >= MATERIAL))
        return noise.learn(used), used

    def by(self, key: str) -> pd.DataFrame:
        """One row per group, those that differ most first.

        Columns: those of ``GROUPS[key]``, types_a and types_b (one of them, "several" of more),
        a_ns, b_ns, diff_ns, compute_ns and wait_ns (differences), per token; change, own, low, high
        (ratios less 1; own and its 95 % interval are beyond what all operators share), own_ns, p
        (Holm's), verdict: slower, faster, new, gone, moved or "".
        """
        units = self._units
        code, frame = _coded(units, GROUPS[key])
        n = len(frame)
        for side in "ab":
            if f"types_{side}" not in frame:
                frame[f"types_{side}"] = _one(units[f"types_{side}"], code, n)
        sides = {"a": self.of.a, "b": self.of.b}
        for side, runs in sides.items():
            frame[f"{side}_ns"] = self._means(code, n, runs, "wall")
        frame["diff_ns"] = frame["b_ns"] - frame["a_ns"]
        for what in ("compute", "wait"):
            one, two = (self._means(code, n, runs, what) for runs in sides.values())
            frame[f"{what}_ns"] = two - one
        frame = self._judge(frame, code)
        seen = (frame["a_ns"] > 0) | (frame["b_ns"] > 0)
        order = frame["diff_ns"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order][seen.loc[order]].reset_index(drop=True)

    def _judge(self, frame: pd.DataFrame, code: I64) -> pd.DataFrame:
        sample, known = self._sample(code, len(frame))
        moved = self._moved.groupby(code).any().to_numpy()
        known &= ~moved
        a, b = (frame[c].to_numpy() for c in ("a_ns", "b_ns"))
        said = self.noise.judge(sample)
        own = np.where(known, said.own, np.nan)
        own_ns = b - a * np.exp(np.where(known, said.shared, 0.0))
        whole = max(self.total_a, 1.0)
        weighty = known & (np.maximum(a, b) >= MATERIAL * whole)
        p = student.holm(np.where(weighty, said.p, np.nan), self.noise.count)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.where(a > 0, b / a - 1, np.nan)
        sure = (p <= noise.LEVEL) & (np.abs(own_ns) >= self.noise.material * whole)
        sure &= np.isfinite(own) & np.isfinite(own_ns)
        verdict = np.where(sure, np.where(own > 0, "slower", "faster"), "")
        verdict = np.where((a == 0) & (b > 0), "new", np.where((b == 0) & (a > 0), "gone", verdict))
        verdict = np.where(moved & ((a > 0) | (b > 0)), "moved", verdict)
        return frame.assign(
            change=change, own=np.expm1(own), low=np.expm1(own - said.half),
            high=np.expm1(own + said.half), own_ns=own_ns, p=p, verdict=verdict,
        )  # fmt: skip

    def _sample(self, code: I64, n: int) -> tuple[Sample, npt.NDArray[np.bool_]]:
        """Logarithms per group and run; and which groups every run has."""
        values, spreads = [], []
        for run in self.of.runs:
            times = _grouped(run, code, n, "wall")
            values.append(run.per_token(times))
            spreads.append(run.spread(times))
        matrix = np.array(values).T.reshape(n, len(self.of.runs))
        known = np.asarray((matrix > 0).all(axis=1), bool)
        logs = np.log(np.where(known[:, None], matrix, 1.0))
        spread = np.array(spreads).T.reshape(n, len(self.of.runs))
        k = len(self.of.a)
        return Sample(logs[:, :k], logs[:, k:], spread[:, :k], spread[:, k:]), known

    def _means(self, code: I64, n: int, runs: list[Run], what: str) -> F64:
        means = [run.per_token(_grouped(run, code, n, what)) for run in runs]
        return np.asarray(np.mean(means, axis=0), float)


def _grouped(run: Run, code: I64, n: int, what: str) -> F64:
    """Times of each sample and group, shape (samples, n)."""
    times: F64 = getattr(run.times, what)
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(n))
    if not n or not len(code):
        return np.zeros((len(times), n))
    return np.asarray(np.add.reduceat(times[:, order], starts, axis=1), float)


def _coded(units: pd.DataFrame, keys: list[str]) -> tuple[I64, pd.DataFrame]:
    """Group number of each unit, and the keys of each group."""
    groups = units.groupby(keys, sort=False)
    frame = units.drop_duplicates(keys)[keys].reset_index(drop=True)
    return np.asarray(groups.ngroup().to_numpy(), np.int64), frame


def _one(values: pd.Series, code: I64, n: int) -> list[str]:
    """The value that a group has, "several" if it has more, "" if none."""
    distinct = (
        values[values != ""].groupby(code[(values != "").to_numpy()]).agg(["first", "nunique"])
    )
    text = distinct["first"].where(distinct["nunique"] == 1, "several")
    return [str(v) for v in text.reindex(range(n), fill_value="").tolist()]
