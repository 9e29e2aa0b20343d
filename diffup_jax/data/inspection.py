"""What is wrong with the files of one layout: every fault, not the first.

The readers stop at the first fault, which is right for a run. These checks go on. Each
takes the decoded facts of every picture under the root and answers a `Findings`: one
sentence per fault, and the photographs that the layout uses. They know only the layouts
that users write by hand or convert themselves; `doctor.py` adds what opening the data
shows, which holds for every kind.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from diffup_jax.data.inspection_json import (
    PHOTOGRAPHS,
    Findings,
    Pictures,
    inspect_instances,
    turned,
)
from diffup_jax.data.readers import class_folders, voc
from diffup_jax.files import read_text
from diffup_jax.types import DiffUpError


def inspect_coco(root: Path, split: str, pictures: Pictures) -> Findings:
    """ROOT/annotations/instances_`split`.json and the images it names."""
    folders = dict.fromkeys((split, "train_val_2017", "train2017", "val2017"))
    return inspect_instances(
        root / "annotations" / f"instances_{split}.json",
        [root / name for name in folders],
        pictures,
    )


def inspect_label_map(root: Path, split: str, pictures: Pictures) -> Findings:
    """The names in ROOT/`split`.txt, their images and masks."""
    findings = Findings()
    # A name may have two photographs; as in the reader, .jpg goes before the others.
    here = [path for path in pictures if path.parent == root / "images"]
    here.sort(key=lambda path: path.suffix.lower() == ".jpg")
    images = {path.stem: path for path in here}
    for name in _lines(root / f"{split}.txt", findings):
        mask = root / "masks" / f"{name}.png"
        _pair(findings, pictures, name, images.get(name), mask, f"{split}.txt")
    return findings


def inspect_voc(root: Path, split: str, pictures: Pictures) -> Findings:
    """The lines of ImageSets/Segmentation/`split`.txt, their images and masks."""
    findings = Findings()
    places = [root / inside for inside in voc.INSIDE]
    place = next((p for p in places if (p / "JPEGImages").is_dir()), root)
    masks = [place / name for name in voc.MASKS if (place / name).is_dir()]
    if not masks:
        findings.problems.append(f"{place}: has no folder {' or '.join(voc.MASKS)}")
        return findings
    told = f"ImageSets/Segmentation/{split}.txt"
    checked = set()
    for line in _lines(place / told, findings):
        name, mark, number = line.partition("__")
        if mark and not (number.isdecimal() and 1 <= int(number) <= len(voc.CLASSES)):
            findings.problems.append(f"{told}: the line {line!r} names no class 01..20")
            continue
        mask = masks[0] / f"{name}.png"
        if name not in checked:
            checked.add(name)
            image = place / "JPEGImages" / f"{name}.jpg"
            found = image if image in pictures else None
            _pair(findings, pictures, name, found, mask, told)
            found = pictures.get(mask)
            labels = sorted(found.labels) if found else []
            wrong = [n for n in labels if n > len(voc.CLASSES) and n != voc.VOID]
            if wrong:
                findings.problems.append(
                    f"{mask}: has the labels {wrong}; expected 0..20 and 255"
                )
        found = pictures.get(mask)
        if mark and found and int(number) not in found.labels:
            findings.problems.append(
                f"{told}: the line {line!r} states class {number}, but {mask} does not "
                "show it"
            )
    return findings


def inspect_fss1000(root: Path, split: str, pictures: Pictures) -> Findings:
    """The class folders of ROOT/splits/`split`.txt."""
    findings = Findings()
    names = _lines(root / "splits" / f"{split}.txt", findings)
    inside = ("data", "fewshot_data", "fewshot_data/fewshot_data", "")
    for name in names:
        found = [root / p / name for p in inside if (root / p / name).is_dir()]
        if found:
            _class_folder(findings, found[0], pictures)
        else:
            findings.problems.append(f"splits/{split}.txt: no folder of class {name!r}")
    return findings


def inspect_folder(root: Path, split: str, pictures: Pictures) -> Findings:
    """ROOT/CLASS/ (split "all"), ROOT/SPLIT/CLASS/, or one COCO instances JSON."""
    try:
        path = class_folders.find_json(root, split)
    except DiffUpError as error:
        return Findings([str(error)])
    if path is not None:
        return inspect_instances(path, [root, root / "images", root / split], pictures)
    findings = Findings()
    place = root if split == "all" else root / split
    for folder in sorted(p for p in place.iterdir() if p.is_dir()):
        if not folder.name.startswith("."):
            _class_folder(findings, folder, pictures)
    return findings


def _lines(path: Path, findings: Findings) -> list[str]:
    """The lines of a list once each; one that cannot be read is told, and repeats."""
    try:
        text = read_text(path, fix="A list has one name per line.")
    except DiffUpError as error:
        findings.problems.append(str(error))
        return []
    lines = [line.strip() for line in text.splitlines()]
    counts = Counter(filter(None, lines))
    findings.problems += [
        f"{path}: lists {line!r} {times} times"
        for line, times in counts.items()
        if times > 1
    ]
    return list(counts)


def _pair(
    findings: Findings,
    pictures: Pictures,
    name: str,
    image: Path | None,
    mask: Path,
    told: str,
) -> None:
    """One photograph, None when it is absent, and its label picture."""
    if image is None:
        findings.problems.append(f"{told}: {name!r} has no image")
    else:
        findings.photographs[image] = ""
    if mask not in pictures:
        findings.problems.append(f"{told}: {name!r} has no mask {mask}")
        return
    facts = pictures[mask]
    if facts and facts.mode not in ("L", "P"):
        findings.problems.append(
            f"{mask}: has mode {facts.mode}; expected labels, PNG mode L or P"
        )
    _same_size(findings, pictures, image, mask)


def _same_size(
    findings: Findings, pictures: Pictures, image: Path | None, mask: Path
) -> None:
    one, other = pictures.get(image) if image else None, pictures.get(mask)
    if one and other and one[:2] != other[:2]:
        findings.problems.append(
            f"{mask}: is {other.height} x {other.width} (rows x columns) but {image} "
            f"is {one.height} x {one.width}{turned(one[:2], other[:2])}"
        )


def _class_folder(findings: Findings, folder: Path, pictures: Pictures) -> None:
    """Photographs NAME.jpg and masks NAME.png of one class."""
    here = [folder / name for name in sorted(os.listdir(folder))]
    images = {p.stem: p for p in here if p.suffix.lower() in PHOTOGRAPHS}
    masks = {p.stem: p for p in here if p.suffix.lower() == ".png"}
    if not images:
        findings.problems.append(f"{folder}: holds no photograph NAME.jpg")
    for name in sorted(images.keys() ^ masks.keys()):
        path = images.get(name) or masks[name]
        partner = "mask .png" if name in images else "photograph .jpg"
        findings.problems.append(f"{path}: has no {partner} of the same name beside it")
    for name, image in images.items():
        findings.photographs[image] = str(folder)
        if name in masks:
            _same_size(findings, pictures, image, masks[name])
