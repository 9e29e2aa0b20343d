"""Which images make an episode: the draws, before any pixel is read.

An episode has n ways (classes) and k supports of each. Its query is an image of way 0;
other ways may be absent from it. The rules of this room need lists of images only:

    hsnet      the published stream of numpy's legacy RandomState(0): every choice is
               choice(n, 1, replace=False), each support again while it is the query.
               Supports may repeat (HSNet, arXiv 2104.01538). One way.
    original   the same stream, a support also again while it repeats one.
    clean      class = classes[index mod n], so every class is equally often way 0;
               query and supports of a way all differ; a function of (seed, i).
    training   a uniform class, distinct images; a function of (seed, i), so any
               process or worker can make any episode.

`draws` adds the protocols that need pixel areas, and is the way in for evaluation;
`lists` keeps draws in files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffup_jax.data.sources import Source, require_images
from diffup_jax.types import DiffUpError

MOST_WAYS = 5
# How the hsnet stream comes to a query, see `hsnet_stream`.
ORDERS = ("class", "listed", "folders", "turns")

# Keeps the streams of two protocols apart under equal seed and index.
_CLEAN, _TRAINING = 1, 2


class Draw(NamedTuple):
    """One episode: class of each way, query image id, supports[way][shot] image ids."""

    class_ids: tuple[int, ...]
    query: str
    supports: tuple[tuple[str, ...], ...]


def hsnet_stream(
    images_by_class: Mapping[int, Sequence[str]],
    classes: Sequence[int],
    *,
    shots: int,
    count: int,
    order: str = "class",
    distinct: bool = False,
) -> tuple[Draw, ...]:
    """The hsnet protocol: published episodes if lists and their order are published.

    classes: in the published order, for COCO fold, fold + 4, fold + 8, ...
    order: where class and query of episode i come from.
        "class"    drawn: a class, then one of its images (COCO, PACO-Part)
        "listed"   pair i mod m of all (image, class) pairs, sorted (Pascal)
        "folders"  the same, sorted by class, then image; supports are drawn from the
                   images sorted by number (FSS-1000)
        "turns"    class i mod n, then a drawn image (LVIS, Pascal-Part)
    distinct: a support is drawn again also while it repeats an earlier one.

    Raises DiffUpError for an unknown order and a class with too few images.
    """
    if order not in ORDERS:
        raise DiffUpError(f"unknown order {order!r}; expected one of {ORDERS}.")
    require_lists(images_by_class, classes, shots + 1 if distinct else 2)
    stream = np.random.RandomState(0)

    def pick(items: Sequence[Any]) -> Any:
        # choice(n, 1, replace=False) permutes all n: the stream moves by n numbers.
        return items[stream.choice(len(items), 1, replace=False)[0]]

    pairs = [(i, c) for c in classes for i in sorted(images_by_class[c])]
    if order == "listed":
        pairs.sort()
    draws = []
    for index in range(count):
        if order in ("listed", "folders"):
            query, class_id = pairs[index % len(pairs)]
        else:
            turns = order == "turns"
            class_id = classes[index % len(classes)] if turns else pick(classes)
            query = pick(images_by_class[class_id])
        images = images_by_class[class_id]
        if order == "folders":
            images = sorted(images, key=lambda name: (len(name), name))  # 2 before 10
        supports: list[str] = []
        while len(supports) < shots:
            support = pick(images)
            if support != query and not (distinct and support in supports):
                supports.append(support)
        draws.append(Draw((int(class_id),), query, (tuple(supports),)))
    return tuple(draws)


def clean_draws(
    source: Source,
    classes: Sequence[int],
    *,
    shots: int,
    count: int,
    seed: int,
    ways: int = 1,
) -> tuple[Draw, ...]:
    """The clean protocol: balanced classes, distinct images, one seed per episode.

    Way 0 and its images do not depend on `ways`. Raises DiffUpError for a class with
    fewer than shots + 1 images and for more ways than classes.
    """
    require_images(source, classes, shots)
    lists = {class_id: source.image_ids(class_id) for class_id in classes}
    return clean_stream(lists, classes, shots=shots, count=count, seed=seed, ways=ways)


def clean_stream(
    images_by_class: Mapping[int, Sequence[str]],
    classes: Sequence[int],
    *,
    shots: int,
    count: int,
    seed: int,
    ways: int,
) -> tuple[Draw, ...]:
    """The clean protocol over given lists, see `clean_draws`."""
    require_lists(images_by_class, classes, shots + 1)
    require_ways(classes, ways)
    images_of = images_by_class.__getitem__
    draws = []
    for index in range(count):
        generator = np.random.default_rng((seed, index, _CLEAN))
        first = classes[index % len(classes)]
        draws.append(_distinct(images_of, classes, first, shots, ways, generator))
    return tuple(draws)


def training_draw(
    source: Source,
    classes: Sequence[int],
    *,
    shots: int,
    seed: int,
    index: int,
    ways: int = 1,
) -> Draw:
    """Training episode `index`: uniform classes, distinct images.

    Each class needs shots + 1 images (`require_images`, once, before training). Way 0
    and its images do not depend on `ways`.
    """
    generator = np.random.default_rng((seed, index, _TRAINING))
    first = classes[generator.integers(len(classes))]
    return _distinct(source.image_ids, classes, first, shots, ways, generator)


def require_lists(
    images_by_class: Mapping[int, Sequence[str]], classes: Sequence[int], needed: int
) -> None:
    """Raises DiffUpError unless each class has `needed` images."""
    for class_id in classes:
        images = len(set(images_by_class.get(class_id, ())))
        if images < needed:
            raise DiffUpError(
                f"class {class_id} has {images} image(s) but an episode needs {needed} "
                "(supports and query differ). Use fewer shots, leave small classes "
                "out, or take a protocol that removes no images."
            )


def require_ways(classes: Sequence[int], ways: int) -> None:
    """Raises DiffUpError unless `ways` different classes can be drawn."""
    if not classes:
        raise DiffUpError(
            "no class is left to draw episodes of; use fewer shots or another fold."
        )
    if not 1 <= ways <= min(MOST_WAYS, len(classes)):
        raise DiffUpError(
            f"{ways} ways were asked of {len(classes)} classes; expected 1 to "
            f"{min(MOST_WAYS, len(classes))}."
        )


def other_supports(
    images: Sequence[str], query: str, shots: int, generator: np.random.Generator
) -> tuple[str, ...]:
    """`shots` different images of a class, none of the query's photograph.

    images: at least shots + 1, at most one of them of the query's photograph (the part
    of an id before "#": two objects may be cut from one photograph).
    """
    # One more than needed is drawn, so that the query can be dropped afterwards.
    chosen = generator.choice(len(images), shots + 1, replace=False)
    own = query.partition("#")[0]
    others = (images[i] for i in chosen if images[i].partition("#")[0] != own)
    return tuple(others)[:shots]


def _distinct(
    images_of: Callable[[int], Sequence[str]],
    classes: Sequence[int],
    first: int,
    shots: int,
    ways: int,
    generator: np.random.Generator,
) -> Draw:
    """Way 0 is `first`, other ways uniform; no support is the query or repeats."""
    images = images_of(first)
    chosen = generator.choice(len(images), shots + 1, replace=False)
    query, *supports = (images[i] for i in chosen)
    class_ids, by_way = [int(first)], [tuple(supports)]
    if ways > 1:
        others = [class_id for class_id in classes if class_id != first]
        for i in generator.choice(len(others), ways - 1, replace=False):
            class_ids.append(int(others[i]))
            by_way.append(other_supports(images_of(others[i]), query, shots, generator))
    return Draw(tuple(class_ids), query, tuple(by_way))
