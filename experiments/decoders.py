"""One decoder trained and scored on kept priors: what ablations are made of.

The backbone is frozen, so its part of every training and test episode is made once
(diffup_jax/prior_cache.py) and shared by all decoders that differ behind it. What they
are trained and scored on: splits.py.

Training episodes are drawn over all classes at once and each fold takes those of its
own base classes, so that one cache serves every fold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import msgspec
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from tqdm import tqdm

from diffup_jax import (
    evaluation,
    multi_backbone,
    prior_cache,
    sections,
    training,
    training_data,
)
from diffup_jax.config import Settings
from diffup_jax.data import batches as making
from diffup_jax.data import episodes, pipeline, protocols
from diffup_jax.files import whole_or_absent
from experiments import splits
from experiments.splits import Split

# Bootstrap resamples of an interval.
_RESAMPLES = 1000


class Kept(NamedTuple):
    """A test episode as the decoder sees it; `query` is without its image."""

    query: Any
    class_ids: Any
    observed: Any


class Rows(NamedTuple):
    """Kept training episodes over one backbone; `numbers`: the rows to train on."""

    method: Any
    cache: prior_cache.PriorCache
    numbers: np.ndarray


def train_rows(
    settings: Settings, split: Split, *, count: int, folder: Path
) -> tuple[Rows, ...]:
    """Of every backbone that `settings` take in turn: `count` training episodes."""
    replace = msgspec.structs.replace
    changes: dict[str, Any] = {"fold": 0}
    if split.on == "base":
        changes["val_fraction"] = splits.LEFT_OUT
    # The fold decides which rows are taken, not what is in them; a seed is one of the
    # decoder's start, order and draws.
    settings = replace(settings, seed=0, data=replace(settings.data, **changes))
    turns, mesh = multi_backbone.open_turns(settings, split.train), _mesh()
    recipe = training_data.recipe_of(settings, split.train, split.every)
    # The classes do not depend on the number of shots, see episodes.training_draw.
    drawn = [
        episodes.training_draw(
            split.train, split.every, shots=1, seed=0, index=index, ways=recipe.ways
        ).class_ids
        for index in range(count)
    ]
    taken = [set(classes) <= set(split.classes) for classes in drawn]
    found = []
    for turn in turns:
        texts = () if turn.texts is None else (turn.texts,)
        cache = training_data.open_cache(
            turn.settings,
            turn.method,
            turn.backbone.digest,
            multi_backbone.frozen(turn, mesh),
            mesh,
            dataclasses.replace(recipe, texts=texts),
            episodes=count,
            folder=str(folder),
        )
        found.append(Rows(turn.method, cache, np.flatnonzero(taken)))
    return tuple(found)


def trained(settings: Settings, rows: Sequence[Rows], *, file: Path) -> dict[str, Any]:
    """The averaged decoder of `settings`, read from `file` where it was trained before.

    Training is that of train.py: same step, optimiser and draws, backbones in turn.
    """
    if file.exists():
        with np.load(file) as found:
            return {"decoder": traverse_util.unflatten_dict(dict(found), sep="/")}
    options, seed = settings.train, settings.seed
    tx, method, n = training.optimiser(options), rows[0].method, len(rows)
    state, frozen = training.init_state(method, tx, settings, _mesh())
    # Kept priors are all it reads of a backbone, so one step serves every turn.
    step = training.make_step(
        method.loss_prepared, tx, _mesh(), ema_decay=options.ema_decay, seed=seed
    )

    def read(number):
        turn = rows[number % n]
        chosen = prior_cache.rows_of_step(
            number // n, options.batch_size, episodes=len(turn.numbers), seed=seed
        )
        return turn.cache.batch(turn.numbers[chosen])

    dataset = grain.MapDataset.range(options.steps).map(read)
    ahead = dataset.to_iter_dataset(grain.ReadOptions(1, 2))
    with tqdm(total=options.steps, unit="step", desc=file.stem, mininterval=10) as bar:
        for batch in ahead:
            state, metrics = step(state, frozen, batch)
            if bar.n % 50 == 49:
                bar.set_postfix(loss=f"{float(metrics['loss']):.3f}", refresh=False)
            bar.update()
    average = jax.device_get(state.average)
    with whole_or_absent(file) as partial, open(partial, "wb") as out:
        np.savez(out, **traverse_util.flatten_dict(average["decoder"], sep="/"))
    return average


def test_cache(
    settings: Settings,
    split: Split,
    turn: multi_backbone.Turn,
    *,
    cue: str,
    folder: Path,
) -> prior_cache.PriorCache:
    """The scored episodes with one cue, as `Kept`."""
    method, backbone = turn.method, turn.backbone
    prior = sections.plain(settings.prior)
    facts = {
        "method": [method.name, method.version],
        "digest": backbone.digest,
        "prior": prior,
        "image_size": settings.data.image_size,
        "min_area": settings.data.min_area,
        "sha": split.sha,
        "on": split.on,
        "cue": cue,
        "seed": settings.eval.seed,
        "conventions": dataclasses.astuple(settings.data.conventions),
        "classes": [split.test.class_names[c] for c in split.scored],
        "root": split.test.root,
    }
    params = {"backbone": backbone.params}

    @jax.jit
    def keep(episode, class_ids):
        memory = method.encode(params, episode.support)
        observed = method.observe(params, episode.query, memory)
        return Kept(episode.query._replace(image=None), class_ids, observed)

    def make(first: int) -> Iterator[Kept]:
        for batch in pipeline.evaluation_batches(
            split.test,
            split.draws[first:],
            numbers=range(first, len(split.draws)),
            cue=cue,
            protocol=protocols.get("clean"),
            data=msgspec.structs.replace(settings.data, on_error="stop"),
            batch_size=settings.eval.batch_size,
            seed=settings.eval.seed,
            texts=turn.texts,
            workers=0,
        ):
            kept = jax.device_get(keep(batch.episode, batch.class_ids))
            real = slice(len(batch.places))
            yield jax.tree.map(lambda x, real=real: x[real], kept)

    shots = len(split.draws[0].supports[0])
    text = 0 if turn.texts is None else turn.texts.shape[1]
    one = making.blank(1, max(shots, 1), settings.data.image_size, text=text)
    return prior_cache.open_or_make(
        folder,
        facts=facts,
        example=jax.eval_shape(keep, one, np.zeros((1, 1), np.int32)),
        episodes=len(split.draws),
        make=make,
    )


def scored(
    settings: Settings,
    split: Split,
    method: Any,
    params: dict[str, Any],
    cache: prior_cache.PriorCache,
) -> evaluation.Evaluation:
    """The decoder on the scored episodes."""
    answer = jax.jit(
        lambda params, keys, kept: method.answer(params, keys, kept.observed, None)
    )
    count, rows = len(split.draws), settings.eval.batch_size

    def batches():
        for first in range(0, count, rows):
            places = np.arange(first, min(first + rows, count))
            kept = cache.batch(np.resize(places, rows))
            yield making.EvaluationBatch(kept, kept.class_ids, places, (), 0, ())

    return evaluation.evaluate(
        lambda keys, kept: answer(params, keys, kept),
        jax.random.key(settings.eval.seed),
        batches(),
        classes=split.scored,
        episodes=count,
        frame=protocols.get("clean").frame,
        seed=settings.eval.seed,
        resamples=_RESAMPLES,
    )


def key_of(value: Any) -> str:
    """A short name for a JSON value."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("data",))
