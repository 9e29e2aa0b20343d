"""The benchmarks, one row each: everything that is known of one by its name.

A new benchmark is a row here, and a reader (`open_X(folder, *, split, min_area, ...) ->
Source` and a `LAYOUT`) if its files are of a new kind. Class counts, folds, splits and
the facts that protocols ask for are those of the published code (HSNet for COCO, Pascal
and FSS-1000, Matcher for LVIS, PACO-Part and Pascal-Part); (ours) where it is silent.

COCO -> Pascal, the cross-data-set test, has no files of its own: it is Pascal VOC with
each class moved to the fold in which COCO-20i holds it out, so that a network trained
on the base classes of COCO fold f is tested on classes it never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diffup_jax.data import inspection
from diffup_jax.data.inspection_json import Findings, Pictures
from diffup_jax.data.readers import (
    class_folders,
    coco,
    label_maps,
    lvis,
    packed,
    paco_part,
    pascal_part,
    voc,
)

# VOC class -> rank of the same class in COCO, whose names differ in six cases
# (airplane, couch, dining table, motorcycle, potted plant, tv).
COCO_RANKS = {
    "aeroplane": 4,
    "bicycle": 1,
    "bird": 14,
    "boat": 8,
    "bottle": 39,
    "bus": 5,
    "car": 2,
    "cat": 15,
    "chair": 56,
    "cow": 19,
    "diningtable": 60,
    "dog": 16,
    "horse": 17,
    "motorbike": 3,
    "person": 0,
    "pottedplant": 58,
    "sheep": 18,
    "sofa": 57,
    "train": 6,
    "tvmonitor": 62,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One kind of `config.data.source`.

    Its data:
    reader: (folder, *, split, min_area, ...) -> Source. options: which of crowd,
        overlap and shots it takes besides.
    layout: the files that the reader expects, for messages.
    train, test: the usual split names.
    classes, folds: how many the whole data set has, None where that depends on the
        user's files. folds_of: the other row whose folds these are too, so that a
        network trained on that one has seen the other folds' classes.

    For the protocols (see protocols.py, draws.py):
    family: whose images they are, "coco", "pascal" or "other".
    order: where class and query of an hsnet episode come from, see
        `episodes.hsnet_stream`.
    distinct: supports never repeat, in any protocol.
    episodes: of an hsnet run, None for the protocol's own number. capped: but no more
        than there are (image, class) pairs.
    published: the name of its published lists in published.py, "" where there are
        none; published_split: the one that evaluates.

    For the doctor:
    looks: whether a folder holds this and nothing else. None: is never recognised.
    splits: the names of the splits in a folder. None: `train` and `test`.
    inspect: (folder, split, pictures) -> the faults of the files, see inspection.py.
        None: what opening the data shows is all that is checked.
    """

    reader: Callable[..., Any]
    options: tuple[str, ...] = ()
    layout: str
    train: str
    test: str
    classes: int | None
    folds: int | None
    folds_of: str = ""
    family: str = "other"
    order: str = "class"
    distinct: bool = False
    episodes: int | None = None
    capped: bool = False
    published: str = ""
    published_split: str = ""
    looks: Callable[[Path], bool] | None = None
    splits: Callable[[Path], Iterable[str]] | None = None
    inspect: Callable[[Path, str, Pictures], Findings] | None = None


def open_coco_to_pascal(folder: Path, *, split: str, min_area: float) -> Any:
    """Pascal VOC whose class folds are those of COCO-20i: 6, 4, 6 and 4 classes."""
    source = voc.open_voc(folder, split=split, min_area=min_area)
    folds = tuple(COCO_RANKS[name] % coco.FOLDS for name in source.class_names)
    return dataclasses.replace(source, class_folds=folds)


def _has(*patterns: str) -> Callable[[Path], bool]:
    """Whether a folder holds a file for every pattern."""
    return lambda root: all(any(root.glob(pattern)) for pattern in patterns)


def _named(*patterns: str) -> Callable[[Path], list[str]]:
    """What stands for the star in a folder's files, by the first pattern that fits."""

    def names(root: Path) -> list[str]:
        for pattern in patterns:
            before, after = pattern.split("*")
            paths = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
            if paths:
                return [p.removeprefix(before).removesuffix(after) for p in paths]
        return []

    return names


_voc_splits = _named(
    *((Path(p) / "ImageSets/Segmentation/*.txt").as_posix() for p in voc.INSIDE)
)

BENCHMARKS = {
    "coco": Benchmark(
        reader=coco.open_coco,
        options=("crowd", "overlap"),
        layout=coco.LAYOUT,
        train="train2014",
        test="val2014",
        classes=80,
        folds=4,
        family="coco",
        published="coco",
        published_split="val",
        looks=_has("annotations/instances_*.json"),
        splits=_named("annotations/instances_*.json"),
        inspect=inspection.inspect_coco,
    ),
    "voc": Benchmark(
        reader=voc.open_voc,
        layout=voc.LAYOUT,
        train="train",
        test="val",
        classes=20,
        folds=4,
        family="pascal",
        order="listed",
        published="pascal",
        published_split="val",
        looks=lambda root: bool(_voc_splits(root)),
        splits=_voc_splits,
        inspect=inspection.inspect_voc,
    ),
    "coco_to_pascal": Benchmark(
        reader=open_coco_to_pascal,
        layout=voc.LAYOUT,
        train="train",
        test="val",
        classes=20,
        folds=4,
        folds_of="coco",
        family="pascal",
        order="listed",  # (ours)
        splits=_voc_splits,
        inspect=inspection.inspect_voc,
    ),
    "fss1000": Benchmark(
        reader=class_folders.open_fss1000,
        layout=class_folders.FSS_LAYOUT,
        train="trn",
        test="test",
        classes=1000,
        folds=3,
        order="folders",
        episodes=2400,
        published="fss",
        published_split="test",
        looks=_has("splits/trn.txt", "splits/test.txt"),
        splits=_named("splits/*.txt"),
        inspect=inspection.inspect_fss1000,
    ),
    "lvis92i": Benchmark(
        reader=lvis.open_lvis92i,
        options=("shots",),
        layout=lvis.LAYOUT,
        train="train",
        test="val",
        classes=1203,
        folds=10,
        family="coco",
        order="turns",
        episodes=2300,
        looks=_has("annotations/lvis_v1_*.json"),
        splits=_named("annotations/lvis_v1_*.json"),
    ),
    "paco_part": Benchmark(
        reader=paco_part.open_paco_part,
        layout=paco_part.LAYOUT,
        train="train",
        test="val",
        classes=448,
        folds=4,
        family="coco",
        episodes=2500,
        looks=_has("annotations/paco_lvis_v1_*.json"),
        splits=_named("annotations/paco_lvis_v1_*.json"),
    ),
    "pascal_part": Benchmark(
        reader=pascal_part.open_pascal_part,
        layout=pascal_part.LAYOUT,
        train="train",
        test="val",
        classes=100,
        folds=4,
        family="pascal",
        order="turns",
        distinct=True,
        episodes=2500,
        capped=True,
        looks=_has(pascal_part.INDEX),
    ),
    "folder": Benchmark(
        reader=class_folders.open_folder,
        options=("crowd",),
        layout=class_folders.FOLDER_LAYOUT,
        train="train",
        test="all",
        classes=None,
        folds=None,
        splits=class_folders.find_splits,
        inspect=inspection.inspect_folder,
    ),
    "label_map": Benchmark(
        reader=label_maps.open_label_maps,
        layout=label_maps.LAYOUT,
        train="train",
        test="test",
        classes=None,
        folds=None,
        looks=_has("classes.json", "masks"),
        splits=_named("*.txt"),
        inspect=inspection.inspect_label_map,
    ),
    "array_record": Benchmark(
        reader=packed.open_packed,
        layout=packed.LAYOUT,
        train="train",
        test="val",
        classes=None,
        folds=None,
        looks=_has("*/dataset_info.json"),
        splits=_named("*/dataset_info.json"),
    ),
}
