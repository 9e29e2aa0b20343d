"""What a decoder is trained and scored on: images and classes.

novel   as train.py and eval.py do: base classes of the fold on the kept training
        images train, novel classes on test images are scored
seen    the same decoders, test images and protocol, but the classes that trained:
        what a class gains that the decoder has nothing left to generalise to
base    for choosing: classes of another fold (the next one) are left out of the
        training beside the novel ones and scored on held-out training images, so
        that neither novel classes nor test images are looked at
"""

from __future__ import annotations

import dataclasses

from diffup_jax.config import Settings
from diffup_jax.data import episodes, lists, sources

# Share of the training images that choices are scored on.
LEFT_OUT = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """What a decoder is trained and scored on.

    `on` is "novel", "seen" or "base"; `train` the images, `classes` that train and
    `every` those that train in any fold; `test` the images, `scored` the classes and
    `draws` the episodes that are scored.
    """

    on: str
    train: sources.Source
    every: tuple[int, ...]
    classes: tuple[int, ...]
    test: sources.Source
    scored: tuple[int, ...]
    draws: tuple[episodes.Draw, ...]

    @property
    def sha(self) -> str:
        return lists.draws_sha(self.draws)


def open_split(settings: Settings, on: str, *, shots: int, count: int) -> Split:
    """`count` clean 1-way episodes of the settings' fold; `on` as in the docstring."""
    source = sources.open_split(settings.data, "train", shots=1)
    fold = settings.data.fold
    base = sources.fold_classes(source, fold, role="base")
    if on in ("novel", "seen"):
        train, _ = sources.hold_out(source, settings.data.val_fraction)
        test = sources.open_split(settings.data, "test", shots=shots)
        role = "novel" if on == "novel" else "base"
        scored = sources.fold_classes(test, fold, role=role)
        novel = sources.fold_classes(source, fold, role="novel")
        every, classes = (*base, *novel), base
    else:
        train, test = sources.hold_out(source, LEFT_OUT)
        folds = len(set(source.class_folds) - {-1})
        scored = sources.fold_classes(source, (fold + 1) % folds, role="novel")
        every = classes = tuple(c for c in base if c not in scored)
    if settings.data.skip_small_classes:
        every = sources.classes_with_images(train, every, shots=1)
        classes = tuple(c for c in classes if c in every)
        scored = sources.classes_with_images(test, scored, shots=shots)
    seed = settings.eval.seed
    draws = episodes.clean_draws(test, scored, shots=shots, count=count, seed=seed)
    return Split(on, train, tuple(sorted(every)), classes, test, scored, draws)


def first_shots(split: Split, shots: int) -> Split:
    """The same queries with the first `shots` supports of each: more shots by prefix.

    Raises:
      SystemExit: if an episode has fewer.
    """
    fewest = min(len(way) for draw in split.draws for way in draw.supports)
    if shots > fewest:
        raise SystemExit(f"{shots} shots of episodes that have {fewest}")
    draws = tuple(
        draw._replace(supports=tuple(way[:shots] for way in draw.supports))
        for draw in split.draws
    )
    return dataclasses.replace(split, draws=draws)
