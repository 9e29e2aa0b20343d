"""The benchmarks, one row each: which reader opens them and what they are made of.

A new benchmark is a reader (`open_X(folder, *, split, min_area, ...) -> Source` and a
`LAYOUT`) and one row here. Class counts, folds and splits are those of the published
code (HSNet for COCO, Pascal and FSS-1000, Matcher for LVIS, PACO-Part and Pascal-Part).

COCO -> Pascal, the cross-data-set test, has no files of its own: it is Pascal VOC with
each class moved to the fold in which COCO-20i holds it out, so that a network trained
on the base classes of COCO fold f is tested on classes it never saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffup_jax.data import (
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


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One kind of `config.data.source`.

    reader: (folder, *, split, min_area, ...) -> Source. options: which of crowd,
    overlap and shots it takes besides. classes, folds: how many the whole data set has,
    None where that depends on the user's files. train, test: the usual split names.
    prepare: the command that makes or checks the files, "" where there is none.
    """

    reader: Callable[..., Any]
    layout: str
    train: str
    test: str
    classes: int | None
    folds: int | None
    prepare: str
    options: tuple[str, ...] = ()


def open_coco_to_pascal(folder: Path, *, split: str, min_area: float) -> Any:
    """Pascal VOC whose class folds are those of COCO-20i: 6, 4, 6 and 4 classes."""
    source = voc.open_voc(folder, split=split, min_area=min_area)
    folds = tuple(COCO_RANKS[name] % coco.FOLDS for name in source.class_names)
    return dataclasses.replace(source, class_folds=folds)


BENCHMARKS = {
    "coco": Benchmark(
        reader=coco.open_coco,
        layout=coco.LAYOUT,
        train="train2014",
        test="val2014",
        classes=80,
        folds=4,
        prepare="data_prep.coco20i",
        options=("crowd", "overlap"),
    ),
    "voc": Benchmark(
        reader=voc.open_voc,
        layout=voc.LAYOUT,
        train="train",
        test="val",
        classes=20,
        folds=4,
        prepare="data_prep.pascal5i",
    ),
    "coco_to_pascal": Benchmark(
        reader=open_coco_to_pascal,
        layout=voc.LAYOUT,
        train="train",
        test="val",
        classes=20,
        folds=4,
        prepare="data_prep.pascal5i",
    ),
    "fss1000": Benchmark(
        reader=class_folders.open_fss1000,
        layout=class_folders.FSS_LAYOUT,
        train="trn",
        test="test",
        classes=1000,
        folds=3,
        prepare="data_prep.fss1000",
    ),
    "lvis92i": Benchmark(
        reader=lvis.open_lvis92i,
        layout=lvis.LAYOUT,
        train="train",
        test="val",
        classes=1203,
        folds=10,
        prepare="data_prep.lvis92i",
        options=("shots",),
    ),
    "paco_part": Benchmark(
        reader=paco_part.open_paco_part,
        layout=paco_part.LAYOUT,
        train="train",
        test="val",
        classes=448,
        folds=4,
        prepare="data_prep.paco_part",
    ),
    "pascal_part": Benchmark(
        reader=pascal_part.open_pascal_part,
        layout=pascal_part.LAYOUT,
        train="train",
        test="val",
        classes=100,
        folds=4,
        prepare="data_prep.pascal_part",
    ),
    "folder": Benchmark(
        reader=class_folders.open_folder,
        layout=class_folders.FOLDER_LAYOUT,
        train="train",
        test="all",
        classes=None,
        folds=None,
        prepare="data_prep.folder",
        options=("crowd",),
    ),
    "label_map": Benchmark(
        reader=label_maps.open_label_maps,
        layout=label_maps.LAYOUT,
        train="train",
        test="test",
        classes=None,
        folds=None,
        prepare="",
    ),
    "array_record": Benchmark(
        reader=packed.open_packed,
        layout=packed.LAYOUT,
        train="train",
        test="val",
        classes=None,
        folds=None,
        prepare="data_prep.array_records",
    ),
}
