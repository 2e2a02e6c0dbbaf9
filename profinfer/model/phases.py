"""Layer 5: what a call does: warm-up, prefill, decode; which generation and token of it.

Owns the rules of ``docs/metrics.md``. Loops over calls and their sequences, never over operators.
Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

PHASES = ("warmup", "prefill", "decode", "verify", "mixed", "encode", "other")
_MAX_DRAFT = 64  # more tokens at once are a prompt


@dataclass
class _Sequence:
    """What one sequence of one context did last.

    Attributes:
        phase: prefill, decode or verify; "" before anything was seen.
        generation: number of the prompt it is at.
        token: decode steps of it so far.
        next_pos: position that follows the last one, -1 if it was not given.
        prompt_end: position that follows its prompt, -1 if it was not given.
        losses: how often calls had been lost until then.
    """

    phase: str = ""
    generation: int = -1
    token: int = 0
    next_pos: int = -1
    prompt_end: int = -1
    losses: int = 0

    def speculate(self, n_tokens: int, pos: int, *, checks: bool) -> tuple[str, int, int] | None:
        """The same for a context that drafts, or checks drafts; None if it is a prompt after all.

        What was drafted and not accepted is decoded again: there, back is no new prompt.
        """
        if not 0 < self.prompt_end <= pos or (n_tokens > 1 and not checks):
            return None
        self.next_pos = pos + n_tokens
        if n_tokens > 1:
            self.phase = "verify"
            return self.phase, self.generation, -1
        self.phase = "decode"
        self.token += 1
        return self.phase, self.generation, self.token - 1

    def step(self, n_tokens: int, pos: int, *, losses: int = 0) -> tuple[str, int, int]:
        """Phase, generation and token_index of its tokens in the next batch."""
        # Back to where it was before: a new prompt, of which the cache held all but the last
        # token. Forwards it is a call that was not recorded.
        back = 0 <= pos < self.next_pos
        unseen = not self.phase and pos < 0
        index = -1
        if n_tokens > 1 or pos == 0 or back or unseen:
            if self.phase != "prefill" or back:
                self.generation += 1
                self.token = 0
            self.phase = "prefill"
            self.prompt_end = pos + n_tokens if pos >= 0 else -1
        else:
            # A sequence first seen in the middle of a generation counts from there.
            self.generation = max(self.generation, 0)
            if losses != self.losses and self.phase == "decode" and 0 <= self.next_pos < pos:
                self.token += pos - self.next_pos  # steps that were not recorded
            index = self.token
            self.token += 1
            self.phase = "decode"
        self.next_pos = pos + n_tokens if pos >= 0 else -1
        self.losses = losses
        return self.phase, self.generation, index


def with_phases(calls: pd.DataFrame, sequences: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add phase, generation and token_index to both tables.

    Args:
        calls: ctx, n_tokens, warmup, encode, ret, lost_before; the index is the call_id, in order
            of begin_ns.
        sequences: call_id, seq, n_tokens, pos_first; in order of call_id.

    Returns:
        Both with the three columns. A call of several sequences has the phase of all of them, or
        "mixed"; its generation and token_index are -1. Calls get n_decoded, too: how many of
        their tokens are decode steps.
    """
    given = [
        "warmup" if warm else "encode" if encode else "other" if n_tokens < 1 or ret else ""
        for n_tokens, warm, encode, ret in zip(
            *(calls[c].tolist() for c in ("n_tokens", "warmup", "encode", "ret")), strict=True
        )
    ]
    contexts, losses = calls["ctx"].tolist(), calls["lost_before"].cumsum().tolist()
    targets = _targets(calls, sequences)
    seen: dict[tuple[int, int], _Sequence] = {}
    steps: list[tuple[str, int, int]] = []
    of_call: list[set[str]] = [set() for _ in contexts]
    columns = ("call_id", "seq", "n_tokens", "pos_first", "n_outputs")
    for call, seq, n_tokens, pos, outputs in zip(
        *(sequences[c].tolist() for c in columns), strict=True
    ):
        if given[call]:
            step = given[call], -1, -1
        else:
            sequence = seen.setdefault((contexts[call], seq), _Sequence())
            drafted = None
            if targets:
                # A target is asked for the logits of all that was drafted; the draft's own context
                # is given the same tokens after it has decoded.
                checks = n_tokens <= _MAX_DRAFT + 1 and (
                    outputs == n_tokens
                    if contexts[call] in targets
                    else sequence.phase in ("decode", "verify")
                )
                drafted = sequence.speculate(n_tokens, pos, checks=checks)
            step = drafted or sequence.step(n_tokens, pos, losses=losses[call])
        steps.append(step)
        of_call[call].add(step[0])
    phases = [p if p else _together(s) for p, s in zip(given, of_call, strict=True)]
    owner = sequences["call_id"].to_numpy()
    table = pd.DataFrame(steps, columns=["phase", "generation", "token_index"])
    numbers = table[["generation", "token_index"]].to_numpy(np.int32).reshape(-1, 2)
    alone = np.bincount(owner, minlength=len(calls)) == 1
    own = np.full((len(calls), 2), -1, np.int32)
    own[owner[alone[owner]]] = numbers[alone[owner]]
    decoded = np.zeros(len(calls), np.int64)
    decodes = (table["phase"] == "decode").to_numpy()
    np.add.at(decoded, owner[decodes], sequences["n_tokens"].to_numpy(np.int64)[decodes])
    return (
        calls.assign(
            phase=_phases(phases),
            generation=own[:, 0],
            token_index=own[:, 1],
            n_decoded=decoded,
        ),
        sequences.assign(
            phase=_phases(table["phase"].tolist()),
            generation=numbers[:, 0],
            token_index=numbers[:, 1],
        ),
    )


def _targets(calls: pd.DataFrame, sequences: pd.DataFrame) -> set[int]:
    """Contexts that check drafts: later than the prompt, several tokens, the logits of each."""
    n = sequences["n_tokens"]
    checks = (n > 1) & (n <= _MAX_DRAFT + 1) & (n == sequences["n_outputs"])
    checks &= sequences["pos_first"] > 0
    calls_of = sequences["call_id"].to_numpy()[checks.to_numpy()]
    plain = ~(calls["warmup"] | calls["encode"]).to_numpy()
    return set(calls["ctx"].to_numpy()[calls_of[plain[calls_of]]].tolist())


def _together(phases: set[str]) -> str:
    return phases.pop() if len(phases) == 1 else "mixed" if phases else "other"


def _phases(values: list[str]) -> pd.Categorical[Any]:
    return pd.Categorical(values, categories=list(PHASES))
