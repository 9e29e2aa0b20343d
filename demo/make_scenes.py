"""Writes a folder of drawn scenes in the COCO format: the data of the demo.

    python -m demo.make_scenes --out DIR --images 1000 --size 256 --seed 0

makes

    DIR/train/000001.jpg ...            DIR/annotations/instances_train.json
    DIR/val/000801.jpg ...              DIR/annotations/instances_val.json
    DIR/manifest.json                   what was asked for, and a hash of every file

with the 80 evaluated categories of `scene_categories` (ids 1..80 in their order) and 2
to 5 objects of different categories per image. An object told by one polygon is one;
holes, covered objects and objects cut by the border are compressed RLE; the rare
crowds (`iscrowd` 1) are uncompressed RLE: all three forms real COCO files use. Masks of
one image never overlap.

Deterministic: image i of a split is a function of (seed, split, i), so the same command
gives the same bytes with any number of processes. Another Pillow, numpy or kind of
processor may round a few pixels differently.
Idempotent: a folder that is already exactly this is left alone; a folder of another
`make_scenes` command is replaced; any other folder that is not empty is refused.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import io
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from demo import scene_categories, scene_drawing
from demo.scene_categories import categories
from demo.scene_drawing import Drawn, draw_scene
from diffup_jax.files import whole_or_absent
from diffup_jax.types import DiffUpError

SPLITS = ("train", "val")

_OBJECTS = (2, 5)  # objects per image, both included
_QUALITY = (50, 90)  # of the JPEG files
_MANIFEST = "manifest.json"
_OURS = {*SPLITS, "annotations", _MANIFEST}


def make_scenes(
    out: str | os.PathLike,
    *,
    images: int,
    size: int,
    seed: int,
    val_fraction: float,
    processes: int,
) -> bool:
    """Makes `out` what the module docstring says; False when it already is.

    `images` is the sum over both splits, `size` the pixels of each side (64..1024),
    `val_fraction` the share of val images, in (0, 1). The folder appears whole or not
    at all. Raises DiffUpError for arguments out of range and for an `out` that holds
    anything this file did not write.
    """
    _check(images=images, size=size, seed=seed, processes=processes)
    val = round(images * val_fraction) if 0 < val_fraction < 1 else 0
    if not 0 < val < images:
        raise DiffUpError(
            f"--val-fraction {val_fraction} of {images} images leaves a split empty: "
            "use a fraction between 0 and 1 that gives each split at least one image"
        )
    out = Path(out)
    asked = {
        "images": images,
        "size": size,
        "seed": seed,
        "val": val,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "program": _program_hash(),
    }
    if _is_already(out, asked):
        return False
    with whole_or_absent(out) as partial:
        counts = (images - val, val)
        hashes = _write(
            partial, counts=counts, size=size, seed=seed, processes=processes
        )
        manifest = {"made_by": "demo.make_scenes", "asked": asked, "files": hashes}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return True


def deal(
    generator: np.random.Generator, images: int, *, pool: int
) -> list[tuple[int, ...]]:
    """2..5 different category indices below `pool` for each image, dealt like cards.

    Whole shuffled decks are dealt one after the other, so the numbers of images any two
    categories occur in differ by one at most, but for a rare clash at a deck's end.
    """
    deck: list[int] = []
    dealt = []
    for wanted in generator.integers(_OBJECTS[0], _OBJECTS[1] + 1, images):
        hand: list[int] = []
        while len(hand) < wanted:
            if all(card in hand for card in deck):
                deck += generator.permutation(pool).tolist()
            hand.append(next(card for card in deck if card not in hand))
            deck.remove(hand[-1])
        dealt.append(tuple(hand))
    return dealt


def jpeg(generator: np.random.Generator, image: np.ndarray) -> bytes:
    """The image [h w 3] uint8 as a JPEG file of random quality 50..90."""
    buffer = io.BytesIO()
    quality = int(generator.integers(_QUALITY[0], _QUALITY[1] + 1))
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.make_scenes",
        description="Draw scenes in the COCO format.",
    )
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--images", type=int, required=True, help="train + val images")
    parser.add_argument("--size", type=int, default=256, help="pixels of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val-fraction", type=float, default=0.2)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        made = make_scenes(out, **options)
    except DiffUpError as error:
        print(f"make_scenes: {error}", file=sys.stderr)
        return 2
    state = "written" if made else "already there, nothing to do"
    print(f"{options['images']} scenes in {out}: {state}")
    return 0


def _check(*, images: int, size: int, seed: int, processes: int) -> None:
    for name, value, low, high in (
        ("images", images, 2, 10**6),
        ("size", size, 64, 1024),
        ("seed", seed, 0, 2**63),
        ("processes", processes, 1, 1024),
    ):
        if not low <= value <= high:
            raise DiffUpError(f"--{name} {value} is out of range: use {low}..{high}")


def _program_hash() -> str:
    """Changes with the drawing code: a folder drawn by older code is not "the same"."""
    sources = (__file__, scene_categories.__file__, scene_drawing.__file__)
    return _hash(b"".join(Path(file).read_bytes() for file in sources))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_already(out: Path, asked: dict[str, Any]) -> bool:
    """Whether every file is there and unchanged; refuses a folder that is not ours."""
    if not out.exists():
        return False
    present = {entry.name for entry in out.iterdir()} if out.is_dir() else {"a file"}
    if not present:
        return False
    try:
        manifest = json.loads((out / _MANIFEST).read_text())
        ours = manifest["made_by"] == "demo.make_scenes" and present <= _OURS
        files, was_asked = manifest["files"], manifest["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DiffUpError(
            f"--out {str(out)!r} is not empty and not a folder this program made: name "
            "a new folder, or empty this one"
        )
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    if was_asked != asked or found != {*files, _MANIFEST}:
        return False
    return all(_hash((out / name).read_bytes()) == files[name] for name in files)


def _write(
    folder: Path, *, counts: tuple[int, int], size: int, seed: int, processes: int
) -> dict[str, str]:
    """Everything but the manifest; returns file -> hash."""
    jobs = []
    for split, (name, count) in enumerate(zip(SPLITS, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        hands = deal(np.random.default_rng((seed, split)), count, pool=80)
        first = 1 + split * counts[0]  # image ids run on through the splits
        for index, hand in enumerate(hands):
            file = str(folder / name / f"{first + index:06d}.jpg")
            jobs.append((file, (seed, split, index), hand, size))
    # A few images per message, or the pool is slower than one process.
    chunk = max(1, min(32, math.ceil(len(jobs) / (4 * processes))))
    progress = tqdm(total=len(jobs), desc="scenes", unit="image", disable=None)
    hashes: dict[str, str] = {}
    written: dict[str, list] = {name: [] for name in SPLITS}
    with progress, _mapper(processes) as mapper:
        results = mapper(_write_image, jobs, chunksize=chunk)
        for job, (content, annotations) in zip(jobs, results, strict=True):
            file = Path(job[0])
            hashes[f"{file.parent.name}/{file.name}"] = content
            written[file.parent.name].append((file.name, annotations))
            progress.update()
    (folder / "annotations").mkdir()
    number = 0
    for name in SPLITS:
        document, number = _document(name, written[name], size=size, after=number)
        content = (json.dumps(document, separators=(",", ":")) + "\n").encode()
        file = f"annotations/instances_{name}.json"
        (folder / file).write_bytes(content)
        hashes[file] = _hash(content)
    return hashes


@contextlib.contextmanager
def _mapper(processes: int) -> Iterator[Callable]:
    """A pool's `map`, or the builtin for one process, which needs no pool."""
    if processes == 1:
        yield lambda function, jobs, chunksize: map(function, jobs)
        return
    # Not fork: the caller may have threads (JAX does).
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        yield pool.map


def _write_image(job: tuple) -> tuple[str, list[dict[str, Any]]]:
    """Draws and writes one image; returns its hash and its annotations without ids."""
    file, seed, hand, size = job
    generator = np.random.default_rng(seed)
    pool = categories("evaluated")
    scene = draw_scene(generator, [pool[index] for index in hand], size=size)
    content = jpeg(generator, scene.image)
    Path(file).write_bytes(content)
    annotations = []
    for one in scene.objects:
        area, box, segmentation = _segmentation(one)
        annotations.append(
            {
                "category_id": pool.index(one.category) + 1,
                "iscrowd": int(one.crowd),
                "area": area,
                "bbox": box,
                "segmentation": segmentation,
            }
        )
    return _hash(content), annotations


def _segmentation(one: Drawn) -> tuple[int, list[int], Any]:
    """(area, box x y w h, segmentation) of one object, as COCO writes them."""
    encoded = coco_mask.encode(np.asfortranarray(one.mask.astype(np.uint8)))
    area = int(coco_mask.area(encoded))
    box = [int(side) for side in coco_mask.toBbox(encoded)]
    size = list(one.mask.shape)
    if one.outline is not None:
        # Tenths of a pixel keep the file small and the mask the same.
        return area, box, [np.round(one.outline, 1).ravel().tolist()]
    if not one.crowd:
        return area, box, {"size": size, "counts": encoded["counts"].decode("ascii")}
    column_major = np.concatenate([[0], one.mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(column_major))
    counts = np.diff(np.concatenate([[0], edges]))
    return area, box, {"size": size, "counts": counts.tolist()}


def _document(
    split: str, images: list[tuple[str, list]], *, size: int, after: int
) -> tuple[dict[str, Any], int]:
    """The COCO document of a split, its annotations numbered from `after` + 1."""
    document: dict[str, Any] = {
        "info": {"description": f"drawn scenes, {split}", "version": "1.0"},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {
                "id": index + 1,
                "name": one.name,
                "supercategory": scene_categories.SHAPES[one.shape],
            }
            for index, one in enumerate(categories("evaluated"))
        ],
    }
    for name, objects in images:
        image_id = int(Path(name).stem)
        document["images"].append(
            {"id": image_id, "file_name": name, "height": size, "width": size}
        )
        for one in objects:
            after += 1
            entry = {"id": after, "image_id": image_id, **one}
            document["annotations"].append(entry)
    return document, after


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
