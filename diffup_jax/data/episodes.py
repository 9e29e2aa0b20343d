"""Which images make an episode: the draws, before any pixel is read.

Three protocols:

    hsnet      the published stream of numpy's legacy RandomState(0): class, query and
               supports are drawn one after the other with choice(n, 1, replace=False),
               each support again while it equals the query. Supports may repeat, and
               classes come as often as chance gives them (HSNet, arXiv 2104.01538).
    clean      class = classes[index mod n], so every class is equally frequent;
               supports and query all differ; episode i depends on (seed, i) alone.
    training   a uniform class, distinct images; depends on (seed, i) alone, so any
               process or worker can make any episode.

A list of draws is a file: JSON lines, first the facts with a hash, then one draw each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffup_jax.data.sources import Source, require_images
from diffup_jax.types import DiffUpError

# Keeps the streams of two protocols apart under equal seed and index.
_CLEAN, _TRAINING = 1, 2


class Draw(NamedTuple):
    """One episode: class index, query image id, support image ids."""

    class_id: int
    query: str
    supports: tuple[str, ...]


def hsnet_draws(
    source: Source, classes: Sequence[int], *, shots: int, count: int
) -> tuple[Draw, ...]:
    """The hsnet protocol over the images of a source.

    The episodes equal the published ones only where the lists of images have the
    published content and order. Raises DiffUpError for a class with one image.
    """
    require_images(source, classes, 1)  # supports may repeat: one other image will do
    lists = {class_id: source.image_ids(class_id) for class_id in classes}
    return hsnet_stream(lists, classes, shots=shots, count=count)


def hsnet_stream(
    images_by_class: Mapping[int, Sequence[str]],
    classes: Sequence[int],
    *,
    shots: int,
    count: int,
) -> tuple[Draw, ...]:
    """The hsnet protocol over given lists, at least two images per class.

    classes: in the published order fold, fold + 4, fold + 8, ...
    """
    stream = np.random.RandomState(0)

    def pick(items: Sequence[Any]) -> Any:
        # choice(n, 1, replace=False) permutes all n: the stream moves by n numbers.
        return items[stream.choice(len(items), 1, replace=False)[0]]

    draws = []
    for _ in range(count):
        class_id = pick(classes)
        images = images_by_class[class_id]
        query = pick(images)
        supports: list[str] = []
        while len(supports) < shots:
            support = pick(images)
            if support != query:
                supports.append(support)
        draws.append(Draw(int(class_id), query, tuple(supports)))
    return tuple(draws)


def clean_draws(
    source: Source, classes: Sequence[int], *, shots: int, count: int, seed: int
) -> tuple[Draw, ...]:
    """The clean protocol: balanced classes, distinct images, one seed per episode.

    Raises DiffUpError for a class with fewer than shots + 1 images.
    """
    require_images(source, classes, shots)
    draws = []
    for index in range(count):
        generator = np.random.default_rng((seed, index, _CLEAN))
        class_id = classes[index % len(classes)]
        draws.append(_distinct(source, class_id, shots, generator))
    return tuple(draws)


def training_draw(
    source: Source, classes: Sequence[int], *, shots: int, seed: int, index: int
) -> Draw:
    """Training episode `index`: uniform class, distinct images.

    Each class needs shots + 1 images (`require_images`, once, before training).
    """
    generator = np.random.default_rng((seed, index, _TRAINING))
    class_id = classes[generator.integers(len(classes))]
    return _distinct(source, class_id, shots, generator)


def draws_sha(draws: Sequence[Draw]) -> str:
    """16 hexadecimal digits that name a list of draws: sha256 of its JSON form."""
    content = [(d.class_id, d.query, list(d.supports)) for d in draws]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_draws(
    path: str | os.PathLike[str], draws: Sequence[Draw], meta: Mapping[str, Any]
) -> None:
    """Writes a list of draws whole or not at all.

    The first line is `meta` (protocol, seed, benchmark, fold, shots, ...) with "count"
    and "sha" added, each further line one draw [class, query, [supports]].
    """
    head = {**meta, "count": len(draws), "sha": draws_sha(draws)}
    lines = [json.dumps(head)]
    lines += [json.dumps([d.class_id, d.query, list(d.supports)]) for d in draws]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_draws(
    path: str | os.PathLike[str],
) -> tuple[tuple[Draw, ...], dict[str, Any]]:
    """The draws and the meta dictionary of a file made by `write_draws`.

    Raises DiffUpError when the file is absent, malformed, cut short or was edited (its
    hash tells).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiffUpError(f"cannot read the episode list {path}: {error}.") from error
    try:
        meta = json.loads(lines[0])
        rows = [json.loads(line) for line in lines[1:]]
        draws = tuple(Draw(int(c), str(q), tuple(map(str, s))) for c, q, s in rows)
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


def _distinct(
    source: Source, class_id: int, shots: int, generator: np.random.Generator
) -> Draw:
    images = source.image_ids(class_id)
    chosen = generator.choice(len(images), shots + 1, replace=False)
    query, *supports = (images[i] for i in chosen)
    return Draw(int(class_id), query, tuple(supports))
