"""Layer 2: what a probe plan is made of, as frozen data, and its JSON for the trace's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profinfer.elf.modules import EngineImage
from profinfer.engine.catalog import Layout
from profinfer.probes.backend_functions import backend_functions
from profinfer.probes.engine_facts import EngineFacts
from profinfer.probes.operator_site import Location


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


_GRAPH_ROLES = ("graph", "split", "leafs")


@dataclass(frozen=True)
class ProbePlan:
    """What will be probed in a program.

    Attributes:
        level: asked for; ``ops.mode`` tells whether level op is really there.
        layout: offsets of the engine's structs, None if not known. Level token reads batches only.
        facts: engine version, op and type tables.
    """

    level: str
    probes: tuple[Probe, ...]
    skipped: tuple[Skipped, ...]
    ops: OpsPlan
    layout: Layout | None
    facts: EngineFacts
    images: tuple[EngineImage, ...]

    @property
    def reads_graphs(self) -> bool:
        """Graphs and their tensors are walked over."""
        return self.layout is not None and any(p.role in _GRAPH_ROLES for p in self.probes)

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
                    "names": i.elf.names_from,
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
            "functions": backend_functions(self.images) if self.reads_graphs else [],
        }
