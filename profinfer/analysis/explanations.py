"""Layer 6: what every finding means, how it is found, and how to see that something helped.

Data; the limits in the sentences are those that the findings use. Must not import rich or above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profinfer.analysis import (
    backendfindings,
    bandwidth,
    expertfindings,
    memoryfindings,
    prefillfindings,
    schedfindings,
    scopes,
    stepfindings,
    stragglers,
    surroundings,
    takenfindings,
)
from profinfer.units import format_ns

Kind = Literal["disturbance", "setting", "limit", "start"]


@dataclass(frozen=True)
class Explanation:
    """What is true of a finding in every run.

    Attributes:
        kind: ``disturbance``: something takes from the run what it could have; ``setting``: an
            option could be a better one; ``limit``: of the machine or the model; ``start``: only
            the begin is slow.
        means: what goes on.
        found: the formula and its limits.
        check: how to see that what was tried helped.
    """

    kind: Kind
    means: str
    found: str
    check: str


def _p(share: float) -> str:
    return f"{100 * share:g} %"


_THREADS = "profinfer report NEW.pf --by thread: 'runnable' and 'wait' go down, tok/s up"
_AGAIN = "record again and compare 'TPOT mean' and the wall time's rows"
_step, _sched, _pre = stepfindings, schedfindings, prefillfindings

EXPLANATIONS: dict[str, Explanation] = {
    "throttled": Explanation(
        "disturbance",
        "The cgroup gives the process a part of the CPUs' time only. When it is used up, all its "
        "threads stop until the next period, also the one that the others wait for. Threads that "
        "spin in barriers use the quota up without computing.",
        "The target's cgroup, or one above it, has a CPU quota, and nr_throttled rose during the "
        "recording.",
        "nr_throttled in the cgroup's cpu.stat stays what it is, and tok/s goes up",
    ),
    "oversubscribed": Explanation(
        "disturbance",
        "There are more threads than CPUs, so some always stand still; at each operator's barrier "
        "the others wait for them, spinning on the CPUs that the late ones need.",
        "More threads than CPUs in the affinity of all threads, and runnable is at least "
        f"{_p(_sched.RUNNABLE_MIN)} of the operators' thread time.",
        _THREADS,
    ),
    "shared": Explanation(
        "disturbance",
        "There are enough CPUs, and yet threads stand behind each other: something else keeps a "
        "CPU busy, so that the scheduler has put two threads on one.",
        "No more threads than CPUs, and runnable after the CPU went to a thread of the same "
        f"process is at least {_p(_sched.RUNNABLE_MIN)} of the operators' thread time.",
        _THREADS,
    ),
    "preempted": Explanation(
        "disturbance",
        "Another process was given a CPU while one of the target's threads wanted to run; the "
        "other threads wait for it at the next barrier.",
        f"Runnable behind one process is at least {_p(takenfindings.TAKEN_MIN)} of the operators' "
        "thread time; the three processes that took most.",
        _THREADS,
    ),
    "spinning": Explanation(
        "disturbance",
        "Threads wait in barriers without giving their CPU up. The work is not shared out evenly, "
        "or one thread is late.",
        "Time on a CPU from an operator's end to its release is at least "
        f"{_p(_sched.SPINNING_MIN)} of the operators' thread time.",
        "profinfer report NEW.pf --by thread: 'spin' goes down, tok/s up",
    ),
    "straggler": Explanation(
        "disturbance",
        "One thread is the last one at most operators, and all others wait for it: a slower core, "
        "a core that others use, or a larger part of the work.",
        f"Waiting is at least {_p(stragglers.WAIT_MIN)} of the operators' thread time, and one "
        "thread came last where 60 to 80 % of it (fewer threads: more) was waited.",
        _THREADS,
    ),
    "migrations": Explanation(
        "disturbance",
        "The scheduler moves threads from CPU to CPU; each time their caches are cold.",
        f"At least {_sched.MOVES_MIN} migrations, and {_sched.MOVES_PER_S:g} a second of operator "
        "time. What one costs is not known, so there is no prize.",
        "profinfer report NEW.pf --by thread: 'moved' goes to zero; compare tok/s",
    ),
    "bandwidth": Explanation(
        "limit",
        "Decoding reads all weights once a token. It cannot be faster than memory delivers them.",
        "Least bytes that the operators read and write / their time is at least "
        f"{_p(bandwidth.WALL)} of the read bandwidth that profinfer calibrate measured with as "
        f"many threads. More threads are proposed if they read {bandwidth.MORE:g} times as much.",
        "profinfer report NEW.pf --roofline: 'moved' goes up, or the bytes a token go down",
    ),
    "cold_start": Explanation(
        "start",
        "The model's file was not in memory and came from disk while it was loaded.",
        f"At least {_p(memoryfindings.COLD_SHARE)} of the file was read before the first call.",
        "a second start: profinfer report NEW.pf --faults shows no reads while loading",
    ),
    "cold_weights": Explanation(
        "start",
        "Weights were not in memory when an operator touched them: its thread waited for the disk.",
        "Major faults on weights inside graphs, and nothing was read twice.",
        "profinfer report NEW.pf --faults: no major faults in decode",
    ),
    "evicted": Explanation(
        "disturbance",
        "The weights do not stay in memory: the kernel drops their pages and reads them again.",
        "Bytes of the model's file that were read a second time are at least "
        f"{_p(memoryfindings.AGAIN_SHARE)} of the weights, some of them after the first call.",
        "profinfer report NEW.pf --faults: 'of size' is at most 100 %",
    ),
    "sampling": Explanation(
        "setting",
        "After each call the next token is chosen from the logits of the whole vocabulary. Sorting "
        "them, penalties and grammars run on one thread, while the others have nothing to do.",
        f"Time in samplers is at least {_p(_step.SAMPLING_MIN)} of the time from decode call to "
        f"decode call, over at least {scopes.MIN_TOKENS} tokens.",
        "the row 'sampling' of the wall time goes down",
    ),
    "graph_build": Explanation(
        "setting",
        "Before it computes, a call builds the graph of its batch and plans its memory, on one "
        "thread. llama.cpp keeps a graph when the next batch has the same shape.",
        "Time of decode calls outside of graphs, without profinfer's own, is at least "
        f"{_p(_step.BUILD_MIN)} of the time from call to call. New graphs are told by the engine's "
        "own number (cgraph->uid) where it has one.",
        "the row 'calls: building and scheduling the graphs' of the wall time goes down",
    ),
    "first_token": Explanation(
        "start",
        "The first step touches everything for the first time: pages, caches, the threads.",
        f"The call of the first decode step is {_step.FIRST_MIN:g} times the median of the others "
        "or more, no warm-up run was recorded, and the recording began before it.",
        "profinfer report NEW.pf --by token: the first step is as long as the others",
    ),
    "output_head": Explanation(
        "limit",
        "The last product computes a logit for every token of the vocabulary. In a small model "
        "with a large vocabulary it is the largest weight of all.",
        f"Operators of role 'output head' take at least {_p(_step.HEAD_MIN)} of the operators' "
        f"time in decode. A prize is given if its weights have more than {_step.BITS_SMALL:g} "
        "bits.",
        "profinfer report NEW.pf --by role --phase decode: 'output head' goes down",
    ),
    "attention": Explanation(
        "limit",
        "Attention reads all keys and values of the context for each token, so it grows with the "
        "context while all else stays.",
        f"Operators of role 'attention' take at least {_p(_step.ATTENTION_MIN)} of the operators' "
        f"time in decode, at a mean position of at least {_step.LONG_CONTEXT}.",
        "profinfer report NEW.pf --by role --phase decode: 'attention' goes down",
    ),
    "short_operators": Explanation(
        "setting",
        "Each operator ends at a barrier of all threads. If it is short, threads wait for longer "
        "than they compute: norms and additions of a small model.",
        f"Waiting in operators that take less than {format_ns(_step.SHORT_NS)} in the mean is at "
        f"least {_p(_step.BARRIER_MIN)} of the operators' time in decode, with no more threads "
        "than CPUs.",
        _AGAIN,
    ),
    "small_pieces": Explanation(
        "setting",
        "A prompt is computed in pieces (ubatch). Each piece reads all weights once, so small ones "
        "are as slow a token as decoding.",
        f"At most {_pre.SMALL_PIECE} prompt tokens a graph although a prompt has "
        f"{_pre.LONG_PROMPT} or more, and the prize is at least {_p(_pre.WORTH)} of the prefill. "
        "The fixed time of a graph comes from a line through a decode step and such a piece.",
        "'prefill tok/s' goes up, TTFT down",
    ),
    "few_threads": Explanation(
        "setting",
        "Computing a prompt is arithmetic; more cores would share it.",
        f"Prefill with at least {_pre.COMPUTE_TOKENS} tokens a graph, fewer threads than cores "
        f"within affinity and quota, computing is at least {_p(_pre.BUSY_MIN)} of the operators' "
        f"time, and the prize is at least {_p(_pre.WORTH)} of the prefill.",
        "'prefill tok/s' goes up; decode does not get slower",
    ),
    "slow_products": Explanation(
        "setting",
        "The matrix products of prompts are far below what these cores can do: a build without "
        "their vector instructions, or without a library for weights that are not quantised.",
        f"Prefill with at least {_pre.FULL_PIECE // 8} tokens a graph, matrix products take half "
        f"of the operators' time and reach at most {_p(_pre.SLOW_ROOF)} of the compute peak that "
        f"profinfer calibrate measured; {_p(_pre.PLAIN_MIN)} of it with F32, F16 or BF16 weights, "
        f"and threads were on a CPU for {_p(_pre.RUNNING_MIN)} of their computing.",
        "profinfer report NEW.pf --roofline --phase prefill: 'roof' of MUL_MAT goes up",
    ),
    "traffic": Explanation(
        "setting",
        "Tensors are copied from one backend's memory to another's at every border between parts "
        "of the graph, and somebody waits for each copy.",
        f"Copies that cross take at least {_p(backendfindings.TRAFFIC_MIN)} of the calls' time.",
        "profinfer report NEW.pf --by backend: 'copying' goes down, tok/s up",
    ),
    "starting": Explanation(
        "setting",
        "The graph is cut into many parts that alternate between backends. The CPU's threads start "
        "and leave at each of its parts.",
        f"At least {backendfindings.SPLITS_MIN} splits a call, and the CPU's graphs are at least "
        f"{_p(backendfindings.STARTING_MIN)} of the calls' time without an operator.",
        "profinfer report NEW.pf --by backend: fewer splits a call",
    ),
    "waiting": Explanation(
        "limit",
        "Another backend computes by itself and the program waits for its results: this part of a "
        "token is as long as its work and the way to it.",
        "Waiting for backends that compute asynchronously, inside of calls and from their end "
        "until their results were there, takes at least "
        f"{_p(backendfindings.WAITING_MIN)} of the calls' time.",
        "profinfer report NEW.pf --by backend: 'wait' goes down, tok/s up",
    ),
    "slow_clock": Explanation(
        "disturbance",
        "A CPU ran well below its highest clock while the target used it: a governor that saves "
        "power, a limit on power, or heat.",
        f"Its clock was below {_p(surroundings.SLOW)} of the highest in at least "
        f"{_p(surroundings.SLOW_MIN)} of the run, and the target ran there at least "
        f"{_p(surroundings.USED_MIN)} of the time.",
        _AGAIN,
    ),
    "heat": Explanation(
        "disturbance",
        "The processor lowered its clock to stay below its highest temperature.",
        "The kernel's counters of thermal throttling rose during the recording.",
        _AGAIN,
    ),
    "router_skew": Explanation(
        "limit",
        "The router of a mixture prefers few experts: they are read again and again, the others "
        "seldom.",
        f"In a layer at most {_p(expertfindings.SKEWED)} of the experts get half of the choices, "
        f"and that is {expertfindings.CHANCE:g} times what chance would do.",
        "it is the model's own; what is kept in memory can follow it: report NEW.pf --experts",
    ),
    "experts_reloaded": Explanation(
        "disturbance",
        "Experts that were not needed for a while have left memory or the caches, and are slow "
        "when they are chosen again.",
        "Passes of a layer whose experts were last needed more than 2 passes ago take at least "
        f"{expertfindings.SLOWER:g} times as long as the others, and the rank correlation with "
        f"that distance is at least {expertfindings.CORRELATED:g}.",
        "profinfer report NEW.pf --experts: passes with old experts take as long as the others",
    ),
    "experts_overread": Explanation(
        "setting",
        "Reading ahead brings parts of experts that nobody wants, and pushes out others.",
        "Disks read, inside of decode's graphs, at least "
        f"{expertfindings.OVER:g} times the bytes of the experts that were needed.",
        "profinfer report NEW.pf --faults: fewer bytes read a token",
    ),
}
