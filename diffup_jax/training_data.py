"""F6: what a run trains on: batches of new episodes, or of those a prior cache keeps.

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

from diffup_jax import __version__, prior_cache, sections
from diffup_jax.config import Settings
from diffup_jax.data import batches as making
from diffup_jax.data import cues, episodes, pipeline
from diffup_jax.data.sources import Source
from diffup_jax.methods import Method
from diffup_jax.sections import Role
from diffup_jax.types import Episode


def recipe_of(
    settings: Settings,
    source: Source,
    classes: Sequence[int],
    *,
    texts: tuple[making.Texts, ...] = (),
) -> making.Training:
    """What the run's training episodes are made of."""
    train = settings.train
    return making.Training(
        source=source,
        classes=tuple(classes),
        seed=settings.seed,
        data=settings.data,
        augment=settings.augment,
        batch_size=train.batch_size,
        max_shots=train.max_shots,
        ways=train.ways,
        cues=train.cues,
        fewest_points=train.fewest_points,
        texts=texts,
    )


def batches(recipe: making.Training, *, steps: int) -> grain.MapDataset:
    """The run's dataset of training batches, this process's share."""
    return pipeline.training_dataset(
        recipe,
        steps=steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def class_texts(
    method: Method, source: Source, asked: Sequence[str]
) -> making.Texts | None:
    """Embeddings of a source's class names; None if no cue is a text.

    Nothing is run then. Raises DiffUpError as the method's `embed_text` does.
    """
    if not cues.any_text(asked):
        return None
    return method.embed_text(source.class_names)


def example(settings: Settings) -> Episode:
    """A blank episode of the run's shape, for initialisation."""
    return making.blank(1, 1, settings.data.image_size)


def open_cache(
    settings: Settings,
    method: Any,
    digest: str,
    frozen: dict[str, Any],
    mesh: Mesh,
    recipe: making.Training,
    *,
    episodes: int,
    folder: str,
) -> prior_cache.PriorCache:
    """The first `episodes` training episodes as `method.prepare` makes them.

    What is in `folder` already is not made again. Row i is training episode i of the
    recipe; `digest` is that of the backbone's weights.

    Raises:
      DiffUpError: see prior_cache.open_or_make.
    """
    kept = sections.fields_with(settings, Role.KEPT)
    if not recipe.texts:
        kept = {k: v for k, v in kept.items() if not k.startswith("prior.text.")}
    facts = {
        "package": __version__,
        "method": [method.name, method.version],
        "digest": digest,
        "seed": settings.seed,
        "episodes": episodes,
        "classes": [recipe.source.class_names[c] for c in recipe.classes],
        "kept": kept,
    }
    prepare = jax.jit(
        jax.shard_map(
            method.prepare,
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            check_vma=False,
        )
    )
    dimensions = recipe.texts[0].shape[1] if recipe.texts else 0
    size, ways = settings.data.image_size, recipe.ways
    one = making.blank(1, recipe.max_shots, size, ways=ways, text=dimensions)
    shape = jax.eval_shape(method.prepare, frozen, one)

    def make(first):
        # Episode i is a function of (seed, i): whole batches, the first cut to fit.
        size = recipe.batch_size
        dataset = batches(recipe, steps=-(-episodes // size))
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
        Path(folder), facts=facts, example=shape, episodes=episodes, make=make
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
