"""The published lists of the field: which images a benchmark's episodes come from.

    coco     HSNet, FOLDER/coco/val/foldF.pkl: pickled {class 0..79: [name, ...]}
    pascal   HSNet, FOLDER/pascal/val/foldF.txt: lines NAME__CC, CC from 01
    fss      HSNet, FOLDER/fss/test.txt: one class per line, ten images of each
    pfenet   PFENet's Pascal lists: lines IMAGE_PATH LABEL_PATH

FOLDER is HSNet's data/splits, or the benchmark's own folder in it. A pickle can run any
program when it is read: these are read by a reader that knows no class at all, so that
nothing but dictionaries, lists, strings and numbers can come out.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from diffup_jax.files import read_text
from diffup_jax.types import DiffUpError

BENCHMARKS = ("coco", "pascal", "fss")

# (split, index of the first class): FSS-1000 numbers its three lists one after the
# other, each list sorted.
_FSS_FIRST = {"trn": 0, "val": 520, "test": 760}
_FSS_IMAGES = 10
_FOLDS = 4
_COCO_CLASSES, _PASCAL_CLASSES = 80, 20

# What a broken pickle makes the reader raise.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError),
    *(AttributeError, OverflowError, MemoryError),
)


def read_lists(
    folder: str | os.PathLike[str], benchmark: str, *, split: str, fold: int
) -> dict[int, tuple[str, ...]]:
    """Images by class index (from 0), in the published order.

    split: "val" or "trn", for fss also "test" (which has fold 0 only). COCO names are
    as published, "val2014/COCO_val2014_000000000042.jpg"; Pascal names "2007_000033";
    FSS names "CLASS/1" to "CLASS/10".

    Raises DiffUpError for an unknown benchmark or fold, and for a list that is absent
    or malformed, naming it.
    """
    path = find_list(folder, benchmark, split=split, fold=fold)
    if benchmark == "fss":
        return read_fss(path)
    if benchmark == "pascal":
        lists = by_class(read_pascal(path))
    else:
        lists = {c: names for c, names in sorted(read_coco(path).items()) if names}
    for class_id, names in lists.items():
        if len(set(names)) < len(names):
            twice = next(name for name, n in Counter(names).items() if n > 1)
            raise DiffUpError(
                f"{path} lists {twice!r} twice for class {class_id}; no published "
                "list does. Copy it again."
            )
    return lists


def find_list(
    folder: str | os.PathLike[str], benchmark: str, *, split: str, fold: int
) -> Path:
    """The file of a published list.

    Raises DiffUpError for an unknown benchmark or fold, and when there is no such file,
    saying where it was looked for.
    """
    if benchmark not in BENCHMARKS:
        raise DiffUpError(
            f"no lists are published for {benchmark!r}; expected one of {BENCHMARKS}. "
            "Draw from the data itself (--root)."
        )
    folds = 1 if benchmark == "fss" else _FOLDS
    if not 0 <= fold < folds:
        raise DiffUpError(
            f"the lists of {benchmark} have no fold {fold}, only 0..{folds - 1}."
        )
    name = {
        "coco": f"{split}/fold{fold}.pkl",
        "pascal": f"{split}/fold{fold}.txt",
        "fss": f"{split}.txt",
    }[benchmark]
    places = [Path(folder) / benchmark / name, Path(folder) / name]
    for path in places:
        if path.is_file():
            return path
    raise DiffUpError(
        f"the published list of {benchmark}, split {split!r}, fold {fold} is neither "
        f"{places[0]} nor {places[1]}. Give the folder data/splits of HSNet's code."
    )


def read_coco(path: str | os.PathLike[str]) -> dict[int, tuple[str, ...]]:
    """{class index: names} of a pickled COCO-20i list, classes outside the fold empty.

    Raises DiffUpError when the file is absent, is no pickle, asks for any class or
    function, or holds anything but classes 0..79 with lists of names.
    """
    fix = "Take the file of HSNet's data/splits/coco."
    try:
        with open(path, "rb") as file:
            content = _NothingCallable(file, str(path)).load()
    except OSError as error:
        raise DiffUpError(f"cannot read the list {path}: {error}. {fix}") from error
    except _BROKEN as error:
        raise DiffUpError(
            f"{path} is not a whole pickled list ({type(error).__name__}: {error}). "
            f"{fix}"
        ) from error
    if not isinstance(content, dict) or not all(
        type(key) is int
        and 0 <= key < _COCO_CLASSES
        and isinstance(names, list)
        and all(type(name) is str for name in names)
        for key, names in content.items()
    ):
        raise DiffUpError(
            f"{path} does not hold {{class 0..{_COCO_CLASSES - 1}: [name, ...]}}. {fix}"
        )
    return {key: tuple(names) for key, names in content.items()}


def read_pascal(path: str | os.PathLike[str]) -> tuple[tuple[str, int], ...]:
    """(image name, class index from 0) of each line NAME__CC, in file order."""
    pairs = []
    for number, line in _lines(path):
        name, mark, label = line.partition("__")
        if not (name and mark and label.isdecimal()) or not (
            1 <= int(label) <= _PASCAL_CLASSES
        ):
            raise DiffUpError(
                f"{path}, line {number} is {line!r}; expected NAME__CC with CC in "
                f"01..{_PASCAL_CLASSES}. Take the file of HSNet's data/splits/pascal."
            )
        pairs.append((name, int(label) - 1))
    return tuple(pairs)


def read_fss(path: str | os.PathLike[str]) -> dict[int, tuple[str, ...]]:
    """{class index: ("CLASS/1", ..., "CLASS/10")} of an FSS-1000 list of classes.

    The file's own name (trn, val or test) says where its class indices begin. Raises
    DiffUpError for another name, and when a class comes twice.
    """
    split = Path(path).stem
    if split not in _FSS_FIRST:
        names = [f"{known}.txt" for known in _FSS_FIRST]
        raise DiffUpError(f"{path} is no list of FSS-1000; expected one of {names}.")
    names = sorted(line for _, line in _lines(path))
    twice = [a for a, b in zip(names, names[1:], strict=False) if a == b]
    if twice:
        raise DiffUpError(f"{path} names {twice[0]!r} twice; name each class once.")
    return {
        _FSS_FIRST[split] + index: tuple(
            f"{name}/{image}" for image in range(1, _FSS_IMAGES + 1)
        )
        for index, name in enumerate(names)
    }


def read_pfenet(path: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """(image path, label path), relative to the data root, of a PFENet list."""
    pairs = []
    for number, line in _lines(path):
        parts = line.split(" ")
        if len(parts) != 2 or Path(parts[0]).stem != Path(parts[1]).stem:
            raise DiffUpError(
                f"{path}, line {number} is {line!r}; expected the paths of an image "
                "and of its label. Take the file of PFENet's lists."
            )
        pairs.append((parts[0], parts[1]))
    return tuple(pairs)


def by_class(pairs: Iterable[tuple[str, int]]) -> dict[int, tuple[str, ...]]:
    """Images by class, classes increasing, images in the order of the pairs."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, class_id in pairs:
        found[class_id].append(name)
    return {class_id: tuple(found[class_id]) for class_id in sorted(found)}


class _NothingCallable(pickle.Unpickler):
    """Reads dictionaries, lists, strings and numbers; refuses everything else."""

    def __init__(self, file: Any, path: str):
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DiffUpError(
            f"{self._path} asks for {module}.{name}: a list of images needs no class "
            "or function, and this file could run anything. Delete it and take the "
            "published one."
        )


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The numbered lines of a text list that are not blank; both line ends."""
    text = read_text(path, fix="Copy the published list again.")
    numbered = enumerate(text.splitlines(), 1)
    lines = [(number, line.strip()) for number, line in numbered if line.strip()]
    if not lines:
        raise DiffUpError(f"the list {path} is empty; copy it again.")
    return lines
