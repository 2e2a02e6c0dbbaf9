"""Layer 2: from the images of a program to the probes it gets, and those it does not, and why.

Owns the resolution of the catalogue and the choice of how operators are seen. Knows nothing
of BPF: a probe names a role, and the capture layer has a handler for each.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from profinfer.elf.disasm import Decoder
from profinfer.elf.emulation import running_kernel
from profinfer.elf.modules import EngineImage, Program
from profinfer.elf.sites import Site, at_insn, entry_site
from profinfer.elf.symbols import Function
from profinfer.engine.catalog import Layout, load_from
from profinfer.errors import TargetError
from profinfer.probes.catalog import (
    FUSED_ENTRIES,
    OPERATOR_ENTRY,
    SAMPLER_FALLBACK,
    SPECS,
)
from profinfer.probes.engine_facts import EngineFacts, read_facts
from profinfer.probes.layout import choose_layout
from profinfer.probes.operator_site import (
    BARRIER,
    Location,
    LoopSite,
    find_loop_sites,
    functions_by_calls,
    loop_functions,
    tests_flag,
)
from profinfer.probes.spec import Level, ProbeSpec


@dataclass(frozen=True)
class Probe:
    """One place where a handler runs.

    Attributes:
        id: index in the plan; records carry it.
        role: what a hit means (``ProbeSpec.role``, or ``op.enter``, ``op.end``, ``op.leave``,
            ``op.begin``, ``op.barrier``).
        function: symbol the site belongs to.
        image: soname, for people; ``path`` is what to open.
        address, offset: of the instruction, in the image and in the file.
        kind: ``uprobe`` or ``uretprobe``.
        insn: the instruction as text.
        emulated: what the kernel emulates it as, or None if it is stepped.
        cost_ns: estimate of one hit.
        stack_delta: bytes put on the stack since the function's entry; None if not known.
        index, cgraph: for ``op.end``: where loop index and graph lie.
        index_add: added to the index read, so that all sites of a plan have one bias.
    """

    id: int
    role: str
    function: str
    image: str
    path: str
    address: int
    offset: int
    kind: str
    insn: str
    emulated: str | None
    cost_ns: int
    stack_delta: int | None = 0
    index: Location | None = None
    cgraph: Location | None = None
    index_add: int = 0

    def to_json(self) -> dict[str, Any]:
        """As the trace's metadata keeps it."""
        return {
            "id": self.id,
            "role": self.role,
            "function": self.function,
            "image": self.image,
            "address": self.address,
            "offset": self.offset,
            "insn": self.insn,
            "emulated": self.emulated is not None,
            "cost_ns": self.cost_ns,
            "kind": self.kind,
        }


@dataclass(frozen=True)
class Skipped:
    """A probe that was wanted and is not there."""

    function: str
    role: str
    reason: str


@dataclass(frozen=True)
class OpsPlan:
    """How operators are seen.

    Attributes:
        mode: ``site``, ``pair`` or ``none``.
        bias: mode site: loop index read minus index of the node that ended.
        barrier_always: mode site: the barrier is called after the last node as well.
        why: proof of the site, or why it is not ``site``.
        cost_ns: estimated cost of probes for one operator on one thread.
    """

    mode: str
    bias: int = 0
    barrier_always: bool = False
    why: str = ""
    cost_ns: int = 0


@dataclass(frozen=True)
class ProbePlan:
    """What will be probed in a program.

    Attributes:
        level: asked for; ``ops.mode`` tells whether level op is really there.
        layout: offsets for reading graphs; None below level graph, or if not known.
        facts: engine version, op and type tables.
    """

    level: str
    probes: tuple[Probe, ...]
    skipped: tuple[Skipped, ...]
    ops: OpsPlan
    layout: Layout | None
    facts: EngineFacts
    images: tuple[EngineImage, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``plan`` object of the trace's metadata."""
        return {
            "level": self.level,
            "ops": {
                "mode": self.ops.mode,
                "bias": self.ops.bias,
                "barrier_always": self.ops.barrier_always,
                "why": self.ops.why,
                "cost_ns": self.ops.cost_ns,
            },
            "probes": [p.to_json() for p in self.probes],
            "skipped": [
                {"function": s.function, "role": s.role, "reason": s.reason} for s in self.skipped
            ],
        }

    def engine_json(self) -> dict[str, Any]:
        """The ``engine`` object of the trace's metadata."""
        facts = self.facts
        llama = any("llama" in i.roles for i in self.images)
        return {
            "name": "llama.cpp" if llama else "ggml",
            "version": facts.version,
            "commit": facts.commit,
            "evidence": facts.evidence.get("version"),
            "images": [
                {
                    "path": str(i.elf.path),
                    "build_id": i.elf.build_id,
                    "role": " ".join(i.roles),
                }
                for i in self.images
            ],
            "layout": self.layout.to_json() if self.layout else None,
            "ops": list(facts.ops),
            "ops_evidence": facts.evidence.get("ops"),
            "unary_ops": list(facts.unary_ops),
            "glu_ops": list(facts.glu_ops),
            "types": list(facts.types),
            "types_evidence": facts.evidence.get("types"),
        }


def make_plan(program: Program, level: str = "op") -> ProbePlan:
    """Decide what to probe in a program.

    Args:
        program: from ``elf.modules.open_program``.
        level: ``token``, ``graph`` or ``op``.

    Raises:
        TargetError: there is nothing of an engine to probe.
    """
    wanted = Level[level]
    facts = read_facts(program.images)
    functions = ChainMap(*(i.elf.functions for i in program.images))
    layout, why_not = choose_layout(facts, functions)
    draft = _Draft(program.images)
    for spec in SPECS:
        if spec.level > wanted:
            continue
        if spec.level >= Level.graph and layout is None:
            draft.skip(spec.names[0], spec.role, why_not)
        else:
            draft.add_spec(spec)
    if not any(p.role == "sample" for p in draft.probes):
        draft.add_spec(SAMPLER_FALLBACK)
    if not any(p.role.startswith("call.") or p.role == "graph" for p in draft.probes):
        _nothing_to_probe(program)
    ops = OpsPlan("none", why=f"level {level}")
    if wanted >= Level.op:
        ops = OpsPlan("none", why=why_not) if layout is None else draft.add_operators(layout)
        if layout is not None and not draft.skips_unflagged and ops.mode == "site":
            layout = layout.without("flags.compute")
        if ops.mode == "none":
            draft.skip("ggml_graph_compute_thread", "op.end", ops.why)
    return ProbePlan(
        level=level,
        probes=tuple(draft.probes),
        skipped=tuple(draft.skipped),
        ops=ops,
        layout=layout if wanted >= Level.graph else None,
        facts=facts,
        images=program.images,
    )


def _nothing_to_probe(program: Program) -> None:
    hint = "give a program built with llama.cpp or ggml, such as ./llama-completion"
    if program.missing:
        hint = f"libraries were not found: {', '.join(program.missing)}; set LD_LIBRARY_PATH"
    raise TargetError(f"{program.path}: no ggml or llama.cpp function inside", hint)


class _Draft:
    """The plan being made."""

    def __init__(self, images: Sequence[EngineImage]) -> None:
        self.images = images
        self.probes: list[Probe] = []
        self.skipped: list[Skipped] = []
        self.kernel = running_kernel()
        self.skips_unflagged = False  # the loop passes over nodes without the flag COMPUTE

    def skip(self, function: str, role: str, reason: str) -> None:
        """Remember what is not probed."""
        self.skipped.append(Skipped(function, role, reason))

    def find(self, name: str) -> Iterator[tuple[EngineImage, Function]]:
        """Functions of this name, or beginning with it (``prefix*``), in all images."""
        for image in self.images:
            if name.endswith("*"):
                for f in image.elf.functions.values():
                    if f.name.startswith(name[:-1]) and "." not in f.name:
                        yield image, f
            elif exact := image.elf.function(name):
                yield image, exact

    def add_spec(self, spec: ProbeSpec) -> None:
        """Probe what a spec names, or remember why not."""
        found = False
        for name in spec.names:
            for image, f in self.find(name):
                site = entry_site(
                    image.decoder,
                    f.address,
                    arguments=spec.arguments,
                    returns=spec.returns,
                    stack_arguments=spec.stack_arguments,
                    kernel=self.kernel,
                )
                self.add(spec.role, image, f.name, site)
                if spec.returns:
                    self.add(spec.role, image, f.name, site, kind="uretprobe")
                found = True
                break
            else:
                if spec.every:
                    self.skip(name.rstrip("*"), spec.role, "the program has no such function")
            if found and not spec.every:
                return
        if not found and not spec.every:
            self.skip(spec.names[0], spec.role, "the program has no such function")

    def add(
        self,
        role: str,
        image: EngineImage,
        function: str,
        site: Site,
        kind: str = "uprobe",
        index: Location | None = None,
        cgraph: Location | None = None,
        index_add: int = 0,
    ) -> Probe:
        """Append one probe."""
        probe = Probe(
            id=len(self.probes),
            role=role,
            function=function,
            image=image.elf.soname,
            path=str(image.elf.path),
            address=site.address,
            offset=site.offset,
            kind=kind,
            insn=site.insn,
            emulated=site.emulated,
            # A second probe on the same instruction shares its trap.
            cost_ns=hit_cost(site.emulated, kind, shared=self._occupied(image, site)),
            stack_delta=site.stack_delta,
            index=index,
            cgraph=cgraph,
            index_add=index_add,
        )
        self.probes.append(probe)
        return probe

    def _occupied(self, image: EngineImage, site: Site) -> bool:
        path = str(image.elf.path)
        return any(p.path == path and p.address == site.address for p in self.probes)

    # --- operators ------------------------------------------------------------------------
    def add_operators(self, layout: Layout) -> OpsPlan:
        """Operator probes: the loop's own barrier call if proven, else begins and barriers."""
        offsets = layout.cgraph
        reasons: list[str] = []
        for image in self.images:
            if "ggml-cpu" not in image.roles:
                continue
            sites = _loop_sites(image.decoder, offsets["n_nodes"], offsets["nodes"])
            if sites:
                self.skips_unflagged = tests_flag(
                    image.decoder,
                    sites[0].function,
                    layout.tensor["flags"],
                    layout.flags.get("compute", 0),
                )
                return self._add_sites(image, sites)
            reasons.append(f"no graph loop could be proven in {image.elf.soname}")
        why = "; ".join(reasons) or "no image computes graphs on the CPU"
        return self._add_pair(why)

    def _add_sites(self, image: EngineImage, sites: list[LoopSite]) -> OpsPlan:
        bias = sites[0].bias
        cost = 0
        for entry in sorted({s.entry for s in sites}):
            here = [s for s in sites if s.entry == entry]
            name = here[0].function.name
            # A loop inlined into a worker's own loop is not entered once a graph.
            once = here[0].function.base != "ggml_graph_compute_secondary_thread"
            if once:
                enter = entry_site(image.decoder, entry, kernel=self.kernel)
                self.add("op.enter", image, name, enter)
            else:
                self.skip(name, "op.enter", "the graph loop is inlined into the worker's loop")
            for s in here:
                probe = self.add(
                    "op.end",
                    image,
                    name,
                    at_insn(image.decoder, s.end, kernel=self.kernel, stack_delta=None),
                    index=s.index,
                    cgraph=s.cgraph,
                    index_add=bias - s.bias,
                )
                cost = max(cost, probe.cost_ns)
            leaves = {s.leave for s in here if s.leave is not None}
            for leave in sorted(leaves):
                site = at_insn(image.decoder, leave, kernel=self.kernel, stack_delta=None)
                self.add("op.leave", image, name, site)
            if not leaves and once:  # engines without a barrier after the loop
                back = entry_site(image.decoder, entry, returns=True, kernel=self.kernel)
                self.add("op.leave", image, name, back, kind="uretprobe")
        return OpsPlan(
            mode="site",
            bias=bias,
            barrier_always=all(s.barrier_always for s in sites),
            why=sites[0].proof,
            cost_ns=cost,
        )

    def _add_pair(self, why: str) -> OpsPlan:
        begins: list[Probe] = []
        for name in OPERATOR_ENTRY:
            for image, f in self.find(name):
                site = entry_site(image.decoder, f.address, arguments=2, kernel=self.kernel)
                begins.append(self.add("op.begin", image, f.name, site))
            if begins:
                break
        barrier = next(self.find(BARRIER), None)
        if not begins or barrier is None:
            missing = OPERATOR_ENTRY[-1] if not begins else BARRIER
            self.probes = [p for p in self.probes if p not in begins]
            return OpsPlan("none", why=f"{why}; and the program has no function {missing}")
        for name in FUSED_ENTRIES:
            for image, f in self.find(name):
                site = entry_site(image.decoder, f.address, arguments=2, kernel=self.kernel)
                self.add("op.begin", image, f.name, site)
        image, f = barrier
        last = self.add(
            "op.barrier", image, f.name, entry_site(image.decoder, f.address, kernel=self.kernel)
        )
        for entry in _thread_entries(image):
            enter = entry_site(image.decoder, entry.address, returns=True, kernel=self.kernel)
            self.add("op.enter", image, entry.name, enter)
            self.add("op.leave", image, entry.name, enter, kind="uretprobe")
        return OpsPlan("pair", why=why, cost_ns=begins[0].cost_ns + last.cost_ns)


def _loop_sites(decoder: Decoder, n_nodes: int, nodes: int) -> list[LoopSite]:
    """Proven loop sites, in functions of the known names, else in any that calls barriers."""
    tried: set[int] = set()
    for candidates in (loop_functions, lambda _image: functions_by_calls(decoder, BARRIER)):
        found: list[LoopSite] = []
        for f in candidates(decoder.image):
            if f.address not in tried:
                tried.add(f.address)
                found += find_loop_sites(decoder, f, n_nodes=n_nodes, nodes=nodes)
        if found:
            return found
    return []


def _thread_entries(image: EngineImage) -> list[Function]:
    """Functions that each thread runs once a graph, for mode pair."""
    return [
        f
        for f in loop_functions(image.elf)
        if f.base == "ggml_graph_compute_thread" or "._omp_fn" in f.name
    ][:1]


@cache
def _costs() -> dict[str, Any]:
    return load_from("profinfer.probes", "costs.toml")


def hit_cost(emulated: str | None, kind: str, *, shared: bool = False) -> int:
    """Estimated nanoseconds of one hit, before the recorder's own work."""
    costs = _costs()
    base = costs["emulated"][emulated] if emulated else costs["stepped"]["any"]
    if shared:
        base = 0
    return int(base + (costs["return"]["added"] if kind == "uretprobe" else 0))
