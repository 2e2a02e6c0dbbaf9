"""Layer 2: a plan in the making: finds functions, chooses instructions, remembers what failed.

Owns the choice between the ways to see operators. ``plan`` decides what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from profinfer.elf.calls import calls_to
from profinfer.elf.emulation import running_kernel
from profinfer.elf.modules import EngineImage
from profinfer.elf.sites import Site, at_insn, entry_site
from profinfer.elf.symbols import Function
from profinfer.engine.catalog import Layout
from profinfer.probes.catalog import FUSED_ENTRIES, OPERATOR_ENTRY
from profinfer.probes.cost import hit_cost
from profinfer.probes.loop_point import waits_inline
from profinfer.probes.loop_search import THREAD, WORKER, loop_sites
from profinfer.probes.operator_site import (
    BARRIER,
    Location,
    LoopSite,
    functions_by_calls,
    loop_functions,
    tests_flag,
)
from profinfer.probes.parts import OpsPlan, Probe, Skipped
from profinfer.probes.spec import ProbeSpec


class Draft:
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

    def find(
        self, name: str, roles: tuple[str, ...] = ()
    ) -> Iterator[tuple[EngineImage, Function]]:
        """Functions of this name (``*``: anything) in all images, or in those with such a role."""
        for image in self.images:
            if roles and not set(roles) & set(image.roles):
                continue
            if "*" in name:
                piece = max(name.split("*"), key=len)  # spares most names the slow comparison
                for f in image.elf.functions.values():
                    if piece in f.name and fnmatchcase(f.name, name) and "." not in f.name:
                        yield image, f
            elif exact := image.elf.function(name):
                yield image, exact

    def add_spec(self, spec: ProbeSpec) -> None:
        """Probe what a spec names, or remember why not."""
        found = False
        for name in spec.names:
            for image, f in self.find(name, spec.images):
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
                if not spec.many:
                    break
            else:
                if spec.every and not spec.optional:
                    self.skip(name.rstrip("*"), spec.role, "the program has no such function")
            if found and not spec.every:
                return
        if not found and not spec.every and not spec.optional:
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
        if layout.no_operators:
            return OpsPlan("none", why=layout.no_operators)
        offsets = layout.cgraph
        reasons: list[str] = []
        for image in self.images:
            if "ggml-cpu" not in image.roles:
                continue
            sites, why = loop_sites(
                image.decoder,
                n_nodes=offsets["n_nodes"],
                nodes=offsets["nodes"],
                kernel=self.kernel,
            )
            if sites:
                self.skips_unflagged = tests_flag(
                    image.decoder,
                    sites[0].function,
                    layout.tensor["flags"],
                    layout.flags.get("compute", 0),
                )
                return self._add_sites(image, sites)
            reasons.append(why)
        why = "; ".join(reasons) or "no image computes graphs on the CPU"
        return self._add_pair(why)

    def _add_sites(self, image: EngineImage, sites: list[LoopSite]) -> OpsPlan:
        bias = sites[0].bias
        cost = 0
        for entry in sorted({s.entry for s in sites}):
            here = [s for s in sites if s.entry == entry]
            name = here[0].function.name
            # A loop inlined into a worker's own loop is not entered once a graph.
            once = here[0].function.base != WORKER
            before = here[0].enter
            if before is not None:
                enter = at_insn(image.decoder, before, kernel=self.kernel, stack_delta=None)
                self.add("op.enter", image, name, enter)
            elif once:
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
            leaves = {leave for s in here for leave in s.leaves}
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
        image, f = barrier
        entry, why_not = _waiting_function(image)
        if entry is None:
            self.probes = [p for p in self.probes if p not in begins]
            return OpsPlan("none", why=f"{why}; and {why_not}")
        for name in FUSED_ENTRIES:
            for fused_image, fused in self.find(name):
                site = entry_site(
                    fused_image.decoder, fused.address, arguments=2, kernel=self.kernel
                )
                self.add("op.begin", fused_image, fused.name, site)
        last = self.add(
            "op.barrier", image, f.name, entry_site(image.decoder, f.address, kernel=self.kernel)
        )
        enter = entry_site(image.decoder, entry.address, returns=True, kernel=self.kernel)
        self.add("op.enter", image, entry.name, enter)
        self.add("op.leave", image, entry.name, enter, kind="uretprobe")
        return OpsPlan("pair", why=why, cost_ns=begins[0].cost_ns + last.cost_ns)


def _waiting_function(image: EngineImage) -> tuple[Function | None, str]:
    """The one function that may hold the graph loop and waits by calling the barrier only.

    Where a barrier is inlined (clang does), the barrier's entry would not be hit, and waits would
    count as work.
    """
    named = loop_functions(image.elf)
    possible = [f for f in named if _calls_barrier(image, f)]
    possible = possible or functions_by_calls(image.decoder, BARRIER)
    threads = [f for f in possible if f.base == THREAD]
    if not possible:
        return None, f"the loop does not call {BARRIER}"
    if len(threads or possible) > 1:
        return None, "it is not known which function each thread runs"
    for f in {*named, *possible}:
        bounds = image.elf.bounds(f.address)
        if bounds and any(waits_inline(image.decoder, i) for i in image.decoder.straight(*bounds)):
            return None, f"{f.name} waits without calling {BARRIER}"
    return (threads or possible)[0], ""


def _calls_barrier(image: EngineImage, function: Function) -> bool:
    bounds = image.elf.bounds(function.address)
    return bounds is not None and next(calls_to(image.elf, BARRIER, *bounds), None) is not None
