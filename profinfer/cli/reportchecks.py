"""Layer 8: what ``profinfer report`` cannot do, said in one line each.

Computes nothing and prints nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from profinfer.cli import options
from profinfer.cli.nothingchosen import nothing_chosen
from profinfer.cli.views import BY_EXPERTS, STEPS, ReportOptions
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.model.trace import Trace

# Views of calls and the like, which need no operators.
_NO_OPERATORS = ("token", "generation", "tensor", "prompt", "backend", "context", *STEPS)
_OWN_VIEWS = ("thread", "matmul", *_NO_OPERATORS)


class EmptyTrace(ProfinferError):
    """There is nothing to report."""


def check_usage(asked: ReportOptions, *, page: bool = False) -> None:
    """Options that contradict each other.

    Args:
        asked: the options.
        page: every view is wanted, backends among them.

    Raises:
        UsageProblem: they do.
    """
    if asked.explain is not None:
        if asked.other_view or asked.narrowed or asked.tokens or asked.phase or asked.form == "csv":
            raise UsageProblem("--explain is a view of its own", "report TRACE --explain [NAME]")
        return
    if asked.ledger:
        other = replace(asked, ledger=False).other_view
        if other or asked.narrowed or asked.tokens or asked.phase:
            raise UsageProblem("--ledger covers the whole run", "report TRACE --ledger")
        return
    if asked.form == "csv" and asked.by is None:
        raise UsageProblem("--format csv needs one view", "--format csv --by op --phase decode")
    if asked.tokens and asked.phase not in (None, "decode", "all"):
        raise UsageProblem("--tokens counts decoded tokens", "--phase decode --tokens 0:10")
    whole = ("prompt", *STEPS) if asked.experts else ("token", "prompt", *STEPS)
    if asked.by in whole and asked.narrowed:
        raise UsageProblem(f"--by {asked.by} shows whole calls", "leave out --op and --layer")
    if asked.by == "backend" and asked.narrowed and asked.against is None:
        raise UsageProblem(
            "--by backend shows whole splits and copies", "leave out --op and --layer"
        )
    if asked.by == "context" and (asked.narrowed or asked.phase or asked.tokens):
        raise UsageProblem(
            "--by context shows every call of each context",
            "leave out --phase, --tokens, --op and --layer",
        )
    if asked.device_times is not None and (page or asked.against is not None) and asked.narrowed:
        raise UsageProblem("--device-times are of whole graphs", "leave out --op and --layer")
    if asked.by in STEPS and asked.phase not in (None, "decode", "all"):
        raise UsageProblem(f"--by {asked.by} is about decoded tokens", f"--by {asked.by}")
    if asked.device_times is not None and asked.by != "backend" and not page:
        raise UsageProblem("--device-times goes with backends", "--by backend, or --html FILE")
    if asked.against is not None and asked.by != "backend":
        raise UsageProblem("--against compares backends", "--by backend --against OTHER.pf")
    if asked.roofline and asked.counters:
        raise UsageProblem("--roofline and --counters are two views", "give one of them")
    if asked.corrected:
        _check_corrected(asked)
    view = "--roofline" if asked.roofline else "--counters" if asked.counters else None
    if view and asked.by in _OWN_VIEWS:
        raise UsageProblem(f"{view} knows no --by {asked.by}", f"{view} --by op")
    if asked.of_experts:
        _check_experts(asked)
    if asked.faults:
        _check_faults(asked)
    elif asked.by == "tensor":
        raise UsageProblem("--by tensor is a view of page faults", "--faults --by tensor")


def _check_corrected(asked: ReportOptions) -> None:
    others = {"--roofline": asked.roofline, "--counters": asked.counters, "--faults": asked.faults}
    view = next((name for name, given in others.items() if given), None)
    if view is None and asked.by in _OWN_VIEWS:
        view = f"--by {asked.by}"
    if view is not None:
        raise UsageProblem(f"{view} has no corrected times", "--corrected --by op, or alone")


def _check_experts(asked: ReportOptions) -> None:
    if asked.roofline or asked.counters or asked.faults or asked.corrected:
        raise UsageProblem("what experts were chosen is a view of its own", "--experts alone")
    if asked.by is not None and asked.by not in BY_EXPERTS:
        known = ", ".join(BY_EXPERTS)
        raise UsageProblem(f"--experts knows no --by {asked.by}", f"one of {known}")
    if asked.op not in (None, "MUL_MAT_ID"):
        raise UsageProblem("experts are chosen for MUL_MAT_ID alone", "leave out --op")


def _check_faults(asked: ReportOptions) -> None:
    from profinfer.analysis.memory import KEYS

    if asked.roofline or asked.counters:
        raise UsageProblem("--faults and the other one are two views", "one of the two")
    if asked.narrowed or asked.tokens:
        raise UsageProblem("--faults shows whole phases", "--faults --phase decode --by tensor")
    if asked.by is not None and asked.by not in KEYS:
        raise UsageProblem(f"--faults knows no --by {asked.by}", f"one of {', '.join(KEYS)}")


def check_level(trace: Trace, asked: ReportOptions) -> None:
    """What this trace cannot tell.

    Raises:
        EmptyTrace: it holds neither calls nor graphs.
        UsageProblem: it was not recorded with what is asked for.
    """
    from profinfer.analysis.correction import probe_cost_ns
    from profinfer.analysis.counters import not_counted

    if not len(trace.calls) and not len(trace.graphs):
        if trace.meta.nothing_probed:
            raise EmptyTrace(
                f"{trace.path} holds no call and no graph: {options.NO_ENGINE}",
                "record it again, until the program has generated something",
            )
        if not trace.reader.complete:
            raise EmptyTrace(
                f"{trace.path} holds no call and no graph: its end is missing, and with it what "
                "the program may have computed",
                f"profinfer info {trace.path}, or record it again",
            )
        raise EmptyTrace(
            f"{trace.path} holds no call and no graph: the program ran no inference while recorded",
            f"profinfer info {trace.path}",
        )
    if asked.faults and not trace.has_faults:
        why = trace.meta.memory.get("why") or "profinfer was older"
        raise UsageProblem(f"{trace.path} holds no page faults: {why}", "profinfer record --faults")
    needs_ops = asked.by not in (None, *_NO_OPERATORS)
    needs_ops = needs_ops or asked.against is not None
    needs_ops = needs_ops or asked.narrowed or asked.roofline or asked.corrected
    needs_ops = needs_ops or (asked.counters and not len(trace.system_counters))
    if needs_ops and not len(trace.ops):
        if absent := nothing_chosen(trace):
            raise UsageProblem(
                f"{trace.path} holds no operators: {absent}",
                "profinfer record with other --ops and --layers, or without",
            )
        level = trace.meta.plan.level or "graph"
        raise UsageProblem(
            f"{trace.path} holds no operators: it was recorded at level {level}",
            "profinfer record --level op -- PROGRAM ...",
        )
    if asked.of_experts and not len(trace.experts):
        _no_experts(trace)
    if asked.corrected and probe_cost_ns(trace) is None:
        raise UsageProblem(
            f"{trace.path} does not say what a probe costs: there is nothing to correct by",
            "leave out --corrected",
        )
    if (
        asked.counters
        and not trace.meta.plan.counters
        and (asked.by is not None or not len(trace.system_counters))
    ):
        gone = ", ".join(not_counted(trace))
        raise UsageProblem(
            f"{trace.path} was recorded without counters"
            + (f": {gone} were asked for, and this machine does not count them" if gone else ""),
            "profinfer record --preset faults -- PROGRAM ..., which every machine counts"
            if gone
            else "profinfer record --preset faults -- PROGRAM ...",
        )
    if asked.op is not None and asked.op not in trace.nodes["op"].cat.categories:
        ran = trace.nodes["op"][~trace.nodes["empty"]].unique()
        known = ", ".join(sorted(map(str, ran))[:12])
        raise UsageProblem(f"no operator {asked.op} in this trace", f"one of {known}")


def _no_experts(trace: Trace) -> None:
    if not len(trace.expert_places.node):
        raise UsageProblem(
            f"{trace.path} is of a model without experts: no graph has MUL_MAT_ID",
            f"profinfer report {trace.path}",
        )
    why = trace.meta.experts.get("why") or "profinfer was older"
    if trace.has_experts:
        why = f"{trace.losses['lost_expert_rows']:,} tokens of a layer were lost"
    raise UsageProblem(
        f"{trace.path} does not say which experts were chosen: {why}", "profinfer record --experts"
    )
