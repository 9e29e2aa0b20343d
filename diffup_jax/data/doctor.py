"""Looks at every file of a data set and lists everything that is wrong with it.

    1. Every picture under the root is decoded, whole, in threads.
    2. The files of the layout are checked against each other, one sentence per fault
       (inspection.py): lists, JSON entries, absent files, sizes, duplicates.
    3. Each split is opened as training opens it, and the mask of every class of every
       image is made; for layouts without checks of their own the image is read too.
    4. Classes that no split has an image of are told.

A run is started after the doctor found nothing; damage that comes later stops a run
with the file's name (`config.data.on_error`).
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from diffup_jax.data import inspection_json, rasters, sources
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.types import DiffUpError

_NAMED = 5  # files named of a photograph that is there many times


@dataclasses.dataclass(frozen=True)
class Split:
    """What one split holds: images, classes with images, images per such class."""

    name: str
    images: int
    classes: int
    fewest: int
    median: float
    most: int


@dataclasses.dataclass(frozen=True)
class Report:
    """`problems`: one sentence each, empty when all is well. `splits`: those opened."""

    kind: str
    root: str
    pictures: int
    problems: tuple[str, ...]
    splits: tuple[Split, ...]

    def text(self) -> str:
        """The report as lines for the terminal."""
        lines = [f"{self.root}: {self.kind}, {self.pictures} pictures decoded"]
        lines += [
            f"  {s.name}: {s.images} images, {s.classes} classes; images per class "
            f"{s.fewest} (fewest) {s.median:g} (median) {s.most} (most)"
            for s in self.splits
        ]
        lines += [f"- {problem}" for problem in self.problems]
        count = len(self.problems)
        lines.append(f"{count} problem{'s' * (count != 1)}" if count else "no problems")
        return "\n".join(lines)


def examine(root: str, *, kind: str | None, split: str | None) -> Report:
    """Checks a data set; kind None = recognised, split None = all that are there.

    Raises DiffUpError for a root that is no folder, an unknown kind, a layout that is
    not recognised and one that has no split.
    """
    folder = Path(os.path.expanduser(os.path.expandvars(root)))
    if not root or not folder.is_dir():
        raise DiffUpError(f"{root!r} is not a folder; give the one with the data set.")
    kind = recognise(folder) if kind is None else kind
    if kind not in BENCHMARKS:
        raise DiffUpError(
            f"unknown kind {kind!r}; expected one of {', '.join(BENCHMARKS)}."
        )
    inspect = BENCHMARKS[kind].inspect
    splits = (split,) if split is not None else find_splits(folder, kind)
    pictures, problems = _decode_all(folder)
    photographs: dict[Path, str] = {}
    for name in splits:
        if inspect is not None:
            findings = inspect(folder, name, pictures)
            problems += findings.problems
            photographs |= findings.photographs
    problems += _duplicates(photographs, pictures)
    opened = []
    for name in splits:
        try:
            source = sources.open_source(
                kind, root=str(folder), split=name, min_area=0.0, crowd="ignore"
            )
        except Exception as error:  # whatever stops a run is a finding here
            problems.append(f"split {name!r} cannot be opened: {_told(error)}")
            continue
        problems += _mask_problems(source, name, images=inspect is None)
        opened.append((name, source))
    if len(opened) == len(splits):
        problems += _classes_without_images([source for _, source in opened])
    return Report(
        kind=kind,
        root=str(folder),
        pictures=len(pictures),
        problems=tuple(dict.fromkeys(problems)),
        splits=tuple(_summary(name, source) for name, source in opened),
    )


def recognise(root: Path) -> str:
    """The kind of data a folder holds, by what lies in it.

    Raises DiffUpError when it looks like none, or like several.
    """
    rows = BENCHMARKS.items()
    fits = [kind for kind, row in rows if row.looks is not None and row.looks(root)]
    if len(fits) > 1:
        raise DiffUpError(
            f"{root} looks like {' and like '.join(fits)}; name one with --kind."
        )
    if fits:
        return fits[0]
    # One's own pictures: what is left.
    pairs = [(f"{depth}/*.jpg", f"{depth}/*.png") for depth in ("*", "*/*")]
    for patterns in (*pairs, ("*.json",)):
        if all(any(root.glob(pattern)) for pattern in patterns):
            return "folder"
    raise DiffUpError(
        f"{root} looks like no known data set; name it with --kind. Layouts:\n  "
        + "\n  ".join(f"{kind}: {row.layout}" for kind, row in rows)
    )


def find_splits(root: Path, kind: str) -> tuple[str, ...]:
    """The names of the splits that a folder of this kind holds.

    Raises DiffUpError when there is none.
    """
    row = BENCHMARKS[kind]
    found = (row.train, row.test) if row.splits is None else row.splits(root)
    if not found:
        raise DiffUpError(
            f"{root} holds no split of kind {kind!r}. Layout: {row.layout}"
        )
    return tuple(sorted(set(found)))


def _decode_all(root: Path) -> tuple[dict[Path, rasters.Facts | None], list[str]]:
    """Every picture under the root, decoded (None: damaged), and what was damaged."""
    paths = []
    for folder, folders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder)
        # A link to a folder above would never end.
        folders[:] = [
            name
            for name in folders
            if not f"{here}/".startswith(f"{os.path.realpath(f'{folder}/{name}')}/")
        ]
        paths += [
            Path(folder) / name
            for name in names
            if Path(name).suffix.lower() in inspection_json.PICTURES and name[0] != "."
        ]
    paths.sort()
    pictures: dict[Path, rasters.Facts | None] = {}
    problems = []
    for path, (found, error) in _threads(paths, rasters.facts, "pictures"):
        pictures[path] = found
        if error is not None:
            problems.append(_told(error))
    return pictures, problems


def _mask_problems(source: sources.Source, split: str, *, images: bool) -> list[str]:
    """Makes the mask of every class of every image; `images` reads those too."""
    classes_of: dict[str, list[int]] = defaultdict(list)
    for class_id in range(len(source.class_names)):
        for image_id in source.image_ids(class_id):
            classes_of[image_id].append(class_id)

    def check(image_id: str) -> list[str]:
        told = f"split {split!r}, image {image_id}"
        size, problems = None, []
        if images:
            size = source.image(image_id).shape[:2]
        for class_id in classes_of[image_id]:
            name = source.class_names[class_id]
            try:
                mask, ignore = source.mask(image_id, class_id)
            except Exception as error:  # as above: all that would stop a run
                problems.append(f"{told}: no mask of {name!r}: {_told(error)}")
                continue
            if not mask.any():
                problems.append(f"{told}: its mask of {name!r} has no pixel")
            if (mask & ignore).any():
                problems.append(f"{told}: pixels of {name!r} are ignored as well")
            if size is not None and mask.shape != size:
                problems.append(
                    f"{told}: the mask of {name!r} is {mask.shape}, the image {size}"
                )
        return problems

    problems = []
    for image_id, (found, error) in _threads(sorted(classes_of), check, split):
        problems += found or []
        if error is not None:
            problems.append(f"split {split!r}, image {image_id}: {_told(error)}")
    return problems


def _duplicates(
    photographs: dict[Path, str], pictures: dict[Path, rasters.Facts | None]
) -> list[str]:
    """Photographs with equal bytes: a query could be its own support."""
    files: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, group in photographs.items():
        found = pictures.get(path)
        if found is not None:
            files[group, found.digest].append(path)
    problems = []
    for same in files.values():
        if len(same) > 1:
            named = ", ".join(map(str, same[:_NAMED])) + ", ..." * (len(same) > _NAMED)
            problems.append(f"{len(same)} files are the same photograph: {named}")
    return problems


def _classes_without_images(opened: Sequence[sources.Source]) -> list[str]:
    """Classes of some fold that none of the splits has an image of."""
    names = opened[0].class_names if opened else ()
    return [
        f"class {class_id} ({name}) has no image; add some or take the class away"
        for class_id, name in enumerate(names)
        if opened[0].class_folds[class_id] >= 0
        and not any(
            class_id < len(source.class_names) and source.image_ids(class_id)
            for source in opened
        )
    ]


def _summary(name: str, source: sources.Source) -> Split:
    ids = [source.image_ids(c) for c in range(len(source.class_names))]
    counts = [len(of_class) for of_class in ids if of_class]
    return Split(
        name=name,
        images=len({image_id for of_class in ids for image_id in of_class}),
        classes=len(counts),
        fewest=min(counts, default=0),
        median=float(median(counts)) if counts else 0.0,
        most=max(counts, default=0),
    )


def _threads(
    items: Sequence[Any], work: Callable[[Any], Any], name: str
) -> Iterator[tuple[Any, tuple[Any, Exception | None]]]:
    """(item, (result, None) or (None, error)) in order, with progress."""

    def guarded(item: Any) -> tuple[Any, Exception | None]:
        try:
            return work(item), None
        except Exception as error:  # collected, every one, and told by the caller
            return None, error

    # PIL gives the interpreter lock back while it decodes: threads are enough.
    with ThreadPoolExecutor() as pool:
        results: Iterable[Any] = pool.map(guarded, items)
        results = tqdm(results, total=len(items), desc=name, disable=None, leave=False)
        yield from zip(items, results, strict=True)


def _told(error: Exception) -> str:
    if isinstance(error, DiffUpError):
        return str(error)
    return f"{type(error).__name__}: {error}"
