"""F4: what DiffUp's decoder is trained on: the states it is shown, and the loss.

Symbols: M the mask at resolution R, s the signal scale, x_0 = s (2M - 1),
m = s (2 mu - 1), lambda the strength of the condition in the forward process.

    (1) x_t = forward(z, t, eps, lambda m),  z drawn from {own x0_hat, m, x_0}
    (2) loss = BCE + Dice of the logits against M
               + lambda_e |e_hat - |clip(x_t/s) - (2M - 1)| / 2|
               + lambda_q |q_hat - IoU(x_t > 0, M)|

Training from x_0 alone teaches the network to trust x_t, which while sampling carries
its own mistakes: then every further step made masks worse (measured, see docs). So z is
what will really be there: the network's own answer or the prior, next to the truth, and
t leans to noise. The own answer of a first pass, gradients stopped, is also the
previous x0_hat (self-conditioning, arXiv 2208.04202) in a share of the draws.

Losses and draws: this project's choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import diffusion
from diffup_jax.methods.disturbance import Draws
from diffup_jax.uqdd import UQDD, Decoded, Facts


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """The diffusion process.

    signal_scale: s; condition_strength: lambda, 0 = plain DDPM.
    """

    signal_scale: float
    condition_strength: float


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What training draws and how it weighs.

    time_bias: t = u^(1/time_bias); 1 = uniform, larger = nearer to noise.
    pure_noise: share of draws at t = 1 exactly.
    from_own, from_prior: shares of z in equation (1); the rest is the truth.
    self_conditioning: share of draws that see the previous x0_hat.
    prior_dropout: probability of leaving out each (level, operator) pair, and each
      text operator.
    prior_gamma: standard deviation of log gamma in the distortion P -> P^gamma.
    dice, error, quality: weights of the loss terms.
    """

    time_bias: float
    pure_noise: float
    from_own: float
    from_prior: float
    self_conditioning: float
    prior_dropout: float
    prior_gamma: float
    dice: float
    error: float
    quality: float


def loss(
    network: UQDD,
    params: dict[str, Any],
    draws: Draws,
    state: dict[str, Array],
    *,
    losses: LossSettings,
    process: ProcessSettings,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Equations (1) and (2): the mean over rows, and its terms by name.

    Args:
      params: of the decoder.
      state: what it sees and should answer, ways folded into the batch: the fields of
        uqdd.Facts, target [b r r] and valid [b r r] in [0, 1].
    """
    s = process.signal_scale
    target, valid = state["target"], state["valid"]
    apply = lambda p, name, *a: network.apply(  # noqa: E731
        {"params": p}, *a, method=name
    )
    condition = apply(params, "condition", facts_of(state))
    b = draws.count
    n = len(target) // b
    shift = process.condition_strength * s * (2 * state["mean"] - 1)
    prior = s * (2 * state["mean"] - 1)
    truth = s * (2 * target - 1)

    def draw(name, f, *tail):
        """One draw per episode and way, flattened to [b n, ...]."""
        drawn = draws(name, f, (n, *tail))
        return drawn.reshape(b * n, *tail)

    u = draw("time", jax.random.uniform)
    t = jnp.where(
        draw("pure", jax.random.uniform) < losses.pure_noise,
        1.0,
        u ** (1 / losses.time_bias),
    )
    own = jnp.zeros_like(target)
    if losses.from_own or losses.self_conditioning:
        # First pass: the network's own answer from a noisier time, as in the chain.
        t_first = t + (1 - t) * draw("first", jax.random.uniform)
        noise = draw("noise first", jax.random.normal, *target.shape[1:])
        x_first = diffusion.forward(prior, t_first, noise=noise, shift=shift)
        frozen = jax.lax.stop_gradient((params, condition))
        first = apply(frozen[0], "denoise", frozen[1], x_first / s, t_first, own)
        own = jax.lax.stop_gradient(jnp.tanh(first.logits / 2))

    which = draw("source", jax.random.uniform)[:, None, None]
    z = jnp.where(which < losses.from_own, s * own, prior)
    z = jnp.where(which < losses.from_own + losses.from_prior, z, truth)
    noise = draw("noise", jax.random.normal, *target.shape[1:])
    x = diffusion.forward(z, t, noise=noise, shift=shift)
    seen = draw("self", jax.random.uniform) < losses.self_conditioning
    previous = jnp.where(seen[:, None, None], own, 0.0)
    out = apply(params, "denoise", condition, x / s, t, previous)
    terms = _terms(out, x / s, target, valid)
    weighted = [getattr(losses, name) * terms[name] for name in list(terms)[1:]]
    return terms["bce"] + sum(weighted), terms


def facts_of(state: dict[str, Array]) -> Facts:
    """What of a state the decoder is told."""
    return Facts(*(state[name] for name in Facts._fields))


def _terms(out: Decoded, x, target, valid) -> dict[str, Array]:
    """Equation (2), each term averaged over the batch."""
    pixels = jnp.maximum(valid.sum(axis=(1, 2)), 1e-6)

    def over_pixels(values):
        return ((values * valid).sum(axis=(1, 2)) / pixels).mean()

    logits = out.logits
    bce = jnp.logaddexp(0.0, logits) - target * logits
    prob = jax.nn.sigmoid(logits)
    overlap = (prob * target * valid).sum(axis=(1, 2))
    mass = ((prob + target) * valid).sum(axis=(1, 2))
    shown = jnp.clip(x, -1, 1)
    error = jnp.abs(shown - (2 * target - 1)) / 2
    hard, truth = (x > 0) * valid, (target > 0.5) * valid
    union = jnp.maximum(hard, truth).sum(axis=(1, 2))
    iou = (hard * truth).sum(axis=(1, 2)) / jnp.maximum(union, 1e-6)
    return {
        "bce": over_pixels(bce),
        "dice": (1 - (2 * overlap + 1) / (mass + 1)).mean(),
        "error": over_pixels(jnp.abs(out.error - error)),
        "quality": jnp.abs(out.quality - iou).mean(),
    }
