"""Layer 4: notices the engine in a target that loads it later, and holds the target meanwhile.

Python, Node and programs with backends as plug-ins load ggml by dlopen. The target stops itself
(a BPF program sends SIGSTOP) at two kinds of place: at the loader's own hook, whenever libraries
were loaded, and then at the engine's first use. Nothing polls, and nothing of the engine runs
before the probes are in place.
"""

from __future__ import annotations

import signal
from enum import Enum

from profinfer.capture.program import Program
from profinfer.capture.source import bpf_folder, headers_folder
from profinfer.capture.uprobes import AttachPoint
from profinfer.elf.loader import LoaderHook
from profinfer.elf.modules import EngineImage
from profinfer.elf.process import ProcessImages

# What a program calls when all of the engine is loaded and before its first graph, then what it
# calls with a graph; the first one hit counts. When it is one of the latter, the beginning of
# that very call is missed.
_FIRST_USES = (
    "llama_init_from_model",
    "llama_new_context_with_model",
    "ggml_backend_rpc_start_server",
    "ggml_backend_sched_new",
    "ggml_gallocr_new",
    "ggml_graph_plan",
    "llama_decode",
    "llama_encode",
    "llama_process",
    "ggml_backend_sched_graph_compute_async",
    "ggml_backend_graph_compute_async",
    "ggml_graph_compute",
)


class Stop(Enum):
    """Why the target stopped itself."""

    LOADED = "libraries were loaded"
    USED = "the engine is about to be used for the first time"


class LoadWatch:
    """Waits for an engine in one process.

    Args:
        hook: the loader's hook.
        images: of the process, which is held at its gate.
    """

    def __init__(self, hook: LoaderHook, images: ProcessImages) -> None:
        self._images = images
        self._armed: set[str] = set()
        self._seen = [0, 0]
        text = "#include <linux/ptrace.h>\n" + (bpf_folder() / "watch.bpf.c").read_text()
        flags = [f"-DPF_SIGSTOP={int(signal.SIGSTOP)}"]
        self._program = Program(text, flags, headers=headers_folder(), pid=images.pid)
        at_hook = AttachPoint("pf_on_load", str(hook.path), hook.offset, False)
        self._program.group([at_hook]).attach()

    def look(self) -> Stop | None:
        """The target has stopped: find out why, and set tripwires in what was loaded.

        Returns:
            None if it was not us who stopped it.
        """
        hits = self._program.array("hits", 2)
        loaded, tripped = hits[0] > self._seen[0], hits[1] > self._seen[1]
        self._seen = hits
        if loaded and not tripped:
            for image in self._images.look():
                self._arm(image)
        return Stop.USED if tripped else Stop.LOADED if loaded else None

    def _arm(self, image: EngineImage) -> None:
        path = str(image.elf.path)
        if path in self._armed:
            return
        self._armed.add(path)
        functions = filter(None, map(image.elf.function, _FIRST_USES))
        # Two names of one function are one place.
        offsets = {image.elf.file_offset(function.address) for function in functions}
        points = [AttachPoint("pf_on_trip", path, offset, False) for offset in sorted(offsets)]
        self._program.group(points).attach()

    @property
    def images(self) -> ProcessImages:
        """What is known of the process."""
        return self._images

    def close(self) -> None:
        """Nothing is stopped from now on; hook and tripwires go in the background."""
        self._program.set_array("hits", 2, 1)
        self._program.release()
