"""F3: UQDD, the uncertainty-aware query-conditioned diffusion decoder.

The only trained part of DiffUp. It sees maps whose number of channels depends neither
on the backbone nor on the cues: the fused prior (mean, variance), extent and layout of
the cues (evidence.py), the RGB query, a query self-similarity (a matrix over positions)
and its own state (x_t, t, previous x0_hat). All is at mask resolution R.

    (1) e_0..e_3 = pyramid([2 mu - 1, sigma / sigma_max, extent, layout, RGB])  static
        h_0 = W sqrt(abar(t)) x_t + E e_0                                stem
    (2) g_i      = silu(W_i e_l(i) + V_i [x0_prev, A x0_prev])           SCM, stage i
        h        = GroupNorm(h) (1 + gamma_i) + beta_i, [gamma, beta] = U_i g_i
    (3) e_hat, q_hat = DQM(x_t);  error map and IoU of what x_t shows
        h        = h (1 + a_i(q_hat, t)) + b_i(q_hat, t) + c_i e_hat     stage i
    (4) logits   = U-Net(x_t) + u (2 mu - 1) + v, 7 stages: 3 down, middle, 3 up;
        x0_hat   = tanh(logits / 2)
    (5) h <- h + O [A_j V h]_j               cells that are alike share: sharing.py

In (1) sqrt(abar) x_t is the best linear estimate of x_0 that x_t alone allows (both of
variance one): pure noise, of which nothing can be learnt, is not seen at all, so that
the first step answers as a network does that was trained without noise.

(5) is in the pyramid, once per episode, and in the last stage of the level nearest to
the grid of the query's similarity.

Without diffusion (methods/diffup.py) x_t and x0_prev are zero, t is 1, DQM is left out,
and the network is called once.

The seven stages, the inputs of SCM (mean, variance, query infos) and of DQM (x_t), and
DQM's error-map and IoU levels are the paper's (arXiv 2407.16182). Layer sizes, the form
of (1)-(5), extent and layout are this project's choice. `condition` holds all that does
not depend on t, so that a sampler computes it once per episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import diffusion, images
from diffup_jax.layers import Conv, norm, time_features
from diffup_jax.sharing import Alike, Share, nearest_level, through

# Stage i of the U-Net works at pyramid level STAGE_LEVELS[i]: resolution R / 2^level.
STAGE_LEVELS = (0, 1, 2, 3, 2, 1, 0)

# Decoder sizes: channels at R, R/2, R/4, R/8. At most 10 M parameters.
SIZES = {
    "S": (32, 48, 64, 96),
    "B": (64, 128, 192, 256),
    "L": (96, 160, 256, 320),
}

_HIDDEN = 32  # channels of the condition pyramid and of SCM's hidden layer
_PRIOR_SCALE = 3.0  # u of equation (4) before training
_EMBEDDING = 64  # size of the (q_hat, t) embedding


class Facts(NamedTuple):
    """What the decoder is told of an episode, at R, ways folded into the batch.

    mean: mu in [0, 1]; variance: sigma^2 in [0, 0.25]; extent, layout: see evidence.py;
    similarity: of the g cells of a square grid, in [-1, 1]; rgb: the query in [0, 1].
    """

    mean: Float[Array, "b p q"]
    variance: Float[Array, "b p q"]
    extent: Float[Array, "b 2"]
    layout: Float[Array, "b p q"]
    similarity: Float[Array, "b g g"]
    rgb: Float[Array, "b p q 3"]


class Decoded(NamedTuple):
    """logits [b p q]; error [b p q] in [0, 1]; quality [b] in [0, 1]."""

    logits: Float[Array, "b p q"]
    error: Float[Array, "b p q"]
    quality: Float[Array, " b"]


class Condition(NamedTuple):
    """What of an episode does not depend on t.

    stages: the static half of equation (2) per stage; entry, prior: the static terms of
    (1) and (4); alike: A_j of (5) [b j g g], None without `affinity`.
    """

    stages: tuple[Float[Array, "b _ _ _"], ...]
    entry: Float[Array, "b p q c"]
    prior: Float[Array, "b p q 1"]
    alike: Any


class UQDD(nn.Module):
    """The decoder; `size` names a row of SIZES.

    query_rgb, layout: show it the image, the layout of the cues. affinity: equation
    (5). scm, dqm: equations (2), (3); without SCM the condition enters by the stem
    alone, without DQM its two answers are zero.
    """

    size: str
    query_rgb: bool
    layout: bool
    affinity: bool
    scm: bool
    dqm: bool

    def setup(self):
        widths = SIZES[self.size]
        stage_widths = [widths[level] for level in STAGE_LEVELS]
        self.pyramid = [Conv(_HIDDEN, 3, stride=1 if i == 0 else 2) for i in range(4)]
        self.pyramid_deep = [Conv(_HIDDEN, 3) for _ in range(4)]
        if self.scm:
            self.static = [Conv(_HIDDEN, 1) for _ in STAGE_LEVELS]
        self.modulation = [
            SCM(width) if self.scm else norm(width, affine=True)
            for width in stage_widths
        ]
        if self.affinity:
            self.alike = Alike()
            self.share_condition, self.share = Share(), Share()
        if self.dqm:
            self.quality_module = DQM()
        self.embed = nn.Dense(_EMBEDDING)
        self.stem = Conv(widths[0], 3)
        self.entry = Conv(widths[0], 1, use_bias=False)
        self.stages = [Stage(width) for width in stage_widths]
        self.down = [Conv(widths[i + 1], 3, stride=2) for i in range(3)]
        self.up = [Conv(widths[level], 1) for level in (2, 1, 0)]
        self.head = Conv(1, 3, kernel_init=nn.initializers.zeros)
        # The U-Net starts at zero, so an untrained decoder answers the prior and
        # training spends no step on finding it again.
        self.prior = nn.Dense(1, kernel_init=nn.initializers.constant(_PRIOR_SCALE))

    def __call__(
        self,
        facts: Facts,
        x: Float[Array, "b p q"],
        t: Float[Array, " b"],
        previous: Float[Array, "b p q"],
    ) -> Decoded:
        """`denoise` after `condition`: what initialisation and one-step use need."""
        return self.denoise(self.condition(facts), x, t, previous)

    def quality(self, x: Float[Array, "b p q"]) -> Float[Array, " b"]:
        """DQM's estimate of IoU(x > 0, M), for the warm start; needs `dqm`."""
        return self.quality_module(x)[1]

    def condition(self, facts: Facts) -> Condition:
        """Equation (1), the static half of (2) per stage; then stem and prior of (4).

        What the switches leave out of `facts` is not read.
        """
        mean = facts.mean[..., None]
        extent = facts.extent[:, None, None]
        parts = [
            2 * mean - 1,
            2 * jnp.sqrt(facts.variance)[..., None],
            jnp.broadcast_to(extent, (*mean.shape[:3], 2)),
        ]
        if self.layout:
            parts.append(facts.layout[..., None])
        if self.query_rgb:
            parts.append(2 * facts.rgb - 1)
        alike = self.alike(facts.similarity) if self.affinity else None
        maps = jnp.concatenate(parts, axis=-1)
        levels = []
        for conv, deep in zip(self.pyramid, self.pyramid_deep, strict=True):
            maps = nn.silu(conv(maps))
            maps = maps + nn.silu(deep(maps))
            if self.affinity and len(levels) == nearest_level(mean, alike):
                maps = self.share_condition(maps, alike)
            levels.append(maps)
        stages = ()
        if self.scm:
            stages = tuple(
                static(levels[level])
                for static, level in zip(self.static, STAGE_LEVELS, strict=True)
            )
        return Condition(stages, self.entry(levels[0]), self.prior(2 * mean - 1), alike)

    def once(self, condition: Condition) -> Decoded:
        """The answer without diffusion: `denoise` of nothing, at t = 1."""
        nothing = jnp.zeros_like(condition.prior[..., 0])
        return self.denoise(condition, nothing, jnp.ones(len(nothing)), nothing)

    def denoise(
        self,
        condition: Condition,
        x: Float[Array, "b p q"],
        t: Float[Array, " b"],
        previous: Float[Array, "b p q"],
    ) -> Decoded:
        """Equations (2)-(5) at one time.

        Args:
          condition: what `condition` returned.
          x: x_t, in units of the signal scale.
          previous: previous x0_hat in [-1, 1]; zeros when there is none.
        """
        error, quality = jnp.zeros_like(x), jnp.zeros_like(t)
        if self.dqm:
            error, quality = self.quality_module(x)
        clock = jnp.concatenate([time_features(t, size=32), quality[:, None]], axis=-1)
        embedding = nn.silu(self.embed(clock))
        pixels = _pyramid(error[..., None])
        previous = previous[..., None]
        if self.affinity:
            previous = jnp.concatenate(
                [previous, through(previous, condition.alike)], axis=-1
            )
        previous = _pyramid(previous)

        def stage(i, h):
            level = STAGE_LEVELS[i]

            def modulate(h):
                if not self.scm:
                    return self.modulation[i](h)
                return self.modulation[i](h, condition.stages[i], previous[level])

            h = self.stages[i](h, modulate, embedding, pixels[level])
            if self.affinity and i > 2 and level == nearest_level(x, condition.alike):
                h = self.share(h, condition.alike)
            return h

        told = diffusion.signal(t)[:, None, None] * x
        h = self.stem(told[..., None]) + condition.entry
        skips = []
        for i in range(3):
            h = stage(i, h)
            skips.append(h)
            h = self.down[i](h)
        h = stage(3, h)
        for i in range(3):
            skip = skips.pop()
            h = images.resize(h, skip.shape[1:3])
            h = stage(4 + i, self.up[i](jnp.concatenate([h, skip], axis=-1)))
        logits = self.head(nn.silu(h)) + condition.prior
        return Decoded(logits[..., 0], error, quality)


class SCM(nn.Module):
    """Semantic condition modulation of one stage, equation (2)."""

    channels: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b p q c"],
        static: Float[Array, "b p q e"],
        previous: Float[Array, "b p q m"],
    ) -> Float[Array, "b p q c"]:
        hidden = nn.silu(
            static + Conv(_HIDDEN, 1, use_bias=False, name="own")(previous)
        )
        both = Conv(2 * self.channels, 1, name="modulation")(hidden)
        gamma, beta = jnp.split(both, 2, axis=-1)
        return norm(self.channels, affine=False)(h) * (1 + gamma) + beta


class DQM(nn.Module):
    """Denoising quality module, equation (3): what x_t alone says of its own errors."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b p q"]
    ) -> tuple[Float[Array, "b p q"], Float[Array, " b"]]:
        h = nn.silu(Conv(16, 3, stride=2, name="conv0")(x[..., None]))
        h = nn.silu(Conv(32, 3, stride=2, name="conv1")(h))
        h = nn.silu(Conv(32, 3, name="conv2")(h))
        error = Conv(1, 3, name="error")(h)
        error = images.resize(nn.sigmoid(error), x.shape[1:3])[..., 0]
        quality = nn.Dense(1, name="quality")(h.mean(axis=(1, 2)))[:, 0]
        return error, nn.sigmoid(quality)


class Stage(nn.Module):
    """Residual block of one stage: SCM on its norm, DQM after it."""

    channels: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b p q c"],
        modulate: Callable,
        embedding: Float[Array, "b e"],
        error: Float[Array, "b p q 1"],
    ) -> Float[Array, "b p q c"]:
        inner = Conv(self.channels, 3, name="conv0")(
            nn.silu(norm(self.channels, affine=True, name="norm")(h))
        )
        inner = modulate(inner)
        zeros = nn.initializers.zeros
        both = nn.Dense(2 * self.channels, kernel_init=zeros, name="quality")(embedding)
        scale, shift = jnp.split(both[:, None, None], 2, axis=-1)
        pixel = Conv(self.channels, 1, use_bias=False, kernel_init=zeros, name="error")(
            error
        )
        inner = nn.silu(inner * (1 + scale) + shift + pixel)
        return h + Conv(self.channels, 3, name="conv1")(inner)


def _pyramid(maps: Float[Array, "b p q c"]) -> list[Float[Array, "b _ _ c"]]:
    """Maps at R, R/2, R/4, R/8 by averaging 2 x 2 cells."""
    levels = [maps]
    for _ in range(3):
        levels.append(nn.avg_pool(levels[-1], (2, 2), strides=(2, 2)))
    return levels
