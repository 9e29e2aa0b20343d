"""One decoder trained and scored on kept priors: what ablations are made of.

The backbone is frozen, so its part of every training and test episode is made once
(diffup_jax/prior_cache.py) and shared by all decoders that differ behind it. Where
they are trained and scored: places.py.

Training episodes are drawn over all classes at once and each fold takes those of its
own base classes, so that one cache serves every fold.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from diffup_jax.settings import Settings
from flax import traverse_util
from jax.sharding import Mesh
from tqdm import tqdm

from diffup_jax import evaluation, prior_cache, training, training_data
from diffup_jax import settings as setup
from diffup_jax.data import batches as making
from diffup_jax.data import episodes, pipeline, protocols
from diffup_jax.methods import REVISION
from tests.bench import places

# Bootstrap resamples of an interval.
_RESAMPLES = 1000


class Kept(NamedTuple):
    """A test episode without its images: what scoring and the decoder need of it."""

    query: Any
    query_mask: Any
    query_valid: Any
    class_id: Any
    prepared: Any


class Rows(NamedTuple):
    """Kept training episodes over one backbone; `numbers`: the rows to train on."""

    method: Any
    cache: prior_cache.PriorCache
    numbers: np.ndarray


def changes_of(texts: Iterable[str]) -> dict[str, Any]:
    """Changes of a config from KEY=VALUE, values as JSON."""
    parts = (text.partition("=") for text in texts)
    return {key: json.loads(value) for key, _, value in parts}


def config_of(
    named: str,
    changes: dict[str, Any],
    *,
    fold: int | None = None,
    seed: int | None = None,
) -> Any:
    """The config FILE[:FOLD] with another fold or seed (None: its own), dotted changes.

    Raises:
      SystemExit: if a change names no setting.
    """
    path, _, own = named.partition(":")
    fold = str(fold) if fold is not None else own or None
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config() if fold is None else module.get_config(fold)
    if seed is not None:
        config.seed = seed
    for name, value in changes.items():
        *sections, key = name.split(".")
        part = config
        for section in sections:
            part = part.get(section, {})
        if key not in part:
            raise SystemExit(f"unknown setting {name!r}: see configs/common.py")
        part[key] = type(part[key])(value) if part[key] is not None else value
    return config


def train_rows(
    settings: Settings, place: places.Place, *, count: int, folder: Path
) -> tuple[Rows, ...]:
    """Of every backbone that `settings` take in turn: `count` training episodes."""
    return tuple(
        _rows(each, place, count=count, folder=folder)
        for each in setup.in_turn(settings).values()
    )


def _rows(settings: Settings, place: places.Place, *, count: int, folder: Path) -> Rows:
    method = setup.make_method(settings, setup.make_backbone(settings))
    if place.on == "base":
        data = dataclasses.replace(settings.data, val_fraction=places.LEFT_OUT)
        settings = dataclasses.replace(settings, data=data)
    # The fold decides which rows are taken, not what is in them; a seed is one of the
    # decoder's start, order and draws.
    settings = dataclasses.replace(
        settings, seed=0, data=dataclasses.replace(settings.data, fold=0)
    )
    cache = training_data.open_cache(
        settings,
        method,
        {"backbone": method.prior.backbone.params},
        _mesh(),
        place.train,
        place.every,
        episodes=count,
        folder=str(folder),
    )
    # The class does not depend on the number of shots, see episodes.training_draw.
    of = [
        episodes.training_draw(
            place.train, place.every, shots=1, seed=settings.seed, index=index
        ).class_ids[0]
        for index in range(count)
    ]
    return Rows(method, cache, np.flatnonzero(np.isin(of, place.classes)))


def test_cache(
    settings: Settings, place: places.Place, method: Any, *, cue: str, folder: Path
) -> prior_cache.PriorCache:
    """The scored episodes with one cue, as `Kept`."""
    prior = setup.plain(settings)["prior"]
    del prior["fusion_temperature"]  # what is kept is not fused yet
    facts = {
        "revision": REVISION,
        "digest": method.prior.backbone.digest,
        "prior": prior,
        "mask_stride": settings.decoder.mask_stride,
        "image_size": settings.data.image_size,
        "min_area": settings.data.min_area,
        "sha": place.sha,
        "on": place.on,
        "cue": cue,
        "conventions": dataclasses.astuple(setup.conventions(settings)),
        "classes": [place.test.class_names[c] for c in place.scored],
        "root": settings.data.root,
    }
    params = {"backbone": method.prior.backbone.params}
    protocol = protocols.get("clean")

    @jax.jit
    def keep(episode):
        prepared = method.prepare(params, episode)
        return Kept(
            prepared.rgb,
            episode.query_mask,
            episode.query_valid,
            episode.class_id,
            prepared,
        )

    def make(first: int) -> Iterator[Kept]:
        for batch in pipeline.evaluation_batches(
            place.test,
            place.draws[first:],
            numbers=range(first, len(place.draws)),
            cue=cue,
            conventions=setup.conventions(settings),
            protocol=protocol,
            image_size=settings.data.image_size,
            batch_size=settings.eval.batch_size,
            seed=settings.eval.seed,
            workers=0,
            on_error="stop",
        ):
            kept = jax.device_get(keep(batch.episode))
            real = slice(len(batch.places))
            yield jax.tree.map(lambda x, real=real: x[real], kept)

    shots = len(place.draws[0].supports[0])
    example = making.blank(1, max(shots, 1), settings.data.image_size)
    return prior_cache.open_or_make(
        folder,
        facts=facts,
        example=jax.eval_shape(keep, example),
        episodes=len(place.draws),
        make=make,
    )


def trained(
    settings: Settings,
    rows: Sequence[Rows],
    *,
    file: Path,
) -> dict[str, Any]:
    """The averaged decoder of `settings`, read from `file` where it was trained before.

    Training is that of train.py: same step, optimiser and draws, backbones in turn.
    """
    options = settings.train
    if file.exists():
        with np.load(file) as found:
            return {"decoder": traverse_util.unflatten_dict(dict(found), sep="/")}
    tx = training.optimiser(options)
    method = rows[0].method
    state, frozen = training.init_state(method, tx, settings, _mesh())
    # Kept priors are all it reads of a backbone, so one step serves every turn.
    step = training.make_step(
        method.loss_prepared,
        tx,
        _mesh(),
        ema_decay=options.ema_decay,
        seed=settings.seed,
    )

    def read(number):
        turn = rows[number % len(rows)]
        chosen = prior_cache.rows_of_step(
            number // len(rows),
            options.batch_size,
            episodes=len(turn.numbers),
            seed=settings.seed,
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
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".aside")
    with open(aside, "wb") as out:
        np.savez(out, **traverse_util.flatten_dict(average["decoder"], sep="/"))
    os.replace(aside, file)
    return average


def scored(
    settings: Settings,
    place: places.Place,
    method: Any,
    params: dict[str, Any],
    cache: prior_cache.PriorCache,
) -> evaluation.Evaluation:
    """The decoder on the scored episodes."""
    size = (settings.data.image_size,) * 2
    predict = jax.jit(
        lambda params, keys, kept: method.predict_prepared(
            params, keys, kept.prepared, size
        )
    )
    count, rows = len(place.draws), settings.eval.batch_size

    def batches():
        for first in range(0, count, rows):
            places = np.arange(first, min(first + rows, count))
            kept = cache.batch(np.resize(places, rows))
            yield making.EvaluationBatch(kept, places, (), 0, ())

    return evaluation.evaluate(
        lambda keys, kept: predict(params, keys, kept),
        jax.random.key(settings.eval.seed),
        batches(),
        classes=place.scored,
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
