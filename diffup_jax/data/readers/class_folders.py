"""One folder per class, one mask beside each image: FSS-1000 and one's own pictures.

    CLASS/NAME.jpg    the photograph
    CLASS/NAME.png    its mask of this class, foreground = grey 128 and above

FSS-1000 (fss1000) adds the published lists of classes. Classes are numbered within the
sorted list, the lists one after the other: 0.. trn, 520.. val, 760.. test. A list is a
split and a fold: the test classes are novel in fold 0, trn in fold 1, val in fold 2, so
that with fold 0 the split "trn" trains and the split "test" tests.

One's own pictures (folder) need no lists. Split "all" reads ROOT/CLASS/, another split
ROOT/SPLIT/CLASS/; or one COCO instances JSON, ROOT/SPLIT.json, for "all" whatever its
name, with its images in ROOT, ROOT/images or ROOT/SPLIT. All classes are novel in
fold 0, unless ROOT/classes.json says otherwise (`python -m data_prep.folder --folds N`
writes one). A mask of 0 and 1 is understood too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

from diffup_jax.data import rasters
from diffup_jax.data.readers import coco
from diffup_jax.files import read_json, read_text
from diffup_jax.types import DiffUpError

FSS_LAYOUT = "data/CLASS/N.jpg and N.png, splits/trn.txt, val.txt and test.txt"
FOLDER_LAYOUT = (
    "CLASS/NAME.jpg and CLASS/NAME.png (split all) or SPLIT/CLASS/..., or one COCO "
    "instances JSON with its images"
)
FSS_SPLITS = ("trn", "val", "test")
CLASSES = "classes.json"

# List of FSS-1000 -> the fold in which its classes are novel.
_FSS_FOLDS = {"trn": 1, "val": 2, "test": 0}
_GREY = 128
_PHOTOGRAPHS = (".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassFolderSource:
    """A `sources.Source` over class folders; ids are CLASS/NAME.

    `files` maps an id to (photograph, mask) and `homes` to its class: every other
    class is absent from the image as far as anybody knows.
    """

    name: str
    root: str
    class_names: tuple[str, ...]
    class_folds: tuple[int, ...]
    by_class: tuple[tuple[str, ...], ...]
    files: dict[str, tuple[str, str]]
    homes: dict[str, int]

    def image_ids(self, class_id: int) -> tuple[str, ...]:
        return self.by_class[class_id]

    def path(self, image_id: str) -> str:
        """The file that holds the image."""
        return self.files[image_id][0]

    def image(self, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        return rasters.read_image(self.path(image_id))

    def mask(
        self, image_id: str, class_id: int
    ) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """(mask, ignore); nothing is ignored."""
        mask = read_mask(self.files[image_id][1])
        if self.homes[image_id] != class_id:
            mask = np.zeros_like(mask)
        return mask, np.zeros_like(mask)

    def instances(self, image_id: str, class_id: int) -> UInt16[np.ndarray, "h w"]:
        """The connected components of the mask."""
        return rasters.components(self.mask(image_id, class_id)[0])


def open_fss1000(root: Path, *, split: str, min_area: float) -> ClassFolderSource:
    """Opens the classes of ROOT/splits/`split`.txt; reads every mask once.

    Raises DiffUpError for a list or class folder that is missing, a jpg without its
    png or the reverse, a damaged mask and one of another size than its image.
    """
    if split not in FSS_SPLITS:
        raise DiffUpError(f"FSS-1000 has no split {split!r}; expected {FSS_SPLITS}.")
    lists = {part: read_list(root, part) for part in FSS_SPLITS}
    names = [name for part in FSS_SPLITS for name in lists[part]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DiffUpError(
            f"{root / 'splits'} lists the class {twice!r} twice; the three lists must "
            "not share a class. Take the published lists."
        )
    folds = [_FSS_FOLDS[part] for part in FSS_SPLITS for _ in lists[part]]
    place = class_root(root, lists[split])
    return _open(root, place, names, folds, lists[split], min_area)


def open_folder(
    root: Path, *, split: str, min_area: float, crowd: str
) -> ClassFolderSource | coco.CocoSource:
    """Opens one's own pictures: class folders or a COCO instances JSON.

    crowd: see coco.py; class folders have no crowd regions. Raises DiffUpError for a
    split that is not there, a jpg without its png or the reverse, a mask without
    foreground and everything `coco.open_instances` finds wrong.
    """
    path = find_json(root, split)
    if path is not None:
        folders = tuple(dict.fromkeys((root, root / "images", root / split)))
        source = coco.open_instances(
            path, root=root, folders=folders, min_area=min_area, crowd=crowd
        )
        folds = read_folds(root, source.class_names)
        return dataclasses.replace(source, class_folds=folds)
    place = root if split == "all" else root / split
    if not place.is_dir():
        raise DiffUpError(
            f"{root} has neither a folder {split} nor a file {split}.json. Give the "
            f"split all, or one of {_names(root)}. Layout: {FOLDER_LAYOUT}"
        )
    here = _names(place)
    if split == "all":
        names = here
    else:  # the classes of every split: a class keeps its index in all of them
        names = sorted({n for s in _names(root) for n in _names(root / s)})
    if not here:
        raise DiffUpError(f"{place} holds no class folder. Layout: {FOLDER_LAYOUT}")
    source = _open(root, place, names, read_folds(root, names), here, min_area)
    empty = set(source.files) - {i for ids in source.by_class for i in ids}
    if empty and not min_area:
        raise DiffUpError(
            f"{len(empty)} of {len(source.files)} masks have no foreground, the first "
            f"is {source.files[min(empty)][1]}: no pixel of grey {_GREY} or above. "
            "Paint the object white, or take the pair away."
        )
    return source


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """The foreground of a mask file of any mode: grey 128 and above, or 1 of 0 and 1.

    Raises DiffUpError naming the file when it is absent, damaged or no image.
    """
    grey = np.asarray(Image.fromarray(rasters.read_image(path)).convert("L"))
    return grey >= (1 if grey.max(initial=0) == 1 else _GREY)


def read_list(root: Path, split: str) -> list[str]:
    """The sorted class names of ROOT/splits/`split`.txt of FSS-1000.

    Raises DiffUpError when the list is missing or empty.
    """
    path = root / "splits" / f"{split}.txt"
    fix = (
        "Run python -m data_prep.fss1000, which says where the published lists are. "
        f"Layout: {FSS_LAYOUT}"
    )
    lines = read_text(path, fix=fix).split("\n")
    names = sorted(line.strip() for line in lines if line.strip())
    if not names:
        raise DiffUpError(f"{path} is empty; expected one class name per line.")
    return names


def class_root(root: Path, classes: Sequence[str]) -> Path:
    """The folder of FSS-1000 that holds the class folders.

    ROOT/data as the field's code has it, ROOT/fewshot_data as the archive has it, or
    ROOT itself. Raises DiffUpError when some of `classes` are in none of them.
    """
    places = [root / "data", root / "fewshot_data", root / "fewshot_data/fewshot_data"]
    missing = {
        place: [name for name in classes if not (place / name).is_dir()]
        for place in (*places, root)
    }
    place = min(missing, key=lambda place: len(missing[place]))
    if missing[place]:
        raise DiffUpError(
            f"{len(missing[place])} of {len(classes)} class folders are missing in "
            f"{place}, the first is {missing[place][0]!r}. Unpack FSS-1000 there. "
            f"Layout: {FSS_LAYOUT}"
        )
    return place


def read_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    """NAME -> (photograph, mask) of one class folder, in the order of the names.

    Raises DiffUpError naming the file that has no partner, and for an empty folder.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
    images = {p.stem: str(p) for p in files if p.suffix.lower() in _PHOTOGRAPHS}
    masks = {p.stem: str(p) for p in files if p.suffix.lower() == ".png"}
    alone = [images[n] for n in images if n not in masks]
    alone += [masks[n] for n in masks if n not in images]
    if alone:
        first = Path(alone[0])
        partner = ".png" if first.suffix.lower() in _PHOTOGRAPHS else ".jpg"
        raise DiffUpError(
            f"{first} has no {first.stem}{partner} beside it ({len(alone)} such files "
            f"in {folder}). Each photograph NAME.jpg needs its mask NAME.png: add the "
            "missing file or take this one away."
        )
    if not images:
        raise DiffUpError(
            f"{folder} holds no photograph NAME.jpg. If it is a split and no class, "
            f"name it as the split; otherwise take it away. Layout: {FOLDER_LAYOUT}"
        )
    return {name: (images[name], masks[name]) for name in sorted(images)}


def find_splits(root: Path) -> list[str]:
    """The splits of one's own pictures: those with a JSON, or folders of classes."""
    found = [path.stem for path in root.glob("*.json") if path.name != CLASSES]
    return found or [p.parent.parent.name for p in root.glob("*/*/*.jpg")] or ["all"]


def find_json(root: Path, split: str) -> Path | None:
    """The COCO instances JSON of a split in `folder`, None when there is none."""
    if split != "all":
        path = root / f"{split}.json"
        return path if path.is_file() else None
    found = sorted(p for p in root.glob("*.json") if p.name != CLASSES)
    if len(found) > 1:
        raise DiffUpError(
            f"{root} holds {len(found)} JSON files; give one of "
            f"{[p.stem for p in found]} as the split."
        )
    return found[0] if found else None


def read_folds(root: Path, names: Sequence[str]) -> tuple[int, ...]:
    """The fold of each class by ROOT/classes.json, 0 for all without such a file.

    Raises DiffUpError when the file is malformed or leaves one of the classes out.
    """
    path = root / CLASSES
    if not path.is_file():
        return (0,) * len(names)
    form = 'Expected {"classes": [{"name": "cat", "fold": 0}, ...]}.'
    content = read_json(path, fix=form)
    try:
        folds = {str(e["name"]): e["fold"] for e in content["classes"]}
    except (KeyError, TypeError) as error:
        raise DiffUpError(f"{path} is malformed ({error!r}). {form}") from error
    for name in names:
        if type(folds.get(name)) is not int or folds[name] < 0:
            raise DiffUpError(
                f"{path} gives class {name!r} the fold {folds.get(name)!r}; expected a "
                "whole number from 0. Run python -m data_prep.folder --folds N again."
            )
    return tuple(folds[name] for name in names)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in _folders(folder))


def _folders(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return ()
    return (p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _open(
    root: Path,
    place: Path,
    names: Sequence[str],
    folds: Sequence[int],
    present: Sequence[str],
    min_area: float,
) -> ClassFolderSource:
    """The source over PLACE/CLASS/ for the classes in `present`, a part of `names`."""
    files, homes = {}, {}
    index = {name: position for position, name in enumerate(names)}
    for name in present:
        for stem, pair in read_pairs(place / name).items():
            files[f"{name}/{stem}"] = pair
            homes[f"{name}/{stem}"] = index[name]
    by_class: list[list[str]] = [[] for _ in names]
    # PIL gives the interpreter lock back while it decodes: threads are enough.
    with ThreadPoolExecutor() as pool:
        shares = pool.map(lambda pair: _share(*pair), files.values())
        for image_id, share in zip(files, shares, strict=True):
            if share > min_area:
                by_class[homes[image_id]].append(image_id)
    return ClassFolderSource(
        name=root.resolve().name,
        root=str(root),
        class_names=tuple(names),
        class_folds=tuple(folds),
        by_class=tuple(map(tuple, by_class)),
        files=files,
        homes=homes,
    )


def _share(image: str, mask: str) -> float:
    """The part of the image its mask covers; the two have the same size."""
    foreground = read_mask(mask)
    size = rasters.image_size(image)
    if foreground.shape != size:
        raise DiffUpError(
            "{} is {} x {} pixels (rows x columns) but {} is {} x {}; make the mask "
            "from this very file.".format(mask, *foreground.shape, image, *size)
        )
    return float(foreground.mean()) if foreground.size else 0.0
