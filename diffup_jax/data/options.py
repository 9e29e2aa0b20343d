"""What a config says of the data: section `data`; `augment` is in augment.py."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from diffup_jax.data import cues
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.data.cues import Conventions
from diffup_jax.sections import FREE, KEPT, Above, AtLeast, OneOf, Role, Section

_Share = Annotated[float, Meta(ge=0, lt=1), KEPT]


class DataSettings(Section):
    """Which images there are, and how they and their cues are read.

    source: a row of benchmarks.py. root: its folder; test_root: where test episodes
      come from, "" = root. train_split, test_split: names of the source's splits.
      fold: its classes are novel.
    image_size: images are resized to squares of this many pixels.
    min_area: share of an image a class must cover to count in it, 0 = any pixel; the
      protocols denet and pfenet test by rules of their own instead.
    skip_small_classes: True leaves out classes with too few images for the shots asked,
      and names them; False refuses to run.
    crowd: how COCO's crowd regions count; overlap: a pixel of two COCO classes: both
      have it, or the one that is painted last (coco.py).
    box, scribble: what these cues are; points: pixels of a point cue, 1 is one click,
      published: 20 (cues.py).
    on_error: a damaged file or annotation stops the run, or is left out, aloud.
    val_fraction: share of training images kept aside for validation on base classes.
    workers: processes that decode images; 0 = in the training process.
    """

    source: Annotated[str, OneOf(*BENCHMARKS), KEPT] = "coco"
    # The files of a run may move; a cache of other files is another cache.
    root: Annotated[str, Role.KEPT] = "data/coco"
    test_root: Annotated[str, FREE] = ""
    train_split: Annotated[str, KEPT] = "train2014"
    test_split: Annotated[str, FREE] = "val2014"
    fold: Annotated[int, AtLeast(0), KEPT] = 0
    image_size: Annotated[int, AtLeast(1), KEPT] = 384
    min_area: _Share = 0.0
    skip_small_classes: Annotated[bool, KEPT] = False
    crowd: Annotated[Literal["hsnet", "ignore"], KEPT] = "hsnet"
    overlap: Annotated[Literal["union", "painted"], KEPT] = "union"
    box: Annotated[str, OneOf(*cues.BOXES), KEPT] = "tight"
    scribble: Annotated[str, OneOf(*cues.SCRIBBLES), KEPT] = "stroke"
    points: Annotated[int, AtLeast(1), KEPT] = 20
    on_error: Annotated[Literal["stop", "skip"], Role.KEPT] = "stop"
    val_fraction: Annotated[float, Above(0), Meta(lt=1), KEPT] = 0.05
    workers: Annotated[int, AtLeast(0), FREE] = 2

    @property
    def conventions(self) -> Conventions:
        """What "box", "scribble" and "point" mean."""
        return Conventions(box=self.box, scribble=self.scribble, points=self.points)
