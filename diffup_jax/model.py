"""F8: segment what is in your own pictures, in three lines.

    model = diffup_jax.load("runs/garments")
    examples = [Example("a.jpg", mask="a.png"), Example("b.jpg", box=(9, 9, 80, 60))]
    task = model.fit(examples, label="star")
    result = task.predict("q.jpg")        # result.mask, .probability, .uncertainty

numpy in, numpy out; answers have the size of their picture. The examples are encoded
once, whatever number of pictures is asked. Programs are compiled for numbers of shots
and pictures (data/episode.py), not for each call, and are kept on disk between runs.
Everything may be called from several threads.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from diffup_jax import files
from diffup_jax import weights as weight_files
from diffup_jax.config import Settings
from diffup_jax.data import episode
from diffup_jax.data.episode import Example
from diffup_jax.data.pictures import Picture, read_picture
from diffup_jax.methods import Method
from diffup_jax.result import Result
from diffup_jax.types import DiffUpError, Prediction, Query, Strokes

# Files of an exported model.
RUN, WEIGHTS = "config.json", "model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A method with its parameters; `name` is where it came from."""

    method: Method
    params: dict[str, Any]
    settings: Settings
    run: dict[str, Any]
    name: str

    @property
    def size(self) -> int:
        """Pixels a side that pictures are seen at."""
        return self.settings.data.image_size

    def fit(self, examples: Sequence[Example], *, label: str | None = None) -> Task:
        """Looks at the examples, once.

        Args:
          examples: of one label or, each with its own `label`, of several; a phrase
            counts as one. Negative examples are of their label, or of all.
          label: of the examples that name none.

        Raises:
          DiffUpError: for examples that cannot be read or show nothing, and for a text
            where the backbone has no text tower.
        """
        if isinstance(examples, Example):
            examples = [examples]
        grouped = episode.by_label(examples, label)
        phrases = {
            name: next((one.text for one in each if one.text), None)
            for name, each in grouped.items()
        }
        texts = self._texts(list(phrases.values()))
        shots = [
            [episode.shot(one, size=self.size) for one in each if one.text is None]
            for each in grouped.values()
        ]
        support = episode.support(
            shots,
            texts,
            [phrase is not None for phrase in phrases.values()],
            size=self.size,
        )
        return Task(self, tuple(grouped), self._encode(self.params, support))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the trained parts and their config, for `load` and for a hub.

        The frozen backbone is not in it: it is named, and fetched where it is used.
        Raises DiffUpError for a training-free method, and for a folder that holds
        anything else than such a model: it would be replaced.
        """
        if not self.method.trainable:
            raise DiffUpError(
                f"method {self.method.name!r} has no trained part to save; it is "
                f'loaded with load("{self.method.name}", backbone=...).'
            )
        there = Path(folder)
        others = {x.name for x in there.iterdir()} if there.is_dir() else set()
        if there.is_file() or others - {RUN, WEIGHTS}:
            raise DiffUpError(
                f"{str(there)!r} is there and holds something else than a saved model; "
                "name a new folder."
            )
        trained = {name: self.params[name] for name in self.method.trainable}
        with files.whole_or_absent(folder) as partial:
            partial.mkdir()
            weight_files.save(partial / WEIGHTS, jax.device_get(trained), half=False)
            text = json.dumps(self.run, indent=2) + "\n"
            files.write_whole(partial / RUN, text)

    def _texts(self, phrases: list[str | None]) -> np.ndarray | None:
        asked = [phrase for phrase in phrases if phrase is not None]
        if not asked:
            return None
        if not self.method.reads_text:
            raise DiffUpError(
                f"method {self.method.name!r} reads no text; show a picture of "
                f"{asked[0]!r} instead."
            )
        found = iter(self.method.embed_text(asked))
        rows = [None if phrase is None else next(found) for phrase in phrases]
        nothing = np.zeros_like(next(row for row in rows if row is not None))
        return np.stack([nothing if row is None else row for row in rows])

    @functools.cached_property
    def _encode(self):
        return jax.jit(self.method.encode)

    @functools.cached_property
    def _predict(self):
        """(params, images [b s s 3], memory) -> Prediction; each image on its own."""

        def one(params, image, memory):
            size = image.shape[:2]
            query = Query(image[None], np.ones((1, *size), bool))
            found = self.method.predict(params, self._key(), query, memory)
            return jax.tree.map(lambda x: x[0], found)

        return jax.jit(jax.vmap(one, (None, 0, None)))

    @functools.cached_property
    def _observe(self):
        return jax.jit(self.method.observe)

    @functools.cached_property
    def _answer(self):
        return jax.jit(
            lambda params, observed, strokes: self.method.answer(
                params, self._key(), observed, strokes
            )
        )

    def _key(self):
        """One for every picture: neither order nor company changes an answer."""
        return jax.random.key(self.settings.eval.seed)[None]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is meant: the labels, and the memory of their examples."""

    model: Model
    labels: tuple[str, ...]
    memory: Any

    def predict(
        self, image: Picture | Iterable[Picture], *, batch_size: int = 0
    ) -> Any:
        """The answer for a picture; for several, an iterator of answers in order.

        Args:
          image: a file, an array [h w 3], or PIL's; or an iterable of those, of any
            sizes, read as they are asked for.
          batch_size: pictures the device sees at once; 0 = 8, on a CPU 2.

        Raises:
          DiffUpError: for a picture that cannot be read.
        """
        if isinstance(image, str | os.PathLike | np.ndarray) or hasattr(image, "mode"):
            return next(self._answers([image], 1))
        return self._answers(image, batch_size or _batch())

    def correct(
        self,
        result: Result,
        *,
        points: Sequence[Any] | np.ndarray | None = None,
        point_labels: Sequence[int] | None = None,
        scribble: Any = None,
        background: Any = None,
        label: str | None = None,
    ) -> Result:
        """The answer after a person said more of the picture itself.

        What was said before counts on. The features of the picture are kept with the
        result, so that only the first correction of a picture looks at it again.

        Args:
          result: of this task.
          points, point_labels, scribble, background: as in Example.
          label: which one is spoken of; may be left out where there is only one.

        Raises:
          DiffUpError: for a method that takes no strokes, a label that is none, and
            strokes that do not fit the picture.
        """
        method = self.model.method
        if not hasattr(method, "answer"):
            raise DiffUpError(f"method {method.name!r} takes no corrections.")
        if result.labels != self.labels:
            raise DiffUpError(
                f"the result is of {list(result.labels)}, this task of "
                f"{list(self.labels)}; correct it with the task that answered it."
            )
        way = result.place(label)
        said = np.zeros((2, *result.masks.shape), bool)
        if result.strokes is not None:
            said |= result.strokes
        new = episode.strokes(
            result.image.shape[:2],
            points=points,
            point_labels=point_labels,
            scribble=scribble,
            background=background,
        )
        # The last word counts where a pixel was called both.
        for side, other in ((0, 1), (1, 0)):
            said[side, way] = (said[side, way] | new[side]) & ~new[other]
        size = self.model.size
        seen = [np.stack([_shrunk(each, size) for each in side])[None] for side in said]
        observed = result.observed.get(self, self._observed, result.image)
        before = _seen_probability(result, size)
        found = self.model._answer(
            self.model.params, observed, Strokes(*seen, before[None])
        )
        found = jax.tree.map(lambda x: x[0], jax.device_get(found))
        corrected = self._result(found, result.image, result.name)
        return corrected.said(said, result.observed)

    def _observed(self, image: np.ndarray) -> Any:
        query = episode.query(image, size=self.model.size)
        return self.model._observe(self.model.params, query, self.memory)

    def _answers(self, images: Iterable[Picture], size: int) -> Iterator[Result]:
        batch: list[tuple[np.ndarray, str]] = []
        for image in images:
            named = image if isinstance(image, str | os.PathLike) else ""
            batch.append((read_picture(image), os.fspath(named)))
            if len(batch) == size:
                yield from self._batch(batch, size)
                batch = []
        if batch:
            yield from self._batch(batch, size)

    def _batch(self, batch: list[tuple[np.ndarray, str]], size: int) -> list[Result]:
        seen = [
            episode.query(image, size=self.model.size).image[0] for image, _ in batch
        ]
        seen += seen[-1:] * (size - len(seen))  # one program for a last, smaller batch
        found = self.model._predict(self.model.params, np.stack(seen), self.memory)
        found = jax.device_get(found)
        return [
            self._result(jax.tree.map(lambda x, row=row: x[row], found), image, name)
            for row, (image, name) in enumerate(batch)
        ]

    def _result(self, found: Prediction, image: np.ndarray, name: str) -> Result:
        return Result.of(found, image, name=name, labels=self.labels)


def _seen_probability(result: Result, size: int) -> np.ndarray:
    """A result's probability at the network's size: what a chain restarts from."""
    return np.stack([_resized(each, size) for each in result.probabilities])


def _batch() -> int:
    return 2 if jax.default_backend() == "cpu" else 8


def _shrunk(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask at the network's size; a stroke never vanishes."""
    return _resized(mask.astype(np.float32), size) > 0.01


def _resized(values: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(
        Image.fromarray(values.astype(np.float32)).resize(
            (size, size), Image.Resampling.BOX
        )
    )
