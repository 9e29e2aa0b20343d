"""F4: the training-free method, and the prior that DiffUp's decoder refines.

Frozen backbone -> BAFT priors -> UAPF mean mu and variance. As a method of its own it
answers mu, thresholded by Otsu's criterion (IEEE T-SMC 1979); the evaluator also scores
mu at its best threshold. Nothing here is learnt.

The examples are looked at once: their features, prototypes, cues and reliability are
the memory. Of a query the backbone's features are made, its priors and their fusion.

Text: a way's phrase as an embedding (`Support.text`, made by `embed_text`). It counts
as much as one shot: its two maps together have the share of the maps of a shot.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from diffup_jax import images
from diffup_jax.backbones import Backbone
from diffup_jax.methods.prior import (
    baft,
    correction,
    decision,
    evidence,
    operators,
    uapf,
)
from diffup_jax.methods.prior import text as texts
from diffup_jax.methods.prior.options import PriorSettings
from diffup_jax.types import (
    DiffUpError,
    Episode,
    Features,
    Prediction,
    Query,
    Strokes,
    Support,
)

# With more shots than this the backbone sees _PICTURES of their pictures at a time.
_FEW = 5
_PICTURES = 8


class Memory(NamedTuple):
    """What of the examples answers any query.

    examples: see baft.Remembered; floor [b n]: of the variance, see uapf.cue_floor;
    extent [b n 2] of the cues, see evidence.py; text, text_valid: as in Support.
    """

    examples: baft.Remembered
    floor: Float[Array, "b n"]
    extent: Float[Array, "b n 2"]
    text: Float[Array, "b n d"]
    text_valid: Bool[Array, "b n"]


class Fused(NamedTuple):
    """mean, variance [b n p q] at the prior grid."""

    mean: Float[Array, "b n p q"]
    variance: Float[Array, "b n p q"]


class Observed(NamedTuple):
    """What of an answer strokes do not change: the fused prior and the query.

    image [b h w 3] as given; similarity [b g g]: see correction.similarity.
    """

    fused: Fused
    image: Shaped[Array, "b h w 3"]
    similarity: Float[Array, "b g g"]


@dataclasses.dataclass(frozen=True)
class Prior:
    """The training-free method. `params` is {"backbone": ...}."""

    backbone: Backbone
    settings: PriorSettings
    # Constants found while tracing, see `_bases` and `_space`.
    _found: dict = dataclasses.field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    name: ClassVar[str] = "prior"
    # 6: judges are chosen without the query; negative examples; text is an embedding.
    version: ClassVar[int] = 6
    trainable: ClassVar[tuple[str, ...]] = ()
    uses_backbone: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    SECTIONS: ClassVar[dict[str, type]] = {"prior": PriorSettings}

    @classmethod
    def make(cls, settings: Any, backbone: Backbone) -> Prior:
        """The method of a run. Raises DiffUpError for a level the backbone lacks."""
        known = [level.name for level in backbone.levels]
        unknown = [name for name in settings.prior.levels if name not in known]
        if unknown:
            raise DiffUpError(
                f"config.prior.levels names {unknown}, which backbone "
                f"{backbone.name!r} does not have. Its levels: {', '.join(known)}. Use "
                "() for its own choice."
            )
        return cls(backbone, settings.prior)

    def init(self, key: Key[Array, ""], episode: Episode) -> dict[str, Any]:
        """Only the frozen backbone; key and episode are part of the contract."""
        del key, episode
        return {"backbone": self.backbone.params}

    def loss(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Binary cross entropy of the answer: a number to watch, not to descend."""
        memory = self.encode(params, episode.support)
        prob = self.predict(params, keys, episode.query, memory).probability
        prob = jnp.clip(prob, 1e-4, 1 - 1e-4)
        target, valid = episode.query.mask, episode.query.valid[:, None]
        terms = target * jnp.log(prob) + (1 - target) * jnp.log(1 - prob)
        loss = -(terms * valid).sum() / jnp.maximum(valid.sum() * target.shape[1], 1)
        return loss, {"bce": loss}

    def encode(self, params: dict, support: Support) -> Memory:
        """Looks at the examples, once for all queries."""
        b, n, k, h, w, _ = support.images.shape
        flat = support.images.reshape(b * n * k, h, w, 3)
        levels: list[Float[Array, "b n k _ _ _"]] = []
        for size in self._sizes((h, w)):
            look = functools.partial(self._levels, params, size=size)
            if not k:
                shapes = jax.eval_shape(look, jnp.zeros((1, h, w, 3)))
                found = [jnp.zeros((0, *x.shape[1:])) for x in shapes]
            elif k <= _FEW:
                found = look(flat)
            else:
                one = lambda x, look=look: [y[0] for y in look(x[None])]  # noqa: E731
                found = jax.lax.map(one, flat, batch_size=_PICTURES)
            levels += [x.reshape(b, n, k, *x.shape[1:]) for x in found]
        examples = baft.remember(
            tuple(levels),
            fg=support.fg,
            bg=support.bg,
            valid=support.valid,
            temperature=self.settings.temperature,
        )
        read = support.text_valid
        if not support.text.shape[-1]:
            read = jnp.zeros_like(read)
        return Memory(
            examples,
            floor=uapf.cue_floor(support.kind, examples.shows, read),
            extent=evidence.extent(
                support.fg, support.bg, examples.shows, share=examples.share
            ),
            text=support.text,
            text_valid=read,
        )

    def predict(
        self, params: dict, keys: Key[Array, " b"], query: Query, memory: Memory
    ) -> Prediction:
        """mu moved so that Otsu's threshold is 1/2, and the fused maps at h x w."""
        return self.answer(params, keys, self.observe(params, query, memory), None)

    def observe(self, params: dict, query: Query, memory: Memory) -> Observed:
        """What strokes on the query do not change."""
        priors, levels = self.priors(params, query.image, memory)
        fused = self.fuse(priors, memory.floor)
        return Observed(fused, query.image, correction.similarity(levels))

    def answer(
        self,
        params: dict,
        keys: Key[Array, " b"],
        observed: Observed,
        strokes: Strokes | None,
    ) -> Prediction:
        """The answer at the query's size; `strokes` on it correct it."""
        del params, keys
        fused, (b, n) = observed.fused, observed.fused.mean.shape[:2]
        size = observed.image.shape[1:3]
        threshold = jax.vmap(jax.vmap(decision.otsu))(fused.mean)[:, :, None, None]
        # Piecewise linear: 0 -> 0, threshold -> 1/2, 1 -> 1.
        mean = images.resize_maps(fused.mean, size)
        below = 0.5 * mean / jnp.maximum(threshold, 1e-6)
        above = 0.5 + 0.5 * (mean - threshold) / jnp.maximum(1 - threshold, 1e-6)
        prob = jnp.clip(jnp.where(mean <= threshold, below, above), 0, 1)
        if strokes is not None:
            strokes = correction.checked(strokes, (b, n, *size))
            prob = correction.of_probability(
                prob, strokes, observed.image, observed.similarity
            )
        return Prediction(
            prob,
            threshold=jnp.full((b, n), 0.5),
            maps={
                "prior_mean": mean,
                "prior_variance": images.resize_maps(fused.variance, size),
                "uncertainty": jnp.sqrt(jnp.maximum(prob * (1 - prob), 0)),
            },
        )

    def embed_text(self, phrases: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Phrases as `Support.text`. Raises DiffUpError without a text tower."""
        templates = self.settings.text.templates
        return texts.embed(self.backbone, phrases, templates=templates)

    def text_in_words(self) -> str:
        """How text is read, for whoever reads a result."""
        return texts.in_words(self._space, self.settings.text.templates)

    def in_words(self) -> str:
        """How it answers, for a report."""
        return "cut by Otsu's criterion"

    def priors(
        self, params: dict, image: Shaped[Array, "b h w 3"], memory: Memory
    ) -> tuple[baft.Priors, tuple[Float[Array, "b _ _ _"], ...]]:
        """BAFT's priors of a query, not yet fused, and its features by level.

        Raises:
          ValueError: at trace time, if the image is smaller than the prior grid.
        """
        size, levels = image.shape[1:3], []
        for each in self._sizes(size):
            found = self._features(params, images.resize_images(image, each))
            levels += [found.levels[name] for name in self._names]
        text = None
        if memory.text.shape[-1]:
            space = self._space
            # The largest size came last: of it is the text map.
            text = operators.text_foreground(
                found.joint,
                memory.text,
                jnp.asarray(space.backgrounds),
                temperature=space.temperature,
            )
        stride = self.settings.grid_stride
        made = baft.make_priors(
            tuple(levels),
            memory.examples,
            text=text,
            text_valid=memory.text_valid,
            temperature=self.settings.temperature,
            grid=tuple(max(x // stride, 1) for x in size),
        )
        return made, tuple(levels)

    def fuse(
        self,
        priors: baft.Priors,
        floor: Float[Array, "b n"],
        keep: Bool[Array, "b l o"] | None = None,
    ) -> Fused:
        """UAPF over the priors; `keep` drops whole levels and operators (training)."""
        b, n, levels, operators, shots = priors.maps.shape[:5]
        m = levels * operators * shots
        if keep is None:
            keep = jnp.ones((b, levels, operators), bool)
        valid = priors.valid & keep[:, None, :, :, None]
        # Text weighs as one shot does: its maps share out what a shot's maps count.
        read = jnp.maximum(priors.text_valid.sum(axis=2, keepdims=True), 1)
        of_text = keep.sum(axis=(1, 2))[:, None, None] / read
        of_text = jnp.broadcast_to(of_text, priors.text_valid.shape)
        share = jnp.broadcast_to(priors.share[:, :, None, None], valid.shape)

        def joined(visual, text):
            """[b n l o k ...] and [b n t ...] as [b n m ...]."""
            flat = visual.reshape(b, n, m, *visual.shape[5:])
            return jnp.concatenate([flat, text], axis=2)

        return Fused(
            *uapf.fuse(
                joined(priors.maps, priors.text_maps),
                joined(valid, priors.text_valid),
                reliability=joined(priors.reliability, priors.text_reliability),
                share=joined(share, of_text),
                temperature=self.settings.fusion_temperature,
                floor=floor,
                rejected=priors.rejected,
            )
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return self.settings.levels or self.backbone.prior_levels

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Image sizes of `scales`, the largest last, each a size of the backbone's."""
        m = self.backbone.multiple_of
        return [
            tuple(x if s == 1 else max(round(x * s / m), 1) * m for x in size)
            for s in sorted(self.settings.scales)
        ]

    def _features(self, params: dict, pictures: Shaped[Array, "b h w 3"]) -> Features:
        """The backbone's answer; levels without position where the backbone asks."""
        found = self.backbone.apply(params["backbone"], pictures, normalised=False)
        if not self.backbone.debias:
            return found
        bases = self._bases(pictures.shape[1:3])
        levels = {
            name: operators.without_position(found.levels[name], jnp.asarray(basis))
            for name, basis in bases.items()
        }
        return found._replace(levels=levels)

    def _levels(
        self, params: dict, pictures: Shaped[Array, "b h w 3"], *, size: tuple[int, int]
    ) -> list[Float[Array, "b _ _ _"]]:
        """Features of the levels that make priors, of pictures seen at `size`."""
        found = self._features(params, images.resize_images(pictures, size)).levels
        return [found[name] for name in self._names]

    def _bases(self, size: tuple[int, int]) -> dict[str, Float[np.ndarray, "c r"]]:
        """Position bases for an image size: constants of whatever is being traced.

        Found while tracing, with the backbone's own (frozen) weights and outside of the
        trace, once per method and size.
        """
        if size not in self._found:
            with jax.ensure_compile_time_eval():
                blank = np.zeros((1, *size, 3), np.float32)
                found = self.backbone(blank, normalised=True).levels
                self._found[size] = {
                    name: np.asarray(
                        operators.position_basis(
                            found[name][0], components=self.backbone.debias
                        )
                    )
                    for name in self._names
                }
        return self._found[size]

    @property
    def _space(self) -> texts.TextSpace:
        """What every text is compared with; made once, while tracing or before."""
        if "text" not in self._found:
            with jax.ensure_compile_time_eval():
                options = self.settings.text
                self._found["text"] = texts.text_space(
                    self.backbone,
                    templates=options.templates,
                    backgrounds=options.backgrounds,
                    temperature=options.temperature,
                )
        return self._found["text"]


METHOD = Prior
