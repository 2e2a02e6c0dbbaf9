"""Layer 8: what a trace says of itself, for JSON documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


def about(trace: Trace) -> dict[str, Any]:
    """Path, program, engine, machine, level, and what was lost."""
    meta = trace.meta
    return {
        "path": str(trace.path),
        "profinfer": meta.profinfer,
        "created_utc": meta.created_utc,
        "argv": list(meta.target.argv),
        "engine": meta.engine.name,
        "engine_version": meta.engine.version,
        "machine": meta.host.machine,
        "cpu_model": meta.host.cpu_model,
        "level": meta.plan.level,
        "complete": trace.reader.complete,
        "losses": trace.missing,
    }
