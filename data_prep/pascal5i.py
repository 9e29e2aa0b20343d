"""Prepares Pascal-5i: VOC 2012, the masks of SBD, and the published lists.

    python -m data_prep.pascal5i --root DIR --archives DIR2 --lists LISTS

makes and checks the layout that `diffup_jax/data/readers/voc.py` reads

    DIR/JPEGImages/                      17 125 images      from the VOC 2012 tar
    DIR/SegmentationClass/               2 913 masks        (SegmentationObject too)
    DIR/SegmentationClassAug/            12 031 masks       VOC and SBD
    DIR/ImageSets/Segmentation/          train.txt, val.txt; trainaug.txt (10 582):
                                         every mask that is not val; hsnet_trn.txt,
                                         hsnet_val.txt: the published pairs, all folds

The masks come from SegmentationClassAug.zip, or are made here: the .mat files of the
SBD benchmark (GTcls.Segmentation), and over them the official masks of VOC. LISTS holds
the published lists {trn,val}/fold{0..3}.txt with lines NAME__CC (data/splits of HSNet's
code, or its folder pascal).

DIR2 (default DIR/archives) is where the archives are, or go with `--download`; an
ImageSets/Segmentation folder with train.txt and val.txt there is used too. Checked are:
the labels of every mask; that just the 2 913 official train and val masks have void
pixels (255), a sure sign that the two sources were put together rightly; that every
published line has a mask that shows its class; that every mask has its image, of the
same size. Run again, it only does what is left.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import scipy.io
from PIL import Image
from tqdm import tqdm

from data_prep import command
from data_prep.archives import (
    Archive,
    below,
    obtain,
    packed,
    readable,
    unpack,
)
from data_prep.command import Row
from diffup_jax.data import published, rasters
from diffup_jax.data.readers import voc
from diffup_jax.files import whole_or_absent, write_whole
from diffup_jax.types import DiffUpError

VOC = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    1999639040,
    "6cd6e144f989b92b3379bac3b3de84fd",
)
SBD = Archive(
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    None,
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
AUG = "SegmentationClassAug"
MASKS, IMAGES, TRAIN, VAL, TRAINAUG = 12031, 17125, 1464, 1449, 10582

_VOC_FOLDERS = (
    "JPEGImages",
    "SegmentationClass",
    "SegmentationObject",
    "ImageSets/Segmentation",
)
_LISTS = "ImageSets/Segmentation"


class Mask(NamedTuple):
    """What is known of a mask file: (height, width), pixels per label 0..255."""

    size: tuple[int, int]
    histogram: list[int]


def prepare(
    root: Path, *, archives: Path, lists: Path | None, download: bool
) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError for a damaged archive or mask and for malformed lists.
    """
    _unpack_voc(root, archives, download)
    _unpack_masks(root, archives, download)
    folder = root / AUG
    names = sorted(p.stem for p in folder.glob("*.png")) if folder.is_dir() else []
    masks = read_masks(folder, names)
    official = {split: _official(root, split) for split in ("train", "val")}
    rows = [
        _count(f"{_LISTS}/train.txt", len(official["train"]), TRAIN, VOC.url),
        _count(f"{_LISTS}/val.txt", len(official["val"]), VAL, VOC.url),
        _count(AUG, len(masks), MASKS, f"{AUG}.zip, or {SBD.url}"),
    ]
    if masks:
        rows += [_labels(masks), check_void(masks, official["train"], official["val"])]
    if masks and official["val"]:
        aug = [name for name in masks if name not in set(official["val"])]
        _write_list(root, "trainaug", aug)
        rows.append(_count(f"{_LISTS}/trainaug.txt", len(aug), TRAINAUG, ""))
    for kind in ("trn", "val"):
        what = f"hsnet_{kind}"
        if lists is not None:
            _write_list(root, what, published_lines(lists, kind))
        path = root / _LISTS / f"{what}.txt"
        if path.is_file():
            rows.append(check_lines(voc.read_list(path), masks, what))
        else:
            rows.append(Row(f"{_LISTS}/{what}.txt", "missing", "give --lists"))
    rows.append(_images(root, masks))
    return rows


def read_masks(folder: Path, names: Sequence[str]) -> dict[str, Mask]:
    """Size and histogram of each mask, read once."""
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda n: rasters.label_counts(folder / f"{n}.png"), names)
        progress = tqdm(read, "check masks", len(names), unit="file", disable=None)
        return {n: Mask(*m) for n, m in zip(names, progress, strict=True)}


def check_void(masks: dict[str, Mask], train: Sequence[str], val: Sequence[str]) -> Row:
    """Whether exactly the official train and val masks have void pixels."""
    official = {*train, *val}
    void = {name for name, mask in masks.items() if mask.histogram[voc.VOID]}
    what = "void only in official masks"
    if void == official and len(void) == TRAIN + VAL:
        return Row(what, "there", f"{len(void)} masks contain {voc.VOID}")
    facts = (
        f"{len(void)} masks contain {voc.VOID}, {len(void - official)} of them not "
        f"official; {len(official - void)} official ones have none. Expected the "
        f"{TRAIN + VAL} of train and val: get {AUG} again"
    )
    return Row(what, "wrong", facts)


def check_lines(
    pairs: Sequence[tuple[str, int | None]], masks: dict[str, Mask], what: str
) -> Row:
    """Whether each line NAME__CC has a mask that shows the class."""
    absent = [name for name, _ in pairs if name not in masks]
    empty = [
        f"{name}__{c + 1:02d}"
        for name, c in pairs
        if c is not None and name in masks and not masks[name].histogram[c + 1]
    ]
    if absent:
        facts = f"{len(absent)} of {len(pairs)} lines have no mask, {absent[0]} first"
        return Row(what, "missing", facts)
    if empty:
        facts = f"{len(empty)} of {len(pairs)} masks lack the class, {empty[0]} first"
        return Row(what, "wrong", facts)
    return Row(what, "there", f"{len(pairs)} lines, each has a mask with its class")


def published_lines(lists: Path, kind: str) -> list[str]:
    """The lines NAME__CC of folds 0 to 3 of the published lists, one after the other.

    Raises DiffUpError for a missing list and a class of another fold.
    """
    lines = []
    for fold in range(4):
        path = published.find_list(lists, "pascal", split=kind, fold=fold)
        for name, class_id in published.read_pascal(path):
            if class_id // voc.FOLD_SIZE != fold:
                raise DiffUpError(
                    f"{path}: {name} has class {class_id + 1:02d}, which is not of "
                    f"fold {fold}. Take the file of HSNet's data/splits/pascal."
                )
            lines.append(f"{name}__{class_id + 1:02d}")
    return lines


def read_mat(content: bytes, name: str) -> np.ndarray:
    """The class labels [h w] uint8 in an SBD .mat file (GTcls.Segmentation).

    Raises DiffUpError naming the file when they are not there.
    """
    try:
        loaded = scipy.io.loadmat(
            io.BytesIO(content), squeeze_me=True, struct_as_record=False
        )
        labels = np.asarray(loaded["GTcls"].Segmentation)
    except Exception as error:  # scipy raises half a dozen types for a broken file
        raise DiffUpError(
            f"{name} is no SBD class file (GTcls.Segmentation): {error}. Get it again."
        ) from error
    if labels.ndim != 2 or not labels.size or labels.max() > len(voc.CLASSES):
        raise DiffUpError(
            f"{name} has labels of shape {labels.shape} up to {labels.max(initial=0)}; "
            f"expected a picture of 0..{len(voc.CLASSES)}."
        )
    return labels.astype(np.uint8)


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "pascal5i",
        "Prepare and check Pascal-5i.",
        root="VOC2012 folder",
        archives="tar and zip",
        subset=None,
    )
    parser.add_argument("--lists", type=Path, help="published lists: trn/ and val/")
    parser.add_argument(
        "--download", action="store_true", help="fetch the VOC tar and the SBD tgz"
    )
    return command.run(parser, arguments, prepare, title="Pascal-5i")


def _unpack_voc(root: Path, archives: Path, download: bool) -> None:
    """JPEGs, official masks and lists; lists may also lie open in `archives`."""
    if len(_names(root / "JPEGImages")) < IMAGES:
        archive = obtain(VOC, archives, download=download)
        if archive is not None:
            unpack(archive, root, members=below("VOCdevkit/VOC2012", _VOC_FOLDERS))
    for split in ("train", "val"):
        given = archives / _LISTS / f"{split}.txt"
        if given.is_file() and not (root / _LISTS / given.name).exists():
            _write_list(root, split, [name for name, _ in voc.read_list(given)])


def _unpack_masks(root: Path, archives: Path, download: bool) -> None:
    """SegmentationClassAug, from its zip or else from SBD and VOC's own masks."""
    folder = root / AUG
    if len(_names(folder)) >= MASKS:
        return
    zipped = archives / f"{AUG}.zip"
    if zipped.is_file():
        # The zip is in circulation in several packings: no size, no hash, and the
        # folder may lie within others.
        unpack(zipped, root, members=_aug_member)
        return
    loose = archives / "benchmark_RELEASE" / "dataset" / "cls"
    archive = None if loose.is_dir() else obtain(SBD, archives, download=download)
    if loose.is_dir():
        for path in tqdm(sorted(loose.glob("*.mat")), "SBD", unit="file", disable=None):
            _convert(folder, path.name, functools.partial(open, path, "rb"))
    elif archive is not None:
        progress = tqdm(desc="SBD", unit="file", disable=None)
        entries = contextlib.closing(packed(archive))
        with readable(archive), progress, entries as members:
            for member in members:
                place = Path(member.name)
                if place.match("cls/*.mat") and member.plain:
                    _convert(folder, place.name, member.open)
                    progress.update()
    else:
        return
    # The official masks last: they are finer and they alone mark the boundary. Those
    # that SBD has too come first, so a full folder is a finished one.
    official = sorted((root / "SegmentationClass").glob("*.png"))
    converted = _names(folder)
    for path in sorted(official, key=lambda path: path.name not in converted):
        _save(folder / path.name, rasters.read_labels(path))


def _aug_member(name: str) -> str | None:
    path = Path(name)
    wanted = path.suffix == ".png" and path.parent.name == AUG
    return f"{AUG}/{path.name}" if wanted and "__MACOSX" not in name else None


def _convert(folder: Path, name: str, opened: Callable[[], BinaryIO]) -> None:
    target = folder / f"{Path(name).stem}.png"
    if not target.exists():
        with opened() as file:
            _save(target, read_mat(file.read(), name))


def _save(target: Path, labels: np.ndarray) -> None:
    with whole_or_absent(target) as partial:
        Image.fromarray(labels).save(partial, "png")


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _official(root: Path, split: str) -> list[str]:
    path = root / _LISTS / f"{split}.txt"
    return [name for name, _ in voc.read_list(path)] if path.is_file() else []


def _write_list(root: Path, split: str, lines: Sequence[str]) -> None:
    write_whole(root / _LISTS / f"{split}.txt", "\n".join(lines) + "\n")


def _count(what: str, found: int, expected: int, where: str) -> Row:
    if found == expected:
        return Row(what, "there", f"{found}")
    state = "wrong" if found else "missing"
    source = f"; get {where}" if where else ""
    return Row(what, state, f"{found} of {expected}{source}")


def _labels(masks: dict[str, Mask]) -> Row:
    bad = [name for name, mask in masks.items() if voc.wrong_labels(mask.histogram)]
    what = "labels 0..20 and 255"
    if bad:
        return Row(what, "wrong", f"{len(bad)} masks have others, {bad[0]} first")
    return Row(what, "there", f"in all {len(masks)} masks")


def _images(root: Path, masks: dict[str, Mask]) -> Row:
    """Every mask has its image, of the same size."""
    names = _names(root / "JPEGImages")
    have = [name for name in masks if f"{name}.jpg" in names]
    with ThreadPoolExecutor() as pool:
        paths = [root / "JPEGImages" / f"{name}.jpg" for name in have]
        read = pool.map(rasters.image_size, paths)
        sizes = dict(zip(have, read, strict=True))
    other = [name for name, size in sizes.items() if size != masks[name].size]
    facts = f"{len(have)} of {len(masks)} masks have their image"
    if len(have) < len(masks) or not masks:
        return Row("JPEGImages", "missing", f"{facts}; get {VOC.url}")
    if other:
        facts = f"{len(other)} images differ in size from their mask, {other[0]} first"
        return Row("JPEGImages", "wrong", facts)
    return Row("JPEGImages", "there", facts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
