"""Does a method know where it is wrong? Answered from whole-number histograms.

A map u says where the prediction is unsure. The area under the ROC curve of "this pixel
is wrong", pooled over all valid pixels, over pairs of a wrong pixel i and a right j:

    (5) AUROC  = (#(u_i > u_j) + #(u_i = u_j) / 2) / #(i, j)

The probability p of a way is a claim: of the pixels with p = 0.7, 70 % are of its
class. Over 16 equal bins of p, bin k = [k/16, (k+1)/16), the last one closed, and with
y in {0, 1} the truth, the expected calibration error of the probability is

    (6) ECE    = sum_k |sum_{i in k} (p_i - y_i)| / sum_k #(i in k)
    (7) ECE_fg = (6) over the bins k >= 1 alone, that is p >= 1/16

pooled over all valid pixels and ways, p first rounded to a whole multiple of 1/256. (6)
is arXiv 1706.04599's, of the probability instead of the larger of p and 1 - p. Most
pixels are background that everybody knows: a blank answer has a small (6). So (7) asks
where the map shows something. It selects by p and not by y: a choice that looks at the
truth would make a perfectly calibrated map look wrong. Objects that were missed with
p < 1/16 are therefore in (6) and not in (7): read both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffup_jax.metrics.counts import PROBABILITY_LEVELS

BINS = 16


class Reliability(NamedTuple):
    """The reliability table, by bin of p: what was claimed and what was true.

    confidence: mean p, and frequency: share of foreground, both NaN in an empty bin;
    share: of all pixels, zero if there are none.
    """

    confidence: Float[np.ndarray, " bins"]
    frequency: Float[np.ndarray, " bins"]
    share: Float[np.ndarray, " bins"]


def auroc(histogram: Int[np.ndarray, "2 bins"]) -> float | None:
    """Equation (5) of counts by (wrong, bin of u); None when all pixels are alike."""
    right, wrong = histogram.astype(np.float64)
    if not right.sum() or not wrong.sum():
        return None
    below = np.cumsum(right) - right
    return float(np.sum(wrong * (below + right / 2)) / (right.sum() * wrong.sum()))


def calibration_error(
    histogram: Int[np.ndarray, "2 levels"], *, first: int
) -> float | None:
    """ECE over the bins k >= `first`, of counts by (truth, 256 p); None without pixels.

    `first` 0 is equation (6), 1 is (7).
    """
    pixels, claimed, true = (part[first:] for part in _by_bin(histogram))
    if not pixels.sum():
        return None
    gaps = np.abs(claimed - PROBABILITY_LEVELS * true).sum()
    return float(gaps / (PROBABILITY_LEVELS * pixels.sum()))


def reliability(histogram: Int[np.ndarray, "2 levels"]) -> Reliability:
    """The table behind `calibration_error`, of the same counts."""
    pixels, claimed, true = _by_bin(histogram)
    some = np.where(pixels > 0, pixels, np.nan)
    return Reliability(
        confidence=claimed / (PROBABILITY_LEVELS * some),
        frequency=true / some,
        share=pixels / max(pixels.sum(), 1),
    )


def _by_bin(histogram: Int[np.ndarray, "2 levels"]) -> list[Int[np.ndarray, " bins"]]:
    """Pixels, sum of 256 p and foreground pixels of each bin, in whole numbers."""
    levels = np.arange(PROBABILITY_LEVELS + 1)
    place = np.minimum(levels * BINS // PROBABILITY_LEVELS, BINS - 1)
    pixels = histogram.sum(axis=0)
    sums = []
    for values in (pixels, levels * pixels, histogram[1]):
        sums.append(np.zeros(BINS, np.int64))
        np.add.at(sums[-1], place, values)
    return sums
