"""F4: masks drawn from noise: the network of the chain, and how the chain is run.

Symbols: x_t in units of the signal scale, x0_prev the previous x0_hat in [-1, 1], h, e
and g_i of the decoder (decoder.py).

    (1) h_0 <- h_0 + W sqrt(abar(t)) x_t                                 stem
    (2) g_i  = silu(W_i e_l(i) + V_i x0_prev)                            SCM, stage i
    (3) e_hat, q_hat = DQM(x_t);  error map and IoU of what x_t shows
        h   <- h (1 + a_i(q_hat, t)) + b_i(q_hat, t) + c_i e_hat         stage i
    (4) x0_hat = tanh(logits / 2)

In (1) sqrt(abar) x_t is the best linear estimate of x_0 that x_t alone allows (both of
variance one): pure noise, of which nothing can be learnt, is not seen at all, so that
the first step answers as a network does that was trained without noise.

Priors as intermediate states of the chain, DQM, its input (x_t) and its error-map and
IoU levels: arXiv 2407.16182. The form of (1)-(4) and the sampler: this project's
choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffup_jax import diffusion, images
from diffup_jax.layers import Conv, time_features
from diffup_jax.methods.diffup.decoder import (
    HIDDEN,
    STAGE_LEVELS,
    Condition,
    Decoder,
    Facts,
    Step,
    stage_widths,
)
from diffup_jax.methods.diffup.options import ProcessSettings, SamplerSettings
from diffup_jax.methods.prior import correction

_EMBEDDING = 64  # size of the (q_hat, t) embedding


class Denoised(NamedTuple):
    """logits [b p q]; error [b p q] in [0, 1]; quality [b] in [0, 1]."""

    logits: Float[Array, "b p q"]
    error: Float[Array, "b p q"]
    quality: Float[Array, " b"]


class Chain(nn.Module):
    """The decoder, shown x_t, t and its own previous answer.

    dqm: equation (3)'s DQM; without it its two answers are zero.
    """

    decoder: Decoder
    dqm: bool

    def setup(self):
        widths = stage_widths(self.decoder.size)
        zeros = nn.initializers.zeros
        self.stem = Conv(widths[0], 3, use_bias=False)
        if self.decoder.scm:
            self.own = [Conv(HIDDEN, 1, use_bias=False) for _ in STAGE_LEVELS]
        if self.dqm:
            self.quality_module = DQM()
        self.embed = nn.Dense(_EMBEDDING)
        self.clock = [nn.Dense(2 * width, kernel_init=zeros) for width in widths]
        self.pixel = [
            Conv(width, 1, use_bias=False, kernel_init=zeros) for width in widths
        ]

    def __call__(
        self,
        facts: Facts,
        x: Float[Array, "b p q"],
        t: Float[Array, " b"],
        previous: Float[Array, "b p q"],
    ) -> Denoised:
        """`denoise` after `condition`: what initialisation and one-step use need."""
        return self.denoise(self.condition(facts), x, t, previous)

    def condition(self, facts: Facts) -> Condition:
        """What does not depend on t, see Decoder.condition."""
        return self.decoder.condition(facts)

    def quality(self, x: Float[Array, "b p q"]) -> Float[Array, " b"]:
        """DQM's estimate of IoU(x > 0, M), for the warm start; needs `dqm`."""
        return self.quality_module(x)[1]

    def denoise(
        self,
        condition: Condition,
        x: Float[Array, "b p q"],
        t: Float[Array, " b"],
        previous: Float[Array, "b p q"],
    ) -> Denoised:
        """Equations (1)-(3) at one time.

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
        errors, answers = _pyramid(error[..., None]), _pyramid(previous[..., None])
        scales, shifts = [], []
        for level, dense, pixel in zip(
            STAGE_LEVELS, self.clock, self.pixel, strict=True
        ):
            scale, shift = jnp.split(dense(embedding)[:, None, None], 2, axis=-1)
            scales.append(scale)
            shifts.append(shift + pixel(errors[level]))
        hidden = ()
        if self.decoder.scm:
            hidden = tuple(
                own(answers[level])
                for own, level in zip(self.own, STAGE_LEVELS, strict=True)
            )
        told = diffusion.signal(t)[:, None, None] * x
        step = Step(self.stem(told[..., None]), hidden, tuple(scales), tuple(shifts))
        return Denoised(self.decoder.decode(condition, step), error, quality)


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


def drawn(
    apply: Callable,
    condition: Condition,
    *,
    mean: Float[Array, "b p q"],
    present: Float[Array, "b p q"] | None,
    keys: Key[Array, "b two"],
    process: ProcessSettings,
    sampler: SamplerSettings,
) -> Float[Array, "b p q"]:
    """The probability at the end of the chain, one row per sample.

    Args:
      apply: `(name of a method of Chain, *arguments)` with trained parameters.
      mean: mu, which the rows of `condition` were made of.
      present: the mask to restart from, in [0, 1]; None = from noise or a warm start.
    """
    s = process.signal_scale
    shift = process.condition_strength * s * (2 * mean - 1)
    if present is None:
        start, origin = _start(apply, mean, s, sampler), s * (2 * mean - 1)
    else:
        start = jnp.full(len(mean), correction.RESTART)
        origin = s * (2 * present - 1)
    times = diffusion.times(start, steps=sampler.steps)
    noise = diffusion.normal(keys[:, 0], mean.shape[1:])
    x = diffusion.forward(origin, times[0], noise=noise, shift=shift)

    def denoise(x, t, previous):
        if present is not None:
            first = (t == times[0])[:, None, None]
            previous = jnp.where(first, origin, previous)
        out = apply("denoise", condition, x / s, t, previous / s)
        return s * jnp.tanh(out.logits / 2)

    x, _ = diffusion.sample(
        denoise, x, times=times, keys=keys[:, 1], shift=shift, eta=sampler.eta
    )
    return (x / s + 1) / 2


def _start(apply, mean, scale, sampler: SamplerSettings) -> Float[Array, " b"]:
    """First time of the chain: 1, or the warm start matched to DQM's estimate."""
    if not sampler.warm_start:
        return jnp.ones(len(mean))
    quality = apply("quality", 2 * mean - 1)
    foreground = (mean > 0.5).mean(axis=(1, 2))
    return diffusion.matched_time(quality, foreground, scale=scale)


def _pyramid(maps: Float[Array, "b p q c"]) -> list[Float[Array, "b _ _ c"]]:
    """Maps at R, R/2, R/4, R/8 by averaging 2 x 2 cells."""
    levels = [maps]
    for _ in range(3):
        levels.append(nn.avg_pool(levels[-1], (2, 2), strides=(2, 2)))
    return levels
