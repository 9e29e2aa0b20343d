"""What a set of labelled images must answer, and how one is opened.

A source knows its classes, the fold in which each is novel, which images contain which
class, and the pixels. Episodes, cues and the pipeline see nothing else of a data set,
so a new benchmark is one more reader and one more row in benchmarks.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt16
from scipy import ndimage

from diffup_jax.data import protocols
from diffup_jax.data.benchmarks import BENCHMARKS, Benchmark
from diffup_jax.data.options import DataSettings
from diffup_jax.data.readers import coco, packed
from diffup_jax.types import DiffUpError

KINDS = tuple(BENCHMARKS)
ROLES = ("base", "novel")


@runtime_checkable
class Source(Protocol):
    """Labelled images. Class index = position in `class_names`, from 0.

    `class_folds[c]` is the fold in which class c is novel, -1: in none. `root` is the
    folder that was opened, for messages and reports. An image id names one image: its
    part before the first "#" is the photograph, what follows an object cut from it.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        """The images that contain the class, in a fixed order without repeats."""

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels."""

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore), disjoint; the mask is empty where the class is absent."""

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """0 outside the mask, 1..m the instances of the class, the largest first.

        A source that knows no instances answers the connected components.
        """


def open_source(
    kind: str,
    *,
    root: str,
    split: str,
    min_area: float,
    crowd: str,
    overlap: str = "union",
    shots: int = 1,
) -> Source:
    """Opens the images of one split.

    kind: a row of `benchmarks.BENCHMARKS`, for example "coco" or "label_map".
    root: folder; `~` and environment variables such as `$DATA` are expanded.
    split: the kind's name for it, such as "val2014", or of a list file, as "train".
    min_area: in [0, 1); a class counts in an image only when it covers a larger
        fraction of it, 0 = any pixel.
    crowd: "hsnet" or "ignore", how COCO's crowd regions count (see coco.py); only
        COCO files have such regions.
    overlap: "union" or "painted", whose a pixel of two COCO classes is (see coco.py).
    shots: supports per episode. Only LVIS-92i asks: its folds are dealt among the
        classes with more images than that (see lvis.py).

    Raises DiffUpError for an unknown kind, a min_area out of range, a root that does
    not exist, and for everything the readers find wrong in the files.
    """
    if kind not in BENCHMARKS:
        raise DiffUpError(f"unknown data kind {kind!r}; expected one of {KINDS}.")
    if not 0 <= min_area < 1:
        raise DiffUpError(
            f"min_area is {min_area}; expected a fraction of the image in [0, 1), "
            "for example 0.01 for one per cent."
        )
    if crowd not in coco.CROWD:
        raise DiffUpError(f"unknown crowd rule {crowd!r}; expected {coco.CROWD}.")
    if overlap not in coco.OVERLAP:
        raise DiffUpError(f"unknown overlap rule {overlap!r}; expected {coco.OVERLAP}.")
    if shots < 1:
        raise DiffUpError(f"{shots} shots; expected at least 1.")
    row = BENCHMARKS[kind]
    options = {"crowd": crowd, "overlap": overlap, "shots": shots}
    return row.reader(
        _expand(root, row.layout),
        split=split,
        min_area=min_area,
        **{name: options[name] for name in row.options},
    )


def open_split(
    data: DataSettings, side: str, *, shots: int, rule: protocols.Protocol | None = None
) -> Source:
    """The source of "train" or "test" for episodes of that many shots.

    rule: the protocol of a test; one with an area rule of its own tests by that rule
    alone (see draws.py).
    """
    training = side == "train"
    own_rule = rule is not None and (rule.min_pixels or rule.min_area)
    return open_source(
        data.source,
        root=data.root if training else data.test_root or data.root,
        split=data.train_split if training else data.test_split,
        min_area=0.0 if own_rule else data.min_area,
        crowd=data.crowd,
        overlap=data.overlap,
        shots=shots,
    )


def boxes(source: Source, image_id: str, class_id: int) -> Int[np.ndarray, "m 4"]:
    """One tight box per instance: y0 x0 y1 x1, ends exclusive, the largest first."""
    found = ndimage.find_objects(source.instances(image_id, class_id))
    corners = [
        (rows.start, columns.start, rows.stop, columns.stop)
        for rows, columns in filter(None, found)
    ]
    return np.array(corners, np.int64).reshape(-1, 4)


def rules_of(source: Source, kind: str) -> Benchmark:
    """The row a protocol follows for a source that was opened as `kind`.

    Packed data keeps the rules of what was packed. Raises DiffUpError when that is no
    benchmark.
    """
    if isinstance(source, packed.PackedSource):
        kind = source.kind
    if kind not in BENCHMARKS:
        raise DiffUpError(
            f"{source.root} was packed from the data kind {kind!r}; expected one of "
            f"{KINDS}. Pack the data again."
        )
    return BENCHMARKS[kind]


def fold_classes(source: Source, fold: int, *, role: str) -> tuple[int, ...]:
    """The class indices of a fold that have images, in increasing order.

    role "novel": the classes of the fold; "base": all others. Raises DiffUpError for
    an unknown role or fold, and when no such class has an image.
    """
    if role not in ROLES:
        raise DiffUpError(f"unknown role {role!r}; expected one of {ROLES}.")
    folds = sorted(set(source.class_folds) - {-1})
    if fold not in folds:
        raise DiffUpError(f"{source.name} has no fold {fold}; its folds are {folds}.")
    classes = tuple(
        index
        for index, home in enumerate(source.class_folds)
        if (home == fold) == (role == "novel") and source.image_ids(index)
    )
    if not classes:
        raise DiffUpError(
            f"{source.name} (in {source.root}) has no image of any {role} class of "
            f"fold {fold}; use another split or fold, or a smaller min_area."
        )
    return classes


def hold_out(source: Source, fraction: float) -> tuple[Source, Source]:
    """Two views of a source with disjoint images: (kept, held out).

    About `fraction` in (0, 1) of the images are held out. An image's side depends on
    its photograph's name alone, so it never changes between runs, machines or sizes of
    the data set, and two objects cut from one photograph stay together.
    """
    if not 0 < fraction < 1:
        raise DiffUpError(f"hold-out fraction is {fraction}; expected one in (0, 1).")
    sides: tuple[list[tuple[str, ...]], list[tuple[str, ...]]] = ([], [])
    for class_id in range(len(source.class_names)):
        ids = source.image_ids(class_id)
        held = {i for i in ids if _unit_hash(i.partition("#")[0]) < fraction}
        sides[0].append(tuple(i for i in ids if i not in held))
        sides[1].append(tuple(i for i in ids if i in held))
    kept, held_out = (_View(source, tuple(side)) for side in sides)
    return kept, held_out


def leave_out(
    source: Source, classes: Sequence[int], count: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`classes` as (those that train, `count` others), each in its order.

    Which are left out depends on their names alone.

    Raises:
      DiffUpError: if none would be left to train.
    """
    if count and count >= len(classes):
        raise DiffUpError(
            f"{count} classes cannot be left out of the {len(classes)} base classes of "
            f"{source.name}: at least one must train. Lower config.train.val_classes."
        )
    by_hash = sorted(classes, key=lambda c: _unit_hash(source.class_names[c]))
    left = set(by_hash[:count])
    return (
        tuple(c for c in classes if c not in left),
        tuple(c for c in classes if c in left),
    )


def classes_with_images(
    source: Source, classes: Sequence[int], *, shots: int
) -> tuple[int, ...]:
    """Those of `classes` that have a query and `shots` other images.

    Says on the terminal which are left out: a number over fewer classes is another
    number. Raises DiffUpError when none is left.
    """
    kept = tuple(c for c in classes if len(source.image_ids(c)) > shots)
    left = [source.class_names[c] for c in classes if c not in kept]
    if left:
        print(
            f"{len(left)} of {len(classes)} classes of {source.name} have fewer than "
            f"{shots + 1} images and are left out: {', '.join(left)}",
            flush=True,
        )
    if not kept:
        raise DiffUpError(
            f"no class of {source.name} has the {shots + 1} images that {shots}-shot "
            "episodes need. Use fewer shots or add images."
        )
    return kept


def require_images(source: Source, classes: Sequence[int], shots: int) -> None:
    """Raises DiffUpError unless each class has a query and `shots` other images."""
    for class_id in classes:
        images = len(source.image_ids(class_id))
        if images < shots + 1:
            raise DiffUpError(
                f"class {class_id} ({source.class_names[class_id]}) of {source.name} "
                f"has {images} image(s) but {shots}-shot episodes need {shots + 1} "
                "(supports and query differ). Use fewer shots, a smaller min_area, "
                "or add images of this class."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """A source with some of its images out of sight."""

    source: Source
    by_class: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def root(self) -> str:
        return self.source.root

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def class_folds(self) -> tuple[int, ...]:
        return self.source.class_folds

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def image(self, image_id: str) -> np.ndarray:
        return self.source.image(image_id)

    def mask(self, image_id: str, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        return self.source.mask(image_id, class_id)

    def instances(self, image_id: str, class_id: int) -> np.ndarray:
        return self.source.instances(image_id, class_id)


def _expand(root: str, layout: str) -> Path:
    expanded = os.path.expanduser(os.path.expandvars(root))
    told = f"{root!r}" if expanded == root else f"{root!r} (expanded: {expanded!r})"
    if "$" in expanded:
        raise DiffUpError(
            f"the data root {told} names an environment variable that is not set. "
            f"Set it, or give the folder itself. Expected layout: {layout}"
        )
    if not root or not Path(expanded).is_dir():
        raise DiffUpError(
            f"the data root {told} is not a folder. Give the folder that holds the "
            f"data set (data.root), or correct the variable. Expected layout: {layout}"
        )
    return Path(expanded)


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
