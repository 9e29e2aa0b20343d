"""The evaluation list of every protocol, from a source or from published lists.

    source --pool_of--> Pool --evaluation_draws--> draws

Rules beside those of `episodes`, each episode a function of (seed, i):

    pfenet   query = image i mod m of the images with a large novel class, in sorted
             order; its class uniform among the novel classes with any pixel in it;
             supports distinct images where that class is large. Published: all of
             this. Ours: the seed of each episode; the published list depends on the
             number of workers and was never a file.
    denet    1 way: class i mod n; query and supports are distinct images that hold one
             single large novel class of the fold. n ways: way 0 is class i mod n, the
             others are uniform without repeats; supports are images where their class
             is large; the query has no pixel of a novel class outside the n ways.
             Published: all of this (the 2-way rule, for any n). Ours: the seed of
             each episode (the published lists start from the order of a directory
             listing), and that no support of another way is the query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from diffup_jax.data import episodes, protocols
from diffup_jax.data.benchmarks import Benchmark
from diffup_jax.data.episodes import Draw
from diffup_jax.data.protocols import Protocol
from diffup_jax.data.sources import Source
from diffup_jax.types import DiffUpError

# Keep streams apart from those of `episodes` under equal seed and index.
_PFENET, _DENET = 4, 5
# Protocols that draw by hsnet's stream.
_STREAM = ("hsnet", "original")
# Times the other classes of an n-way episode are drawn again for want of a query.
_TRIES = 100

Lists = Mapping[int, Sequence[str]]


class Pool(NamedTuple):
    """Images by novel class: where it is large enough to count, and where it is."""

    large: Lists
    anywhere: Lists


def pool_of(
    source: Source,
    classes: Sequence[int],
    *,
    protocol: Protocol,
    benchmark: Benchmark,
) -> Pool:
    """The images of a source, filtered as the protocol asks.

    classes: all novel classes of the fold, also those that no episode can be made of.
    benchmark: whose images they are, which decides an area filter. With a filter every
    mask is read once, about 1 ms each; open the source with min_area 0, because
    "anywhere" is what the source lists.
    """
    anywhere = {class_id: source.image_ids(class_id) for class_id in classes}
    share = protocol.min_area.get(benchmark.family, 0.0)
    if not protocol.min_pixels and not share:
        return Pool(anywhere, anywhere)
    pairs = [(c, i) for c in classes for i in anywhere[c]]
    large: dict[int, list[str]] = {class_id: [] for class_id in classes}
    for class_id, image_id in tqdm(pairs, desc="areas", unit="mask", disable=None):
        mask, _ = source.mask(image_id, class_id)
        if mask.sum() >= max(protocol.min_pixels, share * mask.size, 1):
            large[class_id].append(image_id)
    return Pool(large, anywhere)


def usable_classes(
    pool: Pool, classes: Sequence[int], *, protocol: Protocol, shots: int, ways: int
) -> tuple[int, ...]:
    """Those of `classes` with the images for a query and `shots` other supports."""
    lists = _lists(pool, protocol, ways)
    return tuple(c for c in classes if len(lists[c]) > shots)


def episode_count(pool: Pool, *, protocol: Protocol, benchmark: Benchmark) -> int:
    """Episodes of a run when the user asks for no number.

    A benchmark's published number holds in hsnet and original; Pascal-Part has one
    episode per (image, part) at most.
    """
    if protocol.name not in _STREAM or benchmark.episodes is None:
        return protocol.episodes
    pairs = sum(map(len, pool.large.values()))
    return min(benchmark.episodes, pairs) if benchmark.capped else benchmark.episodes


def evaluation_draws(
    pool: Pool,
    classes: Sequence[int],
    *,
    protocol: Protocol,
    benchmark: Benchmark,
    shots: int,
    ways: int,
    count: int,
    seed: int,
) -> tuple[Draw, ...]:
    """`count` episodes of a protocol.

    classes: novel classes of the pool, increasing. benchmark: decides the order of
    hsnet's queries. seed: a protocol with a seed of its own (`protocol.seed`) uses that
    one.

    Raises DiffUpError for a number of ways the protocol does not define or the fold
    does not have, and for a class with too few images.
    """
    if shots < 1 or count < 1:
        raise DiffUpError(f"{count} episodes of {shots} shots; expected at least 1.")
    if not 1 <= ways <= protocol.most_ways:
        several = [p.name for p in protocols.PROTOCOLS.values() if p.most_ways >= ways]
        raise DiffUpError(
            f"protocol {protocol.name} is defined for 1 to {protocol.most_ways} ways, "
            f"not {ways}. Protocols with {ways} ways: {', '.join(several) or 'none'}."
        )
    episodes.require_ways(classes, ways)
    if protocol.name in _STREAM:
        return episodes.hsnet_stream(
            pool.large,
            classes,
            shots=shots,
            count=count,
            order=benchmark.order,
            distinct=protocol.distinct or benchmark.distinct,
        )
    if protocol.name == "pfenet":
        return _pfenet(pool, classes, shots, count, seed)
    if protocol.name == "denet":
        return _denet(
            pool, classes, _lists(pool, protocol, ways), shots, ways, count, seed
        )
    return episodes.clean_stream(
        pool.large, classes, shots=shots, count=count, seed=seed, ways=ways
    )


def _pfenet(
    pool: Pool, classes: Sequence[int], shots: int, count: int, seed: int
) -> tuple[Draw, ...]:
    episodes.require_lists(pool.large, classes, shots + 1)
    queries = sorted({image for c in classes for image in pool.large[c]})
    holds = _classes_of(pool.anywhere, classes)
    draws = []
    for index in range(count):
        generator = np.random.default_rng((seed, index, _PFENET))
        query = queries[index % len(queries)]
        class_id = holds[query][generator.integers(len(holds[query]))]
        supports = episodes.other_supports(
            pool.large[class_id], query, shots, generator
        )
        draws.append(Draw((int(class_id),), query, (supports,)))
    return tuple(draws)


def _lists(pool: Pool, protocol: Protocol, ways: int) -> Lists:
    """Images by class that episodes may be made of."""
    if protocol.name != "denet" or ways > 1:
        return pool.large
    novel = _classes_of(pool.large, pool.large)
    return {c: [i for i in pool.large[c] if len(novel[i]) == 1] for c in pool.large}


def _denet(
    pool: Pool,
    classes: Sequence[int],
    lists: Lists,
    shots: int,
    ways: int,
    count: int,
    seed: int,
) -> tuple[Draw, ...]:
    episodes.require_lists(lists, classes, shots + 1)
    holds = {i: set(c) for i, c in _classes_of(pool.anywhere, pool.anywhere).items()}
    draws = []
    for index in range(count):
        generator = np.random.default_rng((seed, index, _DENET))
        first = classes[index % len(classes)]
        if ways == 1:
            class_ids = (first,)
            query = lists[first][generator.integers(len(lists[first]))]
        else:
            class_ids, query = _ways_and_query(
                lists[first], holds, classes, first, ways, generator
            )
        draws.append(
            Draw(
                tuple(map(int, class_ids)),
                query,
                tuple(
                    episodes.other_supports(lists[c], query, shots, generator)
                    for c in class_ids
                ),
            )
        )
    return tuple(draws)


def _ways_and_query(
    images: Sequence[str],
    holds: Mapping[str, set[int]],
    classes: Sequence[int],
    first: int,
    ways: int,
    generator: np.random.Generator,
) -> tuple[tuple[int, ...], str]:
    """Classes and a query with no pixel of the other novel classes."""
    others = [class_id for class_id in classes if class_id != first]
    for _ in range(_TRIES):
        more = generator.choice(len(others), ways - 1, replace=False)
        class_ids = (first, *(others[i] for i in more))
        allowed = [image for image in images if holds[image] <= set(class_ids)]
        if allowed:
            return class_ids, allowed[generator.integers(len(allowed))]
    raise DiffUpError(
        f"every image of class {first} holds novel classes outside any {ways} ways "
        f"(drawn {_TRIES} times); use more ways or the clean protocol."
    )


def _classes_of(lists: Lists, classes: Iterable[int]) -> dict[str, list[int]]:
    """Image -> its classes, increasing."""
    found: dict[str, list[int]] = defaultdict(list)
    for class_id in sorted(classes):
        for image_id in lists[class_id]:
            found[image_id].append(class_id)
    return found
