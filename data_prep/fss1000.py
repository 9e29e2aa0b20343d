"""Prepares FSS-1000: 1000 classes of 10 images, and the published lists of classes.

    python -m data_prep.fss1000 --root DIR --lists LISTS

makes and checks the layout that `diffup_jax/data/readers/class_folders.py` reads

    DIR/data/CLASS/1.jpg .. 10.jpg, 1.png .. 10.png
    DIR/splits/trn.txt (520), val.txt (240), test.txt (240)

The archive (fewshot_data.zip, 677 MB) is on Google Drive, which gives no plain address:
get it with a browser, put it into `--archives` (default DIR/archives), and it is
unpacked here. LISTS holds trn.txt, val.txt and test.txt of HSNet. Checked are the lists
(published numbers and hashes; `--subset` for others), that each class has its ten pairs
and that every mask opens, shows something and has the size of its image. Run again, it
only does what is left.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from data_prep import command
from data_prep.archives import unpack
from data_prep.command import Row
from diffup_jax.data import rasters
from diffup_jax.data.readers import class_folders
from diffup_jax.files import write_changed
from diffup_jax.types import DiffUpError

WHERE = "https://drive.google.com/open?id=16TgqOeI_0P41Eh3jWQlxlRXG9KIqtMgI"
LISTS_WHERE = "FSS-1000's lists in github.com/juhongm999/hsnet (data/splits/fss)"
IMAGES = 10
# Classes of each published list, and the SHA-256 of their names, sorted, one per line.
PUBLISHED = {
    "trn": (520, "e49b17167ca791d5e636263966858c78ff05bd7a054b7f66a44f38d085f18d53"),
    "val": (240, "a435accc79b72790d0020f622d88dd8c7fa47042ea9ae729f75f085fe4c84b31"),
    "test": (240, "72d6a86067fed8dac503db7f556832f7d4d28aee82b12a4e35d310c7ca5c9f94"),
}

_ARCHIVES = ("fewshot_data.zip", "FSS-1000.zip", "fss-1000.zip")


def prepare(
    root: Path, *, archives: Path, lists: Path | None, subset: bool
) -> list[Row]:
    """Does what the module docstring says; answers what is there and what is not.

    Raises DiffUpError for a damaged archive and for `lists` without the three lists.
    """
    if lists is not None:
        _install(lists, root / "splits")
    _unpack(root, archives)
    rows = []
    for split in class_folders.FSS_SPLITS:
        path = root / "splits" / f"{split}.txt"
        if not path.is_file():
            rows.append(Row(f"splits/{split}.txt", "missing", f"get {LISTS_WHERE}"))
            continue
        names = class_folders.read_list(root, split)
        rows.append(_list_row(split, names, subset))
        rows.append(_classes_row(root, split, names, subset))
    return rows


def main(arguments: Sequence[str]) -> int:
    """The command line; see `command.run` for the exit status."""
    parser = command.parser(
        "fss1000",
        "Prepare and check FSS-1000.",
        root="FSS-1000 folder",
        archives="zip files",
        subset="FSS-1000",
    )
    parser.add_argument("--lists", type=Path, help="trn.txt, val.txt and test.txt")
    return command.run(parser, arguments, prepare, title="FSS-1000")


def _install(lists: Path, splits: Path) -> None:
    for split in class_folders.FSS_SPLITS:
        path = lists / f"{split}.txt"
        if not path.is_file():
            raise DiffUpError(f"{path} is missing; --lists needs {LISTS_WHERE}.")
        content = path.read_bytes()
        write_changed(splits / path.name, content)


def _unpack(root: Path, archives: Path) -> None:
    found = [archives / name for name in _ARCHIVES if (archives / name).is_file()]
    if found:
        unpack(found[0], root, members=_member)


def _member(name: str) -> str | None:
    """data/CLASS/N.jpg or .png, however deep the archive has it."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in (".jpg", ".png") or len(path.parts) < 2:
        return None
    return (
        None
        if "__MACOSX" in path.parts
        else str(PurePosixPath("data", *path.parts[-2:]))
    )


def _list_row(split: str, names: list[str], subset: bool) -> Row:
    count, digest = PUBLISHED[split]
    what, facts = f"splits/{split}.txt", f"{len(names)} classes"
    found = hashlib.sha256("\n".join(names).encode()).hexdigest()
    if (len(names), found) == (count, digest):
        return Row(what, "there", f"{facts}, the published list")
    if subset:
        return Row(what, "there", facts)
    return Row(what, "wrong", f"{facts}; not the published list of {count}")


def _classes_row(root: Path, split: str, names: list[str], subset: bool) -> Row:
    what = f"classes of {split}"
    place = root / "data" if (root / "data").is_dir() else root
    try:
        place = class_folders.class_root(root, names)
    except DiffUpError:
        absent = [name for name in names if not (place / name).is_dir()]
        facts = f"{len(names) - len(absent)} of {len(names)}, the first absent is "
        facts += f"{absent[0]}; get {WHERE} into the archives folder"
        return Row(what, "missing", facts)
    problems, pairs = [], 0
    with ThreadPoolExecutor() as pool:
        checked = pool.map(lambda name: _check(place / name, subset), names)
        for found, said in tqdm(checked, desc=what, total=len(names), disable=None):
            pairs += found
            problems += said
    facts = f"{pairs} pairs in {len(names)} classes"
    if problems:
        facts += f"; {len(problems)} problems: " + "; ".join(problems[:5])
        return Row(what, "wrong", facts)
    return Row(what, "there", facts)


def _check(folder: Path, subset: bool) -> tuple[int, list[str]]:
    """(pairs, problems) of one class folder."""
    try:
        pairs = class_folders.read_pairs(folder)
    except DiffUpError as error:
        return 0, [str(error)]
    problems = []
    expected = {str(number) for number in range(1, IMAGES + 1)}
    if not subset and set(pairs) != expected:
        problems.append(f"{folder} has {len(pairs)} pairs, expected 1 .. {IMAGES}")
    for image, mask in pairs.values():
        try:
            foreground = class_folders.read_mask(mask)
            if foreground.shape != rasters.read_image(image).shape[:2]:
                problems.append(f"{mask} and {image} differ in size")
            elif not foreground.any():
                problems.append(f"{mask} has no foreground")
        except DiffUpError as error:
            problems.append(str(error))
    return len(pairs), problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
