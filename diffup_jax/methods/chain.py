"""F4: masks drawn from noise: what the sampler of diffusion.py is asked for.

Priors as intermediate states of the chain: arXiv 2407.16182. The sampler: this
project's choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffup_jax import diffusion
from diffup_jax.methods import correction
from diffup_jax.methods.objective import ProcessSettings
from diffup_jax.uqdd import Condition


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How masks are drawn.

    steps >= 1 of DDIM; eta in [0, 1]; samples >= 1, averaged; warm_start: begin at the
    time matched to DQM's estimate of the prior, not at 1. prior_dropout: each sample
    leaves out each (level, operator) pair of priors with this probability, so that
    samples start from priors of different granularity; 0 = all of them see all.
    threshold: where the mean probability is cut, a row of decision.py's THRESHOLDS;
    a way that strokes speak of is cut at 1/2.

    Without diffusion steps is 1, there is no warm start, eta is not read, and samples
    differ by prior_dropout alone.
    """

    steps: int
    eta: float
    samples: int
    warm_start: bool
    prior_dropout: float
    threshold: str


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
      apply: `(name of a method of UQDD, *arguments)` with trained parameters.
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
