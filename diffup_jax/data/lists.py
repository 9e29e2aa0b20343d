"""Lists of draws: files that name every image of an evaluation, and their hash.

JSON lines, first the facts with a hash, then one draw each. A list that was read is
fitted to a source before it is used: published lists spell images their own way.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffup_jax.data.episodes import Draw
from diffup_jax.data.sources import Source
from diffup_jax.files import read_text, write_whole
from diffup_jax.types import DiffUpError


def draws_sha(draws: Sequence[Draw]) -> str:
    """16 hexadecimal digits that name a list of draws: sha256 of its JSON form."""
    content = [_row(draw) for draw in draws]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_draws(
    path: str | os.PathLike[str], draws: Sequence[Draw], meta: Mapping[str, Any]
) -> None:
    """Writes a list of draws whole or not at all.

    The first line is `meta` (protocol, seed, benchmark, fold, shots, ...) with "count"
    and "sha" added, each further line one draw: [class, query, [supports]], and for
    several ways [[classes], query, [[supports of way 0], [supports of way 1], ...]].
    """
    head = {**meta, "count": len(draws), "sha": draws_sha(draws)}
    lines = [json.dumps(head), *(json.dumps(_row(draw)) for draw in draws)]
    write_whole(path, "\n".join(lines) + "\n")


def read_draws(
    path: str | os.PathLike[str],
) -> tuple[tuple[Draw, ...], dict[str, Any]]:
    """The draws and the meta dictionary of a file made by `write_draws`.

    Raises DiffUpError when the file is absent, malformed, cut short or was edited (its
    hash tells).
    """
    fix = "Expected an episode list, as data_prep.freeze_episodes writes it."
    lines = read_text(path, fix=fix).splitlines()
    try:
        meta = json.loads(lines[0])
        draws = tuple(_draw(json.loads(line)) for line in lines[1:])
        expected = meta["sha"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DiffUpError(
            f"{path} is not an episode list ({type(error).__name__}: {error}); "
            "expected a line of facts and one line [class, query, [supports]] per "
            "episode. Write it again."
        ) from error
    if draws_sha(draws) != expected:
        raise DiffUpError(
            f"{path} was changed or cut short: its {len(draws)} episodes have hash "
            f"{draws_sha(draws)}, its first line says {expected}. Write it again."
        )
    return draws, meta


def check_draws(
    draws: Sequence[Draw], source: Source, *, classes: Sequence[int], name: str
) -> tuple[Draw, ...]:
    """The draws in the source's own image ids, once every one is known to fit.

    Published names are found by their last part: "val2014/COCO_val2014_0..9.jpg" is
    the image COCO_val2014_0..9, or 0..9 where the source has 2017 names. The hash of a
    list is that of the file, taken before this.

    classes: the novel classes of the evaluation. name: the list, for messages.

    Raises DiffUpError naming the first class that is not among `classes`, the first
    image that is not one of its class in the source, or an episode of another number
    of ways or shots than the first; for an empty list too.
    """
    if not draws:
        raise DiffUpError(f"{name} has no episodes; write it again.")
    known = {class_id: set(source.image_ids(class_id)) for class_id in classes}
    where = f"{source.name} ({source.root})"
    form = [len(images) for images in draws[0].supports]
    fitted = []
    for number, draw in enumerate(draws):
        told = f"{name}, episode {number}"
        if [len(images) for images in draw.supports] != form:
            raise DiffUpError(
                f"{told} has {[len(s) for s in draw.supports]} supports, the first "
                f"episode {form}; a list has one number of ways and shots. Write it "
                "again."
            )
        strange = [c for c in draw.class_ids if c not in known]
        if strange:
            raise DiffUpError(
                f"{told} is of class {strange[0]}, which is not evaluated here: "
                f"expected one of {sorted(known)} of {where}. Use the list of this "
                "benchmark and fold."
            )

        def fit(image_id: str, class_id: int, told: str = told) -> str:
            for spelling in _spellings(image_id):
                if spelling in known[class_id]:
                    return spelling
            raise DiffUpError(
                f"{told} needs {image_id!r} with class {class_id} "
                f"({source.class_names[class_id]}), but {where} lists no such image of "
                "that class. Use the data and split the list was made for, or a "
                "smaller min_area."
            )

        fitted.append(
            Draw(
                draw.class_ids,
                fit(draw.query, draw.class_ids[0]),
                tuple(
                    tuple(fit(image_id, class_id) for image_id in images)
                    for class_id, images in zip(
                        draw.class_ids, draw.supports, strict=True
                    )
                ),
            )
        )
    return tuple(fitted)


def _row(draw: Draw) -> list[Any]:
    """The JSON form: that of the published lists when there is one way."""
    supports = [list(images) for images in draw.supports]
    if len(draw.class_ids) == 1:
        return [draw.class_ids[0], draw.query, supports[0]]
    return [list(draw.class_ids), draw.query, supports]


def _draw(row: Any) -> Draw:
    """Raises ValueError or TypeError for what `_row` does not make."""
    classes, query, supports = row
    if not isinstance(classes, list):
        classes, supports = [classes], [supports]
    if not isinstance(supports, list) or len(classes) != len(supports):
        raise ValueError(f"{len(classes)} classes with supports {supports!r}")
    names = [query, *(name for images in supports for name in images)]
    if not all(type(name) is str for name in names):
        raise ValueError(f"expected names of images, got {names}")
    if not all(type(class_id) is int for class_id in classes):
        raise ValueError(f"expected class numbers, got {classes}")
    return Draw(tuple(classes), query, tuple(map(tuple, supports)))


def _spellings(image_id: str) -> Iterator[str]:
    yield image_id
    stem = Path(image_id).stem
    yield stem
    if stem.startswith("COCO_"):
        yield stem.rsplit("_", 1)[-1]
