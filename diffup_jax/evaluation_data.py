"""F6: what a run is scored on: novel classes of the test split, a list of episodes.

A list is drawn by the protocol or read from a file; read, it must fit the data and what
is asked. A 0-shot list is that of the fewest shots (1 if there are none) without its
supports: both are asked the same of the same queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from diffup_jax.config import Settings
from diffup_jax.data import draws as drawing
from diffup_jax.data import episodes, lists, pipeline, protocols, sources
from diffup_jax.data.batches import Texts
from diffup_jax.data.protocols import Protocol
from diffup_jax.types import DiffUpError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Test:
    """One evaluation list and the data it is about.

    `sha` is the hash of the list as published or drawn (for 0 shots: of it without
    supports), `facts` its first line, which `draws` may name by the source's own image
    ids (see `lists.check_draws`).
    """

    source: sources.Source
    classes: tuple[int, ...]
    protocol: Protocol
    shots: int
    draws: tuple[episodes.Draw, ...]
    sha: str
    facts: dict[str, Any]

    @property
    def file_name(self) -> str:
        """Where the list is written, relative to the folder of lists."""
        facts = self.facts
        name = f"{facts['benchmark']}_fold{facts['fold']}_{facts['protocol']}"
        ways = f"{facts['ways']}way_" if facts["ways"] > 1 else ""
        return f"{name}_{ways}{self.shots}shot.jsonl"


def open_test(settings: Settings, *, shots: int) -> Test:
    """The novel classes' data with the list of config.eval, drawn or read.

    For 0 shots it is the list of the fewest shots asked, without supports.

    Raises:
      DiffUpError: for data that cannot be opened, a class with too few images, and a
        list that does not fit the data, the protocol, the shots or the ways asked.
    """
    options, data = settings.eval, settings.data
    protocol = protocols.get(options.protocol)
    drawn = shots or min((each for each in options.shots if each), default=1)
    source = sources.open_split(data, "test", shots=drawn, rule=protocol)
    classes = sources.fold_classes(source, data.fold, role="novel")
    if options.episodes_file:
        listed, facts = lists.read_draws(options.episodes_file)
        _check_list(settings, facts, listed, shots=shots)
        if not shots:
            listed = _without_supports(listed)
        draws = lists.check_draws(
            listed, source, classes=classes, name=options.episodes_file
        )
        return Test(
            source=source, classes=classes, protocol=protocol, shots=shots,
            draws=draws, sha=lists.draws_sha(listed), facts=facts,
        )  # fmt: skip
    benchmark = sources.rules_of(source, data.source)
    pool = drawing.pool_of(source, classes, protocol=protocol, benchmark=benchmark)
    if data.skip_small_classes:
        classes = _large_enough(source, pool, classes, shots=drawn)
    seed = options.seed if protocol.seed is None else protocol.seed
    draws = drawing.evaluation_draws(
        pool,
        classes,
        protocol=protocol,
        benchmark=benchmark,
        shots=drawn,
        ways=options.ways,
        count=options.episodes
        or drawing.episode_count(pool, protocol=protocol, benchmark=benchmark),
        seed=seed,
    )
    if not shots:
        draws = _without_supports(draws)
    facts = {
        "benchmark": source.name,
        "fold": data.fold,
        "protocol": protocol.name,
        "seed": seed,
        "shots": shots,
        "ways": options.ways,
    }
    return Test(
        source=source, classes=classes, protocol=protocol, shots=shots,
        draws=draws, sha=lists.draws_sha(draws), facts=facts,
    )  # fmt: skip


def _without_supports(draws) -> tuple[episodes.Draw, ...]:
    return tuple(draw._replace(supports=((),) * len(draw.supports)) for draw in draws)


def _large_enough(source, pool, classes, *, shots: int) -> tuple[int, ...]:
    """The classes that have a query and `shots` other images in the protocol's pool."""
    kept = tuple(c for c in classes if len(pool.large[c]) > shots)
    left = [source.class_names[c] for c in classes if c not in kept]
    if left:
        print(
            f"{len(left)} of {len(classes)} novel classes of {source.name} have fewer "
            f"than {shots + 1} images for {shots}-shot episodes and are left out: "
            + ", ".join(left),
            flush=True,
        )
    if not kept:
        raise DiffUpError(
            f"no novel class of {source.name} has the {shots + 1} images that {shots}-"
            "shot episodes need. Use fewer shots or add images."
        )
    return kept


def _check_list(settings: Settings, facts, draws, *, shots: int) -> None:
    """A list is scored as what it is; `check_draws` compares it with the data."""
    asked = {
        "protocol": (facts.get("protocol"), settings.eval.protocol, "eval.protocol"),
        "fold": (facts.get("fold"), settings.data.fold, "data.fold"),
    }
    if draws:
        found = len(draws[0].supports), len(draws[0].supports[0])
        asked["ways"] = (found[0], settings.eval.ways, "eval.ways")
        if shots:  # a 0-shot episode is a query, and every list has those
            asked["shots"] = (found[1], shots, "eval.shots")
    wrong = [
        f"its {name} is {found}, config.{key} is {wanted}"
        for name, (found, wanted, key) in asked.items()
        if found is not None and found != wanted
    ]
    if wrong:
        raise DiffUpError(
            f"the episode list {settings.eval.episodes_file!r} does not fit: "
            + "; ".join(wrong)
            + ". Set these values to those of the list, or give another list."
        )


def batches(
    settings: Settings,
    test: Test,
    places: Iterable[int],
    cue: str,
    *,
    texts: Texts | None,
):
    """Batches of the episodes at `places` of the list, each support with `cue`."""
    numbers = tuple(places)
    return pipeline.evaluation_batches(
        test.source,
        [test.draws[number] for number in numbers],
        numbers=numbers,
        cue=cue,
        protocol=test.protocol,
        data=settings.data,
        batch_size=settings.eval.batch_size,
        seed=settings.eval.seed,
        texts=texts,
        workers=settings.data.workers,
    )
