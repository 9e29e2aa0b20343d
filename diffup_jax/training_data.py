"""F5: what a run trains on: batches of new episodes, or of those a prior cache keeps.

Batches are the same for any number of workers, devices and restarts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffup_jax import __version__, prior_cache
from diffup_jax import settings as setup
from diffup_jax.data import cues, episodes, pipeline
from diffup_jax.data.sources import Source
from diffup_jax.methods import REVISION, prior
from diffup_jax.settings import Settings

# Sections and keys of a config that what a prior cache keeps depends on.
_CACHED = ("data", "augment", "prior")
_CACHED_TRAIN = ("max_shots", "ways", "cues", "fewest_points")


def batches(settings: Settings, source, classes, *, steps: int | None = None) -> Any:
    """The run's dataset of training batches, this process's share."""
    options = settings.train
    return pipeline.training_dataset(
        source,
        classes,
        seed=settings.seed,
        steps=steps or options.steps,
        batch_size=options.batch_size,
        image_size=settings.data.image_size,
        max_shots=options.max_shots,
        ways=options.ways,
        cues=options.cues,
        conventions=setup.conventions(settings),
        fewest_points=options.fewest_points,
        augment=settings.augment,
        on_error=settings.data.on_error,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def cached_batches(
    settings: Settings,
    method: Any,
    frozen: dict[str, Any],
    mesh: Mesh,
    source: Source,
    classes: Sequence[int],
    *,
    steps: int,
    workdir: str,
) -> grain.MapDataset:
    """The same of the run's prior cache, which is made first where it is missing.

    `steps` batches of what `method.prepare` returns; raises as `open_cache` does.
    """
    options = settings.train
    cache = open_cache(
        settings,
        method,
        frozen,
        mesh,
        source,
        classes,
        # No more than the run looks at.
        episodes=min(options.prior_cache, steps * options.batch_size),
        folder=options.prior_cache_dir or f"{workdir}/prior_cache",
    )
    return prior_cache.batches(
        cache,
        steps=steps,
        batch_size=options.batch_size,
        seed=settings.seed,
    )


def open_cache(
    settings: Settings,
    method: Any,
    frozen: dict[str, Any],
    mesh: Mesh,
    source: Source,
    classes: Sequence[int],
    *,
    episodes: int,
    folder: str,
) -> prior_cache.PriorCache:
    """The first `episodes` training episodes as `method.prepare` makes them.

    `method` is methods.diffup.DiffUp, or has a `prepare` and a `prior` like it. What is
    in `folder` already is not made again. Row i is training episode i of `classes`.

    Raises:
      DiffUpError: see prior_cache.open_or_make.
    """
    options = settings.train
    facts = {
        "version": __version__,
        "revision": REVISION,
        "digest": method.prior.backbone.digest,
        "seed": settings.seed,
        "episodes": episodes,
        "mask_stride": settings.decoder.mask_stride,
        "classes": [source.class_names[c] for c in classes],
        **{name: setup.plain(settings)[name] for name in _CACHED},
        "train": {name: getattr(options, name) for name in _CACHED_TRAIN},
    }
    if cues.any_text(options.cues):
        facts["text"] = setup.plain(settings)["text"]
    for name in ("workers", "test_root", "test_split"):
        facts["data"].pop(name)
    if options.max_shots <= prior.FEW:
        # Of few shots, what is kept is not fused yet; many are pooled by it.
        del facts["prior"]["fusion_temperature"]
    prepare = jax.jit(
        jax.shard_map(
            method.prepare,
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            check_vma=False,
        )
    )
    example = jax.eval_shape(method.prepare, frozen, setup.example_episode(settings))

    def make(first):
        # Episode i is a function of (seed, i): whole batches, the first cut to fit.
        size = options.batch_size
        steps = -(-episodes // size)
        dataset = batches(settings, source, classes, steps=steps)
        with contextlib.closing(
            pipeline.iterate(dataset, workers=settings.data.workers)
        ) as made_ahead:
            made_ahead.set_state({"next": first // size})
            for episode in made_ahead:
                made = jax.device_get(prepare(frozen, place(episode, mesh)))
                for message in made_ahead.news():
                    print(f"damaged, another episode takes its place: {message}")
                yield jax.tree.map(lambda x, cut=first % size: x[cut:], made)
                first -= first % size

    cache = prior_cache.open_or_make(
        Path(folder),
        facts=facts,
        example=example,
        episodes=episodes,
        make=make,
    )
    print(
        f"prior cache: {cache.episodes} episodes, {cache.nbytes / 1e9:.2f} GB, "
        f"{cache.folder}",
        flush=True,
    )
    return cache


def place(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch as global arrays spread over the mesh."""
    sharding = NamedSharding(mesh, P("data"))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )


def validation_draws(
    source: Source, classes: Sequence[int], count: int, seed: int
) -> tuple[episodes.Draw, ...]:
    """1-shot episodes of base classes that have two held-out images."""
    usable = [c for c in classes if len(source.image_ids(c)) >= 2]
    if not usable:
        print(
            "No base class has two held-out images: no validation. Raise "
            "config.data.val_fraction to get one.",
            flush=True,
        )
        return ()
    return episodes.clean_draws(source, usable, shots=1, count=count, seed=seed)
