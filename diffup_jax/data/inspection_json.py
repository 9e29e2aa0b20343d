"""What is wrong with a COCO instances JSON and its images: every entry of its lists.

Also home of `Findings`, which the checks of all layouts answer (inspection.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffup_jax.data.rasters import Facts
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

PHOTOGRAPHS = (".jpg", ".jpeg")
PICTURES = (*PHOTOGRAPHS, ".png")

# Corners may lie this many pixels outside the image: tools round differently.
_OUTSIDE = 2.0

Pictures = Mapping[Path, Facts | None]


@dataclasses.dataclass
class Findings:
    """`problems`: one sentence each. `photographs`: file -> group.

    Two photographs of one group with equal bytes are a duplicate. In folders of classes
    the group is the class, because a photograph may show two of them.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    photographs: dict[Path, str] = dataclasses.field(default_factory=dict)


def turned(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    """What to add to a complaint about two sizes, (rows, columns) both."""
    return "; was the photograph turned after it was stored?" * (one == other[::-1])


def inspect_instances(
    path: Path, folders: Sequence[Path], pictures: Pictures
) -> Findings:
    """One COCO instances JSON: every entry of its three lists."""
    findings = Findings()
    problems = findings.problems
    try:
        content = read_json(path, fix="Expected a COCO instances file.")
    except DiffUpError as error:
        problems.append(str(error))
        return findings
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in keys
    ):
        problems.append(f"{path}: is no COCO instances file: expected lists {keys}")
        return findings
    for key in keys:
        entries = [e for e in content[key] if isinstance(e, dict)]
        others = [e for e in content[key] if not isinstance(e, dict)]
        problems += [f"{path}: {key} holds {e!r:.80}, no object" for e in others]
        ids = Counter(repr(e["id"]) for e in entries if "id" in e)
        told = [(id_, n) for id_, n in ids.items() if n > 1]
        problems += [f"{path}: {key} has the id {id_} {n} times" for id_, n in told]
        content[key] = entries
    names = Counter(e.get("name") for e in content["categories"] if _is_named(e))
    for entry in content["categories"]:
        if not _is_named(entry):
            problems.append(f"{path}: category {entry!r:.80}: expected an id and name")
    problems += [
        f"{path}: {n} categories are called {name!r}"
        for name, n in names.items()
        if n > 1
    ]
    sizes = _images(path, content["images"], folders, pictures, findings)
    categories = {e["id"] for e in content["categories"] if _is_named(e)}
    for place, entry in enumerate(content["annotations"]):
        fault = _annotation_fault(entry, sizes, categories)
        if fault:
            problems.append(f"{path}: annotation {entry.get('id', place)}: {fault}")
    return findings


def _is_named(entry: dict) -> bool:
    return type(entry.get("id")) is int and isinstance(entry.get("name"), str)


def _images(
    path: Path,
    entries: list[dict],
    folders: Sequence[Path],
    pictures: Pictures,
    findings: Findings,
) -> dict[Any, tuple[int, int]]:
    """Image id -> (height, width) as annotated; compares them with the files."""
    sizes: dict[Any, tuple[int, int]] = {}
    seen: set[str] = set()
    absent = []
    for entry in entries:
        file, image_id = entry.get("file_name"), entry.get("id")
        size = (entry.get("height"), entry.get("width"))
        if (
            type(image_id) is not int
            or not isinstance(file, str)
            or any(type(side) is not int or side < 1 for side in size)
        ):
            findings.problems.append(
                f"{path}: image {entry!r:.120}: expected id, file_name, height and "
                "width"
            )
            continue
        sizes[image_id] = size
        name = Path(file).name
        if Path(name).stem in seen:
            findings.problems.append(f"{path}: two images are called {name!r}")
        seen.add(Path(name).stem)
        short = name.rsplit("_", 1)[-1] if name.startswith("COCO_") else name
        places = [folder / n for folder in folders for n in (name, short)]
        found = next((place for place in places if place in pictures), None)
        if found is None:
            absent.append(name)
            continue
        findings.photographs[found] = ""
        facts = pictures[found]
        if facts and facts[:2] != size:
            findings.problems.append(
                f"{found}: is {facts.height} x {facts.width} (rows x columns) but was "
                f"annotated at {size[0]} x {size[1]}{turned(facts[:2], size)}"
            )
    if absent and len(absent) == len(entries):
        findings.problems.append(
            f"{path}: none of its {len(absent)} images is in "
            f"{', '.join(map(str, folders))}; add them, or name another split"
        )
    else:
        findings.problems += [f"{path}: the image {name} is absent" for name in absent]
    return sizes


def _annotation_fault(
    entry: dict, sizes: Mapping[Any, tuple[int, int]], categories: set
) -> str | None:
    """What is wrong with one annotation, None when nothing is."""
    image, category = entry.get("image_id"), entry.get("category_id")
    if type(image) is not int or image not in sizes:
        return f"image_id {image!r} is no image of this file"
    if type(category) is not int or category not in categories:
        return f"category_id {category!r} is no category of this file"
    if not _is_number(entry.get("area")) or entry["area"] < 0:
        return f"area {entry.get('area')!r}: expected the number of pixels"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd {entry['iscrowd']!r}: expected 0 or 1"
    height, width = sizes[image]
    shape = entry.get("segmentation")
    if isinstance(shape, dict):
        return _runs_fault(shape, height, width)
    if not isinstance(shape, list) or not shape:
        return f"segmentation {shape!r:.60}: expected polygons or run lengths"
    for polygon in shape:
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            return f"polygon {polygon!r:.60}: expected numbers x0 y0 x1 y1 ..."
        if len(polygon) % 2:
            return f"a polygon has {len(polygon)} numbers; expected pairs x y"
        for values, most in ((polygon[::2], width), (polygon[1::2], height)):
            if (
                values
                and not -_OUTSIDE <= min(values) <= max(values) <= most + _OUTSIDE
            ):
                return (
                    f"a polygon reaches {min(values):g}..{max(values):g}, outside the "
                    f"image of {height} x {width} (rows x columns)"
                )
    if all(len(polygon) < 6 for polygon in shape):
        return "no polygon has three corners"
    return None


def _runs_fault(shape: dict, height: int, width: int) -> str | None:
    counts, size = shape.get("counts"), shape.get("size")
    if size != [height, width]:
        return f"run lengths of size {size!r} in an image of {height} x {width}"
    if isinstance(counts, str) and counts:
        return None  # decoding tells whether they fill the image
    if not isinstance(counts, list) or not all(
        type(run) is int and run >= 0 for run in counts
    ):
        return "counts: expected a string or a list of run lengths"
    if sum(counts) != height * width:
        return f"run lengths sum to {sum(counts)}; expected {height} x {width}"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
