"""F3: an answer for one picture, as numpy arrays of the picture's own size."""

from __future__ import annotations

import dataclasses
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from diffup_jax import files
from diffup_jax.data import episode
from diffup_jax.data.pictures import overlay
from diffup_jax.metrics import predicted
from diffup_jax.types import DiffUpError, Prediction

# Apart for every common kind of colour blindness, and rare in photographs.
COLOURS = (
    (255, 45, 140),
    (30, 120, 255),
    (255, 176, 0),
    (0, 170, 110),
    (150, 80, 220),
)


class Observed:
    """What a task keeps of a picture for corrections: made once, when first asked."""

    def __init__(self):
        self._lock, self._owner, self._found = threading.Lock(), None, None

    def get(
        self, owner: Any, make: Callable[[np.ndarray], Any], image: np.ndarray
    ) -> Any:
        """What `make(image)` gave the first time that this `owner` (a task) asked."""
        with self._lock:
            if self._owner is not owner:
                self._owner, self._found = owner, make(image)
            return self._found


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The answer for one picture.

    labels: what was asked, n of them. image [h w 3] uint8; name: its file, or "".
    masks [n h w]: no pixel is of two labels. probabilities [n h w] in [0, 1];
    thresholds [n]: from which on a pixel may be in its mask. uncertainties [n h w]:
    standard deviation sqrt(p (1 - p)) or the method's own. scores [n] in [0, 1]: the
    expected IoU of each mask, if the probability is to be believed; 0 of an empty one.
    strokes: what was said of the picture itself so far, [2 n h w], or None.
    """

    labels: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    name: str
    masks: Bool[np.ndarray, "n h w"]
    probabilities: Float[np.ndarray, "n h w"]
    thresholds: Float[np.ndarray, " n"]
    uncertainties: Float[np.ndarray, "n h w"]
    scores: Float[np.ndarray, " n"]
    strokes: Bool[np.ndarray, "2 n h w"] | None = None
    observed: Observed = dataclasses.field(default_factory=Observed, repr=False)

    @classmethod
    def of(
        cls, found: Prediction, image: np.ndarray, *, name: str, labels: tuple[str, ...]
    ) -> Result:
        """A prediction [n s s] at the size of its picture."""
        shape = image.shape[:2]
        bring = lambda x: episode.at_own_size(np.asarray(x, np.float32), shape)  # noqa: E731
        probabilities = np.clip(bring(found.probability), 0, 1)
        thresholds = np.asarray(found.threshold, np.float32)
        masks = predicted(probabilities, thresholds)
        own = found.maps.get("uncertainty")
        unsure = np.sqrt(probabilities * (1 - probabilities))
        inside = (probabilities * masks).sum(axis=(1, 2))
        outside = (probabilities * ~masks).sum(axis=(1, 2))
        return cls(
            labels=labels,
            image=image,
            name=name,
            masks=masks,
            probabilities=probabilities,
            thresholds=thresholds,
            uncertainties=unsure if own is None else bring(own),
            scores=inside / np.maximum(masks.sum(axis=(1, 2)) + outside, 1e-6),
        )

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The mask of the only label."""
        return self.masks[self.place(None)]

    @property
    def probability(self) -> Float[np.ndarray, "h w"]:
        """The probability of the only label."""
        return self.probabilities[self.place(None)]

    @property
    def uncertainty(self) -> Float[np.ndarray, "h w"]:
        """The uncertainty of the only label."""
        return self.uncertainties[self.place(None)]

    @property
    def score(self) -> float:
        """The score of the only label."""
        return float(self.scores[self.place(None)])

    @property
    def label(self) -> str:
        """The only label."""
        return self.labels[self.place(None)]

    @property
    def index(self) -> UInt8[np.ndarray, "h w"]:
        """0 where there is none of the labels, i of the label i - 1."""
        return (self.masks * np.arange(1, len(self.labels) + 1)[:, None, None]).sum(
            axis=0, dtype=np.uint8
        )

    def place(self, label: str | None) -> int:
        """Where a label stands; None is the only one.

        Raises DiffUpError for a label that was not asked, and for None of several.
        """
        if label is None and len(self.labels) == 1:
            return 0
        if label not in self.labels:
            raise DiffUpError(
                f"label {label!r} was asked of a result with the labels "
                f"{list(self.labels)}; name one of them, or use masks, probabilities, "
                "scores, index."
            )
        return self.labels.index(label)

    def __getitem__(self, label: str) -> Result:
        """The same of one label alone."""
        at = [self.place(label)]
        return dataclasses.replace(
            self,
            labels=(label,),
            masks=self.masks[at],
            probabilities=self.probabilities[at],
            thresholds=self.thresholds[at],
            uncertainties=self.uncertainties[at],
            scores=self.scores[at],
            strokes=None if self.strokes is None else self.strokes[:, at],
            observed=Observed(),
        )

    def said(self, strokes: np.ndarray, observed: Observed) -> Result:
        """The same after these strokes: what was said of a pixel is so."""
        fg, bg = strokes
        masks = self.masks & ~bg
        masks = masks & ~(fg.any(axis=0) & ~fg) | fg
        return dataclasses.replace(
            self, masks=masks, strokes=strokes, observed=observed
        )

    def overlay(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with every mask in its colour."""
        shown = self.image
        for place, mask in enumerate(self.masks):
            colour = COLOURS[place % len(COLOURS)]
            shown = overlay(shown, mask, colour=colour, strength=0.55)
        return shown

    def save(self, stem: str | os.PathLike) -> list[Path]:
        """Writes STEM_mask.png, STEM_probability.png and STEM_overlay.jpg.

        The mask holds 0 and 255, of several labels `index`; the probability is of 16
        bits (65535 = 1), a file for each label where there are several. Answers the
        files; the folder is made. Raises OSError where it cannot be written.
        """
        single = len(self.labels) == 1
        mask = self.masks[0].astype(np.uint8) * 255 if single else self.index
        written = {"mask.png": Image.fromarray(mask)}
        for label, probability in zip(self.labels, self.probabilities, strict=True):
            word = "probability" if single else f"{_plain(label)}_probability"
            scaled = np.rint(probability * 65535).astype(np.uint16)
            written[f"{word}.png"] = Image.fromarray(scaled)
        written["overlay.jpg"] = Image.fromarray(self.overlay())
        paths = []
        for ending, picture in written.items():
            path = Path(f"{os.fspath(stem)}_{ending}")
            buffer = io.BytesIO()
            if path.suffix == ".png":
                picture.save(buffer, "PNG")
            else:
                picture.save(buffer, "JPEG", quality=90)
            files.write_whole(path, buffer.getvalue())
            paths.append(path)
        return paths

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        Image.fromarray(self.overlay()).save(buffer, "PNG")
        return buffer.getvalue()


def _plain(label: str) -> str:
    """A label as part of a file name."""
    kept = "".join(letter if letter.isalnum() else "_" for letter in label)
    return kept.strip("_") or "label"
