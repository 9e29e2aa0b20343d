"""F4: the training-free method, and the prior that DiffUp's decoder refines.

Frozen backbone -> BAFT priors -> UAPF mean mu and variance. As a method of its own it
answers mu, thresholded by Otsu's criterion (IEEE T-SMC 1979); the evaluator also scores
mu at its best threshold. Nothing here is learnt.

Text: an episode names a row of a `TextTable` (text.py) by `class_id` and says by
`text_valid` that text is a cue. It counts as much as one shot: its two maps together
have the share of the maps of a shot.

Of many shots (more than FEW) only the features are held: the backbone sees a few
pictures at a time, and the shots of a level and operator become one map and its
variance. Fusion of these gives what fusion of all maps gives (uapf.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from diffup_jax import baft, evidence, images, operators, uapf
from diffup_jax.backbones import Backbone
from diffup_jax.methods import decision
from diffup_jax.methods.prior.text import TextTable
from diffup_jax.types import Episode, Features

# With up to so many shots each keeps maps of its own, for training to disturb.
FEW = 5
# Pictures of many shots that the backbone sees at once.
_PICTURES = 8


class Made(NamedTuple):
    """An episode's priors before fusion, and what else of it the decoder is told.

    A pure function of episode and frozen weights, so training may keep it
    (prior_cache.py). Only the shape of `priors` depends on the backbone. floor [b n]:
    of the variance, see uapf.cue_floor; extent [b n 2] and layout [b n p q] of the
    cues, see evidence.py; similarity [b pq pq] of the query's cells, see
    operators.similarity.
    """

    priors: baft.Priors
    floor: Float[Array, "b n"]
    extent: Float[Array, "b n 2"]
    layout: Float[Array, "b n p q"]
    similarity: Float[Array, "b pq pq"]


class Fused(NamedTuple):
    """mean, variance [b n p q] at the prior grid."""

    mean: Float[Array, "b n p q"]
    variance: Float[Array, "b n p q"]


@dataclasses.dataclass(frozen=True)
class PriorSettings:
    """How priors are made.

    levels: names of backbone levels; empty = the backbone's own choice.
    scales: sizes at which the backbone sees an image, relative to the episode's, each
      rounded to what the backbone takes; every level of every size makes priors.
    temperature: tau of assembly and self-propagation.
    fusion_temperature: tau of UAPF's reliability weights.
    grid_stride: image pixels per cell of the prior grid.
    affinity_stride: image pixels per cell of the query's similarity.
    """

    levels: tuple[str, ...]
    scales: tuple[float, ...]
    temperature: float
    fusion_temperature: float
    grid_stride: int
    affinity_stride: int


@dataclasses.dataclass(frozen=True)
class Prior:
    """The training-free method. `params` is {"backbone": ...}.

    `text` is what text cues mean; without it (None) `text_valid` has no effect.
    """

    backbone: Backbone
    settings: PriorSettings
    text: TextTable | None = None
    trainable: tuple[str, ...] = ()
    # Position bases by image size: they need a pass of the backbone, see `_bases`.
    _found: dict = dataclasses.field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def init(self, key: Key[Array, ""], episode: Episode) -> dict[str, Any]:
        """Only the frozen backbone; key and episode are part of the contract."""
        del key, episode
        return {"backbone": self.backbone.params}

    def loss(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Binary cross entropy of the answer: a number to watch, not to descend."""
        prob, _ = self.predict(params, keys, episode)
        prob = jnp.clip(prob, 1e-4, 1 - 1e-4)
        target, valid = episode.query_mask, episode.query_valid[:, None]
        terms = target * jnp.log(prob) + (1 - target) * jnp.log(1 - prob)
        loss = -(terms * valid).sum() / jnp.maximum(valid.sum() * target.shape[1], 1)
        return loss, {"bce": loss}

    def predict(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, "b n h w"], dict[str, Array]]:
        """mu moved so that Otsu's threshold is 1/2, and the fused maps at h x w."""
        del keys
        size = episode.query.shape[1:3]
        fused = self.fuse(self.priors(params, episode))
        mean = images.resize_maps(fused.mean, size)
        threshold = jax.vmap(jax.vmap(decision.otsu))(fused.mean)[:, :, None, None]
        # Piecewise linear: 0 -> 0, threshold -> 1/2, 1 -> 1.
        below = 0.5 * mean / jnp.maximum(threshold, 1e-6)
        above = 0.5 + 0.5 * (mean - threshold) / jnp.maximum(1 - threshold, 1e-6)
        prob = jnp.clip(jnp.where(mean <= threshold, below, above), 0, 1)
        maps = {
            "prior_mean": mean,
            "prior_variance": images.resize_maps(fused.variance, size),
            "uncertainty": jnp.sqrt(prob * (1 - prob)),
        }
        return prob, maps

    def priors(self, params: dict, episode: Episode) -> Made:
        """BAFT's priors of an episode, not yet fused.

        Raises:
          ValueError: at trace time, if the image is smaller than the prior grid.
        """
        b, n, k, h, w, _ = episode.support.shape
        flat = episode.support.reshape(b * n * k, h, w, 3)
        query, support = [], []
        for size in self._sizes((h, w)):
            found = self._features(params, images.resize_images(episode.query, size))
            joint = found.joint
            levels = [found.levels[name] for name in self._names]
            shots = levels
            # Without shots no picture is looked at; below, none is cut from these.
            if k:
                look = functools.partial(self._levels, params, size=size)
                shots = look(flat) if k <= FEW else _in_blocks(look, flat)
            query += levels
            support += [
                shot[: b * n * k].reshape(b, n, k, *level.shape[1:])
                for shot, level in zip(shots, levels, strict=True)
            ]
        # The largest size came last: of it is the text map, and the affinity below.
        text, text_valid = self._text(joint, episode)
        priors = baft.make_priors(
            tuple(query),
            tuple(support),
            cue_fg=episode.cue_fg,
            cue_bg=episode.cue_bg,
            shot_valid=episode.shot_valid,
            text=text,
            text_valid=text_valid,
            temperature=self.settings.temperature,
            grid=_grid((h, w), self.settings.grid_stride),
            pool=None if k <= FEW else self._shot_weights,
        )
        return Made(
            priors=priors,
            floor=uapf.cue_floor(
                episode.cue_kind, episode.shot_valid, priors.text_valid.any(axis=2)
            ),
            extent=evidence.extent(
                episode.cue_fg, episode.cue_bg, episode.shot_valid, share=priors.share
            ),
            layout=evidence.layout(
                episode.cue_fg,
                episode.cue_bg,
                episode.shot_valid,
                share=priors.share,
                grid=_grid((h, w), self.settings.grid_stride),
            ),
            similarity=operators.similarity(
                tuple(query), grid=self.affinity_grid((h, w))
            ),
        )

    def fuse(self, made: Made, keep: Bool[Array, "b l o"] | None = None) -> Fused:
        """UAPF over the priors; `keep` drops whole levels and operators (training)."""
        priors = made.priors
        b, n, levels, operators, maps = priors.maps.shape[:5]
        if keep is None:
            keep = jnp.ones((b, levels, operators), bool)
        valid = priors.valid & keep[:, None, :, :, None]
        # Text weighs as one shot does: its maps share out what a shot's maps count.
        texts = jnp.maximum(priors.text_valid.sum(axis=2, keepdims=True), 1)
        of_text = keep.sum(axis=(1, 2))[:, None, None] / texts
        of_text = jnp.broadcast_to(of_text, priors.text_valid.shape)
        reliability = priors.reliability
        share = jnp.broadcast_to(priors.share[:, :, None, None], valid.shape)
        if priors.spread is not None:
            valid, reliability, share = uapf.pooled(
                valid,
                reliability,
                share=share,
                temperature=self.settings.fusion_temperature,
            )

        def joined(visual, text):
            """[b n l o g ...] and [b n t ...] as [b n m ...]."""
            m = levels * operators * maps
            flat = visual.reshape(b, n, m, *visual.shape[5:])
            return jnp.concatenate([flat, text], axis=2)

        within = None
        if priors.spread is not None:
            within = joined(priors.spread, jnp.zeros_like(priors.text_maps))
        mean, variance = uapf.fuse(
            joined(priors.maps, priors.text_maps),
            joined(valid, priors.text_valid),
            within=within,
            reliability=joined(reliability, priors.text_reliability),
            share=joined(share, of_text),
            temperature=self.settings.fusion_temperature,
            floor=made.floor,
        )
        return Fused(mean, variance)

    def affinity_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the cells of `Made.similarity` for an image size."""
        return _grid(size, self.settings.affinity_stride)

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

    def _shot_weights(
        self,
        valid: Bool[Array, "o k"],
        reliability: Float[Array, "o k"],
        *,
        share: Float[Array, "o k"],
    ) -> Float[Array, "o k"]:
        """Of the shots of a level, what each weighs in an operator's mean."""
        return uapf.fusion_weights(
            valid,
            reliability,
            share=share,
            temperature=self.settings.fusion_temperature,
        )

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

    def _text(
        self, joint: Float[Array, "b p q d"] | None, episode: Episode
    ) -> tuple[Float[Array, "b n p q"] | None, Bool[Array, "b n"]]:
        """The text map of each way, and where there is one."""
        table = self.text
        if table is None:
            return None, jnp.zeros_like(episode.text_valid)
        rows: Int[Array, "b n"] = episode.class_id
        known = (rows >= 0) & (rows < len(table.classes))
        text = jnp.asarray(table.classes)[jnp.where(known, rows, 0)]
        foreground = operators.text_foreground(
            joint,
            text,
            jnp.asarray(table.backgrounds),
            temperature=table.temperature,
        )
        return foreground, episode.text_valid & known


def _in_blocks(
    look: Callable[..., list[Array]], pictures: Shaped[Array, "m h w 3"]
) -> list[Float[Array, "m _ _ _"]]:
    """`look` over _PICTURES at a time; the last block overlaps the one before."""
    count, block = len(pictures), _PICTURES
    if count <= block:
        return look(pictures)

    def step(i, whole):
        at = jnp.minimum(i * block, count - block)
        part = look(jax.lax.dynamic_slice_in_dim(pictures, at, block))
        return [
            jax.lax.dynamic_update_slice_in_dim(x, y, at, axis=0)
            for x, y in zip(whole, part, strict=True)
        ]

    nothing = [
        jnp.zeros((count, *level.shape[1:]), level.dtype)
        for level in jax.eval_shape(look, pictures[:block])
    ]
    return jax.lax.fori_loop(0, -(-count // block), step, nothing)


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return max(size[0] // stride, 1), max(size[1] // stride, 1)
