"""How far our values are from a reference's: one yardstick for every parity test.

    error of a level = max |ours - reference| / max |reference|

What was measured is kept, and `conftest.py` ends the run with a table of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RELATIVE = 1e-5

# Level -> largest error of the test that runs.
seen: dict[str, float] = {}


def agree(level: str, ours: Any, reference: Any) -> None:
    """Fails when the two differ in shape, or by more than RELATIVE."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape, level
    error = float(np.abs(ours - reference).max() / np.abs(reference).max())
    seen[level] = max(error, seen.get(level, 0.0))
    assert error <= RELATIVE, (level, error)


def agree_all(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """`agree` on every level; both must have the same ones."""
    assert ours.keys() == reference.keys()
    for level, want in reference.items():
        agree(level, ours[level], want)


def lines(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Family -> level -> error as text, the worst of each family first."""
    told = []
    for family, levels in sorted(errors.items()):
        told.append(f"{family}: at most {max(levels.values()):.1e}")
        row = "   "
        for level, error in levels.items():
            entry = f" {level} {error:.1e}"
            if len(row) + len(entry) > 79:
                told.append(row)
                row = "   "
            row += entry
        told.append(row)
    return told
