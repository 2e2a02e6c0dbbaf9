"""Layer 5: strings of many things of which few are distinct, as categoricals.

Must not import the analyses or above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

I32 = npt.NDArray[np.int32]


class Texts:
    """Strings of the distinct tensors, and categoricals gathered from them."""

    def __init__(self, values: list[str]) -> None:
        self.values = [*values, ""]  # the last one serves -1: nothing there
        self.categories, self.codes = coded(self.values)

    def take(self, content: I32) -> pd.Categorical[Any]:
        """Categorical of the strings of these content ids; -1 gives the empty string."""
        return pd.Categorical.from_codes(self.codes[content], categories=pd.Index(self.categories))


def coded(values: list[str]) -> tuple[list[str], I32]:
    """The distinct strings in order of their first use, and which of them each is."""
    found: dict[str, int] = {}
    codes = np.fromiter((found.setdefault(v, len(found)) for v in values), np.int32, len(values))
    return list(found), codes
