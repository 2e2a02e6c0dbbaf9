"""Layer 2: functions whose addresses records hold: those that say whose a backend or a buffer is.

Records keep bare addresses; a reader has neither the program nor its symbols, so the names go into
the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from profinfer.elf.modules import EngineImage

_BEGIN = "ggml_backend_"
# ggml_backend_blas_get_name, _ZL33ggml_backend_cpu_buffer_get_baseP19ggml_backend_buffer, ...
_NAMED = re.compile(r"(?:^|\d)(ggml_backend_\w*?(?:buffer_(?:get_base|free_buffer)|_name))(?:P|$)")


def backend_functions(images: Iterable[EngineImage]) -> list[dict[str, Any]]:
    """Path, file offset and plain name of each such function of the images."""
    return [
        {
            "path": str(image.elf.path),
            "offset": image.elf.file_offset(function.address),
            "name": told[1],
        }
        for image in images
        for function in image.elf.functions.values()
        # Few names hold this, and the search through all of them would take some 40 ms.
        if _BEGIN in function.name and (told := _NAMED.search(function.name))
    ]
