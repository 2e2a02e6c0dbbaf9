"""profinfer: what an LLM inference really does, from an unmodified ggml program."""

from __future__ import annotations

from profinfer._version import __version__

__all__ = ["__version__"]
