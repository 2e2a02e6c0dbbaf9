"""Layer 6: several models and contexts in one process, told apart; drafts, and what came of them.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace
from profinfer.units import format_ns, format_percent, format_things

_COLUMNS = (
    Column("context", "ctx", "id", "Number of the llama_context, in order of first use."),
    Column("part", "part", "text", "target or draft of speculative decoding, or encoder."),
    Column("layers", "layers", "count", "Layers of its model, as its weights are numbered."),
    Column("calls", "calls", "count", "Calls, warm-up left out."),
    Column("tokens", "tokens", "count", "Tokens that they were given."),
    Column("time_ns", "time", "ns", "In its calls."),
    Column("share", "share", "ratio", "Part of all contexts' time in calls.", bar=True),
    Column("prefill_per_s", "prefill", "per_s", "Prompt tokens per second of call time."),
    Column("decode_per_s", "decode", "per_s", "Decoded tokens per second of call time."),
    Column("drafted", "drafted", "count", "Drafted tokens that it checked."),
    Column("accepted", "accepted", "count", "Of those, kept; where the next call tells."),
)


def checks(trace: Trace) -> pd.DataFrame:
    """One row per check of drafted tokens: call_id, ctx, drafted, accepted (NA if not known).

    A check decodes the last token that is certain and the drafted ones after it. The next call of
    its sequence begins after what was kept of them; nothing tells that of the last one.
    """
    calls, seqs = trace.calls, trace.sequences
    owner = seqs["call_id"].to_numpy()
    rows = seqs.assign(ctx=calls["ctx"].to_numpy()[owner])
    rows = rows[~rows["phase"].isin(("warmup", "other", "encode"))]
    following = rows.groupby(["ctx", "seq", "generation"], sort=False)["pos_first"].shift(-1)
    kept = (following - rows["pos_first"]).astype("Int64")
    verify = ((rows["phase"] == "verify") & (rows["n_outputs"] == rows["n_tokens"])).to_numpy()
    known = (kept >= 1) & (kept <= rows["n_tokens"])
    return pd.DataFrame(
        {
            "call_id": rows["call_id"],
            "ctx": rows["ctx"],
            "drafted": rows["n_tokens"] - 1,
            "accepted": (kept - 1).where(known),
        }
    )[verify].reset_index(drop=True)


def contexts(trace: Trace) -> Result:
    """One row per llama_context that ran, in order of first use."""
    calls = trace.calls[(trace.calls["phase"] != "warmup").to_numpy()]
    spent = calls["done_ns"] - calls["begin_ns"]
    checked = checks(trace)
    targets = set(checked["ctx"].tolist())
    layers = _layers(trace)
    whole = int(spent.sum())
    rows = []
    for number, (ctx, mine) in enumerate(calls.groupby("ctx", sort=False)):
        own = checked[(checked["ctx"] == ctx).to_numpy()]
        time = int(spent[mine.index].sum())
        rows.append(
            {
                "context": number,
                "part": _part(mine, ctx in targets, bool(targets)),
                "layers": layers.get(int(str(ctx))),
                "calls": len(mine),
                "tokens": int(mine["n_tokens"].clip(lower=0).sum()),
                "time_ns": time,
                "share": time / whole if whole else None,
                "prefill_per_s": _speed(mine, spent, "prefill"),
                "decode_per_s": _speed(mine, spent, "decode"),
                "drafted": int(own["drafted"].sum()) if len(own) else None,
                "accepted": int(own["accepted"].sum()) if len(own) else None,
            }
        )
    frame = pd.DataFrame(rows, columns=[c.name for c in _COLUMNS])
    for name in ("layers", "drafted", "accepted"):
        frame[name] = frame[name].astype("Int64")
    return Result(
        "contexts",
        "Contexts",
        "the whole recording, warm-up excluded",
        _COLUMNS,
        frame,
        (*notes.losses(trace), *_speculation(trace, checked)),
        {"calls": len(calls), "tokens": int(frame["tokens"].sum()), "time_ns": whole},
    )


def _part(calls: pd.DataFrame, target: bool, speculative: bool) -> str:
    if target:
        return "target"
    if calls["encode"].all():
        return "encoder"
    return "draft" if speculative and (calls["phase"] == "decode").any() else ""


def _speed(calls: pd.DataFrame, spent: pd.Series[int], phase: str) -> float | None:
    mine = calls[(calls["phase"] == phase).to_numpy()]
    time = int(spent[mine.index].sum())
    return int(mine["n_tokens"].clip(lower=0).sum()) * 1e9 / time if time else None


def _layers(trace: Trace) -> dict[int, int]:
    """Layers of each context's model, from the graphs that it ran."""
    columns = ["call_id", "def_id"]
    ran = pd.concat([trace.graphs[columns], trace.splits[columns]], ignore_index=True)
    ran = ran[((ran["call_id"] >= 0) & (ran["def_id"] >= 0)).to_numpy()]
    if not len(ran):
        return {}
    most = trace.nodes.groupby("def_id")["layer"].max()
    ctx = trace.calls["ctx"].to_numpy()[ran["call_id"].to_numpy()]
    found = pd.Series(most.reindex(ran["def_id"]).to_numpy()).groupby(ctx).max()
    return {int(str(c)): int(n) + 1 for c, n in found.items() if n >= 0}


def _speculation(trace: Trace, checked: pd.DataFrame) -> list[Note]:
    """What drafting won: tokens a check, and what a token cost with it."""
    known = checked.dropna()
    if not len(known):
        return []
    drafted, accepted = int(known["drafted"].sum()), int(known["accepted"].sum())
    kept = accepted + len(known)
    parts = [
        f"{accepted:,} of {drafted:,} drafted tokens were accepted "
        f"({format_percent(accepted / drafted)}), {kept / len(known):.2f} tokens a check"
    ]
    first, last = (int(f(known["call_id"].to_numpy())) for f in (np.min, np.max))
    begin = trace.calls["begin_ns"].to_numpy()
    target = (trace.calls["ctx"] == known["ctx"].iloc[0]).to_numpy()
    later = begin[target & (np.arange(len(begin)) > last)]
    if len(later) and known["ctx"].nunique() == 1:
        each = (int(later[0]) - int(begin[first])) / kept
        parts.append(f"a token takes {format_ns(each)}, drafting included")
    if unknown := len(checked) - len(known):
        parts.append(f"what came of {format_things(unknown, 'more check')} was not seen")
    return [Note("info", "; ".join(parts))]
