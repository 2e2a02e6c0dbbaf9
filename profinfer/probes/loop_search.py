"""Layer 2: in which functions of an image the graph loop is, and whether all threads are seen.

Owns the search; the proofs for one function are in ``operator_site`` (the loop calls the barrier)
and ``loop_point`` (it does not). A loop may have been inlined into what the main thread runs and
into what the workers run; if only one of the two can be proven, nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from profinfer.elf.calls import calls_to
from profinfer.elf.disasm import Decoder
from profinfer.elf.semantics import addresses_taken
from profinfer.elf.symbols import ElfImage, Function
from profinfer.probes.loop_point import find_loop_point
from profinfer.probes.operator_site import (
    BARRIER,
    LOOP_FUNCTIONS,
    LoopSite,
    find_loop_sites,
    functions_by_calls,
    loop_functions,
)

THREAD, WORKER, MAIN = LOOP_FUNCTIONS
_DEEP = 3  # calls from ggml_graph_compute to the loop
_WIDE = 48  # functions looked at

Prove = Callable[[Function], list[LoopSite]]


def loop_sites(
    decoder: Decoder, *, n_nodes: int, nodes: int, kernel: tuple[int, int]
) -> tuple[list[LoopSite], str]:
    """Proven sites that see every thread, and why there are none.

    Args:
        decoder: of the image that computes graphs.
        n_nodes: offset of ``ggml_cgraph::n_nodes`` in bytes.
        nodes: offset of ``ggml_cgraph::nodes`` in bytes.
        kernel: (major, minor) of the kernel that will run the probes.
    """
    image = decoder.image

    def by_call(function: Function) -> list[LoopSite]:
        return find_loop_sites(decoder, function, n_nodes=n_nodes, nodes=nodes)

    def by_point(function: Function) -> list[LoopSite]:
        site = find_loop_point(decoder, function, n_nodes=n_nodes, nodes=nodes, kernel=kernel)
        return [site] if site else []

    why = f"no graph loop could be proven in {image.soname}"
    for prove in (by_call, by_point):
        sites = [s for f in loop_functions(image) for s in prove(f)]
        if not sites:
            calling = functions_by_calls(decoder, BARRIER) if prove is by_call else []
            sites = [s for f in calling or nameless(decoder) for s in prove(f)]
        sites = list({s.end: s for s in sites}.values())
        if sites:
            unseen = _unseen(decoder, sites)
            if unseen is None:
                return sites, ""
            why = f"the graph loop of {image.soname} is proven for some threads only, not {unseen}"
    return [], why


def _unseen(decoder: Decoder, sites: list[LoopSite]) -> str | None:
    """What may run graphs without passing a site, or None."""
    image = decoder.image
    proven = {s.entry for s in sites}
    named = [f for f in loop_functions(image) if f.base == THREAD]
    if named:
        return next((f.name for f in named if f.address not in proven), None)
    main = image.function(MAIN)
    if main is not None and not proven & {f.address for f in _closure(decoder, main)}:
        return "for the main thread"
    for start in _thread_starts(decoder):
        if not proven & {f.address for f in _closure(decoder, start)}:
            return f"for threads that begin at {start.name}"
    return None


def nameless(decoder: Decoder) -> list[Function]:
    """Functions without a name of their own that running a graph may lead to."""
    main = decoder.image.function(MAIN)
    found = dict.fromkeys(_closure(decoder, main)[1:]) if main else {}
    for start in _thread_starts(decoder):
        found |= dict.fromkeys(_closure(decoder, start))
    return list(found)


def _thread_starts(decoder: Decoder) -> list[Function]:
    """Functions that threads of the engine begin at: taken where pthread_create is called."""
    image = decoder.image
    named = image.clones(WORKER)
    if named or image.function("llama_decode"):
        return named  # in a program of one file, others make threads too
    found: dict[int, Function] = {}
    for call in calls_to(image, "pthread_create"):
        caller = function_around(image, call)
        if caller is not None:
            for f in _taken(decoder, caller, calls=False):
                found.setdefault(f.address, f)
    return list(found.values())


def function_around(image: ElfImage, address: int) -> Function | None:
    """The function that holds an address, made up from unwind data where it has no name."""
    bounds = image.bounds(address)
    if bounds is None:
        return None
    named = image.function_at(bounds[0])
    return named or Function(f"sub_{bounds[0]:x}", bounds[0], bounds[1] - bounds[0])


def _closure(decoder: Decoder, function: Function) -> list[Function]:
    """A function and those without a name of their own that it leads to."""
    found = {function.address: function}
    edge = [function]
    for _ in range(_DEEP):
        following: list[Function] = []
        for f in edge:
            for other in _taken(decoder, f, calls=True):
                if other.address not in found and len(found) < _WIDE:
                    found[other.address] = other
                    following.append(other)
        edge = following
    return list(found.values())


def _taken(decoder: Decoder, function: Function, *, calls: bool) -> Iterator[Function]:
    """Functions of the loop that another calls, or whose address it takes."""
    image = decoder.image
    bounds = image.bounds(function.address)
    if bounds is None:
        return
    called = [
        insn.target
        for insn in decoder.straight(*bounds)
        if calls and insn.flow in ("call", "jmp") and insn.target is not None
    ]
    for target in dict.fromkeys([*called, *addresses_taken(decoder, *bounds)]):
        if bounds[0] <= target < bounds[1] or target in image.stubs:
            continue
        section = image.section_at(target)
        if section is None or not section.executable:
            continue
        found = function_around(image, target)
        if found is not None and found.address == target and _may_loop(found):
            yield found


def _may_loop(function: Function) -> bool:
    return (
        function.base in LOOP_FUNCTIONS
        or function.name.startswith("sub_")
        or "omp_outlined" in function.name
    )
